"""Every number against loops over Python floats, and every stream of batches against the whole."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.metrics import (
    FiringMeter,
    Reconstruction,
    ReconstructionMeter,
    explained_variance,
    explained_variance_legacy,
    loss_recovered,
)


def _pair(num_tokens: int, d_in: int, seed: int = 0, mean: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, d_in, generator=generator) + mean
    return x, x + 0.3 * torch.randn(num_tokens, d_in, generator=generator)


def _square(row: list[float]) -> float:
    return math.fsum(value * value for value in row)


def _minus(a: list[float], b: list[float]) -> list[float]:
    return [p - q for p, q in zip(a, b, strict=True)]


def _mean_row(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _by_loops(x: torch.Tensor, x_hat: torch.Tensor) -> dict[str, float]:
    rows, answers = x.tolist(), x_hat.tolist()
    n, mean = len(rows), _mean_row(rows)
    errors = [_square(_minus(row, answer)) for row, answer in zip(rows, answers, strict=True)]
    spreads = [_square(_minus(row, mean)) for row in rows]
    norms, answer_norms = ([math.sqrt(_square(row)) for row in matrix] for matrix in (rows, answers))
    dots = [
        math.fsum(p * q for p, q in zip(row, answer, strict=True)) for row, answer in zip(rows, answers, strict=True)
    ]
    return {
        "num_tokens": n,
        "explained_variance": 1 - (math.fsum(errors) / n) / (math.fsum(spreads) / n),
        "explained_variance_legacy": math.fsum(1 - e / s for e, s in zip(errors, spreads, strict=True)) / n,
        "cosine": math.fsum(d / (a * b) for d, a, b in zip(dots, norms, answer_norms, strict=True)) / n,
        "mse": math.fsum(errors) / n,
        "l2_ratio": math.fsum(b / a for a, b in zip(norms, answer_norms, strict=True)) / n,
    }


def _measured(*batches: tuple[torch.Tensor, torch.Tensor]) -> Reconstruction:
    meter = ReconstructionMeter()
    for x, x_hat in batches:
        meter.update(x, x_hat)
    return meter.result()


def test_every_number_of_a_reconstruction_equals_its_loops():
    x, x_hat = _pair(9, 4)
    assert vars(_measured((x, x_hat))) == pytest.approx(_by_loops(x, x_hat), rel=1e-12)
    assert explained_variance(x, x_hat) == pytest.approx(_by_loops(x, x_hat)["explained_variance"], rel=1e-12)
    legacy = _by_loops(x, x_hat)["explained_variance_legacy"]
    assert explained_variance_legacy(x, x_hat) == pytest.approx(legacy, rel=1e-12)


@given(cuts=st.lists(st.integers(0, 23), max_size=6), seed=st.integers(0, 1000), mean=st.sampled_from([0.0, 1.0, 1e4]))
@settings(deadline=None, max_examples=40)
def test_a_stream_of_batches_gives_what_the_whole_gives(cuts, seed, mean):
    x, x_hat = _pair(23, 3, seed, mean)
    edges = [0, *sorted(cuts), 23]  # equal cuts make empty batches
    batches = [(x[a:b], x_hat[a:b]) for a, b in pairwise(edges)]
    expected, found = _by_loops(x, x_hat), vars(_measured(*batches))
    # the legacy figure is defined per batch: a weighted mean of the batches' own figures
    sizes_and_figures = [(len(a), explained_variance_legacy(a, b)) for a, b in batches if len(a) > 1]
    tokens = sum(size for size, _ in sizes_and_figures)
    expected["explained_variance_legacy"] = sum(size * figure for size, figure in sizes_and_figures) / tokens
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_large_mean_in_float32_costs_no_digits():
    x, x_hat = _pair(500, 6, mean=1e4)
    expected = _by_loops(x, x_hat)["explained_variance"]
    assert expected == pytest.approx(0.91, abs=0.02)
    assert explained_variance(x, x_hat) == pytest.approx(expected, abs=1e-12)
    parts = [(x[i : i + 50], x_hat[i : i + 50]) for i in range(0, 500, 50)]
    assert _measured(*parts).explained_variance == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_kept_in_float64_for_every_dtype(dtype):
    x, x_hat = (tensor.to(dtype) for tensor in _pair(64, 5))
    assert vars(_measured((x, x_hat))) == pytest.approx(_by_loops(x, x_hat), rel=1e-12)


def test_the_ends_of_the_scale():
    x, _ = _pair(30, 4)
    perfect = _measured((x, x))
    assert perfect.explained_variance == perfect.explained_variance_legacy == 1
    assert (perfect.mse, perfect.l2_ratio) == (0, 1)
    assert perfect.cosine == pytest.approx(1, abs=1e-12)
    x = x.double()
    mean = x.mean(0).expand_as(x)
    assert explained_variance(x, mean) == pytest.approx(0, abs=1e-12)
    assert explained_variance_legacy(x, mean) == pytest.approx(0, abs=1e-12)
    # one number for all dimensions is no better than the mean of each (a scalar mean would flatter it)
    columns = torch.tensor([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    assert explained_variance(columns, columns.mean(0).expand_as(columns)) == pytest.approx(0, abs=1e-12)
    assert explained_variance(x, -x) < 0


def test_the_meter_knows_the_mean_activation():
    x, x_hat = _pair(41, 3, mean=1e4)
    meter = ReconstructionMeter()
    for a in range(0, 41, 10):
        meter.update(x[a : a + 10], x_hat[a : a + 10])
    assert meter.num_tokens == 41
    assert meter.mean.dtype == torch.float64
    assert meter.mean.tolist() == pytest.approx(_mean_row(x.tolist()), rel=1e-14)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4 / 3])
def test_activations_that_never_change_have_no_variance_to_explain(value):
    x = torch.full((7, 3), value, dtype=torch.float64)
    found = _measured((x[:3], x[:3] + 1), (x[3:], x[3:] + 1))
    assert math.isnan(found.explained_variance)
    assert math.isnan(found.explained_variance_legacy)
    assert found.mse == pytest.approx(3)


def test_a_batch_of_one_token_does_not_spoil_the_legacy_figure():
    x, x_hat = _pair(9, 4)
    with_single = _measured((x[:8], x_hat[:8]), (x[8:], x_hat[8:]))
    assert with_single.explained_variance_legacy == pytest.approx(
        explained_variance_legacy(x[:8], x_hat[:8]), rel=1e-12
    )
    assert with_single.num_tokens == 9


def test_tokens_that_are_zero():
    x, x_hat = _pair(5, 3)
    x[2] = 0
    found, rest = _measured((x, x_hat)), [0, 1, 3, 4]
    others = _by_loops(x[rest], x_hat[rest])
    assert found.l2_ratio == pytest.approx(others["l2_ratio"], rel=1e-12)  # x_hat / 0 is left out
    assert found.cosine == pytest.approx(others["cosine"] * 4 / 5, rel=1e-12)  # and counts as cosine 0
    silent = _measured((x, torch.zeros_like(x)))
    assert silent.cosine == 0
    assert silent.l2_ratio == 0


def test_nan_stays_visible():
    x, x_hat = _pair(6, 3)
    x[1, 1] = float("nan")
    numbers = vars(_measured((x, x_hat)))
    assert all(math.isnan(value) for name, value in numbers.items() if name != "num_tokens")


def test_measuring_changes_nothing_and_keeps_no_graph():
    x, x_hat = _pair(6, 3)
    before = x.clone(), x_hat.clone()
    x_hat.requires_grad_()
    meter = ReconstructionMeter()
    meter.update(x, x_hat)
    assert not meter.mean.requires_grad
    assert x.equal(before[0])
    assert x_hat.equal(before[1])


def test_wrong_shapes_are_refused_with_both_shapes():
    for x, x_hat in [((4, 3), (4, 2)), ((4, 3), (3,)), ((3,), (3,)), ((2, 4, 3), (2, 4, 3))]:
        for measure in (explained_variance, explained_variance_legacy):
            with pytest.raises(ValueError, match=r"one shape, got") as error:
                measure(torch.zeros(x), torch.zeros(x_hat))
            assert str(list(x)) in str(error.value)
            assert str(list(x_hat)) in str(error.value)


def test_empty_meters_say_so():
    empty = ReconstructionMeter()
    empty.update(torch.zeros(0, 3), torch.zeros(0, 3))
    for ask in (empty.result, lambda: empty.mean, FiringMeter(3).result):
        with pytest.raises(ValueError, match="no tokens were measured"):
            ask()
    assert FiringMeter(3).density.tolist() == [0, 0, 0]


@given(
    clean=st.floats(0, 5),
    damage=st.floats(0.01, 5),
    share=st.floats(-1, 1),
)
def test_loss_recovered_is_the_share_of_the_damage_undone(clean, damage, share):
    ablated = clean + damage
    spliced = ablated - share * damage
    assert loss_recovered(clean, spliced, ablated) == pytest.approx(share, abs=1e-9)


def test_loss_recovered_at_its_ends():
    assert loss_recovered(2.0, 2.0, 5.0) == 1
    assert loss_recovered(2.0, 5.0, 5.0) == 0
    assert loss_recovered(2.0, 6.0, 4.0) == -1
    assert loss_recovered(0.0, 0.5, 2.0) == 0.75  # KL: the clean value is 0


@pytest.mark.parametrize("ablated", [2.0, 1.9, float("nan")])
def test_loss_recovered_needs_an_ablation_that_does_harm(ablated):
    with pytest.raises(ValueError, match=r"undefined: the ablation does not raise the loss \(2.0000 clean"):
        loss_recovered(2.0, 2.5, ablated)


def test_firings_are_counted_as_loops_count_them():
    generator = torch.Generator().manual_seed(3)
    num_tokens, d_sae = 40, 12
    rates = torch.linspace(0, 1, d_sae) ** 2
    f = torch.rand(num_tokens, d_sae, generator=generator) * (
        torch.rand(num_tokens, d_sae, generator=generator) < rates
    )
    meter = FiringMeter(d_sae)
    for batch in f.split(7):
        token_feature = (batch > 0).nonzero()
        meter.update(token_feature[:, 1], len(batch))

    counts = [sum(1 for token in f.tolist() if token[i] > 0) for i in range(d_sae)]
    found = meter.result()
    assert meter.counts.tolist() == counts
    assert meter.density.tolist() == [count / num_tokens for count in counts]
    assert found.num_tokens == num_tokens
    assert found.l0 == sum(counts) / num_tokens
    assert found.dead_share == sum(1 for count in counts if count == 0) / d_sae > 0
    assert found.dense_share == sum(1 for count in counts if count / num_tokens > 0.1) / d_sae
    assert 0 < found.dense_share < 1


def test_a_feature_on_exactly_a_tenth_of_the_tokens_is_not_dense():
    meter = FiringMeter(3)
    meter.update(torch.tensor([[0, 1], [1, 1]]), 10)  # any shape
    assert meter.density.tolist() == [0.1, 0.3, 0]
    assert meter.result().dense_share == pytest.approx(1 / 3)


def test_tokens_without_firings_count_too():
    meter = FiringMeter(2)
    meter.update(torch.zeros(0, dtype=torch.int64), 5)
    meter.update(torch.tensor([1]), 5)
    assert vars(meter.result()) == {"num_tokens": 10, "l0": 0.1, "dead_share": 0.5, "dense_share": 0.0}
