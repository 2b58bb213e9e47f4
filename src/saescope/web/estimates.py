"""Numbers with intervals as people read them: 0.873 [0.861, 0.884], with as many digits as the interval bears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saescope.web.numbers import decimal

NO_VALUE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def estimate(number: Mapping[str, Any] | None) -> tuple[str, str]:
    """A number's value and its interval, which is empty where there is none; the value is a dash where there is none.

    Two digits of the interval's width are shown, and the value has as many places: 12,345 [12,300, 12,390].
    """
    if number is None or number.get("value") is None:
        return NO_VALUE, ""
    value, low, high = number["value"], number.get("low"), number.get("high")
    if low is None or high is None:
        return decimal(value), ""
    width, largest = high - low, max(abs(value), abs(low), abs(high))
    if not width > 1e-7 or not largest < 1e6:
        return decimal(value), f"[{decimal(low)}, {decimal(high)}]"
    places = max(0, 1 - math.floor(math.log10(width)))
    return _fixed(value, places), f"[{_fixed(low, places)}, {_fixed(high, places)}]"


def written(number: Mapping[str, Any] | None) -> str:
    """Value and interval in one string."""
    return " ".join(filter(None, estimate(number)))


def minutes(seconds: float) -> str:
    """A duration: 35 min 4 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{decimal(seconds, 3)} s"


def _fixed(value: float, places: int) -> str:
    text = f"{value:,.{places}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text.replace("-", _MINUS)
