"""Records to rows and back, value for value.

Numbers travel as database numbers, float64 both ways. Lists are JSON text, and Python's JSON writes a float with as
many digits as it takes to read the same float64 back. Text that no database holds (a NUL, half a surrogate pair) is
escaped inside JSON, so token texts may be anything; in plain columns it is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saescope.store.records import (
    DictionaryRecord,
    Example,
    FeatureRecord,
    Histogram,
    Label,
    PageExample,
    TokenLogit,
    Window,
)

Row = dict[str, Any]  # to be inserted
ReadRow = Mapping[Any, Any]  # as a query gives it


def dictionary_row(record: DictionaryRecord) -> Row:
    what = f"dictionary {record.name!r}"
    if not record.name:
        raise ValueError("a dictionary in the store needs a name, got an empty one")
    return {
        "name": _plain(record.name, what),
        "model": _plain(record.model, what),
        "hook_point": _plain(record.hook_point, what),
        "architecture": _plain(record.architecture, what),
        "dataset": _plain(record.dataset, what),
        "d_in": record.d_in,
        "d_sae": record.d_sae,
        "context_size": record.context_size,
        "num_tokens": record.num_tokens,
        "metrics": _json(record.metrics, f"{what}: metrics"),
        "details": _json(record.details, f"{what}: details"),
    }


def read_dictionary(row: ReadRow) -> DictionaryRecord:
    values = {name: value for name, value in row.items() if name != "id"}
    return DictionaryRecord(
        **values | {"metrics": json.loads(row["metrics"]), "details": json.loads(row["details"])},
    )


def feature_row(record: FeatureRecord) -> Row:
    what = f"feature {record.index}"
    return {
        "feature_index": record.index,
        "num_firings": record.num_firings,
        "density": record.density,
        "max_activation": record.max_activation,
        "mean_activation": record.mean_activation,
        "histogram_edges": _json(record.histogram.edges, f"{what}: histogram edges"),
        "histogram_counts": _json(record.histogram.counts, f"{what}: histogram counts"),
        "top_logits": _json([[t.token_id, t.text, t.logit] for t in record.top_logits], f"{what}: top logits"),
        "bottom_logits": _json([[t.token_id, t.text, t.logit] for t in record.bottom_logits], f"{what}: bottom logits"),
    }


def label_row(index: int, label: Label) -> Row:
    what = f"the label of feature {index}"
    return {
        "feature_index": index,
        "text": _plain(label.text, what),
        "kind": _plain(label.kind, what),
        "precision": label.precision,
        "lift": label.lift,
        "num_firings": label.num_firings,
    }


def read_feature(row: ReadRow) -> FeatureRecord:
    """A row of `feature` joined with `label`, whose columns are called `label_...` and null where there is none."""
    label = None
    if row["label_text"] is not None:
        label = Label(
            text=row["label_text"],
            kind=row["label_kind"],
            precision=row["label_precision"],
            lift=row["label_lift"],
            num_firings=row["label_num_firings"],
        )
    return FeatureRecord(
        index=row["feature_index"],
        num_firings=row["num_firings"],
        density=row["density"],
        max_activation=row["max_activation"],
        mean_activation=row["mean_activation"],
        histogram=Histogram(
            edges=tuple(json.loads(row["histogram_edges"])), counts=tuple(json.loads(row["histogram_counts"]))
        ),
        top_logits=_read_logits(row["top_logits"]),
        bottom_logits=_read_logits(row["bottom_logits"]),
        label=label,
    )


def window_row(window: Window) -> Row:
    what = f"window {window.id}"
    return {
        "window_id": window.id,
        "document": _plain(window.document, what),
        "document_offset": window.offset,
        "token_ids": _json(window.token_ids, f"{what}: token ids"),
        "token_texts": _json(window.token_texts, f"{what}: token texts"),
    }


def example_row(example: Example) -> Row:
    what = f"example {example.rank} of feature {example.feature}"
    return {
        "feature_index": example.feature,
        "rank": example.rank,
        "window_id": example.window_id,
        "peak": example.peak,
        "activation": example.activation,
        "positions": _json(example.positions, f"{what}: positions"),
        "activations": _json(example.values, f"{what}: values"),
    }


def read_example(row: ReadRow) -> PageExample:
    """A row of `example` joined with its `text_window`."""
    window = Window(
        id=row["window_id"],
        document=row["document"],
        offset=row["document_offset"],
        token_ids=tuple(json.loads(row["token_ids"])),
        token_texts=tuple(json.loads(row["token_texts"])),
    )
    activations = [0.0] * len(window.token_ids)
    for position, value in zip(json.loads(row["positions"]), json.loads(row["activations"]), strict=True):
        activations[position] = value
    return PageExample(window=window, peak=row["peak"], activation=row["activation"], activations=tuple(activations))


def _read_logits(text: str) -> tuple[TokenLogit, ...]:
    return tuple(TokenLogit(token_id=i, text=token, logit=logit) for i, token, logit in json.loads(text))


def _json(value: Mapping[str, Any] | Sequence[Any], what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be stored: {error}; expected finite plain numbers, texts, lists") from error
    return text if _holdable(text) else json.dumps(value, separators=(",", ":"))


def _plain(text: str, what: str) -> str:
    if not _holdable(text):
        raise ValueError(f"{what}: {text!r} holds a character that a database text column cannot; escape it first")
    return text


def _holdable(text: str) -> bool:
    """Whether every database can keep this text: valid Unicode, and no NUL (which PostgreSQL refuses)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
