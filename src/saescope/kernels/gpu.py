# mypy: disable-error-code="no-untyped-def"
"""The sparse arithmetic on a GPU: torch's matrix products, and Triton for everything around them.

The encoder's product is made for a thousand or two tokens at a time into a block that torch's allocator hands back again
and again: no ``[B, d_sae]`` tensor exists. One program then reads a token's row twice. First it keeps the largest of
every strided group of features: the k-th largest of these is a bound that at least k features reach, and few more. Then
it writes down what reaches the bound, and picks the k largest of that. A row with more candidates than there is room for
(equal numbers everywhere, or winners that all fall into few groups) is counted and done again by sorting: the result is
exact always.

Gradients are made feature by feature from entries sorted by feature. Long columns are cut into pieces whose sums are
added in order. Nothing adds floats atomically: the same input gives the same bits.

With ``bfloat16`` the encoder's product is made in bfloat16, with sums in float32, and asked for a few more candidates
than wanted. Their values are computed again from the float32 weights, and these decide: reconstructions carry no error
of bfloat16, and only selections at the very border can differ from those in float32.

The host waits for the GPU where a number of entries must be known: once in ``topk`` and ``above``, twice or more in
``batch_topk``, nowhere else. Functions have the arguments and results of ``reference.py``; weights must be contiguous.
In Triton's interpreter (``TRITON_INTERPRET=1`` before this is imported) they take tensors on the CPU.

B  tokens, d  width, d_sae  features, n  entries.
"""
# annotations are not postponed here: Triton reads those of kernels

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saescope.kernels.codes import FlatCodes
from saescope.kernels.signature import AdamStep, Gradients

_BLOCK_TOKENS, _BLOCK_NUMBERS = 2048, 1 << 28  # most rows, and most pre-activations, of one encoder product
_LANES = 2048  # groups of features in a search, and numbers read at once
_LONGEST = 256  # entries of a feature that one program adds up
_SPAN = 512  # columns of a product of rows in one program: the rows of all tokens, cut so, stay in the cache
_WIDEST = 4096  # most features of a token that the search finds; more are found by sorting
_SAMPLE = 64  # tokens on which the first bound of a batch is measured
_SPARE = 1024  # room for candidates of a batch, beside twice as many as wanted
_SLAB_NUMBERS = 1 << 26  # of what ordered_gradients holds per entry

_IEEE = {torch.float32: (tl.int32, tl.float32, 31), torch.float64: (tl.int64, tl.float64, 63)}


@torch.no_grad()
def topk(x: Tensor, rows: Tensor, bias: Tensor | None, k: int, *, bfloat16: bool = False) -> FlatCodes:
    num_tokens, d_sae = len(x), len(rows)
    k = min(k, d_sae)
    wide = min(k + max(8, k // 8), d_sae) if bfloat16 and k <= _WIDEST else k
    features = torch.zeros(num_tokens, wide, dtype=torch.int32, device=rows.device)
    values = rows.new_zeros(num_tokens, wide)
    counts = torch.full((num_tokens,), -1, dtype=torch.int32, device=rows.device)  # -1: no room for the candidates
    if k <= _WIDEST:
        lanes = min(max(_LANES, triton.next_power_of_2(4 * wide)), _lanes(d_sae))
        room = max(256, triton.next_power_of_2(3 * wide))
        for begin, pre in _products(x, rows, bias, bfloat16):
            keys, found = torch.empty(2, len(pre), room, dtype=_key_dtype(rows), device=rows.device)
            those = slice(begin, begin + len(pre))
            _launch(
                _select, (len(pre),), pre, keys, found, features[those], values[those], counts[those], d_sae, wide,
                LANES=lanes, ROOM=room, **_kinds(rows), num_warps=8 if lanes <= 2048 else 16,
            )  # fmt: skip
    if bfloat16 and k <= _WIDEST:
        tokens = torch.arange(num_tokens, device=rows.device).repeat_interleave(wide)
        values = _pre_of(x, rows, bias, tokens, features.flatten()).view_as(values)
        features, values, counts = _narrowed(features, values, counts, k)
    num_overfull, num_entries = torch.stack([(counts < 0).sum(), counts.clamp_min(0).sum()]).tolist()
    if num_overfull:
        again = (counts < 0).nonzero().flatten()
        for begin, pre in _products(x[again], rows, bias, False):
            own = again[begin : begin + len(pre)]
            features[own], values[own], counts[own] = _sorted_topk(pre, k)
        num_entries = int(counts.sum())
    return _packed(features, values, counts, num_entries, d_sae)


@torch.no_grad()
def batch_topk(x: Tensor, rows: Tensor, bias: Tensor | None, count: int, *, bfloat16: bool = False) -> FlatCodes:
    count = min(count, len(x) * len(rows))
    wide = min(count + count // 16, len(x) * len(rows)) if bfloat16 else count
    if not count:
        starts = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        return FlatCodes(starts, starts.new_empty(0, dtype=torch.int32), rows.new_empty(0), len(rows))
    room = 2 * wide + _SPARE
    floor = _first_floor(x, rows, bias, wide, bfloat16)
    found = _collect(x, rows, bias, floor, room, bfloat16)
    raised = False
    if found.total < wide and float(floor) > 0:  # the sample was not typical
        floor = torch.zeros_like(floor)
        found = _collect(x, rows, bias, floor, room, bfloat16)
    while found.total > room:  # the wanted are at least as large as those of what did fit
        floor, raised = found.values.sort(descending=True).values[wide - 1], True
        found = _collect(x, rows, bias, floor, room, bfloat16)
    places, values = found.places(len(rows)), found.values
    if raised and found.total < wide:  # the rest are equal to the bound: the first of them
        ties = _collect(x, rows, bias, floor, wide - found.total, bfloat16, equal=True)
        places, order = torch.cat([places, ties.places(len(rows))]).sort()
        values = torch.cat([values, ties.values])[order]
    if len(values) > wide:
        kept = _largest(values, wide)
        places, values = places[kept], values[kept]
    if bfloat16:
        values = _pre_of(x, rows, bias, places // len(rows), places % len(rows))
        kept = _largest(values, count) if len(values) > count else torch.ones_like(values, dtype=torch.bool)
        kept &= values > 0
        places, values = places[kept], values[kept]
    tokens = torch.arange(len(x) + 1, device=x.device)
    starts = torch.searchsorted(places, tokens * len(rows))
    return FlatCodes(starts, (places % len(rows)).int(), values, len(rows))


@torch.no_grad()
def above(
    x: Tensor, rows: Tensor, bias: Tensor | None, floor: Tensor, limit: int, *, bfloat16: bool = False
) -> FlatCodes | None:
    floor = floor.to(rows).expand(len(rows)).contiguous()
    found = _collect(x, rows, bias, floor, limit, bfloat16)
    if found.total > limit:
        return None
    codes = FlatCodes(_starts(found.counts), found.features, found.values, len(rows))
    if not bfloat16:
        return codes
    tokens = _tokens(codes)
    values = _pre_of(x, rows, bias, tokens, codes.features)
    kept = values > floor[codes.features.long()]  # what bfloat16 alone had lifted over the floor goes
    counts = torch.zeros_like(found.counts).index_add(0, tokens, kept.long())
    return FlatCodes(_starts(counts), codes.features[kept], values[kept], len(rows))


@torch.no_grad()
def decode(codes: FlatCodes, rows: Tensor, offset: Tensor, widths: Sequence[int]) -> Tensor:
    num_tokens, d = codes.num_tokens, rows.shape[1]
    out = rows.new_empty(len(widths), num_tokens, d)
    if len(widths) == 1:
        ends = codes.starts[1:]
    else:  # where each token's features leave a prefix, [L, B]
        token = torch.arange(num_tokens, device=rows.device) * codes.d_sae
        places = _tokens(codes) * codes.d_sae + codes.features
        ends = torch.stack([torch.searchsorted(places, token + width) for width in widths])
    columns = _columns_at_once(d)
    _launch(
        _decode, (num_tokens, triton.cdiv(d, columns)), codes.starts, ends, codes.features, codes.values, rows, offset,
        out, num_tokens, d, len(widths), E=8, D=columns,
    )  # fmt: skip
    return out


@torch.no_grad()
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
    d_values = torch.zeros_like(codes.values) if direct is None else direct.clone()
    columns = _by_feature(codes)
    values = codes.values[columns.entries]
    if g is not None:
        sums = g.contiguous()
        source = columns.tokens
        if len(sums) > 1:  # a feature sees every prefix that is longer than its number: rows of [L * B, d]
            sums = sums.flip(0).cumsum(0).flip(0)
            ends = torch.tensor(widths, dtype=torch.int32, device=g.device)
            source = source + codes.num_tokens * torch.searchsorted(ends, columns.features, right=True)
        d_values[columns.entries] += _dots(sums.view(-1, sums.shape[-1]), decoder, source, columns.features)
        _add_up(out.decoder, sums.view(-1, sums.shape[-1]), source, values, columns, kept)
    d_pre = d_values[columns.entries].where(values > 0, 0)  # what did not fire passes nothing on to the encoder
    encoder_squares = _add_up(out.encoder, x.contiguous(), columns.tokens, d_pre, columns, kept)
    ends = columns.starts[1:]
    _launch(_add_numbers, (codes.d_sae,), out.bias, d_pre, columns.starts, ends, _flags(kept, codes.d_sae, x), E=128)
    decoder_squares = decoder.new_empty(codes.d_sae)
    _launch(
        _settle, (codes.d_sae,), out.decoder, decoder, decoder_squares, decoder.shape[1], UNIT_NORM=unit_norm,
        **_one_row(decoder.shape[1]),
    )  # fmt: skip
    out.squares[0] = decoder_squares.double().sum()
    out.squares[1] = encoder_squares.double().sum()
    return d_values


@torch.no_grad()
def ordered_errors(codes: FlatCodes, residual: Tensor, decoder: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, d = residual.shape
    residual, left = residual.contiguous(), residual.new_empty(num_tokens, d)
    shares, tails = _shares(codes, before, 1.0, residual)
    columns = _columns_at_once(d)
    errors = residual.new_empty(triton.cdiv(d, columns), num_tokens)
    _launch(
        _ordered_errors, (num_tokens, len(errors)), codes.starts, codes.features, codes.values, shares, tails, residual,
        decoder, left, errors, num_tokens, d, **_one_row(d),
    )  # fmt: skip
    return errors.sum(0), left


@torch.no_grad()
def ordered_gradients(
    codes: FlatCodes, left: Tensor, decoder: Tensor, before: Tensor, scale: float, d_decoder: Tensor
) -> tuple[Tensor, Tensor]:
    num_tokens, d = left.shape
    num_entries = len(codes.values)
    left, d_residual = left.contiguous(), left.new_empty(num_tokens, d)
    shares, tails = _shares(codes, before, 2 * scale, left)
    columns, by_feature = _columns_at_once(d), _by_feature(codes)
    minus = -codes.values[by_feature.entries]
    dots = left.new_empty(triton.cdiv(d, columns), num_entries)
    # what pulls on every entry is held for some columns at a time: for all it would be [n, d]
    num_blocks = max(1, _SLAB_NUMBERS // (columns * max(1, num_entries)))
    for block in range(0, len(dots), num_blocks):
        some = slice(block * columns, min((block + num_blocks) * columns, d))
        width = some.stop - some.start
        slab = left.new_empty(num_entries, width)
        parts = dots[block : block + num_blocks]
        _launch(
            _ordered_gradients, (num_tokens, len(parts)), codes.starts, codes.features, codes.values, shares, tails,
            left[:, some], decoder[:, some], d_residual[:, some], slab, parts, num_entries, d, width, **_one_row(d),
        )  # fmt: skip
        _add_up(d_decoder[:, some], slab, by_feature.entries, minus, by_feature, None)
    return -dots.sum(0), d_residual


@torch.no_grad()
def adam(weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor, how: AdamStep) -> None:
    factor: float | Tensor = how.gradient_factor
    if isinstance(factor, Tensor):
        factor = factor.to(weights)
    else:
        factor = torch.full((), factor, dtype=weights.dtype, device=weights.device)
    d = weights.shape[1]
    span = d if how.unit_norm else 2048  # columns of a program: all where their norm is asked for
    # differences from 1 are taken here: in float32 the second one would be wrong in the fifth digit
    step_size, correction = how.lr / (1 - how.beta1**how.step), (1 - how.beta2**how.step) ** 0.5
    _launch(
        _adam, (len(weights), triton.cdiv(d, span)), weights, gradient, m, v, factor, how.beta1, 1 - how.beta1,
        how.beta2, 1 - how.beta2, how.eps, step_size, correction, d, span, UNIT_NORM=how.unit_norm, **_one_row(d),
    )  # fmt: skip


# Selections


def _products(x: Tensor, rows: Tensor, bias: Tensor | None, bfloat16: bool) -> Iterator[tuple[int, Tensor]]:
    """Pre-activations of some tokens at a time, in memory that the next ones are written to: first token, ``[b, d_sae]``."""
    dtype = torch.bfloat16 if bfloat16 else rows.dtype
    x, rows = x.to(dtype).contiguous(), rows.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    height = max(1, min(len(x), _BLOCK_TOKENS, _BLOCK_NUMBERS // len(rows)))
    workspace = rows.new_empty(height, len(rows))
    for begin in range(0, len(x), height):
        part = x[begin : begin + height]
        pre = workspace[: len(part)]
        if bias is None:
            torch.mm(part, rows.T, out=pre)
        else:
            torch.addmm(bias, part, rows.T, out=pre)
        yield begin, pre


def _pre_of(x: Tensor, rows: Tensor, bias: Tensor | None, tokens: Tensor, features: Tensor) -> Tensor:
    """Single pre-activations, in the precision of the weights, ``[n]``."""
    values = _dots(x.to(rows.dtype).contiguous(), rows, tokens, features)
    return values if bias is None else values + bias[features.long()]


def _narrowed(features: Tensor, values: Tensor, counts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``[B, wide]`` the k largest above 0 of each token, ``[B, k]``; counts of -1 stay."""
    num_tokens, wide = features.shape
    new_features, new_values = features.new_zeros(num_tokens, k), values.new_zeros(num_tokens, k)
    new_counts = torch.empty_like(counts)
    _launch(
        _choose_rows, (num_tokens,), features, values, counts, new_features, new_values, new_counts, wide, k,
        ROOM=_lanes(wide), **_kinds(values),
    )  # fmt: skip
    return new_features, new_values, new_counts


def _sorted_topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same by sorting whole rows: features and values ``[b, k]``, those in use first, and how many these are."""
    values, features = pre.where(pre > 0, 0).sort(dim=-1, descending=True, stable=True)
    values, features = values[:, :k], features[:, :k]
    counts = (values > 0).sum(-1, dtype=torch.int32)
    # in rising order of feature, those without a value behind
    features, order = features.where(values > 0, pre.shape[1]).sort(dim=-1)
    values = values.gather(-1, order)
    return features.where(values > 0, 0).int(), values, counts


def _packed(features: Tensor, values: Tensor, counts: Tensor, num_entries: int, d_sae: int) -> FlatCodes:
    """Codes of lists ``[B, k]`` of which the first ``counts`` are in use."""
    num_tokens, k = features.shape
    starts = _starts(counts)
    features, values = features.flatten(), values.flatten()
    if num_entries < num_tokens * k:
        slot = torch.arange(k, device=counts.device)
        used = (slot < counts[:, None]).flatten()
        features, values = features[used], values[used]
    return FlatCodes(starts, features, values, d_sae)


@dataclass
class _Found:
    """Entries above a floor in rising order of place; fewer than ``total`` where there was no room."""

    counts: Tensor  # int64, [B]
    features: Tensor  # int32
    values: Tensor
    total: int

    def places(self, d_sae: int) -> Tensor:
        """``token * d_sae + feature`` of every entry."""
        starts = _starts(self.counts)
        codes = FlatCodes(starts, self.features, self.values, d_sae)
        return _tokens(codes) * d_sae + self.features


def _collect(
    x: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    floor: Tensor,
    room: int,
    bfloat16: bool,
    *,
    equal: bool = False,
) -> _Found:
    """Pre-activations above a floor, or equal to it, the first ``room`` of them.

    Args:
        floor: for every feature, ``[d_sae]``, or one for all, ``[]``.
    """
    counts = torch.zeros(len(x), dtype=torch.int64, device=rows.device)
    values, features = rows.new_empty(room), torch.empty(room, dtype=torch.int32, device=rows.device)
    total = counts.new_zeros(())
    for begin, pre in _products(x, rows, bias, bfloat16):
        own = counts[begin : begin + len(pre)]
        how: dict[str, Any] = {
            "LANES": min(_LANES // 2, _lanes(len(rows))), "EQUAL": equal, "ONE_FLOOR": floor.ndim == 0,
            "FLOAT": _IEEE[rows.dtype][1], "num_warps": 4,
        }  # fmt: skip
        _launch(_count, (len(pre),), pre, floor, own, len(rows), **how)
        ends = own.cumsum(0) + total
        _launch(_write, (len(pre),), pre, floor, ends - own, values, features, len(rows), room, **how)
        total = ends[-1]
    num_found = int(total)
    size = min(num_found, room)
    return _Found(counts, features[:size], values[:size], num_found)


def _first_floor(x: Tensor, rows: Tensor, bias: Tensor | None, count: int, bfloat16: bool) -> Tensor:
    """What about half as many again as wanted are above, by a sample spread over the batch; 0 if that can not be told."""
    step = max(1, len(x) // _SAMPLE)
    sample = x[::step]
    wanted = -(-3 * count * len(sample) // (2 * max(1, len(x))))
    if step == 1 or not 0 < wanted < len(sample) * len(rows):
        return rows.new_zeros(())
    parts = [pre.flatten().clone() for _, pre in _products(sample, rows, bias, bfloat16)]
    floor = torch.cat(parts).topk(wanted).values[-1].to(rows.dtype)
    return floor.where(floor > 0, 0)


def _largest(values: Tensor, count: int) -> Tensor:
    """Which are the ``count`` largest; the first of those equal to the smallest."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    smallest = values.sort(descending=True).values[count - 1]
    over, ties = values > smallest, values == smallest
    return over | (ties & (ties.cumsum(0) <= count - over.sum()))


# Entries


@dataclass
class _Columns:
    """Entries in order of feature, and within one of token."""

    starts: Tensor  # int64, [d_sae + 1]
    features: Tensor  # int32, [n]
    tokens: Tensor  # int64, [n]
    entries: Tensor  # int64, [n]: their numbers in the codes


def _by_feature(codes: FlatCodes) -> _Columns:
    features, entries = codes.features.sort(stable=True)
    edges = torch.arange(codes.d_sae + 1, dtype=torch.int32, device=features.device)
    return _Columns(torch.searchsorted(features, edges), features, _tokens(codes)[entries], entries)


def _tokens(codes: FlatCodes) -> Tensor:
    """The token of every entry, int64, ``[n]``; the host does not wait, as it would for ``codes.tokens``."""
    entries = torch.arange(len(codes.features), device=codes.starts.device)
    return torch.searchsorted(codes.starts, entries, right=True) - 1


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _dots(left: Tensor, right: Tensor, left_at: Tensor, right_at: Tensor) -> Tensor:
    """Products of row ``left_at[e]`` of one matrix with row ``right_at[e]`` of another, ``[n]``."""
    num_entries, d = len(left_at), left.shape[1]
    parts = left.new_empty(triton.cdiv(d, _SPAN), num_entries)
    _launch(
        _dot_rows, (triton.cdiv(num_entries, 16), len(parts)), left, right, left_at, right_at, parts, num_entries, d,
        E=16, D=min(128, _SPAN, _lanes(d)), SPAN=_SPAN,
    )  # fmt: skip
    return parts.sum(0)


def _add_up(
    out: Tensor, matrix: Tensor, source: Tensor, weights: Tensor, columns: _Columns, kept: Tensor | None
) -> Tensor:
    """Row i of ``out`` is the sum of feature i's weights times rows of a matrix; returns sums of squares to be added up.

    Args:
        out: ``[d_sae, d]``. source: row of the matrix for every entry of the columns, ``[n]``. weights: ``[n]``.
        kept: features whose sum is added to what is there, bool, ``[d_sae]``.
    """
    d_sae, d = out.shape
    at_once = _columns_at_once(d)
    squares = out.new_empty(triton.cdiv(d, at_once), d_sae)
    starts, ends = columns.starts[:-1], columns.starts[1:]
    # pieces of long columns, but for the first of each: as many as there can be, since nobody asks how many there are
    num_pieces = len(weights) // _LONGEST
    pieces = matrix.new_empty(num_pieces, d)
    piece_ends = ((ends - starts - 1).clamp_min(0) // _LONGEST).cumsum(0)
    piece_starts = torch.cat([piece_ends.new_zeros(1), piece_ends[:-1]])
    size: dict[str, Any] = {"E": 8, "D": at_once}
    if num_pieces:
        number = torch.arange(num_pieces, device=out.device)
        feature = torch.searchsorted(piece_ends, number, right=True).clamp_max(d_sae - 1)
        begin = starts[feature] + (number - piece_starts[feature] + 1) * _LONGEST
        end = torch.minimum(begin + _LONGEST, ends[feature]).where(number < piece_ends[-1], begin)
        _launch(
            _add_rows, (num_pieces, len(squares)), pieces, matrix, source, weights, begin, end, begin, end, begin,
            begin, begin, num_pieces, d, d, matrix.stride(0), WHOLE=False, **size,
        )  # fmt: skip
    _launch(
        _add_rows, (d_sae, len(squares)), out, matrix, source, weights, starts,
        torch.minimum(starts + _LONGEST, ends), pieces, piece_starts, piece_ends, _flags(kept, d_sae, out), squares,
        d_sae, d, out.stride(0), matrix.stride(0), WHOLE=True, **size,
    )  # fmt: skip
    return squares


def _shares(codes: FlatCodes, before: Tensor, scale: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """``scale`` times the weight of what is left before each entry, ``[n]``, and after the last of each token, ``[B]``."""
    marks = before[codes.features.long()]
    previous = torch.cat(
        [marks.new_zeros(1), marks]
    )  # of the entry before, by number of entry: one more than there are
    entries = torch.arange(len(marks), device=marks.device)
    shares = marks - previous[:-1].where(entries > codes.starts[_tokens(codes)], 0)
    tails = 1 - previous[codes.starts[1:]].where(codes.starts.diff() > 0, 0)
    return (scale * shares).to(like.dtype), (scale * tails).to(like.dtype)


# Launching


def _launch(kernel: Any, grid: tuple[int, ...], *tensors: Any, **constants: Any) -> None:
    """Start a kernel on the device of its first tensor, unless there is nothing to do."""
    if all(grid):
        with torch.cuda.device_of(tensors[0]):
            kernel[grid](*tensors, **constants, enable_fp_fusion=True)  # Triton 3.9 warns of its default


def _columns_at_once(d: int) -> int:
    """Columns of a program: many, but little more than there are; 2304 is 9 times 256, not 4096."""
    sizes = [size for size in (512, 256, 128, 64, 32, 16) if size <= max(16, triton.next_power_of_2(d))]
    return next(size for size in sizes if triton.cdiv(d, size) * size <= 1.125 * d or size == sizes[-1])


def _one_row(d: int) -> dict[str, Any]:
    """For kernels that read one row at a time: four numbers to a thread, which is what it can load at once."""
    columns = _columns_at_once(d)
    return {"D": columns, "num_warps": max(1, columns // 128)}


def _lanes(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _flags(kept: Tensor | None, d_sae: int, like: Tensor) -> Tensor:
    return torch.zeros(d_sae, dtype=torch.uint8, device=like.device) if kept is None else kept.to(torch.uint8)


def _key_dtype(rows: Tensor) -> torch.dtype:
    return torch.int32 if rows.dtype == torch.float32 else torch.int64


def _kinds(rows: Tensor) -> dict[str, Any]:
    """What kernels must know of the dtype to compare numbers above 0 by their bits."""
    key, number, bits = _IEEE[rows.dtype]
    return {"KEY": key, "FLOAT": number, "BITS": bits}


# What Triton compiles. Sizes that change from step to step are run-time numbers and never specialised.


def _kernel(*varying: str) -> Callable[[Callable[..., None]], Any]:
    return triton.jit(do_not_specialize=list(varying))


@triton.jit
def _load_keys(row, at, size, KEY: tl.constexpr, FLOAT: tl.constexpr):
    """Bits of numbers above 0, as integers in the same order; 0 for all others, and nan."""
    number = tl.load(row + at, mask=at < size, other=0).to(FLOAT)
    return tl.where(number > 0, number, 0).to(FLOAT).to(KEY, bitcast=True)


@triton.jit
def _kth(keys, k, KEY: tl.constexpr, BITS: tl.constexpr):
    """The k-th largest key, bit by bit; 0 where fewer than k are above 0."""
    bound = tl.full((), 0, KEY)
    for i in range(BITS):
        trial = bound | (tl.full((), 1, KEY) << (BITS - 1 - i))
        enough = tl.sum((keys >= trial).to(tl.int32), 0) >= k
        bound = tl.where(enough, trial, bound)
    return bound


@triton.jit
def _choose(keys, k, KEY: tl.constexpr, BITS: tl.constexpr):
    """Which are the k largest keys above 0; the first of equal ones."""
    bound = _kth(keys, k, KEY, BITS)
    over = keys > bound
    ties = ((keys == bound) & (keys > 0)).to(tl.int32)
    return over | ((ties > 0) & (tl.cumsum(ties, 0) <= k - tl.sum(over.to(tl.int32), 0)))


@_kernel("k")
def _select(
    pre, keys, found, features, values, counts, d_sae, k,
    LANES: tl.constexpr, ROOM: tl.constexpr, KEY: tl.constexpr, FLOAT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    pre += row * d_sae
    keys += row * ROOM
    found += row * ROOM
    best = tl.zeros([LANES], KEY)
    for first in tl.range(0, d_sae, LANES, num_stages=4):
        best = tl.maximum(best, _load_keys(pre, first + lane, d_sae, KEY, FLOAT))
    bound = _kth(best, k, KEY, BITS)
    num_found = tl.full((), 0, tl.int32)
    for first in tl.range(0, d_sae, LANES, num_stages=4):
        key = _load_keys(pre, first + lane, d_sae, KEY, FLOAT)
        passes = ((key >= bound) & (key > 0)).to(tl.int32)
        number = tl.sum(passes, 0)
        if number > 0:
            slot = num_found + tl.cumsum(passes, 0) - 1
            fits = (passes > 0) & (slot < ROOM)
            tl.store(keys + slot, key, mask=fits)
            tl.store(found + slot, (first + lane).to(KEY), mask=fits)
        num_found += number
    tl.debug_barrier()  # other threads of this program have written what is read now
    lane = tl.arange(0, ROOM)
    there = lane < num_found
    key = tl.load(keys + lane, mask=there, other=0)
    chosen = _choose(key, k, KEY, BITS)
    slot = row * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(values + slot, key.to(FLOAT, bitcast=True), mask=chosen)
    tl.store(features + slot, tl.load(found + lane, mask=there, other=0).to(tl.int32), mask=chosen)
    tl.store(counts + row, tl.where(num_found > ROOM, -1, tl.sum(chosen.to(tl.int32), 0)))


@_kernel("wide", "k")
def _choose_rows(
    features, values, counts, new_features, new_values, new_counts, wide, k,
    ROOM: tl.constexpr, KEY: tl.constexpr, FLOAT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, ROOM)
    count = tl.load(counts + row)
    key = _load_keys(values + row * wide, lane, count, KEY, FLOAT)
    chosen = _choose(key, k, KEY, BITS)
    slot = row * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(new_values + slot, key.to(FLOAT, bitcast=True), mask=chosen)
    tl.store(new_features + slot, tl.load(features + row * wide + lane, mask=lane < count, other=0), mask=chosen)
    tl.store(new_counts + row, tl.where(count < 0, -1, tl.sum(chosen.to(tl.int32), 0)))


@triton.jit
def _passing(row, floor, at, size, FLOAT: tl.constexpr, EQUAL: tl.constexpr, ONE_FLOOR: tl.constexpr):
    """Some numbers of a row, and 1 for each that passes."""
    number = tl.load(row + at, mask=at < size, other=0).to(FLOAT)
    least = tl.load(floor) if ONE_FLOOR else tl.load(floor + at, mask=at < size, other=0)
    passes = number == least if EQUAL else number > least
    return number, (passes & (at < size)).to(tl.int32)


@triton.jit
def _count(
    pre, floor, counts, d_sae,
    LANES: tl.constexpr, FLOAT: tl.constexpr, EQUAL: tl.constexpr, ONE_FLOOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.int32)
    for first in tl.range(0, d_sae, LANES, num_stages=4):
        _, passes = _passing(pre + row * d_sae, floor, first + lane, d_sae, FLOAT, EQUAL, ONE_FLOOR)
        total += passes
    tl.store(counts + row, tl.sum(total, 0).to(tl.int64))


@_kernel("room")
def _write(
    pre, floor, starts, values, features, d_sae, room,
    LANES: tl.constexpr, FLOAT: tl.constexpr, EQUAL: tl.constexpr, ONE_FLOOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    free = tl.load(starts + row)
    for first in tl.range(0, d_sae, LANES, num_stages=4):
        number, passes = _passing(pre + row * d_sae, floor, first + lane, d_sae, FLOAT, EQUAL, ONE_FLOOR)
        count = tl.sum(passes, 0)
        if count > 0:
            slot = free + tl.cumsum(passes, 0) - 1
            fits = (passes > 0) & (slot < room)
            tl.store(values + slot, number, mask=fits)
            tl.store(features + slot, first + lane, mask=fits)
        free += count


@_kernel("num_tokens", "num_prefixes")
def _decode(
    starts, ends, features, values, rows, offset, out, num_tokens, d, num_prefixes, E: tl.constexpr, D: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < d
    total = tl.load(offset + column, mask=inside, other=0)
    first = tl.load(starts + token)
    for prefix in range(num_prefixes):
        last = tl.load(ends + prefix * num_tokens.to(tl.int64) + token)
        part = tl.zeros([E, D], total.dtype)
        for e in range(first, last, E):
            at = e + tl.arange(0, E)
            there = at < last
            row = tl.load(features + at, mask=there, other=0).to(tl.int64)
            value = tl.load(values + at, mask=there, other=0)
            tile = rows + row[:, None] * d + column[None, :]
            part += value[:, None] * tl.load(tile, mask=there[:, None] & inside[None, :], other=0)
        total += tl.sum(part, 0)
        tl.store(out + (prefix * num_tokens.to(tl.int64) + token) * d + column, total, mask=inside)
        first = last


@_kernel("num_entries")
def _dot_rows(
    left, right, left_at, right_at, out, num_entries, d, E: tl.constexpr, D: tl.constexpr, SPAN: tl.constexpr
):
    at = tl.program_id(0) * E + tl.arange(0, E)
    there = at < num_entries
    left_row = tl.load(left_at + at, mask=there, other=0).to(tl.int64)
    right_row = tl.load(right_at + at, mask=there, other=0).to(tl.int64)
    first = tl.program_id(1) * SPAN
    total = tl.zeros([E, D], out.dtype.element_ty)
    for c in range(first, tl.minimum(first + SPAN, d), D):
        column = c + tl.arange(0, D)
        mask = there[:, None] & (column < d)[None, :]
        a = tl.load(left + left_row[:, None] * d + column[None, :], mask=mask, other=0)
        total += a * tl.load(right + right_row[:, None] * d + column[None, :], mask=mask, other=0)
    tl.store(out + tl.program_id(1) * num_entries.to(tl.int64) + at, tl.sum(total, 1), mask=there)


@_kernel("num_rows")
def _add_rows(
    out, matrix, source, weights, starts, ends, pieces, piece_starts, piece_ends, kept, squares, num_rows, d,
    out_stride, matrix_stride, WHOLE: tl.constexpr, E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < d
    first, last = tl.load(starts + row), tl.load(ends + row)
    total = tl.zeros([E, D], out.dtype.element_ty)
    for p in range(first, last, E):
        at = p + tl.arange(0, E)
        there = at < last
        from_row = tl.load(source + at, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + at, mask=there, other=0)
        tile = matrix + from_row[:, None] * matrix_stride + column[None, :]
        total += weight[:, None] * tl.load(tile, mask=there[:, None] & inside[None, :], other=0)
    result = tl.sum(total, 0)
    here = out + row * out_stride + column
    if WHOLE:
        for piece in range(tl.load(piece_starts + row), tl.load(piece_ends + row)):
            result += tl.load(pieces + piece * d + column, mask=inside, other=0)
        if tl.load(kept + row) != 0:
            result += tl.load(here, mask=inside, other=0)
        tl.store(squares + tl.program_id(1) * num_rows.to(tl.int64) + row, tl.sum(result * result, 0))
    tl.store(here, result, mask=inside)


@triton.jit
def _add_numbers(out, weights, starts, ends, kept, E: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([E], out.dtype.element_ty)
    first, last = tl.load(starts + row), tl.load(ends + row)
    for p in range(first, last, E):
        at = p + tl.arange(0, E)
        total += tl.load(weights + at, mask=at < last, other=0)
    result = tl.sum(total, 0)
    if tl.load(kept + row) != 0:
        result += tl.load(out + row)
    tl.store(out + row, result)


@triton.jit
def _settle(gradient, weights, squares, d, UNIT_NORM: tl.constexpr, D: tl.constexpr):
    """Take from a row's gradient what points along the row, and sum its squares."""
    row = tl.program_id(0).to(tl.int64)
    gradient += row * d
    weights += row * d
    along = tl.zeros([D], gradient.dtype.element_ty)
    norm = tl.zeros([D], gradient.dtype.element_ty)
    if UNIT_NORM:
        for c in range(0, d, D):
            column = c + tl.arange(0, D)
            w = tl.load(weights + column, mask=column < d, other=0)
            along += w * tl.load(gradient + column, mask=column < d, other=0)
            norm += w * w
    share = tl.sum(along, 0) / tl.maximum(tl.sum(norm, 0), 1e-24)
    total = tl.zeros([D], gradient.dtype.element_ty)
    for c in range(0, d, D):
        column = c + tl.arange(0, D)
        g = tl.load(gradient + column, mask=column < d, other=0)
        if UNIT_NORM:
            g -= share * tl.load(weights + column, mask=column < d, other=0)
            tl.store(gradient + column, g, mask=column < d)
        total += g * g
    tl.store(squares + row, tl.sum(total, 0))


@_kernel("num_tokens")
def _ordered_errors(
    starts, features, values, shares, tails, residual, decoder, left, errors, num_tokens, d, D: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < d
    r = tl.load(residual + token * d + column, mask=inside, other=0)
    total = tl.zeros([D], r.dtype)
    for e in range(tl.load(starts + token), tl.load(starts + token + 1)):
        total += tl.load(shares + e) * r * r
        row = tl.load(features + e).to(tl.int64)
        r -= tl.load(values + e) * tl.load(decoder + row * d + column, mask=inside, other=0)
    total += tl.load(tails + token) * r * r
    tl.store(left + token * d + column, r, mask=inside)
    tl.store(errors + tl.program_id(1) * num_tokens.to(tl.int64) + token, tl.sum(total, 0))


@_kernel("num_entries")
def _ordered_gradients(
    starts, features, values, shares, tails, left, decoder, d_residual, slab, dots, num_entries, d, width,
    D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < width
    r = tl.load(left + token * d + column, mask=inside, other=0)
    pull = tl.zeros([D], r.dtype)
    share = tl.load(tails + token)
    first, last = tl.load(starts + token), tl.load(starts + token + 1)
    for i in range(last - first):
        e = last - 1 - i
        row = tl.load(features + e).to(tl.int64)
        w = tl.load(decoder + row * d + column, mask=inside, other=0)
        pull += share * r
        r += tl.load(values + e) * w
        share = tl.load(shares + e)
        tl.store(dots + tl.program_id(1) * num_entries.to(tl.int64) + e, tl.sum(pull * w, 0))
        tl.store(slab + e * width + column, pull, mask=inside)
    tl.store(d_residual + token * d + column, pull + share * r, mask=inside)


@triton.jit
def _adam(
    weights, gradient, m, v, factor, beta1, rest1, beta2, rest2, eps, step_size, correction, d, span,
    UNIT_NORM: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weights += row * d
    gradient += row * d
    m += row * d
    v += row * d
    clip = tl.load(factor)
    square = tl.zeros([D], weights.dtype.element_ty)
    first = tl.program_id(1) * span
    for c in range(first, tl.minimum(first + span, d), D):
        column = c + tl.arange(0, D)
        inside = column < d
        g = tl.load(gradient + column, mask=inside, other=0) * clip
        old_m = tl.load(m + column, mask=inside, other=0)
        new_m = tl.where(rest1 < 0.5, old_m + rest1 * (g - old_m), g - (g - old_m) * beta1)  # as torch interpolates
        new_v = tl.load(v + column, mask=inside, other=0) * beta2 + rest2 * g * g
        tl.store(m + column, new_m, mask=inside)
        tl.store(v + column, new_v, mask=inside)
        w = tl.load(weights + column, mask=inside, other=0)
        w -= step_size * new_m / (tl.sqrt(new_v) / correction + eps)
        tl.store(weights + column, w, mask=inside)
        square += tl.where(inside, w * w, 0)
    if UNIT_NORM:
        scale = 1 / tl.maximum(tl.sqrt(tl.sum(square, 0)), 1e-12)
        tl.debug_barrier()  # other threads of this program may have written what is read now
        for c in range(0, d, D):
            column = c + tl.arange(0, D)
            w = tl.load(weights + column, mask=column < d, other=0)
            tl.store(weights + column, w * scale, mask=column < d)
