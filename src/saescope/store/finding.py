"""Which dictionary and which analysis a question is about, and errors that name the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, select, text

from saescope.store import tables
from saescope.store.errors import NotInStoreError
from saescope.store.records import AnalysisRecord, DictionaryRecord
from saescope.store.rows import read_analysis, read_dictionary

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DICTIONARIES = "select d.*, s.name as series from dictionary d left join series s on s.id = d.series_id"


@dataclass(frozen=True)
class Found:
    """A dictionary and one of its analyses, with their row numbers."""

    dictionary_id: int
    dictionary: DictionaryRecord
    analysis_id: int
    analysis: AnalysisRecord


def all_dictionaries(connection: Connection) -> list[DictionaryRecord]:
    """By name."""
    found = [read_dictionary(row) for row in connection.execute(text(_DICTIONARIES)).mappings()]
    return sorted(found, key=lambda record: record.name)  # databases sort texts in their own ways


def remembering(connection: Connection) -> Connection:
    """A transaction in which a dictionary or an analysis is looked for once: nothing changes while it lasts."""
    return connection.execution_options(saescope_found={})


def _once(look: Callable[Concatenate[Connection, _P], _T]) -> Callable[Concatenate[Connection, _P], _T]:
    @wraps(look)
    def found(connection: Connection, *what: _P.args, **named: _P.kwargs) -> _T:
        known: dict[Any, _T] = connection.get_execution_options().get("saescope_found", {})
        key = look, what, tuple(named.items())
        if key not in known:
            known[key] = look(connection, *what, **named)
        return known[key]

    return found


@_once
def find_dictionary(connection: Connection, name: str | None) -> tuple[int, DictionaryRecord]:
    """The row number and the record of the dictionary called `name`, or of the only one there is.

    Raises:
        ValueError: there is none, or there are several and no name was given.
    """
    where, values = ("", {}) if name is None else ("where d.name = :name", {"name": name})
    rows = connection.execute(text(f"{_DICTIONARIES} {where} limit 2"), values).mappings().all()
    if len(rows) == 1:
        return rows[0]["id"], read_dictionary(rows[0])
    names = sorted(connection.scalars(select(tables.dictionary.c.name)))
    if not names:
        raise NotInStoreError("the store holds no dictionary yet; `saescope analyze DICTIONARY` writes one into it")
    if name is None:
        raise ValueError(f"the store holds {len(names)} dictionaries, so name one of them: {listed(names)}")
    raise NotInStoreError(f"the store holds no dictionary named {name!r}; {nearest(name, names, 'it holds')}")


def all_analyses(connection: Connection, dictionary_id: int) -> list[AnalysisRecord]:
    """In the order in which they were written."""
    table = tables.analysis
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(table.c.id)
    return [read_analysis(row) for row in connection.execute(query).mappings()]


@_once
def find(connection: Connection, name: str | None, analysis: str | None) -> Found:
    """A dictionary and one of its analyses: the one called so, or the one written last.

    Raises:
        ValueError: there is no such dictionary or analysis.
    """
    dictionary_id, dictionary = find_dictionary(connection, name)
    table = tables.analysis
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(table.c.id.desc()).limit(1)
    if analysis is not None:
        query = query.where(table.c.name == analysis)
    row = connection.execute(query).mappings().one_or_none()
    if row is not None:
        return Found(dictionary_id, dictionary, row["id"], read_analysis(row))
    names = [record.name for record in all_analyses(connection, dictionary_id)]
    if not names:
        raise NotInStoreError(f"{dictionary.name!r} has not been analysed yet; `saescope analyze` does it")
    raise NotInStoreError(
        f"{dictionary.name!r} has no analysis named {analysis!r}; {nearest(analysis or '', names, 'it has')}"
    )


def check_index(dictionary: DictionaryRecord, index: int) -> None:
    """Raises `ValueError` where the dictionary has no feature of this number."""
    if not 0 <= index < dictionary.d_sae:
        raise NotInStoreError(
            f"{dictionary.name!r} has features 0 to {dictionary.d_sae - 1}, so there is no feature {index}"
        )


def nearest(word: str, known: Sequence[str], otherwise: str) -> str:
    """How an error about an unknown name ends: with similar ones, else with all."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {listed(near)}?" if near else f"{otherwise} {listed(known)}"


def listed(names: Sequence[str], most: int = 40) -> str:
    """Names in quotes with commas between, not too many."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
