"""Sparse steps against dense autograd: the same losses, gradients and weights, step after step."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from saescope.dictionaries import architecture
from saescope.metrics import explained_variance
from saescope.training import TrainingConfig, loss_for
from saescope.training.run import Run

D_IN, D_SAE, BATCH, STEPS = 12, 96, 64, 500
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4},
    "ordered": {"k": 4},
    "relu": {},
    "jumprelu": {"initial_threshold": 0.3, "bandwidth": 0.2},
}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in SETTINGS},
    "topk with mse": ("topk", {"reconstruction": "mse", "k_start": 9.0}),
    "batch_topk with more terms": ("batch_topk", {"extra_terms": {"ghost_gradients": 0.1, "reanimation": 0.01}}),
    "matryoshka with random prefixes": ("matryoshka", {"prefixes": "random", "num_prefixes": 4}),
    "ordered with sweeping": ("ordered", {"sweep_start": 0.3}),
    "relu with a penalty": ("relu", {"l1_coefficient": 2.0, "warmup_share": 0.1}),
    "jumprelu with a target": ("jumprelu", {"penalty": "quadratic", "target_l0": 5.0, "l0_coefficient": 3.0}),
    "jumprelu with tanh": ("jumprelu", {"penalty": "tanh"}),
}


@cache
def _batches(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Sparse sums of twice as many directions as dimensions, with a little noise."""
    generator = torch.Generator().manual_seed(7)
    atoms = torch.nn.functional.normalize(torch.randn(2 * D_IN, D_IN, generator=generator), dim=-1)
    found = []
    for _ in range(STEPS):
        strengths = torch.rand(BATCH, 2 * D_IN, generator=generator) + 0.5
        fires = torch.rand(BATCH, 2 * D_IN, generator=generator) < 0.12
        found.append((strengths * fires @ atoms + 0.05 * torch.randn(BATCH, D_IN, generator=generator) + 0.3).to(dtype))
    return tuple(found)


@cache
def _trained(name: str, dtype: torch.dtype, kernels: str) -> tuple[list[float], dict[str, torch.Tensor], float, int]:
    """Losses of all steps, final weights, explained variance of the last batch, and how many steps were sparse."""
    architecture_name, settings = LOSSES[name]
    cls = architecture(architecture_name)
    dictionary = cls(cls.Config(d_in=D_IN, d_sae=D_SAE, **SETTINGS[architecture_name]), seed=3).to(dtype)
    config = TrainingConfig(
        num_tokens=STEPS * BATCH, batch_size_tokens=BATCH, num_warmup_steps=50, dead_after_tokens=10 * BATCH,
        sparse_kernels=kernels, max_grad_norm=0.8, num_threshold_tokens=0,
    )  # fmt: skip
    run = Run(dictionary, config, loss=loss_for(dictionary, settings))
    losses, sparse_steps, take = [], 0, run.stepper._sparse

    def counted(*arguments: Any) -> Any:
        nonlocal sparse_steps
        found = take(*arguments)
        sparse_steps += found is not None
        return found

    run.stepper._sparse = counted  # type: ignore[method-assign]
    original = run.stepper.take

    def noted(batch: Any) -> Any:
        step = original(batch)
        losses.append(float(step.terms.total.detach()))
        return step

    run.stepper.take = noted  # type: ignore[method-assign]
    for x in _batches(dtype):
        run.take(x, {})
    run.close()
    weights = {key: tensor.detach().double() for key, tensor in dictionary.named_parameters()}
    last = _batches(dtype)[-1]
    return losses, weights, float(explained_variance(last, dictionary(last))), sparse_steps


def _relative(a: list[float], b: list[float]) -> list[float]:
    return [abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("name", LOSSES)
def test_in_float64_five_hundred_sparse_steps_equal_dense_ones(name, all_features_may_fire):
    losses, weights, _, sparse_steps = _trained(name, torch.float64, "always")
    reference, expected, _, _ = _trained(name, torch.float64, "never")
    assert sparse_steps == STEPS
    assert max(_relative(losses, reference)) < 1e-9
    for key, tensor in expected.items():
        assert torch.allclose(weights[key], tensor, rtol=0, atol=1e-9), key


@pytest.mark.parametrize("name", SETTINGS)
def test_in_float32_they_stay_at_the_float64_reference(name, all_features_may_fire):
    losses, _, variance, sparse_steps = _trained(name, torch.float32, "always")
    reference, _, expected, _ = _trained(name, torch.float64, "never")
    assert sparse_steps == STEPS
    apart = _relative(losses, reference)
    assert max(apart[:200]) < 1e-5
    assert max(apart) < 0.01
    assert abs(variance - expected) < 0.002


@pytest.fixture
def all_features_may_fire(monkeypatch):
    """No step is given to dense products because many features fire."""
    monkeypatch.setattr("saescope.dictionaries.sparse_encoding._MOST_FIRINGS", 1.0)
