"""Linear probes: how well a direction, or a handful of features, tells a yes from a no.

Most probes of an evaluation read the activations themselves, and are the same for every dictionary at that place. So a
probe that was fitted to the very same numbers in this process is not fitted again: it is found by a hash of them.

n  samples, m  inputs of a probe (features, or dimensions of the activations).
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import sparse

Inputs: TypeAlias = "np.ndarray | sparse.csr_array | sparse.csc_array"
_MOST_FITTED = 4096  # probes that are remembered; 25 MB at 768 dimensions
_fitted: dict[bytes, Probe] = {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A logistic regression: yes where ``x @ weights + bias > 0``."""

    weights: np.ndarray  # float64, [m]
    bias: float
    converged: bool

    def logits(self, x: Inputs) -> np.ndarray:
        """``[n, m]`` to ``[n]``, float64."""
        return np.asarray(x @ self.weights).reshape(-1) + self.bias

    def predict(self, x: Inputs) -> np.ndarray:
        """bool ``[n]``."""
        return self.logits(x) > 0


def fit_probe(x: Inputs, y: np.ndarray, *, c: float = 1.0, balanced: bool = False, max_iter: int = 1000) -> Probe:
    """An L2-regularised logistic regression (scikit-learn, L-BFGS) with penalty |w|^2 / (2 c).

    Args:
        x: inputs, dense or sparse, ``[n, m]``. They are taken as they are: nothing is standardised.
        y: bool ``[n]``.
        balanced: weigh both classes alike, whatever their numbers.

    Raises:
        ValueError: all samples are of one class, or an input is not a number.
    """
    y = np.asarray(y, dtype=bool)
    require_both_classes(y)
    if not isinstance(x, np.ndarray):  # features, and so of one dictionary alone
        return _fit(x, y, c, balanced, max_iter)
    about = hashlib.blake2b(repr((x.shape, x.dtype.str, c, balanced, max_iter)).encode())
    about.update(np.ascontiguousarray(x).tobytes())
    about.update(y.tobytes())
    key = about.digest()
    if key not in _fitted:
        if len(_fitted) >= _MOST_FITTED:
            del _fitted[next(iter(_fitted))]  # the oldest
        _fitted[key] = _fit(x, y, c, balanced, max_iter)
    return _fitted[key]


def _fit(x: Inputs, y: np.ndarray, c: float, balanced: bool, max_iter: int) -> Probe:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=max_iter, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weights = model.coef_[0].astype(np.float64)
    weights.flags.writeable = False  # it may be handed out again
    return Probe(weights=weights, bias=float(model.intercept_[0]), converged=converged)


def require_both_classes(y: np.ndarray, what: str = "the probe", *, least: int = 1) -> None:
    """ValueError where there are fewer than ``least`` samples of either class."""
    positives = int(np.count_nonzero(y))
    negatives = len(y) - positives
    if min(positives, negatives) < least:
        raise ValueError(
            f"{what} needs at least {least} positive and {least} negative samples, got {positives} and {negatives}"
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How predictions agree with the truth."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    """0 where nothing is predicted, or nothing of it is right."""


def scores(predicted: np.ndarray, truth: np.ndarray) -> Scores:
    """Accuracy, precision, recall and F1 of the positive class; both bool ``[n]``, at least one sample."""
    both = int(np.count_nonzero(predicted & truth))
    said, true = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    return Scores(
        accuracy=float(np.mean(predicted == truth)),
        precision=both / said if said else 0.0,
        recall=both / true if true else 0.0,
        f1=2 * both / (said + true) if said + true else 0.0,
    )
