"""The loops of ``statistics.py`` and ``samples.py`` that numpy can only do in many steps, compiled by Numba.

Where they are called stands the same in numpy, which is done without Numba; results are equal (sums to rounding). All of
it is in this file: Numba's cache does not notice changes of functions in other files.
"""

from __future__ import annotations

import numpy as np

from saescope.kernels.compiling import jit

_jit = jit()


@_jit
def _swap(keys, data, i, j):  # type: ignore[no-untyped-def]
    keys[i], keys[j] = keys[j], keys[i]
    for c in range(data.shape[1]):
        data[i, c], data[j, c] = data[j, c], data[i, c]


@_jit
def _select(keys, data, fill, k):  # type: ignore[no-untyped-def]
    """Move the k smallest of the first ``fill`` keys to the front."""
    low, high = 0, fill - 1
    while low < high:
        pivot = keys[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                _swap(keys, data, i, j)
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break


@_jit
def _cut(g, k, fill, keys, data, bounds):  # type: ignore[no-untyped-def]
    if fill[g] > k:
        _select(keys[g], data[g], fill[g], k)
        fill[g] = k
    if fill[g] == k:
        bounds[g] = keys[g, :k].max()


@_jit
def cut(k, fill, keys, data, bounds):  # type: ignore[no-untyped-def]
    """Leave the k smallest keys in every list."""
    for g in range(len(fill)):
        _cut(g, k, fill, keys, data, bounds)


@_jit
def add(groups, new_keys, new_data, k, fill, keys, data, bounds):  # type: ignore[no-untyped-def]
    """Add members to lists that do not fold."""
    room = keys.shape[1]
    for i in range(len(groups)):
        g = groups[i]
        if new_keys[i] <= bounds[g] and fill[g] == room:
            _cut(g, k, fill, keys, data, bounds)
        if new_keys[i] <= bounds[g]:
            n = fill[g]
            keys[g, n] = new_keys[i]
            for c in range(new_data.shape[1]):
                data[g, n, c] = new_data[i, c]
            fill[g] = n + 1


@_jit
def _move(keys, data, source, target):  # type: ignore[no-untyped-def]
    keys[target] = keys[source]
    for c in range(data.shape[1]):
        data[target, c] = data[source, c]


@_jit
def add_folding(groups, new_keys, new_data, k, ordered, window, fill, keys, data, bounds, order_bounds):  # type: ignore[no-untyped-def]
    """Add members to lists that fold, each at its place, so that a list is always in its final form.

    The order, where there is one, is the first column; that of copies stands behind that of windows.
    """
    for i in range(len(groups)):
        g, key, order = groups[i], new_keys[i], new_data[i, 0]
        if ordered:
            if order > order_bounds[g] or (order == order_bounds[g] and key > bounds[g]):
                continue
        elif key > bounds[g]:
            continue
        n, place = fill[g], 0
        while place < n and keys[g, place] != key:
            place += 1
        if place < n:
            if not ordered or data[g, place, 0] == order:
                copies = data[g, place, window + 1] + new_data[i, window + 1]
                if new_data[i, window] < data[g, place, window]:
                    data[g, place] = new_data[i]
                data[g, place, window + 1] = copies
                continue
            if data[g, place, 0] < order:
                continue
            n -= 1  # a copy with a higher value takes its place
            for j in range(place, n):
                _move(keys[g], data[g], j + 1, j)
        place = min(n, k - 1)
        while place > 0:
            if ordered and data[g, place - 1, 0] != order:
                before = order < data[g, place - 1, 0]
            else:
                before = key < keys[g, place - 1]
            if not before:
                break
            _move(keys[g], data[g], place - 1, place)
            place -= 1
        keys[g, place] = key
        for c in range(data.shape[2]):
            data[g, place, c] = new_data[i, c]
        fill[g] = min(n + 1, k)
        if fill[g] == k:
            bounds[g] = keys[g, k - 1]
            if ordered:
                order_bounds[g] = data[g, k - 1, 0]


@_jit
def compact(lengths, wanted, positions, values):  # type: ignore[no-untyped-def]
    """Move the firings of wanted pairs to the front of both arrays; returns those parts."""
    source = target = 0
    for i in range(len(lengths)):
        length = int(lengths[i])
        if wanted[i]:
            for j in range(length):
                positions[target + j], values[target + j] = positions[source + j], values[source + j]
            target += length
        source += length
    return positions[:target], values[:target]


@_jit
def pairs(feature, row, position, size):  # type: ignore[no-untyped-def]
    """Runs of firings of one feature and window: where each begins, its highest size, and the first position of that."""
    start = np.empty(len(feature), dtype=np.int64)
    peak = np.empty(len(feature), dtype=np.int64)
    highest = np.empty(len(feature), dtype=size.dtype)
    last = -1
    for i in range(len(feature)):
        if i == 0 or feature[i] != feature[i - 1] or row[i] != row[i - 1]:
            last += 1
            start[last], highest[last], peak[last] = i, size[i], position[i]
        elif size[i] > highest[last]:
            highest[last], peak[last] = size[i], position[i]
    return start[: last + 1], highest[: last + 1], peak[: last + 1]


@_jit
def runs(starts, size, place, value, position, context_size, feature, positions):  # type: ignore[no-untyped-def]
    """Of each feature's firings: count, sum, squared distances from the mean, highest, first, last, number of negatives.

    ``feature``: of each run; ``positions``: firings by stretch, ``[d_sae, stretches]``, are added to.
    """
    n, num_stretches = len(starts), positions.shape[1]
    count, first, last, negative = (
        np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64), np.zeros(n, np.int64)
    )  # fmt: skip
    total, squares, highest = np.zeros(n), np.zeros(n), np.zeros(n, size.dtype)
    for r in range(n):
        begin, end = starts[r], starts[r + 1] if r + 1 < n else len(size)
        count[r], first[r], last[r] = end - begin, place[begin], place[begin]
        for i in range(begin, end):
            total[r] += size[i]
            highest[r] = max(highest[r], size[i])
            first[r], last[r] = min(first[r], place[i]), max(last[r], place[i])
            negative[r] += value[i] < 0
            positions[feature[r], position[i] * num_stretches // context_size] += 1
        mean = total[r] / count[r]
        for i in range(begin, end):
            squares[r] += (size[i] - mean) * (size[i] - mean)
    return count, total, squares, highest, first, last, negative


@_jit
def slots(feature, size, bin_table, next_table, num_bins, slot_of, counts):  # type: ignore[no-untyped-def]
    """The slot of each firing's bin, counted where there is one; -1 where there is none yet."""
    bits = size.view(np.uint32)
    found = np.empty(len(feature), dtype=np.int64)
    for i in range(len(feature)):
        cell = bits[i] >> np.uint32(21)
        number = bin_table[cell] + (bits[i] >= next_table[cell])
        found[i] = slot_of[feature[i] * num_bins + number]
        if found[i] >= 0:
            counts[found[i]] += 1
    return found
