"""Codes and reconstructions against the truth, on samples whose true codes are known.

A feature or latent fires on a token where its code is not 0. What is undefined, such as the precision of a latent that never
fires, is nan, and means are over what is defined.

B  tokens, n  true features, h  latents, d  activation width, m  matched pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from saescope.activations.synthetic.matching import Matching
from saescope.metrics import explained_variance


def mean_l0(codes: Tensor) -> float:
    """Mean number of features that fire on a token, from codes ``[B, n]``."""
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"expected codes [B, n] of at least one token, got {list(codes.shape)}")
    return int((codes != 0).sum()) / len(codes)


@dataclass(frozen=True, eq=False)
class FiringAgreement:
    """How well matched latents fire when their features do; one entry for each pair of the matching, in its order."""

    precision: Tensor  # [m], float64: of the latent's firings, share on which the feature fires; nan: it never fires
    recall: Tensor  # [m], float64: of the feature's firings, share on which the latent fires; nan: it never fires
    f1: Tensor  # [m], float64: 2 both / (latent's + feature's firings), so 0 for a dead latent; nan: neither fires
    mean_precision: float
    mean_recall: float
    mean_f1: float


def firing_agreement(codes_latent: Tensor, codes_true: Tensor, match: Matching) -> FiringAgreement:
    """Precision, recall and F1 of each matched latent's firing as a detector of its feature.

    Args:
        codes_latent: the dictionary's codes, ``[B, h]``.
        codes_true: the true codes of the same tokens, ``[B, n]``.
        match: which latent stands for which feature, of :func:`matched_cosine`.
    """
    latent, true = _firings(codes_latent, codes_true, match)
    latent, true = latent[:, match.rows], true[:, match.atoms]
    both, of_latent, of_true = ((fired.sum(0).double()) for fired in (latent & true, latent, true))
    # 0 / 0 is nan where a number is undefined
    precision, recall, f1 = both / of_latent, both / of_true, 2 * both / (of_latent + of_true)
    return FiringAgreement(
        precision, recall, f1, float(precision.nanmean()), float(recall.nanmean()), float(f1.nanmean())
    )


@dataclass(frozen=True)
class Absorption:
    """How often a parent's latent is silent because a child is there."""

    mean: float  # over the parents of per_parent
    per_parent: dict[int, float]


def absorption(
    codes_latent: Tensor, codes_true: Tensor, children: Mapping[int, Sequence[int]], match: Matching
) -> Absorption:
    """P(latent matched to the parent is off | the parent and at least one of its children are on), mean over parents.

    Parents without a matched latent, or that never fire together with a child, are left out; the mean is nan if all are.

    Args:
        codes_latent: the dictionary's codes, ``[B, h]``.
        codes_true: the true codes of the same tokens, ``[B, n]``.
        children: of each parent, by feature number; :attr:`Hierarchy.children`.
        match: which latent stands for which feature, of :func:`matched_cosine`.
    """
    latent, true = _firings(codes_latent, codes_true, match)
    per_parent: dict[int, float] = {}
    for parent, family in children.items():
        together = true[:, parent] & true[:, list(family)].any(-1)
        row = match.row_of(parent)
        if row is not None and together.any():
            per_parent[parent] = 1 - int(latent[together, row].sum()) / int(together.sum())
    mean = sum(per_parent.values()) / len(per_parent) if per_parent else float("nan")
    return Absorption(mean, per_parent)


def shrinkage(x: Tensor, x_hat: Tensor) -> float:
    """gamma = E|x_hat|^2 / E[x_hat . x], each of the two centred by its own mean (arXiv 2404.16014).

    The g for which x_hat / g is nearest to x: below 1, reconstructions are too short; nan for a constant x_hat.

    Args:
        x: activations, ``[B, d]``.
        x_hat: reconstructions, ``[B, d]``.
    """
    if x.shape != x_hat.shape or x.ndim != 2 or not len(x):
        raise ValueError(f"expected two tensors [B, d] of one shape, got {list(x.shape)} and {list(x_hat.shape)}")
    x, x_hat = x.detach().double(), x_hat.detach().double()
    x, x_hat = x - x.mean(0), x_hat - x_hat.mean(0)
    return float(x_hat.square().sum() / (x_hat * x).sum())


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained, sum |x - x_hat|^2 / sum |x - mean|^2 with the mean per dimension.

    Args:
        x: activations, ``[B, d]``.
        x_hat: reconstructions, ``[B, d]``.
    """
    return 1 - explained_variance(x, x_hat)


def _firings(codes_latent: Tensor, codes_true: Tensor, match: Matching) -> tuple[Tensor, Tensor]:
    if codes_latent.ndim != 2 or codes_true.ndim != 2 or len(codes_latent) != len(codes_true):
        raise ValueError(
            "expected codes [B, h] and true codes [B, n] of the same tokens, got "
            f"{list(codes_latent.shape)} and {list(codes_true.shape)}"
        )
    if int(match.rows.max()) >= codes_latent.shape[1] or int(match.atoms.max()) >= codes_true.shape[1]:
        raise ValueError(
            f"the matching is of {int(match.rows.max()) + 1} or more latents and {int(match.atoms.max()) + 1} or more "
            f"features; the codes have {codes_latent.shape[1]} and {codes_true.shape[1]}"
        )
    return (codes_latent.detach() != 0).cpu(), (codes_true.detach() != 0).cpu()
