"""Writing one analysed dictionary: rows in batches, read from iterables once, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from sqlalchemy import Connection, Table, delete, func, insert, select

from saescope.store import schema
from saescope.store.records import DictionaryRecord, Example, FeatureRecord, Window
from saescope.store.rows import Row, dictionary_row, example_row, feature_row, label_row, window_row

BATCH = 1000  # rows per statement: enough that the round trip does not count, little enough to stay small in memory


def write_dictionary(
    connection: Connection,
    record: DictionaryRecord,
    features: Iterable[FeatureRecord],
    windows: Iterable[Window],
    examples: Iterable[Example],
    *,
    overwrite: bool,
) -> None:
    row = dictionary_row(record)
    existing = connection.scalar(select(schema.dictionary.c.id).where(schema.dictionary.c.name == record.name))
    if existing is not None:
        if not overwrite:
            raise ValueError(
                f"the store already holds a dictionary named {record.name!r}; choose another name, or overwrite it"
            )
        _delete(connection, existing)
    # writers run one at a time, so the next number is free
    identity = (connection.scalar(select(func.max(schema.dictionary.c.id))) or 0) + 1
    connection.execute(insert(schema.dictionary).values(id=identity, **row))

    # the checks below say in words what a foreign key would say in codes
    known_features: set[int] = set()
    window_sizes: dict[int, int] = {}

    def feature_rows() -> Iterator[Row]:
        for feature in features:
            if not 0 <= feature.index < record.d_sae:
                raise ValueError(f"feature {feature.index} lies outside the dictionary: d_sae is {record.d_sae}")
            if feature.index in known_features:
                raise ValueError(f"feature {feature.index} was given twice")
            known_features.add(feature.index)
            if feature.label is not None:
                labels.append(label_row(feature.index, feature.label))
            yield feature_row(feature)

    def window_rows() -> Iterator[Row]:
        for window in windows:
            if window.id in window_sizes:
                raise ValueError(f"window {window.id} was given twice; ids are unique within one dictionary")
            window_sizes[window.id] = len(window.token_ids)
            yield window_row(window)

    def example_rows() -> Iterator[Row]:
        for example in examples:
            what = f"example {example.rank} of feature {example.feature}"
            if example.feature not in known_features:
                raise ValueError(f"{what} belongs to a feature that was not given")
            if example.window_id not in window_sizes:
                raise ValueError(f"{what} points into window {example.window_id}, which was not given")
            size = window_sizes[example.window_id]
            if not all(0 <= position < size for position in example.positions):
                raise ValueError(f"{what} has positions outside its window of {size} tokens: {list(example.positions)}")
            yield example_row(example)

    labels: list[Row] = []
    _insert(connection, schema.feature, identity, feature_rows())
    _insert(connection, schema.label, identity, labels)
    _insert(connection, schema.text_window, identity, window_rows())
    _insert(connection, schema.example, identity, example_rows())


def _delete(connection: Connection, identity: int) -> None:
    for table in reversed(schema.TABLES):
        key = table.c.id if table is schema.dictionary else table.c.dictionary_id
        connection.execute(delete(table).where(key == identity))


def _insert(connection: Connection, table: Table, identity: int, rows: Iterable[Row]) -> None:
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        connection.execute(insert(table), [{"dictionary_id": identity, **row} for row in batch])
