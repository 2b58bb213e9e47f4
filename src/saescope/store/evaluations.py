"""Numbers that evaluations gave a dictionary, how it was trained, and the series it belongs to."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select, text

from saescope.store import tables
from saescope.store.records import EvaluationResult, TrainingRun
from saescope.store.rows import evaluation_row, read_evaluation, read_run, run_row

_SAME = ("study", "metric", "variant", "code_version")


def add_evaluations(connection: Connection, dictionary_id: int, results: Iterable[EvaluationResult]) -> None:
    """See `Store.add_evaluations`."""
    rows = [evaluation_row(result) for result in results]
    table = tables.evaluation
    for key in {tuple(row[name] for name in _SAME) for row in rows}:
        same = [table.c[name] == value for name, value in zip(_SAME, key, strict=True)]
        connection.execute(delete(table).where(table.c.dictionary_id == dictionary_id, *same))
    if rows:
        connection.execute(insert(table), [{"dictionary_id": dictionary_id, **row} for row in rows])


def read_evaluations(connection: Connection, dictionary_id: int) -> list[EvaluationResult]:
    """By study and metric, in the order in which they were added."""
    table = tables.evaluation
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(table.c.id)
    found = [read_evaluation(row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda result: (result.study, result.metric))  # databases sort texts in their own ways


def add_run(connection: Connection, dictionary_id: int, run: TrainingRun) -> None:
    """See `Store.add_run`."""
    table, row = tables.training_run, run_row(run)
    same = [table.c[name] == row[name] for name in ("settings", "metrics", "code_version")]
    if connection.scalar(select(table.c.id).where(table.c.dictionary_id == dictionary_id, *same).limit(1)) is None:
        connection.execute(insert(table).values(dictionary_id=dictionary_id, **row))


def read_runs(connection: Connection, dictionary_id: int) -> list[TrainingRun]:
    """In the order in which they were added."""
    table = tables.training_run
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(table.c.id)
    return [read_run(row) for row in connection.execute(query).mappings()]


def read_series(connection: Connection) -> dict[str, list[str]]:
    """Dictionaries by series, both by name."""
    query = "select s.name, d.name from series s join dictionary d on d.series_id = s.id"
    members: dict[str, list[str]] = {}
    for series, name in sorted(map(tuple, connection.execute(text(query)))):
        members.setdefault(series, []).append(name)
    return members
