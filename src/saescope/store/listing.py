"""Lists of features: sorted by any number, filtered, page after page without counting what came before.

A page is up to three walks one after the other: features with the same value as the last one shown, those beyond it, those
without a value. Each is a stretch of the index of the sort key, and the next begins only where the page is not full.

What a walk has to skip costs time as well. Where few features meet one of the conditions, those are taken and sorted. Else
the walk goes on for `_STEPS`, and where the page is not full by then, one pass through all features takes no longer than
many more steps of an index. Both databases are led: neither knows how sort key and conditions depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, TextClause, bindparam, select, text

from saescope.store import tables
from saescope.store.bulk import in_batches
from saescope.store.cursors import Cursor, read_cursor
from saescope.store.filters import Bounds, Condition, Filter, column_of, make_filter
from saescope.store.finding import Found, find
from saescope.store.records import FeatureList, FeatureRecord
from saescope.store.rows import read_feature

_FEW = 5000  # features that are taken and sorted; looking one up takes a microsecond or two
_STEPS = 4000
LOOKED_UP = {  # one after the other, whatever else the planner thinks of
    "sqlite": "few cross join feature f where f.feature_index = few.feature_index and",
    "postgresql": "few cross join lateral (select * from feature where analysis_id = :analysis_id "
    "and feature_index = few.feature_index offset 0) f where",
}


def read_features(
    connection: Connection,
    name: str | None,
    analysis: str | None,
    *,
    sort: str,
    descending: bool,
    limit: int,
    after: str | None,
    where: Mapping[str, Bounds],
    search: str | None,
    tag: str | None,
    bookmarked: bool,
    with_total: bool = False,
) -> FeatureList:
    """See `Store.features`."""
    column = column_of(sort, "sorted")
    if limit < 1:
        raise ValueError(f"a page of a list has at least one feature, got limit={limit}")
    cursor = None if after is None else read_cursor(after, sort=sort, descending=descending)
    found = find(connection, name, analysis)
    chosen = make_filter(found, connection.dialect.name, where=where, search=search, tag=tag, bookmarked=bookmarked)
    total = _known_total(connection, found, chosen) if with_total else None
    if total is not None and len(chosen.conditions) == 1:
        few = chosen.conditions[0] if total <= _FEW else None
    else:
        few = fewest(connection, chosen)
    features: list[FeatureRecord] = []
    for walk in walks(column, descending=descending, cursor=cursor):
        most = limit + 1 - len(features)  # one more tells whether there is a next page
        if most:
            features += _taken(connection, chosen, few, column, walk, most)
    page, is_last = tuple(features[:limit]), len(features) <= limit
    if with_total and total is None:
        total = len(page) if is_last and cursor is None else _total(connection, chosen, few)
    following = None if is_last else str(Cursor(sort, descending, value_of(page[-1], sort), page[-1].index))
    return FeatureList(features=page, next=following, total=total)


def count_features(
    connection: Connection,
    name: str | None,
    analysis: str | None,
    *,
    where: Mapping[str, Bounds],
    search: str | None,
    tag: str | None,
    bookmarked: bool,
) -> int:
    """See `Store.count`."""
    found = find(connection, name, analysis)
    chosen = make_filter(found, connection.dialect.name, where=where, search=search, tag=tag, bookmarked=bookmarked)
    known = _known_total(connection, found, chosen)
    return _total(connection, chosen, fewest(connection, chosen)) if known is None else known


def _known_total(connection: Connection, found: Found, chosen: Filter) -> int | None:
    """How many features there are in all, where one look at an index, or at less, tells it."""
    if not chosen.conditions:  # counted when it was written
        return connection.scalar(select(tables.analysis.c.num_features).filter_by(id=found.analysis_id)) or 0
    if len(chosen.conditions) == 1 and chosen.conditions[0].of_analysis:
        return connection.scalar(text(f"select count(*) from ({chosen.conditions[0].indices}) met"), chosen.values) or 0
    return None


def _total(connection: Connection, chosen: Filter, few: Condition | None) -> int:
    tests = " and ".join(["true", *(c.test for c in chosen.conditions if c is not few)]).format(f="f.")
    before, source = "", "feature f where"
    if few is not None:
        before, source = f"with few as materialized ({few.indices})", LOOKED_UP[connection.dialect.name]
    statement = f"{before} select count(*) from {source} f.analysis_id = :analysis_id and {tests}"
    return connection.scalar(text(statement), chosen.values) or 0


def read_labels(
    connection: Connection, name: str | None, analysis: str | None, indices: Iterable[int]
) -> dict[int, str]:
    """See `Store.labels`."""
    labels: dict[int, str] = {}
    for batch in in_batches(sorted(set(indices)), _FEW):
        values = {"name": name, "analysis": analysis, "indices": batch}
        statement = _labels_statement(name is not None, analysis is not None)
        rows = connection.execute(statement, {key: value for key, value in values.items() if value is not None})
        labels |= {row.feature_index: row.label for row in rows}
    if not labels:
        find(connection, name, analysis)  # or it says in words what is missing
    return labels


@cache
def _labels_statement(dictionary_named: bool, analysis_named: bool) -> TextClause:
    """Dictionary, analysis and labels in one: a page asks for this each time."""
    dictionary = "name = :name" if dictionary_named else "(select count(*) from dictionary) = 1"
    analysis = "name = :analysis" if analysis_named else "true"
    statement = text(
        "select feature_index, label from feature where label is not null and feature_index in :indices and analysis_id = "
        f"(select max(id) from analysis where dictionary_id = (select id from dictionary where {dictionary}) and {analysis})"
    )
    return statement.bindparams(bindparam("indices", expanding=True))


def value_of(feature: FeatureRecord, key: str) -> float | None:
    """The number of a feature that a sort key means."""
    if key in ("precision", "recall", "lift"):
        return None if feature.label is None else getattr(feature.label, key)
    return getattr(feature, key)


@dataclass(frozen=True)
class Walk:
    """A stretch of the sorted list: which features, in which order. `{f}` as in a `Condition`."""

    test: str
    order: str
    values: dict[str, Any] = field(default_factory=dict)


def walks(column: str, *, descending: bool, cursor: Cursor | None) -> list[Walk]:
    """The stretches of the list after the cursor."""
    value, index = f"{{f}}{column}", "{f}feature_index"
    beyond, direction = ("<", "desc") if descending else (">", "asc")
    if column == "feature_index":
        if cursor is None:
            return [Walk("true", f"{index} {direction}")]
        return [Walk(f"{index} {beyond} :last_index", f"{index} {direction}", {"last_index": cursor.index})]
    by_value, missing = f"{value} {direction}, {index}", f"{value} is null"
    if cursor is None:
        return [Walk(f"{value} is not null", by_value), Walk(missing, index)]
    same = {"last_index": cursor.index}
    if cursor.value is None:
        return [Walk(f"{missing} and {index} > :last_index", index, same)]
    last = {"last_value": cursor.value}
    return [
        Walk(f"{value} = :last_value and {index} > :last_index", index, last | same),
        Walk(f"{value} {beyond} :last_value", by_value, last),
        Walk(missing, index),
    ]


def _taken(
    connection: Connection, chosen: Filter, few: Condition | None, column: str, walk: Walk, most: int
) -> list[FeatureRecord]:
    """The first features of a walk that meet the conditions."""
    values = chosen.values | walk.values | {"most": most}
    tests = [condition.test for condition in chosen.conditions if condition is not few]
    order = walk.order.format(f="f.")

    def ask(indices: str, before: str = "") -> list[FeatureRecord]:
        statement = (  # only the features that are shown are looked up whole
            f"{before} select f.* from ({indices} limit :most) shown "
            "join feature f on f.analysis_id = :analysis_id and f.feature_index = shown.feature_index "
            f"order by {order}"
        )
        return [read_feature(row) for row in connection.execute(text(statement), values).mappings()]

    def among(source: str, f: str = "f.") -> str:
        conditions, by = " and ".join([walk.test, *tests]).format(f=f), walk.order.format(f=f)
        return f"select f.feature_index from {source} f.analysis_id = :analysis_id and {conditions} order by {by}"

    if few is not None:
        return ask(among(LOOKED_UP[connection.dialect.name]), f"with few as materialized ({few.indices})")
    walked = "feature f where"
    if connection.dialect.name == "sqlite" and column != "feature_index":
        walked = f"feature f indexed by feature_by_{column} where"
    if not tests:
        return ask(among(walked))
    columns = dict.fromkeys([column, "feature_index", *(condition.column for condition in chosen.conditions)])
    stretch = (
        f"from {walked} f.analysis_id = :analysis_id and {walk.test.format(f='f.')} order by {order} limit {_STEPS}"
    )
    # in the order of the steps, which are taken one after the other until there are enough
    each = " and ".join(condition.each for condition in chosen.conditions).format(f="f.")
    found = ask(f"select f.feature_index from (select {', '.join(columns)} {stretch}) f where {each}")
    num_steps = text(f"select count(*) from (select {column} {stretch}) counted")  # the index alone tells it
    if len(found) < most and connection.scalar(num_steps, values) == _STEPS:
        return ask(among("feature f where", "+f."))  # a plus keeps both from using an index of the column
    return found


def fewest(connection: Connection, chosen: Filter) -> Condition | None:
    """The condition that the fewest features meet, if they are few."""
    if not chosen.conditions:
        return None
    counts = ", ".join(
        f"(select count(*) from ({condition.indices} limit {_FEW + 1}) counted)" for condition in chosen.conditions
    )
    found = connection.execute(text(f"select {counts}"), chosen.values).one()
    fewest, position = min((count, position) for position, count in enumerate(found))
    return chosen.conditions[position] if fewest <= _FEW else None
