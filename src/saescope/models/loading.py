"""From a name to a module and a tokenizer, quietly, and with a short reason where that fails.

transformers explains a failure in many lines that suit its own developers; here each failure says what was looked for
and what to do. Weights that lack a part of the model are refused: transformers would fill the part with random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

BUNDLED = "bundled"
_BUNDLED_WEIGHTS = Path(__file__).parent / "bundled" / "weights"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


class ModelLoadError(ValueError):
    """A language model that cannot be loaded: what was looked for, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a name gave."""

    module: nn.Module
    tokenizer: Any
    """None where a folder holds none."""


def load(id_or_folder: str | Path, dtype: str | torch.dtype, device: str) -> Loaded:
    """Loads ``"bundled"``, a folder or a hub id; see ``LanguageModel.load``."""
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    folder = _folder(id_or_folder)
    source = str(folder or id_or_folder)
    with _quiet():
        config = _config(source, local=folder is not None)
        module = _module(source, config, torch_dtype)
        has_tokenizer = folder is None or any((folder / name).is_file() for name in _TOKENIZER_FILES)
        tokenizer = _tokenizer(source) if has_tokenizer else None
    return Loaded(module=module.to(torch_device), tokenizer=tokenizer)


def predicts_masked(config: Any) -> bool:
    """Whether a model of this config sees both sides of a token, as BERT does, and so predicts masked tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def _folder(id_or_folder: str | Path) -> Path | None:
    """The folder meant, with a config in it; None for a hub id."""
    if id_or_folder == BUNDLED:
        if not (_BUNDLED_WEIGHTS / "config.json").is_file():
            raise ModelLoadError(
                f"the bundled model's weights are missing from the package ({_BUNDLED_WEIGHTS}); reinstall saescope, "
                "or give the name or folder of another model"
            )
        return _BUNDLED_WEIGHTS
    text = str(id_or_folder)
    looks_like_path = (
        isinstance(id_or_folder, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    )
    folder = Path(text).expanduser()
    if not folder.is_dir():
        if not looks_like_path:
            return None
        raise FileNotFoundError(f"no folder {folder} to load a language model from")
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ModelLoadError(
            f"{folder} is not a model in Hugging Face format: it has no config.json (it holds {held}); "
            "give the folder that save_pretrained wrote"
        )
    return folder


def _config(source: str, *, local: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        advice = (
            "is config.json intact, and is transformers new enough for this architecture?"
            if local
            else "is the name spelt as on the hub, is there a network, and does a gated model have your login? "
            f"Without network, give a local folder or {BUNDLED!r}"
        )
        raise ModelLoadError(
            f"no language model {source!r} could be found or read: {advice} ({_brief(error)})"
        ) from None
    known = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    if config.model_type not in known or getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{source} (model type {config.model_type!r}) is neither a causal nor a masked language model of "
            "transformers. If it needs code of its own, load it yourself and wrap it: "
            "LanguageModel(module, tokenizer, name)"
        )
    return config


def _module(source: str, config: Any, dtype: torch.dtype) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if predicts_masked(config) else AutoModelForCausalLM
    try:
        module, report = auto.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelLoadError(
            f"the weights of {source} cannot be read: {_brief(error)}; is the download complete?"
        ) from None
    unfilled = sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})
    if unfilled:
        raise ModelLoadError(
            f"the weights of {source} do not fill {type(module).__name__}: {len(unfilled)} of its tensors are missing "
            f"or have another shape (first: {unfilled[0]}); give a checkpoint saved with its language-model head"
        )
    return module


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelLoadError(
            f"the tokenizer of {source} cannot be loaded: {_brief(error)}; repair its files, or load model and "
            "tokenizer yourself and wrap them: LanguageModel(module, tokenizer, name)"
        ) from None


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r} for a model; use float32, bfloat16, float16 or float64")
    return found


def _device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; use cpu, cuda, cuda:0, ... or mps") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return found


def _brief(error: Exception) -> str:
    """The first sentence of a foreign message."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else ""
    return f"{type(error).__name__}: {text[:157] + '...' if len(text) > 160 else text}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and log lines of transformers and the hub; afterwards they are as they were."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            logging.enable_progress_bar()
