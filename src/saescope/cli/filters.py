"""Filters on the command line: ``density>=0.001``, ``0.001<=density<=1%``, ``num_firings=0``, as ranges of numbers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence

Range = tuple[float | None, float | None]

_NAME = re.compile(r"[a-z_]+")
_SIGN = re.compile(r"\s*(<=|>=|<|>|==?)\s*")
_TURNED = {"<=": ">=", ">=": "<=", "<": ">", ">": "<", "=": "=", "==": "="}
_EXAMPLES = "write density>=0.001, 0.001<=density<=0.1 or num_firings=0"


def parse_filters(filters: Iterable[str], names: Sequence[str]) -> dict[str, Range]:
    """Filters that must all hold, as the smallest and the largest value allowed of each statistic, ends included.

    Raises:
        ValueError: a filter that cannot be read, a name that is none of `names`, or a range that nothing is in.
    """
    ranges: dict[str, Range] = {}
    for written in filters:
        for name, (low, high) in _comparisons(written, names):
            before = ranges.get(name, (None, None))
            ranges[name] = (_tighter(max, before[0], low), _tighter(min, before[1], high))
    for name, (low, high) in ranges.items():
        if low is not None and high is not None and low > high:
            raise ValueError(f"no feature can have {name} >= {low:g} and <= {high:g}")
    return ranges


def _comparisons(written: str, names: Sequence[str]) -> list[tuple[str, Range]]:
    parts = _SIGN.split(written.strip())
    if len(parts) == 3 and _NAME.fullmatch(parts[0]):
        return [_range(written, parts[0], parts[1], parts[2], names)]
    if len(parts) == 3 and _NAME.fullmatch(parts[2]):
        return [_range(written, parts[2], _TURNED[parts[1]], parts[0], names)]
    if len(parts) == 5 and _NAME.fullmatch(parts[2]) and parts[1][0] == parts[3][0] != "=":
        return [
            _range(written, parts[2], _TURNED[parts[1]], parts[0], names),
            _range(written, parts[2], parts[3], parts[4], names),
        ]
    raise ValueError(f"the filter {written!r} cannot be read; {_EXAMPLES}")


def _range(written: str, name: str, sign: str, number: str, names: Sequence[str]) -> tuple[str, Range]:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"the filter {written!r} names no statistic; {hint}")
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the filter {written!r} compares with {number!r}, which is no number; {_EXAMPLES}")
    if sign in ("=", "=="):
        return name, (value, value)
    if sign.startswith(">"):  # the neighbouring number: beyond the end itself
        return name, (value if sign == ">=" else math.nextafter(value, math.inf), None)
    return name, (None, value if sign == "<=" else math.nextafter(value, -math.inf))


def _tighter(choose: Callable[[list[float]], float], one: float | None, other: float | None) -> float | None:
    ends = [end for end in (one, other) if end is not None]
    return choose(ends) if ends else None
