"""Scores against loops over all assignments and over tokens, and against the variants they must not be taken for."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.activations.synthetic import (
    Bernoulli,
    Hierarchy,
    Ones,
    SyntheticData,
    absorption,
    child_parent_cosine,
    constant_probabilities,
    firing_agreement,
    fvu,
    matched_cosine,
    mean_l0,
    mean_row_max,
    order,
    orthonormal_atoms,
    pairwise_consistency,
    random_atoms,
    random_baseline,
    shrinkage,
    stability,
    uniqueness,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(p * q for p, q in zip(a, b, strict=True)) / norms if norms else 0.0


def table(rows: torch.Tensor, atoms: torch.Tensor) -> list[list[float]]:
    return [[cosine(row, atom) for atom in atoms.double().tolist()] for row in rows.double().tolist()]


def best_assignment(score: list[list[float]]) -> tuple[float, list[tuple[int, int]]]:
    """The largest mean over all one-to-one assignments, and its pairs (row, atom) in the order of atoms."""
    h, n = len(score), len(score[0])
    m = min(h, n)
    every = (
        [(i, p[i]) for i in range(m)] if h <= n else [(p[j], j) for j in range(m)]
        for p in permutations(range(max(h, n)), m)
    )
    pairs = max(every, key=lambda found: sum(score[i][j] for i, j in found))
    return sum(score[i][j] for i, j in pairs) / m, sorted(pairs, key=lambda pair: pair[1])


@given(h=st.integers(1, 5), n=st.integers(1, 5), d=st.integers(1, 4), seed=st.integers(0, 500), absolute=st.booleans())
@settings(max_examples=80)
def test_matched_cosine_is_the_best_of_all_assignments(h, n, d, seed, absolute):
    rows, atoms = normal(h, d, seed=seed), normal(n, d, seed=seed + 1000)
    signed = table(rows, atoms)
    score = [[abs(c) for c in line] for line in signed] if absolute else signed
    mean, pairs = best_assignment(score)
    match = matched_cosine(rows, atoms, absolute=absolute)
    assert match.mean == pytest.approx(mean, abs=1e-9)
    assert isinstance(match.mean, float)
    assert len(match.rows) == min(h, n)
    assert match.atoms.tolist() == sorted(match.atoms.tolist())
    found = list(zip(match.rows.tolist(), match.atoms.tolist(), strict=True))
    if d > 1:  # in one dimension many assignments are equally good
        assert found == pairs
    assert match.cosines.tolist() == pytest.approx([signed[i][j] for i, j in found], abs=1e-9)
    for atom in range(n):
        assert match.row_of(atom) == {j: i for i, j in found}.get(atom)


# one atom is nearest to both rows, one row points backwards: every variant gives another number
ROWS = torch.tensor([[4.0, 3.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, -2.0]])
ATOMS = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def test_variants_differ_on_a_fixed_matrix():
    near = 1 / math.sqrt(1.01)  # second row with the first atom
    assert matched_cosine(ROWS, ATOMS).mean == pytest.approx((0 + near + 0) / 3)  # -1 is avoided at the cost of 0.6
    assert matched_cosine(ROWS, ATOMS, absolute=True).mean == pytest.approx((0.6 + near + 1) / 3)
    assert matched_cosine(ROWS, ATOMS, absolute=True).cosines.tolist() == pytest.approx([near, 0.6, -1])
    assert mean_row_max(ROWS, ATOMS) == pytest.approx((0.8 + near + 0) / 3)
    assert mean_row_max(ROWS, ATOMS, absolute=True) == pytest.approx((0.8 + near + 1) / 3)
    assert mean_row_max(ATOMS, ROWS) == pytest.approx((near + 0.6 + 0) / 3)  # over atoms instead
    assert stability(ROWS, ATOMS) == matched_cosine(ROWS, ATOMS).mean
    assert stability(ROWS, ATOMS, absolute=True) == matched_cosine(ROWS, ATOMS, absolute=True).mean


@given(seed=st.integers(0, 200))
@settings(max_examples=20)
def test_lengths_and_order_of_rows_play_no_part(seed):
    rows, atoms = normal(5, 4, seed=seed), normal(6, 4, seed=seed + 1)
    lengths = normal(5, 1, seed=seed + 2).abs() + 1e-3
    for score in (stability, mean_row_max, lambda a, b: uniqueness(a, b).alone):
        assert score(lengths * rows, 1e-20 * atoms) == pytest.approx(score(rows, atoms), abs=1e-6)
        assert score(rows[[3, 1, 4, 0, 2]], atoms) == pytest.approx(score(rows, atoms), abs=1e-9)
    assert stability(rows, atoms) == pytest.approx(stability(atoms, rows), abs=1e-12)
    assert stability(rows, rows) == pytest.approx(1)
    assert stability(rows, atoms) <= mean_row_max(rows, atoms) + 1e-12


def test_rows_of_zeros_have_cosine_zero_and_no_nearest_atom():
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    assert matched_cosine(rows, ATOMS).mean == pytest.approx(0.5)
    assert mean_row_max(rows, ATOMS) == pytest.approx(0.5)
    assert (uniqueness(rows, ATOMS).alone, uniqueness(rows, ATOMS).distinct) == (0.5, 0.5)
    assert uniqueness(torch.zeros(2, 3), ATOMS).distinct == 0


def test_pairwise_consistency_is_over_all_pairs():
    dictionaries = [normal(4, 3, seed=s) for s in range(4)]
    expected = [best_assignment(table(dictionaries[i], dictionaries[j]))[0] for i in range(4) for j in range(i + 1, 4)]
    found = pairwise_consistency(dictionaries)
    assert found.values == pytest.approx(expected)
    assert found.mean == pytest.approx(sum(expected) / 6)
    assert (found.min, found.max) == (pytest.approx(min(expected)), pytest.approx(max(expected)))
    absolute = [
        best_assignment([[abs(c) for c in line] for line in table(dictionaries[i], dictionaries[j])])[0]
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    assert pairwise_consistency(dictionaries, absolute=True).values == pytest.approx(absolute)


@given(st.permutations(range(6)))
@settings(max_examples=40)
def test_order_is_spearmans_formula_on_the_matching(places):
    atoms = normal(6, 6)
    rows = torch.empty(6, 6)
    for atom, row in enumerate(places):
        rows[row] = 2 * atoms[atom]
    expected = 1 - 6 * sum((j - row) ** 2 for j, row in enumerate(places)) / (6 * 35)
    assert order(rows, atoms) == pytest.approx(expected)


def test_order_with_unequal_numbers_compares_ranks_of_the_matched():
    atoms = torch.eye(5)
    assert order(atoms[[1, 4]], atoms) == 1  # few rows, in order
    assert order(atoms[[4, 1]], atoms) == -1
    # seven rows for three atoms, matched to rows 5, 0, 6: ranks 1, 0, 2, and 1 - 6 * 2 / (3 * 8) = 0.5
    rows = 0.01 * torch.ones(7, 5)
    rows[5], rows[0], rows[6] = atoms[0], atoms[1], atoms[2]
    assert order(rows, atoms[:3]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two matched pairs"):
        order(atoms[:1], atoms)


def test_order_follows_the_sign():
    atoms = torch.eye(3)
    rows = torch.stack([-atoms[0] + 0.1 * atoms[1], atoms[1] - 0.2 * atoms[0], atoms[2] + 0.3 * atoms[0]])
    assert order(rows, atoms, absolute=True) == 1
    mean, pairs = best_assignment(table(rows, atoms))
    assert mean < stability(rows, atoms, absolute=True)
    distance = sum((j - i) ** 2 for i, j in pairs)
    assert distance
    assert order(rows, atoms) == pytest.approx(1 - 6 * distance / 24)


def test_uniqueness_counts_rows_that_share_no_atom():
    atoms = torch.eye(4)
    found = uniqueness(atoms[[0, 0, 0, 2, 3]], atoms)
    assert found.alone == pytest.approx(2 / 5)
    assert found.distinct == pytest.approx(3 / 5)
    assert uniqueness(atoms[[3, 1]], atoms).alone == 1
    backwards = torch.stack([atoms[0], -atoms[0] + 0.1 * atoms[1]])
    assert uniqueness(backwards, atoms).alone == 1
    assert uniqueness(backwards, atoms, absolute=True).alone == 0


@pytest.mark.parametrize(
    ("h", "d", "signed", "absolute", "row_max"),
    [
        (32, 16, 0.43, 0.51, 0.48),
        (50, 100, 0.21, 0.23, 0.23),
        (100, 80, 0.26, 0.28, 0.27),
        (30, 20, 0.41, 0.47, 0.45),
        (256, 64, 0.33, 0.36, 0.35),
    ],
)
def test_random_baselines_are_the_known_ones(h, d, signed, absolute, row_max):
    def baseline(score) -> float:
        return random_baseline(score, h, d, range(20), num_dictionaries=2).mean

    assert baseline(stability) == pytest.approx(signed, abs=0.03)
    assert baseline(lambda a, b: stability(a, b, absolute=True)) == pytest.approx(absolute, abs=0.03)
    assert baseline(mean_row_max) == pytest.approx(row_max, abs=0.03)


def test_random_baseline_of_one_dictionary_takes_the_score_itself():
    atoms = random_atoms(8, 5, torch.Generator().manual_seed(9))
    found = random_baseline(lambda rows: stability(rows, atoms), 8, 5, seeds=(3, 4))
    assert len(found.values) == 2
    assert found.min == min(found.values) < found.max == max(found.values)
    assert found == random_baseline(lambda rows: stability(rows, atoms), 8, 5, seeds=(3, 4))
    assert found.values[1] == random_baseline(lambda rows: stability(rows, atoms), 8, 5, seeds=(4,)).mean
    lengths = []
    random_baseline(lambda rows: lengths.extend(rows.norm(dim=-1).tolist()) or 0.0, 8, 5, seeds=(0,))
    assert lengths == pytest.approx([1.0] * 8)


def test_firing_agreement_counts_tokens():
    true = (normal(200, 4, seed=1) > 0.5).float()
    latent = (normal(200, 5, seed=2) + true[:, [2, 0, 1, 3, 0]] > 0.8) * normal(200, 5, seed=3)  # signed codes
    match = matched_cosine(torch.eye(5, 4)[[2, 0, 1, 3, 4]] + 0.01, torch.eye(4))
    assert match.rows.tolist() == [1, 2, 0, 3]
    found = firing_agreement(latent, true, match)
    for place, (row, atom) in enumerate(zip(match.rows.tolist(), match.atoms.tolist(), strict=True)):
        pairs = list(zip(latent[:, row].tolist(), true[:, atom].tolist(), strict=True))
        hits = sum(f != 0 and t != 0 for f, t in pairs)
        fired, there = sum(f != 0 for f, _ in pairs), sum(t != 0 for _, t in pairs)
        assert found.precision[place] == pytest.approx(hits / fired)
        assert found.recall[place] == pytest.approx(hits / there)
        p, r = hits / fired, hits / there
        assert found.f1[place] == pytest.approx(2 * p * r / (p + r))
    assert found.mean_f1 == pytest.approx(float(found.f1.mean()))
    assert found.mean_precision == pytest.approx(float(found.precision.mean()))
    assert found.mean_recall == pytest.approx(float(found.recall.mean()))


def test_firing_of_dead_latents_and_absent_features():
    match = matched_cosine(torch.eye(3), torch.eye(3))
    true = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    latent = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    found = firing_agreement(latent, true, match)
    assert found.precision.isnan().tolist() == [True, False, True]
    assert found.recall.tolist()[0] == 0
    assert found.recall.isnan().tolist() == [False, True, True]
    assert found.f1.tolist()[:2] == [0, 0]
    assert math.isnan(found.f1[2])
    assert (found.mean_precision, found.mean_recall, found.mean_f1) == (0, 0, 0)


def hierarchy() -> SyntheticData:
    firing = Hierarchy.two_levels(Bernoulli(constant_probabilities(3, 0.3)), 2, 0.4)
    return SyntheticData(orthonormal_atoms(9, 9, torch.Generator().manual_seed(0)), firing, Ones())


def test_absorption_counts_parents_that_are_silent_beside_a_child():
    data = hierarchy()
    children = data.firing.children
    codes = data.held_out(3_000).codes
    match = matched_cosine(data.atoms, data.atoms)
    clean = absorption(codes, codes, children, match)
    assert (clean.mean, clean.per_parent) == (0, {0: 0.0, 1: 0.0, 2: 0.0})
    # the first child's presence silences its parent; the second one's does not
    absorbed = codes.clone()
    for parent, (first, _) in children.items():
        absorbed[codes[:, first] > 0, parent] = 0
    # shuffle the latents and the rows with them
    shuffle = [4, 0, 8, 2, 6, 1, 3, 5, 7]
    found = absorption(absorbed[:, shuffle], codes, children, matched_cosine(data.atoms[shuffle], data.atoms))
    rows = codes.tolist()
    for parent, family in children.items():
        together = [row for row in rows if row[parent] and any(row[c] for c in family)]
        silent = [row for row in together if row[family[0]]]
        assert found.per_parent[parent] == pytest.approx(len(silent) / len(together))
    assert found.mean == pytest.approx(sum(found.per_parent.values()) / 3)
    assert 0.4 < found.mean < 0.6


def test_absorption_asks_for_parent_and_child_together():
    true = torch.tensor([[1.0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]])  # the fourth has a child alone
    latent = torch.tensor([[0.0, 1, 0], [2, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert absorption(latent, true, {0: (1, 2)}, MATCH).mean == 0.5
    assert absorption(latent, true, {0: (1,)}, MATCH).mean == 1


def test_absorption_leaves_out_what_it_cannot_judge():
    data = hierarchy()
    codes = data.held_out(500).codes
    match = matched_cosine(data.atoms[1:], data.atoms)  # no row for parent 0
    found = absorption(codes[:, 1:], codes, data.firing.children, match)
    assert found.per_parent == {1: 0.0, 2: 0.0}
    assert math.isnan(absorption(0 * codes, 0 * codes, data.firing.children, match).mean)


def test_a_childs_row_that_contains_its_parent_shows():
    data = hierarchy()
    children = data.firing.children
    assert child_parent_cosine(
        data.atoms, data.atoms, children, matched_cosine(data.atoms, data.atoms)
    ) == pytest.approx(0, abs=1e-6)
    rows = data.atoms.clone()
    for parent, family in children.items():
        rows[list(family)] += 0.5 * data.atoms[parent]
    rows = 3 * rows.flip(0)
    found = child_parent_cosine(rows, data.atoms, children, matched_cosine(rows, data.atoms))
    assert found == pytest.approx(0.5 / math.sqrt(1.25), abs=1e-6)
    few = matched_cosine(data.atoms[:3], data.atoms)
    assert math.isnan(child_parent_cosine(data.atoms[:3], data.atoms, children, few))


def test_shrinkage_is_the_best_factor_and_ignores_the_means():
    x = normal(400, 5) + 10
    centred = x - x.mean(0)
    assert shrinkage(x, 0.8 * centred + 3) == pytest.approx(0.8)
    assert shrinkage(x, x) == pytest.approx(1)
    x_hat = 0.7 * centred + 0.2 * normal(400, 5, seed=1) - 4
    centred_hat = (x_hat - x_hat.mean(0)).double()

    def error(g: float) -> float:
        return float((centred_hat / g - centred).square().sum())

    gamma = shrinkage(x, x_hat)
    assert error(gamma) < min(error(gamma * 1.001), error(gamma / 1.001))
    assert math.isnan(shrinkage(x, torch.zeros_like(x)))


def test_fvu_and_l0():
    x, x_hat = normal(50, 3) + 5, normal(50, 3, seed=1) + 5
    means = [sum(column) / 50 for column in x.T.tolist()]
    wrong = sum(
        (a - b) ** 2 for r, s in zip(x.tolist(), x_hat.tolist(), strict=True) for a, b in zip(r, s, strict=True)
    )
    spread = sum((a - m) ** 2 for row in x.tolist() for a, m in zip(row, means, strict=True))
    assert fvu(x, x_hat) == pytest.approx(wrong / spread)
    assert fvu(x, x) == 0
    assert mean_l0(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]])) == 1.5


MATCH = matched_cosine(torch.eye(3), torch.eye(3))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: matched_cosine(torch.zeros(0, 3), torch.eye(3)), r"rows as a matrix .* got \[0, 3\]"),
        (lambda: mean_row_max(torch.eye(3), torch.ones(3)), "atoms as a matrix"),
        (lambda: stability(torch.eye(3), torch.eye(4)), "rows have width 3, atoms 4"),
        (lambda: stability(torch.eye(3) / 0, torch.eye(3)), "not finite"),
        (lambda: pairwise_consistency([torch.eye(3)]), "at least two"),
        (lambda: random_baseline(lambda rows: 0.0, 0, 3), "at least one row"),
        (lambda: random_baseline(lambda rows: 0.0, 2, 3, seeds=()), "at least one row"),
        (lambda: firing_agreement(torch.ones(5, 3), torch.ones(4, 3), MATCH), "of the same tokens"),
        (lambda: firing_agreement(torch.ones(5, 2), torch.ones(5, 3), MATCH), "the codes have 2 and 3"),
        (lambda: absorption(torch.ones(5, 3), torch.ones(5, 2), {0: (1,)}, MATCH), "the codes have 3 and 2"),
        (lambda: shrinkage(torch.ones(3, 2), torch.ones(2, 3)), "of one shape"),
        (lambda: fvu(torch.ones(3, 2), torch.ones(2, 3)), "of one shape"),
        (lambda: mean_l0(torch.ones(3)), "codes"),
        (lambda: mean_l0(torch.ones(0, 3)), "at least one token"),
    ],
)
def test_wrong_arguments_are_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()
