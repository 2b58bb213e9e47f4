"""The store keeps what was learnt about features, so that looking needs no model, tokenizer or dataset.

One address names it: a file (SQLite) or a PostgreSQL database. Records are plain values, and a `FeaturePage` is all
that one page shows. Importing this room is cheap: the database library is loaded when a store is opened.
"""

from __future__ import annotations

from saescope.store.records import (
    DictionaryRecord,
    Example,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Label,
    PageExample,
    TokenLogit,
    Window,
)
from saescope.store.store import Store

__all__ = [
    "DictionaryRecord",
    "Example",
    "FeaturePage",
    "FeatureRecord",
    "Histogram",
    "Label",
    "PageExample",
    "Store",
    "TokenLogit",
    "Window",
]
