"""Losses in which prefixes of the dictionary reconstruct by themselves: Matryoshka and Ordered.

Codes are chosen once, over the whole dictionary; a prefix keeps those of its features. With x_hat_l the reconstruction
from the first l features::

    Matryoshka   mean over some prefixes l of |x - x_hat_l|^2         fixed ones (Bussmann et al. 2025, arXiv
    2503.17547)
                                                                    or drawn anew in every step (Nabeshima 2024)
    Ordered      sum over all l of p(l) |x - x_hat_l|^2              Wang et al. 2025, arXiv 2512.02194

A token with m firings has only m + 1 different reconstructions, so the Ordered sum needs no loop over prefixes: with
its features in rising order i_1 < ... < i_m, residuals r_j after the first j of them and C(l) = p(1) + ... + p(l), it
is

    C(i_1 - 1) |r_0|^2 + sum_j (C(i_{j+1} - 1) - C(i_j - 1)) |r_j|^2,      C(i_{m+1} - 1) = 1

which costs O(m d) per token. Nothing is detached: what early features do wrong, later ones can not excuse.

B  tokens, m  firings per token, d  width, K = d_sae.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from saescope.dictionaries import Dictionary, Matryoshka
from saescope.training.losses.auxiliary import AuxKConfig
from saescope.training.losses.base import Batch, Codes, SumOfTerms, Term, merged
from saescope.training.losses.sparse_pass import SparsePass
from saescope.training.schedules import ramp

_MAX_ROWS = 1 << 16  # decoder rows gathered at once by the Ordered loss


@dataclass(frozen=True, kw_only=True)
class MatryoshkaLossConfig(AuxKConfig):
    """Settings of the Matryoshka loss."""

    prefixes: str = "fixed"  # "fixed": those of the dictionary; "random": drawn in every step
    num_prefixes: int = 10  # of "random", the whole dictionary included
    widths: tuple[int, ...] = ()  # fixed prefixes for a dictionary that has none of its own
    prefix_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefixes not in ("fixed", "random"):
            raise ValueError(f"prefixes are 'fixed' or 'random', not {self.prefixes!r}")
        if self.num_prefixes < 1:
            raise ValueError(f"num_prefixes must be at least 1, got {self.num_prefixes}")

    def widths_at(self, dictionary: Dictionary, step: int) -> list[int]:
        """Prefix lengths of a step, rising; the last is ``d_sae``."""
        if self.prefixes == "random":
            return random_prefixes(dictionary.d_sae, self.num_prefixes, seed=self.prefix_seed, step=step)
        own = dictionary.config.widths if isinstance(dictionary, Matryoshka) else ()
        if not (self.widths or own):
            raise ValueError(f"a {dictionary.architecture} dictionary has no prefixes; name them in the loss as widths")
        widths = sorted({*(self.widths or own), dictionary.d_sae})
        if not widths[0] >= 1 or widths[-1] > dictionary.d_sae:
            raise ValueError(f"widths must lie between 1 and d_sae = {dictionary.d_sae}, got {widths}")
        return widths


@dataclass(frozen=True, kw_only=True)
class OrderedConfig(AuxKConfig):
    """Settings of the Ordered loss."""

    exponent: float = 1.2  # the prefix of length l has weight proportional to l^-exponent
    k_start_times: float = 4.0  # k_start where that is left out, in multiples of k; the paper starts at d_sae
    k_anneal_share: float = 0.3
    sweep_start: float | None = None  # unit sweeping from this share of the training on: features freeze one by one
    sweep_end: float = 1.0  # the share at which all but the last are frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exponent >= 0 or not self.k_start_times > 0:
            raise ValueError(
                "exponent must not be negative and k_start_times must be positive, "
                f"got {self.exponent} and {self.k_start_times}"
            )
        if self.sweep_start is not None and not 0 <= self.sweep_start < self.sweep_end <= 1:
            raise ValueError(
                f"sweep_start and sweep_end are rising shares of the training, got {self.sweep_start}, {self.sweep_end}"
            )

    def k(self, dictionary: Dictionary, batch: Batch) -> float:
        k: float = dictionary.config.k  # type: ignore[attr-defined]
        start = min(dictionary.d_sae, self.k_start or self.k_start_times * k)
        return ramp(batch.progress, start, k, self.k_anneal_share, self.k_anneal_shape)


def random_prefixes(d_sae: int, num_prefixes: int, *, seed: int, step: int) -> list[int]:
    """Distinct prefix lengths, rising, the last d_sae; the others drawn with p(l) proportional to sqrt(l) - sqrt(l -
    1)."""
    lengths = torch.arange(1, d_sae, dtype=torch.float64)
    if not len(lengths):
        return [d_sae]
    digest = hashlib.sha256(f"{seed},{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    weights = lengths.sqrt() - (lengths - 1).sqrt()
    num_drawn = min(num_prefixes - 1, len(lengths))
    drawn = torch.multinomial(weights, num_drawn, generator=generator).tolist() if num_drawn else []
    return [*sorted(i + 1 for i in drawn), d_sae]


class NestedError(Term):
    """Mean over prefixes of the squared error of each, or of that as a share of variance."""

    runs_sparse = True

    def __init__(self, config: MatryoshkaLossConfig) -> None:
        self.config = config

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        widths = self.config.widths_at(dictionary, batch.step)
        error = codes.prefix_errors(dictionary, batch, widths).mean()
        return error / spread(batch.target) if self.config.reconstruction == "nmse" else error


class OrderedError(Term):
    """Expected squared error over prefixes, or that as a share of variance."""

    runs_sparse = True

    def __init__(self, config: OrderedConfig) -> None:
        self.config = config

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        lengths = torch.arange(1, dictionary.d_sae + 1, dtype=torch.float64, device=batch.x.device)
        weights = lengths.pow(-self.config.exponent)
        probabilities = weights / weights.sum()
        if isinstance(codes, SparsePass):
            error = codes.expected_prefix_error(batch, probabilities)
        else:
            residual = batch.target - dictionary.offset(batch.x)
            error = expected_prefix_error(residual, codes.f, dictionary.W_dec, probabilities)
        return error / spread(batch.target) if self.config.reconstruction == "nmse" else error


def expected_prefix_error(residual: Tensor, f: Tensor, rows: Tensor, probabilities: Tensor) -> Tensor:
    """mean over tokens of sum_l p(l) |r_0 - sum_{i <= l} f_i d_i|^2, over all K prefixes, exactly.

    Args:
        residual: r_0, what there is to rebuild, ``[B, d]``.
        f: activations, ``[B, K]``, few of them not zero. rows: decoder rows d_i, ``[K, d]``.
        probabilities: p(l) of the prefix of length l = 1 ... K, float64; they add up to 1.
    """
    m = max(1, int(f.detach().count_nonzero(-1).max())) if len(f) else 1
    # the m slots of each token hold its firings in rising order of feature; empty slots come last, with value 0
    order = torch.where(f.detach() != 0, torch.arange(f.shape[-1], device=f.device), f.shape[-1])
    indices = order.topk(m, dim=-1, largest=False, sorted=True).values  # [B, m]
    empty = indices == f.shape[-1]
    features = indices.masked_fill(empty, 0)
    values = f.gather(-1, features).masked_fill(empty, 0)
    cumulative = torch.cat([probabilities.new_zeros(1), probabilities.cumsum(0)])  # C(0) ... C(K)
    cumulative[-1] = 1.0
    # C(i - 1) for the 1-based feature number i is cumulative[feature]; for an empty slot it is C(K) = 1
    before = cumulative[indices]  # [B, m]
    shares = torch.diff(before, dim=-1, append=before.new_ones(len(f), 1)).to(
        residual.dtype
    )  # weight of |r_j|^2, j = 1 ... m
    nothing = before[:, 0].to(residual.dtype) * residual.square().sum(-1)  # r_0
    step = max(1, _MAX_ROWS // m)
    parts = []
    for i in range(0, len(f), step):
        part = (residual[i : i + step], values[i : i + step], features[i : i + step], shares[i : i + step], rows)
        # what a chunk holds is d times its codes: many chunks are computed again on the way back instead of kept
        parts.append(
            _weighted_errors(*part) if step >= len(f) else checkpoint(_weighted_errors, *part, use_reentrant=False)
        )
    return (nothing + torch.cat(parts)).mean()


def _weighted_errors(residual: Tensor, values: Tensor, features: Tensor, shares: Tensor, rows: Tensor) -> Tensor:
    contributions = values[..., None] * rows[features]  # [B, m, d]
    residuals = residual[:, None] - contributions.cumsum(1)
    return (residuals.square().sum(-1) * shares).sum(-1)


def spread(target: Tensor) -> Tensor:
    """Variance of the target, summed over width: mean over tokens of |target - mean|^2."""
    return (target - target.mean(0)).square().sum(-1).mean().clamp_min(1e-12)


class MatryoshkaLoss(SumOfTerms):
    """Nested errors plus AuxK."""

    def __init__(self, config: MatryoshkaLossConfig) -> None:
        self.config = config
        super().__init__(
            merged({"nested": (NestedError(config), 1.0)}, config.revival(), config.extras()),
            k=None if config.k_start is None else config.k,
        )


class OrderedLoss(SumOfTerms):
    """Expected error over all prefixes plus AuxK, with a warm-up of k and unit sweeping."""

    def __init__(self, config: OrderedConfig) -> None:
        self.config = config
        terms = merged({"ordered": (OrderedError(config), 1.0)}, config.revival(), config.extras())
        super().__init__(terms, k=config.k)

    def frozen_share(self, progress: float) -> float:
        """Units freeze in order, evenly between ``sweep_start`` and ``sweep_end``: the share that stands still."""
        start, end = self.config.sweep_start, self.config.sweep_end
        return 0.0 if start is None else min(1.0, max(0.0, (progress - start) / (end - start)))
