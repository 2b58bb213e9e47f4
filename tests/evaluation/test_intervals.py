"""Bootstrap over documents: against draws made one by one, and coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from saescope.evaluation.intervals import bootstrap, interval, sums_by_document


def ratio(totals: np.ndarray) -> np.ndarray:
    return totals[:, 0] / totals[:, 1]


def test_draws_one_by_one() -> None:
    generator = np.random.default_rng(0)
    sums = np.stack([generator.normal(size=23), generator.integers(1, 9, size=23)], axis=-1)
    draws = np.random.default_rng(7)
    values = []
    for _ in range(500):
        chosen = draws.integers(23, size=23)
        values.append(sum(sums[i, 0] for i in chosen) / sum(sums[i, 1] for i in chosen))
    expected = tuple(np.quantile(values, [0.025, 0.975]))
    (found,) = bootstrap(sums, ratio, seed=7, num_draws=500)
    assert found == pytest.approx(expected, rel=1e-12)


def test_several_numbers_have_the_same_draws_as_each_alone() -> None:
    sums = np.random.default_rng(1).random((40, 2)) + 0.5
    both = bootstrap(sums, lambda t: np.stack([ratio(t), t[:, 0]], axis=-1), seed=3)
    assert both[0] == bootstrap(sums, ratio, seed=3)[0]
    assert both[1] == bootstrap(sums, lambda t: t[:, 0], seed=3)[0]


def test_blocks_of_draws_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(1).random((40, 2)) + 0.5
    whole = bootstrap(sums, ratio)
    monkeypatch.setattr("saescope.evaluation.intervals._AT_ONCE", 40 * 7)
    assert bootstrap(sums, ratio) == [pytest.approx(whole[0], rel=1e-12)]


def test_the_truth_is_inside_about_as_often_as_promised() -> None:
    """Documents differ in their own means, so that an interval over tokens would miss the truth most of the time."""
    inside = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        tokens = generator.normal(size=(40, 1)) + 0.1 * generator.normal(size=(40, 50))
        sums = np.stack([tokens.sum(1), np.full(40, 50)], axis=-1)
        (found,) = bootstrap(sums, ratio, seed=seed, num_draws=400)
        assert found is not None
        inside += found[0] <= 0 <= found[1]
    assert 0.88 <= inside / 200 <= 0.99


def test_no_interval_without_documents_to_draw() -> None:
    assert bootstrap(np.ones((1, 2)), ratio) == [None]
    assert interval(np.ones((1, 2)), ratio) == {"low": None, "high": None}
    # one document in ten holds all positives: a third of the draws are without any
    sums = np.stack([np.eye(10)[0], np.eye(10)[0]], axis=-1)
    assert bootstrap(sums, ratio) == [None]
    with pytest.raises(ValueError, match=r"a table \[documents, sums\], got shape \[3\]"):
        bootstrap(np.ones(3), ratio)


def test_sums_by_document() -> None:
    document = np.array([5, 2, 5, 9])
    values = np.array([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    np.testing.assert_array_equal(sums_by_document(document, values), [[2, 20], [4, 40], [4, 40]])
    np.testing.assert_array_equal(sums_by_document(document, values[:, 0]), [[2], [4], [4]])
