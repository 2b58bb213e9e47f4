"""Files of tensors of other libraries, opened without running anything that is in them.

Three kinds: safetensors, PyTorch's ``.pt`` (``pickled_tensors.py``), and numpy's ``.npz``. Each is looked at before a byte
of a tensor is asked for: how large it claims to be, and whether the file has that. What does not hold is refused in words.
Tensors are mapped into memory where the file holds them as they are, so that only what is used is read.
"""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saescope.formats.mapped_files import MappedFile
from saescope.formats.pickled_tensors import NotPlain, read_pickled_tensors
from saescope.formats.zip_files import open_zip, place_of

MOST_HEADER_BYTES = 4 << 20
_MOST_TENSORS = 20_000
_MOST_CONFIG_BYTES = {"JSON": 2 << 20, "YAML": 128 << 10}  # some seconds and some dozen megabytes at worst
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 1 << 48
_PICKLES = (".pt", ".pth", ".bin")
KINDS = (".safetensors", *_PICKLES, ".npz")


def require_plain_file(path: Path, *, inside: Path | None = None) -> Path:
    """The path itself, if it is a regular file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a device, a pipe or a folder; with ``inside``, a link that leads out of that folder (the cache of the
            Hugging Face hub keeps its files beside its snapshots, and is let be).
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a plain file")
    if inside is not None:
        target, home = path.resolve(), inside.resolve()
        if home not in target.parents and target.parent != _blobs_of(home):
            raise ValueError(f"{path} leads out of {inside}; copy the file itself there")
    return path


def _blobs_of(home: Path) -> Path | None:
    """Where the hub's cache keeps the files of a snapshot, which are links: ``REPO/blobs`` of ``REPO/snapshots/...``."""
    for part in (home, *home.parents):
        if part.parent.name == "snapshots":
            return part.parent.parent / "blobs"
    return None


def safe_name(name: str) -> str:
    """A file name from inside a file or a repository, if it stays below where it is put; ValueError otherwise."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name.startswith(("/", "~")) or ":" in parts[0] or ".." in parts:
        raise ValueError(f"the file name {name!r} leads out of its folder; it is not followed")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where it is damaged, no object, or says a thing twice."""
    text = _small_text(path, "JSON")
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {_first_words(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a JSON object, not {type(found).__name__}")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; readers differ in which of two entries of one name they take, so that there may be only one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} stands there twice")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values; ValueError where it is damaged, no mapping, or refers to itself."""
    import yaml  # type: ignore[import-untyped]

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a short text could stand for terabytes
                raise ValueError("it refers to another part of itself, which no configuration of a dictionary needs")
            return super().compose_node(parent, index)

    text = _small_text(path, "YAML")
    try:
        found = yaml.load(text, Loader=Plain)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not valid YAML: {_first_words(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a mapping, not {type(found).__name__}")
    return found


def _small_text(path: Path, kind: str) -> str:
    size = require_plain_file(path).stat().st_size
    if size > _MOST_CONFIG_BYTES[kind]:
        raise ValueError(f"{path} has {size:,} bytes, far more than a configuration")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors from its header alone, without torch; ValueError where it does not hold."""
    return {name: shape for name, (_, shape, _) in _safetensors_header(path).items()}


def read_tensors(path: Path, *, shapes_only: bool = False) -> dict[str, Any]:
    """What a file holds by name: tensors, and in a ``.pt`` file plain values as well.

    Args:
        shapes_only: tensors without memory (on torch's "meta" device), from the headers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown kind of file, a damaged one, one that holds code, or one that claims more than it has.
    """
    require_plain_file(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path, shapes_only)
    if suffix in _PICKLES:
        return _read_pickle(path, shapes_only)
    if suffix == ".npz":
        return _read_npz(path, shapes_only)
    raise ValueError(f"{path} is no file of tensors; known are {', '.join(KINDS)}")


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _safetensors_header(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Type, shape and first byte of each tensor."""
    size = require_plain_file(path).stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError(f"{path} is damaged or no safetensors file: its header should have {length:,} bytes")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_each_once)
        entries = {name: _entry(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {_first_words(error)}") from error
    if len(entries) > _MOST_TENSORS:
        raise ValueError(f"{path} lists {len(entries):,} tensors; no dictionary has that many")
    start, end = 8 + length, 0
    found = {}
    for name, (dtype, shape, first, last) in sorted(entries.items(), key=lambda entry: (entry[1][2:], entry[0])):
        if first != end or last - first != dtype.itemsize * _numel(shape, path):
            raise ValueError(
                f"{path}: the place of {name[:80]!r} in the file does not fit its shape {list(shape)}, overlaps another or "
                "leaves a hole"
            )
        found[name] = (dtype, shape, start + first)
        end = last
    if end != size - start:
        raise ValueError(f"{path} is cut off or padded: {size - start:,} bytes of tensors where {end:,} are listed")
    return found


def _entry(entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, and first and last byte of a tensor in a header."""
    (first, last), shape = entry["data_offsets"], entry["shape"]
    if not isinstance(shape, list) or any(type(n) is not int for n in (first, last, *shape)):
        raise ValueError(f"shape {shape!r} at {entry['data_offsets']!r}")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']!r} are not opened")
    return _DTYPES[entry["dtype"]], tuple(shape), first, last


def _numel(shape: tuple[int, ...], path: Path) -> int:
    total = 1
    for extent in shape:
        total *= extent
        if not 0 <= extent <= _MOST_NUMBERS or total > _MOST_NUMBERS or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"{path} lists a tensor of shape {str(list(shape))[:100]}")
    return total


def _read_safetensors(path: Path, shapes_only: bool) -> dict[str, Any]:
    header = _safetensors_header(path)
    if shapes_only:
        return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape, _) in header.items()}
    file = MappedFile(path)
    return {
        name: file.flat(dtype, _numel(shape, path), first).view(shape) for name, (dtype, shape, first) in header.items()
    }


def _read_pickle(path: Path, shapes_only: bool) -> dict[str, Any]:
    try:
        return read_pickled_tensors(path, shapes_only=shapes_only)
    except NotPlain as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, which could run code: {error}. It is not opened; open it "
            "where it was made, and save its state_dict, best with safetensors"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, or no file of PyTorch 1.6 or later: {error}. If PyTorch opens it where it was made, save "
            "its tensors with safetensors"
        ) from error


def _read_npz(path: Path, shapes_only: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with open_zip(path) as archive, path.open("rb") as raw:
            size = path.stat().st_size
            file = None if shapes_only else MappedFile(path)
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    array = _npy_header(stream)
                dtype, shape = array.dtype, array.shape
                if dtype.hasobject or dtype.kind not in "fiub" or not dtype.isnative:
                    raise ValueError(f"{name} holds {dtype}, which is not opened")
                if dtype.itemsize * _numel(shape, path) + array.start != member.file_size:
                    raise ValueError(f"{name} should have shape {list(shape)}, which does not fit its size")
                kind = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
                if file is None:
                    found[name] = torch.empty(shape, dtype=kind, device="meta")
                elif member.compress_type == zipfile.ZIP_STORED:
                    place = place_of(member, raw, size)
                    flat = file.flat(kind, _numel(shape, path), place.offset + array.start)
                    # in Fortran's order the first index runs fastest
                    found[name] = (
                        flat.view(shape[::-1]).permute(*reversed(range(len(shape))))
                        if array.fortran
                        else flat.view(shape)
                    )
                else:
                    with archive.open(member) as stream:
                        values = np.lib.format.read_array(stream, allow_pickle=False)
                    found[name] = torch.from_numpy(np.ascontiguousarray(values)).view(shape)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged files
        raise ValueError(f"{path} cannot be opened: {_first_words(error)}") from error
    return found


@dataclass(frozen=True)
class _Array:
    """What the header of an array says, and where its numbers begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int


def _npy_header(stream: Any) -> _Array:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the npy format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return _Array(dtype, shape, fortran, stream.tell())


def _first_words(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]


class TensorSource(Mapping[str, Any]):
    """Tensors (and plain values) of a file, of which every one has to be taken or knowingly ignored.

    A reader that forgets a tensor computes another function: a scale, a skip connection or a threshold is lost in silence.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self.where = dict(values), where
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def take(self, name: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
        """The tensor of this name, of this shape (None: of any extent there).

        Raises:
            ValueError: there is none, it is no floating tensor, or it has another shape.
        """
        if name not in self._values:
            raise ValueError(f"{self.where} has no tensor {name!r}; it has {', '.join(sorted(self._values)[:20])}")
        value = self._values[name]
        self._used.add(name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{self.where}: {name} should be a tensor of floating numbers")
        fits = shape is None or (
            len(shape) == value.ndim
            and all(wanted in (None, extent) for wanted, extent in zip(shape, value.shape, strict=True))
        )
        if not fits and shape is not None:
            wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise ValueError(f"{self.where}: {name} should have shape [{wanted}], but has {list(value.shape)}")
        return value.detach()

    def take_value(self, name: str, default: Any = None) -> Any:
        """A plain value, or the number in a tensor of one element (None from headers alone); ``default`` without it."""
        if name not in self._values:
            return default
        self._used.add(name)
        value = self._values[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{self.where}: {name} should be one number, but has shape {list(value.shape)}")
            return None if value.is_meta else value.item()
        return value

    def ignore(self, *names: str) -> None:
        """These play no part in the function; patterns of ``re.fullmatch``."""
        self._used |= {name for name in self._values for pattern in names if re.fullmatch(pattern, name)}

    def require_all_used(self) -> None:
        """ValueError where a tensor was neither taken nor ignored."""
        left = sorted(set(self._values) - self._used)
        if left:
            raise ValueError(
                f"{self.where} holds {', '.join(left[:10])}, which this format does not have; the dictionary would be "
                "another function without"
            )
