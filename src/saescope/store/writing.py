"""Writing one analysis: rows in batches, read from iterables once, inside the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, update

from saescope.store import tables
from saescope.store.bulk import BATCH, in_batches, insert_row, insert_rows
from saescope.store.evaluations import add_evaluations, add_run
from saescope.store.places import make_place
from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Feature,
    TrainingRun,
    Window,
)
from saescope.store.rows import DETAIL_COLUMNS, analysis_row, detail_values, example_row, feature_row, window_row
from saescope.store.search_index import index_words


def write_analysis(
    connection: Connection,
    dictionary: DictionaryRecord,
    analysis: AnalysisRecord,
    features: Iterable[Feature],
    windows: Iterable[Window],
    examples: Iterable[Example],
    *,
    evaluations: Iterable[EvaluationResult],
    run: TrainingRun | None,
    overwrite: bool,
) -> None:
    """See `Store.write`."""
    values = analysis_row(analysis)
    dictionary_id = make_place(connection, dictionary, analysis.name, overwrite=overwrite)
    counts = {"num_features": 0, "num_stored_windows": 0, "num_examples": 0}
    analysis_id = insert_row(connection, tables.analysis, dictionary_id=dictionary_id, **values, **counts)

    # the checks below say in words what a foreign key would say in codes
    known_features: set[int] = set()
    window_sizes: dict[int, int] = {}
    numbers: dict[int, int] = defaultdict(int)

    def checked_features() -> Iterator[Feature]:
        for feature in features:
            index = feature.record.index
            if not 0 <= index < dictionary.d_sae:
                raise ValueError(f"feature {index} lies outside the dictionary: d_sae is {dictionary.d_sae}")
            if index in known_features:
                raise ValueError(f"feature {index} was given twice")
            known_features.add(index)
            yield feature

    def window_rows() -> Iterator[tuple[Any, ...]]:
        for window in windows:
            if window.id in window_sizes:
                raise ValueError(f"window {window.id} was given twice; ids are unique within one analysis")
            window_sizes[window.id] = len(window.token_ids)
            yield window_row(analysis_id, window)

    def example_rows() -> Iterator[tuple[Any, ...]]:
        for example in examples:
            what = f"an example of feature {example.feature}"
            if example.feature not in known_features:
                raise ValueError(f"{what} was given, but not the feature")
            if example.window_id not in window_sizes:
                raise ValueError(f"{what} points into window {example.window_id}, which was not given")
            size = window_sizes[example.window_id]
            if not all(0 <= position < size for position in (example.peak, *example.positions)):
                raise ValueError(
                    f"{what} has positions outside its window of {size} tokens: peak {example.peak}, "
                    f"activations at {list(example.positions)}"
                )
            number = numbers[example.feature]
            numbers[example.feature] = number + 1
            yield example_row(analysis_id, number, example)

    insert_features(connection, analysis_id, checked_features())
    insert_rows(connection, tables.text_window, window_rows())
    insert_rows(connection, tables.example, example_rows())
    counts = {
        "num_features": len(known_features),
        "num_stored_windows": len(window_sizes),
        "num_examples": sum(numbers.values()),
    }
    connection.execute(update(tables.analysis).where(tables.analysis.c.id == analysis_id).values(**counts))
    index_words(connection, analysis_id)
    add_evaluations(connection, dictionary_id, evaluations)
    if run is not None:
        add_run(connection, dictionary_id, run)


def insert_features(connection: Connection, analysis_id: int, features: Iterable[Feature]) -> None:
    """Rows of `feature` and of `feature_detail`, in batches so that the iterator is read once."""
    for batch in in_batches(features, BATCH):
        insert_rows(connection, tables.feature, (feature_row(analysis_id, feature.record) for feature in batch))
        insert_rows(connection, tables.feature_detail, (_detail_row(analysis_id, feature) for feature in batch))


def _detail_row(analysis_id: int, feature: Feature) -> tuple[Any, ...]:
    index = feature.record.index
    values = detail_values(feature.detail, f"feature {index}")
    return (analysis_id, index, *(values[name] for name in DETAIL_COLUMNS))
