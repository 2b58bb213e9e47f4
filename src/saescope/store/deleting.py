"""Deletion without remains: rows go in an order in which nothing points at what is gone, the full-text index with them."""

from __future__ import annotations

from sqlalchemy import Connection, delete, exists, select

from saescope.store import tables
from saescope.store.finding import find, find_dictionary


def delete_named(connection: Connection, name: str, analysis: str | None) -> None:
    """See `Store.delete`."""
    dictionary_id, _ = find_dictionary(connection, name)
    if analysis is None:
        delete_dictionary(connection, dictionary_id)
        return
    delete_analysis(connection, find(connection, name, analysis).analysis_id)
    left = select(tables.analysis.c.id).where(tables.analysis.c.dictionary_id == dictionary_id).limit(1)
    if connection.scalar(left) is None:
        delete_dictionary(connection, dictionary_id)


def delete_analysis(connection: Connection, analysis_id: int) -> None:
    """An analysis with its features, windows, examples and words; what people added belongs to the dictionary."""
    for table in reversed(tables.OF_ANALYSIS):
        connection.execute(delete(table).where(table.c.analysis_id == analysis_id))
    connection.execute(delete(tables.analysis).where(tables.analysis.c.id == analysis_id))
    if connection.dialect.name == "sqlite":  # or the index would keep deleted words, marked as such
        connection.exec_driver_sql("insert into feature_search (feature_search) values ('optimize')")


def delete_dictionary(connection: Connection, dictionary_id: int) -> None:
    """A dictionary with all analyses and all that people and evaluations added."""
    of_dictionary = tables.analysis.c.dictionary_id == dictionary_id
    for analysis_id in connection.scalars(select(tables.analysis.c.id).where(of_dictionary)).all():
        delete_analysis(connection, analysis_id)
    explanations = select(tables.explanation.c.id).where(tables.explanation.c.dictionary_id == dictionary_id)
    connection.execute(delete(tables.embedding).where(tables.embedding.c.explanation_id.in_(explanations)))
    for table in reversed(tables.OF_DICTIONARY):
        connection.execute(delete(table).where(table.c.dictionary_id == dictionary_id))
    connection.execute(delete(tables.dictionary).where(tables.dictionary.c.id == dictionary_id))
    drop_empty_series(connection)


def drop_empty_series(connection: Connection) -> None:
    """Forget series that no dictionary belongs to."""
    connection.execute(
        delete(tables.series).where(~exists().where(tables.dictionary.c.series_id == tables.series.c.id))
    )
