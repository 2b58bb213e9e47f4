"""What evaluations said of several dictionaries: a table of all numbers, and a plot of one number against another.

A plot is places in percent of a box, drawn by the template as links over lines: its text keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saescope.store import EvaluationResult
from saescope.web.numbers import decimal

Results = Mapping[str, Sequence[EvaluationResult]]
"""By name of the dictionary."""

_FIRST = ("explained_variance", "ce_loss_recovered", "l0")  # of a study; the others by name
_WORDS = {
    "l0": "L0",
    "ce_loss_recovered": "loss recovered",
    "kl_recovered": "KL recovered",
    "mse": "mean squared error",
}
_WIDTH, _HEIGHT = 560.0, 320.0  # pixels of a plot, about; only the labels' places depend on them
_LETTER, _LINE, _MARK = 7.2, 17.0, 24.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of all dictionaries; None where it was not measured."""

    study: str
    metric: str
    variant: str
    cells: tuple[EvaluationResult | None, ...]

    @property
    def words(self) -> str:
        return metric_words(self.metric)


def metric_words(metric: str) -> str:
    """A metric's name as words."""
    return _WORDS.get(metric, metric.replace("_", " "))


def table_rows(results: Results) -> list[Row]:
    """All numbers by study; of a number that was measured several times the newest."""
    newest: dict[tuple[str, str, str], dict[str, EvaluationResult]] = {}
    for name, found in results.items():
        for result in found:
            cells = newest.setdefault((result.study, result.metric, result.variant), {})
            if name not in cells or result.created_at >= cells[name].created_at:
                cells[name] = result
    ordered = sorted(
        newest, key=lambda key: (key[0], _FIRST.index(key[1]) if key[1] in _FIRST else len(_FIRST), *key[1:])
    )
    return [
        Row(
            study=study,
            metric=metric,
            variant=variant,
            cells=tuple(newest[study, metric, variant].get(n) for n in results),
        )
        for study, metric, variant in ordered
    ]


def number_of(results: Sequence[EvaluationResult], metric: str) -> EvaluationResult | None:
    """The newest result of this metric that has a value."""
    held = [each for each in results if each.metric == metric and each.value is not None and math.isfinite(each.value)]
    return max(held, key=lambda each: each.created_at, default=None)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A dictionary on a plot. Places in percent, from the left and from the bottom."""

    number: int
    """That stands in its mark, and in the table of the plot."""
    name: str
    x: EvaluationResult
    y: EvaluationResult
    left: float
    up: float
    side: str
    """Where its name stands: "right", "left", "above", "below", or "" where there is no room for it."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One metric against another. Ticks are pairs of a place in percent and the words there."""

    x: str
    y: str
    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    logarithmic: bool
    """Of the x axis."""

    @property
    def summary(self) -> str:
        """What it shows, in a sentence."""
        x, y = metric_words(self.x), metric_words(self.y)
        said = "; ".join(f"{p.name}: {x} {_said(p.x.value)}, {y} {_said(p.y.value)}" for p in self.points[:12])
        more = f"; and {len(self.points) - 12} more" if len(self.points) > 12 else ""
        return f"{x} against {y}. {said}{more}"


def plot_of(results: Results, x: str, y: str) -> Plot | None:
    """Dictionaries that have both numbers; None where none has."""
    pairs = [(name, number_of(found, x), number_of(found, y)) for name, found in results.items()]
    there = [(name, a, b) for name, a, b in pairs if a is not None and b is not None]
    if not there:
        return None
    xs, ys = [a.value or 0.0 for _, a, _ in there], [b.value or 0.0 for _, _, b in there]
    logarithmic = min(xs) > 0 and max(xs) > 8 * min(xs)
    x_scale, x_ticks = _logarithmic(xs) if logarithmic else _linear(xs)
    y_scale, y_ticks = _linear(ys)
    places = [(x_scale(a), y_scale(b)) for a, b in zip(xs, ys, strict=True)]
    sides = _sides(places, [name for name, _, _ in there])
    points = tuple(
        Point(number=i + 1, name=name, x=a, y=b, left=round(places[i][0], 2), up=round(places[i][1], 2), side=sides[i])
        for i, (name, a, b) in enumerate(there)
    )
    return Plot(x=x, y=y, points=points, x_ticks=tuple(x_ticks), y_ticks=tuple(y_ticks), logarithmic=logarithmic)


class _Scale:
    def __init__(self, low: float, high: float, *, logarithmic: bool = False) -> None:
        self._of = math.log if logarithmic else float
        self._low, self._high = self._of(low), self._of(high)

    def __call__(self, value: float) -> float:
        return 100 * (self._of(value) - self._low) / (self._high - self._low)


def _linear(values: Sequence[float]) -> tuple[_Scale, list[tuple[float, str]]]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    step = _round_step((high - low) / 5)
    scale = _Scale(low, high)
    ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return scale, [(round(scale(tick), 2), decimal(tick, max(3, _digits(tick, step)))) for tick in ticks]


def _logarithmic(values: Sequence[float]) -> tuple[_Scale, list[tuple[float, str]]]:
    low, high = min(values) / 1.25, max(values) * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = (1, 2, 5) if len(decades) <= 4 else (1,)
    scale = _Scale(low, high, logarithmic=True)
    ticks = [factor * 10.0**decade for decade in decades for factor in every]
    return scale, [(round(scale(tick), 2), decimal(tick)) for tick in ticks if low <= tick <= high]


def _round_step(about: float) -> float:
    """1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(about))
    return unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= about * 0.999)


def _digits(tick: float, step: float) -> int:
    """Significant digits that tell a tick from the next."""
    return 1 + math.floor(math.log10(abs(tick)) + 1e-9) - math.floor(math.log10(step) + 1e-9) if tick else 1


def _said(value: float | None) -> str:
    return decimal(value or 0.0)


def _sides(places: Sequence[tuple[float, float]], names: Sequence[str]) -> list[str]:
    """Where each name stands so that it lies on no mark and on no other name; the first come first."""
    centres = [(x * _WIDTH / 100, (100 - y) * _HEIGHT / 100) for x, y in places]
    half = _MARK / 2
    taken = [(x - half, y - half, x + half, y + half) for x, y in centres]
    sides = []
    for (x, y), name in zip(centres, names, strict=True):
        wide = min(len(name), 24) * _LETTER + 6
        tries = {
            "right": (x + half, y - _LINE / 2, x + half + wide, y + _LINE / 2),
            "left": (x - half - wide, y - _LINE / 2, x - half, y + _LINE / 2),
            "above": (x - wide / 2, y - half - _LINE, x + wide / 2, y - half),
            "below": (x - wide / 2, y + half, x + wide / 2, y + half + _LINE),
        }
        side = next((side for side, box in tries.items() if _is_free(box, taken)), "")
        if side:
            taken.append(tries[side])
        sides.append(side)
    return sides


def _is_free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > _WIDTH or bottom > _HEIGHT:
        return False
    return not any(left < r and right > x and top < b and bottom > y for x, y, r, b in taken)
