"""c_dec and s_n: equal to plain loops in float64, known on fixed matrices, the same for any pieces of the activations."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saescope.dictionaries import TopK, transcoder
from saescope.dictionaries.normalization import LayerNorm, Whitening
from saescope.dictionaries.topk import TopKConfig
from saescope.evaluation.l0.measures import ProjectionMeter, decoder_overlap, default_ns


def dictionary(rows: torch.Tensor, b_dec: torch.Tensor | None = None) -> TopK:
    """A dictionary with these decoder rows, an encoder that has nothing to do with them, and biases."""
    found = TopK(TopKConfig(d_in=rows.shape[1], d_sae=len(rows), k=1), seed=3)
    with torch.no_grad():
        found.W_dec.data = rows.float()
        found.b_enc.fill_(0.7)
        if b_dec is not None:
            found.b_dec.copy_(b_dec)
    return found


def overlap_by_hand(rows: torch.Tensor) -> float:
    """Plain loops over pairs of rows that have a direction."""
    lists = [row for row in rows.double().tolist() if any(row)]
    cosines = []
    for a, b in combinations(lists, 2):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        cosines.append(abs(dot) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))
    return sum(cosines) / len(cosines)


def s_by_hand(x: torch.Tensor, rows: torch.Tensor, b_dec: torch.Tensor, n: float, batch: int) -> float:
    """Every projection of every whole batch in a plain sorted list."""
    units = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows.double().tolist() if any(row)]
    found = []
    for first in range(0, max(1, len(x) - batch + 1), batch):
        tokens = x[first : first + batch].double().tolist()
        values = []
        for token in tokens:
            shifted = [v - b for v, b in zip(token, b_dec.double().tolist(), strict=True)]
            values += [sum(a * b for a, b in zip(shifted, unit, strict=True)) for unit in units]
        found.append(sorted(values, reverse=True)[int(n * len(tokens))])
    return sum(found) / len(found)


def s_of(found: TopK, x: torch.Tensor, ns: list[float], batch: int) -> list[float]:
    meter = ProjectionMeter(found, ns, batch_size_tokens=batch)
    meter.update(x)
    return list(meter.result().values())


def random_rows(num_rows: int, d: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different norms."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, d, generator=generator) * torch.rand(num_rows, 1, generator=generator).mul(9).exp()


@given(st.integers(2, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_overlap_is_that_of_plain_loops_for_any_block(num_rows, d, block_size, seed):
    rows = random_rows(num_rows, d, seed)
    found = decoder_overlap(rows, block_size=block_size)
    assert found.c_dec == pytest.approx(overlap_by_hand(rows), abs=1e-12)
    assert found.num_left_out == 0


def test_overlap_of_fixed_matrices():
    assert decoder_overlap(torch.eye(5)).c_dec == 0
    assert decoder_overlap(5 * torch.eye(5)[[0, 1, 2, 2]]).c_dec == pytest.approx(1 / 6)  # one pair of six is the same
    assert decoder_overlap(torch.tensor([[1.0, 0], [-2, 0]])).c_dec == 1  # the sign plays no part
    assert decoder_overlap(torch.tensor([[1.0, 0], [3, 3]])).c_dec == pytest.approx(math.sqrt(0.5))


def test_overlap_of_unnormalised_rows_is_another_number():
    """What comes out where norms are forgotten, or where cosines keep their signs."""
    rows = torch.tensor([[1.0, 0], [3, 3], [-2, 1]])
    products = rows @ rows.T
    right = decoder_overlap(rows).c_dec
    forgotten = float((products.abs().sum() - products.diagonal().sum()) / 6)
    units = rows / rows.norm(dim=-1, keepdim=True)
    signed = float(((units @ units.T).sum() - 3) / 6)
    assert right == pytest.approx(overlap_by_hand(rows), abs=1e-12)
    assert abs(right - forgotten) > 0.5
    assert abs(right - signed) > 0.2


def test_rows_of_zeros_are_left_out_and_counted():
    rows = random_rows(6, 4)
    with_zeros = torch.cat([torch.zeros(1, 4), rows, torch.zeros(2, 4)])
    found = decoder_overlap(with_zeros, block_size=2)
    assert found.c_dec == pytest.approx(overlap_by_hand(rows), abs=1e-12)
    assert found.num_left_out == 3
    assert decoder_overlap(torch.tensor([[1.0, 0], [0, 0]])).c_dec is None
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    assert s_of(dictionary(with_zeros), x, [2], 7) == pytest.approx(s_of(dictionary(rows), x, [2], 7), abs=1e-12)


def test_damaged_rows_are_refused():
    rows = torch.eye(3)
    rows[1, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        decoder_overlap(rows)
    with pytest.raises(ValueError, match="must be a matrix"):
        decoder_overlap(torch.ones(3))
    meter = ProjectionMeter(dictionary(torch.eye(3)), [1], batch_size_tokens=2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        meter.update(torch.full((2, 3), float("inf")))


@given(st.integers(2, 7), st.integers(1, 5), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_projections_are_those_of_plain_loops(num_rows, d, num_tokens, batch, seed):
    rows, generator = random_rows(num_rows, d, seed), torch.Generator().manual_seed(seed)
    x, b_dec = torch.randn(num_tokens, d, generator=generator), torch.randn(d, generator=generator)
    ns = [0.5, 1, num_rows - 0.5]
    found = s_of(dictionary(rows, b_dec), x, ns, batch)
    size = min(batch, num_tokens)
    expected = [s_by_hand(x, rows.float(), b_dec, n, size) for n in sorted(set(ns))]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)  # projections are kept in float32


def test_projections_of_a_true_dictionary():
    """Orthonormal rows, two of them on in every token: beyond n = 2 there is nothing."""
    x = torch.zeros(8, 6)
    for token in range(8):
        x[token, token % 6] = 3.0
        x[token, (token + 1) % 6] = 2.0
    assert s_of(dictionary(torch.eye(6)), x, [0.5, 1.5, 2, 3], 8) == [3, 2, 0, 0]
    # a ninth of the way: place 0 is the largest of all
    assert s_of(dictionary(torch.eye(6)), x, [0.01], 8) == [3]


def test_projections_are_neither_activations_nor_of_long_rows():
    """Wrong in the two ways that are easily taken: encoder outputs, and rows with their norms."""
    rows = random_rows(8, 4, 5)
    x, b_dec = torch.randn(16, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = dictionary(rows, b_dec)
    (right,) = s_of(found, x, [6], 16)
    with torch.no_grad():
        activations = found.pre_activations(x).relu().flatten().sort(descending=True).values[6 * 16]
        long = ((x - b_dec) @ found.W_dec.T).flatten().sort(descending=True).values[6 * 16]
        uncentred = s_of(dictionary(rows), x, [6], 16)[0]
    assert right == pytest.approx(s_by_hand(x, rows, b_dec, 6, 16), abs=1e-6)
    assert right < -0.1  # a ReLU would have made it 0
    for wrong in (float(activations), float(long), uncentred):
        assert abs(right - wrong) > 0.05


def test_pieces_of_the_activations_do_not_matter_and_batches_do():
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 50)[:, None]
    found = dictionary(random_rows(9, 5))
    whole = s_of(found, x, [2, 4], 16)
    for pieces in ([1] * 50, [7, 13, 30], [33, 17], [16, 16, 16, 2]):
        meter = ProjectionMeter(found, [4, 2], batch_size_tokens=16)
        for piece in x.split(pieces):
            meter.update(piece)
        assert list(meter.result()) == [2, 4]
        assert list(meter.result().values()) == whole
        assert (len(meter.batches), meter.num_tokens) == (3, 48)  # two tokens fill no batch
    assert s_of(found, x[:48], [2, 4], 16) == whole
    assert s_of(found, x, [2, 4], 25) != pytest.approx(whole, rel=1e-3)
    # fewer than one batch: all of them are one
    assert s_of(found, x, [2, 4], 1000) == s_of(found, x, [2, 4], 50)


def test_normalised_inputs_are_projected_as_the_dictionary_sees_them():
    rows, x = random_rows(6, 4), torch.randn(10, 4, generator=torch.Generator().manual_seed(4)) * 5 + 2
    found = dictionary(rows, torch.full((4,), 0.1))
    found.input_normalization = LayerNorm()
    seen = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    assert s_of(found, x, [2], 10)[0] == pytest.approx(s_by_hand(seen, rows, found.b_dec.detach(), 2, 10), abs=1e-5)
    mean, matrix = torch.arange(4.0), torch.diag(torch.tensor([1.0, 2, 3, 4]))
    found.input_normalization = Whitening(mean, matrix, matrix.inverse())
    seen = (x - mean) @ matrix
    assert s_of(found, x, [2], 10)[0] == pytest.approx(s_by_hand(seen, rows, found.b_dec.detach(), 2, 10), rel=1e-5)


def test_a_transcoder_is_projected_where_it_writes():
    generator = torch.Generator().manual_seed(0)
    cls = transcoder(TopK, skip=True)
    found = cls(cls.Config(d_in=3, d_out=5, d_sae=7, k=2), seed=0)
    with torch.no_grad():
        found.W_skip.copy_(torch.randn(5, 3, generator=generator))
        found.b_dec.copy_(torch.randn(5, generator=generator))
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 5, generator=generator)
    meter = ProjectionMeter(found, [3], batch_size_tokens=12)
    with pytest.raises(ValueError, match="rebuilds another activation"):
        meter.update(x)
    meter.update(x, y)
    left = (y - x @ found.W_skip.T).detach()
    expected = s_by_hand(left, found.W_dec.detach(), found.b_dec.detach(), 3, 12)
    assert meter.result()[3] == pytest.approx(expected, abs=1e-6)


def test_what_can_not_be_measured_is_refused():
    found = dictionary(torch.eye(4))
    for n in (0, 4, -1):
        with pytest.raises(ValueError, match=f"below the 4 rows of the decoder, got {n}"):
            ProjectionMeter(found, [2, n])
    with pytest.raises(ValueError, match="got none"):
        ProjectionMeter(found, [])
    with pytest.raises(ValueError, match="at most 268,435,456 tokens"):
        ProjectionMeter(found, [1], batch_size_tokens=1 << 29)
    with pytest.raises(ValueError, match="there are none"):
        ProjectionMeter(found, [1]).result()
    with pytest.raises(ValueError, match="width 4, got width 3"):
        ProjectionMeter(found, [1]).update(torch.ones(2, 3))


@given(st.floats(0.1, 3000), st.integers(2, 1 << 16))
def test_default_ns_lie_above_the_l0_and_not_above_half(l0, d_sae):
    ns = default_ns(l0, d_sae)
    assert bool(ns) == (l0 < d_sae // 2)
    assert list(ns) == sorted(set(ns))
    assert all(l0 < n <= d_sae // 2 for n in ns)


def test_default_ns_of_a_usual_dictionary():
    # 128 * 8^(1/4), 8^(1/2), 8^(3/4), each rounded and one more
    assert default_ns(128, 2048) == (216, 363, 610)
    assert default_ns(24, 50) == (25,)
    assert default_ns(25, 50) == ()
    assert np.isfinite(default_ns(1, 4)).all()
