"""Normalisations against plain formulas, and the way into weights and back."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from saescope.dictionaries import architectures
from saescope.training.normalization import NORMALIZATIONS, measure, normalizer_from

ALL = sorted(architectures())


def _x(number: int = 400, width: int = 4) -> torch.Tensor:
    """Correlated, far from the origin, of very unequal spreads; float64."""
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, width).double()
    return torch.randn(number, width, generator=generator, dtype=torch.float64) @ mix + 3


def _y(number: int = 400, width: int = 3) -> torch.Tensor:
    return 7 * torch.randn(number, width, generator=torch.Generator().manual_seed(6), dtype=torch.float64) - 2


def _mean_norm(x: torch.Tensor) -> float:
    return sum(math.sqrt(sum(v * v for v in row)) for row in x.tolist()) / len(x)


def test_scale_brings_the_mean_norm_to_the_root_of_the_width_and_unit_scale_to_one(make):
    x = _x()
    for name, wanted in (("scale", 2.0), ("unit_scale", 1.0)):
        normalizer = measure(name, x, None, make("relu"))
        torch.testing.assert_close(normalizer.apply(x), x * wanted / _mean_norm(x), rtol=1e-12, atol=0)
        assert _mean_norm(normalizer.apply(x)) == pytest.approx(wanted)


def test_a_target_has_a_factor_of_its_own(make):
    x, y = _x(), _y()
    for name, wanted in (("scale", math.sqrt(3)), ("unit_scale", 1.0), ("layer_norm", math.sqrt(3))):
        normalizer = measure(name, x, y, make("transcoder"))
        torch.testing.assert_close(normalizer.apply_to_target(y), y * wanted / _mean_norm(y), rtol=1e-12, atol=0)
    assert measure("none", x, y, make("transcoder")).apply_to_target(y).equal(y)


def test_each_source_of_a_crosscoder_has_its_factor(make):
    x = _x() * torch.tensor([1.0, 1.0, 100.0, 100.0]).double()
    for name, wanted in (("scale", math.sqrt(2)), ("unit_scale", 1.0)):
        found = measure(name, x, None, make("relu_crosscoder", source_widths=(2, 2))).apply(x)
        for part, raw in ((found[:, :2], x[:, :2]), (found[:, 2:], x[:, 2:])):
            torch.testing.assert_close(part, raw * wanted / _mean_norm(raw), rtol=1e-10, atol=0)


def test_none_is_nothing(make):
    x = _x()
    assert measure("none", x, None, make("relu")).apply(x).equal(x)
    assert measure("none", x, None, make("relu_crosscoder")).apply(x).equal(x)


def test_layer_norm_is_each_token_by_its_own_mean_and_spread(make):
    x = _x(20)
    found = measure("layer_norm", x, None, make("relu")).apply(x)
    for token, out in zip(x.tolist(), found.tolist(), strict=True):
        mean = sum(token) / 4
        spread = math.sqrt(sum((v - mean) ** 2 for v in token) / 3)
        assert out == pytest.approx([(v - mean) / (spread + 1e-5) for v in token], rel=1e-10)


def test_whitened_activations_have_mean_zero_and_the_identity_as_covariance(make):
    x = _x(5000, 6)
    z = measure("whitening", x, None, make("relu", d_in=6)).apply(x)
    assert z.mean(0).abs().max() < 1e-10
    covariance = (z - z.mean(0)).T @ (z - z.mean(0)) / len(z)
    eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    eps = 1e-3 * eigenvalues.mean()
    # up to eps: along an eigenvector of variance v there is v / (v + eps)
    expected = (eigenvalues / (eigenvalues + eps)).sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance).sort().values, expected, rtol=1e-9, atol=0)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-9


def test_whitening_does_not_depend_on_the_unit(make):
    x = _x()
    small, large = (measure("whitening", s * x, None, make("relu")).apply(s * x) for s in (1e-6, 1e6))
    torch.testing.assert_close(small.abs(), large.abs(), rtol=1e-6, atol=1e-9)


def test_directions_without_any_spread_do_no_harm(make):
    x = _x()
    x[:, 2] = 4.0
    normalizer = measure("whitening", x, None, make("relu"))
    z = normalizer.apply(x)
    assert z.isfinite().all()
    assert z.abs().max() < 100


def test_too_few_tokens_for_a_covariance_are_refused(make):
    with pytest.raises(ValueError, match="whitening of width 4 needs more than 4 activations; raise num_normal"):
        measure("whitening", _x(4), None, make("relu"))


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_activations_without_a_norm_are_refused(make, value):
    for name in ("scale", "unit_scale"):
        with pytest.raises(ValueError, match="no finite, positive norm; is this the right hook point"):
            measure(name, torch.full((5, 4), value), None, make("relu"))
        with pytest.raises(ValueError, match="no finite, positive norm"):
            measure(name, _x(), torch.full((5, 3), value), make("transcoder"))


def _raw_answer(normalization: str, dictionary, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """What a dictionary on normalised activations says about raw ones, by undoing the normalisation of its answer."""
    if normalization == "none":
        return dictionary(x)
    root = 1.0 if normalization == "unit_scale" else None
    if "transcoder" in dictionary.architecture:
        back = _mean_norm(y) / (root or math.sqrt(y.shape[1]))
    if normalization in ("scale", "unit_scale"):
        if "crosscoder" in dictionary.architecture:
            factors = torch.cat(
                [
                    torch.full((w,), (root or math.sqrt(w)) / _mean_norm(part), dtype=torch.float64)
                    for w, part in zip(
                        dictionary.config.source_widths, x.split(dictionary.config.source_widths, -1), strict=True
                    )
                ]
            )
        else:
            factors = torch.tensor((root or math.sqrt(x.shape[1])) / _mean_norm(x), dtype=torch.float64)
        answer = dictionary(x * factors)
        return answer * back if "transcoder" in dictionary.architecture else answer / factors
    if normalization == "layer_norm":
        mean = x.mean(-1, keepdim=True)
        spread = ((x - mean).square().sum(-1, keepdim=True) / (x.shape[1] - 1)).sqrt()
        answer = dictionary((x - mean) / (spread + 1e-5))
        return answer * back if "transcoder" in dictionary.architecture else answer * spread + mean
    mean = x.mean(0)
    eigenvalues, E = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    spread = (eigenvalues + 1e-3 * eigenvalues.mean()).sqrt()
    answer = dictionary((x - mean) @ E / spread)
    return answer * back if "transcoder" in dictionary.architecture else (answer * spread) @ E.T + mean


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("name", "apply"),  # b_dec of a transcoder is never subtracted
    [(name, apply) for name in ALL for apply in ((False,) if "transcoder" in name else (True, False))],
)
def test_a_folded_dictionary_says_of_raw_activations_what_it_said_of_normalised_ones(make, name, normalization, apply):
    dictionary = make(name, apply_b_dec_to_input=apply)
    x, y = _x(), (_y() if "transcoder" in name else None)
    expected = _raw_answer(normalization, dictionary, x, y)
    normalizer = measure(normalization, x, y, dictionary)
    inside = copy.deepcopy(dictionary)
    codes = inside.encode(normalizer.apply(x))
    normalizer.fold_into(dictionary)
    torch.testing.assert_close(dictionary(x), expected, rtol=1e-8, atol=1e-8)
    fired = dictionary.encode(x)
    assert (fired != 0).equal(codes != 0)  # the same features, whatever their units
    # and through the state that a checkpoint holds
    again = copy.deepcopy(inside)
    state = normalizer.state_dict()
    json.dumps({key: value for key, value in state.items() if not isinstance(value, torch.Tensor)})
    normalizer_from(state).fold_into(again)
    assert again(x).equal(dictionary(x))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ALL)
def test_unfolding_and_folding_is_no_change(make, name, normalization):
    """Weights, thresholds and the input normalisation, there and back, both ways round."""
    x, y = _x(), (_y() if "transcoder" in name else None)
    inside = make(name)
    normalizer = measure(normalization, x, y, inside)
    folded = copy.deepcopy(inside)
    normalizer.fold_into(folded)
    back = copy.deepcopy(folded)
    normalizer.unfold_from(back)

    def same(a, b):
        for (key, found), (other, expected) in zip(
            sorted(a.state_dict().items()), sorted(b.state_dict().items()), strict=True
        ):
            assert key == other
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=key)
        assert type(a.input_normalization) is type(b.input_normalization)

    same(back, inside)
    normalizer.fold_into(back)
    same(back, folded)
