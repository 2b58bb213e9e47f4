"""The four numbers by which a dictionary is usually called good, and whether one meets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan


@dataclass(frozen=True)
class Target:
    """A range that a number should lie in; either end may be open."""

    name: str
    title: str
    low: float | None = None
    high: float | None = None
    low_included: bool = True

    def met(self, value: float) -> bool:
        above = self.low is None or value > self.low or (self.low_included and value == self.low)
        below = self.high is None or (value <= self.high if self.low is not None else value < self.high)
        return above and below

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{'at least' if self.low_included else 'above'} {self.low:g}"
        return f"below {self.high:g}"


TARGETS = (
    Target("l0", "L0 (features per token)", low=50, high=200),
    Target("ce_loss_recovered", "CE loss recovered (zero ablation)", low=0.97),
    Target("dead_share", "dead features (share)", high=0.05),
    Target("explained_variance", "explained variance", low=0.90, low_included=False),
)


def verdicts(numbers: Mapping[str, float]) -> list[dict[str, object]]:
    """Name, value, target and verdict for each of the four; a number that is missing is left out.

    A number that is not defined (NaN) has no verdict.
    """
    return [
        {
            "name": target.title,
            "value": numbers[target.name],
            "target": str(target),
            "met": None if isnan(numbers[target.name]) else target.met(numbers[target.name]),
        }
        for target in TARGETS
        if target.name in numbers
    ]
