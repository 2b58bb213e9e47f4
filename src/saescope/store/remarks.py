"""What people and language models add to a feature: explanations, tags, bookmarks, notes.

They belong to the feature of the dictionary, not to an analysis, and stay when an analysis is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from saescope.store import tables
from saescope.store.bulk import insert_row
from saescope.store.errors import NotInStoreError
from saescope.store.finding import check_index, find_dictionary
from saescope.store.records import Explanation, Note
from saescope.store.rows import explanation_row, note_row, read_explanation
from saescope.store.search_index import renew_words_of_dictionary
from saescope.store.texts import now, plain


def explain(connection: Connection, name: str | None, index: int, explanation: Explanation) -> int:
    """See `Store.explain`."""
    dictionary_id = _place(connection, name, index)
    identity = _insert(connection, tables.explanation, dictionary_id, index, explanation_row(explanation))
    renew_words_of_dictionary(connection, dictionary_id, [index])
    return identity


def forget_explanation(connection: Connection, identity: int) -> None:
    """See `Store.forget_explanation`."""
    table = tables.explanation
    query = select(table.c.dictionary_id, table.c.feature_index).where(table.c.id == identity)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotInStoreError(f"the store holds no explanation number {identity}; it may have been removed already")
    connection.execute(delete(tables.embedding).where(tables.embedding.c.explanation_id == identity))
    connection.execute(delete(table).where(table.c.id == identity))
    renew_words_of_dictionary(connection, row[0], [row[1]])


def read_explanations(connection: Connection, name: str | None, index: int | None) -> list[tuple[int, Explanation]]:
    """Explanations with the feature each is of, by feature, then as they were added."""
    dictionary_id, dictionary = find_dictionary(connection, name)
    table = tables.explanation
    query = select(table).where(table.c.dictionary_id == dictionary_id).order_by(table.c.feature_index, table.c.id)
    if index is not None:
        check_index(dictionary, index)
        query = query.where(table.c.feature_index == index)
    return [(row["feature_index"], read_explanation(row)) for row in connection.execute(query).mappings()]


def add_remarks(
    connection: Connection,
    name: str | None,
    *,
    explanations: Iterable[tuple[int, Explanation]],
    tags: Iterable[tuple[int, str]],
    notes: Iterable[tuple[int, Note]],
    bookmarks: Iterable[int],
) -> None:
    """See `Store.add_remarks`."""
    dictionary_id, dictionary = find_dictionary(connection, name)
    explained = set()
    same = ("text", "method", "author")
    there = _there(connection, tables.explanation, dictionary_id, same)
    for index, explanation in explanations:
        check_index(dictionary, index)
        row = explanation_row(explanation)
        key = (index, *(row[column] for column in same))
        if key not in there:
            there.add(key)
            explained.add(index)
            _insert(connection, tables.explanation, dictionary_id, index, row)
    there = _there(connection, tables.note, dictionary_id, ("text",))
    for index, note in notes:
        check_index(dictionary, index)
        row = note_row(note)
        if (index, row["text"]) not in there:
            there.add((index, row["text"]))
            _insert(connection, tables.note, dictionary_id, index, row)
    for index, tag in tags:
        add_tag(connection, dictionary.name, index, tag)
    for index in bookmarks:
        set_bookmark(connection, dictionary.name, index, True)
    renew_words_of_dictionary(connection, dictionary_id, explained)


def add_tag(connection: Connection, name: str | None, index: int, tag: str) -> None:
    """See `Store.tag`."""
    dictionary_id, word = _place(connection, name, index), plain(tag, "the tag").strip()
    if not word:
        raise ValueError("a tag needs a name, got an empty one")
    table, values = tables.tag, {"dictionary_id": dictionary_id, "feature_index": index, "name": word}
    if not connection.scalar(_same(table, values)):
        connection.execute(insert(table).values(**values))


def remove_tag(connection: Connection, name: str | None, index: int, tag: str) -> None:
    """See `Store.untag`."""
    values = {"dictionary_id": _place(connection, name, index), "feature_index": index, "name": tag.strip()}
    if not connection.execute(delete(tables.tag).filter_by(**values)).rowcount:
        raise NotInStoreError(f"feature {index} has no tag {tag!r}")


def read_tags(connection: Connection, name: str | None) -> dict[str, int]:
    """See `Store.tags`."""
    dictionary_id, _ = find_dictionary(connection, name)
    table = tables.tag
    query = select(table.c.name, func.count()).where(table.c.dictionary_id == dictionary_id).group_by(table.c.name)
    return dict(sorted((word, count) for word, count in connection.execute(query)))


def set_bookmark(connection: Connection, name: str | None, index: int, on: bool) -> None:
    """See `Store.bookmark`."""
    values: dict[str, Any] = {"dictionary_id": _place(connection, name, index), "feature_index": index}
    table = tables.bookmark
    if not on:
        connection.execute(delete(table).filter_by(**values))
    elif not connection.scalar(_same(table, values)):
        connection.execute(insert(table).values(**values, created_at=now()))


def add_note(connection: Connection, name: str | None, index: int, note: Note) -> int:
    """See `Store.add_note`."""
    return _insert(connection, tables.note, _place(connection, name, index), index, note_row(note))


def edit_note(connection: Connection, identity: int, text: str) -> None:
    """See `Store.edit_note`."""
    words = note_row(Note(text=text))["text"]
    table = tables.note
    if not connection.execute(update(table).where(table.c.id == identity).values(text=words)).rowcount:
        raise _no_note(identity)


def delete_note(connection: Connection, identity: int) -> None:
    """See `Store.delete_note`."""
    if not connection.execute(delete(tables.note).where(tables.note.c.id == identity)).rowcount:
        raise _no_note(identity)


def _place(connection: Connection, name: str | None, index: int) -> int:
    dictionary_id, dictionary = find_dictionary(connection, name)
    check_index(dictionary, index)
    return dictionary_id


def _insert(connection: Connection, table: Table, dictionary_id: int, index: int, row: dict[str, Any]) -> int:
    return insert_row(connection, table, dictionary_id=dictionary_id, feature_index=index, **row)


def _there(connection: Connection, table: Table, dictionary_id: int, columns: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """What a dictionary's features have already: the feature, and these columns."""
    chosen = [table.c[column] for column in ("feature_index", *columns)]
    return set(map(tuple, connection.execute(select(*chosen).where(table.c.dictionary_id == dictionary_id))))


def _same(table: Table, values: dict[str, Any]) -> Any:
    return select(func.count()).select_from(table).filter_by(**values)


def _no_note(identity: int) -> NotInStoreError:
    return NotInStoreError(f"the store holds no note number {identity}; it may have been deleted already")
