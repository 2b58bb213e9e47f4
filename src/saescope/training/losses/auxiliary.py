"""Terms that bring dead features back, and the loss of the TopK family, which has one of them.

* :class:`AuxK` (Gao et al. 2024, arXiv 2406.04093, A.2): the k_aux strongest dead features of each token rebuild what
  the living ones left over. Its gradient reaches the dead features' encoder rows and decoder rows, and nothing else.
* :class:`MultiTopK` (the same, A.2): the reconstruction from more features than k, so that codes degrade gently.
* :class:`GhostGradients` (Anthropic, January 2024 update): dead features with exponential activation, scaled to half
  the residual.
* :class:`Reanimation`: push up the pre-activations of dead features.

What is dead is in the batch: features without a firing in the last ``dead_after_tokens`` tokens of training.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, TopK
from saescope.training.losses.base import (
    Batch,
    Codes,
    LossConfig,
    NormalisedSquaredError,
    SquaredError,
    SumOfTerms,
    Term,
    Weight,
    merged,
    reconstruction_term,
    require,
    share_of_variance,
    squared_error,
)
from saescope.training.schedules import RampShape, ramp


class AuxK(Term):
    """Error of the dead features' reconstruction of the residual, as a share of the residual's variance.

    The residual counts as given (no gradient), and the bias has no part in its reconstruction. 0 while nothing is dead.
    """

    def __init__(self, k_aux: int | None = None) -> None:
        """``k_aux``: dead features that may help on a token; half the activation's width when left out."""
        self.k_aux = k_aux

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        rows = batch.dead.nonzero().squeeze(-1)
        if not len(rows):
            return codes.x_hat.new_zeros(())
        residual = (batch.target - codes.x_hat).detach()
        pre, decoder = _dead_part(dictionary, codes, rows, "AuxK")
        k_aux = min(self.k_aux or max(1, dictionary.d_out // 2), len(rows))
        if isinstance(dictionary, TopK):
            values, slots = dictionary.strongest(pre, k_aux)
        else:
            values, slots = pre.topk(k_aux, dim=-1, sorted=False)
            values = values.relu()
        f = pre.new_zeros(pre.shape).scatter(-1, slots, values)
        return share_of_variance(f @ decoder, residual)


class MultiTopK(Term):
    """Reconstruction error with several times as many features, as a share of variance."""

    def __init__(self, times: int = 4) -> None:
        self.times = times

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        require(
            hasattr(dictionary.config, "k") and codes.pre is not None, dictionary, "Multi-TopK", ["the TopK family"]
        )
        k = min(self.times * dictionary.config.k, dictionary.d_sae)  # type: ignore[attr-defined]
        f = dictionary.activate_in_training(_pre(dictionary, codes, "Multi-TopK"), k)
        return share_of_variance(dictionary.decode(f, batch.x), batch.target)


class GhostGradients(Term):
    """Squared error with which dead features, as exp(pre), rebuild the residual; scaled to the size of the squared
    error.

    Per token their reconstruction is brought to half the residual's norm; neither that factor nor the one that equals
    the term with the squared error passes a gradient.
    """

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        rows = batch.dead.nonzero().squeeze(-1)
        if not len(rows):
            return codes.x_hat.new_zeros(())
        residual = (batch.target - codes.x_hat).detach()
        pre, decoder = _dead_part(dictionary, codes, rows, "ghost gradients")
        ghost = pre.exp() @ decoder
        with torch.no_grad():
            half = residual.norm(dim=-1) / (2 * ghost.norm(dim=-1)).clamp_min(1e-12)
        error = squared_error(ghost * half[:, None], residual)
        with torch.no_grad():
            size = residual.square().sum(-1).mean() / error.clamp_min(1e-12)
        return size * error


class Reanimation(Term):
    """Minus the mean pre-activation of dead features: their push is the same however many features are alive.

    This is the corrected form of interpreto's ``DeadNeuronsReanimation``: there a feature counts as dead when it is
    silent in one batch, and the mean is over all features, so that the push on each fades where there are few dead and
    many alive. ``as_published=True`` gives that one (its own weight is 1e-3).
    """

    def __init__(self, *, as_published: bool = False) -> None:
        self.as_published = as_published

    @property
    def runs_sparse(self) -> bool:
        return not self.as_published

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        if self.as_published:
            silent = codes.f.detach().amax(0) <= 0
            return -(_pre(dictionary, codes, "reanimation") * silent).mean()
        rows = batch.dead.nonzero().squeeze(-1)
        return -_dead_part(dictionary, codes, rows, "reanimation")[0].mean() if len(rows) else batch.x.new_zeros(())


class ResidualRevival(Term):
    """Minus the mean product of dead features' rows with the residual: turns them towards what is left over.

    For matching pursuit, which has no pre-activations; the residual counts as given.
    """

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        rows = batch.dead.nonzero().squeeze(-1)
        if not len(rows):
            return codes.x_hat.new_zeros(())
        residual = (batch.target - codes.x_hat).detach()
        return -(residual @ dictionary.W_dec[rows].T).mean()


_TERMS: dict[str, Callable[[], Term]] = {
    "mse": SquaredError,
    "nmse": NormalisedSquaredError,
    "auxk": AuxK,
    "multi_topk": MultiTopK,
    "ghost_gradients": GhostGradients,
    "residual_revival": ResidualRevival,
    "reanimation": Reanimation,
    "reanimation_as_published": lambda: Reanimation(as_published=True),
}


def named_term(name: str) -> Term:
    """The term of a name, as recipes have it; ValueError with the nearest names otherwise."""
    if name not in _TERMS:
        near = difflib.get_close_matches(name, _TERMS, n=2, cutoff=0.4) or sorted(_TERMS)
        raise ValueError(f"unknown term of a loss {name!r}; did you mean {' or '.join(near)}?")
    return _TERMS[name]()


@dataclass(frozen=True, kw_only=True)
class AuxKConfig(LossConfig):
    """Settings of the loss of dictionaries that select features by number."""

    reconstruction: str = "nmse"
    aux_coefficient: float = 1 / 32  # weight of the auxiliary loss that revives dead features
    k_aux: int | None = None  # dead features that may help on a token; half the activation's width when left out
    multi_topk_coefficient: float = 0.0  # weight of the reconstruction from 4 k features (1/8 in the paper)
    k_start: float | None = None  # features per token at the beginning, where that is not k
    k_anneal_share: float = 0.5  # share of the training over which they become k
    k_anneal_shape: RampShape = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.aux_coefficient >= 0 or (self.k_aux is not None and self.k_aux < 1):
            raise ValueError(
                f"aux_coefficient must not be negative and k_aux must be at least 1, "
                f"got {self.aux_coefficient} and {self.k_aux}"
            )
        if not self.multi_topk_coefficient >= 0:
            raise ValueError(f"multi_topk_coefficient must not be negative, got {self.multi_topk_coefficient}")
        if (self.k_start is not None and not self.k_start > 0) or not 0 <= self.k_anneal_share <= 1:
            raise ValueError(
                f"k_start must be positive and k_anneal_share in [0, 1], got {self.k_start} and {self.k_anneal_share}"
            )
        if self.k_anneal_shape not in ("linear", "cosine", "exponential"):
            raise ValueError(f"k_anneal_shape is linear, cosine or exponential, not {self.k_anneal_shape!r}")

    def k(self, dictionary: Dictionary, batch: Batch) -> float:
        """Features per token at this moment of the training."""
        config: Any = dictionary.config
        if self.k_start is None:
            return config.k
        start = min(self.k_start, dictionary.d_sae)
        return ramp(batch.progress, start, config.k, self.k_anneal_share, self.k_anneal_shape)

    def revival(self) -> dict[str, tuple[Term, Weight]]:
        """AuxK and Multi-TopK with their weights."""
        terms: dict[str, tuple[Term, Weight]] = {"auxk": (AuxK(self.k_aux), self.aux_coefficient)}
        if self.multi_topk_coefficient:
            terms["multi_topk"] = (MultiTopK(), self.multi_topk_coefficient)
        return terms


class AuxKLoss(SumOfTerms):
    """Normalised squared error plus AuxK (Gao et al. 2024). Both are shares of a variance: weights mean the same at any
    scale."""

    def __init__(self, config: AuxKConfig) -> None:
        self.config = config
        error = {config.reconstruction: (reconstruction_term(config.reconstruction), 1.0)}
        super().__init__(
            merged(error, config.revival(), config.extras()), k=None if config.k_start is None else config.k
        )


@dataclass(frozen=True, kw_only=True)
class PursuitConfig(LossConfig):
    """Settings of the loss of matching pursuit, whose sparsity needs no penalty."""

    reconstruction: str = "nmse"
    revival_coefficient: float = 0.0  # of the term that turns dead features towards the residual

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.revival_coefficient >= 0:
            raise ValueError(f"revival_coefficient must not be negative, got {self.revival_coefficient}")


class PursuitLoss(SumOfTerms):
    """Squared error, with or without a revival of dead features."""

    def __init__(self, config: PursuitConfig) -> None:
        self.config = config
        terms: dict[str, tuple[Term, Weight]] = {
            config.reconstruction: (reconstruction_term(config.reconstruction), 1.0)
        }
        if config.revival_coefficient:
            terms["residual_revival"] = (ResidualRevival(), config.revival_coefficient)
        super().__init__(merged(terms, config.extras()))


def _pre(dictionary: Dictionary, codes: Codes, what: str) -> Tensor:
    require(codes.pre is not None, dictionary, what, ["architectures with an encoder"])
    assert codes.pre is not None
    return codes.pre


def _dead_part(dictionary: Dictionary, codes: Codes, rows: Tensor, what: str) -> tuple[Tensor, Tensor]:
    require(getattr(codes, "pre", codes) is not None, dictionary, what, ["architectures with an encoder"])
    return codes.dead_part(dictionary, rows)
