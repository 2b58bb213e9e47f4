from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.store.texts import (
    are_float32,
    from_json,
    pack_edges,
    pack_float32,
    pack_ranges,
    shortest_float32,
    to_json,
    unpack_edges,
    unpack_float32,
    unpack_ranges,
)


def test_float32_values_are_short_and_come_back() -> None:
    values = np.array([0.1, 2.5, 1e-45, 3.4e38, -7.25e-10], dtype=np.float32).tolist()
    assert pack_float32(values, "x") == "[0.1,2.5,1e-45,3.4e+38,-7.25e-10]"
    assert unpack_float32(pack_float32(values, "x")) == values
    assert shortest_float32(values[:2]) == [0.1, 2.5]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_float32_comes_back(values: list[float]) -> None:
    assert are_float32(values)
    assert unpack_float32(pack_float32(values, "x")) == values


def test_many_random_bit_patterns_come_back() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)].tolist()
    assert unpack_float32(pack_float32(values, "x")) == values
    texts = pack_float32(values, "x")[1:-1].split(",")
    assert max(len(text.lstrip("-").split("e")[0].replace(".", "").strip("0")) for text in texts) <= 9


def test_what_is_no_float32_is_known() -> None:
    assert not are_float32([0.5, 0.1])
    assert not are_float32([1e300])
    assert are_float32([])
    for wrong in (1e39, math.inf, math.nan):
        with pytest.raises(ValueError, match="what cannot be stored: activations are finite float32 numbers"):
            pack_float32([1.0, wrong], "what")


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        ((), "[]"),
        (((0, 2), (2, 2), (2, 5)), "[2,0,3]"),
        (((0, 3), (2, 3), (2, 4), (4, 6)), "[3,[2,3],[2,4],2]"),
        (((0, 3), (0, 3)), "[3,[0,3]]"),
    ],
)
def test_ranges_are_told_by_length(ranges: tuple[tuple[int, int], ...], text: str) -> None:
    assert pack_ranges(ranges) == text
    assert unpack_ranges(text) == ranges


def test_edges_are_told_in_short_where_that_loses_nothing() -> None:
    octaves = [2.0 ** (k / 4) for k in range(-30, 40)]
    assert pack_edges(octaves) == {"octaves": [-30, 39]}
    assert pack_edges(np.exp2(np.arange(-8, 1) / 4).tolist()) == {"octaves": [-8, 0]}
    even = np.linspace(-1.3, 2.7, 41).tolist()
    assert pack_edges(even) == {"even": [-1.3, 2.7, 41]}
    moved = [*octaves[:-1], math.nextafter(octaves[-1], math.inf)]
    assert pack_edges(moved) == moved
    assert pack_edges([0.0, *octaves]) == [0.0, *octaves]
    for edges in (
        octaves,
        even,
        moved,
        [0.0, *octaves],
        [],
        [1.0],
        [1.0, 2.0],
        [0.0] * 5,
        [1e308, 1.2e308, 1.5e308, 1.7e308],
    ):
        assert unpack_edges(pack_edges(edges)) == tuple(edges)


def test_json_is_compact_and_escapes_only_what_it_must() -> None:
    assert to_json({"a": [1, 0.1, "é\n"]}, "x") == '{"a":[1,0.1,"é\\n"]}'
    assert to_json("a\0é", "x") == '"a\\u0000é"'
    assert to_json("\udc80", "x") == '"\\udc80"'
    with pytest.raises(ValueError, match=r"^what cannot be stored: .*; expected finite plain numbers"):
        to_json([math.nan], "what")


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(_values)
def test_json_is_read_as_by_json(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1), f" {json.dumps(value)}\n"):
        assert from_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "[1", "[1] 2", "nothing", "[1,]"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        from_json(text)
