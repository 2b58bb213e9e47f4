"""A random dictionary of any architecture, and a stranger's architecture: what the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import saescope.dictionaries.base as base
from saescope.dictionaries import Dictionary, DictionaryConfig, architecture, architectures, register

SIZES = {"d_in": 6, "d_sae": 10, "k": 3, "d_out": 5, "residual_threshold": 0.25}


def random_dictionary(
    kind: str | type[Dictionary], *, seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any
) -> Dictionary:
    """Everything random: biases and thresholds not 0, encoder unlike decoder, rows of unequal norms where allowed."""
    cls = architecture(kind) if isinstance(kind, str) else kind
    wanted = {**SIZES, **settings}
    d_in, d_sae = wanted["d_in"], wanted["d_sae"]
    wanted.setdefault("widths", tuple(sorted({max(1, d_sae // 3), max(1, d_sae // 2), d_sae})))
    wanted.setdefault("source_widths", (d_in,) if d_in == 1 else (d_in // 2, d_in - d_in // 2))
    wanted["k"] = min(wanted["k"], d_sae)
    names = {field.name for field in fields(cls.Config)}
    needed = {field.name for field in fields(cls.Config) if field.default is MISSING}
    assert needed <= set(wanted), f"{cls.__name__} needs {needed - set(wanted)}"
    assert set(settings) <= names, f"{cls.__name__} has no {set(settings) - names}"
    dictionary = cls(cls.Config(**{name: value for name, value in wanted.items() if name in names})).double()

    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator, dtype=torch.float64)

    own = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
    with torch.no_grad():
        for name, tensor in own.items():
            if name == "threshold":  # one per feature (JumpReLU) or one for all (BatchTopK)
                tensor.copy_(0.1 + 0.6 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif name == "threshold_steps":
                tensor.fill_(1)
            elif name == "mixture":
                tensor.copy_(normal(tensor).exp())
                tensor /= tensor.sum(-1, keepdim=True)
            elif name in ("b_enc", "b_gate", "b_mag", "r_mag", "log_scale", "relaxation"):
                tensor.copy_(normal(tensor, 0.4))
            elif name != "residual_threshold":
                tensor.copy_(normal(tensor))
        if "W_dec" in own and cls.unit_norm is None:
            dictionary.W_dec.copy_(F.normalize(dictionary.W_dec, dim=-1))
        elif "W_dec" in own:
            dictionary.W_dec *= torch.linspace(0.3, 2, d_sae, dtype=torch.float64)[:, None]
    return dictionary.to(dtype)


@pytest.fixture(scope="session")
def make() -> Callable[..., Dictionary]:
    """``make(name, seed=, dtype=, d_in=, ...)`` gives a random dictionary."""
    return random_dictionary


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """``tokens(number, width, seed=)`` gives float64 activations that are far from any dictionary's centre."""

    def draw(number: int = 7, width: int = SIZES["d_in"], *, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        return scale * torch.randn(number, width, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base, "_ARCHITECTURES", architectures())


@dataclass(frozen=True, kw_only=True)
class ShiftedConfig(DictionaryConfig):
    shift: float = 0.25


class Shifted(Dictionary):
    """Fires above a fixed level, and so is not homogeneous."""

    Config = ShiftedConfig
    config: ShiftedConfig

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        return F.relu(pre - self.config.shift)


@pytest.fixture(scope="module")
def stranger() -> Iterator[type[Dictionary]]:
    """An architecture of a user's own: a config field, and nothing beside ``activate``; its compositions made from it."""
    kept = architectures()
    cls = register("shifted")(type("Shifted", (Shifted,), {"__module__": __name__}))
    yield cls
    base._ARCHITECTURES.clear()
    base._ARCHITECTURES.update(kept)
