"""Writing a cache of activations: shard by shard, so that what is on disk is whole whatever stops it.

The text comes first, then the manifest, then the shards in order; after each shard the manifest names one more. A write
that is stopped anywhere leaves the finished shards and, at most, one file ending in ``.partial``, which the next one
removes. Going on takes the text from the folder: the data set is not read again, and cannot have changed.

S  tokens of some windows, d  width of a hook point.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations.cache import CachedActivations
from saescope.activations.cache_files import (
    DOCUMENTS,
    MANIFEST,
    PARTIAL,
    TEXT,
    CachedHookPoint,
    Manifest,
    ShardEntry,
    bytes_per_token,
    damaged_files,
    differences,
    read_arrays,
    read_text,
    readable_size,
    shard_bounds,
    shard_header,
    shard_name,
    shard_views,
    torch_dtype,
    write_file,
    write_text,
)
from saescope.activations.documents import DatasetConfig
from saescope.activations.stream import ActivationBatch, read_windows
from saescope.activations.windows import TokenWindows, WindowBatch, WindowConfig

if TYPE_CHECKING:
    from saescope.models import LanguageModel


class DiskTooSmall(OSError):
    """No room for a cache; says how much is needed."""


_MODEL_TOLERANCE = 0.02  # relative; activations of one model differ less than that between batch shapes and machines


def write_cache(
    model: LanguageModel,
    windows: TokenWindows | None,
    hook_points: Sequence[str],
    folder: str | Path,
    *,
    dataset: DatasetConfig | None = None,
    dtype: str = "float32",
    exclude_special_tokens: bool = True,
    model_batch_size_windows: int = 32,
    shard_size_bytes: int = 256_000_000,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedActivations:
    """Write the activations of a text to a folder.

    Args:
        windows: the text; None goes with ``resume``, which takes it from the folder.
        dataset: what the text was read from, for the manifest.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, in which activations are stored.
        exclude_special_tokens: leave special tokens out, as a stream does by default.
        shard_size_bytes: about how large a shard is (it holds whole windows); one is held in memory.
        resume: go on with what the folder holds, from the first shard that is missing or has the wrong size.
        overwrite: replace the cache that the folder holds.
        on_progress: called with (tokens written by this call, tokens that it is to write).

    Raises:
        FileExistsError: the folder holds a cache and neither flag is set, or files that are not a cache's.
        ValueError: ``resume``, but the cache was begun otherwise, or the model gives other activations than it did;
            values that are not finite, or too large for ``dtype``.
        OSError: the disk is too small, or became full; what is written stays, and can be gone on with.
    """
    folder = Path(folder)
    if isinstance(hook_points, str) or not hook_points:
        raise ValueError(f"hook_points is a list of at least one name, not {hook_points!r}")
    if model_batch_size_windows < 1 or shard_size_bytes < 1:
        raise ValueError(
            f"model_batch_size_windows = {model_batch_size_windows} and shard_size_bytes = {shard_size_bytes} "
            "must be at least 1"
        )
    names = list(dict.fromkeys(hook_points))
    stream = {"exclude_special_tokens": exclude_special_tokens}
    settings = cache_settings(model.name, model.dtype, dataset, windows.config if windows else None, stream)
    manifest = check_cache_folder(folder, settings, names, dtype, resume=resume, overwrite=overwrite)
    try:
        if manifest is None:
            if windows is None:
                raise ValueError(f"{folder} holds no cache to go on with; give the windows to start one")
            manifest = _begin(model, windows, names, folder, settings, dtype, shard_size_bytes)
        elif manifest.is_finished:
            return CachedActivations.open(folder)
        else:
            windows = _same_text(folder, manifest, windows)
        work = _Work(model, windows, folder, manifest, model_batch_size_windows)
        work.check_model()
        work.write(on_progress or (lambda done, total: None))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, DiskTooSmall):
            raise
        raise DiskTooSmall(error.errno, _what_is_still_needed(folder), str(folder)) from error
    return CachedActivations.open(folder)


def cache_settings(
    model_name: str,
    model_dtype: str | torch.dtype,
    dataset: DatasetConfig | None,
    windows: WindowConfig | None,
    stream: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """What decides a cache's activations, in the sections and keys of a recipe."""
    if isinstance(model_dtype, str):
        model_dtype = getattr(torch, model_dtype, model_dtype)  # "half" is float16
    return {
        "model": {"name": model_name, "dtype": str(model_dtype).removeprefix("torch.")},
        "dataset": asdict(dataset) if dataset else {},
        "windows": asdict(windows) if windows else {},
        "stream": stream,
    }


def check_cache_folder(
    folder: Path,
    settings: dict[str, dict[str, Any]],
    hook_points: Sequence[str],
    dtype: str,
    *,
    resume: bool,
    overwrite: bool,
) -> Manifest | None:
    """Whether a cache may be written to ``folder``; changes nothing.

    Gives the manifest to go on with, if there is one, with those shards alone that are on disk in their full size.

    Raises:
        FileExistsError, ValueError: as for :func:`write_cache`.
    """
    torch_dtype(dtype)
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other: start anew, or go on?")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the cache")
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in present if not _is_ours(name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds files that are not a cache's ({', '.join(foreign[:5])}); name another folder"
        )
    if overwrite:
        return None
    if MANIFEST not in present:
        shards = [name for name in present if name.startswith("shard-") and not name.endswith(PARTIAL)]
        if shards:
            raise FileExistsError(f"{folder} holds shards without a {MANIFEST}; pass --overwrite to replace them")
        return None  # nothing, or what a start that was cut off left behind
    manifest = Manifest.read(folder)
    damaged = damaged_files(folder, manifest)
    text = "; ".join(f"{folder / name} {what}" for name, what in damaged.items() if name in manifest.text)
    if text:
        raise ValueError(f"{text}; without its text a cache cannot be gone on with: pass --overwrite to start anew")
    manifest = replace(manifest, shards={name: entry for name, entry in manifest.shards.items() if name not in damaged})
    if not resume:
        raise FileExistsError(
            f"{folder} already holds a cache; pass --overwrite to replace it"
            if manifest.is_finished
            else f"{folder} holds {len(manifest.shards)} of {manifest.num_shards} shards of a cache; "
            "pass --resume to go on with it or --overwrite to replace it"
        )
    found = {**manifest.settings, "cache": {"dtype": manifest.dtype, "hook_points": list(manifest.widths)}}
    different = differences(found, {**settings, "cache": {"dtype": dtype, "hook_points": list(hook_points)}})
    if different:
        raise ValueError(f"{folder} was begun otherwise: {'; '.join(different)}; resume with the same settings")
    return manifest


def _is_ours(name: str) -> bool:
    name = name.removesuffix(PARTIAL)
    return name in (MANIFEST, TEXT, DOCUMENTS) or (name.startswith("shard-") and name.endswith(".safetensors"))


def _begin(
    model: LanguageModel,
    windows: TokenWindows,
    hook_points: list[str],
    folder: Path,
    settings: dict[str, dict[str, Any]],
    dtype: str,
    shard_size_bytes: int,
) -> Manifest:
    """Text and manifest in the place of what the folder held."""
    counts = windows.tokens_per_window(**settings["stream"])
    if not counts.sum():
        raise ValueError("nothing to write: every token of the text is a special one")
    points = tuple(CachedHookPoint(name, model.hook_point(name).canonical, model.width(name)) for name in hook_points)
    each = bytes_per_token({point.name: point.width for point in points}, dtype)
    size_tokens = max(1, shard_size_bytes // each)
    text = 4 * len(windows.tokens) + 28 * len(windows) + sum(len(document.text) for document in windows.documents)
    folder.mkdir(parents=True, exist_ok=True)
    held = sum(path.stat().st_size for path in folder.iterdir())
    _require_space(folder, each * int(counts.sum()) + text, held)
    for name in (MANIFEST, *sorted(p.name for p in folder.iterdir())):  # without its manifest it is no cache any more
        (folder / name).unlink(missing_ok=True)
    manifest = Manifest(
        settings=settings,
        hook_points=points,
        dtype=dtype,  # type: ignore[arg-type]  # checked before
        num_tokens=int(counts.sum()),
        num_windows=len(windows),
        num_documents=len(windows.documents),
        num_shards=len(shard_bounds(counts, size_tokens)) - 1,
        shard_size_tokens=size_tokens,
        special_ids=tuple(sorted(windows.special_ids)),
        separator_id=windows.separator_id,
        bos_id=windows.bos_id,
        pad_id=windows.pad_id,
        text=write_text(folder, windows, counts),
    )
    manifest.write(folder)
    return manifest


def _same_text(folder: Path, manifest: Manifest, windows: TokenWindows | None) -> TokenWindows:
    """The text that the cache was begun with."""
    stored = read_text(folder, manifest)
    arrays = ("tokens", "starts", "lengths")
    if windows is not None and not all(np.array_equal(getattr(windows, a), getattr(stored, a)) for a in arrays):
        raise ValueError(
            f"{folder} was begun with another text ({len(stored.tokens):,} tokens, now {len(windows.tokens):,}); "
            "resume with the same one, or with windows = None to take it from the folder"
        )
    return stored


def _require_space(folder: Path, needed: int, freed: int = 0) -> None:
    free = shutil.disk_usage(folder).free + freed
    if free < needed:
        raise DiskTooSmall(
            errno.ENOSPC,
            f"the disk is too small: {readable_size(needed)} are needed and {readable_size(free)} are free; "
            "make room, write fewer tokens or hook points, or store bfloat16",
            str(folder),
        )


def _what_is_still_needed(folder: Path) -> str:
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        return "the disk became full before anything was written; make room and start again"
    missing = manifest.num_tokens - sum(entry.num_tokens for entry in manifest.shards.values())
    needed = missing * bytes_per_token(manifest.widths, manifest.dtype)
    return (
        f"the disk became full with {len(manifest.shards)} of {manifest.num_shards} shards written, all of them whole; "
        f"{readable_size(needed)} more are needed, {readable_size(shutil.disk_usage(folder).free)} are free: "
        "make room and go on with --resume"
    )


@dataclass
class _Work:
    """The shards that are still to be written."""

    model: LanguageModel
    windows: TokenWindows
    folder: Path
    manifest: Manifest
    batch_size_windows: int

    def __post_init__(self) -> None:
        self.counts = read_arrays(self.folder, "tokens_per_window")["tokens_per_window"]
        bounds = shard_bounds(self.counts, self.manifest.shard_size_tokens)
        self.ranges = {shard_name(i): range(*ends) for i, ends in enumerate(pairwise(bounds.tolist()))}  # of windows

    def write(self, on_progress: Callable[[int, int], None]) -> None:
        missing = {
            name: (windows, int(self.counts[windows.start : windows.stop].sum()))
            for name, windows in self.ranges.items()
            if name not in self.manifest.shards
        }
        for path in (*self.folder.glob(f"*{PARTIAL}"), *(self.folder / name for name in missing)):
            path.unlink(missing_ok=True)  # none of them is whole
        total = sum(num_tokens for _, num_tokens in missing.values())
        _require_space(self.folder, sum(self._shard_bytes(num_tokens) for _, num_tokens in missing.values()))
        memory = bytearray(max(self._shard_bytes(num_tokens) for _, num_tokens in missing.values()))  # for all in turn
        done = 0
        for name, (windows, num_tokens) in missing.items():
            header = shard_header(num_tokens, self.manifest.widths, self.manifest.dtype)
            memory[: len(header)] = header
            views = shard_views(memory, num_tokens, self.manifest.widths, self.manifest.dtype)
            place = 0
            for batch in self._batches(windows):
                part = self._stored(batch)
                views.stretch(place, place + len(part)).copy_(part)
                place += len(part)
                on_progress(done + place, total)
            written = write_file(self.folder / name, [memoryview(memory)[: self._shard_bytes(num_tokens)]])
            entry = ShardEntry(written.num_bytes, written.sha256, len(windows), num_tokens)
            self.manifest = self.manifest.with_shard(name, entry)
            self.manifest.write(self.folder)
            done += num_tokens

    def check_model(self) -> None:
        """ValueError where the model no longer gives what the first whole shard holds."""
        for name, entry in self.manifest.shards.items():
            memory = bytearray((self.folder / name).read_bytes())
            views = shard_views(memory, entry.num_tokens, self.manifest.widths, self.manifest.dtype)
            now = self._stored(next(self._batches(self.ranges[name])))
            before = views.stretch(0, len(now))
            for point, value in now.values.items():
                was = before.values[point].float()
                change = float((value.cpu().float() - was).norm() / was.norm().clamp_min(1e-12))
                if not change <= _MODEL_TOLERANCE:
                    raise ValueError(
                        f"{self.folder} was begun with another model of that name: at {point} the activations of the "
                        f"same tokens differ by {change:.0%} of their size; pass --overwrite to start anew"
                    )
            return

    def _batches(self, windows: range) -> Iterator[WindowBatch]:
        """Of one shard alone, so that its bytes do not depend on where a write was taken up again."""
        for first in range(0, len(windows), self.batch_size_windows):
            yield self.windows.batch(windows[first : first + self.batch_size_windows])

    def _stored(self, batch: WindowBatch) -> ActivationBatch:
        """The activations of some windows in the dtype of the cache, all finite."""
        dtype = torch_dtype(self.manifest.dtype)
        read = read_windows(self.model, batch, list(self.manifest.widths), **self.manifest.settings["stream"])
        values = {name: value.to(dtype) for name, value in read.values.items()}
        for name, value in values.items():
            # the sum of finite values can be too large itself, but that of others is never finite; it is the faster test
            if not bool(value.sum(dtype=torch.float32).isfinite()) and not bool(value.isfinite().all()):
                self._refuse(name, read.values[name], read.positions)
        return ActivationBatch(values, read.positions)

    def _refuse(self, name: str, values: Tensor, positions: Tensor) -> None:
        """``values`` ``[S, d]`` as the model gave them."""
        finite = values.isfinite()
        if bool(finite.all()):
            dtype, others = (
                self.manifest.dtype,
                "bfloat16 or float32" if self.manifest.dtype == "float16" else "float32",
            )
            raise ValueError(
                f"activations at {name} reach {float(values.abs().max()):.4g}, and {dtype} ends at "
                f"{torch.finfo(torch_dtype(dtype)).max:.4g}; store them as {others}"
            )
        place = int(positions[int((~finite.all(-1)).nonzero()[0])])
        where = f"position {place} of the text" if place >= 0 else "the opening token of a window"
        raise ValueError(
            f"{self.model.name} gives activations at {name} that are not finite (NaN or infinite), first at {where}; "
            "load the model in float32, or choose another hook point"
        )

    def _shard_bytes(self, num_tokens: int) -> int:
        header = shard_header(num_tokens, self.manifest.widths, self.manifest.dtype)
        return len(header) + num_tokens * bytes_per_token(self.manifest.widths, self.manifest.dtype)
