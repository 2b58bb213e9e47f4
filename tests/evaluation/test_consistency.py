"""Consistency of dictionaries across seeds, by rows and by activations, against plain computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, spearmanr

from saescope.activations.synthetic import order as synthetic_order
from saescope.dictionaries import Matryoshka, Ordered, ReLU
from saescope.evaluation.matching.activation_consistency import Correlations, activation_consistency
from saescope.evaluation.matching.consistency import ConsistencyConfig, consistency, spearman
from saescope.evaluation.matching.one_to_one import one_to_one

FEW = ConsistencyConfig(num_random=1, encoder=False)


def random_rows(num: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(num, d, generator=torch.Generator().manual_seed(seed))


def dictionary(rows: torch.Tensor, encoder: torch.Tensor | None = None, kind=ReLU, **settings):
    made = kind(kind.Config(d_in=rows.shape[1], d_sae=len(rows), **settings))
    with torch.no_grad():
        made.W_dec.copy_(rows)
        made.encoder_rows.copy_(rows if encoder is None else encoder)
    return made


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = a.double().numpy(), b.double().numpy()
    return (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T


def best_mean(values: np.ndarray) -> float:
    return float(values[linear_sum_assignment(-values)].mean())


def test_three_seeds_of_different_sizes():
    rows = [random_rows(n, 8, n) for n in (20, 30, 25)]
    encoders = [random_rows(n, 8, 100 + n) for n in (20, 30, 25)]
    made = [dictionary(r, e) for r, e in zip(rows, encoders, strict=True)]
    found = consistency(made, l0=[3.0, 3.1, 9.0], names=["x", "y", "z"], config=ConsistencyConfig(num_random=2))
    pairs = list(itertools.combinations(range(3), 2))
    means = [best_mean(cosines(rows[a], rows[b])) for a, b in pairs]
    assert found["pw_mcc"].value == pytest.approx(np.mean(means), abs=1e-12)
    assert found["pw_mcc_encoder"].value == pytest.approx(
        np.mean([best_mean(cosines(encoders[a], encoders[b])) for a, b in pairs]), abs=1e-12
    )
    largest = [np.concatenate([c.max(1), c.max(0)]).mean() for c in (cosines(rows[a], rows[b]) for a, b in pairs)]
    assert found["mean_max_cosine"].value == pytest.approx(np.mean(largest), abs=1e-12)
    assert [row["pw_mcc"] for row in found.tables["pairs"]] == pytest.approx(means, abs=1e-12)
    assert [row["num_matched"] for row in found.tables["pairs"]] == [20, 20, 25]
    number = found["pw_mcc"]
    assert min(means) - 1e-12 <= number.low <= number.value <= number.high <= max(means) + 1e-12
    assert "3 pairs" in number.variant
    assert found["pw_mcc_alive"].value is None
    assert "not given" in found["pw_mcc_alive"].reason
    assert found["order"].value is None
    assert [row["l0"] for row in found.tables["dictionaries"]] == [3.0, 3.1, 9.0]
    assert any("L0 runs from 3 to 9" in note for note in found.notes)


def test_random_dictionaries_score_as_their_baseline():
    """And as the field knows it: (256, 64) has a signed matched cosine of 0.33."""
    made = [dictionary(random_rows(256, 64, seed)) for seed in (1, 2)]
    found = consistency(made, config=ConsistencyConfig(num_random=3, encoder=False, seed=5))
    twin = found["pw_mcc_random"]
    assert found["pw_mcc"].value == pytest.approx(twin.value, abs=0.01)
    assert twin.value == pytest.approx(0.33, abs=0.01)
    assert twin.low < twin.value < twin.high
    assert found["mean_max_cosine"].value == pytest.approx(found["mean_max_cosine_random"].value, abs=0.01)
    c = np.linspace(-1, 1, 20_001)  # the mean of a largest of 256, from the distribution of one
    expected = 1 - np.trapezoid(beta.cdf((1 + c) / 2, 31.5, 31.5) ** 256, c)
    assert found["mean_max_cosine_random"].value == pytest.approx(expected, abs=0.003)
    again = consistency(made, config=ConsistencyConfig(num_random=3, encoder=False, seed=5))
    assert again.as_dict() | {"seconds": 0} == found.as_dict() | {"seconds": 0}
    number = found["pw_mcc"]
    assert number.low < number.value < number.high
    assert "over features" in number.variant


@pytest.mark.parametrize("exact_limit", [4096, 16])
def test_a_permuted_copy_is_wholly_consistent_and_a_flipped_one_is_not(exact_limit):
    config = ConsistencyConfig(num_random=1, exact_limit=exact_limit)
    rows = random_rows(60, 16, 0)
    copy = 5 * rows[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    found = consistency([dictionary(rows), dictionary(copy)], config=config)
    for name in ("pw_mcc", "pw_mcc_encoder", "mean_max_cosine"):
        assert found[name].value == pytest.approx(1, abs=1e-12)
    flipped = consistency([dictionary(rows), dictionary(-copy)], config=config)
    assert flipped["pw_mcc"].value < 0.7
    rotation = torch.linalg.qr(random_rows(16, 16, 2)).Q
    rotated = consistency([dictionary(rows), dictionary(rows @ rotation)], config=config)
    assert rotated["pw_mcc"].value == pytest.approx(rotated["pw_mcc_random"].value, abs=0.05)


def test_rare_features_have_their_own_rows():
    """Frequent features are the same in both, rare ones are not, and one is dead."""
    rows, other = random_rows(30, 24, 0), random_rows(30, 24, 1)
    other[:20] = rows[:20]
    density = np.array([0.05] * 20 + [0.0005] * 9 + [0.0])
    made = [dictionary(rows), dictionary(other)]
    found = consistency(made, densities=[density, density], config=FEW)
    bands = {row["band"]: row for row in found.tables["densities"]}
    assert bands["from 0.01 to 0.1"]["pw_mcc"] == pytest.approx(1)
    assert bands["from 0.01 to 0.1"]["num_features"] == 40  # of both dictionaries
    rare = bands["from 0.0001 to 0.001"]
    match = one_to_one(rows, other)
    assert rare["pw_mcc"] == pytest.approx(
        np.concatenate(
            [match.values[np.isin(match.rows, range(20, 29))], match.values[np.isin(match.others, range(20, 29))]]
        ).mean()
    )
    assert rare["pw_mcc"] < 0.6
    assert rare["low"] < rare["pw_mcc"] < rare["high"]
    assert bands["never"]["num_features"] == 2
    assert bands["from 0.1 to 1"]["pw_mcc"] is None
    assert "no matched feature" in bands["from 0.1 to 1"]["reason"]
    assert sum(row["num_features"] for row in bands.values()) == 60
    assert found["pw_mcc_alive"].value == pytest.approx(best_mean(cosines(rows[:29], other[:29])), abs=1e-12)
    assert [row["num_alive"] for row in found.tables["dictionaries"]] == [29, 29]


def test_all_dead_is_a_reason_not_a_number():
    made = [dictionary(random_rows(4, 3, seed)) for seed in (0, 1)]
    found = consistency(made, alive=[np.ones(4, bool), np.zeros(4, bool)], config=FEW)
    assert found["pw_mcc_alive"].value is None
    assert "no feature that is alive" in found["pw_mcc_alive"].reason


def test_prefixes_of_matryoshka_dictionaries():
    """The second and third eighth change places: the first prefix agrees, the second does not, all do again."""
    rows = torch.eye(16)
    places = torch.tensor([0, 1, 4, 5, 2, 3, *range(6, 16)])
    made = [dictionary(r, kind=Matryoshka, widths=(2, 4, 16), k=2) for r in (rows, rows[places])]
    found = consistency(made, config=FEW)
    table = {row["width"]: row for row in found.tables["prefixes"]}
    assert [table[w]["stability"] for w in (2, 4, 16)] == pytest.approx([1, 0.5, 1])
    assert table[2]["order"] == pytest.approx(1)
    assert found["order"].value == pytest.approx(spearmanr(range(16), places).statistic)
    assert found["order"].value == pytest.approx(synthetic_order(rows[places], rows))
    assert found.curves["prefixes"]["width"] == [2, 4, 16]
    assert all(0 < row["stability_random"] < 0.9 for row in table.values())


def test_prefixes_of_ordered_dictionaries_are_halves():
    made = [dictionary(random_rows(64, 32, seed), kind=Ordered, k=2) for seed in (0, 1, 2)]
    found = consistency(made, config=FEW)
    table = found.tables["prefixes"]
    assert [row["width"] for row in table] == [1, 2, 4, 8, 16, 32, 64]
    assert table[0]["order"] is None
    assert "no order" in table[0]["reason"]
    pairs = list(itertools.combinations(made, 2))
    expected = np.mean([best_mean(cosines(a.W_dec.detach()[:8], b.W_dec.detach()[:8])) for a, b in pairs])
    assert table[3]["stability"] == pytest.approx(expected, abs=1e-12)
    orders = [synthetic_order(b.W_dec, a.W_dec) for a, b in pairs]
    assert found["order"].value == pytest.approx(np.mean(orders), abs=1e-12)
    assert table[3]["order"] == pytest.approx(
        np.mean([synthetic_order(b.W_dec[:8], a.W_dec[:8]) for a, b in pairs]), abs=1e-12
    )
    own = consistency(made, config=ConsistencyConfig(num_random=1, encoder=False, prefixes=(3, 5)))
    assert [row["width"] for row in own.tables["prefixes"]] == [3, 5]
    reversed_order = consistency([made[0], dictionary(made[0].W_dec.detach().flip(0), kind=Ordered, k=2)], config=FEW)
    assert reversed_order["order"].value == pytest.approx(-1)


def test_order_of_unequal_sizes_is_by_ranks():
    rows = torch.eye(6)
    assert spearman(one_to_one(rows[[5, 1, 3]], rows)) == pytest.approx(-0.5)  # places 5, 1, 3 of 6: ranks 2, 0, 1


def test_a_loose_matching_says_by_how_much():
    made = [dictionary(random_rows(80, 6, seed)) for seed in (0, 1)]
    found = consistency(made, config=ConsistencyConfig(num_random=1, encoder=False, exact_limit=20, num_neighbours=1))
    row = found.tables["pairs"][0]
    assert row["pw_mcc"] < row["pw_mcc_at_most"]
    assert any("not of all pairs" in note for note in found.notes)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: [dictionary(torch.eye(3))], {}, "at least two"),
        (lambda: [dictionary(torch.eye(3)), dictionary(torch.eye(4))], {}, "different widths"),
        (lambda: [dictionary(torch.eye(3)), dictionary(torch.full((3, 3), torch.nan))], {}, "decoder of 1 holds NaN"),
        (lambda: [dictionary(torch.eye(3))] * 2, {"names": ["a", "a"]}, "one name"),
        (lambda: [dictionary(torch.eye(3))] * 2, {"l0": [1.0]}, "each of 2 dictionaries"),
        (lambda: [dictionary(torch.eye(3))] * 2, {"densities": [np.ones(3), np.ones(2)]}, "each of 3 features"),
        (lambda: [dictionary(torch.eye(3))] * 2, {"config": ConsistencyConfig(prefixes=(2, 9))}, "1 to 3 features"),
    ],
)
def test_what_does_not_fit_is_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        consistency(make(), **options)


def test_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match="baseline"):
        ConsistencyConfig(num_random=0)
    with pytest.raises(ValueError, match="rise"):
        ConsistencyConfig(density_edges=(0.1, 0.01))


# Activations


def codes_of(num_tokens: int, num: int, seed: int) -> sparse.csr_array:
    generator = np.random.default_rng(seed)
    dense = generator.exponential(size=(num_tokens, num)) * (generator.random((num_tokens, num)) < 0.3)
    return sparse.csr_array(dense.astype(np.float32))


def test_correlations_are_those_of_the_full_matrices():
    a, b = codes_of(50, 6, 0), codes_of(50, 9, 1)
    found = Correlations(a, b).matrix()
    for i in range(6):
        for j in range(9):
            assert found[i, j] == pytest.approx(np.corrcoef(a.toarray()[:, i], b.toarray()[:, j])[0, 1], abs=1e-6)
    near = Correlations(a, b).nearest(np.array([4, 1]), None, 3, block_bytes=1)
    assert near.indices.tolist() == [np.argsort(-found[i])[:3].tolist() for i in (4, 1)]
    best = max(itertools.permutations(range(9), 3), key=lambda p: sum(found[i, j] for i, j in enumerate(p)))
    assert Correlations(a[:, :3], b).one_to_one(FEW).others.tolist() == list(best)
    turned = Correlations(b, a[:, :3]).one_to_one(FEW)
    assert turned.rows.tolist() == sorted(best)
    assert turned.mean == pytest.approx(np.mean([found[i, j] for i, j in enumerate(best)]))


def test_permuted_codes_are_the_same_features():
    a = codes_of(400, 40, 0)
    order = np.random.default_rng(1).permutation(40)
    scaled = sparse.csr_array(a[:, order] * 3)
    for limit in (4096, 8):
        config = ConsistencyConfig(num_random=2, exact_limit=limit)
        found = activation_consistency([a, scaled], config=config)
        assert found["activation_mcc"].value == pytest.approx(1, abs=1e-9)
        assert 0 < found["activation_mcc_random"].value < 0.3
    three = activation_consistency([a, scaled, codes_of(400, 40, 2)], names=["a", "b", "c"], config=config)
    assert "3 pairs" in three["activation_mcc"].variant
    assert [row["a"] + row["b"] for row in three.tables["pairs"]] == ["ab", "ac", "bc"]
    assert three.tables["pairs"][1]["activation_mcc"] == pytest.approx(three["activation_mcc_random"].value, abs=0.05)


def test_features_that_never_vary_are_left_out():
    a = codes_of(60, 5, 0).toarray()
    a[:, 1], a[:, 3] = 0, 0.1
    found = activation_consistency([sparse.csr_array(a), sparse.csr_array(a)], config=FEW)
    assert [row["num_varying"] for row in found.tables["dictionaries"]] == [3, 3]
    assert found["activation_mcc"].value == pytest.approx(1)
    assert not Correlations(sparse.csr_array(a), sparse.csr_array(a)).matrix()[[1, 3]].any()
    none = activation_consistency([sparse.csr_array(a), sparse.csr_array((60, 4), dtype=np.float32)], config=FEW)
    assert none["activation_mcc"].value is None
    assert "no feature that varies" in none["activation_mcc"].reason


def test_codes_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens, got 50, 60"):
        activation_consistency([codes_of(50, 3, 0), codes_of(60, 3, 0)])
    with pytest.raises(ValueError, match="at least two"):
        activation_consistency([codes_of(50, 3, 0)])
    with pytest.raises(ValueError, match="same tokens, got 50 and 60"):
        Correlations(codes_of(50, 3, 0), codes_of(60, 3, 0))
