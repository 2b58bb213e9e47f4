"""Tensors that lie in a file: mapped into memory, so that only what is used is read, and copied without a second copy.

A mapped page that was read counts as memory of the process until somebody gives it back. Whoever copies a tensor out of a
file therefore copies a block at a time and gives the block's pages back at once: the peak is the copy and one block.

A file must not become shorter while it is mapped: the system ends a process that reads behind its end.
"""

from __future__ import annotations

import math
import mmap
import weakref
from pathlib import Path

import torch
from torch import Tensor

_BLOCK_BYTES = 16 << 20
_mapped: weakref.WeakValueDictionary[int, mmap.mmap] = (
    weakref.WeakValueDictionary()
)  # address of the first byte -> file


class MappedFile:
    """A file of which parts become tensors."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # nothing is ever written to the file
        _mapped[torch.frombuffer(self._bytes, dtype=torch.uint8).data_ptr()] = self._bytes

    def flat(self, dtype: torch.dtype, numel: int, offset: int) -> Tensor:
        """``numel`` numbers from a byte on, ``[numel]``."""
        if not numel:
            return torch.empty(0, dtype=dtype)
        if offset % dtype.itemsize:  # a number across a boundary that processors do not like: its own memory
            raw = torch.frombuffer(self._bytes, dtype=torch.uint8, count=numel * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype)
        return torch.frombuffer(self._bytes, dtype=dtype, count=numel, offset=offset)


def owned(tensor: Tensor, dtype: torch.dtype, name: str = "a tensor", *, transposed: bool = False) -> Tensor:
    """A copy in memory of its own; pages of mapped files that were read for it are given back.

    Args:
        name: for what is said of a value that is no number.
        transposed: lay it out column after column, as encoders are kept.

    Raises:
        ValueError: a value is NaN or infinite, or too large for the dtype.
    """
    made = torch.empty(tensor.shape[::-1] if transposed else tensor.shape, dtype=dtype)
    made = made.T if transposed else made
    if not tensor.ndim or not tensor.numel():
        _require_finite(tensor, made.copy_(tensor), name)
        return made
    # along the dimension that is outermost in the file, so that a block is one stretch of it
    outer = max(range(tensor.ndim), key=lambda dim: (tensor.stride(dim), -dim))
    rows = max(1, _BLOCK_BYTES * tensor.shape[outer] // (tensor.numel() * max(tensor.element_size(), dtype.itemsize)))
    for mine, block in zip(made.split(rows, outer), tensor.split(rows, outer), strict=True):
        _require_finite(block, mine.copy_(block), name)
        _give_back(block)
    return made


def _require_finite(block: Tensor, copy: Tensor, name: str) -> None:
    if not copy.is_floating_point() or bool(copy.isfinite().all()):
        return
    if bool(block.isfinite().all()):
        raise ValueError(f"{name} holds values that are too large for {copy.dtype}; take another dtype")
    raise ValueError(f"{name} holds NaN or infinite values; the file is damaged, or its training diverged")


def _give_back(block: Tensor) -> None:
    """Let go of the whole pages under a block, if it lies in a mapped file; they are read again when they are needed."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = block.data_ptr()
    reach = sum((extent - 1) * step for extent, step in zip(block.shape, block.stride(), strict=True))
    last = first + (reach + 1) * block.element_size()
    for base, file in list(_mapped.items()):
        if base <= first and last <= base + len(file):
            start = math.ceil((first - base) / mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (last - base) // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start:
                file.madvise(mmap.MADV_DONTNEED, start, stop - start)
