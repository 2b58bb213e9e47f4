"""Which features stand for a concept, and how many it takes: k-sparse probes and the rule of the jump in F1.

A concept may sit in one feature or be split over several. A probe that sees only the k best features says how well those
tell the concept; one more feature belongs to it where F1 jumps by more than a bar, and the first feature that does not bring
such a jump ends the search (Chanin et al. 2024, arXiv 2409.14507; Gurnee et al. 2023, arXiv 2305.01610, for k-sparse
probes). Features are ranked and probes are fitted on training tokens, the jump is looked for on validation tokens: nothing
is chosen on the tokens on which scores are taken.

n  tokens, d_sae  features, k  features that a probe sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from saescope.evaluation.probes import Probe, fit_probe, scores

Selection = Literal["class_means", "l1"]


@dataclass(frozen=True, kw_only=True)
class SparseProbing:
    """How features are chosen for a concept."""

    max_k: int = 10
    """Most features that a probe sees."""
    f1_jump: float = 0.03
    """By how much F1 has to rise for one more feature to count."""
    selection: Selection = "class_means"
    """Order of features: "class_means": mean on the concept less mean elsewhere, largest first; cheap, and two copies of a
    feature come one after the other. "l1": signed weights of one logistic regression with an L1 penalty, which takes one of
    two copies."""
    l1: float = 0.01
    """Weight of the L1 penalty beside the mean loss."""
    num_candidates: int = 300
    """Features that the L1 probe sees: those with the largest difference of means, of either sign."""

    def __post_init__(self) -> None:
        if self.max_k < 1 or self.num_candidates < self.max_k:
            raise ValueError(
                f"max_k must be at least 1 and at most num_candidates, got {self.max_k} and {self.num_candidates}"
            )
        if not 0 <= self.f1_jump < 1 or not self.l1 > 0:
            raise ValueError(f"f1_jump must be from 0 to 1 and l1 above 0, got {self.f1_jump} and {self.l1}")
        if self.selection not in get_args(Selection):
            raise ValueError(f"selection must be one of {', '.join(get_args(Selection))}, got {self.selection!r}")

    @property
    def words(self) -> str:
        """The selection, as it is named beside numbers."""
        if self.selection == "l1":
            return "features by signed weights of an L1 probe"
        return "features by difference of class means"


@dataclass(frozen=True, kw_only=True, eq=False)
class MainLatents:
    """The features of a concept."""

    order: np.ndarray  # features, best first, at most max_k; empty where none fires more on the concept than elsewhere
    f1: list[float]  # on validation tokens, of the probe that sees the first 1, 2, ... of them
    count: int  # how many stand for the concept, by the rule

    @property
    def features(self) -> np.ndarray:
        """Those that stand for the concept."""
        return self.order[: self.count]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What every search for a concept's features needs to know."""

    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of documents for training, validation (how many features) and test (scores)."""
    num_train_tokens: int = 20_000
    """Most tokens that one probe is fitted on."""
    least_positives: int = 10
    """Fewest tokens of a concept, and fewest without it, in each part."""
    latents: SparseProbing = field(default_factory=SparseProbing)
    """How features are chosen."""
    seed: int = 0
    """Of the split, of the training tokens, and of the intervals."""

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or not all(share > 0 for share in self.shares):
            raise ValueError(f"shares are three numbers above 0 (train, validation, test), got {list(self.shares)}")
        if self.num_train_tokens < 2 or self.least_positives < 1:
            raise ValueError(
                f"num_train_tokens must be at least 2 and least_positives at least 1, got {self.num_train_tokens} and "
                f"{self.least_positives}"
            )


def main_latents(
    train: sparse.csr_array,
    y_train: np.ndarray,
    validation: sparse.csr_array,
    y_validation: np.ndarray,
    config: SparseProbing,
    *,
    whole_curve: bool = False,
    seed: int = 0,
) -> MainLatents:
    """The features that stand for a concept.

    Args:
        train: what features write on training tokens, ``[n, d_sae]``.
        y_train: whether each of them is of the concept, bool ``[n]``; both answers occur.
        validation: the same of other tokens, on which the jump is looked for.
        whole_curve: F1 for every k up to the largest, and not only as far as the rule goes.
    """
    order = ranked(train, y_train, config, seed=seed)
    columns, held_out = (codes[:, order].toarray() for codes in (train, validation))
    f1: list[float] = []
    count, searching = 0, True
    for k in range(1, len(order) + 1):
        f1.append(scores(_probe(columns[:, :k], y_train).predict(held_out[:, :k]), y_validation).f1)
        searching = searching and (k == 1 or f1[-1] > f1[count - 1] + config.f1_jump)
        count = k if searching else count
        if not searching and not whole_curve:
            break
    return MainLatents(order=order, f1=f1, count=count)


def ranked(codes: sparse.csr_array, y: np.ndarray, config: SparseProbing, *, seed: int = 0) -> np.ndarray:
    """The at most ``max_k`` best features of a concept, best first; only those that speak for it."""
    num_yes = max(1, int(np.count_nonzero(y)))
    share = np.where(y, 1 / num_yes, -1 / max(1, len(y) - num_yes))
    weights = np.asarray(codes.T @ share)
    # a feature of one value everywhere differs by rounding alone
    weights[np.abs(weights) <= 1e-9 * np.asarray(abs(codes).T @ np.abs(share))] = 0
    if config.selection == "l1":
        # equal differences in the order of the features, so that a seed decides nothing
        candidates = np.sort(np.argsort(-np.abs(weights), kind="stable")[: config.num_candidates])
        candidates = candidates[weights[candidates] != 0]
        signed = _l1_weights(codes[:, candidates], y, config.l1, seed) if len(candidates) else np.zeros(0)
        weights = np.zeros(codes.shape[1])
        weights[candidates] = signed
    best = np.argsort(-weights, kind="stable")[: config.max_k]
    return best[weights[best] > 0]


def _l1_weights(codes: sparse.csr_array, y: np.ndarray, l1: float, seed: int) -> np.ndarray:
    """Weights of the logistic regression that minimises mean loss (classes weighed alike) + l1 |w|."""
    import sklearn
    from sklearn.linear_model import LogisticRegression

    release = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    penalty: dict[str, Any] = {"l1_ratio": 1.0} if release >= (1, 8) else {"penalty": "l1"}
    model = LogisticRegression(
        **penalty,
        solver="liblinear",
        C=1 / (l1 * len(y)),
        class_weight="balanced",
        intercept_scaling=10.0,  # the solver penalises the intercept too; in these units hardly
        max_iter=1000,
        random_state=seed,
    )
    # liblinear counts in 32 bits
    whole = codes.indices.astype(np.int32), codes.indptr.astype(np.int32)
    model.fit(sparse.csr_matrix((codes.data, *whole), shape=codes.shape), y)
    return model.coef_[0]


def _probe(x: np.ndarray, y: np.ndarray) -> Probe:
    return fit_probe(x, y, balanced=True, max_iter=500)
