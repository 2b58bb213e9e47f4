"""The numbers that users rank dictionaries by, as plain formulas on tensors.

Every sum is kept in float64, whatever the tensors' dtype, and every number says which variant it is where the field has
several. The streaming meters give what the plain formula gives on all tokens at once; the tests hold them to that.

B  tokens, d_in  activation width, d_sae  features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# float64 sums of equal numbers leave this much of their squared norm where a squared distance should be 0
_ROUNDING = 1e-26


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """Share of the activations' variance that the reconstruction explains, 1 - E|x - x_hat|^2 / E|x - mean|^2.

    The mean is taken per dimension over all tokens. 1 is perfect, 0 is no better than always answering the mean,
    and a bad reconstruction is below 0.

    Args:
        x: activations, ``[B, d_in]``.
        x_hat: reconstructions, ``[B, d_in]``.
    """
    return _measure(x, x_hat).explained_variance


def explained_variance_legacy(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of 1 - |x - x_hat|^2 / |x - batch mean|^2: the figure of older published tables.

    A mean of ratios: tokens near the mean dominate it, and it depends on how tokens were batched. For comparison only.
    Tokens at the mean itself (such as the only one of a batch) have no ratio and are left out.
    """
    return _measure(x, x_hat).explained_variance_legacy


def loss_recovered(loss_clean: float, loss_spliced: float, loss_ablated: float) -> float:
    """Share of the damage of an ablation that the dictionary undoes: (ablated - spliced) / (ablated - clean).

    1: the model predicts as well with reconstructions as with its own activations. 0: as badly as with the ablation.
    Works for cross-entropy and for the KL divergence (whose clean value is 0).

    Raises:
        ValueError: when the ablation does no damage, so that there is nothing to recover.
    """
    damage = loss_ablated - loss_clean
    if not damage > 0:
        raise ValueError(
            f"loss recovered is undefined: the ablation does not raise the loss ({loss_clean:.4f} clean, "
            f"{loss_ablated:.4f} ablated). The model may ignore this hook point, or there are too few tokens."
        )
    return (loss_ablated - loss_spliced) / damage


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well activations are rebuilt, over all tokens that a meter has seen; nan where a number is undefined."""

    num_tokens: int
    explained_variance: float
    explained_variance_legacy: float  # per-token ratios against each batch's mean
    cosine: float  # mean cosine of x and x_hat, 0 where one of them is 0
    mse: float  # mean over tokens of |x - x_hat|^2
    l2_ratio: float  # mean over tokens of |x_hat| / |x|, without tokens where x is 0


class _Mean:
    """The mean of numbers that come in batches."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.sum += float(values.sum())
        self.count += len(values)

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else float("nan")


class ReconstructionMeter:
    """Sums for :class:`Reconstruction`, batch by batch.

    Sums of squares are taken around the first batch's mean: against the origin, the difference of two large numbers
    would cost the digits that matter when activations have a large mean.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._pilot: Tensor | None = None
        self._sum: Tensor = torch.zeros(())  # of x - pilot, [d_in]
        self._square, self._error, self._legacy, self._cosine, self._ratio = (_Mean() for _ in range(5))

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add a batch of activations and reconstructions, both ``[B, d_in]``."""
        if x.shape != x_hat.shape or x.ndim != 2:
            raise ValueError(
                f"expected two tensors [B, d_in] of one shape, got {list(x.shape)} and {list(x_hat.shape)}"
            )
        if not len(x):
            return
        x, x_hat = x.detach().double(), x_hat.detach().double()
        if self._pilot is None:
            self._pilot = x.mean(0)
            self._sum = torch.zeros_like(self._pilot)
        centred = x - self._pilot
        error, spread = (x - x_hat).square().sum(-1), (x - x.mean(0)).square().sum(-1)  # [B]
        norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)
        at_the_mean = spread <= _ROUNDING * norm.square()
        self.num_tokens += len(x)
        self._sum += centred.sum(0)
        self._square.add(centred.square().sum(-1))
        self._error.add(error)
        self._legacy.add((1 - error / spread)[~at_the_mean])
        self._cosine.add((x * x_hat).sum(-1) / (norm * norm_hat).clamp_min(1e-300))
        self._ratio.add((norm_hat / norm)[norm != 0])

    @property
    def mean(self) -> Tensor:
        """Mean activation over all tokens, ``[d_in]``, float64."""
        if self._pilot is None:
            raise ValueError("no tokens were measured; give the meter at least one batch")
        return self._pilot + self._sum / self.num_tokens

    def result(self) -> Reconstruction:
        if self._pilot is None:
            raise ValueError("no tokens were measured; give the meter at least one batch")
        variance = self._square.value - float((self._sum / self.num_tokens).square().sum())
        varies = variance > _ROUNDING * float(self._pilot.square().sum())
        return Reconstruction(
            num_tokens=self.num_tokens,
            explained_variance=1 - self._error.value / variance if varies else float("nan"),
            explained_variance_legacy=self._legacy.value,
            cosine=self._cosine.value,
            mse=self._error.value,
            l2_ratio=self._ratio.value,
        )


def _measure(x: Tensor, x_hat: Tensor) -> Reconstruction:
    meter = ReconstructionMeter()
    meter.update(x, x_hat)
    return meter.result()


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """How many features fire, over all tokens that a meter has seen."""

    num_tokens: int
    l0: float  # mean number of features that fire on a token
    dead_share: float  # share of features without a firing
    dense_share: float  # share of features that fire on more than a tenth of the tokens


class FiringMeter:
    """Counts firings (activation not 0) per feature; ``counts`` is ``[d_sae]``, int64."""

    DENSE_ABOVE = 0.1

    def __init__(self, d_sae: int) -> None:
        self.num_tokens = 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64)

    def update(self, fired: Tensor, num_tokens: int) -> None:
        """Add the feature index of every firing (any shape) among ``num_tokens`` tokens."""
        self.num_tokens += num_tokens
        self.counts += torch.bincount(fired.flatten().cpu(), minlength=len(self.counts))

    @property
    def density(self) -> Tensor:
        """Share of tokens on which each feature fires, ``[d_sae]``, float64."""
        return self.counts.double() / max(self.num_tokens, 1)

    def result(self) -> Sparsity:
        if not self.num_tokens:
            raise ValueError("no tokens were measured; give the meter at least one batch")
        return Sparsity(
            num_tokens=self.num_tokens,
            l0=float(self.counts.sum()) / self.num_tokens,
            dead_share=float((self.counts == 0).double().mean()),
            dense_share=float((self.density > self.DENSE_ABOVE).double().mean()),
        )
