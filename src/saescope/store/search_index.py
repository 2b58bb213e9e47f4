"""Keeping the words that full-text search looks through: of labels, of explanations, and of the tokens on which the top
examples fire. Rows of `feature_text` are the truth; each database keeps an index of them by itself."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, select, text

from saescope.store import tables
from saescope.store.bulk import in_batches, insert_rows
from saescope.store.schema import SCALE
from saescope.store.texts import unpack_ranges
from saescope.store.words import searchable

_CHUNK = 500  # features whose examples are in memory at once

_LABELS = "select feature_index, label from feature where analysis_id = :analysis_id and feature_index in :indices"
_EXPLANATIONS = """
select feature_index, text from explanation
where dictionary_id = (select dictionary_id from analysis where id = :analysis_id) and feature_index in :indices order by id
"""
_EXAMPLES = """
select e.feature_index, e.positions, w.text, w.token_ranges
from example e join text_window w on w.analysis_id = e.analysis_id and w.window_id = e.window_id
where e.analysis_id = :analysis_id and e.feature_index in :indices and e.top_rank is not null
order by e.feature_index, e.top_rank
"""


def index_words(connection: Connection, analysis_id: int) -> None:
    """Words of all features of an analysis that was just written and has none yet."""
    feature = tables.feature
    indices = connection.scalars(select(feature.c.feature_index).where(feature.c.analysis_id == analysis_id)).all()
    for chunk in in_batches(sorted(indices), _CHUNK):
        insert_rows(connection, tables.feature_text, _rows(connection, analysis_id, chunk))
    if connection.dialect.name == "sqlite":  # one segment is faster to read than the many that were written
        connection.exec_driver_sql("insert into feature_search (feature_search) values ('optimize')")


def renew_words(connection: Connection, analysis_id: int, indices: Iterable[int]) -> None:
    """Words of some features, after their labels or explanations changed."""
    delete = _query("delete from feature_text where analysis_id = :analysis_id and feature_index in :indices")
    for chunk in in_batches(sorted(set(indices)), _CHUNK):
        rows = _rows(connection, analysis_id, chunk)
        connection.execute(delete, {"analysis_id": analysis_id, "indices": chunk})
        insert_rows(connection, tables.feature_text, rows)


def renew_words_of_dictionary(connection: Connection, dictionary_id: int, indices: Iterable[int]) -> None:
    """The same in every analysis: explanations belong to the dictionary."""
    chosen = list(indices)
    of_dictionary = tables.analysis.c.dictionary_id == dictionary_id
    for analysis_id in connection.scalars(select(tables.analysis.c.id).where(of_dictionary)).all():
        renew_words(connection, analysis_id, chosen)


def _rows(connection: Connection, analysis_id: int, indices: list[int]) -> list[tuple[Any, ...]]:
    given = {"analysis_id": analysis_id, "indices": indices}
    texts: dict[int, list[str]] = {}
    for index, label in connection.execute(_query(_LABELS), given):
        texts[index] = [label or ""]
    explained = defaultdict(list)
    for index, explanation in connection.execute(_query(_EXPLANATIONS), given):
        explained[index].append(explanation)
    for index, written in explained.items():
        if index in texts:
            texts[index] += written
    for index, positions, window, ranges in connection.execute(_query(_EXAMPLES), given):
        content, places = json.loads(window), unpack_ranges(ranges)
        texts[index] += [content[slice(*places[position])] for position in json.loads(positions)]
    return [(analysis_id * SCALE + i, analysis_id, i, searchable(said)) for i, said in sorted(texts.items())]


def _query(statement: str) -> Any:
    return text(statement).bindparams(bindparam("indices", expanding=True))
