"""What a study is: runs, a table of their results, and bars that the results must reach.

A study's file has two halves. Down to the line that begins with ``BARS`` it says what is run; that half is part of the
hash under which results are kept. What follows judges, words and draws, and may change without running anything again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

DATA_SEEDS = (0, 1, 2)  # the first is the main one; a bar must hold on each
RANDOM = "random dictionary"  # method of the runs that give the baseline of every cosine

Values = dict[str, float | list[float]]


@dataclass(frozen=True)
class Run:
    """One thing to be computed: everything that decides its numbers, beside the code."""

    method: str
    data_seed: int
    seeds: tuple[int, ...] = ()  # of the dictionaries; several where they are compared with each other
    setting: float | None = None  # what a study varies, such as a coefficient


@dataclass(frozen=True)
class Result:
    """What a run gave: numbers by name, one or a list of them, or the error that ended it."""

    run: Run
    values: Values = field(default_factory=dict)
    seconds: float = 0.0  # CPU time
    code: str = ""  # hash of the code that made it
    error: str = ""


class Results:
    """The results of a study, to be asked for means."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = [result for result in results if not result.error]

    def where(self, **fields: Any) -> Results:
        """Those whose runs have these fields."""
        return Results([r for r in self.results if all(getattr(r.run, k) == v for k, v in fields.items())])

    def values(self, name: str, **fields: Any) -> list[float]:
        """All values of a name, lists laid end to end."""
        found: list[float] = []
        for result in self.where(**fields).results:
            value = result.values.get(name)
            if value is not None:
                found += value if isinstance(value, list) else [value]
        return found

    def mean(self, name: str, **fields: Any) -> float:
        """Mean over runs and over the lists in them; nan where there is nothing."""
        values = self.values(name, **fields)
        return sum(values) / len(values) if values else math.nan

    def settings(self, method: str) -> list[float]:
        """What the runs of a method varied, rising."""
        return sorted({r.run.setting for r in self.results if r.run.method == method and r.run.setting is not None})

    def curve(self, method: str, x: str, y: str) -> list[tuple[float, float]]:
        """(mean x, mean y) at each setting of a method, by rising x."""
        at = self.settings(method)
        return sorted((self.mean(x, method=method, setting=s), self.mean(y, method=method, setting=s)) for s in at)


def interpolated(curve: Sequence[tuple[float, float]], x: float) -> float:
    """The curve's value at ``x``, linear between its points; nan outside of them."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= x <= right:
            return low if left == right else low + (high - low) * (x - left) / (right - left)
    return math.nan


@dataclass(frozen=True)
class Bar:
    """A claim about the results of one data seed, and the number that decides it."""

    claim: str
    measure: Callable[[Results], float]
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value reaches the bar; one that is not defined does not."""
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return above and below and not math.isnan(value)

    def measured(self, results: Results, data_seed: int) -> float:
        """The number on one data seed; nan where results are missing."""
        try:
            return self.measure(results.where(data_seed=data_seed))
        except (ValueError, IndexError, KeyError, ZeroDivisionError):
            return math.nan


@dataclass(frozen=True)
class Column:
    """A column of the table: mean over the seeds of dictionaries, on each data seed."""

    name: str
    header: str
    digits: int = 3


@dataclass(frozen=True)
class Study:
    """A published result and its reproduction."""

    number: int
    name: str  # of its file
    title: str
    paper: str  # with a link
    published: str  # its numbers, or "None published."
    setup: str
    remarks: str  # where we differ from it, and why
    runs: tuple[Run, ...]
    run: Callable[[Run], Values]
    columns: tuple[Column, ...]
    bars: tuple[Bar, ...]
    bars_set: str  # when, and on what
    draw: Callable[[Results, Any], None]  # on a matplotlib figure
    caption: str
    setting: str = ""  # what Run.setting is, for the table

    @property
    def file(self) -> Path:
        return Path(inspect.getfile(self.run))

    def methods(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.method for run in self.runs))


def as_json(run: Run) -> dict[str, Any]:
    """A run as plain values."""
    return {**asdict(run), "seeds": list(run.seeds)}


def from_json(values: dict[str, Any]) -> Run:
    """The run that :func:`as_json` described."""
    return Run(**{**values, "seeds": tuple(values["seeds"])})
