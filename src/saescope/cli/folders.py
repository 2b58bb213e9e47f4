"""The folder of a run, and what may happen to one that is already there."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OURS = (
    "run.json", "metrics.jsonl", "checkpoints", "dictionary", "eval.json", "analysis.npz", "features.db", "report.html",
    "plots",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def dictionary(self) -> Path:
        return self.path / "dictionary"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"


def prepare_folder(path: Path, run: dict[str, Any], *, overwrite: bool, resume: bool) -> RunFolder:
    """Make sure that a run can write to ``path`` before anything slow starts.

    Raises:
        FileExistsError: the folder holds another run and neither flag is set, or files that are not a run's.
        ValueError: ``resume``, but the folder's run had other settings.
        OSError: the folder cannot be written to.
    """
    folder = RunFolder(path)
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other: start anew, or go on?")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a folder for the run")
    present = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if present and not folder.run_file.exists():
        raise FileExistsError(
            f"{path} holds files that are not a run's ({', '.join(present[:5])}); name another folder"
        )
    if present and not overwrite and not resume:
        raise FileExistsError(
            f"{path} already holds a run; pass --resume to go on with it or --overwrite to replace it"
        )
    if resume and folder.run_file.exists():
        before = json.loads(folder.run_file.read_text())
        changed = [key for key in sorted({*before, *run}) if before.get(key) != json.loads(json.dumps(run.get(key)))]
        if changed:
            raise ValueError(
                f"{path} was begun with other settings ({', '.join(changed)}); resume with the same recipe"
            )
    if overwrite:
        for name in present:
            if name.split(".old")[0].split(".partial")[0].removesuffix("-wal").removesuffix("-shm") in _OURS:
                _remove(path / name)
    path.mkdir(parents=True, exist_ok=True)
    beside = folder.run_file.with_suffix(".partial")
    beside.write_text(json.dumps(run, indent=1) + "\n")
    beside.replace(folder.run_file)
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
