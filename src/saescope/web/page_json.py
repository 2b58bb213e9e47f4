"""Records as JSON: everything a feature page shows, under the names of the records and with the numbers as they are.

The terminal's ``--json`` and the page's JSON twin are this one function, so they cannot differ from each other.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from saescope.store.records import FeaturePage, FeatureRecord, PageExample


def page_as_json(page: FeaturePage) -> dict[str, Any]:
    """A feature page as JSON values: nothing rounded, nothing left out, None for what was not measured.

    Keys are the names of the records' fields; `all_examples` is `examples`, in the same order. Activations are sparse, as
    in the store: `values[i]` belongs to the token at `positions[i]`, and tokens that are not named are silent.
    """
    return {
        "dictionary": asdict(page.dictionary),
        "analysis": asdict(page.analysis),
        "feature": feature_as_json(page.feature),
        "detail": asdict(page.detail),
        "examples": [_example(example) for example in page.all_examples],
        "explanations": [asdict(explanation) for explanation in page.explanations],
        "notes": [asdict(note) for note in page.notes],
        "tags": list(page.tags),
        "is_bookmarked": page.is_bookmarked,
        "previous": page.previous,
        "following": page.following,
    }


def feature_as_json(record: FeatureRecord) -> dict[str, Any]:
    """The numbers of one feature, and its label."""
    return asdict(record)


def _example(example: PageExample) -> dict[str, Any]:
    firing = [place for place, value in enumerate(example.activations) if value != 0]
    return {
        "window": asdict(example.window),
        "peak": example.peak,
        "activation": example.activation,
        "positions": firing,
        "values": [example.activations[place] for place in firing],
        "num_copies": example.num_copies,
        "top_rank": example.top_rank,
        "quantile_band": example.quantile_band,
        "width_band": example.width_band,
        "negative": example.negative,
    }
