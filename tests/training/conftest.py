"""A small world for the training loop: tokens made of known atoms, in a stream that can be stopped, spoilt and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

D_IN, NUM_ATOMS, ACTIVE = 12, 16, 2


def planted_atoms() -> Tensor:
    return F.normalize(torch.randn(NUM_ATOMS, D_IN, generator=torch.Generator().manual_seed(77)), dim=-1)


class ToyStream(Iterator[Tensor]):
    """Batches of tokens that each mix two of sixteen unit atoms, far from the origin and from unit scale.

    Attributes:
        given: a copy of every batch handed out, and the batch itself.
    """

    def __init__(
        self, batch_size: int = 32, *, seed: int = 0, length: int | None = None, spoil: dict[int, Any] | None = None
    ) -> None:
        self.batch_size, self.seed, self.length, self.spoil = batch_size, seed, length, spoil or {}
        self.drawn = 0
        self.carry = torch.zeros(D_IN)  # a tensor that the next batch depends on, as a shuffle buffer's rest is
        self.given: list[tuple[Tensor, Tensor]] = []

    def __next__(self) -> Tensor:
        if self.drawn == self.length:
            raise StopIteration
        spoilt = self.spoil.get(self.drawn)
        if isinstance(spoilt, Exception):
            raise spoilt
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.drawn)
        features = torch.rand(self.batch_size, NUM_ATOMS, generator=generator).argsort(-1)[:, :ACTIVE]
        strengths = 0.5 + torch.rand(self.batch_size, ACTIVE, generator=generator)
        codes = torch.zeros(self.batch_size, NUM_ATOMS).scatter(-1, features, strengths)
        x = 7 * codes @ planted_atoms() + 3 + 1e-3 * self.carry
        self.carry = x.mean(0)
        if spoilt is not None:
            x[1, 2] = spoilt
        self.drawn += 1
        self.given.append((x.clone(), x))
        return x

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "carry": self.carry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self.carry = state["drawn"], state["carry"]


@pytest.fixture
def toy_stream() -> Callable[..., ToyStream]:
    return ToyStream


@pytest.fixture
def atoms() -> Tensor:
    return planted_atoms()
