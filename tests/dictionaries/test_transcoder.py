"""Transcoders: from one hook point to another, with and without a skip connection, around any encoder."""

from __future__ import annotations

import pytest
import torch

from saescope.dictionaries import MatchingPursuit, Transcoder, architecture, architectures, transcoder

HOSTS = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered"]


def _name(host: str, skip: bool) -> str:
    kind = "skip_transcoder" if skip else "transcoder"
    return kind if host == "relu" else f"{host}_{kind}"


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("d_out", [5, 6])
def test_the_formula(make, tokens, host, skip, d_out):
    """The encoder is the host's on an input that nothing is taken off; the output is f W_dec + b_dec (+ x W_skip^T)."""
    dictionary = make(_name(host, skip), d_out=d_out)
    assert architecture(_name(host, skip)) is type(dictionary)
    assert isinstance(dictionary, Transcoder)
    assert isinstance(dictionary, architectures()[host])
    x = tokens()
    plain = make(host, apply_b_dec_to_input=False)
    own = dict(plain.named_parameters()) | dict(plain.named_buffers())
    theirs = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
    with torch.no_grad():
        for name in set(own) - {"W_dec", "b_dec"}:
            own[name].copy_(theirs[name])
    f = dictionary.encode(x)
    assert f.equal(plain.encode(x))
    assert (f != 0).any()
    assert dictionary.W_dec.shape == (10, d_out)
    assert dictionary.b_dec.shape == (d_out,)

    expected = torch.zeros(7, d_out, dtype=torch.float64)
    for b in range(7):
        for j in range(d_out):
            expected[b, j] = (
                dictionary.b_dec[j].detach() + sum(f[b, i] * dictionary.W_dec[i, j] for i in range(10)).detach()
            )
            if skip:
                expected[b, j] += sum(x[b, i] * dictionary.W_skip[j, i].detach() for i in range(6))
    torch.testing.assert_close(dictionary(x).detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary.decode(f, x), dictionary(x), rtol=0, atol=0)
    torch.testing.assert_close(dictionary.decode(dictionary.encode_sparse(x), x), dictionary(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("host", ["relu", "topk"])
def test_a_skip_connection_needs_the_input(make, tokens, host):
    dictionary = make(_name(host, True))
    f = dictionary.encode(tokens())
    for codes in (f, dictionary.encode_sparse(tokens())):
        with pytest.raises(ValueError, match=r"skip connection needs the input again: decode\(f, x\)"):
            dictionary.decode(codes)
    assert make(_name(host, False)).decode(f).shape == (7, 5)  # without one it is not asked for


def test_a_skip_connection_begins_at_nothing_and_learns(make, tokens):
    cls = architecture("skip_transcoder")
    dictionary = cls(cls.Config(d_in=6, d_sae=10, d_out=5)).double()
    assert dictionary.W_skip.shape == (5, 6)
    assert not dictionary.W_skip.any()
    weights = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (weights * dictionary(tokens())).sum().backward()
    torch.testing.assert_close(dictionary.W_skip.grad, weights.T @ tokens())


@pytest.mark.parametrize("name", ["transcoder", "topk_skip_transcoder"])
def test_a_new_transcoder_has_unit_rows_on_both_sides_that_are_not_tied(name):
    cls = architecture(name)
    dictionary = cls(cls.Config(d_in=6, d_sae=10, d_out=6, **({"k": 2} if "topk" in name else {})))
    for rows in (dictionary.encoder_rows, dictionary.W_dec):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(10))
    assert (dictionary.encoder_rows * dictionary.W_dec).sum(-1).abs().mean() < 0.8
    again = cls(dictionary.config, seed=0)
    assert again.encoder_rows.equal(dictionary.encoder_rows)
    assert not cls(dictionary.config, seed=1).encoder_rows.equal(dictionary.encoder_rows)


def test_the_output_bias_is_never_taken_off_the_input():
    config = architecture("transcoder").Config
    assert config(d_in=4, d_sae=8, d_out=4).apply_b_dec_to_input is False
    with pytest.raises(ValueError, match=r"b_dec of a transcoder belongs to its output"):
        config(d_in=4, d_sae=8, d_out=4, apply_b_dec_to_input=True)
    for d_out in (0, 2.0, None):
        with pytest.raises(ValueError, match="d_out must be a whole number of at least 1, got"):
            config(d_in=4, d_sae=8, d_out=d_out)
    with pytest.raises(ValueError, match=r"k must be .*d_sae = 8, got 9"):
        architecture("topk_transcoder").Config(d_in=4, d_sae=8, d_out=4, k=9)


def test_an_encoder_that_is_its_decoder_can_not_write_elsewhere():
    for skip in (False, True):
        with pytest.raises(ValueError, match="encoder of matching_pursuit is its decoder"):
            transcoder(MatchingPursuit, skip=skip)


@pytest.mark.parametrize("skip", [False, True])
def test_a_strangers_architecture_takes_the_form(make, tokens, stranger, own_registry, skip):
    cls = transcoder(stranger, skip=skip)
    dictionary = make(cls, shift=0.5)
    assert cls.architecture == ("shifted_skip_transcoder" if skip else "shifted_transcoder")
    assert cls.saelens_name == f"saescope/{cls.architecture}"
    assert transcoder(stranger, skip=skip) is cls
    x = tokens()
    f = (x @ dictionary.encoder_rows.T + dictionary.b_enc - 0.5).clamp(min=0)
    y_hat = f @ dictionary.W_dec + dictionary.b_dec + (x @ dictionary.W_skip.T if skip else 0)
    torch.testing.assert_close(dictionary.encode(x), f)
    torch.testing.assert_close(dictionary(x), y_hat)


def test_a_host_that_was_defined_again_gets_a_class_of_its_own(stranger, own_registry):
    from saescope.dictionaries import register

    first = transcoder(stranger)
    again = register("shifted")(type(stranger.__name__, stranger.__bases__, {"__module__": stranger.__module__}))
    second = transcoder(again)
    assert issubclass(second, again)
    assert not issubclass(first, again)
    assert architecture("shifted_transcoder") is second
