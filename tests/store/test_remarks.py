"""Explanations, tags, bookmarks, notes; evaluations, runs, series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from saescope.store import EvaluationResult, Explanation, Note, Store, TrainingRun


@pytest.fixture(autouse=True)
def filled(store: Store, fill: Callable[..., object]) -> None:
    fill(store)


def test_explanations_are_listed_by_feature(store: Store) -> None:
    late = store.explain("tiny", 7, Explanation(text="late", score=0.25, created_at="2026-01-01"))
    early = store.explain("tiny", 15, Explanation(text="not analysed", details={"é": None}))
    again = store.explain("tiny", 7, Explanation(text="again"))
    listed = store.explanations("tiny")
    assert [(index, known.id, known.text) for index, known in listed] == [
        (7, late, "late"),
        (7, again, "again"),
        (15, early, "not analysed"),
    ]
    assert store.explanations("tiny", 7) == listed[:2]
    assert listed[0][1] == Explanation(text="late", score=0.25, created_at="2026-01-01", id=late)
    assert listed[1][1].created_at > "2026-01-01"
    store.forget_explanation(late)
    assert [known.id for _, known in store.explanations()] == [again, early]
    with pytest.raises(ValueError, match=f"no explanation number {late}; it may have been removed already"):
        store.forget_explanation(late)
    newest = store.explain("tiny", 7, Explanation(text="newest"))
    assert newest not in (late, early, again)  # a number is never given twice
    for wrong, words in (
        (Explanation(text=" "), "an explanation needs a text"),
        (Explanation(text="a\0"), "a database text column cannot"),
        (Explanation(text="a", score=float("nan")), "the explanation: score is nan, expected a finite number"),
        (Explanation(text="a", details={"a": object()}), "the explanation: details cannot be stored"),
    ):
        with pytest.raises(ValueError, match=words):
            store.explain("tiny", 1, wrong)


def test_tags(store: Store) -> None:
    for index, tag in ((3, "b"), (3, "a"), (5, " b "), (5, "b"), (3, "É")):
        store.tag("tiny", index, tag)
    assert store.tags() == {"a": 1, "b": 2, "É": 1}
    store.untag("tiny", 3, "b")
    assert store.tags("tiny") == {"a": 1, "b": 1, "É": 1}
    with pytest.raises(ValueError, match="feature 3 has no tag 'b'"):
        store.untag("tiny", 3, "b")
    with pytest.raises(ValueError, match="a tag needs a name"):
        store.tag("tiny", 3, "  ")


def test_bookmarks(store: Store) -> None:
    for _ in range(2):
        store.bookmark("tiny", 3)
    assert store.page("tiny", 3).is_bookmarked
    for _ in range(2):
        store.bookmark("tiny", 3, on=False)
    assert not store.page("tiny", 3).is_bookmarked
    assert store.count(bookmarked=True) == 0


def test_notes(store: Store) -> None:
    first = store.add_note("tiny", 3, Note(text="one", author="me"))
    second = store.add_note("tiny", 3, Note(text="two"))
    store.edit_note(second, "two, better")
    notes = store.page("tiny", 3).notes
    assert [(note.id, note.text, note.author) for note in notes] == [(first, "one", "me"), (second, "two, better", "")]
    assert notes[0].created_at > "2026-01-01"
    store.delete_note(first)
    assert [note.id for note in store.page("tiny", 3).notes] == [second]
    for change in (lambda: store.delete_note(first), lambda: store.edit_note(first, "x")):
        with pytest.raises(ValueError, match=f"no note number {first}; it may have been deleted already"):
            change()
    for write in (lambda: store.edit_note(second, " "), lambda: store.add_note("tiny", 3, Note(text=""))):
        with pytest.raises(ValueError, match="a note needs a text"):
            write()


def test_evaluations(store: Store, make: SimpleNamespace, fill: Callable[..., object]) -> None:
    one = EvaluationResult(
        study="sparsity", metric="l0", value=32.5, low=32.0, high=33.0, variant="test", code_version="1.0",
        details={"seed": 1}, created_at="2026-01-01",
    )  # fmt: skip
    undefined = EvaluationResult(study="a", metric="z", value=None, created_at="2026-01-02")
    store.add_evaluations("tiny", [one, undefined])
    assert store.evaluations() == [undefined, one]
    newer = replace(one, value=0.1 + 0.2)
    other = replace(one, variant="train")
    fill(store, "tiny", "second", evaluations=iter([newer, other]))
    assert store.evaluations("tiny") == [undefined, newer, other]
    assert store.summary().evaluations == (undefined, newer, other)
    for wrong in (replace(one, low=float("nan")), replace(one, value=float("inf"))):
        with pytest.raises(ValueError, match=r"evaluation 'sparsity', 'l0': .* expected a finite number, or None"):
            store.add_evaluations("tiny", [wrong])


def test_training_runs_are_kept_once(store: Store, fill: Callable[..., object]) -> None:
    run = TrainingRun(settings={"lr": 1e-4}, metrics={"loss": [1, 2]}, code_version="1.0", created_at="2026-01-01")
    store.add_run("tiny", run)
    store.add_run("tiny", replace(run, created_at="2026-02-02"))
    longer = replace(run, settings={"lr": 3e-4})
    fill(store, "tiny", "second", run=longer)
    assert store.runs() == [run, longer]
    assert store.summary("tiny").runs == (run, longer)


def test_series(store: Store, make: SimpleNamespace, fill: Callable[..., object]) -> None:
    assert store.series() == {}
    fill(store, "b")
    fill(store, "a")
    for name in ("tiny", "b"):
        store.set_series(name, "sweep")
    store.set_series("a", "Ablation")
    assert store.series() == {"Ablation": ["a"], "sweep": ["b", "tiny"]}
    assert store.dictionary("a") == make.dictionary("a", series="Ablation")
    assert store.page("b", 0).dictionary.series == "sweep"
    store.set_series("a", "")
    store.write(make.dictionary("b", series="other"), make.analysis("second"), [], [], [])
    assert store.series() == {"other": ["b"], "sweep": ["tiny"]}
    store.write(make.dictionary("b"), make.analysis("third"), [], [], [])
    assert store.dictionary("b").series == "other"
    store.delete("b")
    assert store.series() == {"sweep": ["tiny"]}


def test_remarks_on_many_features_are_added_once(store: Store) -> None:
    said = [(7, Explanation(text="loops", method="m")), (3, Explanation(text="loops")), (7, Explanation(text="loops"))]
    for _ in range(2):
        store.add_remarks(
            "tiny", explanations=said, tags=[(3, "code")], notes=[(3, Note(text="see 7")), (3, Note(text="and 8"))],
            bookmarks=[7],
        )  # fmt: skip
    assert [(index, known.method) for index, known in store.explanations("tiny")] == [
        (3, "human"), (7, "m"), (7, "human"),
    ]  # fmt: skip
    page = store.page("tiny", 3)
    assert ([note.text for note in page.notes], page.tags, page.is_bookmarked) == (["see 7", "and 8"], ("code",), False)
    assert store.page("tiny", 7).is_bookmarked
    assert {f.index for f in store.features("tiny", search="loops").features} == {3, 7}
    with pytest.raises(ValueError, match="no feature 99"):
        store.add_remarks("tiny", explanations=[(2, Explanation(text="unheard")), (99, Explanation(text="of"))])
    assert len(store.explanations("tiny")) == 3  # all or nothing


def test_labels_of_some_features(store: Store) -> None:
    listed = {f.index: f.label.text for f in store.features("tiny", limit=100).features if f.label}
    assert listed
    assert store.labels("tiny", range(16)) == listed
    assert store.labels("tiny", [*list(listed)[:1], 15]) == dict(list(listed.items())[:1])
    assert store.labels("tiny", []) == {}


def test_labels_are_those_of_the_analysis_that_is_meant(
    store: Store, make: SimpleNamespace, fill: Callable[..., object]
) -> None:
    fill(store, "other")
    features = [make.feature(2, label=make.label("of the second"))]
    store.write(make.dictionary("other"), make.analysis("second"), features, [], [])
    assert store.labels("other", [2, 3]) == {2: "of the second"}
    assert store.labels("other", [2], analysis="default") == {2: "digits, 100% of them"}
    for name, analysis, words in (
        ("else", None, "no dictionary named"),
        (None, None, "name one of them"),
        ("other", "third", "no analysis named"),
    ):
        with pytest.raises(ValueError, match=words):
            store.labels(name, [2], analysis=analysis)
