"""The threshold that BatchTopK ends with: on tokens that nobody has seen it lets k features per token through."""

from __future__ import annotations

import pytest
import torch

from saescope.activations.synthetic import (
    Bernoulli,
    FoldedNormal,
    SyntheticData,
    SyntheticStream,
    constant_probabilities,
    random_atoms,
    zipf_probabilities,
)
from saescope.dictionaries import architecture
from saescope.training import TrainingConfig, train


def _mean_l0(name: str, num_steps: int, k: float, batch: int, *, zipf: bool) -> float:
    atoms = random_atoms(64, 32, torch.Generator().manual_seed(0))
    probabilities = zipf_probabilities(64, 1.0, 3.2) if zipf else constant_probabilities(64, 0.05)
    data = SyntheticData(atoms, Bernoulli(probabilities), FoldedNormal(mean=1, sd=0.3), bias=2.0, noise=0.02)
    cls = architecture(name)
    dictionary = cls(cls.Config(d_in=32, d_sae=64, k=k), seed=1)
    config = TrainingConfig(num_tokens=num_steps * batch, batch_size_tokens=batch, lr=3e-3, num_warmup_steps=10)
    train(dictionary, SyntheticStream(data, batch, seed=0), config)
    x = data.held_out(50_000).x
    with torch.no_grad():
        return float((dictionary.encode(x) != 0).sum() / len(x))


@pytest.mark.parametrize("zipf", [False, True])
@pytest.mark.parametrize(("name", "k"), [("batch_topk", 3), ("batch_topk", 2.6), ("matryoshka", 4)])
def test_within_a_tenth_of_k_after_fifty_steps(name, k, zipf):
    assert _mean_l0(name, 50, k, 256, zipf=zipf) == pytest.approx(k, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_within_a_twentieth_of_k_after_five_thousand_steps(name):
    assert _mean_l0(name, 5000, 3, 256, zipf=False) == pytest.approx(3, rel=0.05)
