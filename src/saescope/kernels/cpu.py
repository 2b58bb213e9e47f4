"""The sparse arithmetic on a CPU: torch's matrix products, and Numba for everything around them.

The encoder's product is made tile by tile, a few hundred tokens by a thousand features, and every tile is searched
while it is in the cache: no ``[B, d_sae]`` tensor exists. Searching keeps a bound per token (or per batch) below which
nothing can win any more; nearly all of a tile is skipped sixteen numbers at a time.

Gradients are made feature by feature: the entries are sorted by feature, so that a row of each matrix is read once and
its gradient written once, in the same order whatever the number of threads.

Threads: the parts of a batch, or of the features, go to a pool of as many threads as torch was told to use, each of
which makes its own products on one core. No OpenMP team of Numba's exists beside torch's, so none waits on a core that
another needs. Functions have the arguments and results of ``reference.py``; weights must be contiguous.

B  tokens, d  width, d_sae  features, n  entries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from saescope.kernels.codes import FlatCodes
from saescope.kernels.compiling import jit
from saescope.kernels.signature import AdamStep, Gradients

_TILE_TOKENS, _TILE_FEATURES = 256, 1024
_CHUNK = 64  # numbers that are compared with the bound at once; tiles hold whole chunks
_SLICE = 256  # columns of the Ordered gradient that are walked together
_SAMPLE = 64  # tokens on which the first bound of a batch is measured


# sums may be reordered, so that they use vector units; NaN and infinity keep their meaning
_jit = jit("reassoc", "contract", "arcp", "nsz")


def topk(x: Tensor, rows: Tensor, bias: Tensor | None, k: int) -> FlatCodes:
    num_tokens, d_sae = len(x), len(rows)
    k = min(k, d_sae)
    x, rows, biases = _ready(x, rows, bias)
    room = max(4 * k, 64)
    values = np.empty((num_tokens, room), dtype=biases.dtype)
    features = np.empty((num_tokens, room), dtype=np.int32)
    fill = np.zeros(num_tokens, dtype=np.int64)
    bounds = np.zeros(num_tokens, dtype=biases.dtype)  # of each token: what is not above it can not be among its k

    def part(first: int, last: int) -> None:
        for begin, end, chunk, tile in _tiles(x, rows, first, last):
            own, bias = slice(begin, end), biases[chunk : chunk + tile.shape[1]]
            _search_tokens(tile, bias, chunk * _CHUNK, k, values[own], features[own], fill[own], bounds[own])
        _settle_tokens(k, values[first:last], features[first:last], fill[first:last])

    _in_parts(part, num_tokens)
    starts = _starts(fill)
    found = np.empty(starts[-1], dtype=values.dtype), np.empty(starts[-1], dtype=np.int32)
    _pack(values, features, starts, *found)
    return _codes(starts, *found, d_sae)


def batch_topk(x: Tensor, rows: Tensor, bias: Tensor | None, count: int) -> FlatCodes:
    num_tokens, d_sae = len(x), len(rows)
    x, rows, biases = _ready(x, rows, bias)
    # a first bound, which about half as many again as wanted will pass, from a sample spread over the batch
    sample = x[:: max(1, num_tokens // _SAMPLE)].contiguous()
    values, _ = _largest(sample, rows, biases, 0.0, -(-3 * count * len(sample) // (2 * num_tokens)))
    guess = float(values.min()) if len(values) and len(sample) < num_tokens else 0.0
    found = _largest(x, rows, biases, guess, count)
    if guess > 0 and len(found[0]) < count:  # the sample was not typical
        found = _largest(x, rows, biases, 0.0, count)
    return _by_token(*found, num_tokens, d_sae)


def _largest(x: Tensor, rows: Tensor, biases: np.ndarray, bound: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values above ``bound`` and their places in the batch, at most the ``count`` largest, in no order.

    Of equal values at the cut, those of the first places: which they are depends neither on the number of threads nor on
    which of them is done first.
    """
    lists: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def part(first: int, last: int) -> None:
        room = 2 * count + _TILE_FEATURES
        values, places = np.empty(room, dtype=biases.dtype), np.empty(room, dtype=np.int64)
        fill, low = 0, biases.dtype.type(bound)
        for begin, _, chunk, tile in _tiles(x, rows, first, last):
            bias = biases[chunk : chunk + tile.shape[1]]
            fill, low = _search_batch(tile, bias, begin, chunk * _CHUNK, count, values, places, fill, low)
        lists[first] = values[:fill], places[:fill]

    _in_parts(part, len(x))
    values, places = (np.concatenate(arrays) for arrays in zip(*lists.values(), strict=True))
    if len(values) > count:
        _keep_largest(values, places, len(values), count)
    return values[:count], places[:count]


def above(x: Tensor, rows: Tensor, bias: Tensor | None, floor: Tensor, limit: int) -> FlatCodes | None:
    x, rows, biases = _ready(x, rows, bias)
    floors = _chunks(floor.detach().to(rows).expand(len(rows)))
    lists: list[tuple[np.ndarray, np.ndarray]] = []

    def part(first: int, last: int) -> None:
        values, places = np.empty(limit, dtype=biases.dtype), np.empty(limit, dtype=np.int64)
        fill = 0
        for begin, _, chunk, tile in _tiles(x, rows, first, last):
            own = slice(chunk, chunk + tile.shape[1])
            fill = _search_above(tile, biases[own], floors[own], begin, chunk * _CHUNK, values, places, fill)
            if fill < 0:
                return
        lists.append((values[:fill], places[:fill]))

    num_parts = _in_parts(part, len(x))
    if len(lists) < num_parts or sum(len(values) for values, _ in lists) > limit:
        return None
    values, places = (np.concatenate(arrays) for arrays in zip(*lists, strict=True))
    return _by_token(values, places, len(x), len(rows))


def decode(codes: FlatCodes, rows: Tensor, offset: Tensor, widths: Sequence[int]) -> Tensor:
    out = rows.new_empty(len(widths), codes.num_tokens, rows.shape[1])
    arrays = _arrays(codes.starts, codes.features, codes.values, rows, offset, torch.tensor(widths), out)
    _in_parts(lambda first, last: _decode(first, last, *arrays), codes.num_tokens)
    return out


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
    d_values = torch.zeros_like(codes.values) if direct is None else direct.detach().clone()
    if g is None:
        sums = x.new_empty(0, 0, 0)
    else:
        sums = g.detach().contiguous()
        if len(sums) > 1:  # a feature sees every prefix that is longer than its number
            sums = sums.flip(0).cumsum(0).flip(0)
    kept = torch.zeros(codes.d_sae, dtype=torch.bool) if kept is None else kept
    columns = _columns(codes)
    arrays = _arrays(
        *(torch.from_numpy(column) for column in columns), codes.values, d_values, sums, x.contiguous(), decoder,
        torch.tensor(widths), kept, out.encoder, out.decoder, out.bias,
    )  # fmt: skip
    squares = np.empty((2, codes.d_sae))
    work = columns[0] + 8 * np.arange(codes.d_sae + 1)  # a feature costs something without any entry
    _in_parts(lambda first, last: _gradients(first, last, *arrays, squares, unit_norm), codes.d_sae, work)
    out.squares.copy_(torch.from_numpy(squares.sum(1)))
    return d_values


def ordered_errors(codes: FlatCodes, residual: Tensor, decoder: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    errors = residual.new_empty(len(residual))
    left = residual.detach().clone(memory_format=torch.contiguous_format)
    arrays = _arrays(codes.starts, codes.features, codes.values, decoder, before, left, errors)
    _in_parts(lambda first, last: _ordered_errors(first, last, *arrays), len(residual))
    return errors, left


def ordered_gradients(
    codes: FlatCodes, left: Tensor, decoder: Tensor, before: Tensor, scale: float, d_decoder: Tensor
) -> tuple[Tensor, Tensor]:
    d = left.shape[1]
    num_slices = -(-d // _SLICE)
    d_residual = torch.empty_like(left)
    # slices of the width know nothing of each other but their share of a product with a decoder row
    shares = np.zeros((num_slices, len(codes.values)), dtype=_arrays(left)[0].dtype)
    arrays = _arrays(codes.starts, codes.features, codes.values, left, decoder, before, d_decoder, d_residual)

    def part(first: int, last: int) -> None:
        for number in range(first, last):
            own = slice(number * _SLICE, min((number + 1) * _SLICE, d))
            _ordered_gradients(own.start, own.stop, *arrays, shares[number], scale)

    _in_parts(part, num_slices)
    return torch.from_numpy(shares.sum(0)), d_residual


def adam(weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor, how: AdamStep) -> None:
    arrays = _arrays(weights, gradient, m, v)
    # 1 - beta is taken here, in float64: in float32 that of 0.999 is wrong in its fifth digit
    settings = (
        how.gradient_factor, how.beta1, 1 - how.beta1, how.beta2, 1 - how.beta2, how.eps,
        how.lr / (1 - how.beta1**how.step), (1 - how.beta2**how.step) ** 0.5,
    )  # fmt: skip
    numbers = [arrays[0].dtype.type(number) for number in settings]
    _in_parts(
        lambda first, last: _adam(first, last, *arrays, *numbers, how.unit_norm), len(weights)
    )  # fmt: skip


# Threads


def _in_parts(job: Callable[[int, int], None], num_items: int, work: np.ndarray | None = None) -> int:
    """Run ``job(first, last)`` over items in as many parts as torch has threads; returns how many.

    Args:
        work: rising sums of what items cost, ``[num_items + 1]``, where they do not cost the same.
    """
    num_parts = max(1, min(torch.get_num_threads(), num_items))
    if num_parts == 1:
        job(0, num_items)
        return 1
    shares = np.linspace(0, 1, num_parts + 1)
    ends = shares * num_items if work is None else np.searchsorted(work, shares * work[-1])
    bounds = [0, *ends[1:-1].astype(int).tolist(), num_items]
    futures = [_pool(num_parts).submit(job, first, last) for first, last in pairwise(bounds)]
    for future in futures:
        future.result()
    return num_parts


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that each compute on one core."""
    ready = threading.Barrier(num_threads + 1)
    own_number = torch.get_num_threads()

    def alone() -> None:
        torch.get_num_threads()  # torch sets a thread up when it is first asked, which would undo the next line later
        torch.set_num_threads(1)  # for products made in this thread; torch keeps the number per thread
        ready.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="saescope-kernels", initializer=alone)
    for _ in range(num_threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(own_number)  # threads made from now on start with what the last call anywhere said
    return pool


_own = threading.local()


def _tiles(x: Tensor, rows: Tensor, first: int, last: int) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Products of the tokens ``first : last`` with all features, tile by tile.

    Gives first and last token, first chunk of features, and the numbers as ``[tokens, chunks, _CHUNK]``. What fills up
    the last chunk has no meaning.
    """
    workspace = getattr(_own, "workspace", None)
    if workspace is None or workspace.dtype != x.dtype:
        workspace = _own.workspace = x.new_zeros(_TILE_TOKENS * _TILE_FEATURES)
    for begin in range(first, last, _TILE_TOKENS):
        end = min(begin + _TILE_TOKENS, last)
        for feature in range(0, len(rows), _TILE_FEATURES):
            part = rows[feature : feature + _TILE_FEATURES]
            num_chunks = -(-len(part) // _CHUNK)
            tile = workspace[: (end - begin) * num_chunks * _CHUNK].view(end - begin, num_chunks, _CHUNK)
            torch.mm(x[begin:end], part.T, out=tile.view(end - begin, -1)[:, : len(part)])
            yield begin, end, feature // _CHUNK, tile.numpy()


# Tensors and arrays


def _ready(x: Tensor, rows: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, np.ndarray]:
    """Encoder input and rows, contiguous and of one dtype, and biases in chunks."""
    rows = rows.detach().contiguous()
    biases = rows.new_zeros(len(rows)) if bias is None else bias.detach()
    return x.detach().to(rows.dtype).contiguous(), rows, _chunks(biases)


def _chunks(numbers: Tensor) -> np.ndarray:
    """Numbers of features as ``[chunks, _CHUNK]``, filled up with nan: nothing compares with it."""
    missing = -len(numbers) % _CHUNK
    return torch.nn.functional.pad(numbers, (0, missing), value=float("nan")).view(-1, _CHUNK).numpy()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def _starts(counts: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _codes(starts: np.ndarray, values: np.ndarray, features: np.ndarray, d_sae: int) -> FlatCodes:
    return FlatCodes(torch.from_numpy(starts), torch.from_numpy(features), torch.from_numpy(values), d_sae)


def _by_token(values: np.ndarray, places: np.ndarray, num_tokens: int, d_sae: int) -> FlatCodes:
    """Codes of entries in any order; a place is ``token << 32 | feature``."""
    starts = _starts(np.bincount(places >> 32, minlength=num_tokens))
    sorted_values, features = np.empty_like(values), np.empty(len(values), dtype=np.int32)
    _sort_by_token(values, places, starts, sorted_values, features)
    return _codes(starts, sorted_values, features, d_sae)


def _columns(codes: FlatCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries by feature: where each feature's begin, ``[d_sae + 1]``, and their tokens and numbers, ``[n]``."""
    starts, features = codes.starts.numpy(), codes.features.numpy()
    columns = _starts(np.bincount(features, minlength=codes.d_sae))
    tokens, entries = np.empty(len(features), dtype=np.int32), np.empty(len(features), dtype=np.int32)
    _sort_by_feature(starts, features, columns, tokens, entries)
    return columns, tokens, entries


# What Numba compiles. All of it in this file: its cache does not notice changes of functions in other files.


@_jit
def _any_above(numbers, bias, low):  # type: ignore[no-untyped-def]
    """Whether any of a chunk of numbers is above a bound; no branch inside, so that vector units can do it."""
    hits = False
    for j in range(_CHUNK):
        hits = hits | (numbers[j] + bias[j] > low)
    return hits


@_jit
def _keep_largest(values: np.ndarray, tags: np.ndarray, fill: int, k: int) -> float:
    """Move the k largest of the first ``fill`` values, with their tags, to the front; returns the smallest of them.

    Of equal values, those with the smaller tags.
    """
    low, high = 0, fill - 1
    while low < high:
        pivot, tag = values[(low + high) // 2], tags[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot or (values[i] == pivot and tags[i] < tag):
                i += 1
            while values[j] < pivot or (values[j] == pivot and tags[j] > tag):
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                tags[i], tags[j] = tags[j], tags[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    smallest = values[0]
    for i in range(1, k):
        smallest = min(smallest, values[i])
    return smallest


@_jit
def _search_tokens(tile, bias, feature, k, values, features, fill, bounds):  # type: ignore[no-untyped-def]
    """Add to each token's list what is above its bound; a full list is cut to its k largest, which raises the bound.

    ``tile``: ``[tokens, chunks, _CHUNK]``, ``bias``: ``[chunks, _CHUNK]``; ``feature``: number of the first.
    """
    room = values.shape[1]
    for t in range(tile.shape[0]):
        n, low = fill[t], bounds[t]
        for q in range(tile.shape[1]):
            if _any_above(tile[t, q], bias[q], low):
                for j in range(_CHUNK):
                    value = tile[t, q, j] + bias[q, j]
                    if value > low:
                        values[t, n] = value
                        features[t, n] = feature + q * _CHUNK + j
                        n += 1
                        if n == room:
                            low = _keep_largest(values[t], features[t], n, k)
                            n = k
        fill[t], bounds[t] = n, low


@_jit
def _settle_tokens(k, values, features, fill):  # type: ignore[no-untyped-def]
    """Cut each token's list to its k largest, in rising order of feature."""
    for t in range(len(fill)):
        if fill[t] > k:
            _keep_largest(values[t], features[t], fill[t], k)
            fill[t] = k
        _sort_features(values[t], features[t], 0, fill[t])


@_jit
def _sort_features(values, features, first, last):  # type: ignore[no-untyped-def]
    for i in range(first + 1, last):
        value, feature = values[i], features[i]
        j = i - 1
        while j >= first and features[j] > feature:
            values[j + 1], features[j + 1] = values[j], features[j]
            j -= 1
        values[j + 1], features[j + 1] = value, feature


@_jit
def _pack(values, features, starts, packed_values, packed_features):  # type: ignore[no-untyped-def]
    for t in range(len(starts) - 1):
        n = starts[t + 1] - starts[t]
        packed_values[starts[t] : starts[t + 1]] = values[t, :n]
        packed_features[starts[t] : starts[t + 1]] = features[t, :n]


@_jit
def _search_batch(tile, bias, token, feature, count, values, places, fill, low):  # type: ignore[no-untyped-def]
    """As :func:`_search_tokens`, with one list and one bound for all tokens.

    Tiles do not come in order of places, so what equals the smallest in a full list may still have to go before it.
    """
    for t in range(tile.shape[0]):
        for q in range(tile.shape[1]):
            if _any_above(tile[t, q], bias[q], low):
                for j in range(_CHUNK):
                    value = tile[t, q, j] + bias[q, j]
                    if value > low:
                        values[fill] = value
                        places[fill] = (token + t) << 32 | (feature + q * _CHUNK + j)
                        fill += 1
                        if fill == len(values):
                            low = np.nextafter(_keep_largest(values, places, fill, count), values.dtype.type(0))
                            fill = count
    return fill, low


@_jit
def _search_above(tile, bias, floors, token, feature, values, places, fill):  # type: ignore[no-untyped-def]
    """Add everything above its feature's floor to the list; -1 when the list is full."""
    for t in range(tile.shape[0]):
        for q in range(tile.shape[1]):
            hits = False
            for j in range(_CHUNK):
                hits = hits | (tile[t, q, j] + bias[q, j] > floors[q, j])
            if hits:
                for j in range(_CHUNK):
                    value = tile[t, q, j] + bias[q, j]
                    if value > floors[q, j]:
                        if fill == len(values):
                            return -1
                        values[fill] = value
                        places[fill] = (token + t) << 32 | (feature + q * _CHUNK + j)
                        fill += 1
    return fill


@_jit
def _sort_by_token(values, places, starts, sorted_values, features):  # type: ignore[no-untyped-def]
    free = starts[:-1].copy()
    for e in range(len(values)):
        token = places[e] >> 32
        sorted_values[free[token]] = values[e]
        features[free[token]] = places[e] & 0xFFFFFFFF
        free[token] += 1
    for t in range(len(starts) - 1):
        _sort_features(sorted_values, features, starts[t], starts[t + 1])


@_jit
def _sort_by_feature(starts, features, columns, tokens, entries):  # type: ignore[no-untyped-def]
    free = columns[:-1].copy()
    for t in range(len(starts) - 1):
        for e in range(starts[t], starts[t + 1]):
            place = free[features[e]]
            tokens[place], entries[place] = t, e
            free[features[e]] = place + 1


@_jit
def _decode(first, last, starts, features, values, rows, offset, widths, out):  # type: ignore[no-untyped-def]
    d = rows.shape[1]
    for t in range(first, last):
        prefix = 0
        out[0, t] = offset
        for e in range(starts[t], starts[t + 1]):
            i, value = features[e], values[e]
            while i >= widths[prefix]:
                prefix += 1
                out[prefix, t] = out[prefix - 1, t]
            for c in range(d):
                out[prefix, t, c] += value * rows[i, c]
        for later in range(prefix + 1, len(widths)):
            out[later, t] = out[prefix, t]


@_jit
def _gradients(  # type: ignore[no-untyped-def]
    first, last, columns, tokens, entries, values, d_values, g, x, decoder, widths, kept,
    d_encoder, d_decoder, d_bias, squares, unit_norm,
):  # fmt: skip
    d_in, d_out = x.shape[1], decoder.shape[1]
    prefix = 0
    for i in range(first, last):
        while i >= widths[prefix]:
            prefix += 1
        if not kept[i]:
            d_encoder[i] = 0
            d_bias[i] = 0
            if len(g):
                d_decoder[i] = 0
        bias = d_bias[i]
        for p in range(columns[i], columns[i + 1]):
            t, e = tokens[p], entries[p]
            value, d_value = values[e], d_values[e]
            if len(g):
                for c in range(d_out):
                    d_value += g[prefix, t, c] * decoder[i, c]
                for c in range(d_out):
                    d_decoder[i, c] += value * g[prefix, t, c]
                d_values[e] = d_value
            if value > 0:
                for c in range(d_in):
                    d_encoder[i, c] += d_value * x[t, c]
                bias += d_value
        d_bias[i] = bias
        if unit_norm:
            along, norm = 0.0, 0.0
            for c in range(d_out):
                along += d_decoder[i, c] * decoder[i, c]
                norm += decoder[i, c] * decoder[i, c]
            share = d_decoder.dtype.type(along / max(norm, 1e-24))
            for c in range(d_out):
                d_decoder[i, c] -= share * decoder[i, c]
        total = 0.0
        for c in range(d_out):
            total += np.float64(d_decoder[i, c]) * np.float64(d_decoder[i, c])
        squares[0, i] = total
        total = 0.0
        for c in range(d_in):
            total += np.float64(d_encoder[i, c]) * np.float64(d_encoder[i, c])
        squares[1, i] = total


@_jit
def _ordered_errors(first, last, starts, features, values, decoder, before, left, errors):  # type: ignore[no-untyped-def]
    d = left.shape[1]
    for t in range(first, last):
        total, mark = 0.0, 0.0
        for e in range(starts[t], starts[t + 1]):
            i, value = features[e], values[e]
            square = 0.0
            for c in range(d):
                square += left[t, c] * left[t, c]
                left[t, c] -= value * decoder[i, c]
            total += (before[i] - mark) * square
            mark = before[i]
        square = 0.0
        for c in range(d):
            square += left[t, c] * left[t, c]
        errors[t] = total + (1.0 - mark) * square


@_jit
def _ordered_gradients(  # type: ignore[no-untyped-def]
    first, last, starts, features, values, left, decoder, before, d_decoder, d_residual, d_values, scale
):
    """For the columns ``first : last``: walk each token's chain of residuals back from the last one."""
    width = last - first
    d_decoder[:, first:last] = 0
    r, pull = np.empty(width, dtype=left.dtype), np.empty(width, dtype=left.dtype)
    for t in range(len(left)):
        r[:] = left[t, first:last]
        pull[:] = 0
        mark = 1.0
        for e in range(starts[t + 1] - 1, starts[t] - 1, -1):
            i, value = features[e], values[e]
            weight = left.dtype.type(2 * scale * (mark - before[i]))
            mark = before[i]
            row, d_row = decoder[i, first:last], d_decoder[i, first:last]
            dot = value * 0
            for c in range(width):
                pull[c] += weight * r[c]
                r[c] += value * row[c]
                dot += pull[c] * row[c]
                d_row[c] -= value * pull[c]
            d_values[e] = -dot
        weight = left.dtype.type(2 * scale * mark)
        rest = d_residual[t, first:last]
        for c in range(width):
            rest[c] = pull[c] + weight * r[c]


@_jit
def _adam(  # type: ignore[no-untyped-def]
    first,
    last,
    weights,
    gradient,
    m,
    v,
    factor,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    step_size,
    correction,
    unit_norm,
):
    d = weights.shape[1]
    for i in range(first, last):
        square = weights[i, 0] * 0
        for c in range(d):
            g = gradient[i, c] * factor
            m[i, c] = beta1 * m[i, c] + rest1 * g
            v[i, c] = beta2 * v[i, c] + rest2 * g * g
            weights[i, c] -= step_size * m[i, c] / (np.sqrt(v[i, c]) / correction + eps)
            square += weights[i, c] * weights[i, c]
        if unit_norm:
            scale = 1 / max(np.sqrt(square), weights.dtype.type(1e-12))
            for c in range(d):
                weights[i, c] *= scale
