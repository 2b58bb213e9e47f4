"""Lists of features: sorted by any number, filtered, page after page without counting what came before.

A page is three short walks one after the other: features with the same value as the last one shown, those beyond it,
those without a value. Each is a stretch of the index of the sort key. Only the features that are shown are looked up whole.

What a walk skips costs time as well. Where few features pass a filter, it is quicker to take them all and sort them:
PostgreSQL decides so by its statistics, for SQLite it is decided here, by counting up to `_FEW` in each filter's index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from saescope.store.cursors import Cursor, read_cursor
from saescope.store.filters import KEYS, Bounds, Condition, Filter, column_of, make_filter
from saescope.store.finding import find
from saescope.store.records import FeatureList, FeatureRecord
from saescope.store.rows import read_feature

SORT_KEYS = tuple(KEYS)
_FEW = 5000


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
) -> FeatureList:
    """See `Store.features`."""
    column = column_of(sort, "sorted")
    if limit < 1:
        raise ValueError(f"a page of a list has at least one feature, got limit={limit}")
    cursor = None if after is None else read_cursor(after, sort=sort, descending=descending)
    found = find(connection, name, analysis)
    chosen = make_filter(found, connection.dialect.name, where=where, search=search, tag=tag, bookmarked=bookmarked)
    source = _source(connection, chosen, column)
    statement, values = _page(source, column, descending=descending, cursor=cursor)
    values |= chosen.values | {"most": limit + 1}  # one more tells whether there is a next page
    rows = connection.execute(text(statement), values).mappings().all()
    features = [read_feature(row) for row in rows[:limit]]
    if len(rows) <= limit:
        return FeatureList(features=tuple(features))
    last = features[-1]
    return FeatureList(features=tuple(features), next=str(Cursor(sort, descending, value_of(last, sort), last.index)))


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
    statement = f"select count(*) from feature f where {_conditions(chosen.conditions)}"
    return connection.scalar(text(statement), chosen.values) or 0


def value_of(feature: FeatureRecord, key: str) -> float | None:
    """The number of a feature that a sort key means."""
    if key in ("precision", "recall", "lift"):
        return None if feature.label is None else getattr(feature.label, key)
    return getattr(feature, key)


def _source(connection: Connection, chosen: Filter, column: str) -> tuple[str, str]:
    """What the walks go through, and the expressions before the first of them."""
    conditions = _conditions(chosen.conditions)
    if connection.dialect.name == "postgresql":
        return f"feature f where {conditions}", ""
    few = _fewest(connection, chosen)
    if few is None:
        index = "" if column == "feature_index" else f" indexed by feature_by_{column}"
        return f"feature f{index} where {conditions}", ""
    others = _conditions(tuple(condition for condition in chosen.conditions if condition is not few))
    hits = (
        f"with hits as materialized (select f.feature_index, f.{column} from ({few.indices}) few "
        f"cross join feature f on f.feature_index = few.feature_index where {others})"
    )
    return "hits f where true", hits


def _fewest(connection: Connection, chosen: Filter) -> Condition | None:
    """The condition that the fewest features meet, if they are few."""
    if not chosen.conditions:
        return None
    counts = ", ".join(
        f"(select count(*) from ({condition.indices} limit {_FEW + 1}))" for condition in chosen.conditions
    )
    found = connection.execute(text(f"select {counts}"), chosen.values).one()
    fewest, position = min((count, position) for position, count in enumerate(found))
    return chosen.conditions[position] if fewest <= _FEW else None


def _conditions(conditions: tuple[Condition, ...]) -> str:
    return " and ".join(["f.analysis_id = :analysis_id", *(condition.test for condition in conditions)])


def _page(
    source: tuple[str, str], column: str, *, descending: bool, cursor: Cursor | None
) -> tuple[str, dict[str, Any]]:
    """The statement of one page."""
    rows, expressions = source
    value, beyond, direction = f"f.{column}", "<" if descending else ">", "desc" if descending else "asc"
    walks: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    if column == "feature_index":
        walks = [("true" if cursor is None else f"{value} {beyond} :last_index", f"{value} {direction}")]
    else:
        by_index = "f.feature_index"
        if cursor is None:
            walks.append((f"{value} is not null", f"{value} {direction}, {by_index}"))
        elif cursor.value is not None:
            walks.append((f"{value} = :last_value and {by_index} > :last_index", by_index))
            walks.append((f"{value} {beyond} :last_value", f"{value} {direction}, {by_index}"))
        missing = f"{value} is null"
        if cursor is not None and cursor.value is None:
            missing += f" and {by_index} > :last_index"
        walks.append((missing, by_index))
    if cursor is not None:
        values["last_index"] = cursor.index
        if cursor.value is not None and column != "feature_index":
            values["last_value"] = cursor.value
    parts = " union all ".join(
        f"select * from (select {number} as walk, f.feature_index, {value} as value from {rows} and {test} "
        f"order by {order} limit :most) walk_{number}"
        for number, (test, order) in enumerate(walks)
    )
    order = f"found.walk, found.value {direction}, found.feature_index"
    return (
        f"{expressions} select feature.* from (select * from ({parts}) walks "
        f"order by {order.replace('found.', '')} limit :most) found "
        "join feature on feature.analysis_id = :analysis_id and feature.feature_index = found.feature_index "
        f"order by {order}",
        values,
    )
