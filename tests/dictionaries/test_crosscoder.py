"""Crosscoders: sums over sources, norms per source, and latent scaling against least squares one latent at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from saescope.dictionaries import Crosscoder, MatchingPursuit, architecture, architectures, crosscoder, latent_scaling
from saescope.dictionaries.normalization import LayerNorm

HOSTS = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered"]
NAMES = [f"{host}_crosscoder" for host in HOSTS]
WIDTHS = (1, 2, 3)
EDGES = [(0, 1), (1, 3), (3, 6)]


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_is_a_sum_over_sources(make, tokens, name):
    dictionary = make(name, source_widths=WIDTHS)
    x = tokens()
    sources = [x[:, a:b] for a, b in EDGES]
    biases = [dictionary.b_dec[a:b] for a, b in EDGES]
    encoders = [dictionary.encoder_rows[:, a:b] for a, b in EDGES]
    products = sum((s - bias) @ E.T for s, bias, E in zip(sources, biases, encoders, strict=True))
    pre = products if dictionary.b_enc is None else products + dictionary.b_enc
    torch.testing.assert_close(dictionary.pre_activations(x), pre, rtol=1e-12, atol=1e-12)

    f = dictionary.encode(x)
    torch.testing.assert_close(f, dictionary.activate(pre), rtol=1e-12, atol=1e-12)
    parts = dictionary.of_sources(dictionary(x))
    for part, bias, (a, b) in zip(parts, biases, EDGES, strict=True):
        torch.testing.assert_close(part, f @ dictionary.W_dec[:, a:b] + bias, rtol=1e-12, atol=1e-12)
    assert isinstance(dictionary, Crosscoder)
    assert isinstance(dictionary, architectures()[name.removesuffix("_crosscoder")])


def _norms(rows: torch.Tensor) -> list[list[float]]:
    return [[math.sqrt(sum(v * v for v in row[a:b])) for a, b in EDGES] for row in rows.tolist()]


@pytest.mark.parametrize("name", ["relu_crosscoder", "batch_topk_crosscoder"])
def test_norms_per_source(make, name):
    dictionary = make(name, source_widths=WIDTHS)
    with torch.no_grad():
        dictionary.W_dec[4, 1:] = 0  # one source alone
        dictionary.W_dec[5] = 0  # none
    norms = _norms(dictionary.W_dec)
    torch.testing.assert_close(dictionary.source_norms.detach(), torch.tensor(norms, dtype=torch.float64))
    torch.testing.assert_close(
        dictionary.decoder_norms.detach(), torch.tensor([sum(row) for row in norms], dtype=torch.float64)
    )
    shares = [[v / sum(row) if sum(row) else 0.0 for v in row] for row in norms]
    torch.testing.assert_close(dictionary.relative_norms, torch.tensor(shares, dtype=torch.float64))
    assert dictionary.relative_norms[4].tolist() == [1, 0, 0]
    assert dictionary.relative_norms[5].tolist() == [0, 0, 0]
    assert not dictionary.relative_norms.requires_grad


def test_rows_are_held_to_a_sum_of_norms_of_one(make):
    dictionary = make("topk_crosscoder", source_widths=WIDTHS)
    shares = dictionary.relative_norms
    dictionary.normalise_decoder()
    assert torch.tensor([sum(row) for row in _norms(dictionary.W_dec)]).allclose(torch.ones(10), rtol=1e-6)
    torch.testing.assert_close(dictionary.relative_norms, shares)


def test_the_penalty_has_a_gradient_through_the_norms(make):
    dictionary = make("relu_crosscoder", source_widths=WIDTHS)
    dictionary.decoder_norms.sum().backward()
    expected = torch.cat([torch.nn.functional.normalize(dictionary.W_dec[:, a:b], dim=-1) for a, b in EDGES], dim=-1)
    torch.testing.assert_close(dictionary.W_dec.grad, expected.detach())


def test_the_projected_gradient_keeps_the_sum_of_norms_to_first_order(make):
    dictionary = make("topk_crosscoder", source_widths=WIDTHS)
    with torch.no_grad():
        dictionary.W_dec[4, :3] = 0
        dictionary.W_dec[5] = 0
    gradient = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dictionary.W_dec.grad = gradient.clone()
    dictionary.project_decoder_gradient()
    projected = dictionary.W_dec.grad

    def change(direction: torch.Tensor, step: float) -> np.ndarray:
        """Of the sum of norms over the sources that have one (the others' norm has no derivative)."""
        there, back = _norms(dictionary.W_dec + step * direction), _norms(dictionary.W_dec - step * direction)
        live = np.array(_norms(dictionary.W_dec)) > 0
        return ((np.array(there) - np.array(back)) * live).sum(1) / (2 * step)

    assert np.abs(change(gradient, 1e-5))[:4].max() > 0.1
    assert np.abs(change(projected, 1e-5)).max() < 1e-8
    # nothing else is taken off: what is gone lies along the gradient of the sum of norms
    normals = torch.cat([torch.nn.functional.normalize(dictionary.W_dec[:, a:b], dim=-1) for a, b in EDGES], dim=-1)
    gone = gradient - projected
    along = (gone * normals).sum(-1, keepdim=True) / normals.square().sum(-1, keepdim=True).clamp(min=1e-9) * normals
    torch.testing.assert_close(gone, along.detach())
    assert projected[5].equal(gradient[5])
    make("topk_crosscoder").project_decoder_gradient()  # without a gradient there is nothing to do


def test_widths_must_add_up():
    config = architecture("relu_crosscoder").Config
    assert config(d_in=6, d_sae=4, source_widths=[1, 5]).source_widths == (1, 5)
    for widths in ((3, 4), (), (0, 6), (-1, 7)):
        with pytest.raises(ValueError, match="source_widths must be positive and add up to d_in = 6"):
            config(d_in=6, d_sae=4, source_widths=widths)
    with pytest.raises(ValueError, match="encoder of matching_pursuit is its decoder"):
        crosscoder(MatchingPursuit)


def test_a_width_that_is_no_whole_number_is_refused():
    with pytest.raises(ValueError, match="source_widths"):
        architecture("relu_crosscoder").Config(d_in=6, d_sae=4, source_widths=(1.5, 4.5))


def test_a_strangers_architecture_takes_the_form(make, tokens, stranger, own_registry):
    dictionary = make(crosscoder(stranger), shift=0.5, source_widths=WIDTHS)
    assert dictionary.architecture == "shifted_crosscoder"
    x = tokens()
    f = (
        sum((x - dictionary.b_dec)[:, a:b] @ dictionary.encoder_rows[:, a:b].T for a, b in EDGES)
        + dictionary.b_enc
        - 0.5
    ).clamp(min=0)
    torch.testing.assert_close(dictionary.encode(x), f)
    torch.testing.assert_close(dictionary(x), f @ dictionary.W_dec + dictionary.b_dec)


# Latent scaling


def _scaling_by_least_squares(
    dictionary: Crosscoder, x: torch.Tensor, source: int, like: int
) -> tuple[list[float], list[float]]:
    """numpy's least squares, one latent at a time, from the definition: min over beta of |target - beta f_i d_i|^2."""
    width = dictionary.config.source_widths[0]
    f = dictionary.encode(x).detach().double().numpy()
    W, b = dictionary.W_dec.detach().double().numpy(), dictionary.b_dec.detach().double().numpy()
    own, direction = (W[:, s * width : (s + 1) * width] for s in (source, like))
    part = slice(source * width, (source + 1) * width)
    truth, bias = x.double().numpy()[:, part], b[part]
    errors, reconstructions = [], []
    for i in range(dictionary.d_sae):
        others = np.delete(f, i, 1) @ np.delete(own, i, 0)
        column = np.outer(f[:, i], direction[i]).reshape(-1, 1)
        if not column.any():
            errors.append(math.nan)
            reconstructions.append(math.nan)
            continue
        for target, into in ((truth - bias - others, errors), (others, reconstructions)):
            into.append(float(np.linalg.lstsq(column, target.reshape(-1), rcond=None)[0][0]))
    return errors, reconstructions


@pytest.mark.parametrize(
    "name", ["relu_crosscoder", "batch_topk_crosscoder", "abs_topk_crosscoder", "gated_crosscoder"]
)
@pytest.mark.parametrize(("source", "like"), [(0, 1), (1, 0), (0, 0), (2, 1)])
def test_latent_scaling_is_least_squares_one_latent_at_a_time(make, tokens, name, source, like):
    dictionary = make(name, source_widths=(2, 2, 2))
    with torch.no_grad():
        dictionary.encoder_rows[7] = 0  # never fires
        if dictionary.b_enc is not None:
            dictionary.b_enc[7] = -5 if "abs" not in name else 0
        else:
            dictionary.b_gate[7] = -5
        dictionary.W_dec[8, 2 * like : 2 * like + 2] = 0  # not in the source that it is compared with
    x = tokens(60)
    found = latent_scaling(dictionary, x.split(13), source, like=like)
    errors, reconstructions = _scaling_by_least_squares(dictionary, x, source, like)
    assert math.isnan(errors[7])
    assert math.isnan(errors[8])
    expected = torch.tensor([errors, reconstructions], dtype=torch.float64)
    torch.testing.assert_close(found.error, expected[0], rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(found.reconstruction, expected[1], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_latent_scaling_tells_shared_own_shrunk_and_decoupled_latents_apart(make):
    """Model 0 and model 1 of width 4; directions e0..e3 in both, known codes, and a crosscoder made by hand.

    latent 0: shared, with a decoder in both.          latent 1: truly model 1's own, nothing of it in model 0.
    latent 2: shrunk: model 0 uses e2 as well, but the crosscoder gave it no decoder there.
    latents 3 and 4: decoupled: both fire together and stand for e3, one for each model.
    """
    dictionary = make("relu_crosscoder", d_in=8, d_sae=5, source_widths=(4, 4), apply_b_dec_to_input=False)
    encoder, decoder = torch.zeros(5, 8, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.float64)
    for latent, direction in enumerate([0, 1, 2, 3, 3]):
        encoder[latent, 4 + direction] = 1  # all read from model 1
    decoder[0, 0] = decoder[0, 4] = decoder[1, 5] = decoder[2, 6] = decoder[3, 7] = decoder[4, 3] = 1.0
    with torch.no_grad():
        dictionary.encoder_rows.copy_(encoder)
        dictionary.W_dec.copy_(decoder)
        dictionary.b_enc.zero_()
        dictionary.b_dec.zero_()
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(500, 4, generator=generator, dtype=torch.float64) * (
        torch.rand(500, 4, generator=generator) < 0.3
    )
    x = torch.cat([codes * torch.tensor([1, 0, 1, 1]), codes], dim=-1)  # model 0 has no e1
    assert dictionary.relative_norms[:, 1].tolist() == [0.5, 1, 1, 1, 0]

    found = latent_scaling(dictionary, x.split(100), 0, like=1)
    torch.testing.assert_close(found.error[:4], torch.tensor([1.0, 0, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(found.reconstruction[:4], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
    assert found.error[4].isnan()  # has no decoder in model 1 to compare with


def test_latent_scaling_is_the_same_where_layer_norm_is_kept(make):
    """Tokens that are permutations of one another have one mean and one spread: layer norm is then a plain scale."""
    dictionary = make("relu_crosscoder", source_widths=(3, 3))
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([1.0, 4, 9, 16, 25, 36], dtype=torch.float64)
    x = torch.stack([values[torch.randperm(6, generator=generator)] for _ in range(60)])
    z = LayerNorm().normalise(x)
    expected = latent_scaling(dictionary, [z], 0, like=1)
    dictionary.input_normalization = LayerNorm()
    assert dictionary.encode(x).any()
    found = latent_scaling(dictionary, [x], 0, like=1)
    torch.testing.assert_close(found.error, expected.error, equal_nan=True)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, equal_nan=True)


def test_latent_scaling_refuses_what_it_is_not_for(make, tokens):
    with pytest.raises(ValueError, match="for crosscoders, not for a topk dictionary"):
        latent_scaling(make("topk"), [tokens()], 0, like=1)
    with pytest.raises(ValueError, match="sources 0 and 2 have different widths, 1 and 3"):
        latent_scaling(make("relu_crosscoder", source_widths=WIDTHS), [tokens()], 0, like=2)
    cls = architecture("batch_topk_crosscoder")
    untrained = cls(cls.Config(d_in=6, d_sae=4, k=2, source_widths=(3, 3)))
    with pytest.raises(ValueError, match="no threshold yet"):
        latent_scaling(untrained, [tokens().float()], 0, like=1)
