"""Feature pages: one statement gives all that one page shows, or all that a stretch of features shows.

Its rows are of several kinds, put one after the other: a row begins with its kind and the feature it is of. SQLite takes
rows of different columns in one answer as they are, filled up with nulls; PostgreSQL wants them of one type, so there each
is a JSON list. (SQLite's JSON would print numbers with 15 digits only.)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from sqlalchemy import Connection, TextClause, func, select, text

from saescope.store import tables
from saescope.store.errors import NotInStoreError
from saescope.store.finding import check_index, find
from saescope.store.records import FeaturePage, PageExample
from saescope.store.rows import (
    DETAIL_COLUMNS,
    ReadRow,
    read_analysis,
    read_detail,
    read_dictionary,
    read_example,
    read_explanation,
    read_feature,
    read_note,
    read_window,
)

_CHUNK = 32  # features read with one statement by `read_pages`

_BEFORE = """
with d as (
    select dictionary.*, series.name as series from dictionary left join series on series.id = dictionary.series_id
    where {dictionary} limit 2
), a as (
    select * from analysis where dictionary_id in (select id from d) and {analysis} order by id desc limit 1
)
"""
_OF_FEATURE = "analysis_id = (select id from a) and {0}.feature_index between :first and :last"
_OF_DICTIONARY = "dictionary_id = (select id from d) and {0}.feature_index between :first and :last"

_BESIDE = (
    "(select {0}(o.feature_index) from feature o "
    "where o.analysis_id = f.analysis_id and o.feature_index {1} f.feature_index)"
)

_Parts = dict[str, tuple[str, list[str], str]]  # by kind: the feature's index, columns, where they come from


def _columns(table: Any, alias: str, *skipped: str) -> list[str]:
    return [f"{alias}.{column.name}" for column in table.columns if column.name not in skipped]


_PARTS: _Parts = {
    "dictionary": ("0", [*_columns(tables.dictionary, "d"), "d.series"], "d"),
    "analysis": ("0", _columns(tables.analysis, "a"), "a"),
    "feature": (
        "f.feature_index",
        [
            *_columns(tables.feature, "f"),
            *(f"t.{name}" for name in DETAIL_COLUMNS),
            _BESIDE.format("max", "<"),
            _BESIDE.format("min", ">"),
        ],
        "feature f join feature_detail t on t.analysis_id = f.analysis_id and t.feature_index = f.feature_index "
        f"where f.{_OF_FEATURE.format('f')}",
    ),
    "example": (
        "e.feature_index",
        [
            *_columns(tables.example, "e", "analysis_id", "feature_index"),
            *_columns(tables.text_window, "w", "analysis_id", "window_id"),
        ],
        "example e join text_window w on w.analysis_id = e.analysis_id and w.window_id = e.window_id "
        f"where e.{_OF_FEATURE.format('e')}",
    ),
    **{
        table.name: (
            f"{table.name}.feature_index",
            _columns(table, table.name),
            f"{table.name} where {_OF_DICTIONARY.format(table.name)}",
        )
        for table in (tables.explanation, tables.tag, tables.bookmark, tables.note)
    },
}
_KINDS = tuple(_PARTS)
_NAMES = {kind: [column.split(".")[1] for column in columns] for kind, (_, columns, _) in _PARTS.items()}
_NAMES["feature"][-2:] = ["previous", "following"]


def read_page(connection: Connection, name: str | None, index: int, analysis: str | None) -> FeaturePage:
    """See `Store.page`."""
    for page in _read(connection, name, analysis, index, index):
        return page
    found = find(connection, name, analysis)  # or it says in words what is missing
    check_index(found.dictionary, index)
    of_analysis = tables.feature.c.analysis_id == found.analysis_id
    analysed = connection.scalar(select(func.count()).select_from(tables.feature).where(of_analysis))
    raise NotInStoreError(
        f"feature {index} of {found.dictionary.name!r} was not analysed: analysis {found.analysis.name!r} has "
        f"{analysed} of its {found.dictionary.d_sae} features"
    )


def read_pages(
    connection: Connection, name: str | None, analysis: str | None, indices: Iterable[int] | None
) -> Iterator[FeaturePage]:
    """See `Store.pages`."""
    found = find(connection, name, analysis)
    named = (found.dictionary.name, found.analysis.name)
    if indices is not None:
        for index in indices:
            yield read_page(connection, named[0], index, named[1])
        return
    column = tables.feature.c.feature_index
    query = select(column).where(tables.feature.c.analysis_id == found.analysis_id).order_by(column).limit(_CHUNK)
    last = -1
    while chunk := connection.scalars(query.where(column > last)).all():
        last = chunk[-1]
        yield from _read(connection, *named, chunk[0], last)


def _read(
    connection: Connection, name: str | None, analysis: str | None, first: int, last: int
) -> Iterator[FeaturePage]:
    """Pages of the features from `first` to `last`; nothing where the dictionary or the analysis is not clear."""
    statement = _statement(connection.dialect.name, name is not None, analysis is not None)
    rows: dict[str, dict[int, list[ReadRow]]] = {kind: defaultdict(list) for kind in _KINDS}
    values = {"name": name, "analysis": analysis, "first": first, "last": last}
    for number, index, *content in connection.execute(
        statement, {key: value for key, value in values.items() if value is not None}
    ):
        kind = _KINDS[number]
        told = json.loads(content[0]) if connection.dialect.name == "postgresql" else content
        rows[kind][index].append(dict(zip(_NAMES[kind], told, strict=False)))
    if len(rows["dictionary"][0]) != 1 or not rows["analysis"][0]:
        return
    dictionary, analysed = read_dictionary(rows["dictionary"][0][0]), read_analysis(rows["analysis"][0][0])
    for index, (feature,) in sorted(rows["feature"].items()):
        yield FeaturePage(
            dictionary=dictionary,
            analysis=analysed,
            feature=read_feature(feature),
            detail=read_detail(feature),
            all_examples=_examples(rows["example"][index]),
            explanations=tuple(map(read_explanation, _by_id(rows["explanation"][index]))),
            tags=tuple(sorted(row["name"] for row in rows["tag"][index])),
            notes=tuple(map(read_note, _by_id(rows["note"][index]))),
            is_bookmarked=bool(rows["bookmark"][index]),
            previous=feature["previous"],
            following=feature["following"],
        )


def _examples(rows: list[ReadRow]) -> tuple[PageExample, ...]:
    """The strongest first, those without activations last; equal ones as they were written."""
    ordered = sorted(rows, key=lambda row: (row["negative"] is not None, -abs(row["activation"]), row["number"]))
    windows = {row["window_id"]: read_window(row) for row in ordered}
    return tuple(read_example(row, windows[row["window_id"]]) for row in ordered)


def _by_id(rows: list[ReadRow]) -> list[ReadRow]:
    return sorted(rows, key=lambda row: row["id"])


@cache
def _statement(dialect: str, dictionary_named: bool, analysis_named: bool) -> TextClause:
    before = _BEFORE.format(
        dictionary="dictionary.name = :name" if dictionary_named else "true",
        analysis="name = :analysis" if analysis_named else "true",
    )
    width = max(len(columns) for _, columns, _ in _PARTS.values())
    parts = []
    for number, (index, columns, source) in enumerate(_PARTS.values()):
        if dialect == "postgresql":
            content = [f"cast(json_build_array({', '.join(columns)}) as text)"]
        else:
            content = columns + ["null"] * (width - len(columns))
        parts.append(f"select {number}, {index}, {', '.join(content)} from {source}")
    return text(before + " union all ".join(parts))
