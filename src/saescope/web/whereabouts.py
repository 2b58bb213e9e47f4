"""Where the weights and the model of a dictionary in the store lie, or one sentence on why texts can not be tried on it.

The store says both where it was written by ``saescope analyze``; options of ``saescope serve`` say it otherwise. Nothing
is opened here but a model's ``config.json``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from saescope.store import DictionaryRecord

BUNDLED = "bundled"


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """What options say.

    Attributes:
        models: a model (folder, name on the hub, or "bundled") by the name of a dictionary, by the name that the store has
            for the model, or by "" for all.
        sources: where weights lie, by the name of a dictionary.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, record: DictionaryRecord) -> str:
        """Where the weights lie; empty where nobody knows."""
        known = self.sources.get(record.name) or record.details.get("source")
        return known if isinstance(known, str) else ""

    def model(self, record: DictionaryRecord) -> str:
        """Where the model lies; empty where nobody knows."""
        named = (self.models.get(each) for each in (record.name, record.model, ""))
        return next(filter(None, named), record.model)

    def absent(self, record: DictionaryRecord, *, steering: bool = False) -> str | None:
        """What keeps the dictionary and its model from being opened, as far as can be seen from outside."""
        source, model = self.source(record), self.model(record)
        give_source = f"`saescope serve --dictionary {shlex.quote(f'{record.name}=PATH')}` says where they are."
        give_model = f"`saescope serve --model {shlex.quote(f'{record.name}=PATH')}` gives it one."
        if not source:
            return f"The store does not say where the weights of this dictionary lie; {give_source}"
        if _is_gone(source):
            return f"The weights of this dictionary lay in {source}, which is gone; {give_source}"
        if not model:
            return f"The store does not say which model this dictionary belongs to; {give_model}"
        if model != BUNDLED and not Path(model).expanduser().is_dir():
            if _is_gone(model):
                return f"The model of this dictionary lay in {model}, which is gone; {give_model}"
            if _is_out_of_reach(model):
                return f"The model {model} is not on this machine, and the hub is not to be asked; {give_model}"
        if reads_sequences(record.architecture):
            return (
                f"A {record.architecture} dictionary reads whole texts from their first token on, and has no place in a "
                "running model; `saescope analyze` reads texts through it."
            )
        if steering and _is_masked(model):
            return writes_nothing(model)
        return None


def options_by_name(options: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """What ``NAME=PATH`` options say; a bare ``PATH`` is for "". Names may hold "=" themselves, paths too.

    Args:
        known: names that can be meant.

    Raises:
        ValueError: a name that is not known, or said twice.
    """
    names, said = set(known), dict[str, str]()
    for option in options:
        places = [at for at, sign in enumerate(option) if sign == "="]
        at = next((at for at in reversed(places) if option[:at] in names), None)
        if at is None and places and not Path(option).expanduser().exists():
            listed = ", ".join(sorted(names)) or "nothing"
            raise ValueError(f"{option}: nothing in the store is named {option[: places[0]]!r}; there is {listed}")
        name, path = ("", option) if at is None else (option[:at], option[at + 1 :])
        if name in said:
            raise ValueError(f"{option}: {name or 'the model of all'} is named twice; give one")
        if not path:
            raise ValueError(f"{option}: a path is missing after the =")
        said[name] = path
    return said


def writes_nothing(model: str) -> str:
    """Why nothing can be written with a model that predicts masked tokens."""
    return (
        f"Steering needs a model that writes on, and {model} fills gaps in texts that it sees whole. "
        "Texts can be tried on it."
    )


def reads_sequences(architecture: str) -> bool:
    """Whether a token's features depend on the tokens before it; False for architectures that are not known here."""
    from saescope.dictionaries import architecture as architecture_named

    try:
        return architecture_named(architecture).reads_sequences
    except ValueError:
        return False


def _is_gone(place: str) -> bool:
    """Whether it can only be a path, and nothing lies there."""
    is_path = place.startswith(("/", "./", "../", "~")) or Path(place).is_absolute()
    return is_path and not Path(place).expanduser().exists()


def _is_out_of_reach(model: str) -> bool:
    """Whether a model of the hub would have to be fetched, and may not be."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not constants.HF_HUB_OFFLINE:
        return False
    try:
        return not isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return True


def _is_masked(model: str) -> bool:
    """Whether the config of a local model is of one that predicts masked tokens; False where that is not known yet."""
    from saescope.models.loading import predicts_masked

    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text())
        return predicts_masked(SimpleNamespace(**config))
    except (OSError, ValueError, TypeError, AttributeError):
        return False
