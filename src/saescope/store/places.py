"""Where an analysis goes: the row of its dictionary, made or found, and whether its name is free."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select, update

from saescope.store import tables
from saescope.store.bulk import insert_row
from saescope.store.deleting import delete_analysis, drop_empty_series
from saescope.store.finding import find_dictionary
from saescope.store.records import DictionaryRecord
from saescope.store.rows import dictionary_row
from saescope.store.texts import plain

IDENTITY = ("model", "hook_point", "hook_point_out", "architecture", "d_in", "d_sae")
"""Two records of one name that differ in one of these are two dictionaries."""


def make_place(connection: Connection, record: DictionaryRecord, analysis: str, *, overwrite: bool) -> int:
    """The row number of the dictionary, with no analysis called `analysis` (any more).

    Raises:
        ValueError: another dictionary has this name; or there is such an analysis, and `overwrite` was not set.
    """
    values = dictionary_row(record)
    table = tables.dictionary
    dictionary_id = connection.scalar(select(table.c.id).where(table.c.name == record.name))
    if dictionary_id is None:
        dictionary_id = insert_row(connection, table, **values)
    else:
        old = find_dictionary(connection, record.name)[1]
        differing = [name for name in IDENTITY if getattr(old, name) != getattr(record, name)]
        if differing:
            _check_replaceable(connection, dictionary_id, old, record, differing, analysis, overwrite=overwrite)
        same_name = (tables.analysis.c.dictionary_id == dictionary_id) & (tables.analysis.c.name == analysis)
        existing = connection.scalar(select(tables.analysis.c.id).where(same_name))
        if existing is not None:
            if not overwrite:
                raise ValueError(
                    f"the store already holds an analysis named {analysis!r} of {record.name!r}; "
                    "choose another name, or overwrite it"
                )
            delete_analysis(connection, existing)
        if differing:  # numbers that another dictionary got
            for stale in (tables.evaluation, tables.training_run):
                connection.execute(delete(stale).where(stale.c.dictionary_id == dictionary_id))
        connection.execute(update(table).where(table.c.id == dictionary_id).values(**values))
    if record.series:
        put_into_series(connection, dictionary_id, record.series)
    return dictionary_id


def put_into_series(connection: Connection, dictionary_id: int, name: str) -> None:
    """Let a dictionary belong to a series, or with an empty name to none. A series without dictionaries is no more."""
    series_id = None
    if name:
        series_id = connection.scalar(select(tables.series.c.id).where(tables.series.c.name == name))
        if series_id is None:
            series_id = insert_row(connection, tables.series, name=plain(name, "the series"))
    table = tables.dictionary
    connection.execute(update(table).where(table.c.id == dictionary_id).values(series_id=series_id))
    drop_empty_series(connection)


def _check_replaceable(
    connection: Connection,
    dictionary_id: int,
    old: DictionaryRecord,
    new: DictionaryRecord,
    differing: list[str],
    analysis: str,
    *,
    overwrite: bool,
) -> None:
    held, given = (", ".join(f"{name} {getattr(record, name)!r}" for name in differing) for record in (old, new))
    problem = f"the store holds another dictionary named {old.name!r}, with {held}; this one has {given}"
    if not overwrite:
        raise ValueError(f"{problem}. Choose another name, or overwrite it")
    others = connection.scalars(
        select(tables.analysis.c.name).where(
            tables.analysis.c.dictionary_id == dictionary_id, tables.analysis.c.name != analysis
        )
    ).all()
    if others:
        raise ValueError(
            f"{problem}. It cannot be overwritten while it has other analyses ({', '.join(map(repr, others))}): "
            "choose another name, or delete it first"
        )
    for table in (tables.explanation, tables.tag, tables.bookmark, tables.note):
        count = connection.scalar(select(func.count()).where(table.c.dictionary_id == dictionary_id))
        if count:
            raise ValueError(
                f"{problem}. It cannot be overwritten while people's remarks on its features are kept "
                f"({count} in the table {table.name}): choose another name, or delete it first"
            )
