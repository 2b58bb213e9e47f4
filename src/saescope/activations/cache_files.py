"""A cache of activations as files: what lies in its folder, how a shard is laid out, what makes it whole.

    manifest.json             what was read where, the token counts, and every other file's size and SHA-256
    text.safetensors          token ids and windows, as the model saw them
    documents.jsonl           the documents' names and texts
    shard-00000.safetensors   positions and activations of the first windows, in the order of the text; and so on

A shard is an ordinary safetensors file (an eight-byte length, a JSON header, the tensors' bytes) whose layout follows from
the number of its tokens, so that it is written from one stretch of memory and read in place. Every file is written beside
its name, synced and renamed, and the manifest follows each of them: whatever is in the manifest is whole.

N  tokens in a shard, d  width of a hook point.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from saescope.activations.documents import Document
from saescope.activations.stream import ActivationBatch
from saescope.activations.windows import TokenWindows, WindowConfig

MANIFEST, TEXT, DOCUMENTS = "manifest.json", "text.safetensors", "documents.jsonl"
PARTIAL = ".partial"
_VERSION = 1

CacheDtype = Literal["float32", "bfloat16", "float16"]
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class FileEntry:
    """A whole file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry(FileEntry):
    """A whole shard."""

    num_windows: int
    num_tokens: int


@dataclass(frozen=True)
class CachedHookPoint:
    """A place whose activations are in the cache."""

    name: str  # as it was asked for
    canonical: str  # module path and side
    width: int

    def is_called(self, name: str) -> bool:
        """Whether ``name`` means this place: the name itself, or the module path with or without ``.output``."""
        return name in (self.name, self.canonical) or f"{name}.output" == self.canonical


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache holds, and which of it is on disk."""

    settings: dict[str, dict[str, Any]]  # model, dataset, windows, stream: the keys of a recipe
    hook_points: tuple[CachedHookPoint, ...]
    dtype: CacheDtype
    num_tokens: int
    num_windows: int
    num_documents: int
    num_shards: int
    shard_size_tokens: int
    special_ids: tuple[int, ...]
    separator_id: int | None
    bos_id: int | None
    pad_id: int
    text: dict[str, FileEntry]
    shards: dict[str, ShardEntry] = field(default_factory=dict)  # those that are whole

    @property
    def widths(self) -> dict[str, int]:
        return {point.name: point.width for point in self.hook_points}

    @property
    def is_finished(self) -> bool:
        return len(self.shards) == self.num_shards

    @property
    def files(self) -> dict[str, FileEntry]:
        """Every file but the manifest."""
        return {**self.text, **self.shards}

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.files.values())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """
        Raises:
            FileNotFoundError: no cache there. ValueError: a manifest that cannot be understood.
        """
        path = folder / MANIFEST
        if not path.is_file():
            found = f"it holds {sorted(p.name for p in folder.iterdir())[:5]}" if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder} is not a cache of activations: it has no {MANIFEST} ({found})")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.pop("format", None) != "saescope activations":
                raise ValueError("it does not say that it is one of activations")
            if (version := data.pop("version", None)) != _VERSION:
                raise ValueError(f"it has version {version!r}, and this saescope reads version {_VERSION}")
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} is not the manifest of a cache: {place}: {first['msg']}") from None
        except ValueError as error:  # JSON and UTF-8 errors are also of this kind
            raise ValueError(f"{path} is not the manifest of a cache: {error}") from None

    def write(self, folder: Path) -> None:
        data = {"format": "saescope activations", "version": _VERSION, **asdict(self)}
        write_file(folder / MANIFEST, [json.dumps(data, indent=1).encode() + b"\n"])

    def with_shard(self, name: str, entry: ShardEntry) -> Manifest:
        return replace(self, shards=dict(sorted({**self.shards, name: entry}.items())))


def damaged_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Files that are missing or have another size than the manifest says, each with what is wrong."""
    found = {}
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            found[name] = "is missing"
        elif size != entry.num_bytes:
            short = "truncated" if size < entry.num_bytes else "too long"
            found[name] = f"is {short}: {size:,} bytes instead of {entry.num_bytes:,}"
    return found


def differences(found: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where a cache is not as wanted, both shown; what ``wanted`` does not name is not compared."""
    return [
        f"{section}.{key} is {found.get(section, {}).get(key)!r} in the cache, and {value!r} is asked for"
        for section, values in wanted.items()
        for key, value in values.items()
        if found.get(section, {}).get(key) != value
    ]


def torch_dtype(name: str) -> torch.dtype:
    """
    Raises:
        ValueError: not one that caches have.
    """
    if name not in get_args(CacheDtype):
        raise ValueError(f"a cache has dtype {', '.join(get_args(CacheDtype))}, not {name!r}")
    return getattr(torch, name)


def bytes_per_token(widths: Mapping[str, int], dtype: str) -> int:
    """Bytes that a token takes in a shard: its position, and its activations."""
    return 8 + sum(widths.values()) * torch_dtype(dtype).itemsize


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def shard_bounds(tokens_per_window: np.ndarray, shard_size_tokens: int) -> np.ndarray:
    """Which windows go into which shard: shard i has the windows bounds[i] to bounds[i + 1], and at least one token."""
    before = np.cumsum(tokens_per_window) - tokens_per_window
    last = before[np.flatnonzero(tokens_per_window)[-1]]  # windows without tokens behind it open no shard of their own
    _, first = np.unique(np.minimum(before, last) // shard_size_tokens, return_index=True)
    return np.append(first, len(tokens_per_window))


def shard_header(num_tokens: int, widths: Mapping[str, int], dtype: str) -> bytes:
    """How a shard of so many tokens begins; its tensors' bytes follow, ``positions`` first and then each hook point's."""
    tensors = {"positions": ("I64", [num_tokens], 8 * num_tokens)}
    for name, width in widths.items():
        num_bytes = num_tokens * width * torch_dtype(dtype).itemsize
        tensors[f"values.{name}"] = (_SAFETENSORS_DTYPES[dtype], [num_tokens, width], num_bytes)
    header, end = {}, 0
    for tensor, (kind, shape, num_bytes) in tensors.items():
        header[tensor] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_offsets(num_tokens: int, widths: Mapping[str, int], dtype: str) -> dict[str, int]:
    """Where in the file each tensor begins, in bytes."""
    header = shard_header(num_tokens, widths, dtype)
    return {name: len(header) + tensor["data_offsets"][0] for name, tensor in json.loads(header[8:]).items()}


def shard_views(memory: Any, num_tokens: int, widths: Mapping[str, int], dtype: str) -> ActivationBatch:
    """The tensors of a shard in ``memory`` (a writable buffer that begins with its header), not copied."""
    offsets = shard_offsets(num_tokens, widths, dtype)
    values: dict[str, Tensor] = {}
    for name, width in widths.items():
        offset, count = offsets[f"values.{name}"], num_tokens * width
        flat = torch.frombuffer(memory, dtype=torch_dtype(dtype), count=count, offset=offset)
        values[name] = flat.view(num_tokens, width)  # [N, d]
    positions = torch.frombuffer(memory, dtype=torch.int64, count=num_tokens, offset=offsets["positions"])  # [N]
    return ActivationBatch(values, positions)


def write_text(folder: Path, windows: TokenWindows, tokens_per_window: np.ndarray) -> dict[str, FileEntry]:
    """The two files of a text."""
    arrays = {
        "tokens": windows.tokens,
        "document_starts": windows.document_starts,
        "starts": windows.starts,
        "lengths": windows.lengths,
        "tokens_per_window": tokens_per_window,
    }
    lines = (json.dumps({"name": d.name, "text": d.text}).encode() + b"\n" for d in windows.documents)
    return {
        DOCUMENTS: write_file(folder / DOCUMENTS, lines),
        TEXT: write_file(folder / TEXT, [save({k: np.ascontiguousarray(v) for k, v in arrays.items()})]),
    }


def read_text(folder: Path, manifest: Manifest) -> TokenWindows:
    """The text of a cache, as it was when the cache was begun."""
    arrays = read_arrays(folder, "tokens", "document_starts", "starts", "lengths")
    with open(folder / DOCUMENTS, encoding="utf-8") as file:
        documents = [Document(**json.loads(line)) for line in file]
    return TokenWindows(
        config=WindowConfig(**manifest.settings["windows"]),
        documents=documents,
        special_ids=frozenset(manifest.special_ids),
        separator_id=manifest.separator_id,
        bos_id=manifest.bos_id,
        pad_id=manifest.pad_id,
        **arrays,
    )


def read_arrays(folder: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of a cache's text; nothing else of the file is read."""
    try:
        with safe_open(folder / TEXT, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{folder / TEXT} is damaged: {error}") from error


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> FileEntry:
    """Write beside, sync, rename: ``path`` is never there half-written, and nothing is left beside it."""
    beside = path.with_name(path.name + PARTIAL)
    digest, size = hashlib.sha256(), 0
    try:
        with open(beside, "wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return FileEntry(size, digest.hexdigest())


def changed_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Every file's name and whether its bytes are not those that were written, one after the other."""
    for name, entry in manifest.files.items():
        with open(folder / name, "rb") as file:
            yield name, hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256


def readable_size(num_bytes: float) -> str:
    """For people: 1,000 bytes are a kB, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"
