"""Codes from the kernels: those of the dense pass, for whoever has an encoder that they know and for nobody else."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import TopK, architecture, architectures, sparse_encoding
from saescope.dictionaries.sparse_encoding import encode_fast, rule_of
from saescope.dictionaries.topk import TopKConfig
from saescope.kernels import FlatCodes

D_IN, D_SAE, B = 12, 40, 30
KNOWN = ("topk", "ordered", "relu", "jumprelu", "batch_topk", "matryoshka")


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch):
    monkeypatch.setattr(sparse_encoding, "WORTH_IT", 0)
    monkeypatch.setattr(sparse_encoding, "_MOST_FIRINGS", 1.0)


def made(name: str):
    extra = (
        {"k": 5}
        if "topk" in name or "group" in name or "ordered" in name or "matryoshka" in name or "pursuit" in name
        else {}
    )
    if name.endswith("crosscoder"):
        extra["source_widths"] = (5, 7)
    if name.endswith("transcoder"):
        extra["d_out"] = 9
    cls = architecture(name)
    if name.endswith("archetypal"):
        extra["num_points"] = 50
    dictionary = cls(cls.Config(d_in=D_IN, d_sae=D_SAE, **extra), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if dictionary.b_enc is not None:
            dictionary.b_enc.normal_(0, 0.3, generator=generator)
        dictionary.b_dec.normal_(0, 0.3, generator=generator)
        if hasattr(dictionary, "threshold"):
            dictionary.threshold.fill_(0.4)
    return dictionary


def tokens(dtype=torch.float32) -> Tensor:
    return torch.randn(B, D_IN, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KNOWN)
def test_the_codes_are_those_of_the_dense_pass(name, dtype):
    dictionary, x = made(name).to(dtype), tokens(dtype)
    with torch.no_grad():
        codes = encode_fast(dictionary, x)
        dense = dictionary.encode(x)
    assert isinstance(codes, FlatCodes)
    assert (dense > 0).sum() > B
    torch.testing.assert_close(codes.to_dense(), dense, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("name", KNOWN)
def test_encode_sparse_makes_no_dense_codes(name, monkeypatch):
    dictionary, x = made(name), tokens()
    with torch.no_grad():
        dense, rule = dictionary.encode(x), rule_of(dictionary)
        monkeypatch.setattr(type(dictionary), "pre_activations", lambda *_: pytest.fail("a dense pass was made"))
        monkeypatch.setattr(sparse_encoding, "rule_of", lambda _: rule)
        codes = dictionary.encode_sparse(x)
    torch.testing.assert_close(codes.to_dense(), dense, rtol=1e-5, atol=0)
    assert codes.indices.dtype == torch.int64


def _encoders():
    """Every architecture, and whether the kernels know its encoder: a composition has its host's."""
    for name in architectures():
        host = re.sub("_?(archetypal|skip_transcoder|transcoder|crosscoder)$", "", name) or "relu"
        yield pytest.param(name, host in KNOWN, id=name)


@pytest.mark.parametrize(("name", "known"), list(_encoders()))
def test_whose_encoder_is_known(name, known):
    if name.startswith("test"):  # registered by another test
        pytest.skip("not one of ours")
    dictionary = made(name)
    assert (rule_of(dictionary) is not None) == known
    with torch.no_grad():
        codes = encode_fast(dictionary, tokens())
        assert (codes is not None) == known
        if codes is not None:
            torch.testing.assert_close(codes.to_dense(), dictionary.encode(tokens()), rtol=1e-5, atol=1e-7)


def test_a_rule_of_ones_own_is_not_taken_for_the_host_s():
    class Doubled(TopK):
        def activate(self, pre: Tensor) -> Tensor:
            return 2 * super().activate(pre)

    dictionary, x = Doubled(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=3)), tokens()
    assert rule_of(dictionary) is None
    with torch.no_grad():
        assert dictionary.encode_sparse(x).to_dense().equal(dictionary._encode_sparse(x).to_dense())


def test_gradients_need_the_dense_pass():
    dictionary, x = made("relu"), tokens()
    assert encode_fast(dictionary, x) is None
    codes = dictionary.encode_sparse(x)
    codes.values.sum().backward()
    assert dictionary.encoder_rows.grad.abs().sum() > 0


def test_small_batches_and_a_missing_threshold_are_dense(monkeypatch):
    dictionary, x = made("batch_topk"), tokens()
    with torch.no_grad():
        dictionary.threshold.fill_(float("nan"))
        assert encode_fast(dictionary, x) is None
        with pytest.raises(ValueError, match="no threshold yet"):
            dictionary.encode_sparse(x)
        monkeypatch.setattr(sparse_encoding, "WORTH_IT", B * D_IN * D_SAE + 1)
        assert encode_fast(made("topk"), x) is None
        assert encode_fast(made("topk"), torch.cat([x, x])) is not None


def test_where_too_many_fire_a_dense_pass_is_made(monkeypatch):
    monkeypatch.setattr(sparse_encoding, "_MOST_FIRINGS", 1e-3)
    with torch.no_grad():
        assert encode_fast(made("relu"), tokens()) is None
        dense = made("relu").encode(tokens())
        assert made("relu").encode_sparse(tokens()).to_dense().equal(dense)


def test_no_tokens_and_other_dtypes():
    with torch.no_grad():
        assert made("relu").encode_sparse(torch.zeros(0, D_IN)).values.shape == (0, 1)
        assert encode_fast(made("relu").bfloat16(), tokens()) is None
