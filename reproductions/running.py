"""Runs a study: what is missing is computed in a few processes, and every result is on disk before the next begins.

Results of a study are one JSON file, written anew (beside it, then renamed) after each run, by this process alone. A
result is kept under a hash of its run and of the code that decides its numbers; where both are unchanged it is not
computed again, whether the run before came to its end or was killed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from reproductions.study import Result, Run, Study, Values, as_json, from_json

ROOT = Path(__file__).parents[1]
# what every study's numbers depend on, beside its own file
SOURCES = (
    "reproductions/study.py",
    "reproductions/toy.py",
    "reproductions/sparse_data.py",
    "src/saescope/dictionaries",
    "src/saescope/training",
    "src/saescope/activations/synthetic",
    "src/saescope/metrics.py",
)
_DIGITS = 7


def code_hash(file: Path, sources: Sequence[Path] | None = None) -> str:
    """Hash of a study's file, down to its line that begins with ``BARS``, and of the code that it rests on.

    Args:
        sources: files, or folders of Python files.
    """
    digest = hashlib.sha256()
    upper, _, _ = ("\n" + file.read_text()).partition("\nBARS")
    digest.update(upper.encode())
    for source in sources or [ROOT / name for name in SOURCES]:
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(f"\0{path.relative_to(source)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def key(run: Run, code: str) -> str:
    """The hash that a result is kept under."""
    return hashlib.sha256(json.dumps([as_json(run), code], sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The results of one study on disk, by their keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        if path.exists():
            for name, entry in json.loads(path.read_text()).items():
                self.results[name] = Result(**{**entry, "run": from_json(entry["run"])})

    def add(self, result: Result) -> None:
        self.results[key(result.run, result.code)] = result
        self.write()

    def keep(self, keys: set[str]) -> None:
        """Forget all others."""
        self.results = {name: result for name, result in self.results.items() if name in keys}
        self.write()

    def write(self) -> None:
        """One line for each result."""
        lines = [json.dumps(name) + ": " + json.dumps(_plain(result)) for name, result in sorted(self.results.items())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".partial")
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        beside.replace(self.path)

    def of(self, study: Study, code: str) -> list[Result]:
        """The result of each of a study's runs: that of this code, or else of an earlier one."""
        found = []
        for run in study.runs:
            same = [result for result in self.results.values() if result.run == run]
            found += [self.results[key(run, code)]] if key(run, code) in self.results else same[:1]
        return found


def run_missing(study: Study, store: Store, code: str, *, jobs: int, say: Callable[[str], None] = print) -> None:
    """Compute the runs of a study that the store does not have, or that ended in an error.

    An error ends one run, not the others; so does the death of its process.
    """
    missing = []
    for run in study.runs:
        known = store.results.get(key(run, code))
        if known is None or known.error:
            missing.append(run)
    if len(missing) < len(study.runs):
        say(f"  {len(study.runs) - len(missing)} of {len(study.runs)} runs are unchanged")

    def keep(result: Result) -> None:
        store.add(result)
        num_known = sum(key(run, code) in store.results for run in study.runs)
        what = result.error or f"{result.seconds:.1f} s"
        say(f"  {num_known}/{len(study.runs)}  {_named(result.run)}  {what}")

    # a process that dies takes its pool along: which run it was shows when each goes alone
    for suspect in _run_in_pools(study.file, missing, jobs, code, keep):
        if _run_in_pools(study.file, [suspect], 1, code, keep):
            keep(Result(suspect, code=code, error="the process that computed it died"))
    store.keep({key(run, code) for run in study.runs})


def _run_in_pools(file: Path, runs: Sequence[Run], jobs: int, code: str, keep: Callable[[Result], None]) -> list[Run]:
    """Compute runs, and give back those that were under way when a process died; a new pool goes on with the rest."""
    waiting, suspects = list(runs), []
    while waiting:
        with _pool(min(jobs, len(waiting))) as pool:
            under_way: dict[Future[tuple[Values, float]], Run] = {}
            broken = False
            while (waiting and not broken) or under_way:
                while waiting and not broken and len(under_way) < jobs:
                    try:
                        future = pool.submit(_compute, str(file), waiting[0])
                    except BrokenProcessPool:  # a process died just now; what was under way will say so too
                        broken = True
                    else:
                        under_way[future] = waiting.pop(0)
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    run = under_way.pop(future)
                    try:
                        values, seconds = future.result()
                        keep(Result(run, values, seconds, code))
                    except BrokenProcessPool:
                        broken = True
                        suspects.append(run)
                    except Exception as error:
                        text = "".join(traceback.format_exception_only(error)).strip()
                        keep(Result(run, code=code, error=text))
    return suspects


def _pool(jobs: int) -> ProcessPoolExecutor:
    # one thread for each process, said before torch is loaded there
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A killed parent leaves no process behind."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compute(file: str, run: Run) -> tuple[Values, float]:
    """In a process of the pool: the run's numbers, rounded, and its CPU time."""
    module = _load_once(Path(file))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    started = time.process_time()
    values: dict[str, Any] = module.run(run)
    return {name: _rounded(value) for name, value in values.items()}, round(time.process_time() - started, 2)


def load(file: Path) -> ModuleType:
    """A study's module, from its file."""
    name = f"reproductions_study_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load_once = cache(load)


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else float(f"{float(value):.{_DIGITS}g}")


def _plain(result: Result) -> dict[str, Any]:
    return {**vars(result), "run": as_json(result.run)}


def _named(run: Run) -> str:
    setting = "" if run.setting is None else f" {run.setting:g}"
    seeds = f", seed {', '.join(map(str, run.seeds))}" if run.seeds else ""
    return f"{run.method}{setting}, data {run.data_seed}{seeds}"
