"""Reading: each question is one or two statements, whatever the number of features or examples."""

from __future__ import annotations

import difflib

from sqlalchemy import ColumnElement, Connection, Select, func, select

from saescope.store import schema
from saescope.store.records import DictionaryRecord, FeaturePage, FeatureRecord
from saescope.store.rows import read_dictionary, read_example, read_feature

_SORT_KEYS: dict[str, ColumnElement] = {
    "index": schema.feature.c.feature_index,
    "num_firings": schema.feature.c.num_firings,
    "density": schema.feature.c.density,
    "max_activation": schema.feature.c.max_activation,
    "mean_activation": schema.feature.c.mean_activation,
    "precision": schema.label.c.precision,
    "lift": schema.label.c.lift,
}
SORT_KEYS = tuple(_SORT_KEYS)


def read_dictionaries(connection: Connection) -> list[DictionaryRecord]:
    rows = connection.execute(select(schema.dictionary).order_by(schema.dictionary.c.name)).mappings()
    return [read_dictionary(row) for row in rows]


def find_dictionary(connection: Connection, name: str | None) -> tuple[int, DictionaryRecord]:
    """The row number and the record of the dictionary called `name`, or of the only one there is."""
    query = select(schema.dictionary)
    if name is not None:
        query = query.where(schema.dictionary.c.name == name)
    rows = connection.execute(query.limit(2)).mappings().all()
    if len(rows) == 1:
        return rows[0]["id"], read_dictionary(rows[0])

    names = list(connection.scalars(select(schema.dictionary.c.name).order_by(schema.dictionary.c.name)))
    if not names:
        raise ValueError("the store holds no dictionary yet; `saescope analyze DICTIONARY` writes one into it")
    if name is None:
        raise ValueError(f"the store holds {len(names)} dictionaries, so name one of them: {_listed(names)}")
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {_listed(near)}?" if near else f"it holds {_listed(names)}"
    raise ValueError(f"the store holds no dictionary named {name!r}; {hint}")


def read_features(
    connection: Connection,
    dictionary_id: int,
    *,
    sort: str,
    descending: bool,
    limit: int,
    offset: int,
    min_density: float | None,
    max_density: float | None,
    search: str | None,
) -> list[FeatureRecord]:
    if sort not in _SORT_KEYS:
        near = difflib.get_close_matches(sort, SORT_KEYS, n=2)
        hint = f"did you mean {_listed(near)}?" if near else f"the keys are {_listed(SORT_KEYS)}"
        raise ValueError(f"features cannot be sorted by {sort!r}; {hint}")
    if limit < 0 or offset < 0:
        raise ValueError(f"limit and offset count features, got limit={limit}, offset={offset}")
    query = _features(dictionary_id)
    if min_density is not None:
        query = query.where(schema.feature.c.density >= min_density)
    if max_density is not None:
        query = query.where(schema.feature.c.density <= max_density)
    if search is not None:
        query = query.where(schema.label.c.text.icontains(search, autoescape=True))
    key = _SORT_KEYS[sort]
    ordered = key.desc() if descending else key.asc()
    if key.table is schema.label:  # the two databases disagree about where nulls go
        ordered = ordered.nulls_last()
    query = query.order_by(ordered, schema.feature.c.feature_index).limit(limit).offset(offset)
    return [read_feature(row) for row in connection.execute(query).mappings()]


def read_page(connection: Connection, dictionary_id: int, record: DictionaryRecord, index: int) -> FeaturePage:
    if not 0 <= index < record.d_sae:
        raise ValueError(f"{record.name!r} has features 0 to {record.d_sae - 1}, so there is no feature {index}")
    row = (
        connection.execute(_features(dictionary_id).where(schema.feature.c.feature_index == index))
        .mappings()
        .one_or_none()
    )
    if row is None:
        feature = schema.feature.c
        analysed = select(func.count()).select_from(schema.feature).where(feature.dictionary_id == dictionary_id)
        raise ValueError(
            f"feature {index} of {record.name!r} was not analysed: "
            f"the store has {connection.scalar(analysed)} of its {record.d_sae} features"
        )
    example, window = schema.example, schema.text_window
    examples = (
        select(example, window.c.document, window.c.document_offset, window.c.token_ids, window.c.token_texts)
        .join(
            window,
            (window.c.dictionary_id == example.c.dictionary_id) & (window.c.window_id == example.c.window_id),
        )
        .where(example.c.dictionary_id == dictionary_id, example.c.feature_index == index)
        .order_by(example.c.rank)
    )
    return FeaturePage(
        dictionary=record,
        feature=read_feature(row),
        examples=tuple(read_example(row) for row in connection.execute(examples).mappings()),
    )


def _features(dictionary_id: int) -> Select:
    feature, label = schema.feature, schema.label
    named = [label.c[name].label(f"label_{name}") for name in ("text", "kind", "precision", "lift", "num_firings")]
    same = (label.c.dictionary_id == feature.c.dictionary_id) & (label.c.feature_index == feature.c.feature_index)
    return select(feature, *named).outerjoin(label, same).where(feature.c.dictionary_id == dictionary_id)


def _listed(names: list[str] | tuple[str, ...], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
