"""Many dictionaries in few passes: each in a folder of its own, and the time that all of it took."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from saescope.cli.folders import RunFolder, prepare_folder
from saescope.cli.recipe import RunConfig
from saescope.cli.training import check_shared, train_runs

SWEEP_FILE = "sweep.json"
_SECONDS_BETWEEN_WRITES = 10.0


def train_sweep(
    configs: Sequence[RunConfig],
    folder: Path,
    console: Console,
    *,
    resume: bool,
    dictionaries_per_pass: int | None = None,
) -> list[Path]:
    """Train dictionaries that share one stream, each into ``folder/NAME``; returns these folders, in order.

    With ``resume``, runs that are finished are left as they are, and those that were begun go on. ``sweep.json`` keeps the
    seconds that all passes took, those of earlier calls included.

    Args:
        dictionaries_per_pass: how many train side by side; all where None.

    Raises:
        ValueError: runs that can not share a stream, or have one name; a run in the folder had other settings.
        FileExistsError: the folder holds one of the runs, and ``resume`` is not set.
    """
    if not configs:
        raise ValueError("a sweep needs at least one run")
    if dictionaries_per_pass is not None and dictionaries_per_pass < 1:
        raise ValueError(f"dictionaries_per_pass must be at least 1, got {dictionaries_per_pass}")
    check_shared(configs)
    paths = [folder / config.name for config in configs]
    if not resume:
        present = [path for path in paths if path.exists()]
        if present:  # before the first of them is written
            raise FileExistsError(f"{present[0]} is there already; go on with --resume, or name another folder")
    folders = [
        prepare_folder(path, config.as_dict(), overwrite=False, resume=resume)
        for path, config in zip(paths, configs, strict=True)
    ]
    size = dictionaries_per_pass or len(configs)
    groups = [list(zip(configs, folders, strict=True))[first : first + size] for first in range(0, len(configs), size)]
    before = sweep_seconds(folder)
    for number, group in enumerate(groups, start=1):
        # passes are of the same runs each time, so that those of one pass stand at one place of the stream
        left = [(config, run) for config, run in group if not is_finished(run)]
        if len(left) < len(group):
            console.print(f"{len(group) - len(left)} of {len(group)} dictionaries are finished", highlight=False)
        if not left:
            continue
        console.print(f"pass {number} of {len(groups)}: {len(left)} dictionaries", highlight=False)
        with _timed(folder):
            train_runs([config for config, _ in left], [run for _, run in left], console, resume=resume)
    spent = sweep_seconds(folder)
    earlier = f", {before:,.0f} s of them earlier" if before else ""
    console.print(f"training took {spent:,.0f} s{earlier}", highlight=False)
    return paths


def is_finished(folder: RunFolder) -> bool:
    """Whether a run has its dictionary, which is written last and as a whole."""
    return (folder.dictionary / "cfg.json").exists()


def sweep_seconds(folder: Path) -> float:
    """Seconds that the passes of a sweep have taken so far; 0 where there were none."""
    path = folder / SWEEP_FILE
    if not path.exists():
        return 0.0
    try:
        return float(json.loads(path.read_text())["training_seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to count the time anew") from error


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the time that passes inside to ``sweep.json``; now and then, so that a kill costs some seconds of it at most."""
    before, started, over = sweep_seconds(folder), time.perf_counter(), threading.Event()

    def write() -> None:
        target = folder / SWEEP_FILE
        beside = target.with_name(target.name + ".partial")
        beside.write_text(json.dumps({"training_seconds": round(before + time.perf_counter() - started, 1)}) + "\n")
        beside.replace(target)

    def keep_writing() -> None:
        while not over.wait(_SECONDS_BETWEEN_WRITES):
            write()

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()
        write()
