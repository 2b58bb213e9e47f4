"""BatchTopK: the batch's selection against brute force, and the threshold that takes its place at inference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

NAMES = ["batch_topk", "matryoshka", "batch_topk_transcoder", "batch_topk_archetypal", "batch_topk_crosscoder"]


@given(seed=st.integers(0, 10_000), k=st.floats(0.05, 6), num_tokens=st.integers(1, 9))
@profile(max_examples=40)
def test_the_selection_is_that_of_a_sort(make, seed, k, num_tokens):
    dictionary = make("batch_topk", d_sae=6, k=k)
    pre = torch.randn(num_tokens, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = sorted(pre.flatten().clamp(min=0).tolist(), reverse=True)[: max(1, int(k * num_tokens))]
    expected = [[v if v > 0 and v >= kept[-1] else 0.0 for v in row] for row in pre.tolist()]
    assert dictionary.activate_in_training(pre).tolist() == expected


def test_ties_do_not_let_more_through(make):
    f = make("batch_topk", d_sae=5, k=1.5).activate_in_training(torch.ones(4, 5))
    assert (f == 1).sum() == 6
    assert (f == 0).sum() == 14


@pytest.mark.parametrize("name", NAMES)
def test_without_a_threshold_nothing_is_encoded(make, tokens, name):
    dictionary = make(name)
    fresh = type(dictionary)(dictionary.config).double()
    for read in (fresh.encode, fresh.encode_sparse, fresh):
        with pytest.raises(ValueError, match=r"no threshold yet: train it, or measure one with fit_threshold"):
            read(tokens())
    fresh.activate_in_training(fresh.pre_activations(tokens()))  # training needs none


def _batches_of_activations(number: int) -> list[torch.Tensor]:
    """Sparse activations whose smallest drifts, so that a wrong mean shows."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for step in range(number):
        f = 1 + 0.01 * step + torch.rand(4, 6, generator=generator, dtype=torch.float64)
        f[torch.rand(4, 6, generator=generator) < 0.5] = 0
        if step in (0, 30):
            f.zero_()  # a batch on which nothing fires says nothing
        batches.append(f)
    return batches


def test_the_running_threshold_is_a_plain_mean_and_then_an_exponential_one(make):
    cls = type(make("batch_topk"))
    dictionary = cls(cls.Config(d_in=3, d_sae=6, k=2)).double()
    seen: list[float] = []
    expected = float("nan")
    for f in _batches_of_activations(260):
        before = f.clone()
        dictionary.after_step(f)
        assert f.equal(before)
        positive = [v for v in f.flatten().tolist() if v > 0]
        if positive:
            seen.append(min(positive))
            expected = float(np.mean(seen)) if len(seen) <= 100 else 0.99 * expected + 0.01 * seen[-1]
        assert float(dictionary.threshold) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert len(seen) == 258
    assert dictionary.threshold_steps == 258


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("k", "num_tokens"), [(2, 50), (0.37, 41), (1.5, 1), (3.999, 17), (0.05, 20)])
def test_the_fitted_threshold_lets_exactly_k_per_token_through(make, tokens, name, k, num_tokens):
    dictionary = make(name, k=k, seed=2)
    x = tokens(num_tokens, seed=5)
    values = dictionary.pre_activations(x).flatten().clamp(min=0).sort(descending=True).values
    wanted = int(k * num_tokens)
    assert (values > 0).sum() > wanted
    thresholds = []
    for size in (1, 7, num_tokens):
        dictionary.fit_threshold(x.split(size))
        thresholds.append(float(dictionary.threshold))
        assert (dictionary.encode(x) > 0).sum() == wanted
        assert values[wanted] <= thresholds[-1] < values[wanted - 1]
    assert thresholds == pytest.approx([thresholds[0]] * 3, rel=1e-12)


def test_a_share_of_a_feature_for_one_token(make, tokens):
    """int(0.5 * 1) = 0 may pass: the threshold is at or above the largest."""
    dictionary = make("batch_topk", k=0.5)
    dictionary.fit_threshold([tokens(1)])
    assert not dictionary.encode(tokens(1)).any()


def test_neighbouring_numbers_are_told_apart(make):
    """Between 1 and the float below it is no other: the midpoint of the two rounds to 1, which must still pass."""
    dictionary = make("batch_topk", d_in=1, d_sae=1, k=0.5, apply_b_dec_to_input=False, dtype=torch.float32)
    with torch.no_grad():
        dictionary.encoder_rows.fill_(1)
        dictionary.b_enc.zero_()
    x = torch.tensor([[1.0], [1 - 2**-24]])
    assert x[0] != x[1]
    dictionary.fit_threshold([x])
    assert dictionary.encode(x).flatten().tolist() == [1, 0]


def test_where_fewer_are_positive_than_may_pass_all_of_them_do(make, tokens):
    dictionary = make("batch_topk", k=9)
    x = tokens(30)
    dictionary.fit_threshold([x])
    assert float(dictionary.threshold) == 0
    assert dictionary.encode(x).equal(dictionary.pre_activations(x).relu())
    full = make("batch_topk", k=10)
    full.fit_threshold([x])
    assert full.encode(x).equal(full.pre_activations(x).relu())


def test_a_threshold_needs_tokens(make):
    for batches in ([], [torch.zeros(0, 6, dtype=torch.float64)]):
        with pytest.raises(ValueError, match="measured on activations, and there are none"):
            make("batch_topk").fit_threshold(batches)


def test_batches_may_be_an_iterator(make, tokens):
    dictionary, again = make("batch_topk"), make("batch_topk")
    dictionary.fit_threshold(iter(tokens(40).split(8)))
    again.fit_threshold(list(tokens(40).split(8)))
    assert dictionary.threshold.equal(again.threshold)


def test_training_goes_on_after_a_fit(make, tokens):
    dictionary = make("batch_topk")
    dictionary.fit_threshold([tokens(40)])
    before = float(dictionary.threshold)
    dictionary.after_step(torch.full((2, 10), 9.0, dtype=torch.float64))
    assert before < float(dictionary.threshold) < 9


@pytest.mark.parametrize("name", NAMES)
def test_inference_codes_do_not_depend_on_the_batch(make, tokens, name):
    dictionary = make(name)
    x = tokens(4096)
    dictionary.fit_threshold([x])
    whole = dictionary.encode(x)
    assert (whole > 0).sum() == 3 * 4096
    trained = copy.deepcopy(dictionary).train()
    for size in (1, 64):
        codes = torch.cat([trained.encode(part) for part in (x[:512] if size == 1 else x).split(size)])
        part = whole[: len(codes)]
        assert (codes > 0).equal(part > 0)
        torch.testing.assert_close(codes, part, rtol=1e-12, atol=1e-12)
