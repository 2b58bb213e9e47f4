"""Writing an analysis: all or nothing, refused in words, replaced when asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from saescope.store import DictionaryRecord, EvaluationResult, Explanation, Feature, Note, Store, TrainingRun
from saescope.store import pages as pages_module


def test_more_rows_than_one_batch(store: Store, make: SimpleNamespace) -> None:
    record = make.dictionary(d_sae=2500)
    windows = (make.window(i) for i in range(2500))
    examples = (make.example(i, 2499 - i) for i in range(2500))
    store.write(record, make.analysis(), (make.feature(i) for i in range(2500)), windows, examples)
    assert store.page("tiny", 2400).examples[0].window.id == 99
    assert [f.index for f in store.features(sort="index", limit=3).features] == [2499, 2498, 2497]
    assert store.count() == 2500
    assert store.info().dictionaries[0].analyses[0].num_examples == 2500


def test_the_time_is_filled_in(store: Store, make: SimpleNamespace) -> None:
    store.write(make.dictionary(), make.analysis(created_at=""), [], [], [])
    written = datetime.fromisoformat(store.analysis().created_at)
    assert written.tzinfo == UTC
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=10)
    store.write(make.dictionary(), make.analysis("second"), [], [], [])
    assert store.analysis() == make.analysis("second")


def test_several_analyses_of_one_dictionary(store: Store, make: SimpleNamespace, fill: Callable[..., Any]) -> None:
    features = fill(store)
    store.write(make.dictionary(), make.analysis("code"), [make.feature(2, density=0.5)], [make.window(10)], [])
    assert [record.name for record in store.analyses()] == ["default", "code"]
    assert store.analysis() == store.analysis("tiny", "code") == make.analysis("code")
    assert store.page("tiny", 2).feature.density == 0.5
    assert store.page("tiny", 2, analysis="default").feature == features[2].record
    assert store.count() == 1
    assert store.count(analysis="default") == 8


def test_a_name_is_replaced_only_when_asked(store: Store, make: SimpleNamespace, fill: Callable[..., Any]) -> None:
    fill(store)
    fill(store, analysis="other")
    store.explain("tiny", 0, Explanation(text="numbers"))
    store.tag("tiny", 0, "seen")
    with pytest.raises(
        ValueError, match="already holds an analysis named 'default' of 'tiny'; choose another name, or"
    ):
        fill(store)
    store.write(make.dictionary(details={"new": 1}), make.analysis(), [make.feature(0)], [], [], overwrite=True)
    assert store.dictionary().details == {"new": 1}
    assert [record.name for record in store.analyses()] == ["other", "default"]
    assert store.count() == 1
    assert store.count(analysis="other") == 8
    assert len(store.page("tiny", 2, analysis="other").examples) == 2
    page = store.page("tiny", 0)
    assert ([known.text for known in page.explanations], page.tags) == (["numbers"], ("seen",))
    assert store.count(search="numbers") == store.count(analysis="other", search="numbers") == 1
    assert store.count(search="digits") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "b"), ("hook_point", "b"), ("hook_point_out", "b"), ("architecture", "b"), ("d_in", 9), ("d_sae", 17)],
)
def test_another_dictionary_of_the_same_name_is_refused(
    store: Store, make: SimpleNamespace, fill: Callable[..., Any], field: str, value: Any
) -> None:
    fill(store)
    store.add_evaluations("tiny", [EvaluationResult(study="s", metric="m", value=1.0)])
    store.add_run("tiny", TrainingRun())
    other, old = make.dictionary(**{field: value}), getattr(make.dictionary(), field)
    said = f"another dictionary named 'tiny', with {field} {old!r}; this one has {field} {value!r}"
    for analysis in ("default", "second"):
        with pytest.raises(ValueError, match=said):
            store.write(other, make.analysis(analysis), [], [], [])
    with pytest.raises(ValueError, match=r"cannot be overwritten while it has other analyses \('default'\)"):
        store.write(other, make.analysis("second"), [], [], [], overwrite=True)
    store.add_note("tiny", 1, Note(text="mine"))
    with pytest.raises(ValueError, match=r"people's remarks on its features are kept \(1 in the table note\)"):
        store.write(other, make.analysis(), [], [], [], overwrite=True)
    store.delete_note(store.page("tiny", 1).notes[0].id or 0)
    assert store.dictionary() == make.dictionary()
    store.write(other, make.analysis(), [], [], [], overwrite=True)
    assert store.dictionary() == other
    assert (store.evaluations(), store.runs(), store.count()) == ([], [], 0)


@pytest.mark.parametrize("fails", ["features", "windows", "examples", "evaluations"])
def test_a_failing_source_leaves_the_old_content(
    store: Store, make: SimpleNamespace, fill: Callable[..., list[Feature]], fails: str
) -> None:
    features = fill(store)
    before = store.page("tiny", 2)

    def rows(name: str, *values: object) -> Iterator[Any]:
        yield from values
        if name == fails:
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.write(
            make.dictionary(details={}),
            make.analysis(),
            rows("features", make.feature(2, density=0.9)),
            rows("windows", make.window(1)),
            rows("examples", make.example(2, 1)),
            evaluations=rows("evaluations"),
            overwrite=True,
        )
    assert store.page("tiny", 2) == before
    listed = store.features("tiny", sort="index", descending=False)
    assert listed.features == tuple(feature.record for feature in features)
    fill(store, overwrite=True)  # and it left no lock behind


def test_records_that_do_not_fit_together_are_refused(store: Store, make: SimpleNamespace) -> None:
    def refused(words: str, *parts: Any, record: DictionaryRecord | None = None, analysis: Any = None) -> None:
        features, windows, examples = (*parts, [], [], [])[:3]
        with pytest.raises(ValueError, match=words):
            store.write(record or make.dictionary(), analysis or make.analysis(), features, windows, examples)
        assert store.dictionaries() == []

    one, window = [make.feature(0)], [make.window(0)]
    refused("feature 16 lies outside", [make.feature(16)])
    refused("feature 0 was given twice", one * 2)
    refused("window 0 was given twice", one, window * 2)
    refused("an example of feature 1 was given, but not the feature", one, window, [make.example(1, 0)])
    refused("points into window 5, which was not given", one, window, [make.example(0, 5)])
    far = make.example(0, 0, positions=(3, 6))
    refused("outside its window of 6 tokens: peak 3", one, window, [far])
    negative = make.example(0, 0, peak=6, positions=(), values=(), activation=0.0, negative="silent")
    refused("outside its window of 6 tokens: peak 6", one, window, [negative])
    refused("finite float32 numbers", one, window, [make.example(0, 0, values=(0.5, 1e39))])
    refused("activation is nan", one, window, [make.example(0, 0, activation=float("nan"))])
    refused("dictionary 'tiny': details cannot be stored", record=make.dictionary(details={"at": object()}))
    refused("analysis 'default': details cannot", analysis=make.analysis(details={"mse": float("nan")}))
    refused("text column cannot", analysis=make.analysis(dataset="a\0b"))
    refused("label of feature 0", [make.feature(0, label=make.label("\udc80"))])
    refused("the lift of the label of feature 0 is inf", [make.feature(0, label=make.label("a", lift=float("inf")))])
    refused("dictionary in the store needs a name", record=make.dictionary(""))
    refused("analysis in the store needs a name", analysis=make.analysis(""))


def test_two_open_stores_see_each_other(store: Store, store_address: str, make: SimpleNamespace) -> None:
    with Store.open(store_address, must_exist=True) as other:
        assert other.dictionaries() == []

        def features() -> Iterator[Feature]:
            yield make.feature(0)
            assert other.dictionaries() == []  # readers are not held up, and see nothing half-written

        store.write(make.dictionary(), make.analysis(), features(), [], [])
        assert other.dictionary() == make.dictionary()
        other.write(make.dictionary("second"), make.analysis(), [], [], [])
    assert len(store.dictionaries()) == 2


def test_readers_keep_their_state_while_an_analysis_is_replaced(
    store: Store, make: SimpleNamespace, fill: Callable[..., list[Feature]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "_CHUNK", 3)
    features = fill(store)
    pages = store.pages()
    first = next(pages)
    store.write(make.dictionary(), make.analysis(), [make.feature(9)], [], [], overwrite=True)
    assert [first.feature, *(page.feature for page in pages)] == [feature.record for feature in features]
    assert [page.feature.index for page in store.pages()] == [9]


def test_fields_are_changed_in_place(store: Store, make: SimpleNamespace, fill: Callable[..., list[Feature]]) -> None:
    features = fill(store)
    detail = make.detail(neighbours={"decoder": ()}, top_logits=(), bottom_logits=features[0].detail.top_logits)
    label = make.label("even")
    changed = store.update(
        "tiny",
        (
            (i, {"label": label, "logit_mean": 0.1, "top_logits": (), "neighbours": detail.neighbours})
            for i in range(0, 8, 2)
        ),
    )
    assert changed == 4
    assert store.update("tiny", [(1, {"bottom_logits": detail.bottom_logits}), (3, {"label": None})]) == 2
    for index, page in enumerate(store.pages()):
        record, old = features[index].record, features[index].detail
        if index % 2 == 0:
            record = replace(record, label=label, logit_mean=0.1)
            old = replace(old, top_logits=(), neighbours=detail.neighbours)
        record = replace(record, label=None) if index == 3 else record
        old = replace(old, bottom_logits=detail.bottom_logits) if index == 1 else old
        assert (page.feature, page.detail) == (record, old)
    assert store.count(search="even") == 4
    assert store.count(search="digits") == store.count(search="vital") == 0
    assert store.count(search="func") == 1  # words of tokens stay


def test_wrong_changes_are_refused_and_nothing_is_changed(
    store: Store, make: SimpleNamespace, fill: Callable[..., list[Feature]]
) -> None:
    fill(store)
    before = list(store.pages())
    for index, fields, words in (
        (1, {"densty": 0.5}, "features have no field 'densty'; did you mean 'density'"),
        (1, {"index": 3}, "no field 'index'"),
        (9, {"density": 0.5}, "feature 9 is not among those that 'default' analysed"),
        (1, {"density": None}, "feature 1: density is always known, got None"),
        (1, {"density": float("inf")}, "feature 1: density is inf"),
        (1, {"label": "digits"}, "feature 1: label is 'digits', expected a Label"),
    ):
        with pytest.raises(ValueError, match=words):
            store.update("tiny", [(0, {"density": 0.75}), (index, fields)])
    assert list(store.pages()) == before


def test_importing_the_room_loads_no_database_library() -> None:
    heavy = "{'sqlalchemy', 'torch', 'numpy'}"
    program = f"import sys; from saescope.store import Store; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
