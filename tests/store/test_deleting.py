"""Deletion leaves nothing behind: no row in any table, no word in the full-text index, no space in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import inspect

from saescope.store import EvaluationResult, Explanation, Note, Store, TrainingRun


def _rows(store: Store) -> dict[str, int]:
    """Rows of every table there is, those of the full-text index included."""
    with store._engine.begin() as connection:
        names = [name for name in inspect(connection).get_table_names() if name != "migration"]
        return {name: connection.exec_driver_sql(f"select count(*) from {name}").scalar_one() for name in names}


def _remark(store: Store, name: str) -> None:
    store.explain(name, 4, Explanation(text="prime zebra"))
    store.embed(name, "e", lambda some: np.ones((len(some), 2)))
    store.tag(name, 4, "odd")
    store.bookmark(name, 5)
    store.add_note(name, 6, Note(text="look"))
    store.add_evaluations(name, [EvaluationResult(study="s", metric="m", value=0.1)])
    store.add_run(name, TrainingRun())
    store.set_series(name, f"series of {name}")


def _kept(counts: dict[str, int]) -> dict[str, int]:
    """Without SQLite's own tables and the blocks of the index, whose number says nothing."""
    return {name: count for name, count in counts.items() if not name.startswith(("feature_search", "sqlite"))}


@pytest.mark.parametrize(
    ("written", "deleted"),
    [(["default"], ["default"]), (["default", "second"], ["default", "second"]), (["default", "second"], [None])],
)
def test_nothing_is_left_of_a_dictionary(
    store: Store, fill: Callable[..., object], written: list[str], deleted: list[str | None]
) -> None:
    fill(store, "kept")
    _remark(store, "kept")
    before, pages = _kept(_rows(store)), list(store.pages("kept"))
    for analysis in written:
        fill(store, "tiny", analysis)
    _remark(store, "tiny")
    assert all(count > before[name] for name, count in _kept(_rows(store)).items())  # every table is concerned
    for name in deleted:
        store.delete("tiny", name)
    assert _kept(_rows(store)) == before
    assert list(store.pages("kept")) == pages
    assert [record.name for record in store.dictionaries()] == ["kept"]
    assert store.count("kept", search="zebra") == 1
    store.delete("kept")
    assert set(_kept(_rows(store)).values()) == {0}
    if store._engine.dialect.name == "sqlite":
        with store._engine.begin() as connection:
            connection.exec_driver_sql("create virtual table terms using fts5vocab(feature_search, row)")
            assert connection.exec_driver_sql("select count(*) from terms").scalar_one() == 0
            held = connection.exec_driver_sql("select group_concat(hex(block)) from feature_search_data").scalar_one()
            assert b"zebra".hex().upper() not in held
            assert b"digits".hex().upper() not in held


def test_one_analysis_goes_and_the_rest_stays(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    fill(store, analysis="second")
    _remark(store, "tiny")
    pages = list(store.pages(analysis="second"))
    store.delete("tiny", "default")
    assert [record.name for record in store.analyses()] == ["second"]
    assert list(store.pages()) == pages
    assert store.count(search="zebra") == 1
    with pytest.raises(ValueError, match="'tiny' has no analysis named 'default'; it has 'second'"):
        store.delete("tiny", "default")
    with pytest.raises(ValueError, match="no dictionary named 'tyni'"):
        store.delete("tyni")
    assert list(store.pages()) == pages


def test_the_file_shrinks(tmp_path: Path, make: SimpleNamespace, fill: Callable[..., object]) -> None:
    path = tmp_path / "features.db"
    with Store.open(path) as store:
        fill(store, "kept")
        before = path.stat().st_size
        texts = ["secretword" * 100] * 6
        store.write(
            make.dictionary(), make.analysis(), [], [make.window(i, token_texts=texts) for i in range(1500)], []
        )
        assert path.stat().st_size > before + 5_000_000
        store.delete("tiny")
        assert path.stat().st_size <= before
        assert store.count("kept") == 8
    assert b"secretword" not in path.read_bytes()
    assert not (path.with_name("features.db-wal").exists() and path.with_name("features.db-wal").stat().st_size)


def test_a_reader_does_not_keep_an_analysis_from_being_deleted(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    pages = store.pages()
    next(pages)
    store.delete("tiny")  # the file may not shrink now, but the rows are gone
    assert len(list(pages)) == 7
    assert store.dictionaries() == []
