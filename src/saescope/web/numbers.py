"""Numbers as people read them: four significant digits, grouped thousands, shares as percentages."""

from __future__ import annotations

import math

_MINUS = "\N{MINUS SIGN}"


def decimal(value: float, digits: int = 4, *, trim: bool = True) -> str:
    """`digits` significant digits: 0.04217, 12.5, 1,234, 1.2e−7. `trim=False` is for columns: 2.10 over 2.04."""
    if not math.isfinite(value):
        return str(value).replace("-", _MINUS)
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if trim and "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    text = f"{value:,.{places}f}"
    if trim and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", _MINUS)


def whole(value: int) -> str:
    """An integer with its thousands grouped: 12,345."""
    return f"{value:,}".replace("-", _MINUS)


def percent(share: float, digits: int = 3) -> str:
    """A share of one as a percentage: 0.0123 is "1.23 %"."""
    return f"{decimal(100 * share, digits)}\N{NO-BREAK SPACE}%"


def met_words(met: bool | None) -> str:
    """The verdict on one number: "met", "not met", or a dash where nothing was promised."""
    return "\N{EN DASH}" if met is None else "met" if met else "not met"


def quantity(value: object) -> str:
    """A value or a target of an evaluation row: a number, words such as "at least 0.9", or nothing."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    return decimal(value) if isinstance(value, float) else str(value)
