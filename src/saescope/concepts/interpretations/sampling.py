"""Which of a concept's examples are shown: the strongest, any, or some from each part of the range.

Bills et al. 2023 ("Language models can explain neurons in language models") show the strongest and random ones. Labels made
from the strongest alone tend to be too narrow; quantiles show the range.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np


class SamplingMethod(StrEnum):
    """How examples are chosen among the units where a concept is active."""

    TOP = "top"
    """The largest activations."""
    RANDOM = "random"
    """Any, each with the same chance."""
    QUANTILE = "quantile"
    """The same number from each of ``num_slices`` equal parts of the sorted activations, the rest from the highest."""

    def choose(self, activations: np.ndarray, k: int, *, num_slices: int = 5, seed: int = 0) -> np.ndarray:
        """Places of at most ``k`` of the activations, the largest first; among equals the earlier.

        Args:
            activations: positive ones of a concept, ``[e]``.
            k: how many.
            num_slices: for QUANTILE, at most ``k``. Where a slice has too few, all of it is taken.
            seed: for RANDOM, and for QUANTILE within a slice.
        """
        order = np.lexsort((np.arange(len(activations)), -activations))  # largest first
        if self is SamplingMethod.TOP or len(order) <= k:
            return order[:k]
        rng = np.random.default_rng(seed)
        if self is SamplingMethod.RANDOM:
            return order[np.sort(rng.choice(len(order), k, replace=False))]
        chosen: list[np.ndarray] = []
        slices = np.array_split(np.arange(len(order)), num_slices)  # the highest first
        share = k // num_slices
        for number, places in enumerate(slices):
            wanted = min(len(places), share + (k % num_slices if number == 0 else 0))
            chosen.append(np.sort(rng.choice(places, wanted, replace=False)))
        return order[np.concatenate(chosen)]
