"""The store keeps what was learnt about features, so that looking needs no model, tokenizer or dataset.

One address names it: a file (SQLite) or a PostgreSQL database. Records are plain values, and a `FeaturePage` is all
that one page shows. Importing this room is cheap: the database library is loaded when a store is opened.
"""

from __future__ import annotations

from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.store.records import (
    AnalysisInfo,
    AnalysisRecord,
    Band,
    DictionaryInfo,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    Feature,
    FeatureDetail,
    FeatureList,
    FeatureMarks,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
    PageExample,
    Span,
    StoreInfo,
    Summary,
    TokenLogit,
    TrainingRun,
    Window,
)
from saescope.store.store import Store

__all__ = [
    "AnalysisInfo",
    "AnalysisRecord",
    "Band",
    "DictionaryInfo",
    "DictionaryRecord",
    "EvaluationResult",
    "Example",
    "Explanation",
    "Feature",
    "FeatureDetail",
    "FeatureList",
    "FeatureMarks",
    "FeaturePage",
    "FeatureRecord",
    "Histogram",
    "Label",
    "Neighbour",
    "NotInStoreError",
    "Note",
    "PageExample",
    "Span",
    "Store",
    "StoreFailedError",
    "StoreInfo",
    "Summary",
    "TokenLogit",
    "TrainingRun",
    "Window",
]
