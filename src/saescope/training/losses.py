"""What a dictionary is asked to minimise.

A loss is a small class with a config; it takes the dictionary and a batch and gives the total with its parts by name. The
architecture decides which loss trains it (``loss_for``); a loss never changes the dictionary's function.

B  tokens, d_in  activation width, d_sae  features. Activations arrive scaled so that their mean norm is sqrt(d_in).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Dictionary, ReLU, TopK


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch: ``total`` (with graph), its parts by name, and which features fired."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars
    fired: Tensor | None = None  # bool, [d_sae]
    l0: Tensor | None = None  # detached scalar


class Loss(ABC):
    """A loss of one architecture."""

    @abstractmethod
    def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
        """The loss on ``x``, ``[B, d_in]``.

        Args:
            dead: bool ``[d_sae]``, features that have not fired for ``dead_after_tokens``.
            progress: share of the training done, 0 to 1, for schedules of coefficients.
        """


@dataclass(frozen=True, kw_only=True)
class L1Config:
    """Settings of the L1 penalty."""

    l1_coefficient: float = 5.0  # of mean over tokens of sum f |W_dec row|, beside the squared error summed over d_in
    warmup_share: float = 0.05  # the coefficient rises linearly over this share of the training

    def __post_init__(self) -> None:
        if not self.l1_coefficient >= 0 or not 0 <= self.warmup_share <= 1:
            raise ValueError(
                f"l1_coefficient must not be negative and warmup_share must lie in [0, 1], "
                f"got {self.l1_coefficient} and {self.warmup_share}"
            )


class L1Loss(Loss):
    """Squared error plus L1 penalty weighted by decoder norms: mean_B |x - x_hat|^2 + lambda mean_B sum_i f_i |W_dec_i|."""

    def __init__(self, config: L1Config) -> None:
        self.config = config

    def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
        f = dictionary.encode(x)
        error = (dictionary.decode(f) - x).square().sum(-1).mean()
        l1 = (f @ dictionary.decoder_norms).mean()
        rise = min(1.0, progress / self.config.warmup_share) if self.config.warmup_share else 1.0
        return LossTerms(
            error + self.config.l1_coefficient * rise * l1,
            {"mse": error.detach(), "l1": l1.detach()},
            *_firing(f.detach()),
        )


@dataclass(frozen=True, kw_only=True)
class AuxKConfig:
    """Settings of the TopK loss."""

    aux_coefficient: float = 1 / 32  # weight of the auxiliary loss that revives dead features
    k_aux: int | None = None  # dead features that may help on a token; d_in / 2 when left out

    def __post_init__(self) -> None:
        if not self.aux_coefficient >= 0 or (self.k_aux is not None and self.k_aux < 1):
            raise ValueError(
                f"aux_coefficient must not be negative and k_aux must be at least 1, "
                f"got {self.aux_coefficient} and {self.k_aux}"
            )


class AuxKLoss(Loss):
    """Normalised squared error plus AuxK (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    The k_aux strongest dead features of each token reconstruct what the living ones left over; its gradient reaches both
    their encoder and their decoder. Both terms are shares of a variance, so the coefficient means the same at any scale.
    """

    def __init__(self, config: AuxKConfig) -> None:
        self.config = config

    def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
        pre = dictionary.pre_activations(x)  # [B, d_sae]
        f = dictionary.activate(pre)
        x_hat = dictionary.decode(f)
        error = _share_of_variance(x_hat, x)
        auxiliary = self._auxiliary(dictionary, pre, (x - x_hat).detach(), dead)
        return LossTerms(
            error + self.config.aux_coefficient * auxiliary,
            {"nmse": error.detach(), "auxk": auxiliary.detach()},
            *_firing(f.detach()),
        )

    def _auxiliary(self, dictionary: Dictionary, pre: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        rows = dead.nonzero().squeeze(-1)
        if not len(rows):
            return pre.new_zeros(())
        k_aux = min(self.config.k_aux or max(1, dictionary.d_in // 2), len(rows))
        values, slots = pre[:, rows].topk(k_aux, dim=-1, sorted=False)
        f = pre.new_zeros(len(pre), len(rows)).scatter(-1, slots, F.relu(values))
        return _share_of_variance(f @ dictionary.W_dec[rows], residual)  # no bias: the residual has none


def _firing(f: Tensor) -> tuple[Tensor, Tensor]:
    """Which features fired in a batch of activations ``[B, d_sae]``, and how many per token."""
    return f.amax(0) > 0, f.count_nonzero() / len(f)  # both many times faster than sums over a mask


def _share_of_variance(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-12)


_LOSSES: dict[type[Dictionary], tuple[type, type]] = {ReLU: (L1Config, L1Loss), TopK: (AuxKConfig, AuxKLoss)}


def loss_config_type(architecture: type[Dictionary]) -> type:
    """The config class of the loss that trains an architecture."""
    for cls in architecture.__mro__:
        if cls in _LOSSES:
            return _LOSSES[cls][0]
    known = ", ".join(sorted(cls.__name__ for cls in _LOSSES))
    raise ValueError(
        f"no loss is known for {architecture.__name__}; known are those of {known}. Pass a Loss to train()."
    )


def loss_for(dictionary: Dictionary, settings: Mapping[str, Any] | None = None) -> Loss:
    """The loss that trains this dictionary, with its settings."""
    config_type = loss_config_type(type(dictionary))
    loss_type = next(loss for config, loss in _LOSSES.values() if config is config_type)
    return loss_type(config_type(**(settings or {})))


def scale_to_unit_rms(norms_sum: float, num_tokens: int, d_in: int) -> float:
    """The factor that brings the mean norm of activations to sqrt(d_in)."""
    if not num_tokens or not norms_sum > 0 or not torch.isfinite(torch.tensor(norms_sum)):
        raise ValueError("the activations have no finite, positive norm; is this the right hook point?")
    return d_in**0.5 / (norms_sum / num_tokens)
