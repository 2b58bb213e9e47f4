"""Lines of JSON from a set of files that somebody else made: each with its place, each field checked when it is read."""

from __future__ import annotations

import gzip
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.formats.neuronpedia.lines import Line

MAX_LINE_BYTES = 1 << 26
MAX_COUNT = 1 << 31  # indices and sizes of a dictionary stay below
_BATCH = re.compile(r"batch-(\d+)\.jsonl(\.gz)?")


@dataclass(frozen=True)
class CheckedLine:
    """A line of a file, for messages and for its checked fields."""

    path: Path
    number: int
    line: Line

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}, line {self.number}: {what}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.line.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(f"{key} is {_short(value)}, expected a text")
        return value

    def index(self, key: str = "index") -> int:
        value = self.line.get(key)
        number = (
            int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12 else value
        )
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_COUNT:
            raise self.error(f"{key} is {_short(value)}, expected a whole number from 0")
        return number

    def number_of(self, key: str, default: float | None = None) -> float:
        value = self.line.get(key)
        if value is None and default is not None:
            return default
        return self._finite(key, value)

    def optional(self, key: str) -> float | None:
        return None if self.line.get(key) is None else self._finite(key, self.line[key])

    def numbers(self, key: str) -> list[float]:
        values = self.line.get(key)
        if values is None:
            return []
        if not isinstance(values, list):
            raise self.error(f"{key} is {_short(values)}, expected a list of numbers")
        if set(map(type, values)) <= {float} and all(map(math.isfinite, values)):
            return values  # as nearly always: there are many values
        return [self._finite(key, value) for value in values]

    def texts(self, key: str) -> list[str]:
        values = self.line.get(key)
        if values is None:
            return []
        if not isinstance(values, list) or not set(map(type, values)) <= {str}:
            raise self.error(f"{key} is {_short(values)}, expected a list of texts")
        return values

    def _finite(self, key: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max
        if not is_number:
            raise self.error(f"{key} holds {_short(value)}, expected a finite number")
        return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def find_source(folder: Path) -> Path:
    if (folder / "source.jsonl").is_file():
        return folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    found = sorted(path.parent for path in folder.rglob("source.jsonl"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds nothing of Neuronpedia: a source.jsonl was looked for in it and in the folders below"
        )
    if len(found) > 1:
        shown = ", ".join(str(path.relative_to(folder)) for path in found[:10])
        raise ValueError(f"{folder} holds {len(found)} sources; name the folder of one of them: {shown}")
    return found[0]


def batches(place: Path, kind: str) -> list[Path]:
    if not (place / kind).is_dir():
        return []
    found = [(int(match[1]), path) for path in (place / kind).iterdir() if (match := _BATCH.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def lines_in(place: Path, kind: str) -> Iterator[CheckedLine]:
    for path in batches(place, kind):
        yield from lines_of(path)


def lines_of(path: Path) -> Iterator[CheckedLine]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while text := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(text) == MAX_LINE_BYTES:
                    raise ValueError(f"{path}, line {number}: it is longer than {MAX_LINE_BYTES:,} bytes")
                if text.isspace():
                    continue
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
                if not isinstance(line, dict):
                    raise ValueError(f"{path}, line {number}: expected an object, found {_short(line)}")
                yield CheckedLine(path, number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}, after line {number}: the file is damaged or cut off ({error})") from error


def single_line(path: Path, *, must_exist: bool = True) -> Line:
    if not must_exist and not path.is_file():
        return {}
    first = next(lines_of(path), None)
    if first is None:
        raise ValueError(f"{path} is empty, expected one line")
    return first.line
