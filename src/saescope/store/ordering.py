"""A whole list at once: the indices of its features in order, and the features of any stretch of them.

A table with a scrollbar needs to know what stands at any place of a list; pages that follow each other can not say that.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, func, select, text

from saescope.store import tables
from saescope.store.bulk import in_batches
from saescope.store.errors import NotInStoreError
from saescope.store.filters import Bounds, column_of, make_filter
from saescope.store.finding import find
from saescope.store.listing import LOOKED_UP, fewest, walks
from saescope.store.records import FeatureRecord
from saescope.store.rows import read_feature

_BATCH = 1000  # values in one statement


def read_order(
    connection: Connection,
    name: str | None,
    analysis: str | None,
    *,
    sort: str,
    descending: bool,
    where: Mapping[str, Bounds],
    search: str | None,
    tag: str | None,
    bookmarked: bool,
) -> list[int]:
    """See `Store.order`."""
    column = column_of(sort, "sorted")
    found = find(connection, name, analysis)
    chosen = make_filter(found, connection.dialect.name, where=where, search=search, tag=tag, bookmarked=bookmarked)
    few = fewest(connection, chosen)
    tests = [condition.test for condition in chosen.conditions if condition is not few]
    before, source = "", "feature f where"
    if few is not None:
        before, source = f"with few as materialized ({few.indices})", LOOKED_UP[connection.dialect.name]
    indices: list[int] = []
    for walk in walks(column, descending=descending, cursor=None):
        conditions = " and ".join(["f.analysis_id = :analysis_id", walk.test, *tests]).format(f="f.")
        statement = f"{before} select f.feature_index from {source} {conditions} order by {walk.order.format(f='f.')}"
        indices += connection.scalars(text(statement), chosen.values)
    return indices


def read_records(
    connection: Connection, name: str | None, analysis: str | None, indices: Iterable[int]
) -> list[FeatureRecord]:
    """See `Store.records`."""
    found, feature, wanted = find(connection, name, analysis), tables.feature, list(indices)
    query = select(feature).where(feature.c.analysis_id == found.analysis_id)
    records: dict[int, FeatureRecord] = {}
    for batch in in_batches(dict.fromkeys(wanted), _BATCH):
        rows = connection.execute(query.where(feature.c.feature_index.in_(batch))).mappings()
        records |= {row["feature_index"]: read_feature(row) for row in rows}
    for index in wanted:
        if index not in records:
            raise NotInStoreError(
                f"feature {index} is not in the analysis {found.analysis.name!r} of {found.dictionary.name!r}"
            )
    return [records[index] for index in wanted]


def draw_index(connection: Connection, name: str | None, analysis: str | None) -> int:
    """See `Store.draw`."""
    found, feature = find(connection, name, analysis), tables.feature.c
    of_analysis = feature.analysis_id == found.analysis_id
    # one question each: both in one would look at all features
    lowest = connection.scalar(select(func.min(feature.feature_index)).where(of_analysis))
    highest = connection.scalar(select(func.max(feature.feature_index)).where(of_analysis))
    if lowest is None or highest is None:
        raise NotInStoreError(f"the analysis {found.analysis.name!r} of {found.dictionary.name!r} has no feature")
    # mostly every number between the two was analysed, so that the first throw hits; an offset would walk to its place
    for _ in range(20):
        index = random.randint(lowest, highest)
        if (
            connection.scalar(select(feature.feature_index).where(of_analysis, feature.feature_index == index))
            is not None
        ):
            return index
    return random.choice(connection.scalars(select(feature.feature_index).where(of_analysis)).all())
