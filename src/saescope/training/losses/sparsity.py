"""Penalties on the activations themselves: L1, and the Lp of p-annealing.

p-annealing (Karvonen et al. 2024, arXiv 2408.00113): the penalty sum_i f_i^p starts at p = 1, where training is easy,
and p falls in steps towards 0, where the penalty counts firings. At every change the coefficient is multiplied so that
the expected penalty stays what it was, judged by the last ten batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.training.losses.base import (
    Batch,
    Codes,
    LossConfig,
    Remembering,
    SumOfTerms,
    Term,
    Weight,
    merged,
    reconstruction_term,
)

_SHIFT = 1e-3  # f^p is taken as (f + shift)^p - shift^p: its slope at 0 stays finite, and at p = 1 it is f
_NUM_REMEMBERED = 10


Activations = Callable[[Dictionary, Codes], Tensor]


def feature_activations(dictionary: Dictionary, codes: Codes) -> Tensor:
    """What a penalty falls on, as a rule: the size of the features' activations, ``[B, d_sae]``."""
    return codes.f.abs()


class L1(Term):
    """mean over tokens of sum_i f_i |W_dec_i|, or of sum_i f_i."""

    def __init__(self, *, decoder_norm: bool = True, of: Activations = feature_activations) -> None:
        self.decoder_norm, self.of = decoder_norm, of

    @property
    def runs_sparse(self) -> bool:
        return self.of is feature_activations

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        if self.of is feature_activations:
            return codes.mean_of_sums(torch.abs, dictionary if self.decoder_norm else None)
        f = self.of(dictionary, codes)
        return (f @ dictionary.decoder_norms if self.decoder_norm else f.sum(-1)).mean()


@dataclass(frozen=True, kw_only=True)
class AnnealedConfig(LossConfig):
    """Settings of an L1 penalty that may become an Lp penalty."""

    l1_coefficient: float = 5.0  # of mean over tokens of sum f |W_dec row|, beside the squared error summed over width
    decoder_norm: bool = True  # weigh by the norms of decoder rows
    warmup_share: float = 0.05
    p_end: float | None = None  # p-annealing down to this p (0.2 in the paper); None: p stays 1
    anneal_start: float = 0.3  # shares of the training between which p falls
    anneal_end: float = 0.9
    num_p_updates: int = 20  # values of p, 1 and p_end included

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l1_coefficient >= 0:
            raise ValueError(f"l1_coefficient must not be negative, got {self.l1_coefficient}")
        if self.p_end is not None and not 0 < self.p_end <= 1:
            raise ValueError(f"p_end must lie in (0, 1], got {self.p_end} (at 0 every activation would cost the same)")
        if not 0 <= self.anneal_start <= self.anneal_end <= 1 or self.num_p_updates < 2:
            raise ValueError(
                "p falls between anneal_start and anneal_end, shares of the training in rising order, in at least 2 "
                f"values; got {self.anneal_start}, {self.anneal_end} and {self.num_p_updates}"
            )

    def penalty(self, of: Activations = feature_activations) -> dict[str, tuple[Term, Weight]]:
        """The penalty of this config on some activations, with its coefficient."""
        weight = self.scheduled(self.l1_coefficient)
        if self.p_end is None:
            return {"l1": (L1(decoder_norm=self.decoder_norm, of=of), weight)}
        term = AnnealedLp(
            p_end=self.p_end,
            start=self.anneal_start,
            end=self.anneal_end,
            num_updates=self.num_p_updates,
            decoder_norm=self.decoder_norm,
            of=of,
        )
        return {"lp": (term, weight)}


class AnnealedLp(Remembering):
    """mean over tokens of sum_i f_i^p, times the factor that p's changes have called for.

    Attributes:
        p: the exponent now. scale: the factor, 1 until p first changes.
    """

    def __init__(
        self,
        *,
        p_end: float,
        start: float,
        end: float,
        num_updates: int,
        decoder_norm: bool = True,
        of: Activations = feature_activations,
    ) -> None:
        self.of = of
        self.exponents = [1 + (p_end - 1) * i / (num_updates - 1) for i in range(num_updates)]
        self.start, self.end, self.decoder_norm = start, end, decoder_norm
        self.p, self.scale, self.done = 1.0, 1.0, 0  # done: updates made
        self.seen: deque[tuple[float, float]] = deque(maxlen=_NUM_REMEMBERED)  # penalty at p, and at the next p
        self._latest: tuple[Tensor, Tensor] | None = None

    def update_steps(self, num_steps: int) -> list[int]:
        """Steps after which p takes its values in turn; the last is early enough for a step at ``p_end``."""
        last = max(0, min(int(self.end * num_steps), num_steps - 2))
        first = min(int(self.start * num_steps), last)
        n = len(self.exponents)
        return [first + (last - first) * i // (n - 1) for i in range(n)]

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        f = self.of(dictionary, codes)
        if self.p == 1:  # exactly the L1 term
            value = L1(decoder_norm=self.decoder_norm, of=self.of)(dictionary, batch, codes)
        weighted = f * dictionary.decoder_norms if self.decoder_norm else f
        if self.p != 1:
            value = power_sum(weighted, self.p)
        with torch.no_grad():
            self._latest = value.detach(), power_sum(weighted.detach(), self._next_p(batch))
        return self.scale * value

    def _due(self, batch: Batch) -> int:
        """Updates that are to be made when this step is done."""
        return max(self.done, sum(step <= batch.step for step in self.update_steps(batch.num_steps)))

    def _next_p(self, batch: Batch) -> float:
        """The value that p takes next: after this step, or later."""
        due = self._due(batch)
        return self.exponents[due - 1 if due > self.done else min(self.done, len(self.exponents) - 1)]

    def after_step(self, batch: Batch) -> None:
        if self._latest is None:
            return
        self.seen.append((float(self._latest[0]), float(self._latest[1])))
        self._latest = None
        due = self._due(batch)
        if due > self.done:
            if due - self.done > 1:  # so short a run that p falls by several values: only this step looked that far
                self.seen = deque([self.seen[-1]], maxlen=_NUM_REMEMBERED)
            now, then = (sum(column) for column in zip(*self.seen, strict=True))
            if self.exponents[due - 1] != self.p and then > 0:  # the first update leaves p at 1
                self.scale *= now / then
            self.p = self.exponents[due - 1]
            self.done = due
            self.seen.clear()  # what comes next is compared at other exponents

    def state_dict(self) -> dict[str, Any]:
        return {"p": self.p, "scale": self.scale, "done": self.done, "seen": [list(pair) for pair in self.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.p, self.scale, self.done = state["p"], state["scale"], state["done"]
        self.seen = deque((_pair(row) for row in state["seen"]), maxlen=_NUM_REMEMBERED)


@dataclass(frozen=True, kw_only=True)
class L1Config(AnnealedConfig):
    """Settings of the loss of ReLU dictionaries."""


class L1Loss(SumOfTerms):
    """Squared error plus L1 penalty: mean_B |x - x_hat|^2 + lambda mean_B sum_i f_i |W_dec_i|; or its Lp form."""

    def __init__(self, config: L1Config) -> None:
        self.config = config
        error = {config.reconstruction: (reconstruction_term(config.reconstruction), 1.0)}
        super().__init__(merged(error, config.penalty(), config.extras()))


def _pair(row: Sequence[float]) -> tuple[float, float]:
    return row[0], row[1]


def power_sum(f: Tensor, p: float) -> Tensor:
    """mean over tokens of sum_i f_i^p for f >= 0, with the slope at 0 kept finite; exactly the L1 norm for p = 1."""
    if p == 1:
        return f.sum(-1).mean()
    return ((f + _SHIFT).pow(p) - _SHIFT**p).sum(-1).mean()
