"""Whole analyses to a file and back, between SQLite and PostgreSQL, with all that people added."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from saescope.store import EvaluationResult, Explanation, FeaturePage, Note, Store, TrainingRun, moving


def _pages(store: Store, name: str, analysis: str = "default") -> list[FeaturePage]:
    """All pages, without the numbers and names that are a store's own."""
    return [
        replace(
            page,
            dictionary=replace(page.dictionary, name=""),
            explanations=tuple(replace(known, id=None) for known in page.explanations),
            notes=tuple(replace(note, id=None) for note in page.notes),
        )
        for page in store.pages(name, analysis=analysis)
    ]


def _remark(store: Store, name: str = "tiny") -> None:
    store.explain(name, 4, Explanation(text="primes", score=0.5, details={"a": 1}))
    store.explain(name, 15, Explanation(text="not analysed"))
    store.tag(name, 4, "odd")
    store.bookmark(name, 5)
    store.add_note(name, 6, Note(text="look", author="me"))
    store.embed(name, "e", lambda some: np.arange(2.0 * len(some)).reshape(-1, 2) + 1)


@pytest.fixture
def filled(store: Store, fill: Callable[..., object]) -> Store:
    fill(store, "other")
    fill(store, evaluations=[EvaluationResult(study="s", metric="m", value=0.1)], run=TrainingRun(settings={"a": 1}))
    fill(store, analysis="second")
    store.set_series("tiny", "sweep")
    _remark(store)
    return store


@pytest.fixture
def target(new_postgres: Callable[[], str], store_address: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store of the other kind."""
    address = new_postgres() if store_address.endswith(".db") else str(tmp_path / "target.db")
    with Store.open(address) as opened:
        yield opened


def test_an_exported_file_is_a_store_of_its_own(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    filled.export(path, "tiny", "default")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("shared")] == ["shared.db"]
    moved = tmp_path / "elsewhere" / "moved.db"
    moved.parent.mkdir()
    shutil.move(path, moved)
    with Store.open(moved, must_exist=True) as store:
        assert store.dictionaries() == [filled.dictionary("tiny")]
        assert store.analyses() == [filled.analysis("tiny", "default")]
        assert _pages(store, "tiny") == _pages(filled, "tiny")
        assert store.evaluations() == filled.evaluations("tiny")
        assert store.runs() == filled.runs("tiny")
        assert store.series() == {"sweep": ["tiny"]}
        assert [known.text for _, known in store.explanations()] == ["primes", "not analysed"]
        for search, count in (("digits", 1), ("prime", 1), ("func", 1)):
            assert store.count(search=search) == count
        assert [known.text for _, known, _ in store.similar(None, [1, 2], "e")] == ["primes"]
        info = store.info().dictionaries[0].analyses[0]
        assert (info.num_features, info.num_windows, info.num_examples) == (8, 3, 3)


def test_an_export_replaces_nothing_and_leaves_nothing(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken.db").write_text("mine")
    with pytest.raises(FileExistsError, match=r"taken\.db is there already; name another file"):
        filled.export(tmp_path / "taken.db", "tiny")
    assert (tmp_path / "taken.db").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        filled.export(tmp_path / "no" / "x.db", "tiny")
    with pytest.raises(ValueError, match="no dictionary named 'tyni'"):
        filled.export(tmp_path / "x.db", "tyni")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(moving, "_copy_marks", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        filled.export(tmp_path / "x.db", "tiny")
    assert sorted(tmp_path.iterdir()) == before


def test_taking_from_a_file_and_from_another_store(
    filled: Store, target: Store, store_address: str, tmp_path: Path
) -> None:
    filled.export(tmp_path / "file.db", "tiny", "second")
    assert target.take(tmp_path / "file.db", rename={"tiny": "renamed"}) == ["renamed"]
    assert _pages(target, "renamed", "second") == _pages(filled, "tiny", "second")
    assert target.take(store_address, names=["tiny"]) == ["tiny"]
    assert target.analyses("tiny") == filled.analyses("tiny")
    for analysis in ("default", "second"):
        assert _pages(target, "tiny", analysis) == _pages(filled, "tiny", analysis)
    assert target.count("tiny", search="prime") == target.count("renamed", search="prime") == 1
    assert target.take(store_address, names=["other"], rename={"tiny": "unused"}) == ["other"]
    assert [record.name for record in target.dictionaries()] == ["other", "renamed", "tiny"]
    assert target.series() == {"sweep": ["renamed", "tiny"]}
    assert target.runs("tiny") == filled.runs("tiny")


def test_names_that_clash_are_refused_or_overwritten(
    filled: Store, target: Store, store_address: str, fill: Callable[..., object], make: SimpleNamespace
) -> None:
    target.write(make.dictionary(), make.analysis("second"), [make.feature(1)], [], [])
    target.tag("tiny", 1, "mine")
    before = list(target.pages("tiny"))
    with pytest.raises(ValueError, match="already holds an analysis named 'second' of 'tiny'; choose another name, or"):
        target.take(store_address)
    assert [record.name for record in target.dictionaries()] == ["tiny"]  # all or nothing: 'other' was not taken
    assert list(target.pages("tiny")) == before
    assert target.take(store_address, overwrite=True) == ["other", "tiny"]
    assert target.tags("tiny") == {"mine": 1, "odd": 1}
    pages = [replace(page, tags=()) if page.feature.index == 1 else page for page in _pages(target, "tiny", "second")]
    assert pages == _pages(filled, "tiny", "second")
    with pytest.raises(ValueError, match="there is no dictionary named 'tny' to take; did you mean 'tiny'"):
        target.take(store_address, names=["tny"])
    with pytest.raises(ValueError, match="there is no dictionary named 'tny' to take"):
        target.take(store_address, rename={"tny": "a"})
    with pytest.raises(ValueError, match="two dictionaries would get one name: 'tiny', 'tiny'"):
        target.take(store_address, rename={"other": "tiny"})


def test_a_different_dictionary_of_the_same_name_is_not_mixed(
    filled: Store, target: Store, store_address: str, make: SimpleNamespace
) -> None:
    target.write(make.dictionary(model="another"), make.analysis("mine"), [make.feature(1)], [], [])
    said = "another dictionary named 'tiny', with model 'another'; this one has model 'gpt-tiny'"
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=said):
            target.take(store_address, names=["tiny"], overwrite=overwrite)
    assert target.take(store_address, names=["tiny"], rename={"tiny": "theirs"}) == ["theirs"]
    assert target.count("tiny") == 1


def test_taking_twice_doubles_nothing(filled: Store, target: Store, store_address: str) -> None:
    target.take(store_address)
    once = target.info()
    target.take(store_address, overwrite=True)
    assert replace(target.info(), num_bytes=0) == replace(once, num_bytes=0)
    assert _pages(target, "tiny") == _pages(filled, "tiny")
    assert len(target.similar("tiny", [1, 2], "e")) == 1


def test_explanations_of_both_are_found_in_all_analyses(
    filled: Store, target: Store, store_address: str, make: Any
) -> None:
    target.write(make.dictionary(), make.analysis("mine"), [make.feature(i) for i in range(8)], [], [])
    target.explain("tiny", 3, Explanation(text="vowels"))
    target.take(store_address, names=["tiny"])
    for analysis in ("mine", "default", "second"):
        for search, index in (("prime", 4), ("vowel", 3)):
            found = target.features("tiny", analysis=analysis, search=search).features
            assert [feature.index for feature in found] == [index]


def test_vectors_of_another_width_are_refused(
    filled: Store, target: Store, store_address: str, fill: Callable[..., object]
) -> None:
    fill(target, "mine")
    target.explain("mine", 0, Explanation(text="x"))
    target.embed("mine", "e", lambda some: np.ones((1, 3)))
    with pytest.raises(ValueError, match="vectors of 'e' in the store have 3 numbers, this one has 2"):
        target.take(store_address)
    assert [record.name for record in target.dictionaries()] == ["mine"]


def test_only_stores_can_be_taken_from(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no store"):
        store.take(tmp_path / "missing.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table recipes (name text)")
    with pytest.raises(ValueError, match="database of something else"):
        store.take(tmp_path / "other.db")
    Store.open(tmp_path / "empty.db").close()
    with pytest.raises(ValueError, match="the store to take from holds no dictionary"):
        store.take(tmp_path / "empty.db")


def test_more_explanations_than_a_statement_takes_values(fill: Callable[..., object], tmp_path: Path) -> None:
    """Every statement of a take stays below what SQLite allows, however many explanations have vectors."""
    with Store.open(tmp_path / "from.db") as source, Store.open(tmp_path / "to.db") as target:
        fill(source)
        source.add_remarks("tiny", explanations=[(n % 16, Explanation(text=f"number {n}")) for n in range(900)])
        source.embed("tiny", "e", lambda some: np.ones((len(some), 2)))

        @event.listens_for(target._engine, "checkout")
        def limit(connection: Any, *_: object) -> None:
            connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 600)

        target.take(tmp_path / "from.db")
        assert len(target.explanations("tiny")) == 900
        assert len(target.similar("tiny", np.ones(2), "e", limit=2000)) == len(
            source.similar("tiny", np.ones(2), "e", limit=2000)
        )
