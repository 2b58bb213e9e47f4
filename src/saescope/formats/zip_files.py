"""Zip files as files of tensors use them: few parts, each of its own, none larger than the file can account for."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_MEMBERS = 20_000
_MOST_READ_AT_ONCE = 8 << 20  # of a list of members that is longer nothing is read
_MOST_UNFOLDING = 100  # weights hardly compress: what unfolds further is there to fill the memory
_LOCAL_HEADER = 30  # bytes in front of a member, and the lengths of name and extra field that follow


@dataclass(frozen=True)
class Member:
    """A part that lies in the zip as it is."""

    offset: int
    size: int

    def read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class _Bounded(io.FileIO):
    """A file of which nobody reads too much at a time, whatever the file says about its own parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = self.left
        wanted = left if size is None or size < 0 else size
        if min(wanted, left) > _MOST_READ_AT_ONCE:
            raise ValueError(f"a list of parts of {wanted:,} bytes")
        return super().read(wanted)

    @property
    def left(self) -> int:
        here = self.tell()
        end = self.seek(0, io.SEEK_END)
        self.seek(here)
        return max(0, end - here)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip whose parts were looked at.

    Raises:
        ValueError: it is damaged, has a part twice, too many, encrypted ones, or ones that unfold beyond measure.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if (
            file.read(4) != b"PK\x03\x04"
        ):  # other readers decide by the first bytes: the file must be a zip to all of them
            raise ValueError("it does not begin as a zip file does")
    with closing(_Bounded(path)) as bounded:
        try:
            archive = zipfile.ZipFile(bounded)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OverflowError) as error:
            raise ValueError(f"it is no whole zip file ({error})") from error
        with archive:
            _require_sound(archive.infolist(), size)
            yield archive


def _require_sound(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"it has {len(members):,} parts")
    seen: set[str] = set()
    for member in members:
        if member.filename in seen:
            raise ValueError(f"it has the part {member.filename[:80]!r} twice")
        seen.add(member.filename)
    if any(member.flag_bits & 1 for member in members):
        raise ValueError("it is encrypted")
    unfolded = sum(member.file_size for member in members)
    if unfolded > _MOST_UNFOLDING * size:
        raise ValueError(f"its parts unfold to {unfolded:,} bytes from {size:,}, as no weights do")


def stored_members(path: Path) -> dict[str, Member]:
    """Where each part lies, in a zip that compresses nothing.

    Raises:
        ValueError: as :func:`open_zip`; or a part is compressed, or lies outside of the file.
    """
    size = path.stat().st_size
    with open_zip(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it has compressed parts")
        if sum(member.file_size for member in members) > size:
            raise ValueError(f"its parts claim more than its {size:,} bytes")
        with path.open("rb") as file:
            return {member.filename: place_of(member, file, size) for member in members}


def place_of(member: zipfile.ZipInfo, file: Any, size: int) -> Member:
    """Where an uncompressed part lies; ValueError where that is outside of the file."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise ValueError(f"its part {member.filename[:80]!r} is not where it should be")
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    offset = member.header_offset + _LOCAL_HEADER + name + extra
    if member.file_size != member.compress_size or offset + member.file_size > size:
        raise ValueError(f"its part {member.filename[:80]!r} is cut off")
    return Member(offset, member.file_size)
