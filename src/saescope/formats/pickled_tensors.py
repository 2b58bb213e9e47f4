"""Tensors in PyTorch's ``.pt`` files, without PyTorch's loader and without unpickling.

Such a file is a zip of a pickle and of the raw memory of tensors. A pickle is a program for a small machine with a stack. Of
its instructions only those are carried out here that make plain containers, numbers and strings; of the names that it may
call only those that stand for a tensor, and what is called is our own. So whatever a file says, no class is looked up and no
code is run. (Loaders that take an allowed list to the real machine have had holes: CVE-2025-32434.)

How a tensor is written: a storage (element type, name of the zip's member, number of elements), and an offset, sizes and
strides into it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saescope.formats.mapped_files import MappedFile
from saescope.formats.zip_files import Member, stored_members

MOST_PICKLE_BYTES = 1 << 20
_MOST_NUMBERS = 1 << 48

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "float8_e4m3fn",
        "float8_e5m2",
    )
}  # fmt: skip


class NotPlain(ValueError):
    """The pickle asks for more than tensors and plain values."""


@dataclass(frozen=True)
class _Kind:
    """The class of a storage."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


class _Mark:
    """Where the items of a container begin on the stack."""


def read_pickled_tensors(path: Path, *, shapes_only: bool) -> dict[str, Any]:
    """Tensors and plain values by name.

    Raises:
        NotPlain: the file holds something else, which could be code.
        ValueError: it is damaged, or claims more than it has.
    """
    members = stored_members(path)
    lists = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(lists) != 1:
        raise ValueError("it has no list of tensors (data.pkl)" if not lists else "it has several lists of tensors")
    home = lists[0].removesuffix("data.pkl")
    if members[lists[0]].size > MOST_PICKLE_BYTES:
        raise ValueError(f"its list of tensors has {members[lists[0]].size:,} bytes, more than any dictionary's")
    order = members.get(f"{home}byteorder")
    if order is not None and order.size < 16 and order.read(path) != b"little":
        raise ValueError("its numbers are in big-endian order")
    machine = _Machine(_Tensors(path, members, f"{home}data/", shapes_only))
    found = machine.run(members[lists[0]].read(path))
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not tensors by name")
    return {str(name): value for name, value in found.items()}


class _Tensors:
    """Makes tensors of storages."""

    def __init__(self, path: Path, members: Mapping[str, Member], folder: str, shapes_only: bool) -> None:
        self._members, self._folder = members, folder
        self._file = None if shapes_only else MappedFile(path)

    def storage(self, what: Any) -> _Storage:
        if not isinstance(what, tuple) or len(what) != 5 or what[0] != "storage" or not isinstance(what[1], _Kind):
            raise NotPlain("a reference to something that is no storage")
        _, kind, key, _, numel = what
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel <= _MOST_NUMBERS:
            raise ValueError(f"a storage {key!r} of {numel!r} numbers")
        member = self._members.get(self._folder + key)
        if member is None or member.size != numel * kind.dtype.itemsize:
            has = "is not there" if member is None else f"has {member.size:,} bytes"
            raise ValueError(f"the storage {key!r} of {numel:,} numbers {has}")
        return _Storage(kind.dtype, key, numel)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
        """``_rebuild_tensor_v2``, of whose further arguments none plays a part here."""
        if not isinstance(storage, _Storage):
            raise NotPlain("a tensor of something that is no storage")
        sizes, steps = _whole_numbers(size), _whole_numbers(stride)
        if len(sizes) != len(steps) or len(sizes) > 8 or type(offset) is not int or offset < 0:
            raise ValueError(f"a tensor of size {size!r}, strides {stride!r}, offset {offset!r}")
        numel = 1
        for extent in sizes:
            numel *= extent
        reach = offset + sum((extent - 1) * step for extent, step in zip(sizes, steps, strict=True)) + 1
        if numel and (reach > storage.numel or numel > storage.numel):
            raise ValueError(f"a tensor of shape {list(sizes)} in a storage of {storage.numel:,} numbers")
        if self._file is None:
            return torch.empty_strided(sizes, steps, dtype=storage.dtype, device="meta")
        start = self._members[self._folder + storage.key].offset
        return self._file.flat(storage.dtype, storage.numel, start).as_strided(sizes, steps, offset if numel else 0)

    def tensor_v3(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
        """``_rebuild_tensor_v3``: the storage is one of bytes, and the element type stands for itself."""
        dtype = more[2] if len(more) > 2 else None  # after two that play no part
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
            raise NotPlain("a tensor of something that is no storage")
        if storage.numel % dtype.itemsize:
            raise ValueError(f"a storage of {storage.numel:,} bytes for {dtype}")
        return self.tensor(_Storage(dtype, storage.key, storage.numel // dtype.itemsize), offset, size, stride)


def _whole_numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(type(n) is int and 0 <= n <= _MOST_NUMBERS for n in value):
        raise ValueError(f"a tensor of size {value!r}")
    return tuple(value)


class _Machine:
    """The plain part of the pickle machine."""

    def __init__(self, tensors: _Tensors) -> None:
        self._tensors = tensors
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._callable: dict[str, Callable[..., Any]] = {
            "collections OrderedDict": lambda pairs=(): dict(pairs),
            "torch._utils _rebuild_tensor_v2": tensors.tensor,
            "torch._utils _rebuild_tensor_v3": tensors.tensor_v3,
            "torch._utils _rebuild_parameter": lambda data, *more: data,
            "torch Size": lambda sizes=(): tuple(sizes),
            "torch device": lambda *words: ":".join(map(str, words)),
        }

    def run(self, program: bytes) -> Any:
        try:
            for instruction, argument, _ in pickletools.genops(program):
                if instruction.name == "STOP":
                    return self._stack.pop()
                self._step(instruction.name, argument)
        except NotPlain:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
            raise ValueError(f"its list of tensors is damaged ({type(error).__name__}: {str(error)[:160]})") from error
        raise ValueError("its list of tensors has no end")  # unreachable: genops ends at STOP, or raises

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSHED:
            stack.append(_PUSHED[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name == "LIST":
            stack.append(self._to_mark())
        elif name == "DICT":
            items = self._to_mark()
            stack.append(_filled({}, items))
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "APPENDS":
            items = self._to_mark()
            _list(stack[-1]).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _filled(stack[-1], (key, value))
        elif name == "SETITEMS":
            items = self._to_mark()
            _filled(stack[-1], items)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "GLOBAL":
            stack.append(self._named(argument))
        elif name == "STACK_GLOBAL":
            word, module = stack.pop(), stack.pop()
            stack.append(self._named(f"{module} {word}"))
        elif name == "BINPERSID":
            stack.append(self._tensors.storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            if not any(called is known for known in self._callable.values()) or not isinstance(arguments, tuple):
                raise NotPlain("it calls what makes no tensor")
            stack.append(called(*arguments))
        elif name == "BUILD":
            stack.pop()  # what an OrderedDict of weights carries beside them: versions of modules
            if not isinstance(stack[-1], dict):
                raise NotPlain("it sets the state of an object")
        else:
            raise NotPlain(f"it has the instruction {name}")

    def _named(self, words: str) -> Any:
        if words in self._callable:
            return self._callable[words]
        module, _, name = words.partition(" ")
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if (module, name) in (("torch.storage", "UntypedStorage"), ("torch", "UntypedStorage")):
            return _Kind(torch.uint8)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise NotPlain(f"it names {words.replace(' ', '.')[:100]}")

    def _to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes as well."""
        items = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"items for a {type(value).__name__}")
    return value


def _filled(into: Any, items: Any) -> dict[Any, Any]:
    """Keys and values in turn; keys are words and numbers (hashing a tuple of tuples of tuples ... has no end)."""
    if not isinstance(into, dict) or len(items) % 2:
        raise ValueError(f"entries for a {type(into).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"an entry named by a {type(key).__name__}")
        if key in into:
            raise ValueError(f"the entry {key!r} twice")
        into[key] = value
    return into


_PUSHED: Mapping[str, Callable[[], Any]] = {
    "MARK": _Mark, "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None,
    "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_LITERALS = frozenset(
    ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE", "BINUNICODE8",
     "SHORT_BINUNICODE", "UNICODE", "BINBYTES", "SHORT_BINBYTES")
)  # fmt: skip
