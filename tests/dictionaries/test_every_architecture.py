"""What every registered architecture promises, whatever it computes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from safetensors.torch import load_file

from saescope.dictionaries import (
    BatchTopK,
    Dictionary,
    MatchingPursuit,
    TopK,
    architectures,
    load_dictionary,
    save_dictionary,
)

ALL = sorted(architectures())
TIED = ["matching_pursuit"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def test_there_are_thirteen_families_of_them():
    bases = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered", "group_max"]
    expected = {*bases, "matching_pursuit", "transcoder", "skip_transcoder"}
    for base in bases:
        expected |= {f"{base}_archetypal", f"{base}_crosscoder"}
        expected |= {f"{base}_transcoder", f"{base}_skip_transcoder"} if base != "relu" else set()
    assert set(ALL) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_the_round_trip_keeps_every_bit(make, tokens, tmp_path, name, dtype):
    dictionary = make(name, dtype=dtype)
    assert save_dictionary(dictionary, tmp_path / "d") == tmp_path / "d"
    opened = load_dictionary(tmp_path / "d")
    assert type(opened) is type(dictionary)
    assert opened.config == dictionary.config
    assert opened.settings() == dictionary.settings()
    assert not opened.training
    own, found = (dict(d.named_parameters()) | dict(d.named_buffers()) for d in (dictionary, opened))
    assert set(own) == set(found)
    for key, tensor in own.items():
        assert found[key].dtype == tensor.dtype, key
        assert found[key].equal(tensor), key
        assert found[key].is_contiguous(), key
        assert found[key].requires_grad == tensor.requires_grad, key
    x = tokens(20).to(dtype)
    f = dictionary.encode(x)
    assert f.any()
    assert opened.encode(x).equal(f)
    assert opened(x).equal(dictionary(x))
    assert opened(x).dtype == dtype
    codes = opened.encode_sparse(x)
    assert codes.to_dense().equal(dictionary.encode_sparse(x).to_dense())
    # and what was opened is written as the same bytes
    save_dictionary(opened, tmp_path / "again")
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "d" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "d" / "sae_weights.safetensors").values()} == {dtype}


@pytest.mark.parametrize("name", ALL)
def test_an_untrained_dictionary_is_opened_too(make, tmp_path, name):
    cls = type(make(name))
    dictionary = cls(make(name).config, seed=5)
    save_dictionary(dictionary, tmp_path / "d")
    opened = load_dictionary(tmp_path / "d")
    for key, tensor in (dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())).items():
        found = (dict(opened.named_parameters()) | dict(opened.named_buffers()))[key]
        torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ALL)
def test_what_was_opened_can_be_trained_on(make, tokens, tmp_path, name):
    save_dictionary(make(name), tmp_path / "d")
    dictionary = load_dictionary(tmp_path / "d").train()
    before = {key: parameter.detach().clone() for key, parameter in dictionary.named_parameters()}
    optimizer = torch.optim.SGD(dictionary.parameters(), lr=1e-2)
    dictionary(tokens(20)).square().sum().backward()
    optimizer.step()
    dictionary.constrain()
    dictionary.after_step(dictionary.encode(tokens(20)).detach())
    moved = {key for key, parameter in dictionary.named_parameters() if not parameter.equal(before[key])}
    assert {"b_dec"} <= moved
    assert moved & {"W_dec", "mixture"}
    assert dictionary(tokens(20)).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_sparse_codes_are_the_dense_ones_with_every_gradient(make, tokens, name):
    dictionary = make(name)
    x = tokens(9).requires_grad_()
    leaves = {"x": x, **dict(dictionary.named_parameters())}
    weights = torch.randn(9, dictionary.d_out, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    f = dictionary.encode(x)
    codes = dictionary.encode_sparse(x)
    # a pursuit adds what one atom got in several steps in another order
    torch.testing.assert_close(codes.to_dense(), f, rtol=1e-15 if name in TIED else 0, atol=0)
    x_hat, from_sparse = dictionary.decode(f, x), dictionary.decode(codes, x)
    torch.testing.assert_close(from_sparse, x_hat, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(dictionary(x), x_hat, rtol=0, atol=0)

    def gradients(f: torch.Tensor, x_hat: torch.Tensor) -> dict[str, torch.Tensor]:
        objective = (weights * x_hat).sum() + 0.3 * f.square().sum()
        found = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    dense, sparse = gradients(f, x_hat), gradients(codes.to_dense(), from_sparse)
    for leaf, gradient in dense.items():
        torch.testing.assert_close(sparse[leaf], gradient, rtol=1e-11, atol=1e-11, msg=leaf)

    found = codes.firings()
    triples = set(zip(found.token.tolist(), found.feature.tolist(), found.value.tolist(), strict=True))
    assert len(triples) == len(found.token) > 5
    assert {(b, i) for b, i, _ in triples} == {(b, i) for b in range(9) for i in range(10) if f[b, i] != 0}
    assert found.token.tolist() == sorted(found.token.tolist())
    assert not codes.indices[codes.values == 0].any()


@pytest.mark.parametrize("name", ALL)
def test_what_the_loss_sees(make, tokens, name):
    """Pre-activations and training's activations in one call; the same as at inference but where batches compete."""
    dictionary = make(name)
    x = tokens(9)
    pre, f = dictionary.encode_in_training(x)
    if name in TIED:
        assert pre is None
    else:
        assert pre.equal(dictionary.pre_activations(x))
        assert f.equal(dictionary.activate_in_training(pre))
    if isinstance(dictionary, BatchTopK):
        assert (f != 0).sum() == 3 * 9
        assert not f.equal(dictionary.encode(x))
    else:
        assert f.equal(dictionary.encode(x))
    if isinstance(dictionary, TopK | MatchingPursuit | BatchTopK):
        assert 0 < (dictionary.encode_in_training(x, 1)[1] != 0).sum() <= 9


@pytest.mark.parametrize("name", ALL)
def test_a_token_does_not_depend_on_its_neighbours(make, tokens, name):
    dictionary = make(name)
    x = tokens(64)
    whole, rebuilt = dictionary.train().encode(x), dictionary(x)
    dictionary.eval()
    for b in range(64):
        row = dictionary.encode(x[b : b + 1])
        assert (row[0] != 0).equal(whole[b] != 0)
        torch.testing.assert_close(row[0], whole[b], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(dictionary(x[b : b + 1])[0], rebuilt[b], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            dictionary.encode_sparse(x[b : b + 1]).to_dense()[0], whole[b], rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("name", ALL)
def test_any_number_of_leading_axes(make, tokens, name):
    dictionary = make(name)
    x = tokens(6).view(2, 3, 6)
    f = dictionary.encode(x)
    assert f.shape == (2, 3, 10)
    torch.testing.assert_close(f.flatten(0, 1), dictionary.encode(x.flatten(0, 1)), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dictionary(x).flatten(0, 1), dictionary(x.flatten(0, 1)), rtol=1e-12, atol=1e-12)
    assert dictionary.encode(x[0, 0]).shape == (10,)
    assert dictionary(x[0, 0]).shape == (dictionary.d_out,)
    torch.testing.assert_close(dictionary.encode(x[0, 0]), f[0, 0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_no_tokens_at_all(make, name):
    dictionary = make(name)
    x = torch.zeros(0, 6, dtype=torch.float64)
    codes = dictionary.encode_sparse(x)
    assert codes.to_dense().shape == (0, 10)
    assert dictionary.decode(codes, x).shape == dictionary(x).shape == (0, dictionary.d_out)
    assert len(codes.firings().value) == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [5, 7, 1])
def test_a_wrong_width_is_refused_with_both_widths(make, name, width):
    dictionary = make(name)
    for read in (dictionary.encode, dictionary.encode_sparse, dictionary):
        with pytest.raises(ValueError, match=rf"d_in = 6, got width {width}; .*hook point"):
            read(torch.zeros(2, width, dtype=torch.float64))


@pytest.mark.parametrize("name", ALL)
def test_a_new_dictionary_has_zero_biases_and_a_seed(make, name):
    dictionary, config = make(name), make(name).config
    cls = type(dictionary)
    fresh = cls(config, seed=0)
    assert not fresh.b_dec.any()
    assert fresh.b_enc is None or not fresh.b_enc.any()
    if name.endswith("crosscoder"):
        torch.testing.assert_close(fresh.W_dec.norm(dim=-1), torch.ones(10))
    else:
        torch.testing.assert_close(fresh.decoder_norms, torch.ones(10))
    if fresh.encoder_rows is not None:
        assert fresh.encoder_rows.data_ptr() != fresh.W_dec.data_ptr()
        assert "transcoder" in name or fresh.encoder_rows.allclose(fresh.W_dec)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert cls(config, seed=0).W_dec.equal(fresh.W_dec)
    assert torch.get_rng_state().equal(before)  # the caller's random numbers are left alone
    assert not cls(config, seed=1).W_dec.equal(fresh.W_dec)


@pytest.mark.parametrize("name", [name for name in ALL if "archetypal" not in name])
def test_rows_and_their_gradients_are_brought_to_the_sphere(make, tokens, name):
    dictionary = make(name)
    with torch.no_grad():
        dictionary.W_dec *= torch.linspace(0.2, 3, 10, dtype=torch.float64)[:, None]
    directions = torch.nn.functional.normalize(dictionary.W_dec, dim=-1).detach()
    dictionary(tokens()).square().sum().backward()
    dictionary.project_decoder_gradient()
    if not name.endswith("crosscoder"):
        assert float((dictionary.W_dec.grad * directions).sum(-1).abs().max()) < 1e-10
    assert dictionary.W_dec.grad.abs().max() > 0.1
    dictionary.normalise_decoder()
    torch.testing.assert_close(dictionary.decoder_norms.detach(), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(torch.nn.functional.normalize(dictionary.W_dec, dim=-1).detach(), directions)


def _most_firings(dictionary: Dictionary) -> int | None:
    """Of one token at inference, where the architecture promises a number."""
    if isinstance(dictionary, TopK | MatchingPursuit):
        return dictionary.config.k
    return None


@pytest.mark.parametrize("name", ALL)
@given(
    seed=st.integers(0, 10_000),
    d_in=st.integers(1, 7),
    d_sae=st.integers(1, 12),
    k=st.integers(1, 12),
    num_tokens=st.integers(1, 5),
    kind=st.sampled_from(["random", "zero", "constant", "centre", "huge", "tiny"]),
    level=st.sampled_from([0.0, -50.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@profile(max_examples=12)
def test_nothing_is_ever_nan_and_k_is_kept(make, tokens, name, seed, d_in, d_sae, k, num_tokens, kind, level, dtype):
    dictionary = make(
        name, seed=seed, d_in=d_in, d_sae=d_sae, **({"k": k} if "k" in _fields(name) else {}), dtype=dtype
    )
    with torch.no_grad():
        for bias in ("b_enc", "b_gate"):  # fewer positive pre-activations than k, or all
            if getattr(dictionary, bias, None) is not None:
                getattr(dictionary, bias).add_(level)
    x = {
        "random": tokens(num_tokens, d_in, seed=seed),
        "zero": torch.zeros(num_tokens, d_in),
        "constant": torch.full((num_tokens, d_in), 3.25),
        "centre": (dictionary.b_dec.detach() if dictionary.d_out == d_in else torch.ones(d_in)).expand(num_tokens, -1),
        "huge": tokens(num_tokens, d_in, seed=seed, scale=1e15),
        "tiny": tokens(num_tokens, d_in, seed=seed, scale=1e-30),
    }[kind].to(dtype).clone().requires_grad_()  # fmt: skip
    f = dictionary.encode(x)
    assert f.shape == (num_tokens, d_sae)
    assert f.isfinite().all()
    if "abs_topk" not in name:
        assert (f >= 0).all()
    codes = dictionary.encode_sparse(x)
    torch.testing.assert_close(codes.to_dense(), f, rtol=1e-6, atol=0)
    most = _most_firings(dictionary)
    if most is not None:
        assert ((f != 0).sum(-1) <= most).all()
    if "abs_topk" in name and kind == "random":
        assert ((f != 0).sum(-1) == min(k, d_sae)).all()

    pre = None if name in TIED else dictionary.pre_activations(x)
    trained = f if pre is None else dictionary.activate_in_training(pre)
    if isinstance(dictionary, BatchTopK):
        positive = int((pre > 0).sum())
        assert int((trained > 0).sum()) == min(positive, int(dictionary.config.k * num_tokens))
    x_hat = dictionary.decode(trained, x)
    assert x_hat.shape == (num_tokens, dictionary.d_out)
    assert x_hat.isfinite().all()
    x_hat.sum().backward()
    for leaf, tensor in {"x": x, **dict(dictionary.named_parameters())}.items():
        assert tensor.grad is None or tensor.grad.isfinite().all(), leaf


def _fields(name: str) -> set[str]:
    return set(architectures()[name].Config.__dataclass_fields__)


@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_a_dictionary_of_its_own(make, tokens, name):
    dictionary = make(name)
    other = copy.deepcopy(dictionary)
    with torch.no_grad():
        other.b_dec.add_(1)
        next(iter(other.parameters())).mul_(2)
    assert not other(tokens()).equal(dictionary(tokens()))
    assert make(name)(tokens()).equal(dictionary(tokens()))


@pytest.mark.parametrize("name", ALL)
def test_the_config_is_json_and_back(make, name):
    dictionary = make(name)
    settings = json.loads(json.dumps(dictionary.settings()))
    assert type(dictionary).Config(**settings) == dictionary.config


@pytest.mark.parametrize("name", ALL)
def test_state_dicts_go_from_one_to_another(make, tokens, name):
    dictionary, other = make(name, seed=1), make(name, seed=2)
    assert not other(tokens()).equal(dictionary(tokens()))
    other.load_state_dict(dictionary.state_dict())
    assert other(tokens()).equal(dictionary(tokens()))
