"""What people and programs said about the features of a dump: interpretations, metrics, bookmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.formats.lm_saes.bson_files import BsonFile, Document, plain
from saescope.formats.lm_saes.scan import Scan
from saescope.store.records import EvaluationResult, Explanation

STUDY = "lm-saes"  # under which the metrics stand among evaluations


@dataclass(frozen=True)
class Bookmark:
    """A feature that somebody marked."""

    feature: int
    tags: tuple[str, ...]
    note: str
    created_at: str


def explanations(scan: Scan) -> Iterator[tuple[int, Explanation]]:
    """The interpretation of each feature that has one; what else stands in it goes to the details."""
    for index, document, _ in scan.documents():
        found = document.get("interpretation")
        if not isinstance(found, dict) or found.get("text") is None:
            continue
        if not isinstance(found["text"], str):
            raise ValueError(f"{scan.what(index)}: the text of its interpretation is {type(found['text']).__name__}")
        method = found.get("method")
        yield (
            index,
            Explanation(
                text=found["text"],
                method=method if isinstance(method, str) and method else STUDY,
                details={key: plain(value) for key, value in found.items() if key not in ("text", "method")},
            ),
        )


def read_metrics(scan: Scan) -> tuple[EvaluationResult, ...]:
    """One result per metric: its mean over the features that have it, and in the details the value of each."""
    values: dict[str, dict[str, float]] = {}
    for index, document, _ in scan.documents():
        metric = document.get("metric")
        for name, value in metric.items() if isinstance(metric, dict) else ():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values.setdefault(name, {})[str(index)] = value
    return tuple(
        EvaluationResult(
            study=STUDY,
            metric=name,
            value=math.fsum(by_feature.values()) / len(by_feature),
            variant=scan.analysis,
            details={"mean_over": "features", "num_features": len(by_feature), "by_feature": by_feature},
        )
        for name, by_feature in sorted(values.items())
    )


def read_bookmarks(database: Path, chosen: Document, d_sae: int) -> list[Bookmark]:
    """The bookmarks of one SAE."""
    with BsonFile(database, "bookmarks") as file:
        return [
            _bookmark(document, file, d_sae)
            for _, document in file
            if document.get("sae_name") == chosen["name"] and document.get("sae_series") == chosen["series"]
        ]


def _bookmark(document: Document, file: BsonFile, d_sae: int) -> Bookmark:
    index: Any = document.get("feature_index")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < d_sae:
        raise ValueError(f"{file.path} marks the feature {index!r}, but there are {d_sae}")
    tags, note = document.get("tags"), document.get("notes")
    created_at = document.get("created_at")
    return Bookmark(
        feature=int(index),
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        note=note if isinstance(note, str) else "",
        created_at=str(plain(created_at)) if created_at is not None else "",
    )
