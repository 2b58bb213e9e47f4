"""The shared histogram and the bands cut from it, against plain searches and sums over single values."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.analysis.bins import (
    EDGES,
    NUM_BINS,
    BinCounts,
    band_numbers,
    bin_of,
    histogram,
    median_bins,
    quantile_edges,
    width_edges,
)

POSITIVE = st.floats(2.0**-30, 2.0**127, width=32)
VALUES = st.one_of(
    st.lists(POSITIVE, max_size=30),
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), max_size=30),  # ties, and values on edges
    st.lists(st.sampled_from(EDGES[1:-1].astype(np.float32).tolist()), max_size=10),
    st.builds(lambda value, count: [value] * count, POSITIVE, st.integers(1, 9)),
)


def counts_of(features: list[list[float]]) -> BinCounts:
    bins, counts = [], []
    for values in features:
        found = np.unique(np.searchsorted(EDGES, values, side="right") - 1, return_counts=True) if values else ([], [])
        bins.append(np.asarray(found[0], dtype=np.int64))
        counts.append(np.asarray(found[1], dtype=np.int64))
    starts = np.concatenate([[0], np.cumsum([len(b) for b in bins])])
    return BinCounts(starts, np.concatenate(bins), np.concatenate(counts))


def below(values: list[float], edge: int) -> int:
    return sum(value < EDGES[edge] for value in values)


def test_edges_are_four_per_octave():
    assert np.all(np.diff(EDGES) > 0)
    assert (EDGES[0], EDGES[1], EDGES[-2]) == (0.0, 2.0**-24, 2.0**24)
    assert NUM_BINS == 4 * 48 + 2
    assert EDGES[-1] > np.finfo(np.float32).max
    for j, edge in enumerate(EDGES[1:-1].tolist()):  # the float64 nearest to 2 ** (j / 4): its neighbours are further
        exact = Fraction(2) ** (j - 4 * 24)
        low, high = np.nextafter(edge, 0.0), np.nextafter(edge, np.inf)
        assert Fraction((Fraction(low) + Fraction(edge)) / 2) ** 4 <= exact
        assert exact <= Fraction((Fraction(edge) + Fraction(high)) / 2) ** 4


def test_values_beside_every_edge_fall_into_the_right_bin():
    edges = EDGES[1:-1].astype(np.float32)
    ends = np.array([1e-45, 1e-38, np.finfo(np.float32).max], dtype=np.float32)
    values = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf)), ends])
    expected = np.searchsorted(EDGES, values.astype(np.float64), side="right") - 1
    assert bin_of(values).tolist() == expected.tolist()
    assert bin_of(values).max() == NUM_BINS - 1
    assert bin_of(values).min() == 0


@given(st.lists(POSITIVE, min_size=1, max_size=50))
def test_the_bin_is_the_one_that_a_search_finds(values):
    array = np.array(values, dtype=np.float32)
    expected = np.searchsorted(EDGES, array.astype(np.float64), side="right") - 1
    assert bin_of(array).tolist() == expected.tolist()


@given(VALUES)
def test_the_histogram_holds_every_value(values):
    counts = counts_of([values])
    edges, found = histogram(counts.bins, counts.counts)
    assert found.sum() == len(values)
    assert edges.tolist() == [edge for edge in EDGES.tolist() if values and edges[0] <= edge <= edges[-1]]
    for low, high, count in zip(edges[:-1], edges[1:], found, strict=True):
        assert count == sum(low <= value < high for value in values)
    if values:
        assert found[0] > 0
        assert found[-1] > 0


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_the_median_bin_is_where_half_is_reached(features):
    for values, found in zip(features, median_bins(counts_of(features)), strict=True):
        if values:
            assert 2 * below(values, found + 1) >= len(values)
            assert 2 * below(values, found) < len(values)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 7))
def test_edges_of_equal_share_are_the_nearest_there_are(features, num_bands):
    counts = counts_of(features)
    edges = quantile_edges(counts, num_bands)
    assert edges.shape == (len(features), num_bands + 1)
    for values, found in zip(features, edges.tolist(), strict=True):
        if not values:
            assert set(found) == {0}
            continue
        bins = np.searchsorted(EDGES, values, side="right") - 1
        assert (found[0], found[-1]) == (bins.min(), bins.max() + 1)
        for i in range(1, num_bands):
            distance = {
                edge: abs(Fraction(below(values, edge), len(values)) - Fraction(i, num_bands))
                for edge in range(found[0], found[-1] + 1)
            }
            assert found[i] == min(distance, key=lambda edge: (distance[edge], edge))


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 7))
def test_edges_of_equal_width_are_the_nearest_there_are(features, num_bands):
    maxima = np.array([max(values, default=0.0) for values in features], dtype=np.float32)
    edges = width_edges(counts_of(features), maxima, num_bands)
    for values, found in zip(features, edges.tolist(), strict=True):
        if not values:
            assert set(found) == {0}
            continue
        end = max(np.searchsorted(EDGES, values, side="right"))
        assert (found[0], found[-1]) == (0, end)
        for i in range(1, num_bands):
            target = Fraction(max(values) * i / num_bands)
            nearest = min(range(NUM_BINS + 1), key=lambda edge: (abs(Fraction(EDGES[edge]) - target), edge))
            assert found[i] == min(nearest, end)


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 7), st.sampled_from(["quantile", "width"]))
def test_bands_are_disjoint_and_hold_everything(features, num_bands, kind):
    counts = counts_of(features)
    maxima = np.array([max(values, default=0.0) for values in features], dtype=np.float32)
    edges = quantile_edges(counts, num_bands) if kind == "quantile" else width_edges(counts, maxima, num_bands)
    assert np.all(np.diff(edges, axis=1) >= 0)
    numbers = band_numbers(edges, counts.owner, counts.bins)
    for feature, values in enumerate(features):
        there = np.unique(edges[feature])
        own = slice(counts.starts[feature], counts.starts[feature + 1])
        for number, bin_number in zip(numbers[own], counts.bins[own], strict=True):
            assert there[number] <= bin_number < there[number + 1]
        held = np.bincount(numbers[own], weights=counts.counts[own], minlength=len(there) - 1)
        expected = [below(values, high) - below(values, low) for low, high in pairwise(there)]
        assert held.tolist() == expected
        if kind == "quantile":
            assert all(expected)  # no band is empty


def test_one_value_makes_one_band():
    counts = counts_of([[2.0] * 9])
    assert np.unique(quantile_edges(counts, 5)).tolist() == [counts.bins[0], counts.bins[0] + 1]


def test_totals_and_owners():
    counts = counts_of([[1.0, 1.0, 8.0], [], [3.0]])
    assert counts.totals.tolist() == [3, 0, 1]
    assert counts.owner.tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="read-only"):
        EDGES[0] = 1
