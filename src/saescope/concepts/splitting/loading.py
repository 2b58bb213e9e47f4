"""From what a user has (an id, a folder, a module, a ``LanguageModel``) to a module and its tokenizer."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import saescope.models.bundled
from saescope.models import LanguageModel


class InitializationError(ValueError):
    """A model that cannot be split with what was given: what is missing, and what to give."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model with split points is made of."""

    module: nn.Module
    tokenizer: Any
    lock: Any
    """Held while the model runs with hooks on it."""


def parts(
    model_or_repo_id: Any, *args: Any, automodel: Any, tokenizer: Any, config: Any, device_map: Any, **kwargs: Any
) -> Parts:
    """Loads, or takes, a module and a tokenizer; arguments as for ``ModelWithSplitPoints``.

    Raises:
        InitializationError: something is missing, or cannot be loaded.
        TypeError: the model is neither an id nor a module.
    """
    if isinstance(model_or_repo_id, str | Path):
        return _loaded(str(model_or_repo_id), args, automodel, tokenizer, config, device_map, kwargs)
    if not isinstance(model_or_repo_id, LanguageModel | nn.Module):
        raise TypeError(
            "the model is a hub id or folder (with automodel), a Hugging Face model (with tokenizer) or a saescope "
            f"LanguageModel, not {type(model_or_repo_id).__name__}"
        )
    unused = [*map(str, args), *kwargs, *(["config"] if config is not None else [])]
    if unused:
        raise InitializationError(
            f"{', '.join(unused)}: these are for loading a model by id; here the model is loaded already"
        )
    wrapped = model_or_repo_id if isinstance(model_or_repo_id, LanguageModel) else None
    module: Any = model_or_repo_id if wrapped is None else wrapped.module
    if wrapped is not None and tokenizer is None:
        tokenizer = wrapped.tokenizer
    if tokenizer is None:
        raise InitializationError("a model that is loaded already needs its tokenizer: give tokenizer=...")
    if device_map == "auto":
        raise InitializationError(
            "device_map='auto' places a model while it is loaded; give the model's id or folder, or a single device"
        )
    if device_map is not None:
        module.to(device_map)
    lock = threading.RLock() if wrapped is None else wrapped.lock
    return Parts(module=module, tokenizer=_tokenizer(tokenizer), lock=lock)


def _loaded(
    name: str,
    args: tuple[Any, ...],
    automodel: Any,
    tokenizer: Any,
    config: Any,
    device_map: Any,
    kwargs: dict[str, Any],
) -> Parts:
    if not hasattr(automodel, "from_pretrained"):
        raise InitializationError(
            f"to load {name!r}, say as what: automodel=AutoModelForCausalLM, AutoModelForSequenceClassification, ... "
            "of transformers"
        )
    source = name
    settings = dict(kwargs) if config is None else {**kwargs, "config": config}
    if name == "bundled":
        source = str(Path(saescope.models.bundled.__file__).parent / "weights")
        if "torch_dtype" not in settings:  # its file is in half precision to be small; LanguageModel.load widens it too
            settings.setdefault("dtype", torch.float32)
    placed = device_map is not None and (device_map == "auto" or isinstance(device_map, dict))
    if placed:  # a single device needs no other package to place the model
        settings["device_map"] = device_map
    try:
        module = automodel.from_pretrained(source, *args, **settings)
        tokenizer = _tokenizer(source if tokenizer is None else tokenizer)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InitializationError(
            f"{name} cannot be loaded as {getattr(automodel, '__name__', automodel)}: {type(error).__name__}: {reason}"
        ) from error
    if device_map is not None and not placed:
        module.to(device_map)
    return Parts(module=module, tokenizer=tokenizer, lock=threading.RLock())


def _tokenizer(given: Any) -> Any:
    if not isinstance(given, str | Path):
        return given
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(given))
