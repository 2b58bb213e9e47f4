"""Direct logit attribution: which tokens a feature's decoder row pushes up and down, straight through the unembedding.

The row goes through the final norm with its scale frozen at 1 and its gain applied (centred first for a LayerNorm), then
through the unembedding; the mean over the vocabulary is taken off, because a constant changes no probability. So values
rank tokens and compare features of one dictionary; divided by the final norm's scale on a given token they are that token's
change in logit per unit of activation. Biases have no part in it. Later layers and any soft-capping are left out, as in all
such attributions.

The product ``[d_sae, V]`` would be gigabytes. It is made a chunk of rows at a time, and each row is reduced to what is kept
of it while it is at hand.

d_in  width of the residual stream, V  vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saescope.store.records import Histogram

if TYPE_CHECKING:
    from saescope.models.language_model import Unembedding

NUM_BINS = 50
_CHUNK_BYTES = 1 << 27  # of effects held at a time: 667 rows of 50,257 tokens, 131 of 256,000
_TILE_BYTES = 1 << 25  # of the unembedding in another dtype than its own


@dataclass(frozen=True)
class LogitEffects:
    """The effects of one feature on the vocabulary: the strongest, and how all of them are distributed.

    All values but ``mean`` have the mean over the vocabulary taken off.
    """

    top_ids: list[int]
    """Tokens pushed up most, strongest first; of equal effects the lower id is first."""
    top_values: list[float]
    bottom_ids: list[int]
    """Tokens pushed down most, strongest first; of equal effects the lower id is first."""
    bottom_values: list[float]
    mean: float
    """Of the effects before anything was taken off: what was taken off."""
    std: float
    """Standard deviation over the vocabulary (its number of tokens as the divisor)."""
    skew: float | None
    """Third central moment over ``std**3``; None where all effects are equal, as those of a row of zeros."""
    kurtosis: float | None
    """Fourth central moment over ``std**4``, 3 for a normal distribution; None where all effects are equal."""
    histogram: Histogram
    """Number of tokens in bins of equal width from the least to the largest effect, which lies in the last bin; empty where
    all effects are equal."""


def logit_effects(
    W_dec: Tensor,
    unembedding: Unembedding,
    *,
    num_tokens: int = 10,
    num_bins: int = NUM_BINS,
    dtype: torch.dtype | None = None,
    chunk_rows: int | None = None,
) -> Iterator[LogitEffects]:
    """The effects of every decoder row, ``[d_sae, d_in]``, in order.

    The products are made where the unembedding is and in ``dtype``; moments are summed in float64 in any case, and the mean
    is a product of its own in float64. Memory: one chunk of effects, at most 128 MiB (or one row), whatever the numbers of
    features and tokens.

    Args:
        W_dec: decoder rows as they write to the residual stream: of a crosscoder, those of its last source.
        unembedding: of the model, see ``LanguageModel.unembedding``.
        num_tokens: tokens kept in each direction; all of them if the vocabulary has no more. Meant for tens: time grows
            with its square in the thousands.
        num_bins: of the histogram.
        dtype: of the products, ``torch.float32`` or ``torch.float64``; by default float64 if the unembedding is float64.
        chunk_rows: rows done together; by default as many as the memory above allows. It changes no more than rounding.

    Raises:
        ValueError: the rows are not as wide as the unembedding (the hook point does not write to the residual stream);
            rows or the unembedding hold NaN or infinity; numbers below 1; another dtype.
    """
    for name, value in (("num_tokens", num_tokens), ("num_bins", num_bins), ("chunk_rows", chunk_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dtype is None:
        dtype = torch.float64 if unembedding.weight.dtype == torch.float64 else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logit effects are computed in torch.float32 or torch.float64, not in {dtype}")
    vocab, width = unembedding.weight.shape
    if W_dec.ndim != 2 or W_dec.shape[-1] != width:
        raise ValueError(
            f"decoder rows of width {W_dec.shape[-1]} cannot go through an unembedding of width "
            f"{width}; logit effects need a hook point of the residual stream"
        )
    if not all(rows.isfinite().all() for rows in W_dec.split(4096)):
        bad = int((~W_dec.isfinite().all(-1)).nonzero()[0])
        raise ValueError(f"decoder row {bad} holds NaN or infinity, so it has no logit effects; check the dictionary")
    mean_row = _mean_row(unembedding.weight)
    if not mean_row.isfinite().all():
        raise ValueError("the unembedding holds NaN or infinity: there are no logit effects; check the model")
    chunk_rows = chunk_rows or max(1, _CHUNK_BYTES // (vocab * dtype.itemsize))
    return _effects(W_dec, unembedding, mean_row, min(num_tokens, vocab), num_bins, dtype, chunk_rows)


@torch.no_grad()
def _effects(
    W_dec: Tensor,
    unembedding: Unembedding,
    mean_row: Tensor,
    num_tokens: int,
    num_bins: int,
    dtype: torch.dtype,
    chunk_rows: int,
) -> Iterator[LogitEffects]:
    from saescope.analysis.loops import in_parts, shapes_of_rows  # compiled code is loaded when it is needed

    weight = unembedding.weight
    product = torch.empty(min(chunk_rows, len(W_dec)), len(weight), dtype=dtype, device=weight.device)
    for chunk in W_dec.split(chunk_rows) if len(W_dec) else ():
        n = len(chunk)
        rows = _through_norm(chunk, unembedding)
        effects = _times_unembedding(rows.to(dtype), weight, product[:n]).cpu().numpy()  # [n, V]
        means = (rows @ mean_row).cpu().numpy()  # [n]
        keys = np.empty((2, n, num_tokens), dtype=effects.dtype)
        ids = np.empty((2, n, num_tokens), dtype=np.int64)
        powers, edges = np.empty((n, 3)), np.empty((n, num_bins + 1))
        counts = np.empty((n, num_bins), dtype=np.int64)
        in_parts(shapes_of_rows, n, effects, means, keys, ids, powers, edges, counts)
        top = keys[0] - means[:, None]
        bottom = -keys[1].astype(np.float64) - means[:, None]
        for i in range(n):
            second, third, fourth = powers[i].tolist()
            spread = second > 0
            yield LogitEffects(
                top_ids=ids[0, i].tolist(),
                top_values=top[i].tolist(),
                bottom_ids=ids[1, i].tolist(),
                bottom_values=bottom[i].tolist(),
                mean=float(means[i]),
                std=second**0.5,
                skew=third / second**1.5 if spread else None,
                kurtosis=fourth / second**2 if spread else None,
                histogram=Histogram(edges=tuple(edges[i].tolist()), counts=tuple(counts[i].tolist()))
                if spread
                else Histogram(),
            )


@torch.no_grad()
def through_unembedding(rows: Tensor, unembedding: Unembedding, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Directions of the residual stream, ``[n, d_in]``, as centred logits, ``[n, V]``: the effects of a few rows, whole."""
    through = _through_norm(rows, unembedding)
    logits = torch.empty(len(rows), len(unembedding.weight), dtype=dtype, device=unembedding.weight.device)
    _times_unembedding(through.to(dtype), unembedding.weight, logits)
    return logits - (through @ _mean_row(unembedding.weight))[:, None].to(dtype)


def _through_norm(rows: Tensor, unembedding: Unembedding) -> Tensor:
    """Rows as the final norm with its scale at 1 lets them through, in float64, where the unembedding is."""
    rows = rows.detach().to(unembedding.weight.device, torch.float64)
    if unembedding.norm_kind == "layer_norm":
        rows = rows - rows.mean(-1, keepdim=True)
    return rows if unembedding.norm_weight is None else rows * unembedding.norm_weight.double()


def _mean_row(weight: Tensor) -> Tensor:
    """The mean row of the unembedding, ``[d_in]``, in float64, without a copy of it all."""
    tiles = weight.detach().split(_tile(weight, torch.float64))
    return sum((tile.double().sum(0) for tile in tiles), torch.zeros(())) / len(weight)


def _times_unembedding(rows: Tensor, weight: Tensor, product: Tensor) -> Tensor:
    """``rows @ weight.T`` into ``product``; a weight of another dtype is converted tile by tile."""
    if weight.dtype == rows.dtype:
        return torch.mm(rows, weight.T, out=product)
    size = _tile(weight, rows.dtype)
    for first, tile in zip(range(0, len(weight), size), weight.split(size), strict=True):
        product[:, first : first + size] = rows @ tile.to(rows.dtype).T
    return product


def _tile(weight: Tensor, dtype: torch.dtype) -> int:
    """Rows of the unembedding that are converted to ``dtype`` at a time."""
    return max(1, _TILE_BYTES // (weight.shape[1] * dtype.itemsize))
