"""The record of an evaluation: every dictionary with the studies made of it, and what they were made with.

Tables, plots, pages and the generated paragraph are all views of this one record, and its JSON is what a later program
reads. A number is named ``study.number`` in it: ``core.explained_variance``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from saescope.evaluation.results import Number, StudyResult

FORMAT = 1
"""Version of the JSON; a reader refuses any other."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedDictionary:
    """One dictionary and what the studies found."""

    name: str
    architecture: str
    d_sae: int
    seed: int | None = None
    """None: not known. Dictionaries of unknown seed are never taken for repeats of one another."""
    sparsity: str = ""
    """The setting of sparsity in words, such as "k = 32". Dictionaries are compared at the same words."""
    studies: Mapping[str, StudyResult] = field(default_factory=dict)

    def numbers(self) -> Iterator[tuple[str, Number]]:
        """Every number as ``study.number``, in the order of the studies; a failed study has none."""
        for study, result in self.studies.items():
            for number in result.numbers:
                yield f"{study}.{number.name}", number

    def number(self, key: str) -> Number:
        """The number ``study.number``; one that was not measured is None, with the reason."""
        study, _, name = key.partition(".")
        if study not in self.studies:
            return Number(name=name, value=None, reason=f"the study {study} was not made")
        result = self.studies[study]
        for number in result.numbers:
            if number.name == name:
                return number
        reason = f"the study {study} failed: {result.failure}" if result.failure else f"{study} gave no such number"
        return Number(name=name, value=None, reason=reason)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "studies": {name: result.as_dict() for name, result in self.studies.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluatedDictionary:
        studies = {name: StudyResult.from_dict(result) for name, result in data["studies"].items()}
        return cls(**{**data, "studies": studies})


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All dictionaries that were evaluated together."""

    dictionaries: tuple[EvaluatedDictionary, ...]
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    """What was measured with: model, hook point, held-out text, number of tokens, version of the code."""
    unreliable: Mapping[str, str] = field(default_factory=dict)
    """Why not to rank by a number, by ``study.number``; by ``study.`` for all numbers of a study."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What took how long, such as "training" and "studies"."""
    advice: str = ""
    """The recommended L0, in words, where a sweep has found one."""

    def __post_init__(self) -> None:
        if not self.dictionaries:
            raise ValueError("a report of an evaluation needs at least one dictionary")
        names = [dictionary.name for dictionary in self.dictionaries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two dictionaries are named {', '.join(twice)}; give each a name of its own")

    def __getitem__(self, name: str) -> EvaluatedDictionary:
        for dictionary in self.dictionaries:
            if dictionary.name == name:
                return dictionary
        raise KeyError(f"no dictionary {name!r} in this report; it has {', '.join(d.name for d in self.dictionaries)}")

    def metrics(self) -> list[str]:
        """Every ``study.number`` that any dictionary has, in the order in which the studies give them."""
        by_study: dict[str, list[str]] = {}
        for dictionary in self.dictionaries:
            for key, _ in dictionary.numbers():
                of_study = by_study.setdefault(key.partition(".")[0], [])
                if key not in of_study:
                    of_study.append(key)
        return [key for keys in by_study.values() for key in keys]

    def better(self, key: str) -> str:
        """Which way is good: "higher", "lower", or "" where neither is."""
        return next((n.better for d in self.dictionaries for k, n in d.numbers() if k == key and n.better), "")

    def why_unreliable(self, key: str) -> str:
        """Why not to rank by this number; empty for a number that can be trusted."""
        return self.unreliable.get(key, self.unreliable.get(f"{key.partition('.')[0]}.", "")).removeprefix(
            "unreliable: "
        )

    def failures(self) -> list[tuple[str, str, str]]:
        """(dictionary, study, what went wrong) of every study that failed."""
        return [
            (dictionary.name, study, result.failure)
            for dictionary in self.dictionaries
            for study, result in dictionary.studies.items()
            if result.failure
        ]

    def settings(self) -> list[str]:
        """The sparsities that occur, in rising order of the numbers in their names; see :meth:`setting_of`."""
        return sorted({self.setting_of(dictionary) for dictionary in self.dictionaries}, key=_natural)

    def setting_of(self, dictionary: EvaluatedDictionary) -> str:
        """At what a dictionary is compared: its sparsity, and its size where the report has several sizes."""
        sizes = {other.d_sae for other in self.dictionaries}
        size = f"d_sae = {dictionary.d_sae}" if len(sizes) > 1 else ""
        return ", ".join(filter(None, (dictionary.sparsity, size)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN and infinity, which only tables and curves could hold, are null."""
        return _plain(
            {"format": FORMAT, **vars(self), "dictionaries": [dictionary.as_dict() for dictionary in self.dictionaries]}
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationReport:
        """What :meth:`as_dict` gave.

        Raises:
            ValueError: it is no report, or one of another format.
        """
        if data.get("format") != FORMAT or "dictionaries" not in data:
            raise ValueError(
                f"this is no report of an evaluation that can be read: format {data.get('format')!r}, not {FORMAT}"
            )
        kept = {key: value for key, value in data.items() if key not in ("format", "summary")}
        dictionaries = tuple(EvaluatedDictionary.from_dict(dictionary) for dictionary in data["dictionaries"])
        return cls(**{**kept, "dictionaries": dictionaries, "notes": tuple(data.get("notes", ()))})


def write_report_json(report: EvaluationReport, path: Path, *, summary: Mapping[str, Any] | None = None) -> Path:
    """Write a report as JSON, whole or not at all; a missing value is null. ``summary`` is what was derived from it."""
    document = report.as_dict() | ({} if summary is None else {"summary": _plain(summary)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as beside:
        try:
            json.dump(document, beside, indent=1, allow_nan=False)
            beside.write("\n")
            beside.flush()
            os.fsync(beside.fileno())
            os.chmod(beside.name, 0o644)  # a temporary file is private; a report is to be shared
            os.replace(beside.name, path)
        except BaseException:
            os.unlink(beside.name)
            raise
    return path


def read_report_json(path: Path) -> EvaluationReport:
    """The report that :func:`write_report_json` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no report.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{path} is no report of an evaluation: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is no report of an evaluation: it holds a {type(document).__name__}")
    return EvaluationReport.from_dict(document)


def _natural(words: str) -> list[tuple[int, float, str]]:
    """A key that sorts "k = 8" before "k = 32"."""
    parts: Iterable[str] = re.split(r"(\d+(?:\.\d+)?)", words)
    return [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in parts if part]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float | None) else str(value)
