"""Where a new dictionary begins: medians and grids by brute force, rows and points one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from saescope.training import TrainingConfig
from saescope.training.initialization import geometric_median, initialize, search_norm


def _config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(num_tokens=64, batch_size_tokens=64, **settings)


def _skewed(number: int = 300, width: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, width, generator=generator).exp() + 2
    x[: number // 10] += 40  # a tenth far away pulls the mean, not the median
    return x


def _state(dictionary) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in dictionary.state_dict().items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_geometric_median_is_where_the_sum_of_distances_is_least(seed):
    x = _skewed(80, 3, seed).double()
    found = geometric_median(x)
    points = x.numpy()

    def distances(point: np.ndarray) -> float:
        return float(np.sqrt(((points - point) ** 2).sum(1)).sum())

    best = minimize(distances, points.mean(0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    assert distances(found.numpy()) <= best.fun * (1 + 1e-9)
    assert found.numpy() == pytest.approx(best.x, abs=1e-3)
    assert (found - x.mean(0)).norm() > 3  # and not the mean


def test_the_geometric_median_in_one_dimension_is_the_median():
    x = torch.tensor([[0.0], [1.0], [2.0], [50.0], [1000.0]])
    assert float(geometric_median(x)) == pytest.approx(2.0, abs=1e-3)


def test_the_geometric_median_of_equal_points_is_that_point():
    x = torch.full((7, 3), 2.5)
    torch.testing.assert_close(geometric_median(x), torch.full((3,), 2.5, dtype=torch.float64))


def test_half_of_all_points_in_one_place_hold_the_median_there():
    x = torch.cat([torch.zeros(60, 2), torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + 5])
    assert geometric_median(x).norm() < 1e-3


def test_the_first_bias_is_what_was_asked_for(new):
    x = _skewed()
    for name, expected in (
        ("mean", x.double().mean(0).float()),
        ("geometric_median", geometric_median(x).float()),
        ("zero", torch.zeros(12)),
    ):
        dictionary = new("topk")
        before = _state(dictionary)
        initialize(dictionary, x, x, _config(b_dec_init=name), unit_norm=True)
        torch.testing.assert_close(dictionary.b_dec.detach(), expected)
        assert all(before[key].equal(value) for key, value in dictionary.state_dict().items() if key != "b_dec")


def test_the_first_bias_of_a_transcoder_is_that_of_its_target(new):
    x, y = _skewed(), _skewed(300, 7, seed=3)
    dictionary = new("transcoder")
    initialize(dictionary, x, y, _config(), unit_norm=True)
    torch.testing.assert_close(dictionary.b_dec.detach(), y.double().mean(0).float())


@pytest.mark.parametrize("b_dec_init", ["mean", "zero"])
def test_rows_from_data_are_directions_of_distinct_data_points(new, b_dec_init):
    x = _skewed()
    dictionary = new("relu")
    initialize(dictionary, x, x, _config(decoder_init="data", b_dec_init=b_dec_init), unit_norm=True)
    centred = x - (x.double().mean(0).float() if b_dec_init == "mean" else 0)
    directions = centred / centred.norm(dim=-1, keepdim=True)
    gaps = torch.cdist(dictionary.W_dec.detach().double(), directions.double())
    assert gaps.min(1).values.max() < 1e-5
    assert len(set(gaps.argmin(1).tolist())) == 24
    assert dictionary.encoder_rows.equal(dictionary.W_dec)
    others = [new("relu") for _ in range(2)]
    for other, seed in zip(others, (0, 1), strict=True):
        settings = {"decoder_init": "data", "b_dec_init": b_dec_init, "init_seed": seed}
        initialize(other, x, x, _config(**settings), unit_norm=True)
    assert others[0].W_dec.equal(dictionary.W_dec)
    assert not others[1].W_dec.equal(dictionary.W_dec)


def test_the_encoder_of_a_transcoder_stays_in_its_own_space(new):
    x, y = _skewed(), _skewed(300, 7, seed=3)
    dictionary = new("topk_transcoder")
    encoder = dictionary.encoder_rows.detach().clone()
    initialize(dictionary, x, y, _config(decoder_init="data"), unit_norm=True)
    assert dictionary.encoder_rows.equal(encoder)
    centred = y - y.double().mean(0).float()
    assert (
        torch.cdist(dictionary.W_dec.detach().double(), (centred / centred.norm(dim=-1, keepdim=True)).double())
        .min(1)
        .values.max()
        < 1e-5
    )


@pytest.mark.parametrize(("name", "d_out"), [("topk_transcoder", 12), ("topk_skip_transcoder", 12)])
def test_nor_does_it_move_where_both_spaces_have_the_same_width(new, name, d_out):
    """Directions of the target say nothing about the input, equal widths or not."""
    x, y = _skewed(), _skewed(300, 12, seed=3)
    dictionary = new(name, d_out=d_out)
    encoder = dictionary.encoder_rows.detach().clone()
    initialize(dictionary, x, y, _config(decoder_init="data"), unit_norm=True)
    assert dictionary.encoder_rows.equal(encoder)


@pytest.mark.parametrize("name", ["relu", "topk_archetypal"])
def test_too_few_activations_are_refused_and_the_dictionary_stays_as_it_was(new, name):
    """A caller who gives more the next time has a new dictionary still, not one that counts as trained."""
    x = _skewed(20)
    dictionary = new(name)
    before = _state(dictionary)
    with pytest.raises(ValueError, match=r"24 (rows|points) can not be drawn from 20 activations"):
        initialize(dictionary, x, x, _config(decoder_init="data"), unit_norm=False)
    assert all(before[key].equal(value) for key, value in dictionary.state_dict().items())


def test_archetypal_points_are_data_points_about_the_bias(new):
    x = _skewed()
    dictionary = new("topk_archetypal", num_points=40)
    initialize(dictionary, x, x, _config(b_dec_init="geometric_median"), unit_norm=False)
    centred = x - geometric_median(x).float()
    points = dictionary.points
    assert float(points.norm(dim=-1).mean()) == pytest.approx(1.0, rel=1e-5)
    # up to one common factor they are rows of the data, all different
    ratios = []
    chosen = set()
    for point in points:
        cosines = (centred / centred.norm(dim=-1, keepdim=True)) @ (point / point.norm())
        i = int(cosines.argmax())
        assert cosines[i] > 1 - 1e-5
        chosen.add(i)
        ratios.append(float(point.norm() / centred[i].norm()))
    assert len(chosen) == 40
    assert max(ratios) / min(ratios) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(dictionary.W_dec.detach(), points[:24])  # each row begins at a point of its own
    torch.testing.assert_close(
        dictionary.encoder_rows.detach(), points[:24] / points[:24].norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-6
    )


# The size of the first weights


def _error(name: str, dictionary, x: torch.Tensor, factor: float, free: bool) -> float:
    """Squared error with the encoder (and the decoder, where its norms are free) times a factor, in plain formulas."""
    W_enc, W_dec, b = dictionary.encoder_rows * factor, dictionary.W_dec * (factor if free else 1), dictionary.b_dec
    pre = (x - b) @ W_enc.T
    if name in ("topk", "topk_archetypal"):
        kept = pre.topk(2, dim=-1)
        f = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.clamp(min=0))
    elif name == "jumprelu":
        f = torch.where(pre > dictionary.threshold, pre, 0)
    else:
        f = pre.clamp(min=0)
    return float((f @ W_dec + b - x).square().sum(-1).double().mean().detach())


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("name", ["relu", "topk", "gated", "jumprelu"])
def test_the_size_found_is_the_best_of_a_brute_force_grid(new, name, unit_norm):
    x = 3 * torch.randn(500, 12, generator=torch.Generator().manual_seed(2)) + 1
    dictionary = new(name)
    initialize(dictionary, x, x, _config(), unit_norm=unit_norm)
    before = copy.deepcopy(dictionary)
    found = search_norm(dictionary, x, x, unit_norm=unit_norm)
    grid = np.logspace(-2, 1, 700)
    errors = [_error(name, before, x, factor, not unit_norm) for factor in grid]
    best = int(np.argmin(errors))
    own = _error(name, before, x, found, not unit_norm)
    assert own <= errors[best] * 1.002
    assert own < 0.97 * _error(name, before, x, 1.0, not unit_norm)
    assert 0.01 <= found <= 10
    torch.testing.assert_close(dictionary.encoder_rows, before.encoder_rows * found)
    torch.testing.assert_close(dictionary.W_dec, before.W_dec * (1 if unit_norm else found))
    assert float((dictionary.encode_in_training(x)[1] != 0).any())
    assert float((dictionary(x) - x).square().sum(-1).double().mean().detach()) == pytest.approx(own, rel=1e-4)


def test_an_archetypal_decoder_keeps_its_size_and_matching_pursuit_has_none_to_find(new):
    x = _skewed()
    dictionary = new("topk_archetypal")
    initialize(dictionary, x, x, _config(), unit_norm=False)
    rows, state = dictionary.W_dec.detach().clone(), _state(dictionary)
    search_norm(dictionary, x, x, unit_norm=False)
    assert dictionary.W_dec.equal(rows)
    assert not dictionary.encoder_rows.equal(state["encoder_rows"])
    pursuit = new("matching_pursuit")
    before = _state(pursuit)
    assert search_norm(pursuit, x, x, unit_norm=True) == 1.0
    assert all(before[key].equal(value) for key, value in pursuit.state_dict().items())


def test_the_search_is_part_of_the_setup_when_asked_for(new):
    x = 3 * torch.randn(500, 12, generator=torch.Generator().manual_seed(2))
    plain, searched = new("relu"), new("relu")
    initialize(plain, x, x, _config(), unit_norm=True)
    initialize(searched, x, x, _config(search_init_norm=True), unit_norm=True)

    def error(dictionary):
        return float((dictionary(x) - x).square().sum().detach())

    assert error(searched) < 0.9 * error(plain)
