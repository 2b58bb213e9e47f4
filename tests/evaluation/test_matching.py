"""Neighbours and assignments between two dictionaries, against plain loops over all pairs."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.evaluation.matching.nearest import Neighbours, neighbours_above, pair_cosines, top_neighbours
from saescope.evaluation.matching.one_to_one import assign, hungarian, one_to_one


def random_rows(num: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(num, d, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().tolist(), b.double().tolist()
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def all_cosines(rows: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return np.array([[cosine(a, b) for b in others] for a in rows])


def brute_force(rows: torch.Tensor, others: torch.Tensor, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest by sorting; cosines that agree to 13 digits are taken for equal."""
    found = all_cosines(rows, others)
    order = [sorted(range(len(others)), key=lambda j, row=row: (-round(row[j], 13), j))[:num] for row in found]
    return np.array(order), np.take_along_axis(found, np.array(order), 1)


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 9),
    num_others=st.integers(1, 150),
    num=st.integers(1, 40),
    d=st.integers(2, 6),
    rows_at_once=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_neighbours_are_those_of_the_full_matrix(num_rows, num_others, num, d, rows_at_once, seed):
    """Whatever the sizes and blocks; rows of zeros and copies (ties) among both."""
    rows, others = random_rows(num_rows, d, seed), random_rows(num_others, d, seed + 1)
    rows[seed % num_rows] = 0
    others[:: 3 + seed % 5] = others[0].clone()
    others[-1] = 0
    padded = -(-num_others // 64) * 64
    near = top_neighbours(rows, others, num, block_bytes=4 * padded * rows_at_once)
    indices, cosines = brute_force(rows, others, num)
    assert near.indices.tolist() == indices.tolist()
    assert near.cosines == pytest.approx(cosines, abs=1e-13)


def test_what_float32_cannot_tell_apart_is_settled_in_float64():
    """More rows within 1e-8 of each other than there are spare candidates, in mixed order."""
    rows = random_rows(3, 8, 0).double()
    steps = torch.randperm(200, generator=torch.Generator().manual_seed(1)).double()
    others = torch.cat(
        [rows[:1] + 1e-6 * (1 + steps[:, None]) * random_rows(1, 8, 2).double(), random_rows(90, 8, 3).double()]
    )
    near = top_neighbours(rows, others, 5)
    assert near.indices[0].tolist() == steps.argsort()[:5].tolist()
    assert near.indices.tolist() == brute_force(rows, others, 5)[0].tolist()


@pytest.mark.parametrize("num", [1, 5, 30])
def test_many_others_are_searched_in_groups(num):
    rows, others = random_rows(20, 12, 0), random_rows(5003, 12, 1)
    near = top_neighbours(rows, others, num, block_bytes=1 << 17)
    units = [r.double().numpy() / r.double().norm(dim=1, keepdim=True).numpy() for r in (rows, others)]
    found = units[0] @ units[1].T
    assert near.indices.tolist() == np.argsort(-found, axis=1, kind="stable")[:, :num].tolist()
    assert near.cosines == pytest.approx(-np.sort(-found, axis=1)[:, :num], abs=1e-13)


def test_copies_of_one_row_come_in_the_order_of_their_index():
    rows, others = random_rows(4, 33, 0), random_rows(700, 33, 1)
    copies = torch.randperm(700, generator=torch.Generator().manual_seed(2))[:120]
    others[copies] = rows[2]
    near = top_neighbours(rows, others, 50)
    assert near.indices[2].tolist() == sorted(copies.tolist())[:50]
    assert near.cosines[2] == pytest.approx(np.ones(50), abs=1e-14)
    assert len(set(near.cosines[2])) == 1


def test_coarse_products_change_nothing():
    """Where torch may round products to bfloat16 or TF32, more is computed again."""
    rows, others = random_rows(5, 16, 0), random_rows(300, 16, 1)
    fine = top_neighbours(rows, others, 4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        coarse = top_neighbours(rows, others, 4)
    finally:
        torch.set_float32_matmul_precision(before)
    assert coarse.indices.tolist() == fine.indices.tolist()
    assert coarse.cosines.tolist() == fine.cosines.tolist()


@pytest.mark.parametrize("bar", [-1.0, 0.0, 0.35, 0.999])
def test_one_to_many_is_all_pairs_above(bar):
    rows, others = random_rows(12, 5, 0), random_rows(70, 5, 1)
    others[9] = rows[3]
    rows[7] = 0
    pairs = neighbours_above(rows, others, bar, block_bytes=4 * 128 * 5)
    found = all_cosines(rows, others)
    expected = [
        (i, j) for i in range(12) for j in sorted(range(70), key=lambda j, i=i: (-found[i, j], j)) if found[i, j] >= bar
    ]
    assert list(zip(pairs.rows.tolist(), pairs.others.tolist(), strict=True)) == expected
    assert pairs.cosines == pytest.approx([found[pair] for pair in expected], abs=1e-13)
    assert len(pairs) == len(expected)


def test_cosines_of_pairs():
    rows, others = 1e-30 * random_rows(6, 4, 0), 1e30 * random_rows(5, 4, 1)
    found = pair_cosines(rows, others, np.array([5, 0]), np.array([1, 1]))
    assert found == pytest.approx([cosine(rows[5], others[1]), cosine(rows[0], others[1])], abs=1e-13)


@pytest.mark.parametrize(
    "search", [lambda *a, **k: top_neighbours(*a, 4, **k), lambda *a, **k: neighbours_above(*a, 0.95, **k)]
)
def test_no_matrix_of_all_pairs_is_held(search, monkeypatch):
    num, block = 2500, 1 << 18  # all pairs would be 25 MB
    rows, others = random_rows(num, 8, 0), random_rows(num, 8, 1)
    blocks = []

    def recorded(*matrices, out):
        blocks.append(out.untyped_storage().nbytes())
        return product(*matrices, out=out)

    product = torch.mm
    monkeypatch.setattr(torch, "mm", recorded)
    search(rows, others, block_bytes=block)
    assert len(blocks) > 90
    assert block / 2 < max(blocks) <= block
    tracemalloc.start()
    search(rows, others, block_bytes=block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20  # numpy's part: some rows in float64, and the answers


def test_tiny_assignments_are_those_of_all_permutations():
    for seed in range(4):
        rows, others = random_rows(4, 3, seed), random_rows(6, 3, seed + 50)
        found = all_cosines(rows, others)
        best = max(itertools.permutations(range(6), 4), key=lambda p: sum(found[i, j] for i, j in enumerate(p)))
        match = one_to_one(rows, others)
        assert match.others.tolist() == list(best)
        assert match.values == pytest.approx([found[i, j] for i, j in enumerate(best)])
        assert match.is_exact
        turned = one_to_one(others, rows)
        assert turned.rows.tolist() == sorted(best)
        assert turned.other_of(6).tolist() == [best.index(j) if j in best else -1 for j in range(6)]
        assert turned.mean == pytest.approx(match.mean)


@pytest.mark.parametrize("exact_limit", [1000, 10])
def test_a_permuted_copy_is_found_again(exact_limit):
    rows = random_rows(90, 10, 0)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    match = one_to_one(rows, 3 * rows[order], exact_limit=exact_limit, num_neighbours=3)
    assert order[match.others].tolist() == list(range(90))
    assert match.mean == pytest.approx(1, abs=1e-12)
    assert match.is_exact
    assert match.mean <= 1


@pytest.mark.parametrize("exact_limit", [1000, 20])
def test_a_flipped_row_is_no_match(exact_limit):
    rows = torch.eye(40)
    flipped = torch.cat([rows[:39], -rows[39:]])
    match = one_to_one(rows, flipped, exact_limit=exact_limit)
    assert match.values[39] == -1  # all others have their own
    assert match.mean == pytest.approx(38 / 40)
    assert top_neighbours(rows, flipped, 1).cosines[39] == 0


def test_a_rotated_dictionary_matches_as_a_random_one():
    rows = random_rows(200, 32, 0)
    rotation = torch.linalg.qr(random_rows(32, 32, 1)).Q
    rotated = one_to_one(rows, rows @ rotation).mean
    assert rotated == pytest.approx(one_to_one(rows, random_rows(200, 32, 2)).mean, abs=0.02)
    assert rotated < 0.6


@pytest.mark.parametrize(("n", "m"), [(120, 120), (70, 130), (130, 70)])
@pytest.mark.parametrize("num_neighbours", [1, 3, 16, 200])
def test_bounds_of_the_sparse_assignment_hold(n, m, num_neighbours):
    rows, others = random_rows(n, 7, n), random_rows(m, 7, m + 1)
    exact = one_to_one(rows, others)
    match = one_to_one(rows, others, exact_limit=12, num_neighbours=num_neighbours)
    assert match.mean <= exact.mean + 1e-9 <= match.upper + 2e-9
    assert match.upper <= float(all_cosines(rows, others).max(int(n <= m)).mean()) + 1e-9  # of the smaller one's maxima
    assert len(set(match.rows)) == len(set(match.others)) == min(n, m)
    assert match.values == pytest.approx(
        [cosine(rows[i], others[j]) for i, j in zip(match.rows, match.others, strict=True)]
    )
    if num_neighbours == 16:
        assert match.upper - match.mean < 1e-2
    if num_neighbours == 200:
        assert match.is_exact
        assert match.mean == pytest.approx(exact.mean)
    if num_neighbours == 1:
        assert not match.is_exact


def test_rows_that_are_all_alike_are_matched_somehow():
    match = one_to_one(torch.ones(90, 4), torch.ones(100, 4), exact_limit=8, num_neighbours=2)
    assert len(set(match.others)) == 90
    assert match.mean == pytest.approx(1)


def test_any_values_can_be_assigned():
    values = np.random.default_rng(0).normal(size=(15, 30)).clip(-1, 1)

    def near(left, right, num):
        part = values[np.ix_(left, right)]
        order = np.argsort(-part, axis=1)[:, :num]
        return Neighbours(order, np.take_along_axis(part, order, 1))

    match = assign(
        15, 30, lambda left, right: hungarian(values[np.ix_(left, right)]), near, exact_limit=5, num_neighbours=8
    )
    assert match.mean == pytest.approx(hungarian(values)[2].mean())


@pytest.mark.parametrize(
    ("rows", "others", "words"),
    [
        (torch.ones(3, 4), torch.ones(3, 5), "width 4"),
        (torch.ones(3, 4), torch.full((3, 4), torch.nan), "row 0 of the other rows"),
        (torch.ones(3), torch.ones(3, 4), "matrix"),
        (torch.tensor([[1.0], [torch.inf]]), torch.ones(3, 1), "row 1 of rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows, others, words):
    with pytest.raises(ValueError, match=words):
        top_neighbours(rows, others, 1)


def test_settings_without_sense_are_refused():
    rows = torch.eye(3)
    with pytest.raises(ValueError, match="num = 0"):
        top_neighbours(rows, rows, 0)
    with pytest.raises(ValueError, match="block_bytes"):
        top_neighbours(rows, rows, 1, block_bytes=0)
    with pytest.raises(ValueError, match="num_neighbours"):
        one_to_one(rows, rows, num_neighbours=0)


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr("saescope.evaluation.matching.nearest.MOST_PAIRS", 8)
    with pytest.raises(ValueError, match="more than 8 pairs have a cosine of"):
        neighbours_above(torch.ones(3, 2), torch.ones(3, 2), 0.5)
