"""Concept cones: nearest points against NNLS on everything at once, known angles, and the controls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize

from saescope.dictionaries import DictionaryConfig, ReLU
from saescope.evaluation.concepts import cone_fit
from saescope.evaluation.concepts.cone_fit import Cone
from saescope.evaluation.concepts.cones import ConeConfig, concept_cones, cone_containment, decoder_directions
from saescope.evaluation.concepts.directions import concept_directions
from saescope.evaluation.sample import TokenLabels, TokenSample

FEW = (1, 2, 4, 8)


def dictionary_of(rows: np.ndarray) -> ReLU:
    """Encoder and decoder alike, no biases."""
    dictionary = ReLU(DictionaryConfig(d_in=rows.shape[1], d_sae=len(rows)))
    with torch.no_grad():
        for weights in (dictionary.W_dec, dictionary.encoder_rows):
            assert weights is not None
            weights.copy_(torch.from_numpy(rows))
    return dictionary


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(("num_atoms", "width"), [(5, 12), (12, 12), (40, 30), (90, 10), (200, 40)])
def test_the_nearest_point_is_that_of_nnls_on_all_atoms(
    num_atoms: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cone_fit, "_BLOCK", 17)  # several blocks, the last of them short
    rows = normal(0, num_atoms, width) * np.random.default_rng(1).uniform(0.1, 9, size=(num_atoms, 1))
    directions = unit(normal(2, 6, width))
    cone = Cone(rows)
    for direction, fit in zip(directions, cone.nearest(directions), strict=True):
        _, left = optimize.nnls(unit(rows).T, direction)
        assert fit.coverage == pytest.approx(1 - left**2, abs=1e-9)
        point = fit.dense(num_atoms) @ unit(rows)
        assert np.linalg.norm(direction - point) == pytest.approx(left, abs=1e-7)
        assert (fit.weights > 0).all()
        if left > 1e-6 and len(fit.atoms):  # the cosine of the angle, and nothing of the cone along what is left
            assert fit.coverage == pytest.approx((direction @ unit(point)) ** 2, abs=1e-9)
            assert (unit(rows) @ (direction - point)).max() < 1e-8


def test_few_atoms_against_every_choice() -> None:
    rows, directions = unit(normal(3, 11, 5)), unit(normal(4, 8, 5))
    found = Cone(rows).pursuit(directions, (1, 2, 4))
    for number, direction in enumerate(directions):
        best = {}
        for size in (1, 2, 4):
            choices = itertools.combinations(range(11), size)
            best[size] = max(1 - optimize.nnls(rows[list(c)].T, direction)[1] ** 2 for c in choices)
        assert found[1][number].coverage == pytest.approx(best[1], abs=1e-12)  # one atom: exact
        assert found[1][number].coverage == pytest.approx(max(0, (rows @ direction).max()) ** 2, abs=1e-12)
        for size in (2, 4):
            fit = found[size][number]
            assert len(fit.atoms) <= size
            assert fit.coverage <= best[size] + 1e-12
            # the weights are the best ones for these atoms
            assert fit.coverage == pytest.approx(1 - optimize.nnls(rows[fit.atoms].T, direction)[1] ** 2, abs=1e-12)
        assert found[1][number].coverage <= found[2][number].coverage + 1e-12
        assert found[2][number].coverage <= found[4][number].coverage + 1e-12


def test_the_pursuit_takes_the_atom_most_along_what_is_left() -> None:
    rows = np.eye(4)
    direction = unit(np.array([[3.0, 2.0, 1.0, -5.0]]))
    found = Cone(rows).pursuit(direction, (1, 2, 3, 4))
    assert [fits[0].atoms.tolist() for fits in found.values()] == [[0], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert [fits[0].coverage for fits in found.values()] == pytest.approx([9 / 39, 13 / 39, 14 / 39, 14 / 39])


def test_inside_the_cone_coverage_is_one() -> None:
    rows = unit(normal(5, 6, 20))
    inside = np.array([1.0, 0, 2, 0, 0, 0.5]) @ rows
    result = cone_containment(np.stack([inside, 7 * rows[4]]), dictionary_of(rows), names=["mixed", "atom"])
    mixed, atom = result.tables["concepts"]
    assert mixed["coverage"] == pytest.approx(1, abs=1e-6)
    assert mixed["num_atoms"] == 3
    assert atom["coverage_1"] == pytest.approx(1, abs=1e-6)
    assert (atom["axis_feature"], atom["num_atoms"]) == (4, 1)
    assert atom["axis"] == pytest.approx(1, abs=1e-6)
    assert atom["participation"] == pytest.approx(1, abs=1e-3)
    assert atom["random_coverage"] < 0.9


@pytest.mark.parametrize("degrees", [0, 20, 60, 89])
def test_outside_it_is_the_squared_cosine_of_the_angle(degrees: float) -> None:
    """A cone in the plane of the first two axes, a direction that leaves it at a known angle."""
    angle = math.radians(degrees)
    rows = np.array([[1.0, 0, 0], [0, 3.0, 0]])
    direction = np.array([[math.cos(angle), math.cos(angle), math.sqrt(2) * math.sin(angle)]])
    (row,) = cone_containment(direction, dictionary_of(rows)).tables["concepts"]
    assert row["coverage"] == pytest.approx(math.cos(angle) ** 2, abs=1e-7)
    assert row["coverage_1"] == pytest.approx(math.cos(angle) ** 2 / 2, abs=1e-7)
    assert row["participation"] == pytest.approx(2, abs=1e-6)


def test_a_direction_opposite_to_all_atoms_is_not_covered() -> None:
    rows = np.abs(normal(6, 5, 4))
    (row,) = cone_containment(-np.ones((1, 4)), dictionary_of(rows)).tables["concepts"]
    assert row["coverage"] == row["coverage_8"] == 0
    assert row["num_atoms"] == 0
    assert row["participation"] is None
    assert row["axis"] < 0


def test_rotation_and_scale_change_nothing() -> None:
    rows, directions = normal(7, 30, 8), normal(8, 4, 8)
    turn = np.linalg.qr(normal(9, 8, 8))[0]
    scale = np.random.default_rng(10).uniform(0.2, 5, size=(30, 1))
    plain = cone_containment(directions, dictionary_of(rows))
    turned = cone_containment(3 * directions @ turn, dictionary_of(scale * rows @ turn))
    for name in ("coverage_1", "coverage_2", "coverage_4", "coverage_8", "coverage", "axis", "axis_one_to_one"):
        assert turned[name].value == pytest.approx(plain[name].value, abs=1e-5)


def test_a_random_dictionary_saturates_and_says_so() -> None:
    planted = unit(normal(11, 64, 16))
    directions = planted[:10]
    result = cone_containment(directions, dictionary_of(planted))
    assert result["random_coverage"].value == pytest.approx(1, abs=1e-6)  # 64 atoms in 16 dimensions
    assert result["coverage_1"].value == pytest.approx(1, abs=1e-6)
    assert 0.1 < result["random_coverage_1"].value < 0.6
    assert result["random_coverage_1"].high < result["coverage_1"].low
    assert any("random" in note and "whole space" in note for note in result.notes)
    # a random dictionary in the place of the planted one is no better than the baseline
    other = cone_containment(directions, dictionary_of(normal(12, 64, 16)))
    assert abs(other["coverage_1"].value - other["random_coverage_1"].value) < 0.1
    by_hand = []
    generator = np.random.default_rng(0)
    for _ in range(3):
        rows = unit(generator.standard_normal((64, 16), dtype=np.float32).astype(float))
        by_hand.append(np.maximum(directions @ rows.T, 0).max(1) ** 2)
    assert result["random_coverage_1"].value == pytest.approx(np.mean(by_hand), abs=1e-9)


def test_numbers_are_means_of_the_rows_and_curves_show_them() -> None:
    rows, directions = normal(13, 25, 6), normal(14, 7, 6)
    result = cone_containment(directions, dictionary_of(rows), shuffled=normal(15, 3, 6))
    table = result.tables["concepts"]
    for name in ("coverage", "coverage_2", "random_coverage_4", "axis", "axis_one_to_one", "num_atoms"):
        assert result[name].value == pytest.approx(np.mean([row[name] for row in table]))
    curve = result.curves["coverage"]
    assert curve["num_atoms"] == [1, 2, 4, 8]
    for kind in ("", "random_", "shuffled_"):
        assert curve[f"{kind}coverage"] == [result[f"{kind}coverage_{size}"].value for size in FEW]
    again = cone_containment(directions, dictionary_of(rows), shuffled=normal(15, 3, 6))
    assert again.numbers == result.numbers


def test_one_to_one_matching_against_every_assignment() -> None:
    rows = unit(np.array([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0.7]]))
    directions = unit(np.array([[1.0, 0.1, 0], [1.0, 0, 0.2], [0.9, 0.3, 0]]))
    result = cone_containment(directions, dictionary_of(rows))
    cosines = directions @ rows.T
    best = max(np.mean([cosines[c, a] for c, a in enumerate(order)]) for order in itertools.permutations(range(3)))
    assert result["axis_one_to_one"].value == pytest.approx(best, abs=1e-6)
    assert result["axis"].value == pytest.approx(cosines.max(1).mean(), abs=1e-6)
    assert result["axis"].value > result["axis_one_to_one"].value + 0.1


def test_correlations_against_plain_loops() -> None:
    rows = normal(16, 9, 5) * np.array([1, 2, 0.5, 1, 1, 1, 3, 1, 1])[:, None]
    directions, x = normal(17, 3, 5), torch.from_numpy(normal(18, 60, 5)).float()
    dictionary = dictionary_of(rows)
    with torch.no_grad():
        assert dictionary.b_enc is not None
        dictionary.b_enc[3] = -1e3  # dead
        codes = dictionary.encode(x).double().numpy()
    result = cone_containment(directions, dictionary, sample=TokenSample.of_activations(x))
    cone = Cone(decoder_directions(dictionary))
    for direction, row, fit, few in zip(
        unit(directions), result.tables["concepts"], cone.nearest(unit(directions)),
        cone.pursuit(unit(directions), (2,))[2], strict=True,
    ):  # fmt: skip
        projection = x.double().numpy() @ direction
        each = [np.corrcoef(projection, codes[:, i])[0, 1] if codes[:, i].any() else -2 for i in range(9)]
        assert row["activation_correlation"] == pytest.approx(max(each), abs=1e-6)
        assert row["activation_feature"] == int(np.argmax(each))
        lengths = np.linalg.norm(dictionary.W_dec.detach().double().numpy(), axis=1)
        for name, weights in (("sum_correlation", fit), ("sum_correlation_2", few)):
            total = (codes * lengths) @ weights.dense(9)
            assert row[name] == pytest.approx(np.corrcoef(projection, total)[0, 1], abs=1e-6)


def test_principal_components_are_a_baseline() -> None:
    x = normal(19, 400, 6) * np.array([5, 4, 3, 2, 1, 0.5])
    turn = np.linalg.qr(normal(20, 6, 6))[0]
    sample = TokenSample.of_activations(torch.from_numpy(x @ turn))
    axes = np.linalg.svd(sample.x.double().numpy() - sample.x.double().numpy().mean(0), full_matrices=False)[2]
    directions = np.stack([axes[0], -axes[2], axes[0] - axes[3]])
    result = cone_containment(directions, dictionary_of(normal(21, 12, 6)), sample=sample)
    table = result.tables["concepts"]
    assert [row["pca_coverage_1"] for row in table] == pytest.approx([1, 1, 0.5], abs=1e-6)
    assert table[2]["pca_coverage_2"] == pytest.approx(1, abs=1e-6)


def test_dead_dictionaries_and_empty_directions_are_said() -> None:
    dead = cone_containment(normal(22, 2, 4), dictionary_of(np.zeros((5, 4))))
    assert dead["coverage"].value == dead["coverage_1"].value == 0
    assert dead["axis"].value is None
    sample = TokenSample.of_activations(torch.from_numpy(normal(23, 20, 4)))
    silent = cone_containment(normal(22, 2, 4), dictionary_of(np.zeros((5, 4))), sample=sample)
    assert silent["activation_correlation"].value is None
    assert silent["sum_correlation"].value is None
    part = np.stack([normal(24, 4), np.zeros(4)])
    result = cone_containment(part, dictionary_of(normal(25, 5, 4)), names=["there", "nothing"])
    assert result.tables["concepts"][1]["coverage"] is None
    assert result.tables["concepts"][1]["reason"] == "its direction has length 0"
    assert any("nothing is left out" in note for note in result.notes)
    none = cone_containment(np.zeros((0, 4)), dictionary_of(normal(25, 5, 4)))
    assert none["coverage"].value is None
    assert none["coverage"].reason == "there is no direction"


def test_refusals() -> None:
    dictionary = dictionary_of(normal(26, 5, 4))
    with pytest.raises(ValueError, match="as wide as the decoder"):
        cone_containment(np.ones((2, 3)), dictionary)
    with pytest.raises(ValueError, match="finite"):
        cone_containment(np.full((2, 4), np.nan), dictionary)
    with pytest.raises(ValueError, match="2 directions and 1 names"):
        cone_containment(np.ones((2, 4)), dictionary, names=["one"])
    with torch.no_grad():
        dictionary.W_dec[2, 1] = float("nan")
    with pytest.raises(ValueError, match="decoder holds NaN"):
        cone_containment(np.ones((2, 4)), dictionary)
    for bad in ({"num_atoms": (2, 1)}, {"num_atoms": ()}, {"num_random": 0}, {"direction": "mean"}):
        with pytest.raises(ValueError, match="must"):
            ConeConfig(**bad)  # type: ignore[arg-type]


def planted(seed: int = 0, num_tokens: int = 1200) -> tuple[TokenSample, TokenLabels, np.ndarray]:
    """Three concepts along known atoms of 12, in 8 documents, and one concept that is nearly never there."""
    generator = np.random.default_rng(seed)
    atoms = unit(generator.normal(size=(12, 24)))
    fires = generator.random((num_tokens, 12)) < 0.2
    x = (fires * generator.uniform(1, 2, size=fires.shape)) @ atoms + 0.05 * generator.normal(size=(num_tokens, 24))
    sample = TokenSample.of_activations(torch.from_numpy(x), document=np.arange(num_tokens) // 150)
    rare = np.arange(num_tokens) < 3
    values = np.column_stack([fires[:, :3], rare])
    return sample, TokenLabels(names=("a", "b", "c", "rare"), values=values), atoms


def test_directions_of_planted_concepts() -> None:
    sample, labels, atoms = planted()
    found = concept_directions(sample, labels)
    assert found.names == ("a", "b", "c")
    assert "at least 10 positive" in found.skipped["rare"]
    y = sample.y.double().numpy()
    for name, difference in zip(found.names, found.difference, strict=True):
        truth = labels.column(name)
        expected = unit(y[truth].mean(0) - y[~truth].mean(0))
        assert unit(difference) == pytest.approx(expected, abs=1e-9)
    assert (np.diag(unit(found.difference) @ atoms[:3].T) > 0.85).all()
    # a probe reads a concept off in spite of the others: it tells the tokens apart better than the difference of means
    for number, name in enumerate(found.names):
        truth, scores = labels.column(name), y @ found.probe[number]
        assert (scores[truth].mean() - scores[~truth].mean()) / scores.std() > 1.5
    noise = concept_directions(sample, labels, shuffle_seed=0)
    assert np.abs(np.diag(unit(noise.difference) @ atoms[:3].T)).max() < 0.6
    few = concept_directions(sample, labels, num_tokens=100)
    assert not np.allclose(few.probe, found.probe)
    assert few.difference == pytest.approx(found.difference)


@pytest.mark.parametrize("direction", ["probe", "difference"])
def test_the_study_of_labels(direction: str) -> None:
    sample, labels, atoms = planted()
    config = ConeConfig(direction=direction)  # type: ignore[arg-type]
    result = concept_cones(dictionary_of(atoms), sample, labels, config)
    rows = {row["concept"]: row for row in result.tables["concepts"]}
    assert [rows[name]["axis_feature"] for name in "abc"] == [0, 1, 2]
    assert [rows[name]["activation_feature"] for name in "abc"] == [0, 1, 2]
    assert rows["rare"]["coverage"] is None
    assert "at least 10 positive" in rows["rare"]["reason"]
    assert set(rows["rare"]) == set(rows["a"])
    assert result["coverage_1"].value > result["shuffled_coverage_1"].value + 0.2
    assert result["coverage_1"].value > result["random_coverage_1"].value + 0.2
    assert any("rare is left out" in note for note in result.notes)
    given = (concept_directions(sample, labels), concept_directions(sample, labels, shuffle_seed=config.seed))
    assert concept_cones(dictionary_of(atoms), sample, labels, config, directions=given).numbers == result.numbers
    with pytest.raises(ValueError, match="labels for 1,200 tokens, but the sample has 1,199"):
        concept_cones(dictionary_of(atoms), sample.select(np.arange(1199)), labels, config)
