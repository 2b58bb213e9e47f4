"""Open a dictionary of any known format with one call.

The format is found by what lies in the folder. Where none fits, or more than one does, the error says what was looked for
and what was found.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saescope.dictionaries import Dictionary
from saescope.dictionaries.saving import new_folder_beside, replace_folder
from saescope.formats.dictionaries import FORMATS
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.hub import HubSource
from saescope.formats.reference import resolve
from saescope.formats.same_function import require_same_function
from saescope.formats.source import Source


def load(
    ref: str | Path | Source,
    *,
    device: str = "cpu",
    dtype: torch.dtype | str | None = None,
    mmap: bool = False,
    format: str | None = None,
    lenient: bool = False,
    **overrides: Any,
) -> Dictionary:
    """Open a dictionary that anybody trained.

    Args:
        ref: a folder, a file, or another reference (``reference.py``).
        dtype: None for the one that it is stored in.
        mmap: leave weights in the file until they are used. Such a dictionary can not be trained, and its weights are not
            checked for NaN.
        format: do not look for the format, take this one.
        lenient: let keys of configurations be that are not known here.
        overrides: what a file does not say, or says wrongly, such as ``k=32``; every format lists its own
            (``saescope.formats.format_of(ref).overrides``).

    Returns:
        The dictionary, on activations as the model gives them; ``metadata`` says what is known of model and hook point.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: no known format, several, or a file that can not be opened as what it says it is.
    """
    return build(read_foreign(ref, format=format, lenient=lenient, **overrides), device=device, dtype=dtype, mmap=mmap)


def build(
    foreign: Foreign, *, device: str = "cpu", dtype: torch.dtype | str | None = None, mmap: bool = False
) -> Dictionary:
    """The dictionary of what a reader found, which is spent."""
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ValueError(f"dtype should be a floating type of torch such as float32 or bfloat16, got {dtype!r}")
        dtype = found
    with _in_words(f"this {foreign.format} file can not be a {foreign.architecture} dictionary"):
        return foreign.build(device=device, dtype=dtype, share_memory=mmap, spend=True)


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """What a damaged file makes readers stumble over is said as a damaged file; the traceback stays behind the error."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{what}: it is damaged, or of a kind not known here ({type(error).__name__}: {error})"
        ) from error


def read_foreign(
    ref: str | Path | Source,
    *,
    format: str | None = None,
    lenient: bool = False,
    shapes_only: bool = False,
    **overrides: Any,
) -> Foreign:
    """What a reader finds, before the dictionary is built; see :func:`load`.

    Args:
        shapes_only: read headers alone; the tensors have no memory.
    """
    source = (
        ref if isinstance(ref, Source) else resolve(ref, overrides=overrides, lenient=lenient, shapes_only=shapes_only)
    )
    chosen = format_named(format) if format else format_of(source)
    unknown = sorted(set(source.overrides) - set(chosen.overrides))
    if unknown:
        known = ", ".join(chosen.overrides) or "nothing"
        raise ValueError(f"{', '.join(unknown)} can not be said of a {chosen.name} dictionary; {known} can")
    with _in_words(f"{source.label} can not be read as a {chosen.name} dictionary"):
        foreign = chosen.read(source)
    if isinstance(source, HubSource):
        foreign.metadata = source.completed(foreign.metadata)
    return foreign


def format_of(ref: str | Path | Source) -> Format:
    """The format of what lies in a place.

    Raises:
        ValueError: none that is known, or several.
    """
    source = ref if isinstance(ref, Source) else resolve(ref)
    found = [each for each in FORMATS if each.recognise(source)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.name for each in found)
        raise ValueError(f"{source.label} could be {names}; say which: --from FORMAT (format=...)")
    if isinstance(source, HubSource) and source.failures:
        raise source.failures[0]
    looked_for = "; ".join(f"{each.name}: {each.layout}" for each in FORMATS)
    held = ", ".join(source.names[:12]) or "nothing"
    raise ValueError(
        f"{source.label} is no dictionary of a known format. It holds {held}. Looked for were {looked_for}"
    )


def format_named(name: str) -> Format:
    """The format of this name; ValueError with the known ones otherwise."""
    for each in FORMATS:
        if each.name == name:
            return each
    raise ValueError(f"no format is named {name!r}; there are {', '.join(each.name for each in FORMATS)}")


def convert(
    ref: str | Path | Source, folder: str | Path, *, to: str = "saelens", overwrite: bool = False, **how: Any
) -> list[str]:
    """Write a dictionary in another format, into a folder of its own; what was decided on reading, in words.

    It is written beside, read again, and compared with the original on random inputs; only then it takes its place.

    Args:
        to: name of the format.
        overwrite: replace the folder, if it holds what this format writes and nothing else.
        how: as in :func:`load`.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set, or holds other files.
        ValueError: the format is not written here, or can not hold the function.
    """
    target, folder = format_named(to), Path(folder)
    if target.write is None:
        written = ", ".join(each.name for each in FORMATS if each.write)
        raise ValueError(f"{to} is read here, and not written; written are {written}")
    if folder.is_symlink() or (folder.exists() and not (overwrite and folder.is_dir())):
        hint = (
            "choose another folder" if folder.is_symlink() or not folder.is_dir() else "choose another, or overwrite it"
        )
        raise FileExistsError(f"{folder} already exists; {hint}")
    building = {name: how.pop(name) for name in ("device", "dtype") if name in how}
    how.pop("mmap", None)  # what is converted is looked at as a whole
    foreign = read_foreign(ref, **how)
    dictionary = build(foreign, **building)
    beside = new_folder_beside(folder)
    try:
        target.write(dictionary, beside, dictionary.metadata)
        again = read_foreign(beside, format=to)
        checked = require_same_function(dictionary, build(again), f"written as {to}")
        _require_nothing_else(folder, beside)
        replace_folder(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    as_another = "" if again.architecture == foreign.architecture else f", as {again.architecture}"
    return [f"read as {foreign.format}, {foreign.architecture}", *foreign.said, f"written as {to}{as_another}", checked]


def _require_nothing_else(folder: Path, beside: Path) -> None:
    """FileExistsError where ``folder`` holds a file that the new one does not have: replacing it would lose that."""

    def names(place: Path) -> set[str]:
        return {path.relative_to(place).as_posix() for path in place.rglob("*")} if place.is_dir() else set()

    others = sorted(names(folder) - names(beside))
    if others:
        raise FileExistsError(
            f"{folder} holds files that are not written by this conversion ({', '.join(others[:5])}); choose another folder"
        )
