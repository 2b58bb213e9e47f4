"""What the tests of this room share: a small world of known atoms, random dictionaries, and checks of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture
from saescope.training import TrainingBatch
from saescope.training.losses import Batch

D_IN, NUM_ATOMS, ACTIVE, D_OUT = 12, 16, 2, 7
SIZES = {"d_in": 4, "d_sae": 9, "k": 2, "d_out": 3, "residual_threshold": 0.2, "bandwidth": 0.8}


def planted_atoms() -> Tensor:
    return F.normalize(torch.randn(NUM_ATOMS, D_IN, generator=torch.Generator().manual_seed(77)), dim=-1)


class ToyStream(Iterator[Any]):
    """Batches of tokens that each mix two of sixteen unit atoms, far from the origin and from unit scale.

    Attributes:
        given: a copy of every batch handed out, and the batch itself.
    """

    def __init__(
        self,
        batch_size: int = 32,
        *,
        seed: int = 0,
        length: int | None = None,
        spoil: dict[int, Any] | None = None,
        paired: bool = False,
    ) -> None:
        """``spoil``: what happens at a batch: an exception to raise, or a value to put into it. ``paired``: with a
        target of another width, as a transcoder needs it."""
        self.batch_size, self.seed, self.length, self.spoil = batch_size, seed, length, spoil or {}
        self.paired = paired
        self.drawn = 0
        self.carry = torch.zeros(D_IN)  # a tensor that the next batch depends on, as a shuffle buffer's rest is
        self.given: list[tuple[Tensor, Tensor]] = []

    def __next__(self) -> Any:
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
        return TrainingBatch(x, 3 * x[:, :D_OUT].relu() + x[:, -D_OUT:]) if self.paired else x

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


def _config(cls: type[Dictionary], wanted: dict[str, Any]) -> Any:
    names = {field.name for field in fields(cls.Config)}
    needed = {field.name for field in fields(cls.Config) if field.default is MISSING}
    assert needed <= set(wanted), f"{cls.__name__} needs {needed - set(wanted)}"
    return cls.Config(**{name: value for name, value in wanted.items() if name in names})


def new_dictionary(kind: str, *, seed: int = 0, **settings: Any) -> Dictionary:
    """A dictionary as it is before training, for tokens of a :class:`ToyStream`."""
    cls = architecture(kind)
    sizes = {"d_in": D_IN, "d_sae": 24, "k": 2, "d_out": D_OUT, "source_widths": (5, D_IN - 5), "widths": (4, 10, 24)}
    return cls(_config(cls, {**sizes, **settings}), seed=seed)


@pytest.fixture(scope="session")
def new() -> Callable[..., Dictionary]:
    """``new(name, seed=, k=, ...)`` gives an untrained dictionary."""
    return new_dictionary


def random_dictionary(kind: str, *, seed: int = 0, **settings: Any) -> Dictionary:
    """In float64, with everything random: biases and thresholds not 0, encoder unlike decoder, rows of unequal
    norms."""
    cls = architecture(kind)
    wanted = {**SIZES, **settings}
    d_in, d_sae = wanted["d_in"], wanted["d_sae"]
    wanted.setdefault("widths", tuple(sorted({max(1, d_sae // 3), max(1, d_sae // 2), d_sae})))
    wanted.setdefault("source_widths", (d_in // 2, d_in - d_in // 2))
    dictionary = cls(_config(cls, wanted)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())).items():
            if name == "threshold":
                tensor.copy_(0.1 + 0.6 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif name == "mixture":
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
                tensor /= tensor.sum(-1, keepdim=True)
            elif name == "threshold_steps":
                tensor.fill_(1)
            elif name != "residual_threshold":
                scale = 0.4 if name in ("b_enc", "b_gate", "b_mag", "r_mag", "log_scale", "relaxation") else 1.0
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        if cls.unit_norm is None:
            dictionary.W_dec.copy_(F.normalize(dictionary.W_dec, dim=-1))
    return dictionary


@pytest.fixture(scope="session")
def make() -> Callable[..., Dictionary]:
    """``make(name, seed=, d_in=, ...)`` gives a random dictionary in float64."""
    return random_dictionary


@pytest.fixture(scope="session")
def tokens() -> Callable[..., Tensor]:
    """``tokens(number, width, seed=)`` gives float64 activations that are far from any dictionary's centre."""

    def draw(number: int = 6, width: int = SIZES["d_in"], *, seed: int = 0, scale: float = 2.0) -> Tensor:
        generator = torch.Generator().manual_seed(500 + seed)
        return scale * torch.randn(number, width, generator=generator, dtype=torch.float64) + 1

    return draw


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    """``batch_of(dictionary, x, dead=(1, 5), step=, num_steps=)`` gives what a loss is computed on."""

    def batch(
        dictionary: Dictionary, x: Tensor, target: Tensor | None = None, *, dead: Iterable[int] = (), **more: Any
    ) -> Batch:
        marks = torch.zeros(dictionary.d_sae, dtype=torch.bool)
        marks[list(dead)] = True
        return Batch(x, x if target is None else target, marks, **more)

    return batch


def gradients_of(dictionary: Dictionary, total: Tensor) -> dict[str, Tensor]:
    leaves = dict(dictionary.named_parameters())
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


@pytest.fixture(scope="session")
def gradients() -> Callable[[Dictionary, Tensor], dict[str, Tensor]]:
    """Gradients of a scalar by parameter, zeros where there is none."""
    return gradients_of


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., None]:
    """``check_gradients(dictionary, found, expected)``: two scalars, or a scalar and gradients by name."""

    def check(dictionary: Dictionary, found: Tensor, expected: Tensor | dict[str, Tensor], rtol: float = 1e-9) -> None:
        wanted = expected if isinstance(expected, dict) else gradients_of(dictionary, expected)
        own = gradients_of(dictionary, found)
        assert set(own) == set(wanted)
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=rtol, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")

    return check
