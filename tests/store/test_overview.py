"""A store and an analysis at a glance."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from saescope.store import EvaluationResult, Explanation, Histogram, Note, Store, TrainingRun


def test_a_summary_counts_and_orders(store: Store, make: SimpleNamespace) -> None:
    rng = random.Random(0)
    features = []
    for index in range(150):
        num_firings = rng.choice([0, 1, 3, 10, 10_000, 90_000])
        changes = {"num_firings": num_firings, "density": num_firings / 100_000, "max_activation": rng.random()}
        label = make.label("a") if index % 4 == 0 else None
        features.append(make.feature(index, label=label, **changes))
    store.write(make.dictionary(d_sae=200), make.analysis(), features, [], [])
    for index in (3, 3, 4, 180):
        store.explain("tiny", index, Explanation(text="x"))
    summary = store.summary()
    records = [feature.record for feature in features]
    firing = [record for record in records if record.num_firings]
    assert (summary.dictionary, summary.analysis) == (store.dictionary(), store.analysis())
    assert (summary.num_features, summary.num_dead) == (150, 150 - len(firing))
    assert summary.num_dense == sum(record.is_dense for record in records) > 0
    assert (summary.num_labelled, summary.num_explained) == (38, 2)
    for pairs, values in (
        (summary.density_quantiles, [record.density for record in firing]),
        (summary.max_quantiles, [record.max_activation for record in firing]),
    ):
        assert [share for share, _ in pairs] == [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]
        np.testing.assert_allclose([value for _, value in pairs], np.quantile(values, [share for share, _ in pairs]))
    edges = summary.log_density.edges
    assert (edges[0], edges[-1]) == (-5.0, 0.0)
    assert np.diff(edges).tolist() == [0.25] * 20
    logs = [math.log10(record.density) for record in firing]
    counts = [sum(low <= value < high for value in logs) for low, high in itertools.pairwise(edges)]
    assert summary.log_density.counts == tuple(counts)


def test_a_summary_of_nothing(store: Store, make: SimpleNamespace) -> None:
    store.write(make.dictionary(), make.analysis(), [make.feature(0)], [], [])
    summary = store.summary()
    assert (summary.num_features, summary.num_dead) == (1, 1)
    assert (summary.density_quantiles, summary.max_quantiles, summary.log_density) == ((), (), Histogram())


def test_info_says_what_a_store_holds(
    store: Store, store_address: str, make: SimpleNamespace, fill: Callable[..., object]
) -> None:
    empty = store.info()
    assert empty.dictionaries == ()
    fill(store, evaluations=[EvaluationResult(study="s", metric="m", value=1.0)], run=TrainingRun())
    fill(store, analysis="second")
    fill(store, "other")
    store.explain("tiny", 0, Explanation(text="x"))
    store.tag("tiny", 0, "a")
    store.tag("tiny", 0, "b")
    store.bookmark("tiny", 0)
    for text in "abc":
        store.add_note("tiny", 0, Note(text=text))
    info = store.info()
    assert info.num_bytes >= empty.num_bytes > 0
    other, tiny = info.dictionaries
    assert [known.analysis for known in tiny.analyses] == store.analyses("tiny")
    assert {(known.num_features, known.num_windows, known.num_examples) for known in tiny.analyses} == {(8, 3, 3)}
    assert (tiny.dictionary, other.dictionary) == (make.dictionary(), make.dictionary("other"))
    counted = (tiny.num_explanations, tiny.num_tags, tiny.num_bookmarks, tiny.num_notes)
    assert (*counted, tiny.num_evaluations, tiny.num_runs) == (1, 2, 1, 3, 1, 1)
    assert (other.num_explanations, other.num_runs) == (0, 0)
    if store_address.startswith("postgresql"):
        assert info.database.startswith("PostgreSQL ")
        assert info.place.startswith("postgresql+psycopg://test@/")
    else:
        assert info.database.startswith("SQLite 3.")
        assert info.place == store_address
        assert info.num_bytes == Path(store_address).stat().st_size


def test_a_password_is_not_shown(new_postgres: Callable[[], str]) -> None:
    with Store.open(new_postgres().replace("test@", "test:secret@")) as store:
        assert "secret" not in store.info().place
        assert "test:***@" in store.info().place


@pytest.mark.parametrize("density", [1.0, 0.1, 1e-300])
def test_every_density_has_a_bin(store: Store, make: SimpleNamespace, density: float) -> None:
    store.write(make.dictionary(), make.analysis(), [make.feature(1, density=density)], [], [])
    histogram = store.summary().log_density
    assert histogram.counts == (1,)
    assert histogram.edges[0] <= math.log10(density) < histogram.edges[1]
