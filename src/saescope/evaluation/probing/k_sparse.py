"""k-sparse probes: features that are chosen by the difference of class means, and what a probe on them is worth.

The rule of choice is SAEBench's (arXiv 2503.09532): the k features whose mean over the positives differs most from that
over the negatives; or that of sae-probes (arXiv 2502.16681), which divides the difference by the feature's mean where
it fires. Both look at training rows only. The same is done with dimensions of the activations.

What a probe is worth is kept as sums over the test rows of each document, so that its numbers and their intervals come
from the same place.

n  rows (tokens or texts), F  features, d_in  width of the activations, C  concepts, D  documents, m  inputs of a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import sparse

from saescope.evaluation.probes import Inputs, Probe, fit_probe

Selection: TypeAlias = Literal["mean_difference", "normalised"]
METRICS = ("f1", "accuracy", "balanced_accuracy", "auc")
NUM_SUMS = 9
_ROWS_AT_ONCE = 8192
_EPSILON = 1e-6  # of the normalised rule


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One concept: which rows are for what, and which are positive. No row is in two of its parts."""

    name: str
    y: np.ndarray  # bool, [n]
    train: np.ndarray  # row numbers that features are chosen on
    fit: np.ndarray  # those of them that probes are fitted to: as many positives as negatives
    validation: np.ndarray
    test: np.ndarray


def class_differences(inputs: sparse.csr_array | np.ndarray, tasks: Sequence[Task], rule: Selection) -> np.ndarray:
    """How much each input tells positives from negatives of each task on its training rows, float64 ``[C, F]``.

    The absolute difference of the two class means; in the normalised rule, divided by the mean size of the values that
    are not 0. One product of a sparse matrix with a thin one, a block of rows at a time.
    """
    signs = np.zeros((inputs.shape[0], len(tasks)))  # of each row in the difference, [n, C]
    for column, task in enumerate(tasks):
        y = task.y[task.train]
        signs[task.train, column] = np.where(y, 1 / y.sum(), -1 / (~y).sum())
    difference = np.zeros((inputs.shape[1], len(tasks)))
    total, count = np.zeros_like(difference), np.zeros_like(difference)
    for first in range(0, inputs.shape[0], _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        block = inputs[rows].astype(np.float64)
        difference += block.T @ signs[rows]
        if rule == "normalised":
            trained = (signs[rows] != 0).astype(np.float64)
            total += abs(block).T @ trained
            count += (block != 0).astype(np.float64).T @ trained
    if rule == "normalised":
        difference /= total / (count + _EPSILON) + _EPSILON
    return np.abs(difference.T)


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the ``k`` largest values above 0, the largest first and the lower place first among equals."""
    order = np.argsort(-values, kind="stable")[:k]
    return order[values[order] > 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A probe with the thresholds that were best on validation rows."""

    probe: Probe
    f1_threshold: float
    accuracy_threshold: float
    validation_auc: float

    @classmethod
    def of(cls, inputs: Inputs, task: Task, *, c: float) -> Fitted:
        """Fit on ``task.fit``, with thresholds from ``task.validation``. A probe without inputs answers 0 everywhere."""
        if inputs.shape[1]:
            probe = fit_probe(_rows(inputs, task.fit), task.y[task.fit], c=c)
        else:
            probe = Probe(weights=np.zeros(0), bias=0.0, converged=True)
        logits, y = probe.logits(_rows(inputs, task.validation)), task.y[task.validation]
        f1_threshold, accuracy_threshold = best_thresholds(logits, y)
        return cls(
            probe=probe, f1_threshold=f1_threshold, accuracy_threshold=accuracy_threshold,
            validation_auc=float(placements(logits, y)[y].mean()),
        )  # fmt: skip

    @classmethod
    def best(cls, inputs: Inputs, task: Task, regularisations: Sequence[float]) -> Fitted:
        """The one of these strengths of regularisation with the largest AUC on validation rows."""
        return max((cls.of(inputs, task, c=c) for c in regularisations), key=lambda fitted: fitted.validation_auc)

    def sums(self, inputs: Inputs, task: Task, document: np.ndarray, num_documents: int) -> np.ndarray:
        """Sums over the test rows of each document, ``[D, NUM_SUMS]``: what :func:`metrics` wants.

        Args:
            document: number of each row's document, from 0 on for those of test rows, ``[n]``.
        """
        logits, y = self.probe.logits(_rows(inputs, task.test)), task.y[task.test]
        by_f1, by_accuracy, plain = logits > self.f1_threshold, logits > self.accuracy_threshold, logits > 0
        placed = placements(logits, y)
        columns = [y, ~y, by_f1 & y, by_f1 & ~y, by_accuracy == y, plain & y, ~plain & ~y, placed * y, placed * ~y]
        here = document[task.test]
        return np.stack([np.bincount(here, weights=column, minlength=num_documents) for column in columns], axis=-1)


def metrics(sums: np.ndarray, auc: np.ndarray | float) -> np.ndarray:
    """`METRICS` from sums over documents, ``[..., NUM_SUMS]`` to ``[..., 4]``; NaN where a class has no row.

    The AUC of documents that are drawn again is its first-order change around ``auc``, that of all documents (Obuchowski
    1997): mean placement of the positives plus mean placement of the negatives, less ``auc``.
    """
    positives, negatives, hits, false_alarms, right, yes, no, above, below = np.moveaxis(sums, -1, 0)
    with np.errstate(all="ignore"):
        return np.stack(
            [
                2 * hits / np.where(positives > 0, positives + hits + false_alarms, np.nan),
                right / (positives + negatives),
                (yes / positives + no / negatives) / 2,
                above / positives + below / negatives - auc,
            ],
            axis=-1,
        )


def placements(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For a positive the share of negatives below it; for a negative that of positives above it; ties count half, ``[n]``.

    The mean over the positives is the AUC, and so is that over the negatives.
    """
    _, which, counts = np.unique(logits, return_inverse=True, return_counts=True)
    positives = np.bincount(which, weights=y, minlength=len(counts))
    negatives = counts - positives
    below = np.cumsum(negatives) - negatives / 2
    above = positives.sum() - (np.cumsum(positives) - positives / 2)
    with np.errstate(all="ignore"):
        return np.where(y, below[which] / negatives.sum(), above[which] / positives.sum())


def best_thresholds(logits: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The thresholds with the largest F1 and with the largest accuracy for ``logits > threshold``; half-way between values.

    Infinite where it is best to say the same everywhere; the higher threshold among equals.
    """
    values, which, counts = np.unique(-logits, return_inverse=True, return_counts=True)  # the largest logit first
    values = -values
    hits = np.cumsum(np.bincount(which, weights=y, minlength=len(counts)))
    said = np.cumsum(counts)
    hits, said = np.append(0, hits), np.append(0, said)  # of saying yes to the first 0, 1, ... values
    thresholds = np.concatenate([[np.inf], (values[:-1] + values[1:]) / 2, [-np.inf]])
    f1 = 2 * hits / np.maximum(said + y.sum(), 1)
    right = hits + (len(y) - y.sum()) - (said - hits)
    return float(thresholds[np.argmax(f1)]), float(thresholds[np.argmax(right)])


def balanced_rows(y: np.ndarray, rows: np.ndarray, most: int, *, seed: Sequence[int]) -> np.ndarray:
    """As many positives as negatives of ``rows``, at most ``most`` of each, drawn at random; in rising order."""
    generator = np.random.default_rng(seed)
    positives, negatives = rows[y[rows]], rows[~y[rows]]
    count = min(len(positives), len(negatives), most)
    drawn = [generator.choice(group, size=count, replace=False) for group in (positives, negatives)]
    return np.sort(np.concatenate(drawn))


def _rows(inputs: Inputs, rows: np.ndarray) -> Inputs:
    return inputs[rows].astype(np.float64)
