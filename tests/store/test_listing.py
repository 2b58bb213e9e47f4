"""Sorted, filtered lists, page by page: the same as sorting and filtering everything in memory."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from saescope.store import Feature, FeatureRecord, Store, listing
from saescope.store.records import LABEL_NUMBERS, NUMBERS

KEYS = ("index", *NUMBERS, *LABEL_NUMBERS)
_KNOWN = ("num_firings", "density", "max_activation", "mean_activation", "std_activation", "mean_positive")
_ALWAYS = (*_KNOWN, "median_positive", "num_windows")
_WHOLE = ("num_firings", "num_windows", "first_firing", "last_firing", "cluster")


def _value(record: FeatureRecord, key: str) -> float | None:
    if key in LABEL_NUMBERS:
        return None if record.label is None else getattr(record.label, key)
    return getattr(record, key)


def _expected(
    records: list[FeatureRecord],
    sort: str,
    descending: bool,
    where: dict[str, tuple[float | None, float | None]],
) -> list[int]:
    """By brute force."""

    def passes(record: FeatureRecord) -> bool:
        for key, (low, high) in where.items():
            value = _value(record, key)
            if (low, high) == (None, None):
                continue
            if value is None or (low is not None and value < low) or (high is not None and value > high):
                return False
        return True

    def rank(record: FeatureRecord) -> tuple[bool, float, int]:
        value = _value(record, sort)
        if value is None:
            return True, 0.0, record.index
        return False, -value if descending else value, record.index

    return [record.index for record in sorted(filter(passes, records), key=rank)]


@pytest.fixture
def records(store: Store, make: SimpleNamespace) -> list[FeatureRecord]:
    """70 features with many ties and many numbers that were not measured; in two analyses beside another dictionary."""
    rng = random.Random(0)

    def number(name: str, may_miss: bool) -> float | None:
        if may_miss and rng.random() < 0.4:
            return None
        return rng.randrange(4) if name in _WHOLE else rng.choice([0.0, -1.5, 1 / 3, rng.random()])

    features: list[Feature] = []
    for index in rng.sample(range(500), 70):
        label = None
        if rng.random() < 0.6:
            label = make.label("a", **{name: number(name, True) for name in LABEL_NUMBERS})
        numbers = {name: number(name, name not in _ALWAYS) for name in NUMBERS}
        features.append(make.feature(index, label=label, **numbers))
    record = make.dictionary(d_sae=500)
    store.write(make.dictionary("other"), make.analysis(), [make.feature(3)], [], [])
    store.write(record, make.analysis(), features, [], [])
    store.write(record, make.analysis("second"), [make.feature(4), make.feature(499)], [], [])
    return [feature.record for feature in features]


def _listed(store: Store, limit: int, **query: Any) -> list[int]:
    """All pages of a list; every other one says how many features there are in all."""
    found: list[int] = []
    totals: list[int | None] = []
    after = None
    while True:
        with_total = len(totals) % 2 == 0
        page = store.features("tiny", analysis="default", limit=limit, after=after, with_total=with_total, **query)
        assert len(page.features) <= limit
        found += [feature.index for feature in page.features]
        totals.append(page.total)
        if page.next is None:
            assert totals == [len(found) if place % 2 == 0 else None for place in range(len(totals))]
            return found
        assert len(page.features) == limit
        after = page.next


@pytest.mark.parametrize("descending", [True, False])
def test_pages_of_every_sort(store: Store, records: list[FeatureRecord], descending: bool) -> None:
    for sort in KEYS:
        assert _listed(store, 17, sort=sort, descending=descending) == _expected(records, sort, descending, {}), sort
    assert _listed(store, 1, sort="cluster", descending=descending) == _expected(records, "cluster", descending, {})


@pytest.mark.parametrize(("few", "steps"), [(2500, 4000), (0, 4000), (0, 5), (20, 3)])
def test_filters_on_every_number(
    store: Store, records: list[FeatureRecord], monkeypatch: pytest.MonkeyPatch, few: int, steps: int
) -> None:
    monkeypatch.setattr(listing, "_FEW", few)  # each of SQLite's ways must find the same
    monkeypatch.setattr(listing, "_STEPS", steps)
    rng = random.Random(few + steps)
    for key in KEYS:
        sort, descending = rng.choice(KEYS), rng.random() < 0.5
        low, high = sorted(rng.choice([-2.0, -1.5, 0.0, 0.3, 1 / 3, 0.5, 1, 1.5, 2, 3, 250]) for _ in range(2))
        where: dict[str, Any] = {key: rng.choice([(low, high), (low, None), (None, high), (None, None)])}
        if rng.random() < 0.5:
            where[rng.choice(KEYS)] = (rng.choice([-2.0, 0.0, 0.5]), None)
        expected = _expected(records, sort, descending, where)
        assert _listed(store, 9, sort=sort, descending=descending, where=where) == expected, (sort, where)
        assert store.count("tiny", analysis="default", where=where) == len(expected)


def test_bounds_beyond_what_a_database_counts(store: Store, records: list[FeatureRecord]) -> None:
    inf = float("inf")
    for where, count in (
        ({"num_firings": (-inf, inf)}, 70),
        ({"num_firings": (10**30, None)}, 0),
        ({"num_firings": (None, -1e30)}, 0),
        ({"density": (-inf, inf)}, 70),
        ({"density": (inf, None)}, 0),
        ({"num_firings": (0.5, 1.5)}, sum(record.num_firings == 1 for record in records)),
    ):
        assert store.count("tiny", analysis="default", where=where) == count, where


def test_tags_and_bookmarks(store: Store, records: list[FeatureRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    some = [record.index for record in records[::3]]
    for index in some:
        store.tag("tiny", index, "odd")
    for index in some[::2]:
        store.bookmark("tiny", index)
    store.tag("other", 3, "odd")
    for few in (2500, 0):
        monkeypatch.setattr(listing, "_FEW", few)
        assert _listed(store, 7, sort="index", descending=False, tag="odd") == sorted(some)
        assert _listed(store, 4, sort="index", tag="odd", bookmarked=True) == sorted(some[::2], reverse=True)
        assert _listed(store, 4, tag="unknown") == []
    assert store.count("tiny", analysis="default", bookmarked=True) == len(some[::2])
    kept = [record for record in records if record.index in some]
    where = {"cluster": (1.0, 2.0)}
    assert _listed(store, 2, sort="lift", where=where, tag="odd") == _expected(kept, "lift", True, where)


def test_wrong_keys_are_answered_with_the_nearest(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    with pytest.raises(ValueError, match="cannot be sorted by 'densty'; did you mean 'density'"):
        store.features(sort="densty")
    with pytest.raises(ValueError, match=r"cannot be sorted by 'qq'; the keys are 'index', 'num_firings', .*'lift'"):
        store.features(sort="qq")
    with pytest.raises(ValueError, match="cannot be filtered by 'precison'; did you mean 'precision'"):
        store.count(where={"precison": (0, 1)})
    with pytest.raises(ValueError, match="at least one feature, got limit=0"):
        store.features(limit=0)
    for wrong in ((float("nan"), None), (1,), 0.5, ("a", None)):
        with pytest.raises(ValueError, match="the bounds of density are"):
            store.features(where={"density": wrong})  # type: ignore[dict-item]


def _cursor(told: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode().rstrip("=")


def test_a_place_in_another_list_is_refused(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    place = store.features(limit=3).next
    assert place is not None
    assert [feature.index for feature in store.features(limit=3, after=place).features] == [4, 3, 2]
    with pytest.raises(ValueError, match="sorted by density, descending, not by density, ascending; start again"):
        store.features(descending=False, after=place)
    with pytest.raises(ValueError, match="sorted by density, descending, not by lift, descending"):
        store.features(sort="lift", after=place)
    good = ["density", True, 0.5, 3]
    assert [feature.index for feature in store.features(limit=2, after=_cursor(good)).features] == [7, 6]
    for wrong in (
        place[:-3], "", "?", "é", "W10", _cursor({}), _cursor(good[:3]), _cursor([*good, 1]),
        _cursor(["density", 1, 0.5, 3]),
        _cursor(["density", True, "0.5", 3]), _cursor(["density", True, True, 3]), _cursor(["density", True, 0.5, None]),
        _cursor(["density", True, 0.5, 0.5]), _cursor(["density", True, 10**400, 3]), _cursor(["density", True, 0.5, 2**70]),
        _cursor(["density", True, float("nan"), 3]), _cursor([[]] * 4),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is no place in a list; give what the page before said is next"):
            store.features(after=wrong)
