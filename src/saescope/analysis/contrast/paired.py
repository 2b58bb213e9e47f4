"""The same texts under two conditions: does a feature's number differ, text by text?

Wilcoxon's signed-rank test (1945) of the differences, two-sided. Texts in which a feature does not differ, most of them for
most features, say nothing of the direction and are left out. The distribution is exact up to 50 differences without ties,
and normal otherwise, ties corrected. The size of the effect is the mean difference, over all texts,
in standard deviations of the differences (Cohen's d_z, with Hedges' factor).

D  texts, d_sae  features.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse, stats

from saescope.analysis.contrast.separation import small_sample_factor

_EXACT = 50  # differences up to which the exact distribution is taken


def paired_p(differences: sparse.csr_array, features: np.ndarray) -> np.ndarray:
    """p for each of the features, from differences ``[D, d_sae]``; 1 where no text differs."""
    columns = sparse.csc_array(differences)
    p = np.ones(len(features))
    for place, feature in enumerate(features):
        some = columns.data[columns.indptr[feature] : columns.indptr[feature + 1]]
        some = some[some != 0]
        if len(some) > 1:
            untied = len(some) <= _EXACT and len(np.unique(np.abs(some))) == len(some)
            p[place] = stats.wilcoxon(some, method="exact" if untied else "asymptotic").pvalue
    return p


def paired_effect(differences: sparse.csr_array, features: np.ndarray) -> np.ndarray:
    """d_z for each of the features; 0 where nothing differs, infinite where all texts differ by the same."""
    num_texts = differences.shape[0]
    if num_texts < 2:
        raise ValueError(f"a paired comparison takes two texts or more, and there is {num_texts}")
    chosen = sparse.csc_array(differences)[:, features]
    mean = np.asarray(chosen.sum(0)).ravel() / num_texts
    squares = np.asarray(chosen.multiply(chosen).sum(0)).ravel()
    # from deviations, not from sums of squares less the mean's: a common shift would cancel all digits
    stored = np.diff(chosen.indptr)
    deviations = chosen.data - np.repeat(mean, stored)
    which = np.repeat(np.arange(len(features)), stored)
    spread = np.bincount(which, weights=deviations**2, minlength=len(features)) + (num_texts - stored) * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = mean / np.sqrt(spread / (num_texts - 1))
    return np.where(squares == 0, 0.0, effect) * small_sample_factor(num_texts - 1)
