"""The files of a `mongodump`: BSON documents one after the other, with no index and no sum to check them by.

A dump may come from anywhere, so lengths are checked before anything is read by them, and whatever a document holds is
looked at field by field by those who ask for it. Decoding is pymongo's; no server is involved.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Document = dict[str, Any]

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024 + 16 * 1024  # what MongoDB allows, with the room that it keeps for itself
_SHORTEST = 5  # the length and the final zero


def find_database(dump: Path) -> Path:
    """The folder of the database in a dump: the one with `features.bson`, given itself or as the folder above."""
    if not dump.exists():
        raise FileNotFoundError(f"{dump} does not exist")
    if not dump.is_dir():
        raise ValueError(
            f"{dump} is no folder; an archive is unpacked with `mongorestore`, and dumped again to a folder"
        )
    if _collection(dump, "features") is not None:
        return dump
    found = sorted(path for path in dump.iterdir() if path.is_dir() and _collection(path, "features") is not None)
    if not found:
        raise FileNotFoundError(
            f"{dump} is no dump of a Language-Model-SAEs database: features.bson is neither in it nor in a folder below"
        )
    if len(found) > 1:
        raise ValueError(
            f"{dump} holds {len(found)} databases; name the folder of one: {', '.join(path.name for path in found)}"
        )
    return found[0]


class BsonFile:
    """One collection. Documents can be read in a row, or one by one from their places."""

    def __init__(self, database: Path, collection: str) -> None:
        """Open `{collection}.bson`, or unpack `{collection}.bson.gz` to a temporary file. A missing one is empty."""
        found = _collection(database, collection)
        self.path = found or database / f"{collection}.bson"
        self._file = None if found is None else _open(found)
        self._size = 0 if self._file is None else self._file.seek(0, 2)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> BsonFile:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def __del__(self) -> None:
        # a feature set reads from its files for as long as somebody holds it
        if getattr(self, "_file", None) is not None:
            self.close()

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        """The documents with their places in the file."""
        place = 0
        while place < self._size:
            document, end = self._read(place)
            yield place, document
            place = end

    def at(self, place: int) -> Document:
        """The document that begins at byte `place`."""
        return self._read(place)[0]

    def _read(self, place: int) -> tuple[Document, int]:
        assert self._file is not None
        self._file.seek(place)
        head = self._file.read(4)
        if len(head) < 4:
            raise ValueError(f"{self.path} is cut off: {len(head)} bytes are left at byte {place:,}")
        (length,) = struct.unpack("<i", head)
        if not _SHORTEST <= length <= MAX_DOCUMENT_BYTES:
            raise ValueError(
                f"{self.path} is damaged: the document at byte {place:,} says that it is {length:,} bytes long"
            )
        if place + length > self._size:
            raise ValueError(
                f"{self.path} is cut off: the document at byte {place:,} is {length:,} bytes long, "
                f"but {self._size - place:,} are left"
            )
        return _decode(head + self._file.read(length - 4), self.path, place), place + length


def require_bson() -> None:
    """Raise `ImportError` with what to install, if pymongo's `bson` is missing."""
    try:
        import bson.codec_options
    except ImportError as error:
        raise ImportError(
            "reading a dump of a Language-Model-SAEs database needs pymongo: pip install 'saescope[lm-saes]'"
        ) from error
    assert bson.codec_options


def plain(value: Any) -> Any:
    """A value as JSON could say it: moments and object ids as text, bytes by their number, no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _collection(database: Path, name: str) -> Path | None:
    found = [path for path in (database / f"{name}.bson", database / f"{name}.bson.gz") if path.is_file()]
    return found[0] if found else None


def _open(path: Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("rb")
    # arrays are looked up by their places, which a packed file does not have
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - its BsonFile closes it
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        unpacked.close()
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    except BaseException:
        unpacked.close()
        raise
    return unpacked


def _decode(data: bytes, path: Path, place: int) -> Document:
    import bson
    from bson.codec_options import CodecOptions, DatetimeConversion

    options: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO, tz_aware=True)
    try:
        return bson.decode(data, options)
    except Exception as error:  # damaged bytes surface as errors of many kinds
        raise ValueError(f"{path} is damaged: the document at byte {place:,} is no BSON ({error})") from error
