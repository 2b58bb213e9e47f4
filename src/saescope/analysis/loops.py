"""The compiled loops behind the numbers of every feature: a row's largest numbers, its shape, pairs that fire together.

All of them walk one row at a time, which stays in the cache however often it is read, and give the same result whatever
the number of threads. They stand in one file because Numba's cache does not notice a change in a function of another.

n  rows, m  numbers in a row, k  numbers kept of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from saescope.kernels.compiling import jit


def in_parts(job: Callable[..., None], num_items: int, *arrays: Any, work: np.ndarray | None = None) -> None:
    """Run ``job(first, last, *arrays)`` over items, in as many threads as torch was told to use.

    Args:
        work: rising sums of what items cost, ``[num_items + 1]``, where they do not cost the same.
    """
    num_parts = max(1, min(torch.get_num_threads(), num_items))
    if num_parts == 1:
        job(0, num_items, *arrays)
        return
    work = np.arange(num_items + 1) if work is None else work
    ends = np.searchsorted(work, work[-1] * np.linspace(0, 1, num_parts + 1)[1:-1])
    bounds = [0, *ends.tolist(), num_items]
    with ThreadPoolExecutor(num_parts, thread_name_prefix="saescope-analysis") as pool:
        for future in [pool.submit(job, first, last, *arrays) for first, last in pairwise(bounds)]:
            future.result()


_jit = jit()
_jit_sums = jit("reassoc", "contract", "nsz", "nnan")  # no NaN comes in


@_jit
def _insert(keys, ids, num_kept, key, id):  # type: ignore[no-untyped-def]
    """Put a key among those kept, ``keys`` falling; of equal keys the first to come stays ahead. Gives how many are kept."""
    place = num_kept
    if num_kept == len(keys):
        if not key > keys[num_kept - 1]:
            return num_kept
        place = num_kept - 1
    else:
        num_kept += 1
    while place > 0 and keys[place - 1] < key:
        keys[place], ids[place] = keys[place - 1], ids[place - 1]
        place -= 1
    keys[place], ids[place] = key, id
    return num_kept


@_jit
def _largest(row, sign, keys, ids):  # type: ignore[no-untyped-def]
    """The largest of ``sign * row``, largest first, equal ones by place; minus infinity is never taken."""
    num_kept, bound = 0, -math.inf
    for j in range(len(row)):
        key = sign * row[j]
        if key > bound:
            num_kept = _insert(keys, ids, num_kept, key, j)
            if num_kept == len(keys):
                bound = keys[num_kept - 1]
    return num_kept


@_jit
def largest_of_rows(first, last, rows, keys, ids):  # type: ignore[no-untyped-def]
    """Of each row ``[n, m]`` the k largest numbers and their places, both ``[n, k]``, -1 where there are no more.

    Largest first, equal ones by place. Numbers of minus infinity are not there.
    """
    for i in range(first, last):
        num_kept = _largest(rows[i], 1, keys[i], ids[i])
        ids[i, num_kept:] = -1


@_jit_sums
def _extremes(row):  # type: ignore[no-untyped-def]
    low = high = row[0]
    for value in row:
        low, high = min(low, value), max(high, value)
    return low, high


@_jit_sums
def _powers(row, mean):  # type: ignore[no-untyped-def]
    """Means of the second to fourth power of the distance from ``mean``, in float64."""
    second = third = fourth = 0.0
    for value in row:
        distance = np.float64(value) - mean
        square = distance * distance
        second += square
        third += square * distance
        fourth += square * square
    return second / len(row), third / len(row), fourth / len(row)


@_jit
def _histogram(row, mean, edges, counts):  # type: ignore[no-untyped-def]
    """Counts of ``row - mean`` in ``[edges[b], edges[b + 1])``, edges evenly spaced and the last bin closed."""
    last = len(counts) - 1
    counts[:] = 0
    low, per_bin = edges[0], len(counts) / (edges[-1] - edges[0])
    for value in row:
        value = np.float64(value) - mean
        b = min(int((value - low) * per_bin), last)
        # the division may err by one next to an edge; the edges as they are written decide
        if value < edges[b]:
            b -= 1
        elif b < last and value >= edges[b + 1]:
            b += 1
        counts[b] += 1


@_jit
def shapes_of_rows(first, last, rows, means, keys, ids, powers, edges, counts):  # type: ignore[no-untyped-def]
    """All that is said of the effects of a feature on a vocabulary, for the rows ``first : last`` of ``[n, m]``.

    ``means`` (float64) are taken off every number.

    Fills ``keys`` and ``ids`` ``[2, n, k]``: the largest numbers before means are taken off, and the largest of their
    negatives; ``powers [n, 3]``: means of the second to fourth power; ``edges [n, b + 1]`` and ``counts [n, b]``: a
    histogram from the least to the largest number. A row of equal numbers has no spread: its powers, and its edges and
    counts, are 0.
    """
    num_bins = counts.shape[1]
    for i in range(first, last):
        row = rows[i]
        low, high = _extremes(row)
        _largest(row, 1, keys[0, i], ids[0, i])
        _largest(row, -1, keys[1, i], ids[1, i])
        powers[i], edges[i], counts[i] = 0, 0, 0
        if low < high:
            powers[i] = _powers(row, means[i])
            least, largest = np.float64(low) - means[i], np.float64(high) - means[i]
            for b in range(num_bins):
                edges[i, b] = least + (largest - least) * (b / num_bins)
            edges[i, num_bins] = largest
            _histogram(row, means[i], edges[i], counts[i])


@_jit_sums
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@_jit
def cosines_of_pairs(first, last, rows, norms, begin, ids, cosines):  # type: ignore[no-untyped-def]
    """Cosines of row ``begin + i`` with the rows ``ids[i]``, in float64; minus infinity where there is no row (-1)."""
    for i in range(first, last):
        for k in range(ids.shape[1]):
            j = ids[i, k]
            if j < 0:
                cosines[i, k] = -math.inf
            else:
                cosine = _dot(rows[begin + i], rows[j]) / (norms[begin + i] * norms[j])
                cosines[i, k] = min(max(cosine, -1.0), 1.0)


@_jit
def copy_stretches(numbers, starts, counts, picked):  # type: ignore[no-untyped-def]
    """``counts[i]`` numbers from ``starts[i]`` on, one stretch after the other, into ``picked``."""
    fill = 0
    for i in range(len(starts)):
        for place in range(starts[i], starts[i] + counts[i]):
            picked[fill] = numbers[place]
            fill += 1


@_jit
def by_feature(features, starts, fill, tokens):  # type: ignore[no-untyped-def]
    """Tokens of every feature, in order: ``tokens[fill[f]]`` and on; ``fill [d_sae]`` is moved to where they end.

    ``starts [T + 1]``: where each token's firings begin in ``features``.
    """
    for token in range(len(starts) - 1):
        for f in features[starts[token] : starts[token + 1]]:
            tokens[fill[f]] = token
            fill[f] += 1


@_jit
def firing_together(  # type: ignore[no-untyped-def]
    first, last, features, starts, tokens, bounds, min_firings, is_phi, ids, values, num_both
):
    """The features that fire most with each of ``first : last``: ids (-1: no more), phi or Jaccard, tokens in common.

    ``features`` and ``starts [T + 1]``: what fires on each token; ``tokens`` and ``bounds [d_sae + 1]``: where each
    feature fires. The pairs of one feature are counted at a time, in a row of d_sae numbers.
    """
    d_sae, num_tokens = len(bounds) - 1, len(starts) - 1
    both = np.zeros(d_sae, dtype=np.int32)
    for i in range(first, last):
        num_kept, num_i = 0, bounds[i + 1] - bounds[i]
        if num_i >= min_firings:
            for token in tokens[bounds[i] : bounds[i + 1]]:
                for f in features[starts[token] : starts[token + 1]]:
                    both[f] += 1
            for j in range(d_sae):
                if both[j] == 0 or j == i:
                    continue
                together, num_j = np.int64(both[j]), bounds[j + 1] - bounds[j]
                if num_j < min_firings:
                    continue
                if is_phi:
                    above = num_tokens * together - num_i * num_j
                    if above <= 0:  # no more often than by chance; what fires on every token ends here too
                        continue
                    value = above / math.sqrt(float(num_i * (num_tokens - num_i)) * float(num_j * (num_tokens - num_j)))
                else:
                    value = together / (num_i + num_j - together)
                num_kept = _insert(values[i], ids[i], num_kept, value, j)
            for k in range(num_kept):
                num_both[i, k] = both[ids[i, k]]
            both[:] = 0
        ids[i, num_kept:], values[i, num_kept:], num_both[i, num_kept:] = -1, np.nan, 0
