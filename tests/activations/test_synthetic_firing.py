"""Rules of firing against exact probabilities that plain loops over supports and draws give."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.activations.synthetic import (
    Bernoulli,
    ExactSupports,
    GaussianCopula,
    Hierarchy,
    constant_probabilities,
    linear_probabilities,
    random_correlation,
    repair_correlation,
    zipf_probabilities,
    zipf_weights,
)

NUM_TOKENS = 60_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(fired: torch.Tensor) -> dict[tuple[int, ...], float]:
    """How often each support was drawn."""
    counts: dict[tuple[int, ...], int] = {}
    for row in fired.int().tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    return {support: count / len(fired) for support, count in counts.items()}


def far(expected: float) -> float:
    """Five standard errors of a share of NUM_TOKENS tokens."""
    return 5 * math.sqrt(max(expected * (1 - expected), 1e-12) / NUM_TOKENS) + 1e-9


def check(found: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float]) -> None:
    assert sum(expected.values()) == pytest.approx(1)
    assert all(expected.get(support, 0) > 0 for support in found)
    for support, share in expected.items():
        assert found.get(support, 0.0) == pytest.approx(share, abs=far(share)), support


def draws_without_replacement(weights: list[float], m: int) -> dict[tuple[int, ...], float]:
    """The probability of each support: one draw after the other, each from what is left."""
    expected: dict[tuple[int, ...], float] = {}
    for sequence in permutations(range(len(weights)), m):
        probability, left = 1.0, sum(weights)
        for feature in sequence:
            probability *= weights[feature] / left if left > 1e-15 else 0.0
            left -= weights[feature]
        support = tuple(int(i in sequence) for i in range(len(weights)))
        expected[support] = expected.get(support, 0.0) + probability
    return expected


def test_independent_features_fire_in_all_combinations_as_often_as_the_product_says():
    p = [0.05, 0.5, 0.8, 0.2]
    firing = Bernoulli(p)
    expected = {
        bits: math.prod(q if bit else 1 - q for q, bit in zip(p, bits, strict=True))
        for bits in product((0, 1), repeat=4)
    }
    check(frequencies(firing.sample(NUM_TOKENS, seeded())), expected)
    assert firing.true_l0 == pytest.approx(1.55)
    assert firing.probabilities.tolist() == p


def test_certain_and_impossible_features():
    for firing in (Bernoulli([0.0, 1.0]), GaussianCopula([0.0, 1.0], torch.eye(2))):
        assert firing.sample(20_000, seeded()).float().mean(0).tolist() == [0, 1]


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [8.0, 4.0, 2.0, 1.0], [1.0, 0.0, 30.0, 0.1]])
def test_supports_are_drawn_as_a_loop_without_replacement_draws_them(weights, m):
    firing = ExactSupports(weights, m)
    fired = firing.sample(NUM_TOKENS, seeded(m))
    assert fired.sum(-1).unique().tolist() == [m]
    assert firing.true_l0 == m
    expected = {s: p for s, p in draws_without_replacement(weights, m).items() if p}
    check(frequencies(fired), expected)
    if firing.probabilities is not None:
        assert firing.probabilities.tolist() == [m / 4] * 4
    assert (firing.probabilities is None) == (len(set(weights)) > 1)


def test_all_features_with_a_weight_can_fire_together():
    assert ExactSupports([3.0, 0.0, 1e-6], 2).sample(5_000, seeded()).float().mean(0).tolist() == [1, 0, 1]


@given(n=st.integers(2, 40), m=st.integers(1, 40), exponent=st.floats(0, 3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_exactly_m_features_fire(n, m, exponent, seed):
    fired = ExactSupports(zipf_weights(n, exponent), min(m, n)).sample(200, seeded(seed))
    assert fired.sum(-1).unique().tolist() == [min(m, n)]


def test_probability_helpers():
    assert constant_probabilities(3, 0.25).tolist() == [0.25] * 3
    published = linear_probabilities(50, 0.05 + 0.345 * 49 / 50, 0.05)
    assert published.tolist() == pytest.approx([0.345 * (49 - i) / 50 + 0.05 for i in range(50)])
    assert float(published.sum()) == pytest.approx(10.95, abs=0.005)
    zipf = zipf_probabilities(20, 1.2, 1.5)
    assert float(zipf.sum()) == pytest.approx(1.5)
    assert [float(zipf[0] / p) for p in zipf] == pytest.approx([j**1.2 for j in range(1, 21)])


def test_copula_keeps_each_features_probability_and_correlates_as_quadrature_says():
    p, rho = [0.4, 0.1, 0.3], 0.8
    correlation = torch.tensor([[1.0, rho, -rho], [rho, 1.0, -0.64], [-rho, -0.64, 1.0]])
    firing = GaussianCopula(p, correlation)
    fired = firing.sample(NUM_TOKENS, seeded())
    assert fired.float().mean(0).tolist() == [pytest.approx(q, abs=far(q)) for q in p]
    assert firing.true_l0 == pytest.approx(0.8)
    normal = torch.distributions.Normal(0.0, 1.0)
    for i, j, r in ((0, 1, rho), (0, 2, -rho), (1, 2, -0.64)):
        # P(g_i > a, g_j > b) = integral over g_i > a of density * P(g_j > b given g_i)
        a, b = (normal.icdf(torch.tensor(1 - p[k])) for k in (i, j))
        g = torch.linspace(float(a), 8, 20_001)
        tail = 1 - normal.cdf((b - r * g) / math.sqrt(1 - r * r))
        joint = float(torch.trapezoid(normal.log_prob(g).exp() * tail, g))
        found = float((fired[:, i] & fired[:, j]).float().mean())
        assert found == pytest.approx(joint, abs=far(joint) + 1e-4)
        assert (found > p[i] * p[j]) == (r > 0)


def test_perfect_correlation_is_one_feature_twice():
    fired = GaussianCopula([0.3, 0.3], torch.ones(2, 2)).sample(10_000, seeded())
    assert (fired[:, 0] == fired[:, 1]).float().mean() > 0.999


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 1), (12, 2), (50, 42)])
def test_random_correlation_is_a_correlation(n, seed):
    matrix = random_correlation(n, seeded(seed))
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [1.0] * n
    assert float(torch.linalg.eigvalsh(matrix)[0]) >= 1e-6 - 1e-15
    assert matrix.abs().max() <= 1
    assert torch.equal(matrix, random_correlation(n, seeded(seed)))


def test_random_correlation_has_as_many_pairs_of_either_sign_as_asked(monkeypatch):
    from saescope.activations.synthetic import dependence

    monkeypatch.setattr(dependence, "repair_correlation", lambda matrix: matrix)
    matrix = random_correlation(20, seeded(), share=0.7, smallest=0.3, largest=0.9)
    pairs = [float(matrix[i, j]) for i in range(20) for j in range(i)]
    assert sum(r > 0 for r in pairs) == 66  # 133 of 190 pairs
    assert sum(r < 0 for r in pairs) == 67
    sizes = [abs(r) for r in pairs if r]
    assert min(sizes) >= 0.3
    assert max(sizes) <= 0.9
    assert sum(sizes) / len(sizes) == pytest.approx(0.6, abs=0.05)


def test_repair_leaves_a_correlation_alone_and_keeps_signs():
    good = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    assert torch.allclose(repair_correlation(good), good, atol=1e-12)
    bad = torch.tensor([[1, 0.9, 0.9], [0.9, 1, -0.9], [0.9, -0.9, 1]])
    with pytest.raises(ValueError, match="no Gaussian"):
        GaussianCopula([0.5] * 3, bad)
    repaired = repair_correlation(bad)
    assert torch.equal(repaired.sign(), bad.sign().double())
    GaussianCopula([0.5] * 3, repaired)


def exclusive_family(p: float, shares: list[float]) -> dict[tuple[int, ...], float]:
    none = (0,) * len(shares)
    expected = {(0, *none): 1 - p, (1, *none): p * (1 - sum(shares))}
    for i, share in enumerate(shares):
        expected[(1, *(int(i == j) for j in range(len(shares))))] = p * share
    return {support: share for support, share in expected.items() if share > 1e-12}


@pytest.mark.parametrize("shares", [[0.2, 0.2, 0.2], [0.5, 0.1, 0.4], [0.0, 0.3, 0.1]])
def test_a_parent_takes_at_most_one_child(shares):
    firing = Hierarchy(Bernoulli([0.3]), [0, 0, 0], shares)
    check(frequencies(firing.sample(NUM_TOKENS, seeded())), exclusive_family(0.3, shares))
    assert firing.true_l0 == pytest.approx(0.3 * (1 + sum(shares)))
    assert firing.probabilities.tolist() == pytest.approx([0.3, *(0.3 * share for share in shares)])


def test_children_without_exclusion_are_independent_given_their_parent():
    firing = Hierarchy(Bernoulli([0.4]), [0, 0], [0.7, 0.6], exclusive=False)
    expected = {(0, 0, 0): 0.6}
    for a, b in product((0, 1), repeat=2):
        expected[(1, a, b)] = 0.4 * (0.7 if a else 0.3) * (0.6 if b else 0.4)
    check(frequencies(firing.sample(NUM_TOKENS, seeded())), expected)


def test_families_are_independent_and_the_numbers_are_those_of_the_published_toy():
    firing = Hierarchy.two_levels(Bernoulli(constant_probabilities(4, 0.15)), 3, 0.2)
    assert firing.num_features == 16
    assert firing.true_l0 == pytest.approx(0.96)
    assert firing.children == {0: (4, 5, 6), 1: (7, 8, 9), 2: (10, 11, 12), 3: (13, 14, 15)}
    fired = firing.sample(NUM_TOKENS, seeded())
    for parent, children in firing.children.items():
        assert not (fired[:, children] & ~fired[:, [parent]]).any()
        assert fired[:, children].sum(-1).max() == 1
    both = float((fired[:, 4] & fired[:, 7]).float().mean())
    assert both == pytest.approx(0.03**2, abs=far(0.03**2))


def test_grandchildren_in_mixed_order_fire_only_under_their_whole_line():
    # 0 and 1 are roots; 2 under 0, 3 under 2, 4 under 1, 5 under 3, 6 under 0
    firing = Hierarchy(Bernoulli([0.9, 0.5]), [0, 2, 1, 3, 0], [0.5, 0.9, 0.8, 0.7, 0.4])
    assert firing.parent == (-1, -1, 0, 2, 1, 3, 0)
    fired = firing.sample(NUM_TOKENS, seeded(3))
    for child, parent in enumerate(firing.parent):
        assert parent < 0 or not (fired[:, child] & ~fired[:, parent]).any()
    assert not (fired[:, 2] & fired[:, 6]).any()
    line = [0.9, 0.5, 0.45, 0.405, 0.4, 0.2835, 0.36]
    assert firing.probabilities.tolist() == pytest.approx(line)
    assert fired.float().mean(0).tolist() == [pytest.approx(q, abs=far(q)) for q in line]


def test_roots_may_fire_exactly_m_at_a_time():
    firing = Hierarchy.two_levels(ExactSupports([1.0] * 4, 2), 2, 0.5, exclusive=False)
    fired = firing.sample(1_000, seeded())
    assert fired[:, :4].sum(-1).unique().tolist() == [2]
    assert firing.true_l0 == pytest.approx(4.0)
    unknown = Hierarchy.two_levels(ExactSupports([1.0, 2.0, 3.0], 2), 2, 0.5)
    assert unknown.true_l0 is None
    assert unknown.probabilities is None


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Bernoulli([0.5, 1.5]), "from 0 to 1, got"),
        (lambda: Bernoulli([0.5, float("nan")]), "from 0 to 1, got"),
        (lambda: Bernoulli(torch.ones(2, 2)), "one probability per feature"),
        (lambda: Bernoulli([]), "one probability per feature"),
        (lambda: ExactSupports([1.0, 0.0, 2.0], 3), "from 1 to 2"),
        (lambda: ExactSupports([1.0, 2.0], 0), "from 1 to 2"),
        (lambda: ExactSupports([1.0, -2.0], 1), "at least 0"),
        (lambda: zipf_probabilities(10, 2.0, 3.0), "a mean L0 from 0 to 1.55"),
        (lambda: zipf_weights(0, 1.0), "at least 1"),
        (lambda: GaussianCopula([0.5, 0.5], torch.eye(3)), r"must be \[2, 2\]"),
        (lambda: GaussianCopula([0.5, 0.5], 2 * torch.eye(2)), "ones on its diagonal"),
        (lambda: GaussianCopula([0.5, 0.5], torch.tensor([[1.0, 0.5], [0.1, 1.0]])), "symmetric"),
        (lambda: random_correlation(5, seeded(), share=1.2), "0 <= share <= 1"),
        (lambda: repair_correlation(torch.ones(2, 3)), "square"),
        (lambda: Hierarchy(Bernoulli([0.5]), [0, 0], [0.6, 0.6]), "sum to 1.2"),
        (lambda: Hierarchy(Bernoulli([0.5]), [1], [0.6]), "parents come before"),
        (lambda: Hierarchy(Bernoulli([0.5]), [0], [0.6, 0.1]), "1 parents do not match 2"),
    ],
)
def test_wrong_settings_are_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()
