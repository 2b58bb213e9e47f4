"""What was added to the features of a list, in one question: tags, bookmarks, the best explanation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select, text

from saescope.store import tables
from saescope.store.bulk import in_batches
from saescope.store.finding import find_dictionary
from saescope.store.records import Explanation, FeatureMarks
from saescope.store.rows import read_explanation

_BATCH = 1000  # features in one statement
_HERE = "where dictionary_id = :dictionary_id and feature_index in :indices"
_ALL = text(
    f"select feature_index, name as tag, cast(null as integer) as explanation from tag {_HERE} "
    f"union all select feature_index, cast(null as text), cast(null as integer) from bookmark {_HERE} "
    f"union all select feature_index, cast(null as text), id from explanation {_HERE}"
).bindparams(bindparam("indices", expanding=True))
"""Rows that have neither a tag nor an explanation are bookmarks."""


def read_marks(connection: Connection, name: str | None, indices: Iterable[int]) -> dict[int, FeatureMarks]:
    """See `Store.marks`."""
    dictionary_id, _ = find_dictionary(connection, name)
    tags: dict[int, list[str]] = defaultdict(list)
    bookmarks: set[int] = set()
    explained: list[int] = []
    for batch in in_batches(dict.fromkeys(indices), _BATCH):
        for index, tag, explanation in connection.execute(_ALL, {"dictionary_id": dictionary_id, "indices": batch}):
            if tag is not None:
                tags[index].append(tag)
            elif explanation is not None:
                explained.append(explanation)
            else:
                bookmarks.add(index)
    best = _best(connection, explained)
    return {
        index: FeatureMarks(
            tags=tuple(sorted(tags.get(index, ()))), is_bookmarked=index in bookmarks, explanation=best.get(index)
        )
        for index in sorted({*tags, *bookmarks, *best})
    }


def _best(connection: Connection, identities: list[int]) -> dict[int, Explanation]:
    """By feature, of some explanations the one with the best score; where none has a score, the last."""
    best: dict[int, Explanation] = {}
    table = tables.explanation
    for batch in in_batches(sorted(identities), _BATCH):
        rows = connection.execute(select(table).where(table.c.id.in_(batch)).order_by(table.c.id)).mappings()
        for row in rows:
            index, one = row["feature_index"], read_explanation(row)
            if index not in best or _rank(one) >= _rank(best[index]):
                best[index] = one
    return best


def _rank(explanation: Explanation) -> tuple[bool, float]:
    return explanation.score is not None, explanation.score or 0.0
