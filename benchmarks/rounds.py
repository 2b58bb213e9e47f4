"""Libraries side by side: one process each, asked in turn, and the arithmetic of what they answer.

Two timings are compared by the quotients within each round, never by two medians alone: what slows a machine down for a
while slows both. The spread of a ratio is the lowest and the highest of those quotients.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True)
class Spread:
    """Median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def read(cls, fields: Mapping[str, Any], name: str) -> Spread:
        """The way back from :meth:`named`."""
        return cls(fields[name], fields[f"{name}_min"], fields[f"{name}_max"])

    def named(self, name: str) -> dict[str, float]:
        """As fields of a JSON object."""
        return {name: self.median, f"{name}_min": self.low, f"{name}_max": self.high}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Quotients within each round.

    Raises:
        ValueError: not as many numerators as denominators.
    """
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


class WorkerError(RuntimeError):
    """A worker that ended before it answered."""


class Worker:
    """A process of ``worker.py``, as a context manager."""

    def __init__(self, module: str, *, peers: bool, threads: int) -> None:
        self.module = module
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [str(PEERS_PYTHON) if peers else sys.executable, str(HERE / "worker.py"), module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment(threads),
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer will tell
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-4000:]
            raise WorkerError(f"{self.module} ended with status {self._process.returncode}:\n{said}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # ends the worker
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def environment(threads: int) -> dict[str, str]:
    """The same for every worker: so many threads, no network, and idle OpenMP threads asleep unless the user says not."""
    count = str(threads)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **kept,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), count),
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
        "WANDB_MODE": "disabled",
    }


def alternate(workers: Mapping[str, Worker], num_rounds: int, **request: Any) -> dict[str, list[dict[str, Any]]]:
    """Answers to one request by worker, round by round. Each round begins with another worker."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            answers[name].append(workers[name].ask(**request))
    return answers
