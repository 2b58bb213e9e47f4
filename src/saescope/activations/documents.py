"""Where text comes from: the bundled corpus, local files, or a data set on the Hugging Face hub.

A source is named in one place (``DatasetConfig.name``) and read lazily as documents:

* ``bundled``: the standard library's source files (``models/bundled/corpus.py``);
* a file: ``.jsonl``, ``.json``, ``.parquet``, ``.arrow`` or ``.csv`` is a table with a text column, any other one
  document;
* a folder: a data set saved by ``datasets`` (``save_to_disk``), or every file below it as above;
* otherwise a hub id (``org/name``), streamed.

Hub data sets and a saved ``DatasetDict`` have splits of their own. Everything else gets the same two as the bundled
corpus: ``held_out`` is one document in ten by a hash of its name, ``train`` the others, ``all`` both.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from saescope.models.bundled.corpus import SPLITS, source_files, split_of

BUNDLED = "bundled"
ALL = "all"
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # what datasets writes beside its tables
TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which text to read."""

    name: str = BUNDLED  # "bundled", a file, a folder, or a hub id
    split: str = "train"  # "train", "held_out" or "all"; hub data sets and a saved DatasetDict have their own
    column: str = "text"  # the column of a table that holds the text
    subset: str | None = None  # configuration name of a hub data set


@dataclass(frozen=True)
class Document:
    """One text with a name that finds it again."""

    name: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.name.endswith(".py")


class DatasetError(ValueError):
    """A data set that cannot be read, with what was looked for and found."""


def read_documents(config: DatasetConfig | str, *, split: str | None = None) -> Iterator[Document]:
    """The documents of a data set, in order; empty texts are passed over.

    Args:
        config: what to read; a name alone (``"bundled"``, a path, a hub id) means the defaults for the rest.
        split: read this split instead of the one in ``config``.

    Raises:
        DatasetError: unknown data set, split or column, an unreadable file, or no documents at all.
    """
    if isinstance(config, str):
        config = DatasetConfig(name=config)
    if split is not None:
        config = replace(config, split=split)
    documents = (document for document in _open(config) if document.text)
    first = next(documents, None)
    if first is None:
        raise DatasetError(
            f"the data set {config.name!r} holds no text in its split {config.split!r}; "
            'a local source with few documents can be read whole with split = "all"'
        )
    return chain([first], documents)


def has_own_splits(name: str) -> bool:
    """Whether a source comes with its own split names (hub data sets and a saved ``DatasetDict``)."""
    path = Path(name).expanduser()
    return not path.is_file() and ((path / _SAVED_SPLITS).exists() if path.is_dir() else name != BUNDLED)


def _open(config: DatasetConfig) -> Iterator[Document]:
    path = Path(config.name).expanduser()
    if not has_own_splits(config.name) and config.split not in (*SPLITS, ALL):
        raise DatasetError(f"{config.name} has the splits {', '.join(SPLITS)} and {ALL}, not {config.split!r}")
    if config.name == BUNDLED:  # a folder of that name is written ./bundled
        for file in source_files():
            if config.split in (file.split, ALL):
                yield Document(f"{file.name}.py", file.text)
    elif path.is_dir():
        if has_own_splits(config.name):
            yield from _saved_split(path, config)
        else:
            documents = _saved(path, config) if (path / _SAVED).exists() else _folder(path, config)
            yield from _in_split(documents, config.split)
    elif path.is_file():
        yield from _in_split(_file(path, path.name, config), config.split)
    elif path.suffix.lower() in (*TABLES, ".txt") or path.is_absolute() or config.name.startswith((".", "~")):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DatasetError(f"no such file or folder: {path}{_nearest(path.name, siblings)}")
    else:
        yield from _hub(config)


def _in_split(documents: Iterator[Document], split: str) -> Iterator[Document]:
    return (document for document in documents if split in (split_of(document.name), ALL))


def _saved(path: Path, config: DatasetConfig) -> Iterator[Document]:
    from datasets import load_from_disk

    yield from _rows(iter(load_from_disk(str(path))), path.name, config.column)


def _saved_split(path: Path, config: DatasetConfig) -> Iterator[Document]:
    from datasets import load_from_disk

    splits = load_from_disk(str(path))
    if config.split not in splits:
        raise DatasetError(f"{path} has the splits {', '.join(splits)}, not {config.split!r}")
    yield from _rows(iter(splits[config.split]), path.name, config.column)


def _folder(path: Path, config: DatasetConfig) -> Iterator[Document]:
    files = sorted(
        p
        for p in path.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    for file in files:
        yield from _file(file, file.relative_to(path).as_posix(), config)


def _file(path: Path, name: str, config: DatasetConfig) -> Iterator[Document]:
    if path.suffix.lower() in TABLES:
        try:
            yield from _rows(_table(path), name, config.column)
        except DatasetError:
            raise
        except Exception as error:  # the readers raise whatever their format library raises
            raise DatasetError(
                f"{path} could not be read as {path.suffix[1:].lower()}: {_first_line(error)}"
            ) from error
        return
    try:
        yield Document(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DatasetError(
            f"{path} is not UTF-8 text, and {path.suffix or 'a file without ending'} is not a table "
            f"({', '.join(TABLES)}); move it out of the folder or convert it"
        ) from None


def _table(path: Path) -> Iterator[dict[str, Any]]:
    kind = TABLES[path.suffix.lower()]
    if kind == "csv":  # not by datasets, which takes texts such as "NA" for missing and "12" for a number
        csv.field_size_limit(2**31 - 1)  # the limit of 131,072 characters would refuse long texts
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
        return
    from datasets import load_dataset

    yield from load_dataset(kind, data_files=str(path), split="train", streaming=True)


def _hub(config: DatasetConfig) -> Iterator[Document]:
    from datasets import load_dataset

    try:
        rows = load_dataset(config.name, config.subset, split=config.split, streaming=True)
        yield from _rows(iter(rows), config.name, config.column)
    except DatasetError:
        raise
    except Exception as error:  # hub, network and builder errors come in a dozen types
        raise DatasetError(
            f"cannot read {config.name!r}: it is no local file or folder, and the hub answered: {_first_line(error)}. "
            "Give a path, 'bundled', or the id (and split, subset) of a hub data set."
        ) from error


def _rows(rows: Iterator[dict[str, Any]], name: str, column: str) -> Iterator[Document]:
    for number, row in enumerate(rows):
        if column not in row:
            known = [name for name in row if name]
            raise DatasetError(
                f"{name} has no column {column!r}{_nearest(column, known)}; its columns are {', '.join(known)}"
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise DatasetError(f"{name}: column {column!r} holds {type(text).__name__}, not text")
        yield Document(f"{name}:{number}", text or "")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
