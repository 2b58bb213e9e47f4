"""Training runs on the disk: which there are, and the numbers in their ``metrics.jsonl``, also while it is being written.

A run is a folder with that file. Nothing is read by a path that a request names: runs are found first, in the folders
that the server was given and beside the dictionaries of the store, and are asked for by an identity made of where they lie.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
MOST_RUNS = 500  # that are looked for
MOST_POINTS = 1000  # of a curve, about; what is left out lies between two that are kept
_DEEP = 3  # levels of folders below one that was given
_MOST_FOLDERS = 20_000  # that are opened in the search
_PIECE = 1 << 20  # bytes read at once, and the longest line
_MOST_CURVES = 64
_TAIL = 256  # bytes before the place read to, by which a rewritten file is known

_AXES = ("step", "num_tokens")


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run on the disk."""

    id: str
    name: str
    """The folder's, with those above it up to the one that was given."""
    folder: Path
    dictionaries: tuple[str, ...] = ()
    """In the store, that came out of it."""

    @property
    def file(self) -> Path:
        return self.folder / METRICS


def find_runs(folders: Iterable[Path], sources: Iterable[tuple[str, str]] = ()) -> list[FoundRun]:
    """Runs in folders, at most three levels deep, and beside dictionaries; by name.

    Links that lead out of a folder are not followed.

    Args:
        sources: names of dictionaries, and where each lies or lay: a folder with weights or that of a run, or no path.
    """
    named: dict[Path, str] = {}
    made: dict[Path, list[str]] = {}
    for name, source in sources:
        for folder in _beside(source):
            if _is_run(folder, folder):
                named.setdefault(folder, folder.name)
                made.setdefault(folder, []).append(name)
                break
    for given in folders:
        root = given.expanduser().resolve()
        for folder in _runs_below(root):
            named[folder] = str(folder.relative_to(root)) if folder != root else folder.name
    found = [
        FoundRun(id=_identity(folder), name=name, folder=folder, dictionaries=tuple(sorted(made.get(folder, ()))))
        for folder, name in named.items()
    ]
    return sorted(found, key=lambda run: (run.name, run.id))[:MOST_RUNS]


def _beside(source: str) -> list[Path]:
    """Where the run of a dictionary may lie; nothing for a source that is no path from the root."""
    if not os.path.isabs(source) or "\0" in source:
        return []
    path = Path(os.path.realpath(source))
    return [path, path.parent]


def _runs_below(root: Path) -> Iterator[Path]:
    """Breadth first, so that a bound on folders is met in the deepest."""
    level, opened = [root], 0
    for depth in range(_DEEP + 1):
        below: list[Path] = []
        for folder in level:
            if _is_run(folder, root):
                yield folder
            opened += 1
            if depth < _DEEP and opened <= _MOST_FOLDERS:
                below += _folders_in(folder, root)
        level = below


def _folders_in(folder: Path, root: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # not ours to read, or gone meanwhile
        return []
    # a link to a folder inside is met as that folder
    return [path for path in inside if not path.is_symlink() and path.resolve().is_relative_to(root)]


def _is_run(folder: Path, root: Path) -> bool:
    """A plain file, inside: a pipe would let its reader wait for ever."""
    file = folder / METRICS
    try:
        return stat.S_ISREG(file.stat().st_mode) and file.resolve().is_relative_to(root)
    except (OSError, ValueError):
        return False


def _identity(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


@dataclass
class Metrics:
    """The numbers of one ``metrics.jsonl``, read as far as it is written: what has been read is not read again.

    A last line without its end is left for later. A file that shrank, or is another one, is read anew. A line whose step is
    not above the one before means that the run went on from an earlier place: what came after that place is dropped.
    """

    path: Path
    num_damaged: int = 0
    """Lines that are no JSON object, or too long."""
    _columns: dict[str, array[float]] = field(default_factory=dict)
    _restarts: int = 0
    _inode: tuple[int, int] | None = None
    _offset: int = 0
    _tail: bytes = b""
    _skipping: bool = False  # inside a line that is too long
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        """Take in what has been written since the last time. A file that is gone counts as empty."""
        with self._lock:
            try:
                with open(self.path, "rb") as file:
                    self._read(file)
            except OSError:
                self._begin(None)

    @property
    def version(self) -> str:
        """Changes when rows that were read before are no longer true."""
        device, inode = self._inode or (0, 0)
        return f"{device:x}-{inode:x}-{self._restarts}"

    @property
    def num_rows(self) -> int:
        return len(self._columns.get("step", ()))

    @property
    def names(self) -> list[str]:
        """Of the curves."""
        return [name for name in self._columns if name not in _AXES]

    def last(self) -> dict[str, float]:
        """The last row; NaN where it holds no number."""
        with self._lock:
            return {name: column[-1] for name, column in self._columns.items()} if self.num_rows else {}

    def curves(self, after: float | None = None) -> dict[str, dict[str, list[float | None]]]:
        """Curves by name, as lists "step", "num_tokens" and "value" of one length; None for what is no finite number.

        Args:
            after: only what comes after this step, all of it. Without it about `MOST_POINTS` of each curve, among
                which are the lowest and the highest of every stretch.
        """
        with self._lock:
            steps = self._columns.get("step", array("d"))
            first = 0 if after is None else _first_above(steps, after)
            made = {}
            for name in self.names:
                column = self._columns[name]
                kept: Sequence[int] = range(first, len(steps)) if after is not None else kept_points(column)
                made[name] = {axis: [_finite(self._columns[axis][i]) for i in kept] for axis in _AXES}
                made[name]["value"] = [_finite(column[i]) for i in kept]
            return made

    def _begin(self, inode: tuple[int, int] | None) -> None:
        if self._offset or self._columns:
            self._restarts += 1
        self._inode, self._offset, self._tail, self._skipping, self.num_damaged = inode, 0, b"", False, 0
        self._columns = {}

    def _read(self, file: Any) -> None:
        about = os.fstat(file.fileno())
        inode = (about.st_dev, about.st_ino)
        if inode != self._inode or not self._is_same_before(file):
            self._begin(inode)
        file.seek(self._offset)
        while piece := file.read(_PIECE):
            whole = piece.rfind(b"\n") + 1
            if not whole:
                if len(piece) < _PIECE:
                    return  # half a line: it is read when it is whole
                self.num_damaged += not self._skipping
                self._skipping = True
                whole = len(piece)
            else:
                lines = piece[:whole].split(b"\n")[:-1]
                for line in lines[1:] if self._skipping else lines:
                    self._take(line)
                self._skipping = False
            self._offset += whole
            self._tail = (self._tail + piece[:whole])[-_TAIL:]
            file.seek(self._offset)

    def _is_same_before(self, file: Any) -> bool:
        """Whether what was read last still stands there; it does not where the file shrank."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self.num_damaged += 1
            return
        numbers = dict(_numbers(values))
        step = numbers.get("step", math.nan)
        if not math.isfinite(step):
            step = self._columns["step"][-1] + 1 if self.num_rows else 1.0
        if self.num_rows and step <= self._columns["step"][-1]:
            self._cut_back(step)
        numbers |= {"step": step, "num_tokens": numbers.get("num_tokens", math.nan)}
        for name in numbers:
            if name not in self._columns and len(self._columns) < _MOST_CURVES:
                self._columns[name] = array("d", [math.nan]) * self.num_rows
        for name, column in self._columns.items():
            column.append(numbers.get(name, math.nan))

    def _cut_back(self, step: float) -> None:
        rows = _first_above(self._columns["step"], math.nextafter(step, -math.inf))
        for column in self._columns.values():
            del column[rows:]
        self._restarts += 1


def _numbers(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a line by name; those of a dictionary inside it with its name and a dot before."""
    for name, value in values.items():
        if isinstance(value, dict) and not before:
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                yield before + name, float(value)
            except OverflowError:
                yield before + name, math.nan


def _first_above(steps: Sequence[float], step: float) -> int:
    from bisect import bisect_right

    return bisect_right(steps, step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def kept_points(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Which points of a curve are drawn, in order: all, or the lowest and the highest of equal stretches, and both ends.

    A stretch with something that is not finite keeps a point of it, so that the gap is seen.
    """
    if len(values) <= most:
        return list(range(len(values)))
    stretches, kept = most // 2, {0, len(values) - 1}
    for number in range(stretches):
        here = range(len(values) * number // stretches, len(values) * (number + 1) // stretches)
        finite = [i for i in here if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        if len(finite) < len(here):
            kept.add(next(i for i in here if not math.isfinite(values[i])))
    return sorted(kept)


def planned_tokens(folder: Path) -> int | None:
    """How many tokens the run is to see, from its ``run.json``."""
    try:
        with open(folder / "run.json", "rb") as file:
            planned = json.loads(file.read(_PIECE))["training"]["num_tokens"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return planned if isinstance(planned, int) and 0 < planned < 2**53 else None


def seconds_since_written(file: Path) -> float | None:
    """None where the file is gone."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None
