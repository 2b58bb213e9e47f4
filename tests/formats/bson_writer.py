"""BSON and the files of a `mongodump`, written from the specification (bsonspec.org, version 1.1) with `struct` alone.

Nothing of pymongo is used, so that reading what this writes is a test of the reading.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Id:
    """An object id: 12 bytes."""

    data: bytes

    @classmethod
    def of(cls, number: int) -> Id:
        # as servers make them: 4 bytes of time, 5 of the process, 3 of a counter
        return cls(
            struct.pack(">I", 1_700_000_000 + number // 7) + b"\x01\x02\x03\x04\x05" + struct.pack(">I", number)[1:]
        )


def document(values: Mapping[str, Any]) -> bytes:
    body = b"".join(_element(key, value) for key, value in values.items())
    return struct.pack("<i", len(body) + 5) + body + b"\x00"


def _element(key: str, value: Any) -> bytes:
    kind, data = _value(value)
    return bytes([kind]) + key.encode() + b"\x00" + data


def _value(value: Any) -> tuple[int, bytes]:
    match value:
        case None:
            return 0x0A, b""
        case bool():
            return 0x08, bytes([value])
        case int():
            return (0x10, struct.pack("<i", value)) if abs(value) < 1 << 31 else (0x12, struct.pack("<q", value))
        case float():
            return 0x01, struct.pack("<d", value)
        case str():
            text = value.encode()
            return 0x02, struct.pack("<i", len(text) + 1) + text + b"\x00"
        case bytes():
            return 0x05, struct.pack("<i", len(value)) + b"\x00" + value
        case Id():
            return 0x07, value.data
        case datetime():
            return 0x09, struct.pack("<q", round(value.replace(tzinfo=UTC).timestamp() * 1000))
        case list():
            return 0x04, document({str(number): entry for number, entry in enumerate(value)})
        case dict():
            return 0x03, document(value)
    raise TypeError(f"no BSON for {value!r}")


class DumpWriter:
    """Collects documents and arrays, and writes them as `mongodump` does."""

    def __init__(self, chunk_bytes: int = 64) -> None:
        self.collections: dict[str, list[dict[str, Any]]] = {}
        self._chunk_bytes = chunk_bytes
        self._next = 1

    def add(self, collection: str, **values: Any) -> dict[str, Any]:
        entry = {"_id": self.new_id(), **values}
        self.collections.setdefault(collection, []).append(entry)
        return entry

    def new_id(self) -> Id:
        self._next += 1
        return Id.of(self._next)

    def array(self, values: Any) -> Id:
        """Put an array into GridFS."""
        stream = io.BytesIO()
        np.save(stream, np.asarray(values))
        return self.file(stream.getvalue())

    def file(self, data: bytes) -> Id:
        size = self._chunk_bytes
        identity = self.add("fs.files", length=len(data), chunkSize=size)["_id"]
        for number, begin in enumerate(range(0, len(data), size)):
            self.add("fs.chunks", files_id=identity, n=number, data=data[begin : begin + size])
        return identity

    def write(self, dump: Path, *, database: str = "mechinterp", packed: bool = False) -> Path:
        folder = dump / database
        folder.mkdir(parents=True)
        for name, entries in self.collections.items():
            data = b"".join(map(document, entries))
            (folder / (f"{name}.bson.gz" if packed else f"{name}.bson")).write_bytes(
                gzip.compress(data) if packed else data
            )
            (folder / f"{name}.metadata.json").write_text("{}")
        return dump
