"""Activations from disk: a folder that was written once is read as often as one likes, with no model and no data set.

A cache holds the activations of whole windows in the order of the text. Training visits windows in a random order, a block
at a time, and mixes the tokens of a block, exactly as it does with a model's activations: the code is the same
(``ShuffledStream``), so that a float32 cache trains the very dictionary that the model would have. A window is one run of
bytes on disk (128 tokens of width 768 in bfloat16 are 197 kB); a block's runs are announced to the operating system one
block ahead and copied in the order of the files, so that the disk is kept busy with long reads. Analysis reads the same
files from front to back.

Nothing is held in memory but the shuffle buffer, in the dtype of the cache, and eight bytes per window.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from saescope.activations.cache_files import (
    CachedHookPoint,
    Manifest,
    changed_files,
    damaged_files,
    differences,
    read_arrays,
    read_text,
    shard_header,
    shard_offsets,
    shard_views,
    torch_dtype,
)
from saescope.activations.stream import ActivationBatch, ShuffledStream, StreamConfig
from saescope.activations.windows import TokenWindows, WindowBatch

HOW_TO_REPAIR = "`saescope cache` with --resume writes it again"


class CachedActivations:
    """A finished cache.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        tokens_per_window: int64, ``[num_windows]``.
    """

    def __init__(self, folder: Path, manifest: Manifest, tokens_per_window: np.ndarray) -> None:
        """For ``open``."""
        self.folder, self.manifest, self.tokens_per_window = folder, manifest, tokens_per_window
        self._window_starts = np.cumsum(tokens_per_window) - tokens_per_window  # in tokens of the whole cache
        self._shards = list(manifest.shards.items())
        sizes = [(entry.num_windows, entry.num_tokens) for _, entry in self._shards]
        self._first_window, self._first_token = (np.cumsum([0, *column[:-1]]) for column in zip(*sizes, strict=True))

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> CachedActivations:
        """Open a cache; manifest and sizes of all files are checked.

        Args:
            verify: also read every file and compare its checksum.

        Raises:
            FileNotFoundError: no cache there.
            ValueError: a cache that is not finished, or damaged; the files are named.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if not manifest.is_finished:
            raise ValueError(
                f"{folder} is not finished: it has {len(manifest.shards)} of {manifest.num_shards} shards; "
                "go on with it by `saescope cache` with --resume"
            )
        damaged = damaged_files(folder, manifest)
        if damaged:
            named = "; ".join(f"{folder / name} {what}" for name, what in damaged.items())
            raise ValueError(f"{named}; {HOW_TO_REPAIR}")
        counts = read_arrays(folder, "tokens_per_window")["tokens_per_window"]
        in_shards = [sum(getattr(e, key) for e in manifest.shards.values()) for key in ("num_windows", "num_tokens")]
        if in_shards != [len(counts), counts.sum()] or in_shards != [manifest.num_windows, manifest.num_tokens]:
            raise ValueError(
                f"{folder} contradicts itself: its shards hold {in_shards[1]:,} tokens of {in_shards[0]:,} windows, "
                f"its text {counts.sum():,} of {len(counts):,}; write it anew"
            )
        cache = cls(folder, manifest, counts)
        if verify:
            cache.verify()
        return cache

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Read every file and compare its checksum.

        Args:
            on_progress: called with (bytes read, bytes in all).

        Raises:
            ValueError: names the files that have changed.
        """
        done, changed = 0, []
        for name, differs in changed_files(self.folder, self.manifest):
            done += self.manifest.files[name].num_bytes
            if differs:
                changed.append(str(self.folder / name))
            if on_progress:
                on_progress(done, self.manifest.num_bytes)
        if changed:
            raise ValueError(
                f"{', '.join(changed)}: the checksum does not match, so the bytes are not those that were written; "
                f"remove what is named here, and {HOW_TO_REPAIR}"
            )

    @property
    def model_name(self) -> str:
        return str(self.manifest.settings["model"]["name"])

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def hook_points(self) -> list[str]:
        """Names of the hook points, as they were asked for."""
        return list(self.manifest.widths)

    def hook_point(self, name: str) -> CachedHookPoint:
        """The place called ``name``: as it was asked for, or by its module path.

        Raises:
            ValueError: the cache does not hold it.
        """
        for point in self.manifest.hook_points:
            if point.is_called(name):
                return point
        raise ValueError(f"{self.folder} holds activations at {', '.join(self.hook_points)}, not at {name}")

    def width(self, name: str) -> int:
        """``d_in`` at a hook point."""
        return self.hook_point(name).width

    @cached_property
    def windows(self) -> TokenWindows:
        """The text with its token ids and documents, read when it is first asked for."""
        return read_text(self.folder, self.manifest)

    def require(self, settings: Mapping[str, Mapping[str, Any]], hook_points: Sequence[str]) -> None:
        """Refuse a cache that was not made of what is asked for.

        Args:
            settings: sections and keys of a recipe; what is not named is not compared.

        Raises:
            ValueError: every difference, with both sides.
        """
        different = differences(self.manifest.settings, settings)
        if different:
            raise ValueError(
                f"{self.folder} does not fit: {'; '.join(different)}; change the recipe, or write another cache"
            )
        for name in hook_points:
            self.hook_point(name)

    def stream(
        self,
        hook_points: Sequence[str] | None = None,
        *,
        batch_size_tokens: int = 4096,
        config: StreamConfig | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> CachedStream:
        """Shuffled batches without end, as :class:`ActivationStream` gives them.

        Args:
            hook_points: all those of the cache, if left out.
            device: where batches go; the buffer stays in main memory.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"device {device!r} cannot be used: {reason}") from None
        return CachedStream(
            self,
            self.hook_points if hook_points is None else hook_points,
            batch_size_tokens=batch_size_tokens,
            config=config or StreamConfig(exclude_special_tokens=self._excludes_special_tokens),
            seed=seed,
            device=torch.device(device),
        )

    def read(self, rows: Any, hook_points: Sequence[str] | None = None) -> ActivationBatch:
        """The tokens of the windows of the given numbers, window after window, in float32."""
        rows = np.asarray(rows, dtype=np.int64)
        names = self.hook_points if hook_points is None else list(hook_points)
        total = int(self.tokens_per_window[rows].sum())
        batch = ActivationBatch(
            {name: torch.empty(total, self.width(name)) for name in names}, torch.empty(total, dtype=torch.int64)
        )
        self.read_into(rows, batch)
        return batch

    def in_order(
        self, batch_size_windows: int, hook_points: Sequence[str] | None = None
    ) -> Iterator[tuple[WindowBatch, ActivationBatch]]:
        """All windows in order: token ids and masks ``[B, T]``, and the activations of the tokens that are kept.

        The activations are those of ``keep`` (of ``attention``, where the cache has special tokens too), row by row.
        """
        for first in range(0, len(self.windows), batch_size_windows):
            rows = range(first, min(first + batch_size_windows, len(self.windows)))
            yield self.windows.batch(rows), self.read(rows, hook_points)

    @property
    def _excludes_special_tokens(self) -> bool:
        return bool(self.manifest.settings["stream"]["exclude_special_tokens"])

    def read_into(self, rows: np.ndarray, into: ActivationBatch) -> None:
        """Copy windows to a place of their size, cast to its dtype."""
        stored = {name: self.hook_point(name).name for name in into.values}
        for shard, runs in self._runs(rows):
            views = self._open_shard(shard)
            for start, count, target in runs:
                for name, values in into.values.items():
                    values[target : target + count].copy_(views.values[stored[name]][start : start + count])
                into.positions[target : target + count].copy_(views.positions[start : start + count])

    def announce(self, rows: np.ndarray, hook_points: Sequence[str]) -> None:
        """Ask the operating system to read windows from disk soon; a hint, and none where it knows no such call."""
        if not hasattr(os, "posix_fadvise"):
            return
        item_size = torch_dtype(self.manifest.dtype).itemsize
        places = [self.hook_point(name) for name in hook_points]
        with suppress(OSError):  # who reads in earnest will say what is wrong
            for shard, runs in self._runs(rows):
                name, entry = self._shards[shard]
                offsets = shard_offsets(entry.num_tokens, self.manifest.widths, self.manifest.dtype)
                with open(self.folder / name, "rb", buffering=0) as file:
                    for place in places:
                        size = place.width * item_size  # of a token
                        for start, count, _ in runs:
                            begin = offsets[f"values.{place.name}"] + start * size
                            os.posix_fadvise(file.fileno(), begin, count * size, os.POSIX_FADV_WILLNEED)

    def _runs(self, rows: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        """Windows as they lie on disk, by shard: first token there, number of tokens, place among those of ``rows``."""
        counts = self.tokens_per_window[rows]
        targets = np.cumsum(counts) - counts
        order = np.argsort(rows, kind="stable")
        shard_of = np.searchsorted(self._first_window, rows[order], side="right") - 1
        for here in np.split(order, np.flatnonzero(np.diff(shard_of)) + 1):
            if len(here):
                shard = int(np.searchsorted(self._first_window, rows[here[0]], side="right")) - 1
                starts = self._window_starts[rows[here]] - self._first_token[shard]
                yield shard, list(zip(starts.tolist(), counts[here].tolist(), targets[here].tolist(), strict=True))

    def _open_shard(self, shard: int) -> ActivationBatch:
        """A shard's tensors, mapped into memory for as long as they are used."""
        name, entry = self._shards[shard]
        path = self.folder / name
        header = shard_header(entry.num_tokens, self.manifest.widths, self.manifest.dtype)
        with open(path, "rb") as file:
            # a private mapping, for torch wants memory that it may write to; nobody does
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if len(memory) != entry.num_bytes or memory[: len(header)] != header:
            raise ValueError(f"{path} has been changed: it is not the shard that {self.folder} was written with")
        return shard_views(memory, entry.num_tokens, self.manifest.widths, self.manifest.dtype)


class CachedStream(ShuffledStream):
    """Shuffled activations from a cache: the batches that a model would give, with no model present."""

    def __init__(
        self,
        cache: CachedActivations,
        hook_points: Sequence[str],
        *,
        batch_size_tokens: int,
        config: StreamConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        if isinstance(hook_points, str) or not hook_points:
            raise ValueError(f"hook_points is a list of at least one name, not {hook_points!r}")
        cache.require({"stream": {"exclude_special_tokens": config.exclude_special_tokens}}, hook_points)
        self.cache = cache
        self._announced: tuple[int, int] | None = None  # pass and block
        self._announcing: Thread | None = None
        super().__init__(
            cache.tokens_per_window,
            {name: cache.width(name) for name in hook_points},
            batch_size_tokens=batch_size_tokens,
            config=config,
            seed=seed,
            device=device,
            buffer_device=torch.device("cpu"),
            buffer_dtype=torch_dtype(cache.manifest.dtype),
        )

    @property
    def windows(self) -> TokenWindows:
        return self.cache.windows

    def _read(self, rows: np.ndarray, into: ActivationBatch) -> None:
        if self._announced != (self._epoch, self._block):
            self._announce(self._epoch, self._block)
        self.cache.read_into(rows, into)
        self._announce(*self._next_block())  # the disk reads it while this one is trained on

    def _announce(self, epoch: int, block: int) -> None:
        """In a thread of its own, for the call waits where the disk takes no more requests."""
        if self._announcing is not None:
            self._announcing.join()
        self._announced = (epoch, block)
        arguments = (self._rows(epoch, block), self.hook_points)
        self._announcing = Thread(target=self.cache.announce, args=arguments, daemon=True)
        self._announcing.start()
