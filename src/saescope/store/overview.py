"""The store and its analyses at a glance: `saescope show dictionary` and `saescope store info`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from saescope.store import tables
from saescope.store.evaluations import read_evaluations, read_runs
from saescope.store.finding import all_dictionaries, find
from saescope.store.records import DENSE, AnalysisInfo, DictionaryInfo, Histogram, StoreInfo, Summary
from saescope.store.rows import read_analysis

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BINS_PER_DECADE = 4


def read_summary(connection: Connection, name: str | None, analysis: str | None) -> Summary:
    """See `Store.summary`."""
    found = find(connection, name, analysis)
    feature = tables.feature.c
    rows = connection.execute(
        select(feature.num_firings, feature.density, feature.max_activation, feature.label.is_not(None)).where(
            feature.analysis_id == found.analysis_id
        )
    ).all()
    firing = [row for row in rows if row[0]]
    explained = connection.scalar(
        text(
            "select count(distinct e.feature_index) from explanation e join feature f on f.feature_index = e.feature_index "
            "where e.dictionary_id = :dictionary_id and f.analysis_id = :analysis_id"
        ),
        {"dictionary_id": found.dictionary_id, "analysis_id": found.analysis_id},
    )
    return Summary(
        dictionary=found.dictionary,
        analysis=found.analysis,
        num_features=len(rows),
        num_dead=len(rows) - len(firing),
        num_dense=sum(row[1] > DENSE for row in rows),
        num_labelled=sum(row[3] for row in rows),
        num_explained=explained or 0,
        density_quantiles=_quantiles([row[1] for row in firing]),
        max_quantiles=_quantiles([row[2] for row in firing]),
        log_density=_log_density([row[1] for row in firing]),
        evaluations=tuple(read_evaluations(connection, found.dictionary_id)),
        runs=tuple(read_runs(connection, found.dictionary_id)),
    )


def _quantiles(values: list[float]) -> tuple[tuple[float, float], ...]:
    ordered, pairs = sorted(values), []
    for share in QUANTILES if ordered else ():
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        pairs.append((share, ordered[below] + (place - below) * (ordered[above] - ordered[below])))
    return tuple(pairs)


def _log_density(densities: list[float]) -> Histogram:
    bins = [math.floor(_BINS_PER_DECADE * math.log10(density)) for density in densities if density > 0]
    if not bins:
        return Histogram()
    first, last = min(bins), max(bins)
    counts = [0] * (last - first + 1)
    for number in bins:
        counts[number - first] += 1
    return Histogram(edges=tuple(i / _BINS_PER_DECADE for i in range(first, last + 2)), counts=tuple(counts))


def read_info(connection: Connection, place: Path | str) -> StoreInfo:
    """See `Store.info`."""
    if connection.dialect.name == "sqlite":
        database = f"SQLite {connection.scalar(text('select sqlite_version()'))}"
        pages, page_bytes = (connection.exec_driver_sql(f"pragma {name}").scalar_one() for name in _FILE_SIZE)
        num_bytes = pages * page_bytes
    else:
        database = f"PostgreSQL {connection.scalar(text('show server_version'))}"
        num_bytes = sum(
            connection.scalar(text("select pg_total_relation_size(cast(:name as regclass))"), {"name": table.name}) or 0
            for table in tables.TABLES
        )
    analyses: dict[int, list[AnalysisInfo]] = {}
    for row in connection.execute(select(tables.analysis).order_by(tables.analysis.c.id)).mappings():
        analyses.setdefault(row["dictionary_id"], []).append(
            AnalysisInfo(
                analysis=read_analysis(row),
                num_features=row["num_features"],
                num_windows=row["num_stored_windows"],
                num_examples=row["num_examples"],
            )
        )
    counts = {table.name: _counts(connection, table) for table in tables.OF_DICTIONARY}
    named = connection.execute(select(tables.dictionary.c.name, tables.dictionary.c.id)).all()
    numbers = {row[0]: row[1] for row in named}
    return StoreInfo(
        place=str(place),
        database=database,
        num_bytes=num_bytes,
        dictionaries=tuple(
            DictionaryInfo(
                dictionary=record,
                analyses=tuple(analyses.get(number, [])),
                **{f"num_{kind}s": counts[name].get(number, 0) for name, kind in _COUNTED.items()},
            )
            for record in all_dictionaries(connection)
            for number in (numbers[record.name],)
        ),
    )


_FILE_SIZE = ("page_count", "page_size")
_COUNTED = {table.name: table.name for table in tables.OF_DICTIONARY} | {"training_run": "run"}


def _counts(connection: Connection, table: Any) -> dict[int, int]:
    query = select(table.c.dictionary_id, func.count()).group_by(table.c.dictionary_id)
    return {row[0]: row[1] for row in connection.execute(query)}
