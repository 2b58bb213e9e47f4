"""What each architecture computes, against explicit loops in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig


def _relu(d_in: int = 5, d_sae: int = 9) -> ReLU:
    return ReLU(DictionaryConfig(d_in=d_in, d_sae=d_sae))


def _topk(d_in: int = 5, d_sae: int = 9, k: int = 3) -> TopK:
    return TopK(TopKConfig(d_in=d_in, d_sae=d_sae, k=k))


def _randomised(dictionary: Dictionary, seed: int = 0) -> Dictionary:
    """All four parameters random, in float64: unequal norms, encoder unlike decoder."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = dictionary.double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dictionary


def _pre_by_loops(dictionary: Dictionary, x: torch.Tensor) -> list[list[float]]:
    W_enc, b_enc, b_dec = dictionary.W_enc.tolist(), dictionary.b_enc.tolist(), dictionary.b_dec.tolist()
    return [
        [
            sum((token[j] - b_dec[j]) * W_enc[j][i] for j in range(dictionary.d_in)) + b_enc[i]
            for i in range(dictionary.d_sae)
        ]
        for token in x.tolist()
    ]


def _decoded_by_loops(dictionary: Dictionary, f: list[list[float]]) -> list[list[float]]:
    W_dec, b_dec = dictionary.W_dec.tolist(), dictionary.b_dec.tolist()
    return [
        [sum(token[i] * W_dec[i][j] for i in range(dictionary.d_sae)) + b_dec[j] for j in range(dictionary.d_in)]
        for token in f
    ]


def _topk_by_loops(pre: list[list[float]], k: int) -> list[list[float]]:
    f = []
    for token in pre:
        strongest = sorted(range(len(token)), key=lambda i: -token[i])[:k]
        f.append([token[i] if i in strongest and token[i] > 0 else 0.0 for i in range(len(token))])
    return f


def _assert_close(found: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_relu_equals_its_loops(seed):
    dictionary = _randomised(_relu(), seed)
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    f = [[max(value, 0.0) for value in token] for token in _pre_by_loops(dictionary, x)]
    _assert_close(dictionary.encode(x), f)
    _assert_close(dictionary.decode(dictionary.encode(x)), _decoded_by_loops(dictionary, f))
    _assert_close(dictionary(x), _decoded_by_loops(dictionary, f))


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_topk_equals_its_loops(seed, k):
    dictionary = _randomised(_topk(k=k), seed)
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    f = _topk_by_loops(_pre_by_loops(dictionary, x), k)
    _assert_close(dictionary.encode(x), f)
    _assert_close(dictionary.decode(dictionary.encode(x)), _decoded_by_loops(dictionary, f))
    _assert_close(dictionary(x), _decoded_by_loops(dictionary, f))


def test_topk_with_k_of_all_features_is_relu():
    topk = _randomised(_topk(k=9), seed=4)
    relu = _randomised(_relu(), seed=4)
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert topk.encode(x).equal(relu.encode(x))


def test_topk_chooses_k_of_tied_features():
    f = _topk(d_sae=6, k=2).activate(torch.tensor([[1.0, 1.0, 1.0, 0.5, 1.0, -1.0], [2.0, 1.0, 1.0, 1.0, 0.0, 0.0]]))
    assert f[0].sort().values.tolist() == [0, 0, 0, 0, 1, 1]
    assert f[0, [3, 5]].tolist() == [0, 0]
    assert f[1, 0] == 2
    assert f[1].sort().values.tolist() == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("make", [_relu, _topk])
def test_a_feature_fires_only_above_zero(make):
    dictionary = make(d_sae=4)
    pre = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-0.0, -0.0, 0.0, -1.0], [-1.0, 7.0, -0.0, -2.0]])
    f = dictionary.activate(pre)
    assert (f > 0).tolist() == [[False] * 4, [False] * 4, [False, True, False, False]]  # fewer positives than k = 3
    assert f.tolist() == [[0] * 4, [0] * 4, [0, 7, 0, 0]]


@pytest.mark.parametrize("make", [_relu, _topk])
def test_selected_features_with_nothing_to_say_get_no_gradient(make):
    pre = torch.tensor([[-1.0, 2.0, -0.5, -3.0]], requires_grad=True)
    make(d_sae=4).activate(pre).sum().backward()
    assert pre.grad.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("make", [_relu, _topk])
def test_any_number_of_leading_axes(make):
    dictionary = _randomised(make())
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    f = dictionary.encode(x)
    assert f.shape == (2, 3, 9)
    torch.testing.assert_close(f.flatten(0, 1), dictionary.encode(x.flatten(0, 1)))
    torch.testing.assert_close(dictionary(x).flatten(0, 1), dictionary(x.flatten(0, 1)))
    assert dictionary.encode(x[0, 0]).shape == (9,)


@pytest.mark.parametrize("make", [_relu, _topk])
def test_a_token_does_not_depend_on_its_neighbours(make):
    dictionary = _randomised(make())
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = dictionary.train().encode(x)
    for i in range(8):
        torch.testing.assert_close(dictionary.eval().encode(x[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("make", [_relu, _topk])
def test_a_new_dictionary_has_unit_rows_tied_encoder_and_a_seed(make):
    dictionary = make(d_in=6, d_sae=40)
    torch.testing.assert_close(dictionary.decoder_norms, torch.ones(40))
    assert dictionary.encoder_rows.equal(dictionary.W_dec)
    assert dictionary.encoder_rows.data_ptr() != dictionary.W_dec.data_ptr()
    assert not dictionary.b_enc.any()
    assert not dictionary.b_dec.any()
    config, cls = dictionary.config, type(dictionary)
    assert cls(config, seed=0).W_dec.equal(dictionary.W_dec)
    assert not cls(config, seed=1).W_dec.equal(dictionary.W_dec)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert cls(config, seed=0).W_dec.equal(dictionary.W_dec)
    assert torch.get_rng_state().equal(before)  # the caller's random numbers are left alone


def test_W_enc_is_the_encoder_rows_transposed_and_shares_their_memory():
    dictionary = _relu()
    assert dictionary.W_enc.shape == (5, 9)
    assert dictionary.W_enc.data_ptr() == dictionary.encoder_rows.data_ptr()
    with torch.no_grad():
        dictionary.encoder_rows[7, 2] = 42
    assert dictionary.W_enc[2, 7] == 42
    assert {name for name, _ in dictionary.named_parameters()} == {"encoder_rows", "W_dec", "b_enc", "b_dec"}


@pytest.mark.parametrize("make", [_relu, _topk])
@pytest.mark.parametrize("width", [4, 6, 1])
def test_a_wrong_width_is_refused_with_both_widths(make, width):
    dictionary = make()
    for read in (dictionary.encode, dictionary.encode_sparse, dictionary):
        with pytest.raises(ValueError, match=rf"d_in = 5, got width {width}; .*hook point"):
            read(torch.zeros(2, width))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_in": 0, "d_sae": 4, "k": 1}, "d_in must be .*at least 1, got 0"),
        ({"d_in": 4, "d_sae": -2, "k": 1}, "d_sae must be .*at least 1, got -2"),
        ({"d_in": 4, "d_sae": 8.0, "k": 1}, r"d_sae must be a whole number .*got 8\.0"),
        ({"d_in": "4", "d_sae": 8, "k": 1}, "d_in must be a whole number .*got '4'"),
        ({"d_in": None, "d_sae": 8, "k": 1}, "d_in must be a whole number .*got None"),
        ({"d_in": 4, "d_sae": 8, "k": 0}, "k must be .*between 1 and d_sae = 8, got 0"),
        ({"d_in": 4, "d_sae": 8, "k": 9}, "k must be .*between 1 and d_sae = 8, got 9"),
        ({"d_in": 4, "d_sae": 8, "k": 2.0}, r"k must be a whole number .*got 2\.0"),
    ],
)
def test_impossible_sizes_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TopKConfig(**settings)
