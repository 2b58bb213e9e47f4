"""Matryoshka and Ordered losses against loops over every prefix."""

from __future__ import annotations

import math
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.training.losses import MatryoshkaLoss, MatryoshkaLossConfig, OrderedConfig, OrderedLoss, nested
from saescope.training.losses.nested import expected_prefix_error, random_prefixes


def _zero():
    return torch.zeros((), dtype=torch.float64)


def _prefix_error(dictionary, x, f, length, target=None):
    """Squared error, mean over tokens, of the reconstruction from features below ``length``."""
    error = _zero()
    for b, token in enumerate(x if target is None else target):
        x_hat = dictionary.b_dec
        if getattr(dictionary, "has_skip", False):
            x_hat = x_hat + x[b] @ dictionary.W_skip.T
        for i in range(length):
            x_hat = x_hat + f[b, i] * dictionary.W_dec[i]
        error = error + ((token - x_hat) ** 2).sum() / len(x)
    return error


def _variance(target):
    return sum(((t - target.mean(0)) ** 2).sum() for t in target) / len(target)


def _codes(dictionary, x, k):
    """Codes of one BatchTopK (k per token on average) or TopK over the whole dictionary, with their graph."""
    b = 0 if "transcoder" in dictionary.architecture else dictionary.b_dec
    pre = [[((t - b) * dictionary.encoder_rows[i]).sum() + dictionary.b_enc[i] for i in range(9)] for t in x]
    f = [[_zero() for _ in range(9)] for _ in x]
    if "ordered" in dictionary.architecture or dictionary.architecture == "topk":
        chosen = [(b, i) for b, row in enumerate(pre) for i in sorted(range(9), key=lambda i: -row[i].item())[:k]]
    else:
        places = [(b, i) for b in range(len(x)) for i in range(9)]
        chosen = sorted(places, key=lambda p: -pre[p[0]][p[1]].item())[: int(k * len(x))]
    for b, i in chosen:
        if pre[b][i] > 0:
            f[b][i] = pre[b][i]
    return torch.stack([torch.stack(row) for row in f])


# Matryoshka


@given(
    seed=st.integers(0, 10_000), prefixes=st.sampled_from(["fixed", "random"]), num=st.integers(1, 12),
    step=st.integers(0, 50), reconstruction=st.sampled_from(["mse", "nmse"]),
)  # fmt: skip
@settings(max_examples=12)
def test_matryoshka_equals_the_plain_loss_with_its_gradients(
    make, tokens, batch_of, check_gradients, seed, prefixes, num, step, reconstruction
):
    dictionary, x = make("matryoshka", seed=seed, widths=(2, 3, 6, 9)), tokens(seed=seed)
    config = MatryoshkaLossConfig(
        prefixes=prefixes, num_prefixes=num, aux_coefficient=0.0, reconstruction=reconstruction, prefix_seed=seed
    )
    found = MatryoshkaLoss(config)(dictionary, batch_of(dictionary, x, step=step, num_steps=51))
    widths = random_prefixes(9, num, seed=seed, step=step) if prefixes == "random" else [2, 3, 6, 9]
    f = _codes(dictionary, x, 2)
    total = sum(_prefix_error(dictionary, x, f, width) for width in widths) / len(widths)
    if reconstruction == "nmse":
        total = total / _variance(x)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)
    assert float(found.parts["mse"]) == pytest.approx(float(_prefix_error(dictionary, x, f, 9).detach()), rel=1e-12)


@pytest.mark.parametrize("name", ["matryoshka_skip_transcoder", "matryoshka_transcoder"])
def test_prefixes_of_a_transcoder_rebuild_its_target(make, tokens, batch_of, check_gradients, name):
    dictionary, x, target = make(name, widths=(4, 9)), tokens(), tokens(6, 3, seed=2)
    loss = MatryoshkaLoss(MatryoshkaLossConfig(aux_coefficient=0.0, reconstruction="mse"))
    found = loss(dictionary, batch_of(dictionary, x, target))
    f = _codes(dictionary, x, 2)
    total = (_prefix_error(dictionary, x, f, 4, target) + _prefix_error(dictionary, x, f, 9, target)) / 2
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


def test_a_dictionary_without_prefixes_of_its_own_takes_those_of_the_loss(make, tokens, batch_of):
    dictionary, x = make("topk"), tokens()
    loss = MatryoshkaLoss(MatryoshkaLossConfig(widths=(5, 2), aux_coefficient=0.0, reconstruction="mse"))
    found = loss(dictionary, batch_of(dictionary, x))
    f = _codes(dictionary, x, 2)
    total = sum(_prefix_error(dictionary, x, f, width) for width in (2, 5, 9)) / 3
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="a topk dictionary has no prefixes; name them in the loss as widths"):
        MatryoshkaLoss(MatryoshkaLossConfig())(dictionary, batch_of(dictionary, x))
    for widths in ((0, 3), (3, 10)):
        with pytest.raises(ValueError, match="widths must lie between 1 and d_sae = 9"):
            MatryoshkaLoss(MatryoshkaLossConfig(widths=widths))(dictionary, batch_of(dictionary, x))


def test_one_prefix_is_batch_topk(make, tokens, batch_of):
    """A Matryoshka dictionary whose only prefix is the whole is allowed; its loss is that of BatchTopK."""
    dictionary, x = make("matryoshka", widths=(9,)), tokens()
    found = MatryoshkaLoss(MatryoshkaLossConfig(aux_coefficient=0.0))(dictionary, batch_of(dictionary, x))
    expected = _prefix_error(dictionary, x, _codes(dictionary, x, 2), 9) / _variance(x)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)


@given(d_sae=st.integers(1, 40), num=st.integers(1, 45), seed=st.integers(0, 100), step=st.integers(0, 1000))
def test_random_prefixes_rise_to_the_whole_and_are_distinct(d_sae, num, seed, step):
    lengths = random_prefixes(d_sae, num, seed=seed, step=step)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == d_sae
    assert len(lengths) == min(num, d_sae)
    assert lengths[0] >= 1
    assert lengths == random_prefixes(d_sae, num, seed=seed, step=step)  # the step decides, not what came before


def test_random_prefixes_follow_their_law_and_differ_from_step_to_step():
    drawn = Counter(random_prefixes(12, 2, seed=0, step=step)[0] for step in range(6000))
    for length in range(1, 12):
        p = (math.sqrt(length) - math.sqrt(length - 1)) / math.sqrt(11)
        assert drawn[length] / 6000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 6000))
    assert random_prefixes(500, 10, seed=0, step=0) != random_prefixes(500, 10, seed=1, step=0)


# Ordered


def _loop_over_prefixes(residual, f, rows, probabilities):
    """sum over all K prefixes of p(l) |r_0 - sum_{i <= l} f_i d_i|^2, mean over tokens."""
    total = _zero()
    for length in range(1, len(rows) + 1):
        for b in range(len(residual)):
            rest = residual[b]
            for i in range(length):
                rest = rest - f[b, i] * rows[i]
            total = total + probabilities[length - 1] * (rest**2).sum() / len(residual)
    return total


@given(
    seed=st.integers(0, 10_000), firing=st.sampled_from(["none", "one", "few", "all", "mixed"]),
    exponent=st.sampled_from([0.0, 0.5, 1.2, 4.0]), signed=st.booleans(), max_rows=st.sampled_from([1, 3, 7, 1 << 16]),
)  # fmt: skip
@settings(max_examples=40)
def test_the_cheap_form_is_the_loop_over_all_prefixes(seed, firing, exponent, signed, max_rows):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    B, K, d = 5, 7, 3
    counts = {"none": [0] * B, "one": [1] * B, "few": [2] * B, "all": [K] * B, "mixed": [0, 1, 3, K, 2]}[firing]
    f = torch.zeros(B, K, dtype=torch.float64)
    for b, count in enumerate(counts):
        chosen = torch.randperm(K, generator=generator)[:count]
        f[b, chosen] = normal(count) if signed else normal(count).abs() + 0.01
    weights = torch.arange(1, K + 1, dtype=torch.float64) ** -exponent
    leaves = [t.requires_grad_() for t in (normal(B, d), f, normal(K, d))]
    with mock.patch.object(nested, "_MAX_ROWS", max_rows):  # in chunks, computed again on the way back
        found = expected_prefix_error(*leaves, weights / weights.sum())
    expected = _loop_over_prefixes(*leaves, weights / weights.sum())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    fired = f.detach() != 0
    for name, a, b in zip(
        ("residual", "f", "rows"),
        torch.autograd.grad(found, leaves, allow_unused=True),
        torch.autograd.grad(expected, leaves),
        strict=True,
    ):
        a = torch.zeros_like(b) if a is None else a
        if name == "f":  # where nothing fires the activation is a constant 0: no gradient is asked for
            b = torch.where(fired, b, 0)
            a = torch.where(fired, a, 0)
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_features_that_do_not_fire_get_no_gradient_of_their_own():
    """The slots of tokens with fewer firings hold the number 0 of a feature; nothing may leak into feature 0."""
    f = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    rows = torch.eye(3, dtype=torch.float64, requires_grad=True)
    value = expected_prefix_error(torch.ones(2, 3, dtype=torch.float64), f, rows, torch.full((3,), 1 / 3).double())
    value.backward()
    assert f.grad[0].tolist()[::2] == [0, 0]
    assert f.grad[1].abs().min() >= 0
    alone = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    expected_prefix_error(torch.ones(1, 3).double(), alone, rows.detach(), torch.full((3,), 1 / 3).double()).backward()
    torch.testing.assert_close(f.grad[0], alone.grad[0] / 2)


@given(
    seed=st.integers(0, 10_000), k=st.sampled_from([1, 2, 9]), reconstruction=st.sampled_from(["mse", "nmse"]),
    max_rows=st.sampled_from([2, 1 << 16]),
)  # fmt: skip
@settings(max_examples=10)
def test_the_ordered_loss_equals_the_plain_one_with_its_gradients(
    make, tokens, batch_of, check_gradients, seed, k, reconstruction, max_rows
):
    dictionary, x = make("ordered", seed=seed, k=k), tokens(4, seed=seed)
    config = OrderedConfig(aux_coefficient=0.0, reconstruction=reconstruction, exponent=0.8)
    with mock.patch.object(nested, "_MAX_ROWS", max_rows):
        found = OrderedLoss(config)(dictionary, batch_of(dictionary, x, step=9, num_steps=10))
    weights = [length**-0.8 for length in range(1, 10)]
    f = _codes(dictionary, x, k)
    total = sum(w / sum(weights) * _prefix_error(dictionary, x, f, n + 1) for n, w in enumerate(weights))
    if reconstruction == "nmse":
        total = total / _variance(x)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


def test_the_ordered_loss_of_a_skip_transcoder(make, tokens, batch_of, check_gradients):
    dictionary, x, target = make("ordered_skip_transcoder"), tokens(4), tokens(4, 3, seed=8)
    loss = OrderedLoss(OrderedConfig(aux_coefficient=0.0, reconstruction="mse"))
    found = loss(dictionary, batch_of(dictionary, x, target, step=9, num_steps=10))
    weights = [length**-1.2 for length in range(1, 10)]
    f = _codes(dictionary, x, 2)
    total = sum(w / sum(weights) * _prefix_error(dictionary, x, f, n + 1, target) for n, w in enumerate(weights))
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    check_gradients(dictionary, found.total, total)


def test_units_freeze_in_order_between_start_and_end():
    loss = OrderedLoss(OrderedConfig(sweep_start=0.25, sweep_end=0.75))
    shares = [loss.frozen_share(progress) for progress in (0, 0.2, 0.25, 0.5, 0.7, 0.75, 0.99)]
    assert shares[:3] == [0, 0, 0]
    assert shares[3:5] == pytest.approx([0.5, 0.9])
    assert OrderedLoss(OrderedConfig()).frozen_share(0.9) == 0
