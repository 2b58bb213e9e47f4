"""Changing some fields of features that were analysed before: new logit effects, new labels, a map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from saescope.store import tables
from saescope.store.bulk import BATCH, in_batches
from saescope.store.finding import find, nearest
from saescope.store.records import NUMBERS, FeatureDetail, FeatureRecord, Label
from saescope.store.rows import DETAILS, detail_values, label_values
from saescope.store.search_index import renew_words

_FIELDS = (*NUMBERS, "label", *DETAILS)


def update_features(
    connection: Connection, name: str | None, analysis: str | None, values: Iterable[tuple[int, Mapping[str, Any]]]
) -> int:
    """See `Store.update`."""
    found = find(connection, name, analysis)
    column = tables.feature.c.feature_index
    known = set(connection.scalars(select(column).where(tables.feature.c.analysis_id == found.analysis_id)))
    relabelled: list[int] = []
    count = 0
    for batch in in_batches(values, BATCH):
        changes: dict[Any, list[dict[str, Any]]] = defaultdict(list)  # by table and columns
        for index, fields in batch:
            if index not in known:
                raise ValueError(f"feature {index} is not among those that {found.analysis.name!r} analysed")
            of_feature, of_detail = _changes(index, fields)
            if "label" in fields:
                relabelled.append(index)
            for table, row in ((tables.feature, of_feature), (tables.feature_detail, of_detail)):
                if row:
                    changes[table, tuple(row)].append({"the_feature": index, **row})
        for (table, columns), rows in changes.items():
            here = (table.c.analysis_id == found.analysis_id) & (table.c.feature_index == bindparam("the_feature"))
            statement = update(table).where(here).values({column: bindparam(column) for column in columns})
            connection.execute(statement, rows)
        count += len(batch)
    renew_words(connection, found.analysis_id, relabelled)
    return count


def _changes(index: int, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of `feature` and of `feature_detail`, checked as the records check them."""
    what = f"feature {index}"
    for field in fields:
        if field not in _FIELDS:
            raise ValueError(f"features have no field {field!r}; {nearest(field, _FIELDS, 'there are')}")
    numbers = {field: value for field, value in fields.items() if field in NUMBERS}
    for field, value in numbers.items():
        if value is None and getattr(_SILENT, field) is not None:
            raise ValueError(f"{what}: {field} is always known, got None")
    replace(_SILENT, index=index, **numbers)  # raises where a number is not finite
    label = fields.get("label")
    if not (label is None or isinstance(label, Label)):
        raise ValueError(f"{what}: label is {label!r}, expected a Label or None")
    details = {field: value for field, value in fields.items() if field in DETAILS}
    return (
        numbers | (label_values(label, what) if "label" in fields else {}),
        detail_values(replace(FeatureDetail(), **details), what, only=tuple(details)),
    )


_SILENT = FeatureRecord(
    index=0,
    num_firings=0,
    density=0.0,
    max_activation=0.0,
    mean_activation=0.0,
    std_activation=0.0,
    mean_positive=0.0,
    median_positive=0.0,
)
