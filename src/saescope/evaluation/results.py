"""What a study gives back: numbers with intervals, each saying which definition it is, or why there is none.

A number that does not exist (a loss recovered where the ablation does no harm, a probe without positives) is ``None`` with
the reason beside it. A study that could not be made is a result too, with its failure in words: nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Better = Literal["higher", "lower", ""]
"""Which way is good; "" where neither is, as for L0."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a study."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """Ends of its 95 % interval."""
    better: Better = ""
    variant: str = ""
    """Which definition it is, in words, where the field has several; also what the interval is over, if not documents."""
    reason: str = ""
    """Why there is no value."""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError(f"{self.name} has no value; say why in reason")
        for name in ("value", "low", "high"):
            end = getattr(self, name)
            if end is not None and not math.isfinite(end):
                raise ValueError(f"{name} of {self.name} is {end}; a number that is not defined is None, with a reason")

    @classmethod
    def of(cls, name: str, value: float | None, *, reason: str = "it is not defined here", **more: Any) -> Number:
        """A number that may be undefined: NaN and infinity become None with ``reason``."""
        if value is None or not math.isfinite(value):
            return cls(
                name=name, value=None, reason=reason, **{k: v for k, v in more.items() if k not in ("low", "high")}
            )
        return cls(name=name, value=float(value), **more)

    def __str__(self) -> str:
        if self.value is None:
            return f"not defined: {self.reason}"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{ends}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what is empty is left out, but for a missing value."""
        kept = {key: value for key, value in vars(self).items() if key != "name" and value not in (None, "")}
        return {"value": self.value, **kept}


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All that a study found about one dictionary, or about a pair of them."""

    study: str
    numbers: tuple[Number, ...] = ()
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of plain values, such as one for every class; by the name of the table."""
    curves: Mapping[str, dict[str, list[float | None]]] = field(default_factory=dict)
    """What plots are drawn from: by the name of the curve, columns of one length."""
    notes: tuple[str, ...] = ()
    """What a reader has to know to trust the numbers: what was skipped and why, known unreliability."""
    seconds: float = 0.0
    failure: str = ""

    def __post_init__(self) -> None:
        names = [number.name for number in self.numbers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.study} gives {', '.join(twice)} more than once")

    def __getitem__(self, name: str) -> Number:
        for number in self.numbers:
            if number.name == name:
                return number
        raise KeyError(f"{self.study} has no number {name!r}; it has {', '.join(n.name for n in self.numbers)}")

    def values(self) -> dict[str, float | None]:
        """Every number by name; None where it is not defined."""
        return {number.name: number.value for number in self.numbers}

    @classmethod
    def failed(cls, study: str, error: Exception, seconds: float = 0.0) -> StudyResult:
        """The record of a study that could not be made."""
        words = str(error) or type(error).__name__
        expected = isinstance(error, ValueError | OSError)
        return cls(study=study, failure=words if expected else f"{type(error).__name__}: {words}", seconds=seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "study": self.study,
            "numbers": {number.name: number.as_dict() for number in self.numbers},
            "tables": {name: list(rows) for name, rows in self.tables.items()},
            "curves": {name: dict(columns) for name, columns in self.curves.items()},
            "notes": list(self.notes),
            "seconds": self.seconds,
            "failure": self.failure,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyResult:
        """What :meth:`as_dict` gave."""
        numbers = tuple(Number(name=name, **values) for name, values in data["numbers"].items())
        return cls(**{**data, "numbers": numbers, "notes": tuple(data["notes"])})

    def with_notes(self, notes: Iterable[str]) -> StudyResult:
        """The same with more notes, none of them twice."""
        return replace(self, notes=tuple(dict.fromkeys([*self.notes, *notes])))
