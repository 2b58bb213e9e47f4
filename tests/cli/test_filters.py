"""Filters as people write them, against the comparison itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.cli.filters import parse_filters

NAMES = ("density", "lift", "num_firings", "logit_skew")
TESTS = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "=": lambda one, other: one == other,
}


def holds(ranges, name, value):
    low, high = ranges.get(name, (None, None))
    return (low is None or value >= low) and (high is None or value <= high)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("density>=0.001", (0.001, None)),
        (" density <= 1e-2 ", (None, 0.01)),
        ("0.5<=density", (0.5, None)),
        ("0.001<=density<=0.1", (0.001, 0.1)),
        ("0.1>=density>=0.001", (0.001, 0.1)),
        ("density>=0.5%", (0.005, None)),
        ("density=0.25", (0.25, 0.25)),
        ("density==0.25", (0.25, 0.25)),
        ("density>=-2.5", (-2.5, None)),
    ],
)
def test_a_filter_is_a_range(written, expected):
    assert parse_filters([written], NAMES) == {"density": expected}


@given(sign=st.sampled_from(list(TESTS)), end=st.floats(-10, 10), other=st.floats(-10, 10), turned=st.booleans())
def test_a_filter_holds_where_the_comparison_does(sign, end, other, turned):
    ranges = parse_filters([f"{end!r}{sign}lift" if turned else f"lift{sign}{end!r}"], NAMES)
    for value in (other, end, math.nextafter(end, math.inf), math.nextafter(end, -math.inf)):
        assert holds(ranges, "lift", value) == (TESTS[sign](end, value) if turned else TESTS[sign](value, end))


def test_several_filters_must_all_hold():
    filters = ["lift>=2", "lift>=1", "num_firings>0", "lift<=9", "lift<=10"]
    assert parse_filters(filters, NAMES) == {"lift": (2.0, 9.0), "num_firings": (5e-324, None)}
    assert parse_filters([], NAMES) == {}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("densty>=1", "'densty>=1' names no statistic; did you mean density?"),
        ("qqq>=1", "there are density, lift, num_firings, logit_skew"),
        ("density>=many", "'many', which is no number"),
        ("density>=nan", "'nan', which is no number"),
        ("density", "'density' cannot be read; write density>=0.001"),
        ("", "cannot be read"),
        ("1<2", "cannot be read"),
        ("density>=", "'', which is no number"),
        ("1<=density>=2", "cannot be read"),
        ("1=density=1", "cannot be read"),
        ("density=>1", "cannot be read"),
        ("lift>=1<=density", "cannot be read"),
    ],
)
def test_a_mistake_is_told_in_words(written, words):
    with pytest.raises(ValueError, match="filter") as refused:
        parse_filters([written], NAMES)
    assert words in str(refused.value)


def test_a_range_that_nothing_is_in():
    with pytest.raises(ValueError, match="no feature can have lift >= 3 and <= 2"):
        parse_filters(["lift>=3", "lift<=2"], NAMES)
