"""The sparse arithmetic in plain torch: what the fast kernels must compute, written to be read.

Everything here works on any device and in any floating dtype and allocates ``[B, d_sae]`` where it likes. The fast
implementations (``cpu.py``, ``gpu.py``) have the same functions with the same arguments.

B  tokens, d  width, d_sae  features, n  entries of sparse codes, L  nested prefixes of the dictionary (1: all of it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from saescope.kernels.codes import FlatCodes
from saescope.kernels.signature import AdamStep, Gradients


def topk(x: Tensor, rows: Tensor, bias: Tensor | None, k: int) -> FlatCodes:
    """The k largest pre-activations ``x @ rows.T + bias`` of each token, as far as they are above 0.

    Args:
        x: encoder input, ``[B, d]``. rows: encoder, ``[d_sae, d]``. bias: ``[d_sae]`` or None.
    """
    pre = _pre(x, rows, bias)
    values, features = pre.topk(min(k, pre.shape[-1]), dim=-1)
    chosen = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, features, values > 0)
    return FlatCodes.from_mask(pre, chosen)


def batch_topk(x: Tensor, rows: Tensor, bias: Tensor | None, count: int) -> FlatCodes:
    """The ``count`` largest pre-activations of the whole batch, as far as they are above 0."""
    flat = _pre(x, rows, bias).flatten()
    values, places = flat.topk(min(count, len(flat)))
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(0, places, values > 0)
    shape = (len(x), len(rows))
    return FlatCodes.from_mask(flat.view(shape), chosen.view(shape))


def above(x: Tensor, rows: Tensor, bias: Tensor | None, floor: Tensor, limit: int) -> FlatCodes | None:
    """All pre-activations above ``floor`` ``[d_sae]``; None where they are more than ``limit`` in all."""
    pre = _pre(x, rows, bias)
    chosen = pre > floor
    return None if int(chosen.sum()) > limit else FlatCodes.from_mask(pre, chosen)


def decode(codes: FlatCodes, rows: Tensor, offset: Tensor, widths: Sequence[int]) -> Tensor:
    """Reconstructions ``offset + sum of values times rows`` from the first ``widths[l]`` features: ``[L, B, d]``.

    Args:
        rows: decoder, ``[d_sae, d]``. offset: ``[d]``. widths: rising, the last is d_sae.
    """
    f = codes.to_dense()
    return torch.stack([offset + f[:, :width] @ rows[:width] for width in widths])


def gradients(
    codes: FlatCodes,
    direct: Tensor | None,
    g: Tensor | None,
    x: Tensor,
    decoder: Tensor,
    widths: Sequence[int],
    out: Gradients,
    *,
    unit_norm: bool,
    kept: Tensor | None = None,
) -> Tensor:
    """Gradients of encoder and decoder from the entries alone; fills ``out`` and gives those of the values, ``[n]``.

    Args:
        direct: gradients of the loss in the values beside those through reconstructions, ``[n]`` or None.
        g: gradients of the loss in the reconstructions of :func:`decode`, ``[L, B, d]``; None where ``out.decoder``
            holds the decoder's gradient already, and ``direct`` that of the values.
        x: encoder input, ``[B, d]``. decoder: ``[d_sae, d]``. widths: as in :func:`decode`.
        unit_norm: take from each decoder row's gradient the part along the row.
        kept: features (bool, ``[d_sae]``) to whose rows in ``out`` gradients are added; the others are written over.
    """
    token, feature = codes.tokens, codes.features.long()
    d_values = torch.zeros_like(codes.values) if direct is None else direct
    found = {}
    if g is not None:
        # a feature is in every prefix that is longer than its number: it sees the sum of their gradients
        sums = g.flip(0).cumsum(0).flip(0)  # [L, B, d]
        prefix = torch.searchsorted(torch.tensor(widths, device=g.device), feature, right=True)
        seen = sums[prefix, token]  # [n, d]
        d_values = d_values + (seen * decoder[feature]).sum(-1)
        found["decoder"] = seen * codes.values[:, None]
    d_pre = torch.where(codes.values > 0, d_values, 0)  # what did not fire passes nothing on to the encoder
    found["encoder"], found["bias"] = x[token] * d_pre[:, None], d_pre
    for name, rows in found.items():
        target: Tensor = getattr(out, name)
        old = 0 if kept is None else target.where(kept if target.ndim == 1 else kept[:, None], 0)
        target.copy_(torch.zeros_like(target).index_add(0, feature, rows) + old)
    if unit_norm:
        directions = torch.nn.functional.normalize(decoder, dim=-1)
        out.decoder.sub_((out.decoder * directions).sum(-1, keepdim=True) * directions)
    out.squares[0] = out.decoder.double().square().sum()
    out.squares[1] = out.encoder.double().square().sum()
    return d_values


def ordered_errors(codes: FlatCodes, residual: Tensor, decoder: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The expected error over all prefixes of each token, ``[B]``, and what the whole dictionary leaves, ``[B, d]``.

    With a token's features in rising order i_1 < ... < i_m, r_0 its row of ``residual`` and r_j what is left of it
    after j of them, the error is ``before[i_1] |r_0|^2 + sum_j (before[i_(j+1)] - before[i_j]) |r_j|^2`` where
    ``before[i_(m+1)] = 1`` (see ``training/losses/nested.py``).

    Args:
        residual: what there is to rebuild, ``[B, d]``. decoder: ``[d_sae, d]``.
        before: probability of a prefix that ends before a feature, float64, ``[d_sae]``.
    """
    errors, left = residual.new_zeros(len(residual)), residual.clone()
    for b, (entries, shares) in enumerate(_chains(codes, before)):
        errors[b] = shares[0] * left[b].square().sum()
        for e, share in zip(entries, shares[1:], strict=True):
            left[b] -= codes.values[e] * decoder[codes.features[e]]
            errors[b] += share * left[b].square().sum()
    return errors, left


def ordered_gradients(
    codes: FlatCodes, left: Tensor, decoder: Tensor, before: Tensor, scale: float, d_decoder: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``scale`` times the sum of :func:`ordered_errors` over tokens.

    Args:
        left: what the whole dictionary leaves, ``[B, d]``.
        d_decoder: ``[d_sae, d]``, written over with the decoder's gradient.

    Returns:
        those of the values, ``[n]``, and of the residual, ``[B, d]``.
    """
    d_values, d_residual = torch.zeros_like(codes.values), torch.zeros_like(left)
    d_decoder.zero_()
    for b, (entries, shares) in enumerate(_chains(codes, before)):
        r = left[b].clone()
        pull = torch.zeros_like(r)  # the gradient in all residuals from the j-th on
        for e, share in zip(reversed(entries), reversed(shares[1:]), strict=True):
            feature = int(codes.features[e])
            pull += 2 * scale * share * r
            d_values[e] = -(pull @ decoder[feature])
            d_decoder[feature] -= codes.values[e] * pull
            r += codes.values[e] * decoder[feature]
        d_residual[b] = pull + 2 * scale * shares[0] * r
    return d_values, d_residual


def _chains(codes: FlatCodes, before: Tensor) -> Iterator[tuple[range, list[float]]]:
    """Of each token: its entries, and the weights of r_0 ... r_m."""
    starts = codes.starts.tolist()
    for first, last in pairwise(starts):
        marks = [*before[codes.features[first:last].long()].tolist(), 1.0]
        yield range(first, last), [marks[0], *(b - a for a, b in pairwise(marks))]


def adam(weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor, how: AdamStep) -> None:
    """One step of Adam on a matrix with a row per feature, in place, as torch.optim.Adam makes it."""
    gradient = gradient * how.gradient_factor
    m.lerp_(gradient, 1 - how.beta1)
    v.mul_(how.beta2).addcmul_(gradient, gradient, value=1 - how.beta2)
    denominator = v.sqrt() / (1 - how.beta2**how.step) ** 0.5 + how.eps
    moved = weights - how.lr / (1 - how.beta1**how.step) * m / denominator
    if how.unit_norm:
        moved /= moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    weights.copy_(moved)


def _pre(x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, rows, bias)
