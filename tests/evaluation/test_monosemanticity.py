"""Monosemanticity: against the loop over pairs, for every way in which samples can arrive."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from saescope.evaluation.concepts.monosemanticity import (
    CONSTANT,
    FEW,
    LOST,
    SINGLE,
    MonosemanticityMeter,
    monosemanticity,
    monosemanticity_report,
)


def by_pairs(activations: np.ndarray, embeddings: np.ndarray) -> list[float | None]:
    """The definition, in plain loops."""
    scores: list[float | None] = []
    for column in activations.T.astype(float):
        spread = column.max() - column.min()
        scaled = [(value - column.min()) / spread if spread else 0.0 for value in column]
        above, below = [], []
        for n in range(len(scaled)):
            for m in range(n):
                a, b = embeddings[n].astype(float), embeddings[m].astype(float)
                weight = scaled[n] * scaled[m]
                above.append(weight * float(a @ b) / math.sqrt(float(a @ a)) / math.sqrt(float(b @ b)))
                below.append(weight)
        scores.append(math.fsum(above) / math.fsum(below) if math.fsum(below) > 0 else None)
    return scores


def scores_of(activations: object, embeddings: np.ndarray, **more: int) -> list[float | None]:
    result = monosemanticity(activations, embeddings, **more)  # type: ignore[arg-type]
    return [row["score"] for row in result.tables["latents"]]


def assert_same(found: list[float | None], expected: list[float | None], tolerance: float = 1e-9) -> None:
    assert [value is None for value in found] == [value is None for value in expected]
    for a, b in zip(found, expected, strict=True):
        assert a is None or a == pytest.approx(b, abs=tolerance)


def some(seed: int, num_samples: int = 23, num_latents: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Columns with zeros, negative values, an offset, constants, and one with a single positive."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(num_samples, num_latents))
    values[:, :4] = np.maximum(values[:, :4] - 0.3, 0)
    values[:, 4] += 50
    values[:, 5] = 0
    values[:, 6] = -2.5
    values[:, 7] = 0
    values[num_samples // 2, 7] = 3
    return values, generator.normal(size=(num_samples, 5)) + 0.4


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc matrix"])
def test_every_latent_equals_the_pair_loop(batch: int, kind: str) -> None:
    values, embeddings = some(0)
    given = {"dense": values, "csr": sparse.csr_array(values), "csc matrix": sparse.csc_matrix(values)}[kind]
    assert_same(scores_of(given, embeddings, batch_size_samples=batch), by_pairs(values, embeddings))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_any_batches_any_minimum(seed: int, batch: int, as_sparse: bool) -> None:
    generator = np.random.default_rng(seed)
    # few different values, so that minima come again, move, and are shared
    values = generator.integers(-2, 4, size=(11, 6)) * generator.integers(0, 2, size=6) + generator.integers(
        -1, 2, size=6
    )
    embeddings = generator.normal(size=(11, 3))
    found = scores_of(sparse.csr_array(values) if as_sparse else values, embeddings, batch_size_samples=batch)
    assert_same(found, by_pairs(values, embeddings))


def test_a_minimum_that_comes_late_moves_all_sums() -> None:
    values = np.array([[5.0], [4.0], [4.0], [-3.0], [0.0], [-3.0]])
    embeddings = np.random.default_rng(1).normal(size=(6, 4))
    meter = MonosemanticityMeter(1)
    for row, e in zip(values, embeddings, strict=True):
        meter.update(e[None], row[None])
    found = meter.result()
    assert found.score[0] == pytest.approx(by_pairs(values, embeddings)[0], abs=1e-12)
    assert found.num_positive[0] == 4


def test_an_offset_does_not_cost_digits() -> None:
    values, embeddings = some(2)
    moved = values[:, :5] + 1e6
    exact = by_pairs(moved - 1e6, embeddings)  # what float64 has left of the values
    assert_same(scores_of(moved, embeddings, batch_size_samples=5), exact, 1e-9)


@pytest.mark.parametrize("apart", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("num_firing", [2, 3])
def test_few_samples_far_apart(apart: float, num_firing: int) -> None:
    generator = np.random.default_rng(3)
    values = np.zeros((40, 1))
    values[[3, 17, 29][:num_firing], 0] = [apart, 1.0, 0.7][:num_firing]
    embeddings = generator.normal(size=(40, 8))
    assert_same(scores_of(values, embeddings), by_pairs(values, embeddings))
    assert_same(scores_of(sparse.csr_array(values), embeddings, batch_size_samples=6), by_pairs(values, embeddings))


def test_what_float64_can_not_tell_is_said() -> None:
    values = np.zeros((5, 1))
    values[:2, 0] = [1e12, 1]
    (row,) = monosemanticity(values, np.eye(5)).tables["latents"]
    assert row["score"] is None
    assert row["reason"] == LOST


def test_known_answers() -> None:
    generator = np.random.default_rng(4)
    kinds = np.repeat(np.arange(3), 8)
    embeddings = np.eye(3)[kinds]
    one_kind = (kinds == 1) * generator.uniform(0.5, 2, size=24)
    alike = np.ones(24)
    alike[0] = 0  # and min-max scaling makes the others 1
    opposite = np.zeros(24)
    opposite[[0, 8]] = 1
    result = monosemanticity(np.stack([one_kind, alike, opposite], 1), embeddings)
    scores = [row["score"] for row in result.tables["latents"]]
    same = [float(kinds[n] == kinds[m]) for n in range(24) for m in range(n)]
    same_but_first = [float(kinds[n] == kinds[m]) for n in range(24) for m in range(1, n)]
    assert scores[0] == pytest.approx(1, abs=1e-12)
    assert scores[1] == pytest.approx(np.mean(same_but_first), abs=1e-12)
    assert scores[2] == pytest.approx(0, abs=1e-12)
    assert result["ms_floor"].value == pytest.approx(np.mean(same), abs=1e-12)


def test_numbers_of_the_study() -> None:
    values, embeddings = some(5)
    result = monosemanticity(values, embeddings)
    expected = by_pairs(values, embeddings)
    known = np.array([score for score in expected if score is not None])
    floor = result["ms_floor"].value
    assert floor is not None
    assert result["ms_mean"].value == pytest.approx(known.mean(), abs=1e-9)
    assert result["ms_sd"].value == pytest.approx(known.std(), abs=1e-9)
    assert result["ms_best"].value == pytest.approx(known.max(), abs=1e-9)
    assert f"latent {expected.index(max(known, key=float))}" == result["ms_best"].variant
    assert result["share_above_floor"].value == np.mean(known > floor)
    assert result["num_without_score"].value == 3
    assert result["num_constant"].value == 2
    reasons = [row["reason"] for row in result.tables["latents"]]
    assert reasons[5:8] == [CONSTANT, CONSTANT, SINGLE]
    assert not any(reasons[:5])
    assert any(note.startswith("2 latents have no score") and CONSTANT in note for note in result.notes)
    curve = result.curves["sorted_scores"]
    assert curve["score"] == pytest.approx(sorted(known, reverse=True), abs=1e-9)
    assert curve["normalised_rank"] == pytest.approx([k / 5 for k in range(6)])
    assert [row["num_positive"] for row in result.tables["latents"]] == [int((c > c.min()).sum()) for c in values.T]


def test_a_dead_dictionary_has_no_mean() -> None:
    result = monosemanticity(sparse.csr_array((6, 4)), np.random.default_rng(0).normal(size=(6, 3)))
    assert result["ms_mean"].value is None
    assert result["ms_mean"].reason == "no latent has a score"
    assert result["num_without_score"].value == 4
    assert result["ms_floor"].value is not None
    assert result.curves["sorted_scores"] == {"normalised_rank": [], "score": []}


def test_one_sample_has_no_pairs() -> None:
    result = monosemanticity(np.ones((1, 2)), np.ones((1, 3)))
    assert result["ms_floor"].value is None
    assert [row["reason"] for row in result.tables["latents"]] == [FEW, FEW]
    empty = monosemanticity_report(MonosemanticityMeter(2).result())
    assert empty["num_samples"].value == 0
    assert empty["ms_mean"].value is None


def test_refusals() -> None:
    values, embeddings = np.ones((4, 2)), np.ones((4, 3))
    with pytest.raises(ValueError, match="one row a sample"):
        monosemanticity(values[:3], embeddings)
    with pytest.raises(ValueError, match="length 0"):
        monosemanticity(values, embeddings * np.array([[1], [1], [0], [1]]))
    with pytest.raises(ValueError, match="finite"):
        monosemanticity(np.where(np.eye(4, 2) > 0, np.nan, values), embeddings)
    with pytest.raises(ValueError, match="finite"):
        monosemanticity(sparse.csr_array(np.full((4, 2), np.inf)), embeddings)
    meter = MonosemanticityMeter(2)
    meter.update(embeddings, values)
    with pytest.raises(ValueError, match="3 wide so far, got 2"):
        meter.update(embeddings[:, :2], values)
    with pytest.raises(ValueError, match="for 2 latents"):
        meter.update(embeddings, values[:, :1])


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    generator = np.random.default_rng(6)
    result = monosemanticity(generator.uniform(size=(8, 2000)), generator.normal(size=(8, 3)))
    curve = result.curves["sorted_scores"]
    assert len(curve["score"]) == len(curve["normalised_rank"]) == 512
    assert (curve["normalised_rank"][0], curve["normalised_rank"][-1]) == (0, 1)
    assert curve["score"][0] == result["ms_best"].value
