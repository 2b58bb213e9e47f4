"""The dictionary that a command is given: the folder of a run, files of any known format, a published one.

A reference stays a path throughout a command, also where it is no path: ``hf:org/repo`` is its own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.dictionaries import Dictionary


def find_dictionary(ref: str | Path) -> Path:
    """Where the dictionary lies that a reference means; the reference itself where that is elsewhere.

    Raises:
        FileNotFoundError: it means nothing.
        ValueError: it means several things.
    """
    from saescope.formats.reference import meaning

    target = meaning(str(ref)).target
    return target if isinstance(target, Path) else Path(str(ref))


def metadata_of(path: Path) -> dict[str, Any]:
    """What the files say of model, hook point and text, without the weights; saescope's own part is under ``saescope``."""
    from saescope.formats.loading import read_foreign

    found = read_foreign(str(path), shapes_only=True).metadata
    own = found.get("saescope")
    return {**found, "saescope": own if isinstance(own, dict) else {}}


def open_dictionary(path: Path) -> Dictionary:
    """The dictionary, on activations as the model gives them."""
    from saescope.formats.loading import load

    return load(str(path))
