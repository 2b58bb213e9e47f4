"""The area under the ROC curve of a feature on texts that did not choose it, and how sure it is.

An interval comes from drawing texts again (Efron and Tibshirani 1993): those of the positive set among themselves and
those of the negative one among themselves, so that the sizes of the sets stay; where a text holds tokens of both kinds,
texts of that sort among themselves, all tokens of a text together. A feature that separates the texts at hand without
an error does so in every draw: its interval [1, 1] says nothing of texts that were not drawn, and few texts give it easily.

n  rows, C  texts that they belong to, R  draws, U  different values of a feature.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_CELLS_AT_ONCE = 1 << 23


def auroc(values: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """P(a positive row has more than a negative one) + P(as much) / 2, for each row of weights.

    Args:
        values: ``[n]``. positive: bool ``[n]``. weights: how often each row counts, ``[R, n]``; None for once.

    Returns:
        ``[R]``, float64; NaN where a group has no weight.
    """
    weights = np.ones((1, len(values))) if weights is None else np.asarray(weights, dtype=np.float64)
    levels, level = np.unique(values, return_inverse=True)
    at_level = sparse.csr_array(
        (np.ones(len(values)), (np.arange(len(values)), level)), shape=(len(values), len(levels))
    )
    above = np.asarray((weights * positive) @ at_level)  # [R, U]: weight of the positive rows of each value
    below = np.asarray((weights * ~positive) @ at_level)
    lower = np.cumsum(below, axis=-1) - below / 2
    with np.errstate(invalid="ignore"):
        return (above * lower).sum(-1) / (above.sum(-1) * below.sum(-1))


def auroc_intervals(
    values: np.ndarray, positive: np.ndarray, text: np.ndarray, *, num_draws: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """Percentile intervals of 95 % for several features, over texts.

    Args:
        values: ``[n, K]``. positive: bool ``[n]``. text: int ``[n]``, the text of each row.

    Returns:
        K intervals (low, high).
    """
    _, text = np.unique(text, return_inverse=True)
    num_texts = int(text.max()) + 1
    has, lacks = (np.bincount(text[group], minlength=num_texts) > 0 for group in (positive, ~positive))
    strata = [np.flatnonzero(kind) for kind in (has & ~lacks, lacks & ~has, has & lacks)]
    generator = np.random.default_rng(seed)
    found = []
    rows = max(1, _CELLS_AT_ONCE // len(text))
    for first in range(0, num_draws, rows):
        weights = np.stack([_drawn(strata, num_texts, generator) for _ in range(min(rows, num_draws - first))])
        found.append(np.stack([auroc(column, positive, weights[:, text]) for column in values.T]))
    low, high = np.quantile(np.concatenate(found, axis=1), [0.025, 0.975], axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _drawn(strata: list[np.ndarray], num_texts: int, generator: np.random.Generator) -> np.ndarray:
    """How often each text is drawn, ``[C]``."""
    drawn = [generator.choice(stratum, size=len(stratum)) for stratum in strata if len(stratum)]
    return np.bincount(np.concatenate(drawn), minlength=num_texts)
