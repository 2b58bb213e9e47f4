from __future__ import annotations

import math

import pytest

from saescope.web.numbers import decimal, met_words, percent, quantity, whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0421734, "0.04217"),
        (12.5, "12.5"),
        (-3.14159, "−3.142"),
        (1234.4, "1,234"),
        (123456.0, "123,456"),
        (1.2e-7, "1.2e−7"),
        (0.99996, "1"),
        (2.5e9, "2.5e9"),
        (math.inf, "inf"),
        (-math.inf, "−inf"),
    ],
)
def test_decimal(value: float, text: str) -> None:
    assert decimal(value) == text


def test_columns_keep_their_zeros() -> None:
    assert [decimal(value, 3, trim=False) for value in (2.1, 20.0, 0.5, 2e-9)] == ["2.10", "20.0", "0.500", "2.00e−9"]


def test_other_quantities() -> None:
    assert whole(-1234567) == "−1,234,567"
    assert percent(0.012345) == "1.23\u00a0%"
    assert percent(3e-7) == "3e−5\u00a0%"
    assert [quantity(v) for v in (None, True, 7, 0.25, "at least 0.9")] == ["–", "yes", "7", "0.25", "at least 0.9"]
    assert [met_words(v) for v in (True, False, None)] == ["met", "not met", "–"]
