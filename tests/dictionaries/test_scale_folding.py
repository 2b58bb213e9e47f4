"""Fold = no fold: a dictionary trained on scaled activations answers the same on raw ones."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig


def _random_dictionary(architecture: str, seed: int) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopK(TopKConfig(d_in=4, d_sae=9, k=3)).double()
    else:
        dictionary = ReLU(DictionaryConfig(d_in=4, d_sae=9)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        dictionary.W_dec *= torch.linspace(0.2, 4, 9).double()[:, None]  # norms far from equal
    return dictionary


@pytest.mark.parametrize("architecture", ["relu", "topk"])
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_fold_is_no_fold(architecture, seed, scale):
    scaled = _random_dictionary(architecture, seed)
    folded = copy.deepcopy(scaled)
    folded.fold_input_scale(scale)
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    f = scaled.encode(scale * x)
    assert (f > 0).any()
    torch.testing.assert_close(folded.encode(x), f / scale, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded(x), scaled(scale * x) / scale, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.decode(folded.encode_sparse(x)), scaled(scale * x) / scale, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_folding_leaves_directions_alone_and_can_be_undone(architecture):
    dictionary = _random_dictionary(architecture, 0)
    before = copy.deepcopy(dictionary)
    dictionary.fold_input_scale(4.0)
    assert dictionary.W_dec.equal(before.W_dec)
    assert dictionary.encoder_rows.equal(before.encoder_rows)
    assert not dictionary.b_enc.equal(before.b_enc)
    dictionary.fold_input_scale(0.25)
    for name, parameter in dictionary.named_parameters():
        assert parameter.equal(before.get_parameter(name)), name
        assert parameter.requires_grad


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be positive, got"):
        _random_dictionary("relu", 0).fold_input_scale(scale)
