"""Sparse codes say what the dense tensor says, and gradients flow through them alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, SparseCodes, TopK, TopKConfig

PARAMETERS = ("encoder_rows", "W_dec", "b_enc", "b_dec")


def _random_dictionary(architecture: str, seed: int, d_in: int = 4, d_sae: int = 8, k: int = 3) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopK(TopKConfig(d_in=d_in, d_sae=d_sae, k=k)).double()
    else:
        dictionary = ReLU(DictionaryConfig(d_in=d_in, d_sae=d_sae)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dictionary


def _tokens(seed: int, num_tokens: int = 6, d_in: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(num_tokens, d_in, dtype=torch.float64, generator=generator)


def _plain(dictionary: Dictionary, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature activations and reconstruction from products and a constant mask alone."""
    pre = (x - dictionary.b_dec) @ dictionary.encoder_rows.T + dictionary.b_enc
    mask = torch.zeros_like(pre)
    k = dictionary.config.k if isinstance(dictionary, TopK) else dictionary.d_sae
    for token, values in enumerate(pre.tolist()):
        for i in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
            mask[token, i] = values[i] > 0
    f = pre * mask
    return f, f @ dictionary.W_dec + dictionary.b_dec


def _gradients(dictionary: Dictionary, x: torch.Tensor, objective: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {"x": x, **dict(dictionary.named_parameters())}
    found = torch.autograd.grad(objective, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("architecture", ["relu", "topk"])
@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_sparse_codes_equal_dense_ones_with_every_gradient(architecture, seed):
    dictionary = _random_dictionary(architecture, seed)
    x = _tokens(seed).requires_grad_()
    target = _tokens(seed + 1)

    codes = dictionary.encode_sparse(x)
    assert codes.to_dense().equal(dictionary.encode(x))
    torch.testing.assert_close(dictionary.decode(codes), dictionary.decode(dictionary.encode(x)), rtol=0, atol=1e-13)

    def objective(f: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        return (x_hat - target).square().sum() + 0.3 * f.square().sum()

    expected = _gradients(dictionary, x, objective(*_plain(dictionary, x)))
    codes = dictionary.encode_sparse(x)
    sparse = _gradients(dictionary, x, objective(codes.values, dictionary.decode(codes)))
    f = dictionary.encode(x)
    dense = _gradients(dictionary, x, objective(f, dictionary.decode(f)))
    for name, gradient in expected.items():
        torch.testing.assert_close(sparse[name], gradient, rtol=1e-11, atol=1e-11, msg=f"sparse {name}")
        torch.testing.assert_close(dense[name], gradient, rtol=1e-11, atol=1e-11, msg=f"dense {name}")


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_firings_are_those_of_a_loop(architecture):
    dictionary, x = _random_dictionary(architecture, 2), _tokens(2)
    f = dictionary.encode(x).tolist()
    firings = dictionary.encode_sparse(x).firings()
    found = list(zip(firings.token.tolist(), firings.feature.tolist(), firings.value.tolist(), strict=True))
    expected = {(b, i, value) for b, token in enumerate(f) for i, value in enumerate(token) if value > 0}
    assert len(expected) > 5
    assert len(found) == len(expected)
    assert set(found) == expected
    assert firings.token.tolist() == sorted(firings.token.tolist())


@given(seed=st.integers(0, 10_000), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]), num_tokens=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_from_dense_and_back(seed, density, num_tokens):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tokens, 7)
    f = (torch.rand(shape, generator=generator) + 0.1) * (torch.rand(shape, generator=generator) < density)
    codes = SparseCodes.from_dense(f)
    assert codes.to_dense().equal(f)
    busiest = max((sum(1 for value in token if value) for token in f.tolist()), default=0)
    assert codes.values.shape == codes.indices.shape == (num_tokens, max(1, busiest))
    assert not codes.indices[codes.values == 0].any()  # empty slots name feature 0
    for indices, values in zip(codes.indices.tolist(), codes.values.tolist(), strict=True):
        used = [i for i, value in zip(indices, values, strict=True) if value]
        assert used == sorted(used)
        assert all(values[: len(used)])


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_a_batch_on_which_nothing_fires_is_decoded_to_the_bias(architecture):
    dictionary = _random_dictionary(architecture, 0)
    with torch.no_grad():
        dictionary.b_enc.fill_(-1000)
    x = _tokens(0).requires_grad_()
    codes = dictionary.encode_sparse(x)
    assert len(codes.firings().token) == 0
    assert not codes.indices.any()
    x_hat = dictionary.decode(codes)
    assert x_hat.equal(dictionary.b_dec.expand(6, 4))
    gradients = _gradients(dictionary, x, x_hat.sum())
    assert gradients["b_dec"].tolist() == [6] * 4
    assert not any(gradients[name].any() for name in ("x", "encoder_rows", "W_dec", "b_enc"))


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_no_tokens_at_all(architecture):
    dictionary = _random_dictionary(architecture, 0)
    codes = dictionary.encode_sparse(torch.zeros(0, 4, dtype=torch.float64))
    assert codes.to_dense().shape == (0, 8)
    assert dictionary.decode(codes).shape == (0, 4)
    assert len(codes.firings().value) == 0


def test_minus_zero_is_no_firing():
    codes = SparseCodes.from_dense(torch.tensor([[-0.0, 2.0, 0.0], [-0.0, -0.0, 0.0]]))
    assert codes.firings().token.tolist() == [0]
    assert codes.firings().feature.tolist() == [1]
    assert codes.values.tolist() == [[2], [0]]


def test_topk_slots_below_zero_are_empty():
    dictionary = TopK(TopKConfig(d_in=2, d_sae=3, k=2))
    with torch.no_grad():
        dictionary.encoder_rows.copy_(torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]))
    codes = dictionary.encode_sparse(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    assert codes.to_dense().tolist() == [[0, 0, 3], [0, 0, 0]]
    assert not codes.indices[codes.values == 0].any()
    assert codes.firings().feature.tolist() == [2]
