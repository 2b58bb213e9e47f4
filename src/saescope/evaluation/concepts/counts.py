"""How often a feature above a threshold meets a concept: exact counts, made from firings alone.

For every feature, threshold and concept one asks on how many tokens the feature is above the threshold, on how many of
those the concept is there, and how many of the concept's spans are found. All thresholds are counted at once: a firing
enters with the highest one that it exceeds, its level, and sums from the top give the others. A firing is one number, the
cell of its feature and level, so that a count is a histogram of cells, and a span's best level is the last of its feature's
cells in sorted order. Nothing of size ``[T, F]`` is made.

T  tokens, F  features (or whatever fires), Q  thresholds, N  places of a part of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True, kw_only=True, eq=False)
class FiringLevels:
    """What exceeds the lowest threshold, token after token."""

    start: np.ndarray  # where each token's firings begin, int64, [T + 1]
    cell: np.ndarray  # feature * Q + level, int64, one a firing; level 0 exceeds the lowest threshold alone
    num_features: int
    num_thresholds: int

    @classmethod
    def of_codes(cls, codes: sparse.csr_array, maximum: np.ndarray, thresholds: Sequence[float]) -> FiringLevels:
        """Firings of ``codes [T, F]`` above ``thresholds * maximum [F]``; of no feature whose maximum is 0 or less."""
        feature = codes.indices.astype(np.int64)
        level = _levels(codes.data.astype(np.float64), maximum[feature], thresholds)
        kept = level >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return cls(
            start=before[codes.indptr],
            cell=(feature * len(thresholds) + level)[kept],
            num_features=codes.shape[1],
            num_thresholds=len(thresholds),
        )

    @classmethod
    def of_values(cls, values: np.ndarray, maximum: np.ndarray, thresholds: Sequence[float]) -> FiringLevels:
        """The same of dense ``values [T, F]``, for a few columns at once."""
        level = _levels(values, maximum, thresholds)
        token, feature = np.nonzero(level >= 0)
        return cls(
            start=np.concatenate([[0], np.cumsum(np.bincount(token, minlength=len(values)))]),
            cell=feature * len(thresholds) + level[token, feature],
            num_features=values.shape[1],
            num_thresholds=len(thresholds),
        )

    def fired(self) -> np.ndarray:
        """On how many tokens each feature is above each threshold, int64 ``[F, Q]``."""
        return self._count(self.cell)

    def hits(self, tokens: np.ndarray, span: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often each feature above each threshold meets one concept.

        Args:
            tokens: places of all tokens with the concept, int64 ``[N]``.
            span: the number of the span that each one is in, int64 ``[N]``.

        Returns:
            On how many of these tokens, and in how many of the spans on one token at least; both int64 ``[F, Q]``.
        """
        cell, owner = self._of_tokens(tokens)
        num_cells = self.num_features * self.num_thresholds
        key = np.sort(span[owner] * num_cells + cell)  # by span, then feature, then level
        group = key // self.num_thresholds
        last = np.ones(len(key), dtype=bool)
        last[:-1] = group[1:] != group[:-1]
        return self._count(cell), self._count(key[last] % num_cells)

    def where(self, feature: int, level: int) -> np.ndarray:
        """On which tokens one feature is above one threshold, bool ``[T]``."""
        first = feature * self.num_thresholds
        found = np.flatnonzero((self.cell >= first + level) & (self.cell < first + self.num_thresholds))
        fires = np.zeros(len(self.start) - 1, dtype=bool)
        fires[np.searchsorted(self.start, found, side="right") - 1] = True
        return fires

    def _of_tokens(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the tokens at these places, and which of the places each belongs to."""
        length = np.diff(self.start)[tokens]
        owner = np.repeat(np.arange(len(tokens)), length)
        offset = self.start[tokens] - (np.cumsum(length) - length)
        return self.cell[offset[owner] + np.arange(len(owner))], owner

    def _count(self, cell: np.ndarray) -> np.ndarray:
        shape = (self.num_features, self.num_thresholds)
        exactly = np.bincount(cell, minlength=self.num_features * self.num_thresholds).reshape(shape)
        return exactly[:, ::-1].cumsum(1)[:, ::-1]


def _levels(values: np.ndarray, maximum: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The highest threshold that each value exceeds, by its place; -1 for none."""
    level = np.full(values.shape, -1, dtype=np.int64)
    for threshold in thresholds:
        level += (values > threshold * maximum) & (maximum > 0)
    return level


def f1_of_counts(fired: np.ndarray, hits: np.ndarray, found: np.ndarray, total: np.ndarray | int) -> np.ndarray:
    """F1 of precision ``hits / fired`` and recall ``found / total``; 0 where nothing is hit, NaN where ``total`` is 0."""
    with np.errstate(all="ignore"):
        precision, recall = hits / fired, found / total
        f1 = np.where(hits > 0, 2 * precision * recall / (precision + recall), 0.0)
    return np.where(np.asarray(total) > 0, f1, np.nan)
