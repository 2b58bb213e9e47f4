"""Nearest rows and numbers of rows against dense computations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saescope.analysis.neighbours import nearest_rows, row_numbers
from saescope.dictionaries import ReLU, TopK, architecture


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_cosines(rows):
    rows = rows.double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (rows @ rows.T) / np.outer(norms, norms)
    cosines[norms == 0], cosines[:, norms == 0] = np.nan, np.nan
    np.fill_diagonal(cosines, np.nan)
    return cosines


def brute_force(rows, num):
    """Indices and cosines of every row's nearest, from the whole matrix of cosines."""
    cosines = all_cosines(rows)
    order = np.argsort(-np.nan_to_num(cosines, nan=-np.inf), axis=1, kind="stable")[:, :num]
    found = np.take_along_axis(cosines, order, 1)
    order = np.where(np.isnan(found), -1, order)
    room = [(0, 0), (0, num - order.shape[1])]
    return np.pad(order, room, constant_values=-1), np.pad(found, room, constant_values=np.nan)


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_rows_are_those_of_the_whole_matrix_of_cosines(dtype, chunk_rows):
    rows = (normal(120, 24) * normal(120, 1, seed=1).exp()).to(dtype)
    near = nearest_rows(rows, 9, chunk_rows=chunk_rows)
    indices, cosines = brute_force(rows, 9)
    np.testing.assert_array_equal(near.indices, indices)
    np.testing.assert_allclose(near.cosines, cosines, atol=1e-14)


def test_bfloat16_rows_are_taken_as_they_are():
    rows = normal(40, 8).bfloat16()
    near = nearest_rows(rows, 3)
    np.testing.assert_allclose(near.cosines, brute_force(rows, 3)[1], atol=1e-14)


def test_rows_that_float32_can_not_tell_apart_are_in_the_order_of_float64():
    """Twelve rows at angles to the first that differ by 1e-8: their cosines agree to 1e-9."""
    angles = 0.1 + 1e-8 * torch.tensor([5, 3, 11, 1, 9, 2, 7, 4, 10, 6, 8, 0], dtype=torch.float64)
    rows = torch.stack(
        [torch.cat([torch.zeros(1).double(), angles]).cos(), torch.cat([torch.zeros(1).double(), angles]).sin()], 1
    )
    near = nearest_rows(rows, 5)
    assert near.indices[0].tolist() == [12, 4, 6, 2, 8]
    assert (np.diff(near.cosines[0]) < 0).all()


def test_equal_rows_are_in_the_order_of_their_index():
    few = normal(4, 16)
    rows = few[torch.tensor([0, 1, 0, 2, 1, 0, 3, 0])]
    near = nearest_rows(rows, 3, chunk_rows=3)
    assert near.indices[0].tolist() == [2, 5, 7]
    assert near.indices[5].tolist() == [0, 2, 7]
    assert near.indices[4][0] == 1
    np.testing.assert_allclose(near.cosines[[0, 2, 5, 7]], 1, atol=1e-15)


def test_a_row_of_zeros_has_no_neighbours_and_is_nobodys():
    rows = torch.tensor([[1.0, 0], [0, 0], [-1, 0], [0, 1]])
    near = nearest_rows(rows, 3)
    assert near.indices.tolist() == [[3, 2, -1], [-1, -1, -1], [3, 0, -1], [0, 2, -1]]
    np.testing.assert_array_equal(
        near.cosines, [[0, -1, np.nan], [np.nan] * 3, [0, -1, np.nan], [0, 0, np.nan]]
    )  # negative cosines come last, ahead of none
    many = normal(60, 5)
    many[[0, 41]] = 0
    near = nearest_rows(many, 4, chunk_rows=25)
    assert (near.indices[[0, 41]] == -1).all()
    np.testing.assert_array_equal(near.indices, brute_force(many, 4)[0])


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_few_rows_have_few_neighbours(num_rows):
    near = nearest_rows(normal(num_rows, 3), 4)
    assert near.indices.shape == near.cosines.shape == (num_rows, 4)
    assert (near.indices >= 0).sum() == (2 if num_rows == 2 else 0)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.integers(-3, 3)),
    st.integers(1, 8),
    st.integers(1, 10),
)
def test_any_rows(rows, num, chunk_rows):
    """Small whole numbers: many equal rows, parallel rows, rows of zeros."""
    rows = torch.from_numpy(rows)
    near = nearest_rows(rows, num, chunk_rows=chunk_rows)
    cosines = all_cosines(rows)
    np.testing.assert_allclose(near.cosines, brute_force(rows, num)[1], atol=1e-14)  # the best there are
    for i, (found, values) in enumerate(zip(near.indices, near.cosines, strict=True)):
        found, values = found[found >= 0], values[found >= 0]
        assert len(set(found.tolist())) == len(found)
        np.testing.assert_allclose(cosines[i, found], values, atol=1e-14)  # and they are what they are called
        assert all(a < b for a, b, tie in zip(found[:-1], found[1:], values[:-1] == values[1:], strict=True) if tie)


@pytest.mark.parametrize(
    ("rows", "num", "words"),
    [
        (torch.tensor([[1.0], [torch.inf]]), 1, "row 1 holds NaN or infinity"),
        (torch.ones(3), 1, "expected a matrix"),
        (torch.ones(3, 2), 0, "at least 1"),
    ],
)
def test_rows_without_a_direction_are_refused(rows, num, words):
    with pytest.raises(ValueError, match=words):
        nearest_rows(rows, num)


def made(cls, **config):
    dictionary = cls(cls.Config(**config))
    with torch.no_grad():
        for number, parameter in enumerate(dictionary.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=number + 1))
    return dictionary


def test_numbers_of_rows_equal_those_written_out():
    dictionary = made(TopK, d_in=8, d_sae=20, k=3)
    decoder = dictionary.W_dec.detach().double().numpy()
    encoder = dictionary.W_enc.detach().double().numpy().T
    numbers = row_numbers(dictionary)
    np.testing.assert_allclose(numbers.decoder_norm, np.sqrt((decoder**2).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(numbers.encoder_norm, np.sqrt((encoder**2).sum(1)), rtol=1e-12)
    np.testing.assert_array_equal(numbers.encoder_bias, dictionary.b_enc.detach().double().numpy())
    expected = [d @ e / np.linalg.norm(d) / np.linalg.norm(e) for d, e in zip(decoder, encoder, strict=True)]
    np.testing.assert_allclose(numbers.encoder_decoder_cosine, expected, rtol=1e-12)
    assert numbers.source_norms is None


def test_a_row_of_zeros_has_no_cosine():
    dictionary = made(ReLU, d_in=4, d_sae=3)
    with torch.no_grad():
        dictionary.W_dec[1] = 0
    numbers = row_numbers(dictionary)
    assert np.isnan(numbers.encoder_decoder_cosine).tolist() == [False, True, False]
    assert numbers.decoder_norm[1] == 0


def test_an_encoder_that_is_the_decoder_without_a_bias():
    numbers = row_numbers(made(architecture("matching_pursuit"), d_in=6, d_sae=10, k=2))
    assert numbers.encoder_bias is None
    np.testing.assert_allclose(numbers.encoder_decoder_cosine, 1, rtol=1e-12)
    np.testing.assert_array_equal(numbers.encoder_norm, numbers.decoder_norm)


def test_the_encoder_of_a_gated_dictionary_has_no_one_bias():
    assert row_numbers(made(architecture("gated"), d_in=6, d_sae=10)).encoder_bias is None


def test_rows_of_different_widths_have_no_cosine():
    from saescope.dictionaries import transcoder

    dictionary = made(transcoder(TopK), d_in=6, d_out=9, d_sae=10, k=2)
    numbers = row_numbers(dictionary)
    assert numbers.encoder_decoder_cosine is None
    np.testing.assert_allclose(numbers.decoder_norm, dictionary.W_dec.detach().norm(dim=1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(numbers.encoder_norm, dictionary.W_enc.detach().norm(dim=0).numpy(), rtol=1e-6)


def test_a_crosscoder_has_a_norm_in_every_source():
    from saescope.dictionaries import crosscoder

    dictionary = made(crosscoder(TopK), d_in=9, source_widths=(2, 4, 3), d_sae=10, k=2)
    numbers = row_numbers(dictionary)
    decoder = dictionary.W_dec.detach().double().numpy()
    expected = [np.linalg.norm(part, axis=1) for part in (decoder[:, :2], decoder[:, 2:6], decoder[:, 6:])]
    np.testing.assert_allclose(numbers.source_norms, np.stack(expected, 1), rtol=1e-12)
    np.testing.assert_allclose(numbers.decoder_norm, sum(expected), rtol=1e-12)
    np.testing.assert_allclose(numbers.decoder_norm, dictionary.decoder_norms.detach().numpy(), rtol=1e-6)
    assert numbers.encoder_decoder_cosine is not None
