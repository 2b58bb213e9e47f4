"""Inserting: one row for its number, or many at once: `executemany` in SQLite, `COPY` in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")
BATCH = 1000  # rows per statement: enough that the call does not count, little enough to stay small in memory


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter: a statement takes only so many values."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def insert_row(connection: Connection, table: Table, **values: Any) -> int:
    """Insert one row into a table whose key the database makes; returns the key."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return key[0]


def insert_rows(
    connection: Connection, table: Table, rows: Iterable[tuple[Any, ...]], columns: list[str] | None = None
) -> int:
    """Insert tuples in the order of `columns` (all of the table unless given); returns how many there were.

    The rows must not be read from `connection` itself.
    """
    names = columns or [column.name for column in table.columns]
    count = 0
    if connection.dialect.name != "postgresql":
        marks = ", ".join("?" * len(names))
        statement = f"insert into {table.name} ({', '.join(names)}) values ({marks})"
        for batch in in_batches(rows, BATCH):
            connection.exec_driver_sql(statement, batch)
            count += len(batch)
        return count

    import psycopg

    driver: Any = connection.connection.driver_connection
    statement = f"copy {table.name} ({', '.join(names)}) from stdin"
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
                count += 1
    except psycopg.Error as error:
        raise DBAPIError(statement, None, error) from error  # as SQLAlchemy says it of its own statements
    return count
