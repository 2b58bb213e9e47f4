"""A folder of files that appears when it is whole, and replaces only an earlier one of its kind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

MARKER = "saescope-export.json"
"""The file by which an export is known as one."""

_SYNCING = 8  # at the same time: a disk writes many files nearly as quickly as one


class WholeFolder:
    """In a `with` block, files are written beside the place; at its end they are put there, unless an error left it."""

    def __init__(self, folder: Path, *, overwrite: bool, is_ours: Callable[[str], bool]) -> None:
        """Args: is_ours: whether a file of this name, seen from the folder, is of this kind of folder.

        Raises:
            FileExistsError: there is something at the place that may not be replaced.
        """
        self._folder = Path(os.path.abspath(folder))  # the place itself, also where it is a link
        self._overwrite, self._is_ours = overwrite, is_ours
        self.num_bytes = 0
        self._check()

    def __enter__(self) -> Self:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._beside = Path(tempfile.mkdtemp(prefix=f".{self._folder.name[:100]}-", dir=self._folder.parent))
        return self

    def write(self, name: str, text: str) -> None:
        """A file; `name` is relative to the folder."""
        path = self._beside / name
        path.parent.mkdir(exist_ok=True)
        content = text.encode(errors="backslashreplace")  # half of a character is said as JSON says it
        path.write_bytes(content)
        self.num_bytes += len(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put()
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)

    def _put(self) -> None:
        os.chmod(self._beside, 0o755)  # a temporary folder is private; this one is to be passed on
        everything = [self._beside, *self._beside.rglob("*")]
        with ThreadPoolExecutor(_SYNCING) as pool:
            list(pool.map(_sync, everything))
        self._check()  # again: writing took a while
        if not self._folder.exists():
            os.rename(self._beside, self._folder)
        else:
            aside = self._beside.with_name(f"{self._beside.name}-before")
            os.rename(self._folder, aside)
            try:
                os.rename(self._beside, self._folder)
            except BaseException:
                os.rename(aside, self._folder)
                raise
            shutil.rmtree(aside)
        _sync(self._folder.parent)

    def _check(self) -> None:
        place = self._folder
        if not os.path.lexists(place):
            return
        if place.is_symlink() or not place.is_dir():
            raise FileExistsError(f"{place} is there and is no folder; name another one")
        if not any(place.iterdir()):
            return
        if not self._overwrite:
            raise FileExistsError(f"{place} is there already; --overwrite replaces an earlier export")
        names = [
            path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir() or path.is_symlink()
        ]
        strange = [name for name in names if not self._is_ours(name)]
        if MARKER not in names or strange:
            what = f"holds {strange[0]}, which is of no export" if strange else f"has no {MARKER}"
            raise FileExistsError(f"{place} {what}, so that it is not replaced; move it away or name another folder")


def _sync(path: Path) -> None:
    """Let the disk have it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
