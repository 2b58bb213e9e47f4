"""The text behind features of Language-Model-SAEs: data sets with rows that can be looked up, and a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saescope.activations.documents import TABLES


def dataset_texts(
    datasets: Sequence[str] | None,
    tokenizer: str | None,
    context_size: int | None,
    *,
    split: str,
    column: str,
    prepend_bos: bool,
) -> Any:
    """A `DatasetTexts`, or None if no text is asked for.

    `datasets` are folders, files or hub ids, each with `NAME=` before it if the dump names several.

    Raises:
        ValueError: a part is missing or cannot be read. FileNotFoundError: no such file or folder.
    """
    parts = {"--dataset": datasets, "--tokenizer": tokenizer, "--context-size": context_size}
    missing = [option for option, value in parts.items() if not value]
    if len(missing) == len(parts):
        return None
    if missing:
        raise ValueError(f"the text needs {', '.join(parts)} together; {' and '.join(missing)} is missing")
    assert datasets is not None
    assert tokenizer is not None
    assert context_size is not None
    named = dict(_named(given) for given in datasets)
    if len(named) < len(datasets) or ("" in named and len(named) > 1):
        raise ValueError("with several data sets each needs the name that it has in the dump: --dataset NAME=DATA")

    from saescope.formats import DatasetTexts

    rows = {name: _rows(place, split) for name, place in named.items()}
    return DatasetTexts(
        rows.get("", rows),
        _tokenizer(tokenizer),
        context_size=context_size,
        column=column,
        prepend_bos=prepend_bos,
    )


def _named(given: str) -> tuple[str, str]:
    """The name in the dump, empty if none was given, and where the data set is."""
    name, sign, place = given.partition("=")
    return (name, place) if sign and not Path(given).exists() else ("", given)


def _rows(place: str, split: str) -> Any:
    """A data set whose rows can be looked up by number."""
    import datasets
    from datasets import DatasetDict, load_dataset, load_from_disk

    path, had_bars = Path(place).expanduser(), not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if path.is_dir():
            found = load_from_disk(str(path))
        elif path.is_file():
            kind = TABLES.get(path.suffix.lower())
            if kind is None:
                raise ValueError(f"it is no table ({', '.join(TABLES)})")
            return load_dataset(kind, data_files=str(path), split="train")
        elif _is_local(place) or path.suffix.lower() in TABLES:
            raise FileNotFoundError(f"there is no data set {path}")
        else:
            return load_dataset(place, split=split)
    except FileNotFoundError:
        raise
    except Exception as error:  # readers of formats and the hub raise a dozen types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the data set {place} cannot be read: {lines[0]}") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()
    if isinstance(found, DatasetDict):
        if split not in found:
            raise ValueError(f"{path} has the splits {', '.join(found)}, not {split!r}; name one with --split")
        return found[split]
    return found


def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    if _is_local(place) and not Path(place).expanduser().exists():
        raise FileNotFoundError(f"there is no tokenizer {place}; name the folder of the model, or its hub id")
    try:
        return AutoTokenizer.from_pretrained(str(Path(place).expanduser()) if _is_local(place) else place)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the tokenizer {place} cannot be loaded: {lines[0]}") from error


def _is_local(place: str) -> bool:
    """Whether it can only be a path, and not a hub id."""
    return Path(place).is_absolute() or place.startswith((".", "~"))
