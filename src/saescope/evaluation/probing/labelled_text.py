"""Texts with a class each, and the yes-no tasks that are made of them.

A file or a data set gives texts and labels. A class becomes a task of its own against all others: as many positives as
negatives, the negatives drawn evenly from the other classes, so that no other class stands for "no" (SAEBench's rule,
arXiv 2503.09532). Texts are dealt out to training, validation and test before tasks are drawn, equal texts to the same
part. A class that cannot be a task is a task with the reason why not.

n  texts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saescope.activations.documents import DatasetError

PARTS = ("training", "validation", "test")
READABLE = (".csv", ".jsonl", ".json", ".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Texts, each of one class; at least two classes."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]  # the class of each text
    is_test: tuple[bool, ...] | None = None
    """Which texts the data set itself keeps for testing; None: it does not say."""
    notes: tuple[str, ...] = ()
    """What was left out when it was read, and why."""

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels) or (self.is_test is not None and len(self.is_test) != len(self.texts)):
            raise ValueError(
                f"{self.name} has {len(self.texts):,} texts and {len(self.labels):,} labels; each text needs one"
            )
        if len(self.classes) < 2:
            found = f"only the class {self.classes[0]!r}" if self.classes else "no text"
            raise ValueError(f"{self.name} holds {found}; a probe needs texts of two classes at least")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))

    def parts(self, shares: Sequence[float], *, seed: int = 0) -> np.ndarray:
        """Which of `PARTS` each text is in, int64 ``[n]``; equal texts are in one part, in the test part if in doubt.

        Args:
            shares: of the different texts that training, validation and test get. Where the data set has a test part of
                its own, only the first two count, and share out the rest.
        """
        number: dict[str, int] = {}
        which = np.asarray([number.setdefault(text, len(number)) for text in self.texts])
        part = np.full(len(number), -1)
        if self.is_test is not None:
            part[which[np.asarray(self.is_test)]] = PARTS.index("test")
            shares = shares[:2]
        free = np.random.default_rng(seed).permutation(np.flatnonzero(part < 0))
        ends = np.round(np.cumsum(shares) / np.sum(shares) * len(free)).astype(int)
        for value, rows in enumerate(np.split(free, ends[:-1])):
            part[rows] = value
        return part[which]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTask:
    """One class against all others: which texts to look at, half of them of the class."""

    name: str
    rows: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # places of texts for training, validation and test
    reason: str = ""
    """Why there is no task."""


def one_vs_rest(
    texts: LabelledTexts,
    part: np.ndarray,
    *,
    most_positives: Sequence[int] = (2000, 500, 500),
    least_positives: int = 10,
    seed: int = 0,
) -> list[ClassTask]:
    """A balanced task for each class, in the order of ``texts.classes``.

    Args:
        part: from ``texts.parts``.
        most_positives: of training, validation and test; with as many negatives.
        least_positives: a class with fewer in one of the parts is a task with a reason and no rows.
    """
    labels = np.asarray(texts.labels, dtype=object)
    tasks = []
    for number, name in enumerate(texts.classes):
        generator = np.random.default_rng([seed, number])
        found, reason = [], ""
        for place, most in enumerate(most_positives):
            here = {other: np.flatnonzero((labels == other) & (part == place)) for other in texts.classes}
            positives = here.pop(name)
            wanted = min(most, len(positives))
            share = _level(wanted, [len(rows) for rows in here.values()])  # of each other class, at most
            negatives = np.concatenate([generator.permutation(rows)[:share] for rows in here.values()])
            wanted = min(wanted, len(negatives))
            if wanted < least_positives:
                reason = (
                    f"only {len(positives)} texts of this class and {sum(map(len, here.values()))} of others for "
                    f"{PARTS[place]}; a probe needs {least_positives} of each"
                )
                break
            drawn = [generator.permutation(rows)[:wanted] for rows in (positives, negatives)]
            found.append(np.sort(np.concatenate(drawn)))
        tasks.append(ClassTask(name=name, rows=None if reason else (found[0], found[1], found[2]), reason=reason))
    return tasks


def _level(wanted: int, sizes: Sequence[int]) -> int:
    """How many of each class make up ``wanted`` together, when small classes give all they have; evenly otherwise."""
    level, left = 0, sorted(sizes)
    while left:
        level = -(-wanted // len(left))
        if left[0] >= level:
            break
        wanted -= left.pop(0)
    return level


def read_labelled_texts(
    path: str | Path, *, text: str = "text", label: str = "label", name: str | None = None
) -> LabelledTexts:
    """Labelled texts from a CSV, JSON, JSONL, Parquet or Arrow file, or from a data set saved by ``datasets``.

    Rows without a text or a label are left out and counted in ``notes``.

    Args:
        text: the column of the text.
        label: the column of the class; its values are taken as words.

    Raises:
        FileNotFoundError: no such file or folder.
        DatasetError: a file that cannot be read, or a column that it does not have.
        ValueError: fewer than two classes.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return gather(_rows(path), name or path.stem, text=text, label=label)


def gather(rows: Iterable[dict[str, Any]], name: str, *, text: str, label: str) -> LabelledTexts:
    """Rows of a table as labelled texts."""
    texts, labels, left_out = [], [], 0
    for row in rows:
        for column in (text, label):
            if column not in row:
                raise DatasetError(
                    f"{name} has no column {column!r}; its columns are {', '.join(map(str, row))}: name those of the text "
                    "and of its class"
                )
        if row[text] is not None and not isinstance(row[text], str):
            raise DatasetError(f"{name}: column {text!r} holds {type(row[text]).__name__}, not text")
        if not row[text] or row[label] in (None, ""):
            left_out += 1
            continue
        texts.append(row[text])
        labels.append(str(row[label]))
    notes = (f"{name}: {left_out:,} rows without a text or a label were left out",) if left_out else ()
    return LabelledTexts(name=name, texts=tuple(texts), labels=tuple(labels), notes=notes)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if path.is_dir():
            from datasets import Dataset, load_from_disk

            saved = load_from_disk(str(path))
            for part in [saved] if isinstance(saved, Dataset) else saved.values():
                yield from part
        elif kind == ".csv":  # not by datasets, which takes texts such as "NA" for missing and "12" for a number
            csv.field_size_limit(2**31 - 1)
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif kind == ".jsonl":
            with path.open(encoding="utf-8") as file:
                yield from (_object(json.loads(line)) for line in file if line.strip())
        elif kind == ".json":
            yield from (_object(row) for row in json.loads(path.read_text(encoding="utf-8")))
        elif kind in (".parquet", ".arrow"):
            from datasets import load_dataset

            yield from load_dataset(kind[1:], data_files=str(path), split="train", streaming=True)
        else:
            raise DatasetError(f"{path} is none of {', '.join(READABLE)}, nor a folder that datasets saved")
    except DatasetError:
        raise
    except Exception as error:  # the readers raise whatever their format library raises
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetError(f"{path} could not be read: {words[0][:300]}") from error


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DatasetError(f"a row is {type(row).__name__}, not an object with columns")
    return row
