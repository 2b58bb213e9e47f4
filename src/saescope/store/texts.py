"""Lists and numbers as short JSON text, and back, value for value.

Text that no database holds (a NUL, half a surrogate pair) is escaped inside JSON; in plain columns it is refused by name.
Three kinds of list come again and again and are told in short where that loses nothing: token ranges, which mostly begin
where the one before ended, histogram edges, which mostly lie in even steps or in quarters of octaves, and float32 values,
which need 17 digits to be read as the same float64 but 9 at most to be read as the same float32.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

_FLOAT32_MAX = 3.4028234663852886e38
_QUARTERS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2 ** (i / 4), nearest float64


_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def now() -> str:
    """This second in UTC, as the store writes times."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(text: str, what: str) -> str:
    """A text for a plain column.

    Raises:
        ValueError: a character in it cannot be kept there.
    """
    if not _holdable(text):
        raise ValueError(f"{what}: {text!r} holds a character that a database text column cannot; escape it first")
    return text


def to_json(value: Mapping[str, Any] | Sequence[Any] | str, what: str) -> str:
    """Compact JSON. Python writes a float with as many digits as it takes to read the same float64 back.

    Raises:
        ValueError: something in it is no JSON value, or not finite.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be stored: {error}; expected finite plain numbers, texts, lists") from error
    return text if _holdable(text) else json.dumps(value, separators=(",", ":"))


def from_json(text: str) -> Any:
    """`json.loads` of compact JSON, in a third of the time where the text is short; a page has hundreds of them."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else json.loads(text)


def pack_float32(values: Sequence[float], what: str) -> str:
    """A JSON list of the shortest numbers that read back as the same float32 values."""
    import numpy as np

    if not all(abs(value) <= _FLOAT32_MAX for value in values):
        raise ValueError(f"{what} cannot be stored: activations are finite float32 numbers, got {list(values)}")
    return f"[{','.join(map(str, np.asarray(values, dtype=np.float32)))}]"


def unpack_float32(text: str) -> list[float]:
    """The way back: float64 numbers that are exactly those float32 values."""
    return nearest_float32(from_json(text))


def nearest_float32(values: Iterable[float]) -> list[float]:
    """The nearest float32 values, as float64 numbers."""
    return array("f", values).tolist()


def are_float32(values: Sequence[float]) -> bool:
    """Whether float32 holds all of these numbers exactly."""
    try:
        return nearest_float32(values) == list(values)
    except (OverflowError, TypeError):
        return False


def shortest_float32(values: Sequence[float]) -> list[float]:
    """For each float32 value the float64 number of fewest digits that is nearest to it."""
    import numpy as np

    return [float(str(value)) for value in np.asarray(values, dtype=np.float32)]


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """Each range as its length where it begins at the end of the one before, else as `[start, end]`."""
    parts, before = [], 0
    for start, end in ranges:
        parts.append(f"{end - start}" if start == before else f"[{start},{end}]")
        before = end
    return f"[{','.join(parts)}]"


def unpack_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """The way back."""
    if "[" not in text[1:]:  # nearly always
        ends = tuple(accumulate(from_json(text)))
        return tuple(zip((0, *ends), ends, strict=False))
    ranges, before = [], 0
    for part in json.loads(text):
        start, end = (before, before + part) if isinstance(part, int) else part
        ranges.append((start, end))
        before = end
    return tuple(ranges)


def pack_edges(edges: Sequence[float]) -> Any:
    """Edges of a histogram as a JSON value: a list, or how they were made where that gives the very same numbers.

    `{"octaves": [a, b]}` are the numbers `2 ** (k / 4)` for `k` from `a` to `b`; `{"even": [low, high, n]}` is what
    `numpy.linspace(low, high, n)` gives.
    """
    count = len(edges)
    if count > 3 and all(math.isfinite(edge) for edge in edges):
        if edges[0] > 0:
            first = round(4 * math.log2(edges[0]))
            if list(edges) == _octaves(first, first + count - 1):
                return {"octaves": [first, first + count - 1]}
        if list(edges) == _even(edges[0], edges[-1], count):
            return {"even": [edges[0], edges[-1], count]}
    return list(edges)


def unpack_edges(packed: Any) -> tuple[float, ...]:
    """The way back."""
    if isinstance(packed, list):
        return tuple(packed)
    return tuple(_octaves(*packed["octaves"]) if "octaves" in packed else _even(*packed["even"]))


def _octaves(first: int, last: int) -> list[float]:
    try:
        return [math.ldexp(_QUARTERS[k % 4], k // 4) for k in range(first, last + 1)]
    except OverflowError:
        return []


def _even(low: float, high: float, count: int) -> list[float]:
    step = (high - low) / (count - 1)
    return [*(i * step + low for i in range(count - 1)), high]


def _holdable(text: str) -> bool:
    """Whether every database can keep this text: valid Unicode, and no NUL (which PostgreSQL refuses)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
