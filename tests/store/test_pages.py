"""Feature pages: everything on them, in one statement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event

from saescope.store import Explanation, Feature, Note, PageExample, Store


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collects what is sent to the database."""
    said: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith("begin"):
            said.append(statement)

    event.listen(store._engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(store._engine, "before_cursor_execute", listen)


def test_a_page_holds_what_was_written(store: Store, make: SimpleNamespace, fill: Callable[..., list[Feature]]) -> None:
    features = fill(store)
    page = store.page("tiny", 2)
    assert page.dictionary == make.dictionary()
    assert page.analysis == make.analysis()
    assert (page.feature, page.detail) == (features[2].record, features[2].detail)
    strongest = PageExample(
        window=make.window(11, document="os.path"),
        peak=3,
        activation=2.5,
        activations=(0.0, 0.125, 0.0, 2.5, 0.0, 0.0),
        top_rank=0,
    )
    second = PageExample(
        window=make.window(10),
        peak=3,
        activation=0.5,
        activations=(0.0, 0.125, 0.0, 0.5, 0.0, 0.0),
        top_rank=1,
        width_band=0,
    )
    silent = PageExample(
        window=make.window(12, offset=0), peak=3, activation=0.0, activations=(0.0,) * 6, negative="near_miss"
    )
    assert page.all_examples == (strongest, second, silent)
    assert page.examples == (strongest, second)
    assert page.in_band("width", 0) == (second,)
    assert page.negatives("near_miss") == (silent,)
    assert store.page("tiny", 1).all_examples == ()
    assert (page.explanations, page.tags, page.notes, page.is_bookmarked) == ((), (), (), False)


def test_what_people_added_is_on_the_page(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    explanation = Explanation(
        text="Zahlen é", method="llm", author="someone", score=0.5, details={"a": [1]}, created_at="2026-01-01"
    )
    first = store.explain("tiny", 2, explanation)
    second = store.explain(None, 2, Explanation(text="also"))
    for tag in ("b", "a", "a"):
        store.tag("tiny", 2, tag)
    store.bookmark("tiny", 2)
    note = store.add_note("tiny", 2, Note(text="look\nhere", author="me", created_at="2026-02-02"))
    page = store.page("tiny", 2)
    assert [known.id for known in page.explanations] == [first, second]
    assert page.explanations[0] == Explanation(**{**vars(explanation), "id": first})
    assert page.tags == ("a", "b")
    assert page.notes == (Note(text="look\nhere", author="me", id=note, created_at="2026-02-02"),)
    assert page.is_bookmarked
    assert not store.page("tiny", 3).is_bookmarked


def test_a_page_knows_the_features_beside_it(store: Store, make: SimpleNamespace) -> None:
    features = [make.feature(index) for index in (1, 4, 5, 9)]
    store.write(make.dictionary(), make.analysis(), features, [], [])
    store.write(make.dictionary(), make.analysis("second"), features[::2], [], [])
    beside = {page.feature.index: (page.previous, page.following) for page in store.pages("tiny", analysis="default")}
    assert beside == {1: (None, 4), 4: (1, 5), 5: (4, 9), 9: (5, None)}
    for index, both in beside.items():
        page = store.page("tiny", index, analysis="default")
        assert (page.previous, page.following) == both
    page = store.page("tiny", 5)
    assert (page.previous, page.following) == (1, None)


def test_a_page_is_one_statement(store: Store, make: SimpleNamespace, fill: Callable[..., object]) -> None:
    fill(store)
    fill(store, "other")
    store.explain("other", 2, Explanation(text="numbers"))
    with statements(store) as said:
        page = store.page("other", 2)
    assert len(said) == 1
    assert (page.dictionary.name, len(page.all_examples), len(page.explanations)) == ("other", 3, 1)
    assert store.page("tiny", 2).explanations == ()


def test_a_page_is_one_round_trip_to_a_server(
    new_postgres: Callable[[], str], fill: Callable[..., object], tmp_path: Path
) -> None:
    with Store.open(new_postgres()) as store:
        fill(store)
        page = store.page("tiny", 2)
        with store._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
        with open(tmp_path / "trace", "wb") as file:  # what the client library sends and gets
            driver.pgconn.trace(file.fileno())
            assert store.page("tiny", 2) == page
            driver.pgconn.untrace()
    said = [line.split("\t") for line in (tmp_path / "trace").read_text().splitlines()]
    assert [line[3] for line in said if "F" in line and line[3] in ("Query", "Sync")] == ["Sync"]
    assert [line[3] for line in said if "B" in line].count("ReadyForQuery") == 1


def test_a_server_that_came_back_is_asked_again(new_postgres: Callable[[], str], fill: Callable[..., object]) -> None:
    address = new_postgres()
    with Store.open(address) as store, Store.open(address) as other:
        fill(store)
        page = store.page("tiny", 2)
        others = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        with other._engine.connect() as connection:
            connection.exec_driver_sql(f"select pg_terminate_backend(pid) {others}")
            while connection.exec_driver_sql(f"select count(*) {others}").scalar_one():
                connection.rollback()  # or the statistics stay those of this transaction
        assert store.page("tiny", 2) == page
        store.tag("tiny", 2, "seen")


def _sent(store: Store, num_examples: int, make: SimpleNamespace) -> list[int]:
    """Statements that questions take where every feature has so many examples."""
    windows = [make.window(i) for i in range(num_examples)]
    examples = [make.example(f, w, top_rank=w) for f in range(12) for w in range(num_examples)]
    store.write(
        make.dictionary(), make.analysis(), [make.feature(i) for i in range(12)], windows, examples, overwrite=True
    )
    asked: list[Callable[[], object]] = [
        lambda: store.page("tiny", 3),
        lambda: list(store.pages()),
        lambda: store.features("tiny", where={"density": (0.01, 0.5)}, search="func"),
        lambda: store.summary(),
        lambda: store.explain("tiny", 1, Explanation(text="x")),
    ]
    counts = []
    for ask in asked:
        with statements(store) as said:
            ask()
        counts.append(len(said))
    return counts


def test_more_examples_take_no_more_statements(store: Store, make: SimpleNamespace) -> None:
    few = _sent(store, 1, make)
    assert few[0] == 1
    assert _sent(store, 40, make) == few


def test_pages_come_in_order_and_a_few_at_a_time(store: Store, make: SimpleNamespace) -> None:
    features = [make.feature(i) for i in range(99, -1, -3)] + [make.feature(200)]
    store.write(make.dictionary(d_sae=201), make.analysis(), features, [], [])
    store.explain("tiny", 9, Explanation(text="nine"))
    with statements(store) as said:
        pages = store.pages()
        assert next(pages).feature.index == 0
        begun = len(said)
        rest = list(pages)
    assert len(said) > begun
    assert [page.feature.index for page in rest] == [*range(3, 100, 3), 200]
    assert [page.feature.index for page in rest if page.explanations] == [9]
    assert [page.feature.index for page in store.pages(indices=[9, 3, 9])] == [9, 3, 9]
    assert list(store.pages(indices=[])) == []
    assert rest[2] == store.page("tiny", 9)
    with pytest.raises(ValueError, match="feature 4 of 'tiny' was not analysed"):
        list(store.pages(indices=[3, 4]))


def test_examples_come_strongest_first_however_they_were_written(store: Store, make: SimpleNamespace) -> None:
    sizes = [0.5, -3.0, 2.0, 0.5]
    examples = [
        make.example(0, i, activation=size, values=(0.125, size), top_rank=None, quantile_band=i % 2)
        for i, size in enumerate(sizes)
    ]
    store.write(make.dictionary(), make.analysis(), [make.feature(0)], [make.window(i) for i in range(4)], examples)
    page = store.page("tiny", 0)
    assert [example.window.id for example in page.all_examples] == [1, 2, 0, 3]
    assert [example.window.id for example in page.in_band("quantile", 0)] == [2, 0]


def test_wrong_questions_are_answered_with_the_nearest(
    store: Store, make: SimpleNamespace, fill: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="no dictionary yet; `saescope analyze"):
        store.dictionary("tiny")
    with pytest.raises(ValueError, match="no dictionary yet; `saescope analyze"):
        store.page("tiny", 0)
    assert store.dictionaries() == []
    fill(store)
    assert store.dictionary() == store.dictionary("tiny") == make.dictionary()
    fill(store, "other")
    assert [record.name for record in store.dictionaries()] == ["other", "tiny"]
    for ask in (
        store.dictionary,
        store.features,
        store.summary,
        lambda: store.page(None, 0),
        lambda: next(store.pages()),
    ):
        with pytest.raises(ValueError, match="2 dictionaries, so name one of them: 'other', 'tiny'"):
            ask()
    with pytest.raises(ValueError, match="named 'tyni'; did you mean 'tiny'"):
        store.page("tyni", 0)
    with pytest.raises(ValueError, match="it holds 'other', 'tiny'"):
        store.features("zzzzzz")
    with pytest.raises(ValueError, match="'tiny' has no analysis named 'defalt'; did you mean 'default'"):
        store.page("tiny", 0, analysis="defalt")
    with pytest.raises(ValueError, match="features 0 to 15, so there is no feature 16"):
        store.page("tiny", 16)
    with pytest.raises(ValueError, match="no feature -1"):
        store.page("tiny", -1)
    with pytest.raises(ValueError, match="feature 9 of 'tiny' was not analysed: analysis 'default' has 8 of its 16"):
        store.page("tiny", 9)
    for add in (store.explanations, lambda n, i: store.tag(n, i, "a"), lambda n, i: store.bookmark(n, i)):
        with pytest.raises(ValueError, match="so there is no feature 16"):
            add("tiny", 16)
