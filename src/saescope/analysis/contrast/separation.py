"""How well single features separate two groups, for all features at once.

Of a feature with values x in n1 rows of the positive group and y in n2 of the negative one::

    d = (mean(x) - mean(y)) / s,    s^2 = ((n1 - 1) var(x) + (n2 - 1) var(y)) / (n1 + n2 - 2)    (Cohen 1988)
    g = d (1 - 3 / (4 (n1 + n2) - 9))                          its bias in small samples taken off (Hedges 1981)
    AUROC = P(x > y) + P(x = y) / 2 = U / (n1 n2)              (Mann and Whitney 1947)
    delta = P(x > y) - P(x < y) = 2 AUROC - 1                  (Cliff 1993), the rank-biserial correlation

p is that of the Mann-Whitney test, two-sided, by its normal approximation with ties and continuity corrected: a feature is
silent in many texts, so that ties are the rule and the exact distribution is not had. It is rough below eight rows a group.
q is p after Benjamini and Hochberg (1995), over all features that fire in any row: those that never do can not be found and
are not tested.

n  rows (texts, say), M  features that fire.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

_CELLS_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Separation:
    """Numbers of the features that fire; arrays ``[M]`` in rising order of feature."""

    feature: np.ndarray
    effect_size: np.ndarray  # g; infinite where the groups differ and neither has any spread
    auroc: np.ndarray  # that the positive group is higher
    p: np.ndarray
    q: np.ndarray
    mean_positive: np.ndarray
    mean_negative: np.ndarray
    share_positive: np.ndarray  # of the rows that it fires in
    share_negative: np.ndarray

    @property
    def delta(self) -> np.ndarray:
        """Cliff's delta."""
        return 2 * self.auroc - 1


def separation(values: sparse.csr_array, positive: np.ndarray) -> Separation:
    """Numbers of every feature that fires in any of the rows.

    Args:
        values: ``[n, d_sae]``. positive: bool ``[n]``, the group of each row.

    Raises:
        ValueError: a group of fewer than two rows, or values that are not finite.
    """
    n1, n2 = int(positive.sum()), int((~positive).sum())
    if min(n1, n2) < 2:
        raise ValueError(f"a group of fewer than two has no spread to compare with: there are {n1} and {n2}")
    if not np.isfinite(values.data).all():
        raise ValueError(
            "feature activations are not finite; the weights or the model's activations hold NaN or infinity"
        )
    fired = firing_features(values)
    columns = sparse.csc_array(values)
    width = max(1, _CELLS_AT_ONCE // (n1 + n2))
    parts = [
        _dense_separation(columns[:, fired[i : i + width]].toarray(), positive) for i in range(0, len(fired), width)
    ]
    names = ("effect_size", "auroc", "p", "mean_positive", "mean_negative", "share_positive", "share_negative")
    found = {name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0) for name in names}
    return Separation(feature=fired, q=adjusted(found["p"]), **found)


def firing_features(values: sparse.csr_array) -> np.ndarray:
    """The features with a value other than 0 in any row of ``[n, d_sae]``, in rising order."""
    return np.flatnonzero(np.bincount(values.indices[values.data != 0], minlength=values.shape[1]))


def _dense_separation(values: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """As above, of ``[n, some features]``."""
    x, y = values[positive], values[~positive]
    n1, n2 = len(x), len(y)
    difference = x.mean(0) - y.mean(0)
    constant = (values == values[0]).all(0)
    spread = np.sqrt(((n1 - 1) * x.var(0, ddof=1) + (n2 - 1) * y.var(0, ddof=1)) / (n1 + n2 - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(constant, 0.0, difference / spread) * small_sample_factor(n1 + n2 - 2)
    p, area = np.ones(values.shape[1]), np.full(values.shape[1], 0.5)
    if not constant.all():
        test = stats.mannwhitneyu(x[:, ~constant], y[:, ~constant], method="asymptotic")
        p[~constant], area[~constant] = test.pvalue, test.statistic / (n1 * n2)
    return {
        "effect_size": effect,
        "auroc": area,
        "p": p,
        "mean_positive": x.mean(0),
        "mean_negative": y.mean(0),
        "share_positive": (x != 0).mean(0),
        "share_negative": (y != 0).mean(0),
    }


def small_sample_factor(degrees_of_freedom: int) -> float:
    """What takes the bias off a standardised mean (Hedges 1981, in its usual approximation)."""
    return 1 - 3 / (4 * degrees_of_freedom - 1)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q for each p."""
    return stats.false_discovery_control(p, method="bh") if len(p) else p
