"""Arrays in GridFS: `fs.files` names them, `fs.chunks` has their bytes in numbered pieces, in any order.

The pieces are found through an index of their places, 28 bytes per piece, made in one reading of the file. An array is
what `numpy.save` writes. Nothing is unpickled: an array of objects and what `torch.save` writes are refused.
"""

from __future__ import annotations

import io
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from saescope.formats.lm_saes.bson_files import BsonFile, Document

MAX_ARRAY_BYTES = 1 << 31
_MAGIC = b"\x93NUMPY"
_PICKLES = (b"PK\x03\x04", b"\x80")  # the beginnings of what torch.save and pickle write


class GridFS:
    """The arrays of a dump, by the object id that documents hold in their place."""

    def __init__(self, database: Path) -> None:
        self._files = BsonFile(database, "fs.files")
        self._chunks = BsonFile(database, "fs.chunks")
        self._lengths: dict[bytes, int] = {}
        for place, document in self._files:
            identity = _identity(document.get("_id"))
            if identity is not None:
                self._lengths[identity] = _count(document, "length", self._files, place)
        self._index()

    def array(self, reference: Any, what: str) -> np.ndarray:
        """The array behind an object id, or given as a list in its place. `what` names it in messages."""
        if isinstance(reference, list):
            return _from_list(reference, what)
        identity = _identity(reference)
        if identity is None:
            raise ValueError(f"{what} is {type(reference).__name__}, expected an array in GridFS")
        if identity not in self._lengths:
            raise ValueError(f"{what} is the file {identity.hex()}, which is not in {self._files.path}")
        return _parse(self._bytes(identity, what), f"{what} (file {identity.hex()} of {self._chunks.path})")

    def _index(self) -> None:
        """Find every piece: its file's id as two numbers, its own number, its place; sorted by all three."""
        first, second, numbers, places = array("Q"), array("I"), array("q"), array("q")
        for place, document in self._chunks:
            identity = _identity(document.get("files_id"))
            if identity is None or identity not in self._lengths:
                continue
            first.append(int.from_bytes(identity[:8], "big"))
            second.append(int.from_bytes(identity[8:], "big"))
            numbers.append(_count(document, "n", self._chunks, place))
            places.append(place)
        keys = np.array(first, dtype=np.uint64), np.array(second, dtype=np.uint32), np.array(numbers, dtype=np.int64)
        order = np.lexsort(keys[::-1])
        self._first, self._second, self._numbers = (key[order] for key in keys)
        self._places = np.array(places, dtype=np.int64)[order]

    def _bytes(self, identity: bytes, what: str) -> bytes:
        first = np.uint64(int.from_bytes(identity[:8], "big"))
        second = np.uint32(int.from_bytes(identity[8:], "big"))
        begin, end = np.searchsorted(self._first, first), np.searchsorted(self._first, first, side="right")
        low = begin + np.searchsorted(self._second[begin:end], second)
        high = begin + np.searchsorted(self._second[begin:end], second, side="right")
        length = self._lengths[identity]
        parts, place = [], f"{what}: file {identity.hex()} in {self._chunks.path}"
        for expected, row in enumerate(range(low, high)):
            number = int(self._numbers[row])
            if number != expected:
                state = "is missing" if number > expected else "is there twice"
                raise ValueError(f"{place}: chunk {min(number, expected)} {state}")
            data = self._chunks.at(int(self._places[row])).get("data")
            if not isinstance(data, bytes):
                raise ValueError(f"{place}: chunk {number} holds {type(data).__name__} instead of bytes")
            parts.append(data)
        found = sum(map(len, parts))
        if found < length:
            raise ValueError(f"{place}: chunk {len(parts)} is missing; {found:,} of {length:,} bytes are there")
        if found > length:
            raise ValueError(f"{place} has {found:,} bytes, but {self._files.path} says {length:,}")
        return b"".join(parts)


def _identity(value: Any) -> bytes | None:
    """The 12 bytes of an object id; None for anything else."""
    binary = getattr(value, "binary", None)
    return binary if isinstance(binary, bytes) and len(binary) == 12 else None


def _count(document: Document, key: str, file: BsonFile, place: int) -> int:
    value = document.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ARRAY_BYTES:
        raise ValueError(f"{file.path}: {key} of the document at byte {place:,} is {value!r}, expected a count")
    return int(value)


def _from_list(values: list[Any], what: str) -> np.ndarray:
    try:
        found = np.array(values)
    except ValueError as error:
        raise ValueError(f"{what} is a list whose rows differ in length") from error
    if found.size and found.dtype.kind not in "fiu":
        raise ValueError(f"{what} is a list of {found.dtype}, expected numbers")
    return found


def _parse(data: bytes, what: str) -> np.ndarray:
    """What `numpy.save` wrote. The size is checked against the bytes that are there before an array is made."""
    if not data.startswith(_MAGIC):
        if data.startswith(_PICKLES):
            raise ValueError(f"{what} is a pickle (as torch.save writes); such files can run code and are not opened")
        raise ValueError(f"{what} is not an array as numpy.save writes it")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read_header(stream)
    except Exception as error:  # a header is a Python literal, which can be wrong in many ways
        raise ValueError(f"{what} has a damaged header: {error}") from error
    if dtype.hasobject or dtype.kind not in "fiu":
        raise ValueError(f"{what} is an array of {dtype}, expected numbers; arrays of objects are not opened")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(
            f"{what} says that it is an array of shape {shape} and type {dtype}, which is not what its "
            f"{len(data) - stream.tell():,} bytes hold"
        )
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if in_columns else "C")
