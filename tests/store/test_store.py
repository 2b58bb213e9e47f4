"""Writing and reading, on both databases."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saescope.store import (
    DictionaryRecord,
    Example,
    FeatureRecord,
    Histogram,
    Label,
    PageExample,
    Store,
    TokenLogit,
    Window,
)


def _fill(store: Store, make: SimpleNamespace, name: str = "tiny", **options: Any) -> list[FeatureRecord]:
    labels = {
        2: make.label("digits, 100% of them"),
        3: make.label("Élan", precision=0.25, lift=None),
        5: make.label("x_y"),
    }
    features = [make.feature(index, label=labels.get(index)) for index in range(8)]
    windows = [make.window(10), make.window(11, document="os.path")]
    examples = [make.example(2, 1, 10, activation=0.5, values=(0.125, 0.5)), make.example(2, 0, 11)]
    store.write(make.dictionary(name), features, windows, examples, **options)
    return features


def test_a_page_holds_what_was_written_in_order_of_rank(store: Store, make: SimpleNamespace) -> None:
    features = _fill(store, make)
    page = store.page("tiny", 2)
    assert page.dictionary == make.dictionary()
    assert page.feature == features[2]
    assert page.examples == (
        PageExample(
            window=make.window(11, document="os.path"),
            peak=3,
            activation=2.5,
            activations=(0.0, 0.125, 0.0, 2.5, 0.0, 0.0),
        ),
        PageExample(window=make.window(10), peak=3, activation=0.5, activations=(0.0, 0.125, 0.0, 0.5, 0.0, 0.0)),
    )
    assert store.page("tiny", 1).examples == ()


def test_more_rows_than_one_batch(store: Store, make: SimpleNamespace) -> None:
    record = make.dictionary(d_sae=2500)
    windows = (make.window(i) for i in range(2500))
    examples = (make.example(i, 0, 2499 - i) for i in range(2500))
    store.write(record, (make.feature(i) for i in range(2500)), windows, examples)
    assert store.page("tiny", 2400).examples[0].window.id == 99
    assert [f.index for f in store.features("tiny", sort="index", limit=3, offset=1999)] == [500, 499, 498]


def test_features_sort_filter_and_page(store: Store, make: SimpleNamespace) -> None:
    features = _fill(store, make)

    def found(**query: Any) -> list[int]:
        return [feature.index for feature in store.features("tiny", **query)]

    assert store.features("tiny", sort="index", descending=False) == features
    assert found() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert found(limit=3, offset=2) == [5, 4, 3]
    assert found(sort="max_activation") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found(sort="mean_activation") == [0, 1, 2, 3, 4, 5, 6, 7]  # all equal: by index
    assert found(min_density=0.02, max_density=0.05) == [5, 4, 3, 2]
    assert found(sort="precision") == [2, 5, 3, 0, 1, 4, 6, 7]  # those without a label come last
    assert found(sort="precision", descending=False) == [3, 2, 5, 0, 1, 4, 6, 7]
    assert found(sort="lift", limit=2) == [2, 5]


def test_search_is_literal_and_ignores_case(store: Store, make: SimpleNamespace) -> None:
    _fill(store, make)

    def found(search: str) -> list[int]:
        return [feature.index for feature in store.features("tiny", search=search)]

    assert found("DIGITS") == [2]
    assert found("élan") == found("ÉLAN") == [3]
    assert found("%") == [2]
    assert found("_") == [5]
    assert found("i_i") == []
    assert found("") == [5, 3, 2]


def test_wrong_questions_are_answered_with_the_nearest(store: Store, make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="no dictionary yet; `saescope analyze"):
        store.dictionary("tiny")
    assert store.dictionaries() == []
    _fill(store, make)
    assert store.dictionary() == store.dictionary("tiny") == make.dictionary()
    _fill(store, make, "other")
    assert [record.name for record in store.dictionaries()] == ["other", "tiny"]
    with pytest.raises(ValueError, match="2 dictionaries, so name one of them: 'other', 'tiny'"):
        store.dictionary(None)
    with pytest.raises(ValueError, match="named 'tyni'; did you mean 'tiny'"):
        store.page("tyni", 0)
    with pytest.raises(ValueError, match="it holds 'other', 'tiny'"):
        store.features("zzzzzz")
    with pytest.raises(ValueError, match="did you mean 'density'"):
        store.features("tiny", sort="densty")
    with pytest.raises(ValueError, match="the keys are 'index', 'num_firings'"):
        store.features("tiny", sort="qq")
    with pytest.raises(ValueError, match="features 0 to 15, so there is no feature 16"):
        store.page("tiny", 16)
    with pytest.raises(ValueError, match="no feature -1"):
        store.page("tiny", -1)
    with pytest.raises(ValueError, match="feature 9 of 'tiny' was not analysed: the store has 8 of its 16"):
        store.page("tiny", 9)
    with pytest.raises(ValueError, match="limit=-1"):
        store.features("tiny", limit=-1)


def test_a_name_is_replaced_only_when_asked(store: Store, make: SimpleNamespace) -> None:
    _fill(store, make)
    _fill(store, make, "other")
    with pytest.raises(ValueError, match="already holds a dictionary named 'tiny'"):
        store.write(make.dictionary(d_in=99), [], [], [])
    assert store.dictionary("tiny").d_in == 8
    store.write(make.dictionary(d_in=99), [make.feature(0)], [], [], overwrite=True)
    assert store.dictionary("tiny").d_in == 99
    assert store.features("tiny") == [make.feature(0)]
    assert len(store.features("other")) == 8
    assert len(store.page("other", 2).examples) == 2


@pytest.mark.parametrize("fails", ["features", "windows", "examples"])
def test_a_failing_source_leaves_the_old_content(store: Store, make: SimpleNamespace, fails: str) -> None:
    features = _fill(store, make)
    before = store.page("tiny", 2)

    def rows(name: str, *values: object) -> Iterator[Any]:
        yield from values
        if name == fails:
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.write(
            make.dictionary(d_in=99),
            rows("features", make.feature(2, density=0.9)),
            rows("windows", make.window(1)),
            rows("examples", make.example(2, 0, 1)),
            overwrite=True,
        )
    assert store.page("tiny", 2) == before
    assert store.features("tiny", sort="index", descending=False) == features


def test_records_that_do_not_fit_together_are_refused(store: Store, make: SimpleNamespace) -> None:
    def refused(words: str, record: DictionaryRecord, *parts: list[Any]) -> None:
        with pytest.raises(ValueError, match=words):
            store.write(record, *parts)
        assert store.dictionaries() == []

    one, window = [make.feature(0)], [make.window(0)]
    refused("feature 16 lies outside", make.dictionary(), [make.feature(16)], [], [])
    refused("feature 0 was given twice", make.dictionary(), one * 2, [], [])
    refused("window 0 was given twice", make.dictionary(), one, window * 2, [])
    refused("belongs to a feature that was not given", make.dictionary(), one, window, [make.example(1, 0, 0)])
    refused("points into window 5", make.dictionary(), one, window, [make.example(0, 0, 5)])
    far = make.example(0, 0, 0, positions=(3, 6))
    refused("outside its window of 6 tokens", make.dictionary(), one, window, [far])
    refused("(?i)unique", make.dictionary(), one, window, [make.example(0, 0, 0)] * 2)
    refused("metrics cannot be stored", make.dictionary(metrics={"mse": float("nan")}), [], [], [])
    refused("details cannot be stored", make.dictionary(details={"at": object()}), [], [], [])
    refused("text column cannot", make.dictionary(dataset="a\0b"), [], [], [])
    refused("label of feature 0", make.dictionary(), [make.feature(0, label=make.label("\udc80"))], [], [])
    refused("needs a name", make.dictionary(""), [], [], [])


def test_two_open_stores_see_each_other(store: Store, store_address: str, make: SimpleNamespace) -> None:
    with Store.open(store_address, must_exist=True) as other:
        assert other.dictionaries() == []

        def features() -> Iterator[FeatureRecord]:
            yield make.feature(0)
            assert other.dictionaries() == []  # readers are not held up, and see nothing half-written

        store.write(make.dictionary(), features(), [], [])
        assert other.dictionary() == make.dictionary()
        other.write(make.dictionary("second"), [], [], [])
    assert len(store.dictionaries()) == 2


# Anything a record can hold comes back equal: all float64, integers beyond 32 bits, and token texts of any characters.
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_counts = st.integers(0, 2**62)
_any_text = st.text(st.characters(), max_size=6)  # surrogates and NUL included
_plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
_json = st.recursive(
    st.none() | st.booleans() | _numbers | st.integers() | _any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_text, inner, max_size=3),
    max_leaves=4,
)
_logits = st.lists(st.builds(TokenLogit, token_id=_counts, text=_any_text, logit=_numbers), max_size=3).map(tuple)
_dictionaries = st.builds(
    DictionaryRecord,
    name=st.just("same"),
    model=_plain_text,
    hook_point=_plain_text,
    architecture=_plain_text,
    dataset=_plain_text,
    d_in=st.integers(1, 2**31 - 1),
    d_sae=st.integers(1, 2**31 - 1),
    context_size=st.integers(1, 2**31 - 1),
    num_tokens=_counts,
    metrics=st.dictionaries(_any_text, _numbers, max_size=3),
    details=st.dictionaries(_any_text, _json, max_size=3),
)
_features = st.builds(
    FeatureRecord,
    index=st.just(0),
    num_firings=_counts,
    density=_numbers,
    max_activation=_numbers,
    mean_activation=_numbers,
    histogram=st.lists(st.tuples(_numbers, _counts), max_size=4).map(
        lambda bins: Histogram(edges=(0.0, *(edge for edge, _ in bins)), counts=tuple(count for _, count in bins))
    ),
    top_logits=_logits,
    bottom_logits=_logits,
    label=st.none()
    | st.builds(
        Label,
        text=_plain_text,
        kind=_plain_text,
        precision=st.none() | _numbers,
        lift=st.none() | _numbers,
        num_firings=_counts,
    ),
)
_windows = st.lists(st.tuples(st.integers(0, 2**31 - 1), _any_text), min_size=1, max_size=5).flatmap(
    lambda tokens: st.builds(
        Window,
        id=_counts,
        document=_plain_text,
        offset=_counts,
        token_ids=st.just(tuple(token for token, _ in tokens)),
        token_texts=st.just(tuple(text for _, text in tokens)),
    )
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=_dictionaries, feature=_features, window=_windows, data=st.data())
def test_everything_comes_back_equal(
    store: Store, record: DictionaryRecord, feature: FeatureRecord, window: Window, data: st.DataObject
) -> None:
    values = data.draw(st.lists(_numbers, min_size=len(window.token_ids), max_size=len(window.token_ids)))
    example = Example(
        feature=0,
        rank=0,
        window_id=window.id,
        peak=0,
        activation=values[0],
        positions=tuple(range(len(values))),
        values=tuple(values),
    )
    store.write(record, [feature], [window], [example], overwrite=True)
    page = store.page("same", 0)
    assert (page.dictionary, page.feature, page.examples[0].window) == (record, feature, window)
    assert dataclasses.asdict(page.examples[0])["activations"] == tuple(values)
    assert page.examples[0].activation == values[0]


def test_importing_the_room_loads_no_database_library() -> None:
    program = (
        "import sys; from saescope.store import Store; sys.exit('sqlalchemy' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
