"""One curve over L0: a minimum, an elbow, or why it says nothing.

A curve of means over seeds is read like this:

* its *depth* is highest less lowest; *near its minimum* are the neighbouring settings within a tenth of the depth (or two
  standard errors of seeds, where those are larger);
* higher on both sides: a **minimum**; higher at low L0 and flat for three settings or more up to the end: an **elbow**;
* lowest at an end of the sweep otherwise: **no minimum** in it, and the direction to widen it in is said;
* hardly any depth: **flat**, nothing can be read.

Before training ends, the minimum can be anywhere. So every dictionary is measured twice, at the end and at a snapshot
before: a curve whose minimum has wandered by more than a neighbour since, or that has moved by more than a quarter of its
depth, is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["minimum", "elbow", "widen_up", "widen_down", "flat", "undertrained", "missing"]


@dataclass(frozen=True, kw_only=True)
class L0Measures:
    """What was measured of one dictionary."""

    l0: float
    """Features that fire on a token, on average."""
    c_dec: float | None
    s: Mapping[float, float]
    """s_n by n."""
    num_left_out: int = 0
    """Decoder rows of norm 0, which have no direction."""

    def value(self, measure: str) -> float | None:
        """Of ``c_dec``, or of ``s_15``."""
        return self.c_dec if measure == "c_dec" else self.s.get(float(measure.removeprefix("s_")))


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One dictionary of a sweep."""

    setting: float
    """What the sweep varies: the k, or target L0, asked for. Seeds of one setting are averaged."""
    final: L0Measures
    early: L0Measures | None = None
    """The same dictionary at a snapshot before the end of its training."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class L0AdviceConfig:
    """How curves are read."""

    near_share: float = 0.1
    """Settings within this share of a curve's depth are near its minimum."""
    least_depth: float = 0.05
    """A curve whose depth is less than this share of its largest value is flat."""
    num_flat: int = 3
    """So many settings near the minimum, up to the highest L0, make an elbow."""
    most_drift: float = 0.25
    """A curve that has moved by more than this share of its depth since the snapshot is not judged."""
    n: float | None = None
    """Which s_n to judge by, where several were measured; left out: the middle one."""

    def __post_init__(self) -> None:
        for name in ("near_share", "least_depth", "most_drift"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if self.num_flat < 2:
            raise ValueError(f"num_flat must be at least 2, got {self.num_flat}")


@dataclass(frozen=True, kw_only=True)
class CurveVerdict:
    """What one curve says."""

    measure: str  # "c_dec", "s_15"
    kind: Kind
    words: str
    best: float | None = None  # L0 at the minimum, or at the elbow
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Means over seeds, by rising setting."""

    l0: np.ndarray  # [settings]
    mean: np.ndarray  # [settings]
    error: float  # standard error of a mean over seeds; 0 where there is one seed

    @property
    def depth(self) -> float:
        return float(self.mean.max() - self.mean.min())

    def zone(self, config: L0AdviceConfig) -> tuple[int, int]:
        """First and last setting of those near the minimum, side by side."""
        limit = self.mean.min() + max(config.near_share * self.depth, 2 * self.error)
        first = last = int(self.mean.argmin())
        while first > 0 and self.mean[first - 1] <= limit:
            first -= 1
        while last < len(self.mean) - 1 and self.mean[last + 1] <= limit:
            last += 1
        return first, last

    def is_flat(self, config: L0AdviceConfig) -> bool:
        return self.depth <= max(config.least_depth * float(np.abs(self.mean).max()), 4 * self.error)

    def kind(self, config: L0AdviceConfig) -> Kind:
        first, last = self.zone(config)
        at_start, at_end = first == 0, last == len(self.mean) - 1
        if self.is_flat(config) or (at_start and at_end):
            return "flat"
        if at_start:
            return "widen_down"
        if not at_end:
            return "minimum"
        return "elbow" if last - first + 1 >= config.num_flat else "widen_up"

    def place(self, config: L0AdviceConfig) -> tuple[int, int]:
        """Where the minimum, or the elbow, is: first and last setting that may claim it."""
        first, last = self.zone(config)
        return (first, first) if self.kind(config) == "elbow" else (first, last)


def _curve(measure: str, points: Sequence[SweepPoint], *, early: bool) -> Curve | None:
    """None where a value is missing."""
    by_setting: dict[float, list[tuple[float, float]]] = {}
    for point in points:
        measures = point.early if early else point.final
        value = None if measures is None else measures.value(measure)
        if measures is None or value is None:
            return None
        by_setting.setdefault(point.setting, []).append((measures.l0, value))
    groups = [np.array(by_setting[setting]) for setting in sorted(by_setting)]  # [seeds, 2] each
    groups.sort(key=lambda group: float(group[:, 0].mean()))
    several = [group[:, 1] for group in groups if len(group) > 1]
    freedom = sum(len(values) - 1 for values in several)
    pooled = math.sqrt(sum(float(np.var(v)) * len(v) for v in several) / freedom) if freedom else 0.0
    fewest = min(len(group) for group in groups)
    return Curve(
        np.array([group[:, 0].mean() for group in groups]),
        np.array([group[:, 1].mean() for group in groups]),
        pooled / math.sqrt(fewest),
    )


def read_curve(measure: str, points: Sequence[SweepPoint], config: L0AdviceConfig) -> CurveVerdict:
    """What the curve of one measure over the L0 of a sweep says."""
    curve = _curve(measure, points, early=False)
    if curve is None:
        return CurveVerdict(measure=measure, kind="missing", words="not every dictionary has a value")
    reason = _still_training(measure, curve, points, config)
    if reason:
        return CurveVerdict(measure=measure, kind="undertrained", words=reason)
    kind, (first, last), l0 = curve.kind(config), curve.zone(config), curve.l0
    ends = f"{l0[0]:.3g} to {l0[-1]:.3g}"
    if kind == "flat":
        words = f"flat over L0 {ends}: it is {curve.mean.min():.4g} to {curve.mean.max():.4g}, and says nothing"
        return CurveVerdict(measure=measure, kind=kind, words=words)
    if kind == "widen_down":
        words = f"lowest at the lowest L0, {l0[0]:.3g}: no minimum inside the sweep ({ends}); widen it to lower L0"
        return CurveVerdict(measure=measure, kind=kind, words=words)
    if kind == "widen_up":
        words = f"still falling at the highest L0, {l0[-1]:.3g}: no minimum inside the sweep ({ends}); widen it to higher L0"
        return CurveVerdict(measure=measure, kind=kind, words=words)
    if kind == "elbow":
        low, high = float(l0[first]), float(l0[first + 1])
        words = (
            f"flat from L0 {l0[first]:.3g} up, and higher below: the elbow just above the jump is at {l0[first]:.3g}"
        )
        return CurveVerdict(measure=measure, kind=kind, words=words, best=low, low=low, high=high)
    best = float(l0[curve.mean.argmin()])
    # the true place lies between a setting and its neighbours: half-way, on a logarithmic scale
    low, high = math.sqrt(l0[first - 1] * l0[first]), math.sqrt(l0[last] * l0[last + 1])
    words = f"a minimum of {curve.mean.min():.4g} at L0 {best:.3g}, and up to {curve.mean.max():.4g} beside it"
    return CurveVerdict(measure=measure, kind=kind, words=words, best=best, low=low, high=high)


def _still_training(measure: str, curve: Curve, points: Sequence[SweepPoint], config: L0AdviceConfig) -> str:
    """Why a curve can not be judged yet; "" where it can, or where no snapshot says."""
    early = _curve(measure, points, early=True)
    if early is None:
        return ""
    drift = float(np.abs(curve.mean - early.mean).max())
    if curve.depth and drift > config.most_drift * curve.depth and drift > 4 * curve.error:
        return (
            f"still moving: since the snapshot it has changed by up to {drift:.3g}, and all the difference that L0 makes is "
            f"{curve.depth:.3g}"
        )
    if curve.is_flat(config):
        return ""
    first, last = curve.place(config)
    before, after = early.place(config)
    if after < first - 1 or before > last + 1:
        moved = f"from {early.l0[early.mean.argmin()]:.3g} to {curve.l0[curve.mean.argmin()]:.3g}"
        return f"the L0 where it is lowest has wandered {moved} since the snapshot"
    return ""
