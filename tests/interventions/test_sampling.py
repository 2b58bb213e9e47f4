"""Tokens are drawn with the probabilities that temperature, top_k and top_p say, and with noise that is theirs alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from saescope.interventions.sampling import Sampling, gumbel_noise

LOGITS = [1.5, -0.5, 0.25, 1.0, -2.0, 0.75]
NUM_DRAWS = 6000


def exact(logits, temperature=1.0, top_k=None, top_p=None):
    """The probabilities, written out."""
    order = sorted(range(len(logits)), key=lambda t: -logits[t])
    kept = order[: top_k or len(order)]
    weights = {t: math.exp(logits[t] / temperature) for t in kept}
    if top_p is not None:
        whole, so_far, nucleus = sum(weights.values()), 0.0, []
        for t in kept:
            nucleus.append(t)
            so_far += weights[t] / whole
            if so_far >= top_p:
                break
        weights = {t: weights[t] for t in nucleus}
    return np.array([weights.get(t, 0.0) for t in range(len(logits))]) / sum(weights.values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.7},
        {"top_k": 1},
        {"top_p": 0.01},
    ],
    ids=str,
)
def test_tokens_come_with_their_exact_probabilities(settings):
    sampling = Sampling(**settings, seed=7)
    drawn = sampling.choose(torch.tensor([LOGITS]).expand(NUM_DRAWS, -1), range(NUM_DRAWS), step=2)
    counts = np.bincount(drawn.numpy(), minlength=len(LOGITS))
    expected = NUM_DRAWS * exact(LOGITS, **settings)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], expected[possible]).pvalue > 1e-3
    else:
        assert counts[possible] == NUM_DRAWS


def test_steps_of_one_prompt_are_as_independent_as_prompts():
    sampling = Sampling(seed=3)
    drawn = [int(sampling.choose(torch.tensor([LOGITS]), [5], step)[0]) for step in range(2000)]
    assert chisquare(np.bincount(drawn, minlength=len(LOGITS)), 2000 * exact(LOGITS)).pvalue > 1e-3


def test_noise_is_gumbel_distributed_and_belongs_to_seed_prompt_and_step():
    noise = gumbel_noise(1, 2, 3, 5000)
    assert kstest(noise, lambda g: np.exp(-np.exp(-g))).pvalue > 1e-3
    assert (noise == gumbel_noise(1, 2, 3, 5000)).all()
    others = [gumbel_noise(*place, 5000) for place in [(1, 3, 2), (2, 1, 3), (0, 2, 3), (1, 2, 4), (1, 3, 3)]]
    assert all(abs(np.corrcoef(noise, other)[0, 1]) < 0.06 for other in others)


def test_a_prompt_has_its_noise_in_whatever_batch():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(seed=11)
    together = sampling.choose(logits, [0, 1, 2, 3], 5)
    assert together[[2]].equal(sampling.choose(logits[[2]], [2], 5))
    assert together[[3, 1]].equal(sampling.choose(logits[[3, 1]], [3, 1], 5))


def test_log_weights_are_those_of_hugging_face():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(20, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = TemperatureLogitsWarper(0.6)(None, logits)
    expected = TopKLogitsWarper(top_k=9)(None, expected)
    expected = TopPLogitsWarper(top_p=0.85)(None, expected)
    found = Sampling(temperature=0.6, top_k=9, top_p=0.85).log_weights(logits)
    assert torch.allclose(found.softmax(-1), expected.softmax(-1), atol=1e-12)
    assert ((found == -math.inf) == (expected == -math.inf)).all()


def test_greedy_takes_the_first_of_the_most_likely():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    for temperature in (0, 1e-300):
        sampling = Sampling(temperature=temperature, seed=5)
        found = sampling.choose(logits, [0, 1], 0)
        assert found[1] == 0
        assert temperature or found[0] == 1  # a temperature near 0 leaves ties to the noise
    assert Sampling(temperature=0, seed=1).choose(logits, [8, 9], 3).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_also_of_equal_ones():
    kept = Sampling(top_k=2).log_weights(torch.zeros(1, 5))
    assert kept.tolist() == [[0.0, 0.0, -math.inf, -math.inf, -math.inf]]
    assert torch.isfinite(Sampling(top_k=99).log_weights(torch.zeros(1, 5))).all()
    assert torch.isfinite(Sampling(top_p=1.0).log_weights(torch.tensor([LOGITS]))).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature is 0"),
        ({"temperature": math.nan}, "temperature is 0"),
        ({"temperature": math.inf}, "temperature is 0"),
        ({"top_k": 0}, "top_k is a number of tokens"),
        ({"top_k": 2.5}, "top_k is a number of tokens"),
        ({"top_p": 0.0}, "top_p is a share"),
        ({"top_p": 1.1}, "top_p is a share"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"seed": 0.5}, "a seed is a whole number"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**settings)
