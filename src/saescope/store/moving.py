"""Whole analyses from one store to another: export to a file, and taking from a file or another store.

Rows are copied as they are; only the numbers that the target gives (of dictionary, analysis, explanation) change.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from saescope.store import tables
from saescope.store.bulk import BATCH, insert_row, insert_rows
from saescope.store.embeddings import check_width
from saescope.store.evaluations import add_evaluations, add_run, read_evaluations, read_runs
from saescope.store.finding import all_analyses, all_dictionaries, find, find_dictionary, listed, nearest
from saescope.store.places import make_place
from saescope.store.schema import SCALE
from saescope.store.search_index import renew_words_of_dictionary

_MARKS = {
    tables.explanation: ("feature_index", "text", "method", "author"),
    tables.tag: ("feature_index", "name"),
    tables.bookmark: ("feature_index",),
    tables.note: ("feature_index", "text", "author", "created_at"),
}
"""What people add, and the columns in which two of them are the same."""


def export(source: Connection, path: Path, name: str | None, analysis: str | None) -> None:
    """See `Store.export`."""
    from saescope.store.engines import open_engine, write_transaction

    found = find(source, name, analysis)
    path = path.expanduser()
    if path.exists():
        raise FileExistsError(f"{path} is there already; name another file, or move it away")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        engine, _ = open_engine(beside, must_exist=False)
        try:
            with write_transaction(engine) as target:
                _copy(
                    source, target, found.dictionary.name, found.dictionary.name, [found.analysis.name], overwrite=False
                )
            with contextlib.closing(engine.raw_connection()) as raw:
                raw.cursor().execute("pragma journal_mode = delete")  # one file: no log beside it
        finally:
            engine.dispose()
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        beside.rename(path)
    finally:
        for rest in (beside, *(beside.with_name(f"{beside.name}{ending}") for ending in ("-wal", "-shm", "-journal"))):
            rest.unlink(missing_ok=True)


def take(
    target: Connection, source: Connection, *, names: Iterable[str] | None, rename: Mapping[str, str], overwrite: bool
) -> list[str]:
    """See `Store.take`."""
    there = [record.name for record in all_dictionaries(source)]
    chosen = there if names is None else list(dict.fromkeys(names))
    if not there:
        raise ValueError("the store to take from holds no dictionary")
    for name in (*chosen, *rename):
        if name not in there:
            raise ValueError(f"there is no dictionary named {name!r} to take; {nearest(name, there, 'there are')}")
    new_names = [rename.get(name, name) for name in chosen]
    if len(set(new_names)) < len(new_names):
        raise ValueError(f"two dictionaries would get one name: {listed(new_names)}")
    for name, new_name in zip(chosen, new_names, strict=True):
        dictionary_id, _ = find_dictionary(source, name)
        analyses = [record.name for record in all_analyses(source, dictionary_id)]
        _copy(source, target, name, new_name, analyses, overwrite=overwrite)
    return new_names


def _copy(
    source: Connection, target: Connection, name: str, new_name: str, analyses: list[str], *, overwrite: bool
) -> None:
    source_id, record = find_dictionary(source, name)
    record = replace(record, name=new_name)
    if not analyses:
        target_id = make_place(target, record, "", overwrite=False)
    for analysis in analyses:
        target_id = make_place(target, record, analysis, overwrite=overwrite)
        _copy_analysis(source, target, find(source, name, analysis).analysis_id, target_id)
    indices = _copy_marks(source, target, source_id, target_id)
    renew_words_of_dictionary(target, target_id, indices)
    add_evaluations(target, target_id, read_evaluations(source, source_id))
    for run in read_runs(source, source_id):
        add_run(target, target_id, run)


def _copy_analysis(source: Connection, target: Connection, source_id: int, dictionary_id: int) -> None:
    table = tables.analysis
    row = dict(source.execute(select(table).where(table.c.id == source_id)).mappings().one())
    del row["id"]
    target_id = insert_row(target, table, **row | {"dictionary_id": dictionary_id})
    for table in tables.OF_ANALYSIS:
        insert_rows(target, table, _moved(source, table, source_id, target_id))
    if target.dialect.name == "sqlite":
        target.exec_driver_sql("insert into feature_search (feature_search) values ('optimize')")


def _moved(source: Connection, table: Table, source_id: int, target_id: int) -> Iterator[tuple[Any, ...]]:
    """Rows of one analysis as rows of another, a batch of them in memory."""
    columns = [column.name for column in table.columns]
    analysis = columns.index("analysis_id")
    query = select(table).where(table.c.analysis_id == source_id)
    with source.execute(query, execution_options={"yield_per": BATCH}) as rows:
        for row in rows:
            values = [*row]
            values[analysis] = target_id
            if table is tables.feature_text:
                values[columns.index("id")] = target_id * SCALE + row.feature_index
            yield tuple(values)


def _copy_marks(source: Connection, target: Connection, source_id: int, target_id: int) -> set[int]:
    """What people added, as far as it is not there; returns the features that have explanations now."""
    explanations: dict[int, int] = {}  # numbers there and here
    for table, key in _MARKS.items():
        here: dict[Any, Any] = {_key(row, key): row.get("id") for row in _marks(target, table, target_id)}
        for row in _marks(source, table, source_id):
            if _key(row, key) not in here:
                values = {name: value for name, value in row.items() if name != "id"} | {"dictionary_id": target_id}
                if table.primary_key:
                    here[_key(row, key)] = insert_row(target, table, **values)
                else:
                    target.execute(insert(table).values(**values))
            if table is tables.explanation:
                explanations[row["id"]] = here[_key(row, key)]
    _copy_vectors(source, target, source_id, target_id, explanations)
    table = tables.explanation
    return set(target.scalars(select(table.c.feature_index).where(table.c.dictionary_id == target_id)))


def _marks(connection: Connection, table: Table, dictionary_id: int) -> list[dict[str, Any]]:
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(*table.primary_key)
    return [dict(row) for row in connection.execute(query).mappings()]


def _key(row: Mapping[str, Any], names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _copy_vectors(
    source: Connection, target: Connection, source_id: int, target_id: int, explanations: Mapping[int, int]
) -> None:
    table, explanation = tables.embedding, tables.explanation

    def of(dictionary_id: int) -> Any:
        return table.c.explanation_id.in_(select(explanation.c.id).where(explanation.c.dictionary_id == dictionary_id))

    known = set(map(tuple, target.execute(select(table.c.explanation_id, table.c.embedder).where(of(target_id)))))
    rows = []
    for number, embedder, vector in source.execute(select(table).where(of(source_id))):
        if (explanations[number], embedder) not in known:
            check_width(target, embedder, len(vector) // 4)
            rows.append((explanations[number], embedder, bytes(vector)))
    insert_rows(target, table, rows)
