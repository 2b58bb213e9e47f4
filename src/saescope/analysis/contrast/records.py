"""What a search has found, in plain values: everything here goes into JSON as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

Side = Literal["positive", "negative"]


@dataclass(frozen=True, kw_only=True)
class SeparatingFeature:
    """A feature, chosen on one half of the texts and measured on the other. Formulas: ``separation.py``, ``area.py``."""

    feature: int
    side: Side
    """The set in which it is higher, on the half that chose it."""
    effect_size: float | None
    """Hedges' g, positive minus negative; None where it is infinite: the sets differ, and within them no value varies."""
    delta: float
    """Cliff's delta, positive minus negative."""
    p: float
    q: float
    """p after Benjamini and Hochberg, over all features that fire."""
    auroc_train: float
    """Of telling its side from the other, on the half that chose it: too good."""
    auroc: float
    """The same on the other half: 0.5 is chance, and less than that means that the side did not hold."""
    auroc_low: float
    auroc_high: float
    """Ends of the 95 % interval of ``auroc``, by drawing texts again."""
    mean_positive: float
    mean_negative: float
    share_positive: float
    """Share of the positive texts (tokens) in which it fires, on the half that chose it."""
    share_negative: float
    label: str | None = None
    """From a store."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Features that separate two sets, best first: those with q below the rate, by size of effect, then the others."""

    features: tuple[SeparatingFeature, ...]
    unit: Literal["text", "token"]
    pooling: str
    order_by: str
    num_positive: int
    num_negative: int
    """Texts (tokens) that chose."""
    num_test_positive: int
    num_test_negative: int
    """Texts (tokens) that measured."""
    num_tested: int
    """Features that fire on the texts that chose."""
    num_significant: int
    """Of them, with q at or below the rate."""
    false_discovery_rate: float
    notes: tuple[str, ...] = ()

    @property
    def separates(self) -> bool:
        """Whether any feature does, at the false discovery rate."""
        return self.num_significant > 0

    def labelled(self, labels: Mapping[int, str]) -> Self:
        """With labels by feature, e.g. those of :meth:`saescope.store.Store.labels`."""
        return replace(self, features=tuple(replace(each, label=labels.get(each.feature)) for each in self.features))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
