"""A list as a whole is what its pages are one after the other; and what was added to features, by the row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from saescope.store import Explanation, FeatureMarks, FeatureRecord, NotInStoreError, Store, listing
from saescope.store.filters import KEYS

NUMBERS = ("density", "logit_kurtosis", "cluster", "first_firing")


@pytest.fixture
def records(store: Store, make: SimpleNamespace) -> list[FeatureRecord]:
    """60 of 500 features with many ties and gaps, in two analyses beside another dictionary; some with remarks."""
    rng = random.Random(0)
    features = []
    for index in rng.sample(range(500), 60):
        values: dict[str, Any] = {name: rng.choice([None, 0, 1, 2]) for name in NUMBERS} | {
            "density": rng.choice([0.5, 0.25])
        }
        label = (
            make.label(rng.choice(["red", "green"]), lift=rng.choice([None, 1.5, 2.5])) if rng.random() < 0.6 else None
        )
        features.append(make.feature(index, label=label, **values))
    store.write(make.dictionary("other"), make.analysis(), [make.feature(3)], [], [])
    store.write(make.dictionary(d_sae=500), make.analysis(), features, [], [])
    store.write(make.dictionary(d_sae=500), make.analysis("second"), [make.feature(4), make.feature(499)], [], [])
    for place, feature in enumerate(features):
        if place % 3 == 0:
            store.tag("tiny", feature.record.index, "odd")
        if place % 4 == 0:
            store.bookmark("tiny", feature.record.index)
    return [feature.record for feature in features]


def _value(record: FeatureRecord, key: str) -> float | None:
    if key in ("precision", "recall", "lift"):
        return None if record.label is None else getattr(record.label, key)
    return getattr(record, key)


def _by_pages(store: Store, **query: Any) -> list[int]:
    found, after = [], None
    while True:
        page = store.features("tiny", analysis="default", limit=7, after=after, **query)
        found += [feature.index for feature in page.features]
        if page.next is None:
            return found
        after = page.next


@pytest.mark.parametrize("descending", [True, False])
def test_every_sort_is_that_of_brute_force(store: Store, records: list[FeatureRecord], descending: bool) -> None:
    for sort in KEYS:

        def rank(record: FeatureRecord, sort: str = sort) -> tuple[bool, float, int]:
            value = _value(record, sort)
            return value is None, 0 if value is None else -value if descending else value, record.index

        expected = [record.index for record in sorted(records, key=rank)]
        assert store.order("tiny", analysis="default", sort=sort, descending=descending) == expected, sort


@pytest.mark.parametrize("few", [2500, 10, 0])
def test_filters_give_what_the_pages_give(
    store: Store, records: list[FeatureRecord], monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(listing, "_FEW", few)
    queries: list[dict[str, Any]] = [
        {"where": {"cluster": (1, None)}},
        {"where": {"lift": (None, 2), "first_firing": (0, 1)}, "sort": "lift", "descending": False},
        {"search": "re", "sort": "index"},
        {"search": "gre", "where": {"density": (0.3, 1)}, "sort": "logit_kurtosis"},
        {"tag": "odd", "sort": "cluster", "descending": False},
        {"bookmarked": True},
        {"bookmarked": True, "tag": "odd", "search": "green", "sort": "lift"},
        {"tag": "unknown"},
    ]  # fmt: skip
    lengths = []
    for query in queries:
        order = store.order("tiny", analysis="default", **query)
        assert order == _by_pages(store, **query), query
        lengths.append(len(order))
    chosen = [record for record in records if record.label and record.label.text == "green" and record.density >= 0.3]
    assert sorted(store.order("tiny", analysis="default", **queries[3])) == sorted(record.index for record in chosen)
    assert lengths[-1] == 0
    assert all(0 < length < len(records) for length in lengths[:-1]), lengths


def test_other_analyses_and_wrong_keys(store: Store, records: list[FeatureRecord]) -> None:
    assert store.order("tiny", sort="index") == [499, 4]  # the newest
    assert store.order("other") == [3]
    with pytest.raises(ValueError, match="cannot be sorted by 'densty'; did you mean 'density'"):
        store.order("tiny", sort="densty")
    with pytest.raises(NotInStoreError, match="no analysis named 'third'"):
        store.order("tiny", analysis="third")


def test_records_come_in_the_order_asked_for(store: Store, records: list[FeatureRecord]) -> None:
    wanted = random.Random(1).choices(records, k=100)  # some of them twice
    assert store.records("tiny", (record.index for record in wanted), analysis="default") == wanted
    assert store.records("tiny", [], analysis="default") == []
    missing = next(index for index in range(500) if index not in {record.index for record in records})
    with pytest.raises(NotInStoreError, match=f"feature {missing} is not in the analysis 'default' of 'tiny'"):
        store.records("tiny", [records[0].index, missing], analysis="default")


def test_counting_all_looks_at_no_feature(store: Store, records: list[FeatureRecord]) -> None:
    assert store.count("tiny", analysis="default") == len(records)
    assert store.count("tiny", analysis="default", where={"density": (None, None)}) == len(records)
    assert store.count("tiny") == 2


def test_bounds_on_the_best_score_of_explanations(
    store: Store, records: list[FeatureRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, best = random.Random(2), {}
    for record in records[:30]:
        scores = [rng.choice([None, 0.25, 0.5, 0.75]) for _ in range(rng.randrange(3))]
        for score in scores:
            store.explain("tiny", record.index, Explanation(text="x", score=score))
        best[record.index] = max((score for score in scores if score is not None), default=None)
    store.explain("other", 3, Explanation(text="x", score=0.5))
    for few in (2500, 0):
        monkeypatch.setattr(listing, "_FEW", few)
        for low, high in ((0.5, None), (None, 0.5), (0.25, 0.5), (0.6, 0.7), (None, 5.0)):

            def passes(score: float | None, low: float | None = low, high: float | None = high) -> bool:
                return score is not None and (low is None or score >= low) and (high is None or score <= high)

            expected = sorted(index for index, score in best.items() if passes(score))
            query: dict[str, Any] = {"where": {"explanation_score": (low, high)}, "sort": "index", "descending": False}
            assert store.order("tiny", analysis="default", **query) == expected, (low, high)
            assert _by_pages(store, **query) == expected
            assert store.count("tiny", analysis="default", where=query["where"]) == len(expected)
    with pytest.raises(ValueError, match="cannot be sorted by 'explanation_score'"):
        store.features("tiny", sort="explanation_score")


def test_marks_of_some_features(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    fill(store, "other")
    for tag in ("b", "a"):
        store.tag("tiny", 2, tag)
    store.bookmark("tiny", 5)
    store.bookmark("other", 6)
    for text, score in (("weak", 0.25), ("strong", 0.75), ("unsure", None)):
        store.explain("tiny", 3, Explanation(text=text, score=score))
    for text in ("first", "last"):
        store.explain("tiny", 5, Explanation(text=text))
    marks = store.marks("tiny", [5, 3, 2, 1, 6, 5])
    assert set(marks) == {2, 3, 5}
    assert marks[2] == FeatureMarks(tags=("a", "b"))
    assert (marks[3].explanation, marks[5].explanation) == (
        store.page("tiny", 3).explanations[1],
        store.page("tiny", 5).explanations[1],
    )
    assert (marks[3].is_bookmarked, marks[5].is_bookmarked) == (False, True)
    assert set(store.marks("tiny", [5])) == {5}


def test_a_feature_drawn_by_lot(store: Store, make: SimpleNamespace) -> None:
    analysed = [make.feature(index) for index in (2, 3, 900)]
    store.write(make.dictionary(d_sae=1000), make.analysis(), analysed, [], [])
    drawn = Counter(store.draw("tiny") for _ in range(150))
    assert set(drawn) == {2, 3, 900}
    assert min(drawn.values()) > 20  # of 50 on average: fair draws miss it once in a million runs
    store.write(make.dictionary("empty"), make.analysis(), [], [], [])
    with pytest.raises(NotInStoreError, match="has no feature"):
        store.draw("empty")
