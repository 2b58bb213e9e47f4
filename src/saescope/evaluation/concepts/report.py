"""What concept alignment reports: coverage with its floor and controls, tables and curves.

Everything here is made from sums over test documents, so that every number has an interval from the same draws.

K  kinds of search, C  concepts, D  documents, R  draws; a sum is (firings, hits, spans found, spans).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saescope.evaluation.concepts.counts import f1_of_counts
from saescope.evaluation.intervals import Interval, bootstrap
from saescope.evaluation.results import Better, Number, StudyResult

GOOD_F1 = 0.5
_OVER = "chosen on validation documents, value on test documents"
_NONE = "no concept has positives enough in every part of the documents"


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a search found for one concept, and how it does on the test documents."""

    concept: str
    index: int | None  # of the feature or dimension; None where nothing fires on the concept
    sign: int
    threshold: float | None
    on_validation: float  # its F1 there
    sums: np.ndarray  # int64, [D, 4]
    prevalence: float

    @property
    def f1(self) -> float:
        return float(f1_of_counts(*self.sums.sum(0)))

    @property
    def always_yes(self) -> float:
        """F1 of firing on every token."""
        return 2 * self.prevalence / (1 + self.prevalence)

    def row(self) -> dict[str, Any]:
        fired, hits, found, total = self.sums.sum(0).tolist()
        return {
            "feature": self.index,
            "sign": self.sign if self.index is not None else None,
            "threshold": self.threshold,
            "concept": self.concept,
            "f1": self.f1,
            "precision": hits / fired if fired else None,  # what never fires has none
            "recall": found / total if total else None,
            "f1_validation": self.on_validation,
        }


def report(
    *,
    names: Sequence[str],
    reasons: Sequence[str],
    features: Sequence[Found],
    one_threshold: Sequence[Found],
    dimensions: Sequence[Found],
    noise: Sequence[Found],
    top: Sequence[Found],
    notes: Sequence[str],
    seed: int,
    began: float,
) -> StudyResult:
    """The study "concepts".

    Args:
        names: of all concepts. reasons: why each is not scored, "" where it is.
        features: what was found for each scored concept; the same at one threshold for all, among the dimensions of the
            activations, and for shuffled concepts.
        top: the best concept of the best features.
    """
    kinds = (features, one_threshold, dimensions, noise)
    f1 = np.array([[found.f1 for found in kind] for kind in kinds])  # [K, C]
    whole, each = _intervals(kinds, seed)
    numbers = _numbers(features, one_threshold, f1, whole)
    rows, scored = [], 0
    for name, reason in zip(names, reasons, strict=True):
        if reason:
            rows.append(_unscored(name, reason))
        else:
            rows.append(_scored(features[scored], dimensions[scored], noise[scored], each[scored]))
            scored += 1
    return StudyResult(
        study="concepts",
        numbers=numbers,
        tables={"concepts": rows, "features": [found.row() for found in top]},
        curves=_curves(f1),
        notes=(*notes, *(f"{n} is not scored: {reason}" for n, reason in zip(names, reasons, strict=True) if reason)),
        seconds=time.perf_counter() - began,
    )


def _scored(feature: Found, dimension: Found, noise: Found, interval: Interval) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {
        **feature.row(),
        "low": low,
        "high": high,
        "prevalence": feature.prevalence,
        "num_positives": int(feature.sums[:, 3].sum()),
        "always_yes": feature.always_yes,
        "dimension": dimension.index,
        "dimension_sign": dimension.sign if dimension.index is not None else None,
        "dimension_threshold": dimension.threshold,
        "dimension_f1": dimension.f1,
        "shuffled_f1": None if np.isnan(noise.f1) else noise.f1,
        "reason": "" if feature.index is not None else "no feature fires on it in the validation documents",
    }


_COLUMNS = (
    "feature", "sign", "threshold", "concept", "f1", "precision", "recall", "f1_validation", "low", "high", "prevalence",
    "num_positives", "always_yes", "dimension", "dimension_sign", "dimension_threshold", "dimension_f1", "shuffled_f1",
    "reason",
)  # fmt: skip


def _unscored(name: str, reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(_COLUMNS), "concept": name, "reason": reason}


def _numbers(
    features: Sequence[Found], one_threshold: Sequence[Found], f1: np.ndarray, intervals: dict[str, Interval]
) -> tuple[Number, ...]:
    def number(name: str, values: Sequence[float] | np.ndarray, better: Better, variant: str) -> Number:
        low, high = intervals.get(name) or (None, None)
        value = float(np.mean(values)) if len(values) else None
        return Number.of(name, value, reason=_NONE, low=low, high=high, better=better, variant=variant)

    thresholds = {found.threshold for found in one_threshold} - {None}
    at = f" ({thresholds.pop():g})" if thresholds else ""
    low, high = intervals.get("num_concepts_found") or (None, None)
    return (
        number("coverage", f1[0], "higher", f"mean F1 of the best feature of each concept; {_OVER}"),
        number("coverage_one_threshold", f1[1], "higher", f"one threshold{at} for all concepts; {_OVER}"),
        number(
            "coverage_validation", [found.on_validation for found in features], "",
            "choice and value on the same documents, as published coverages are: too high",
        ),
        number("coverage_best_dimension", f1[2], "", f"single dimensions less their mean, both signs; {_OVER}"),
        number("coverage_over_dimension", f1[0] - f1[2], "higher", "difference to the best dimension, paired"),
        number("coverage_shuffled", f1[3], "", f"the same search for spans laid down at random; {_OVER}"),
        number("coverage_always_yes", [found.always_yes for found in features], "", "2 p / (1 + p) at prevalence p"),
        Number.of(
            "num_concepts_found", float((f1[0] >= GOOD_F1).sum()) if len(features) else None, reason=_NONE, low=low,
            high=high, better="higher", variant=f"concepts with F1 of {GOOD_F1:g} or more on test documents",
        ),
        Number(name="num_concepts", value=float(len(features)), variant="concepts that were scored"),
    )  # fmt: skip


def _intervals(kinds: Sequence[Sequence[Found]], seed: int) -> tuple[dict[str, Interval], list[Interval]]:
    """Of the numbers, and of each concept's F1."""
    if not kinds[0]:
        return {}, []
    sums = np.stack([np.stack([found.sums for found in kind], axis=1) for kind in kinds], axis=1)  # [D, K, C, 4]

    def numbers(totals: np.ndarray) -> np.ndarray:
        drawn = totals.reshape(-1, *sums.shape[1:])
        f1 = f1_of_counts(*np.moveaxis(drawn, -1, 0))  # [R, K, C]; NaN where a draw has no span of the concept
        there = ~np.isnan(f1)
        mean = np.where(there, f1, 0).sum(-1) / there.sum(-1)  # [R, K], over the concepts that a draw has
        good = (f1[:, :1] >= GOOD_F1).sum(-1)
        return np.concatenate([mean, mean[:, :1] - mean[:, 2:3], good, f1[:, 0]], axis=-1)

    found = bootstrap(sums.reshape(len(sums), -1), numbers, seed=seed)
    names = (
        "coverage", "coverage_one_threshold", "coverage_best_dimension", "coverage_shuffled", "coverage_over_dimension",
        "num_concepts_found",
    )  # fmt: skip
    return dict(zip(names, found, strict=False)), found[len(names) :]


def _curves(f1: np.ndarray) -> dict[str, dict[str, list[float | None]]]:
    """F1 of the concepts in falling order, and how many concepts are above each F1."""
    kinds = {"feature": f1[0], "dimension": f1[2], "shuffled": f1[3]}
    steps = np.round(np.arange(0.1, 0.95, 0.1), 1)
    return {
        "f1_by_rank": {
            "rank": [float(rank) for rank in range(1, f1.shape[1] + 1)],
            **{name: np.sort(values)[::-1].tolist() for name, values in kinds.items()},
        },
        "concepts_above": {
            "f1": steps.tolist(),
            **{name: [float((values > step).sum()) for step in steps] for name, values in kinds.items()},
        },
    }
