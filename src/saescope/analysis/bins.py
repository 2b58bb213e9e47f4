"""The histogram that all features share, and magnitude bands whose edges are snapped to it.

Bins have four edges per octave, ``2^(j / 4)``, so that activations of any scale are told apart equally well, and one set
of edges serves every feature from its first firing on. A band is a run of bins: which activations lie in it, and what
share of the firings that is, follows exactly from the counts of bins, although its edges are chosen after the pass.

F  features, S  occupied (feature, bin) pairs in order of feature and bin, n  bands asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LOWEST, _HIGHEST = -24, 24  # powers of two; what lies beyond falls into one bin below and one above
_QUARTERS = 2.0 ** (np.arange(4) / 4)
EDGES = np.concatenate(
    [[0.0], np.ldexp(_QUARTERS, np.arange(_LOWEST, _HIGHEST)[:, None]).ravel(), [2.0**_HIGHEST, 2.0**128]]
)
"""Bin b holds the values in ``[EDGES[b], EDGES[b + 1])``; the last edge is above every float32."""
NUM_BINS = len(EDGES) - 1
UNDERFLOW, OVERFLOW = 0, NUM_BINS - 1
EDGES.setflags(write=False)


def _table() -> tuple[np.ndarray, np.ndarray]:
    """For every value of a float32's exponent and first two digits: its bin, and the bits from which the next one begins.

    There is at most one edge inside such a stretch of numbers, since edges are further apart than a quarter of an octave's
    lower end.
    """
    lows = (np.arange(1 << 10, dtype=np.uint32) << 21).view(np.float32)[: 255 * 4]  # up to the largest finite exponent
    bins = np.searchsorted(EDGES, lows.astype(np.float64), side="right") - 1
    upper = np.append(EDGES[:-1], np.inf)[bins + 1]
    rounded = upper.astype(np.float32)  # the first float32 that is not below the edge
    rounded = np.where(rounded < upper, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return bins.astype(np.int32), rounded.view(np.uint32)


BIN, NEXT = _table()


def bin_of(values: np.ndarray) -> np.ndarray:
    """The bin of each of some float32 values, finite and not negative; int32.

    Exact: the same as a search for the value among `EDGES` as float64 numbers, without logarithms.
    """
    bits = values.view(np.uint32)
    cell = (bits >> 21).astype(np.intp)
    return BIN[cell] + (bits >= NEXT[cell])


@dataclass(frozen=True)
class BinCounts:
    """Occupied bins of some features: those of the f-th are ``starts[f] : starts[f + 1]``, in rising order."""

    starts: np.ndarray  # int64, [F + 1]
    bins: np.ndarray  # int32, [S]
    counts: np.ndarray  # int64, [S]; above 0

    @property
    def owner(self) -> np.ndarray:
        """The feature of each occupied bin, from 0, ``[S]``."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def totals(self) -> np.ndarray:
        """Counts of each feature, ``[F]``."""
        return np.diff(np.concatenate([[0], np.cumsum(self.counts)])[self.starts])

    def stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """First bin of each feature, and the one behind its last; 0 and 0 where it has none; int64, ``[F]``."""
        low, high = np.zeros((2, len(self.starts) - 1), dtype=np.int64)
        some = np.flatnonzero(np.diff(self.starts))
        low[some] = self.bins[self.starts[some]]
        high[some] = self.bins[self.starts[some + 1] - 1] + 1
        return low, high


def median_bins(counts: BinCounts) -> np.ndarray:
    """The bin of each feature at which half of its counts is reached; 0 where it has none; int64, ``[F]``."""
    bins = np.zeros(len(counts.starts) - 1, dtype=np.int64)
    some = np.flatnonzero(np.diff(counts.starts))
    reached = np.cumsum(counts.counts)
    before = (reached - counts.counts)[counts.starts[some]]
    total = reached[counts.starts[some + 1] - 1] - before
    bins[some] = counts.bins[np.searchsorted(2 * reached, 2 * before + total)]
    return bins


def histogram(bins: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts of the stretch of bins that is occupied; both empty where none is."""
    if not len(bins):
        return np.empty(0), np.empty(0, dtype=np.int64)
    dense = np.zeros(bins[-1] - bins[0] + 1, dtype=np.int64)
    dense[bins - bins[0]] = counts
    return EDGES[bins[0] : bins[-1] + 2], dense


def quantile_edges(counts: BinCounts, num_bands: int) -> np.ndarray:
    """Edges (numbers of `EDGES`) of bands that hold equal shares of the counts as nearly as bins allow, ``[F, n + 1]``.

    The first edge opens the first occupied bin, the last one closes the last. Edge i between them is the one below which
    the share of the counts is nearest to i / n; of two that are as near, the lower. Equal edges in a row stand for no band.
    """
    low, high = counts.stretches()
    edges = np.repeat(low[:, None], num_bands + 1, axis=1)
    some = np.flatnonzero(np.diff(counts.starts))
    reached = np.cumsum(counts.counts)  # below the upper edge of each bin, all features before included
    first = counts.starts[some]
    before = (reached - counts.counts)[first]
    total = reached[counts.starts[some + 1] - 1] - before
    for i in range(1, num_bands):
        target = num_bands * before + i * total  # in units of 1 / n, so that nothing is rounded
        upper = np.searchsorted(num_bands * reached, target)
        above = num_bands * reached[upper] - target
        below = target - num_bands * (reached - counts.counts)[upper]
        # the lowest edge with the smaller share: behind the occupied bin before this one
        lower_edge = np.where(upper > first, counts.bins[upper - 1] + 1, low[some])
        edges[some, i] = np.where(above < below, counts.bins[upper] + 1, lower_edge)
    edges[:, num_bands] = high
    return edges


def width_edges(counts: BinCounts, maxima: np.ndarray, num_bands: int) -> np.ndarray:
    """Edges (numbers of `EDGES`) of bands of equal width from 0 to each feature's maximum, ``[F, n + 1]``.

    Each is the edge nearest by value, the lower of two as near; the last one closes the last occupied bin. Equal edges in
    a row stand for no band.
    """
    _, high = counts.stretches()
    edges = np.zeros((len(high), num_bands + 1), dtype=np.int64)
    for i in range(1, num_bands):
        target = maxima.astype(np.float64) * i / num_bands
        upper = np.searchsorted(EDGES, target)
        lower = np.maximum(upper - 1, 0)
        edges[:, i] = np.minimum(np.where(EDGES[upper] - target < target - EDGES[lower], upper, lower), high)
    edges[:, num_bands] = high
    return edges


def band_numbers(edges: np.ndarray, owner: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """The band of each bin, counted from 0 over the bands that there are, ``[S]``.

    Args:
        edges: of each feature, ``[F, n + 1]``, not falling.
        owner: the feature of each bin.
    """
    numbers = np.zeros(len(bins), dtype=np.int64)
    for i in range(1, edges.shape[1] - 1):
        begins = edges[:, i] > edges[:, i - 1]
        numbers += begins[owner] & (edges[owner, i] <= bins)
    return numbers
