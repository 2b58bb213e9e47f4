"""What every library is asked for: some training steps on given activations, and what has become of the dictionary.

B  tokens in a batch, d  width, N  features.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from data import HELD_OUT, Activations
from hardware import versions
from torch import Tensor
from worker import peak_bytes

NUM_JUDGED = 4  # held-out batches that explained variance, L0 and dead share are of
STARTING_L0 = 90  # of architectures without a k, at the first step; their penalties bring it down


@dataclass(frozen=True)
class Case:
    """What to train."""

    architecture: str
    d: int
    d_sae: int
    k: int
    batch: int
    num_steps: int  # an upper bound, for schedules
    lr: float

    @property
    def widths(self) -> list[int]:
        """Prefixes of a Matryoshka dictionary."""
        return [self.d_sae // share for share in (16, 8, 4, 2, 1)]


class StepTask(ABC):
    """One library's trainer on one case."""

    packages: ClassVar[tuple[str, ...]]  # whose versions are named
    does: ClassVar[str]  # operations of its step
    leaves_out: ClassVar[str]  # operations that others have in theirs

    def __init__(self, threads: int, seed: int, **case: Any) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.case = Case(**case)
        self.data = Activations(self.case.d, seed=seed)
        self.num_done = 0
        first = self.batch(0)
        self.scale = self.case.d**0.5 / float(first.norm(dim=-1).mean())  # as trainers that normalise measure it
        self.build(first)

    @abstractmethod
    def build(self, first: Tensor) -> None:
        """Set dictionary and optimizer up; ``first`` is the first training batch, ``[B, d]``."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """One whole training step on raw activations ``[B, d]``."""

    @abstractmethod
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations ``[B, N]`` and reconstruction ``[B, d]`` of x, by the rule that training selects by."""

    def facts(self) -> dict[str, Any]:
        return {"versions": versions(self.packages), "does": self.does, "leaves_out": self.leaves_out}

    def batch(self, number: int) -> Tensor:
        return torch.from_numpy(self.data.batch(number, self.case.batch))

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of each of ``count`` steps; drawing the tokens is not timed."""
        seconds = []
        for _ in range(count):
            x = self.batch(self.num_done)
            started = time.perf_counter()
            self.step(x)
            seconds.append(time.perf_counter() - started)
            self.num_done += 1
        return {"seconds": seconds}

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes()}

    @torch.no_grad()
    def judge(self) -> dict[str, Any]:
        """Explained variance, L0 and the share of features that fire on no held-out token."""
        error = variance = firings = 0.0
        fired = torch.zeros(self.case.d_sae, dtype=torch.bool)
        for number in range(NUM_JUDGED):
            x = self.batch(HELD_OUT + number)
            f, x_hat = self.codes(x)
            error += float((x - x_hat).square().sum())
            variance += float((x - x.mean(0)).square().sum())
            firings += float(f.count_nonzero())
            fired |= (f != 0).any(0)
        return {
            "explained_variance": 1 - error / variance,
            "l0": firings / (NUM_JUDGED * self.case.batch),
            "dead_share": 1 - float(fired.float().mean()),
            "tokens": self.num_done * self.case.batch,
        }

    def threshold(self, rows: Tensor, x: Tensor) -> float:
        """The value above which ``STARTING_L0`` of the products of a token with encoder rows ``[N, d]`` lie, on average."""
        products = (x[:256] * self.scale @ rows.T).flatten()
        return float(products.kthvalue(products.numel() - STARTING_L0 * len(x[:256])).values)
