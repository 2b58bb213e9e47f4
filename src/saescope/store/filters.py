"""Which features a list is about: bounds on numbers, words, a tag, a bookmark, as conditions on a row of `feature`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from saescope.store.finding import Found, nearest
from saescope.store.records import LABEL_NUMBERS, NUMBERS, FeatureRecord
from saescope.store.schema import SCALE
from saescope.store.words import fts5_query, tsquery, wanted

KEYS = {
    "index": "feature_index",
    **{name: name for name in NUMBERS},
    **{name: f"label_{name}" for name in LABEL_NUMBERS},
}
"""What features can be sorted and filtered by, and the column that it means."""

SCORE = "explanation_score"
"""A key for bounds only: the best score among a feature's explanations."""

_WHOLE = {"index"} | {
    name for name, hint in get_type_hints(FeatureRecord).items() if hint is int or int in get_args(hint)
}
_LARGEST = 2**63 - 1

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Condition:
    """A condition on a column of `feature`, said in three ways. In tests `{f}` stands for what comes before a column."""

    column: str
    test: str
    """For a look at all features."""
    each: str
    """For a look at one after the other that may end soon; never made a join of, so that their order stays."""
    indices: str
    """The query that gives the indices of the features that meet it, quick where they are few."""
    of_analysis: bool = True
    """Whether these are features of the analysis and no others of its dictionary."""


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold, with the values they name."""

    conditions: tuple[Condition, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


def column_of(key: str, what: str) -> str:
    """The column that a key means; `ValueError` with the nearest key where it means none."""
    if key not in KEYS:
        raise ValueError(f"features cannot be {what} by {key!r}; {nearest(key, tuple(KEYS), 'the keys are')}")
    return KEYS[key]


def make_filter(
    found: Found,
    dialect: str,
    *,
    where: Mapping[str, Bounds],
    search: str | None,
    tag: str | None,
    bookmarked: bool,
) -> Filter:
    """All conditions of a list."""
    conditions: list[Condition] = []
    values: dict[str, Any] = {"analysis_id": found.analysis_id, "dictionary_id": found.dictionary_id}
    for key, bounds in where.items():
        column, tests = "best" if key == SCORE else column_of(key, "filtered"), []
        for name, sign, bound in zip(("low", "high"), (">=", "<="), _checked(key, bounds), strict=True):
            if bound is not None:
                values[f"{name}_{key}"] = bound
                tests.append(f"{{f}}{column} {sign} :{name}_{key}")
        if tests:
            test = " and ".join(tests)
            conditions.append(_on_score(test) if key == SCORE else _on_number(column, test))
    if search is not None:
        words = wanted(search)
        conditions.append(_on_words(dialect, len(words)))
        values |= {f"word_{i}": f" {word}" for i, word in enumerate(words)}
        if dialect == "sqlite":
            first = found.analysis_id * SCALE
            values |= {"words": fts5_query(words), "first_text": first, "last_text": first + SCALE - 1}
        else:
            values["words"] = tsquery(words)
    if tag is not None:
        values["tag"] = tag
        conditions.append(_on_mark("tag", "tag.dictionary_id = :dictionary_id and tag.name = :tag"))
    if bookmarked:
        conditions.append(_on_mark("bookmark", "bookmark.dictionary_id = :dictionary_id"))
    return Filter(tuple(conditions), values)


def _on_number(column: str, test: str) -> Condition:
    in_table = test.replace("{f}", "")
    indices = f"select feature_index from feature where analysis_id = :analysis_id and {in_table}"
    return Condition(column, test=test, each=test, indices=indices)


def _on_score(test: str) -> Condition:
    test = test.replace("{f}best", "max(score)")
    explained = "from explanation where explanation.dictionary_id = :dictionary_id"
    indices = f"select feature_index {explained} group by feature_index having {test}"
    each = f"coalesce((select {test} {explained} and explanation.feature_index = {{f}}feature_index), false)"
    return Condition(
        "feature_index", test=f"{{f}}feature_index in ({indices})", each=each, indices=indices, of_analysis=False
    )


def _on_mark(table: str, test: str) -> Condition:
    indices = f"select feature_index from {table} where {test}"
    each = f"coalesce((select true from {table} where {test} and {table}.feature_index = {{f}}feature_index), false)"
    return Condition(
        "feature_index", test=f"{{f}}feature_index in ({indices})", each=each, indices=indices, of_analysis=False
    )


def _on_words(dialect: str, num_words: int) -> Condition:
    # to look for words in a text is quicker than to ask an index for all that have them, where few texts are looked at
    find = "instr" if dialect == "sqlite" else "strpos"
    found = " and ".join(f"{find}(' ' || words, :word_{i}) > 0" for i in range(num_words))
    if dialect == "sqlite":
        indices = (
            "select rowid - :first_text as feature_index from feature_search "
            "where feature_search match :words and rowid between :first_text and :last_text"
        )
        return Condition(
            "feature_index",
            test=f"coalesce({{f}}feature_index in ({indices}), false)",
            each=f"coalesce((select {found} from feature_text where id = :first_text + {{f}}feature_index), false)",
            indices=indices,
        )
    here = "from feature_text where analysis_id = :analysis_id"
    return Condition(
        "feature_index",
        # a set of a text's words takes longer to make than a look through it; the index has those sets already
        test=f"{{f}}feature_index in (select feature_index {here} and {found})",
        each=f"coalesce((select {found} {here} and feature_text.feature_index = {{f}}feature_index), false)",
        indices=f"select feature_index {here} and word_set(words) @@ cast(:words as tsquery)",
    )


def _checked(key: str, bounds: Bounds) -> Bounds:
    """Bounds that both databases compare in the same way: whole numbers for whole numbers, and none at infinity."""
    try:
        low, high = bounds
        if any(bound is not None and math.isnan(bound) for bound in (low, high)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"the bounds of {key} are {bounds!r}; expected the lowest and the highest, or None for one of them"
        ) from None
    if key in _WHOLE:
        low = None if low is None else _whole(low, math.ceil)
        high = None if high is None else _whole(high, math.floor)
    else:
        low, high = (None if bound is None else float(bound) for bound in (low, high))
    return low, high


def _whole(bound: float, rounded: Any) -> int:
    if math.isinf(bound):
        return _LARGEST if bound > 0 else -_LARGEST
    return max(-_LARGEST, min(_LARGEST, rounded(bound)))
