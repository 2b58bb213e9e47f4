"""Fold = no fold: what was trained on scaled, whitened or normalised activations answers the same on raw ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from saescope.dictionaries import (
    Dictionary,
    archetypal,
    architectures,
    crosscoder,
    load_dictionary,
    save_dictionary,
    transcoder,
)
from saescope.dictionaries.normalization import LayerNorm, Whitening

ALL = sorted(architectures())
TRANSCODERS = [name for name in ALL if "transcoder" in name]
FOLDABLE = [name for name in ALL if name not in TRANSCODERS and name != "matching_pursuit"]
STRANGERS = ["shifted", "shifted_archetypal", "shifted_crosscoder", "shifted_transcoder", "shifted_skip_transcoder"]


@pytest.fixture(scope="module")
def any_of(make, stranger) -> Callable[..., Dictionary]:
    """As ``make``, and the stranger's architecture with its compositions under their names."""
    made = {
        "shifted": stranger,
        "shifted_archetypal": archetypal(stranger),
        "shifted_crosscoder": crosscoder(stranger),
        "shifted_transcoder": transcoder(stranger),
        "shifted_skip_transcoder": transcoder(stranger, skip=True),
    }
    return lambda name, **settings: make(made.get(name, name), **settings)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Relative to the largest of the same token: a cancellation between features is nobody's error."""
    size = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    worst = float(((found - expected).abs() / size).detach().max())
    assert worst < tolerance, f"{what}: {worst:.1e}"


def _firm(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Tokens whose support does not hang on rounding: the same under small changes of the input, in float64."""
    exact, x = copy.deepcopy(dictionary).double(), x.double()
    support = exact.encode(x) != 0
    generator = torch.Generator().manual_seed(0)
    firm = torch.ones(len(x), dtype=torch.bool)
    for _ in range(8):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        firm &= ((exact.encode(x + 1e-4 * x.norm(dim=-1, keepdim=True) * noise) != 0) == support).all(-1)
    assert firm.float().mean() > 0.5
    return firm


def _compare(
    folded: Dictionary, x: torch.Tensor, f: torch.Tensor, y: torch.Tensor, tolerance: float, firm: torch.Tensor
) -> None:
    x, f, y = x[firm], f[firm], y[firm]
    found = folded.encode(x)
    assert (found != 0).equal(f != 0)
    assert (f != 0).any()
    _close(found, f, tolerance, "codes")
    _close(folded(x), y, tolerance, "output")
    _close(folded.decode(folded.encode_sparse(x), x), y, tolerance, "output of sparse codes")


# A factor


@pytest.mark.parametrize("name", ALL + STRANGERS)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), ratio=st.floats(1e-2, 1e2), centred=st.booleans())
@profile(max_examples=6)
def test_a_scale_is_folded(any_of, tokens, name, seed, scale, ratio, centred):
    crossing = "transcoder" in name
    scaled = any_of(name, seed=seed, apply_b_dec_to_input=centred and not crossing)
    scale_out = scale * ratio if crossing else scale
    folded = copy.deepcopy(scaled)
    folded.fold_scale(scale, scale_out if crossing else None)
    x = tokens(30, seed=seed) / scale
    units = scale_out if folded.positively_homogeneous else 1
    everything = torch.ones(30, dtype=torch.bool)
    _compare(folded, x, scaled.encode(scale * x) / units, scaled(scale * x) / scale_out, 1e-11, everything)


@pytest.mark.parametrize("name", ALL + STRANGERS)
def test_a_scale_is_folded_in_float32(any_of, tokens, name):
    scaled = any_of(name, seed=3).float()
    scale_in, scale_out = (0.13, 31.0) if "transcoder" in name else (0.13, 0.13)
    folded = copy.deepcopy(scaled)
    folded.fold_scale(scale_in, scale_out)
    x = tokens(200).float() / scale_in
    units = scale_out if folded.positively_homogeneous else 1
    f, y = scaled.encode(scale_in * x) / units, scaled(scale_in * x) / scale_out
    _compare(folded, x, f, y, 1e-5, _firm(scaled, scale_in * x))
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ALL)
def test_a_scale_leaves_directions_alone_and_can_be_undone(make, name):
    dictionary = make(name)
    before = copy.deepcopy(dictionary)
    dictionary.fold_scale(4.0)
    assert dictionary.W_dec.equal(before.W_dec)  # also those of norm 1
    if dictionary.encoder_rows is not None:
        assert dictionary.encoder_rows.equal(before.encoder_rows)
    assert not dictionary.b_dec.equal(before.b_dec)
    dictionary.fold_scale(0.25)
    kept = dict(before.named_parameters()) | dict(before.named_buffers())
    for key, tensor in (dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())).items():
        assert tensor.equal(kept[key]), key
        assert tensor.requires_grad == kept[key].requires_grad, key


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["relu", "topk_transcoder", "matching_pursuit"])
def test_a_scale_that_is_not_positive_is_refused_before_anything_changes(make, tokens, name, scale):
    dictionary = make(name)
    before = dictionary(tokens())
    for scales in ((scale,), (2.0, scale)):
        with pytest.raises(ValueError, match="scale must be positive, got"):
            dictionary.fold_scale(*scales)
    assert dictionary(tokens()).equal(before)


# A linear map


def _whitening(diagonal: bool, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A mean far from 0 and a map that is neither symmetric nor orthogonal."""
    generator = torch.Generator().manual_seed(11)
    mean = 5 * torch.randn(width, generator=generator, dtype=torch.float64)
    if diagonal:
        matrix = 0.2 + torch.rand(width, generator=generator, dtype=torch.float64)
        return mean, matrix, 1 / matrix
    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64) + 3 * torch.eye(width)
    return mean, matrix, torch.linalg.inv(matrix).contiguous()


def _white(x: torch.Tensor, mean: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return (x - mean) * matrix if matrix.ndim == 1 else (x - mean) @ matrix


def _unwhite(z: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return (z * inverse if inverse.ndim == 1 else z @ inverse) + mean


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", FOLDABLE + STRANGERS[:3])
def test_a_linear_map_is_folded(any_of, tokens, name, centred, diagonal):
    mean, matrix, inverse = _whitening(diagonal)
    for seed in range(3):
        trained = any_of(name, seed=seed, apply_b_dec_to_input=centred)
        folded = copy.deepcopy(trained)
        folded.fold_affine(mean, matrix, inverse)
        z = tokens(30, seed=seed)
        x = _unwhite(z, mean, inverse)
        everything = torch.ones(30, dtype=torch.bool)
        _compare(folded, x, trained.encode(z), _unwhite(trained(z), mean, inverse), 1e-11, everything)
        for key, parameter in folded.named_parameters():
            assert parameter.requires_grad == trained.get_parameter(key).requires_grad


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", FOLDABLE + STRANGERS[:3])
def test_a_linear_map_is_folded_in_float32(any_of, tokens, name, centred, diagonal):
    mean, matrix, inverse = _whitening(diagonal)
    trained = any_of(name, seed=1, apply_b_dec_to_input=centred).float()
    folded = copy.deepcopy(trained)
    folded.fold_affine(mean, matrix, inverse)
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float32}
    z = tokens(200).float()
    x = _unwhite(z.double(), mean, inverse).float()
    y = _unwhite(trained(z).double(), mean, inverse).float()
    firm = _firm(trained, z)
    _compare(folded, x, trained.encode(z), y, 1e-4, firm)  # the mean is a few times larger than what is rebuilt
    # against the fold in float64, which leaves out the cancellation of the mean in float32
    exact = any_of(name, seed=1, apply_b_dec_to_input=centred)
    exact.fold_affine(mean, matrix, inverse)
    for key, parameter in exact.named_parameters():
        torch.testing.assert_close(folded.get_parameter(key).double(), parameter, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize("d_out", [5, 6])
@pytest.mark.parametrize("name", TRANSCODERS + STRANGERS[3:])
def test_a_transcoder_takes_a_linear_map_of_its_input_alone(any_of, tokens, name, d_out, diagonal):
    """Also where both hook points have the same width: the output keeps units of its own."""
    mean, matrix, inverse = _whitening(diagonal)
    for seed in range(3):
        trained = any_of(name, seed=seed, d_out=d_out)
        folded = copy.deepcopy(trained)
        folded.fold_affine(mean, matrix, inverse)
        assert folded.W_dec.equal(trained.W_dec)
        z = tokens(30, seed=seed)
        everything = torch.ones(30, dtype=torch.bool)
        _compare(folded, _unwhite(z, mean, inverse), trained.encode(z), trained(z), 1e-11, everything)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_linear_map_is_refused_where_it_can_not_go_into_both_matrices(make, tokens, diagonal):
    dictionary = make("matching_pursuit")
    before = dictionary(tokens())
    with pytest.raises(ValueError, match="can not be folded into a matching_pursuit dictionary"):
        dictionary.fold_affine(*_whitening(diagonal))
    assert dictionary(tokens()).equal(before)


# What stays in front of the encoder


def _layer_normed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per token: (x - mean) / (sd + 1e-5) with the standard deviation of d - 1, in loops; it is undone without 1e-5."""
    means, spreads = [], []
    for token in x.tolist():
        mean = sum(token) / len(token)
        means.append(mean)
        spreads.append((sum((v - mean) ** 2 for v in token) / (len(token) - 1)) ** 0.5)
    mean, spread = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (means, spreads))
    return (x - mean) / (spread + 1e-5), mean, spread


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", ALL + STRANGERS)
def test_layer_norm_is_kept_and_undone(any_of, tokens, tmp_path, name, centred):
    crossing = "transcoder" in name
    plain = any_of(name, apply_b_dec_to_input=centred and not crossing)
    kept = copy.deepcopy(plain)
    kept.input_normalization = LayerNorm()
    x = 4 * tokens(30) + 7
    z, mean, spread = _layer_normed(x)
    expected = plain(z) if crossing else plain(z) * spread + mean  # the other hook point has units of its own
    everything = torch.ones(30, dtype=torch.bool)
    _compare(kept, x, plain.encode(z), expected, 1e-11, everything)
    if not crossing:
        with pytest.raises(ValueError, match=r"needs the input again to undo it: decode\(f, x\)"):
            kept.decode(kept.encode(x))
    save_dictionary(kept, tmp_path / "d")
    opened = load_dictionary(tmp_path / "d")
    assert type(opened) is type(kept)
    assert opened(x).equal(kept(x))

    single = copy.deepcopy(kept).float()
    firm = _firm(plain, z)
    _compare(single, x.float(), plain.encode(z).float(), expected.float(), 1e-5, firm)
    flat = kept(torch.full((2, 6), 3.0, dtype=torch.float64))
    assert flat.isfinite().all()


@pytest.mark.parametrize(
    "name", ["matching_pursuit", "topk", "gated", "matryoshka", "relu_crosscoder", "topk_archetypal"]
)
def test_a_linear_map_may_be_kept_instead(make, tokens, tmp_path, name):
    mean, matrix, inverse = _whitening(diagonal=False)
    for centred in (True, False):
        plain = make(name, apply_b_dec_to_input=centred)
        kept = copy.deepcopy(plain)
        kept.input_normalization = Whitening(mean, matrix, inverse)
        z = tokens(30)
        x = _unwhite(z, mean, inverse)
        everything = torch.ones(30, dtype=torch.bool)
        f, y = plain.encode(z), _unwhite(plain(z), mean, inverse)
        _compare(kept, x, f, y, 1e-11, everything)
        single = copy.deepcopy(kept).float()
        _compare(single, x.float(), f.float(), y.float(), 1e-4, _firm(plain, z))

        save_dictionary(kept, tmp_path / "d", overwrite=True)
        opened = load_dictionary(tmp_path / "d")
        assert type(opened) is type(kept)
        assert opened.encode(x).equal(kept.encode(x))
        assert opened(x).equal(kept(x))


def test_a_kept_map_is_a_buffer_that_moves_with_the_dictionary(make):
    dictionary = make("matching_pursuit")
    dictionary.input_normalization = Whitening(*_whitening(diagonal=False))
    assert {"input_normalization.mean", "input_normalization.matrix", "input_normalization.inverse"} <= set(
        dictionary.state_dict()
    )
    assert dictionary.float().input_normalization.matrix.dtype == torch.float32


def test_layer_norm_needs_two_numbers(make):
    dictionary = make("relu", d_in=1)
    dictionary.input_normalization = LayerNorm()
    with pytest.raises(ValueError, match="width 2 or more"):
        dictionary.encode(torch.zeros(2, 1, dtype=torch.float64))


# After folding, on disk


@pytest.mark.parametrize("name", ALL)
def test_what_was_folded_is_what_is_opened(make, tokens, tmp_path, name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        dictionary = make(name, dtype=dtype)
        dictionary.fold_scale(0.3, 2.7 if "transcoder" in name else None)
        x = (tokens(30) / 0.3).to(dtype)
        save_dictionary(dictionary, tmp_path / "d", overwrite=True)
        opened = load_dictionary(tmp_path / "d")
        assert opened.encode(x).equal(dictionary.encode(x))
        assert opened(x).equal(dictionary(x))
        own = dict(opened.named_parameters()) | dict(opened.named_buffers())
        for key, tensor in (dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())).items():
            assert own[key].equal(tensor), key
