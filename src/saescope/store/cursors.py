"""Where a page of a sorted list ended: an opaque text that says by what the list was sorted, and its last feature."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cursor:
    """The last feature of a page, by its sort key and its index. The value is None among features without one."""

    sort: str
    descending: bool
    value: float | None
    index: int

    def __str__(self) -> str:
        told = json.dumps([self.sort, self.descending, self.value, self.index], separators=(",", ":"))
        return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")


def read_cursor(said: str, *, sort: str, descending: bool) -> Cursor:
    """The cursor that a list sorted like this gave.

    Raises:
        ValueError: it was not made by the store, or by a list that was sorted in another way.
    """
    wrong = f"{said!r} is no place in a list; give what the page before said is next, or leave it out"
    try:
        told = json.loads(base64.b64decode(said + "=" * (-len(said) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise ValueError(wrong) from error
    if not isinstance(told, list) or list(map(type, told[:2])) != [str, bool] or len(told) != 4:
        raise ValueError(wrong)
    value, index = told[2:]
    if not (
        _is_count(index) and (value is None or _is_count(value) or (type(value) is float and math.isfinite(value)))
    ):
        raise ValueError(wrong)
    if (told[0], told[1]) != (sort, descending):
        raise ValueError(
            f"this place belongs to a list sorted by {told[0]}, {_direction(told[1])}, not by {sort}, "
            f"{_direction(descending)}; start again without it"
        )
    return Cursor(sort, descending, value, index)


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _direction(descending: bool) -> str:
    return "descending" if descending else "ascending"
