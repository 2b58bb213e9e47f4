"""Where a run can stop and go on: everything that decides the next step, in one folder per checkpoint.

``checkpoints/step-00001200/`` holds ``state.safetensors`` (unfolded weights, Adam's moments, counters, the stream's
tensors), ``state.json`` (counters, stream position, the SHA-256 of both files) and ``dictionary/`` (the same weights
folded, ready to open). A checkpoint is written beside and renamed as a whole; the checksums tell a damaged one, and the
one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from saescope.dictionaries import Dictionary, save_dictionary
from saescope.dictionaries.saving import new_folder_beside, replace_folder, write_tensors

STATE_TENSORS = "state.safetensors"
STATE_JSON = "state.json"
PARTIAL, OLD = ".partial", ".old"  # what is being written, and what it takes the place of (see dictionaries/saving.py)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` steps: named tensors, and values that JSON can hold."""

    step: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose name begins with ``prefix/``, without it."""
        return {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + "/")}


def write_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    keep_last: int,
    keep_every_n_steps: int | None = None,
    dictionary: Dictionary | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, and the dictionary as it stands, into ``folder`` (the run's ``checkpoints``).

    Of the checkpoints there, this one and the ``keep_last - 1`` before it stay, and those of every
    ``keep_every_n_steps``. Later ones are of a past that this run does not share (it went on from an earlier
    checkpoint, because they are damaged) and go.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    try:
        beside = new_folder_beside(target)
        reached("begun")
        if dictionary is not None:
            save_dictionary(dictionary, beside / "dictionary", metadata=metadata)
            reached("dictionary written")
        write_tensors(checkpoint.tensors, beside / STATE_TENSORS)
        reached("tensors written")
        values = {"step": checkpoint.step, "sha256": _sha256(beside / STATE_TENSORS), **checkpoint.values}
        (beside / STATE_JSON).write_text(json.dumps({"own_sha256": _sha256_of(values), **values}, indent=1) + "\n")
        reached("values written")
        replace_folder(beside, target)
    except BaseException as error:
        shutil.rmtree(target.with_name(target.name + PARTIAL), ignore_errors=True)  # a full disk needs the room
        if isinstance(error, OSError):
            raise OSError(f"the checkpoint {target} could not be written: {error}") from error
        raise
    reached("renamed")
    prune(folder, checkpoint.step, keep_last, keep_every_n_steps)
    return target


def prune(folder: Path, step: int, keep_last: int, keep_every_n_steps: int | None = None) -> None:
    """Remove the checkpoints that are not to be kept once that of ``step`` stands, and what kills left of others."""
    present = checkpoints_in(folder)
    past = [path for path in present if _step(path) <= step]
    kept = {*past[-keep_last:], *(path for path in past if keep_every_n_steps and not _step(path) % keep_every_n_steps)}
    left = {path for suffix in (PARTIAL, OLD) for path in folder.glob(f"step-*{suffix}")}
    for path in (*present, *sorted(left.difference(present))):
        if path not in kept:
            shutil.rmtree(path)
            reached("pruned")


def reached(point: str) -> None:
    """Called wherever a write could be cut off; tests of crashes put something in its place."""


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint in ``folder``, or None where there is none; damaged ones are named in warnings.

    Raises:
        ValueError: all checkpoints are damaged.
    """
    present = checkpoints_in(folder)
    for path in reversed(present):
        try:
            values = json.loads((path / STATE_JSON).read_text())
            if values.pop("own_sha256") != _sha256_of(values) or values.pop("sha256") != _sha256(path / STATE_TENSORS):
                raise ValueError("the checksum does not match")
            return Checkpoint(values.pop("step"), load_file(path / STATE_TENSORS), values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"checkpoint {path} is damaged ({error}); trying the one before it", stacklevel=2)
    if present:
        raise ValueError(f"every checkpoint in {folder} is damaged; remove that folder to start the run anew")
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders of whole checkpoints, oldest first.

    Where a kill came as one was to take the place of another of its step, that other stands aside under another name.
    """
    found = (path for path in folder.glob("step-*") if path.suffix in ("", OLD) and path.stem[len("step-") :].isdigit())
    by_step = {_step(path): path for path in sorted(found, reverse=True)}  # "step-00000012.old" before "step-00000012"
    return [by_step[step] for step in sorted(by_step)]


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _sha256_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
