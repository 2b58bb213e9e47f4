"""On which tokens each feature fires, as sets: what of one feature's firings lies within another's.

T  tokens, N  features.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


class FiringSets:
    """The firings of codes ``[T, N]``, by feature; a value of 0 that is stored is no firing."""

    def __init__(self, codes: sparse.csr_array) -> None:
        by_feature = sparse.csc_array(codes, copy=True)
        by_feature.eliminate_zeros()
        by_feature.sort_indices()
        self._starts, self._tokens = by_feature.indptr, by_feature.indices
        self.num_tokens = codes.shape[0]
        self.counts = np.diff(self._starts)  # [N]

    def count(self, feature: int) -> int:
        """Tokens on which a feature fires."""
        return int(self.counts[feature])

    def of(self, feature: int) -> np.ndarray:
        """Those tokens, rising."""
        return self._tokens[self._starts[feature] : self._starts[feature + 1]]

    def marked(self, feature: int) -> np.ndarray:
        """The same as one bool for every token, ``[T]``."""
        marks = np.zeros(self.num_tokens, dtype=bool)
        marks[self.of(feature)] = True
        return marks

    def overlap(self, feature: int, tokens: np.ndarray) -> float:
        """Tokens of both over tokens of either; 0 where neither has any."""
        both = len(np.intersect1d(self.of(feature), tokens, assume_unique=True))
        either = self.count(feature) + len(tokens) - both
        return both / either if either else 0.0
