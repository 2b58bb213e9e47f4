"""Search by meaning: a vector per explanation and embedder, and the exact cosine with all of them, computed with numpy.

Vectors of different embedders live in different spaces, so they are never mixed; vectors of one embedder have one width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select

from saescope.store import tables
from saescope.store.bulk import insert_rows
from saescope.store.finding import find, listed
from saescope.store.records import Explanation, FeatureRecord
from saescope.store.rows import read_explanation, read_feature
from saescope.store.texts import plain

if TYPE_CHECKING:
    import numpy as np

_STORED = "<f4"
_CHUNK = 4096  # vectors compared at once

Embed = Callable[[list[str]], Any]


def missing_texts(connection: Connection, dictionary_id: int, embedder: str) -> list[tuple[int, str]]:
    """Numbers and texts of the explanations that have no vector of this embedder."""
    explanation, embedding = tables.explanation.c, tables.embedding.c
    done = select(embedding.explanation_id).where(embedding.embedder == embedder)
    query = select(explanation.id, explanation.text).where(
        explanation.dictionary_id == dictionary_id, explanation.id.not_in(done)
    )
    return [(number, text) for number, text in connection.execute(query.order_by(explanation.id))]


def embedded(texts: Sequence[tuple[int, str]], embedder: str, embed: Embed) -> list[tuple[int, str, bytes]]:
    """Rows of `embedding` for some texts, as far as the embedder's answer makes sense."""
    import numpy as np

    vectors = np.asarray(embed([text for _, text in texts]), dtype=np.float32)  # [texts, width]
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
        raise ValueError(
            f"the embedder {embedder!r} gave an array of shape {vectors.shape} for {len(texts)} texts; "
            f"expected one vector for each, [{len(texts)}, width]"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"the embedder {embedder!r} gave numbers that are not finite")
    name = plain(embedder, "the name of the embedder")
    return [(number, name, row.astype(_STORED).tobytes()) for (number, _), row in zip(texts, vectors, strict=True)]


def keep(connection: Connection, rows: list[tuple[int, str, bytes]]) -> int:
    """Write vectors; explanations that have been removed meanwhile, or got a vector, are passed over."""
    embedder = rows[0][1]
    check_width(connection, embedder, len(rows[0][2]) // 4)
    explanation, embedding = tables.explanation.c, tables.embedding.c
    numbers = [number for number, _, _ in rows]
    there = set(connection.scalars(select(explanation.id).where(explanation.id.in_(numbers))))
    done = select(embedding.explanation_id).where(embedding.embedder == embedder, embedding.explanation_id.in_(numbers))
    there -= set(connection.scalars(done))
    return insert_rows(connection, tables.embedding, (row for row in rows if row[0] in there))


def check_width(connection: Connection, embedder: str, width: int) -> None:
    """Raises `ValueError` where the store has vectors of this embedder of another width."""
    embedding = tables.embedding.c
    known = connection.scalar(select(func.length(embedding.vector)).where(embedding.embedder == embedder).limit(1))
    if known is not None and known != 4 * width:
        raise ValueError(
            f"vectors of {embedder!r} in the store have {known // 4} numbers, this one has {width}; "
            "vectors of one embedder have one width, so give another embedder another name"
        )


def read_similar(
    connection: Connection, name: str | None, analysis: str | None, vector: Any, embedder: str, limit: int
) -> list[tuple[FeatureRecord, Explanation, float]]:
    """See `Store.similar`."""
    import numpy as np

    if limit < 1:
        raise ValueError(f"a list has at least one feature, got limit={limit}")
    wanted = np.asarray(vector, dtype=np.float64)
    if wanted.ndim != 1 or not np.isfinite(wanted).all() or not wanted.any():
        raise ValueError(f"expected one vector of finite numbers that is not 0, got an array of shape {wanted.shape}")
    found = find(connection, name, analysis)
    check_width(connection, embedder, len(wanted))
    numbers, cosines = [], []
    for some, vectors in _vectors(connection, found.dictionary_id, found.analysis_id, embedder):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
        products = vectors @ wanted
        numbers.append(some)
        cosines.append(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))
    if not numbers:
        _complain(connection, found.dictionary.name, found.dictionary_id, embedder)
        return []
    all_numbers, all_cosines = np.concatenate(numbers), np.concatenate(cosines)
    best = np.lexsort((all_numbers, -all_cosines))[:limit]
    records = _records(connection, found.analysis_id, [int(all_numbers[i]) for i in best])
    return [(*records[int(all_numbers[i])], float(all_cosines[i])) for i in best]


def _vectors(
    connection: Connection, dictionary_id: int, analysis_id: int, embedder: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and vectors, float64, of the explanations of features that were analysed, some at a time."""
    import numpy as np

    explanation, embedding, feature = tables.explanation, tables.embedding, tables.feature
    query = (
        select(embedding.c.explanation_id, embedding.c.vector)
        .join_from(embedding, explanation, explanation.c.id == embedding.c.explanation_id)
        .join(
            feature,
            (feature.c.analysis_id == analysis_id) & (feature.c.feature_index == explanation.c.feature_index),
        )
        .where(embedding.c.embedder == embedder, explanation.c.dictionary_id == dictionary_id)
    )
    with connection.execute(query, execution_options={"yield_per": _CHUNK}) as answer:
        for rows in answer.partitions():
            vectors = np.frombuffer(b"".join(bytes(row[1]) for row in rows), dtype=_STORED).reshape(len(rows), -1)
            yield np.array([row[0] for row in rows]), vectors.astype(np.float64)


def _records(
    connection: Connection, analysis_id: int, numbers: list[int]
) -> dict[int, tuple[FeatureRecord, Explanation]]:
    explanation, feature = tables.explanation, tables.feature
    explanations = {
        row["id"]: row
        for row in connection.execute(select(explanation).where(explanation.c.id.in_(numbers))).mappings()
    }
    indices = {row["feature_index"] for row in explanations.values()}
    query = select(feature).where(feature.c.analysis_id == analysis_id, feature.c.feature_index.in_(indices))
    features = {row["feature_index"]: read_feature(row) for row in connection.execute(query).mappings()}
    return {number: (features[row["feature_index"]], read_explanation(row)) for number, row in explanations.items()}


def _complain(connection: Connection, name: str, dictionary_id: int, embedder: str) -> None:
    """Raises `ValueError` unless an empty answer is the true one."""
    explanation, embedding = tables.explanation.c, tables.embedding.c
    query = (
        select(embedding.embedder)
        .distinct()
        .join_from(tables.embedding, tables.explanation, explanation.id == embedding.explanation_id)
        .where(explanation.dictionary_id == dictionary_id)
    )
    known = sorted(connection.scalars(query))
    if embedder not in known:
        there = f"there are vectors of {listed(known)}" if known else "none of its explanations has a vector yet"
        raise ValueError(f"no explanation of {name!r} has a vector of {embedder!r}: {there}")
