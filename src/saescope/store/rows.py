"""Records to rows and back, value for value.

Numbers travel as database numbers, float64 both ways; lists are JSON text (texts.py). Rows that are written by the million
are tuples in the order of their table; those read back are mappings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from saescope.store.records import (
    LABEL_NUMBERS,
    NUMBERS,
    AnalysisRecord,
    Band,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
    PageExample,
    TokenLogit,
    TrainingRun,
    Window,
)
from saescope.store.texts import (
    are_float32,
    from_json,
    nearest_float32,
    now,
    pack_edges,
    pack_float32,
    pack_ranges,
    plain,
    shortest_float32,
    to_json,
    unpack_edges,
    unpack_float32,
    unpack_ranges,
)

Row = dict[str, Any]  # to be inserted
ReadRow = Mapping[Any, Any]  # as a query gives it

DETAILS = (
    "histogram",
    "bands",
    "positions",
    "top_logits",
    "bottom_logits",
    "logit_histogram",
    "neighbours",
    "sources",
)
_FLOAT32 = {"top_logits": "top_float32", "bottom_logits": "bottom_float32", "neighbours": "neighbours_float32"}
DETAIL_COLUMNS = (*DETAILS, *_FLOAT32.values())


def dictionary_row(record: DictionaryRecord) -> Row:
    """Without its series, which is a row of its own."""
    what = f"dictionary {record.name!r}"
    if not record.name:
        raise ValueError("a dictionary in the store needs a name, got an empty one")
    texts = ("name", "model", "hook_point", "hook_point_out", "architecture")
    return {
        **{name: plain(getattr(record, name), what) for name in texts},
        "d_in": record.d_in,
        "d_sae": record.d_sae,
        "details": to_json(record.details, f"{what}: details"),
    }


def read_dictionary(row: ReadRow) -> DictionaryRecord:
    """A row of `dictionary` with the name of its series, or None, as `series`."""
    names = ("name", "model", "hook_point", "hook_point_out", "architecture", "d_in", "d_sae")
    return DictionaryRecord(
        **{name: row[name] for name in names}, series=row["series"] or "", details=json.loads(row["details"])
    )


def analysis_row(record: AnalysisRecord) -> Row:
    what = f"analysis {record.name!r}"
    if not record.name:
        raise ValueError("an analysis in the store needs a name, got an empty one")
    return {
        "name": plain(record.name, what),
        "dataset": plain(record.dataset, what),
        "context_size": record.context_size,
        "num_tokens": record.num_tokens,
        "num_windows": record.num_windows,
        "details": to_json(record.details, f"{what}: details"),
        "created_at": plain(record.created_at, what) or now(),
    }


def read_analysis(row: ReadRow) -> AnalysisRecord:
    names = ("name", "dataset", "context_size", "num_tokens", "num_windows", "created_at")
    return AnalysisRecord(**{name: row[name] for name in names}, details=json.loads(row["details"]))


def label_values(label: Label | None, what: str) -> Row:
    """The columns that a label fills."""
    if label is None:
        return dict.fromkeys((*(f"label_{number}" for number in LABEL_NUMBERS), *_LABEL_REST))
    return {
        **{
            f"label_{number}": _number(getattr(label, number), f"the {number} of the label of {what}")
            for number in LABEL_NUMBERS
        },
        "label_num_firings": label.num_firings,
        "label_kind": plain(label.kind, f"the label of {what}"),
        "label": plain(label.text, f"the label of {what}"),
    }


_LABEL_REST = ("label_num_firings", "label_kind", "label")


def feature_row(analysis_id: int, record: FeatureRecord) -> tuple[Any, ...]:
    label = label_values(record.label, f"feature {record.index}")
    return (analysis_id, record.index, *(getattr(record, name) for name in NUMBERS), *label.values())


def read_feature(row: ReadRow) -> FeatureRecord:
    label = None
    if row["label"] is not None:
        label = Label(
            text=row["label"],
            kind=row["label_kind"],
            precision=row["label_precision"],
            recall=row["label_recall"],
            lift=row["label_lift"],
            num_firings=row["label_num_firings"],
        )
    return FeatureRecord(index=row["feature_index"], label=label, **{name: row[name] for name in NUMBERS})


def detail_values(detail: FeatureDetail, what: str, only: Sequence[str] = DETAILS) -> Row:
    """The columns that a feature's details fill, all or some of them."""
    row: Row = {}
    for name in only:
        value = getattr(detail, name)
        told: Any
        match name:
            case "histogram" | "logit_histogram":
                told = [pack_edges(value.edges), list(value.counts)]
            case "bands":
                told = [[b.kind, b.number, b.low, b.high, b.num_windows, b.num_tokens, b.share] for b in value]
            case "top_logits" | "bottom_logits":
                numbers, row[_FLOAT32[name]] = _shortened([logit.logit for logit in value])
                told = [[logit.token_id, logit.text, x] for logit, x in zip(value, numbers, strict=True)]
            case "neighbours":
                near = [(kind, n) for kind, some in value.items() for n in some]
                numbers, row[_FLOAT32[name]] = _shortened([n.value for _, n in near])
                told = {kind: [] for kind in value}
                for (kind, n), x in zip(near, numbers, strict=True):
                    told[kind].append([n.feature, x] if n.num_both is None else [n.feature, x, n.num_both])
            case _:
                told = list(value)
        row[name] = to_json(told, f"{what}: {name.replace('_', ' ')}")
    return row


def _shortened(values: list[float]) -> tuple[list[float], int]:
    """The numbers to be written, and 1 if they stand for the nearest float32."""
    return (shortest_float32(values), 1) if are_float32(values) else (values, 0)


def read_detail(row: ReadRow) -> FeatureDetail:
    told = {name: from_json(row[name]) for name in DETAILS}
    for name, flag in _FLOAT32.items():
        if row[flag]:
            pairs = [pair for some in told[name].values() for pair in some] if name == "neighbours" else told[name]
            place = 1 if name == "neighbours" else 2
            for pair, value in zip(pairs, nearest_float32(pair[place] for pair in pairs), strict=True):
                pair[place] = value
    return FeatureDetail(
        histogram=_histogram(told["histogram"]),
        bands=tuple(
            Band(kind=kind, number=number, low=low, high=high, num_windows=windows, num_tokens=tokens, share=share)
            for kind, number, low, high, windows, tokens, share in told["bands"]
        ),
        positions=tuple(told["positions"]),
        top_logits=_logits(told["top_logits"]),
        bottom_logits=_logits(told["bottom_logits"]),
        logit_histogram=_histogram(told["logit_histogram"]),
        neighbours={
            kind: tuple(
                Neighbour(feature=f, value=value, num_both=both[0] if both else None) for f, value, *both in near
            )
            for kind, near in told["neighbours"].items()
        },
        sources=tuple(told["sources"]),
    )


def _histogram(told: list[Any]) -> Histogram:
    return Histogram(edges=unpack_edges(told[0]), counts=tuple(told[1]))


def _logits(told: list[Any]) -> tuple[TokenLogit, ...]:
    return tuple(TokenLogit(token_id=i, text=token, logit=logit) for i, token, logit in told)


def window_row(analysis_id: int, window: Window) -> tuple[Any, ...]:
    what = f"window {window.id}"
    return (
        analysis_id,
        window.id,
        plain(window.document, what),
        window.offset,
        to_json(window.text, what),
        to_json(window.token_ids, f"{what}: token ids"),
        pack_ranges(window.token_ranges),
    )


def read_window(row: ReadRow) -> Window:
    return Window(
        id=row["window_id"],
        document=row["document"],
        offset=row["document_offset"],
        text=from_json(row["text"]),
        token_ids=tuple(from_json(row["token_ids"])),
        token_ranges=unpack_ranges(row["token_ranges"]),
    )


def example_row(analysis_id: int, number: int, example: Example) -> tuple[Any, ...]:
    what = f"the example of feature {example.feature} in window {example.window_id}"
    return (
        analysis_id,
        example.feature,
        number,
        example.peak,
        example.window_id,
        _number(example.activation, f"{what}: activation"),
        example.num_copies,
        example.top_rank,
        example.quantile_band,
        example.width_band,
        example.negative,
        to_json(example.positions, f"{what}: positions"),
        pack_float32(example.values, f"{what}: values"),
    )


def read_example(row: ReadRow, window: Window) -> PageExample:
    activations = [0.0] * len(window.token_ids)
    for position, value in zip(from_json(row["positions"]), unpack_float32(row["activations"]), strict=True):
        activations[position] = value
    names = ("peak", "activation", "num_copies", "top_rank", "quantile_band", "width_band", "negative")
    return PageExample(window=window, activations=tuple(activations), **{name: row[name] for name in names})


def explanation_row(record: Explanation) -> Row:
    what = "the explanation"
    if not record.text.strip():
        raise ValueError("an explanation needs a text, got an empty one")
    return {
        **{name: plain(getattr(record, name), what) for name in ("text", "method", "author")},
        "score": _number(record.score, f"{what}: score"),
        "details": to_json(record.details, f"{what}: details"),
        "created_at": plain(record.created_at, what) or now(),
    }


def read_explanation(row: ReadRow) -> Explanation:
    names = ("id", "text", "method", "author", "score", "created_at")
    return Explanation(**{name: row[name] for name in names}, details=json.loads(row["details"]))


def note_row(record: Note) -> Row:
    if not record.text.strip():
        raise ValueError("a note needs a text, got an empty one")
    return {
        "text": plain(record.text, "the note"),
        "author": plain(record.author, "the note"),
        "created_at": plain(record.created_at, "the note") or now(),
    }


def read_note(row: ReadRow) -> Note:
    return Note(**{name: row[name] for name in ("id", "text", "author", "created_at")})


def evaluation_row(record: EvaluationResult) -> Row:
    what = f"evaluation {record.study!r}, {record.metric!r}"
    return {
        **{name: plain(getattr(record, name), what) for name in ("study", "metric", "variant", "code_version")},
        **{name: _number(getattr(record, name), f"{what}: {name}") for name in ("value", "low", "high")},
        "details": to_json(record.details, f"{what}: details"),
        "created_at": plain(record.created_at, what) or now(),
    }


def read_evaluation(row: ReadRow) -> EvaluationResult:
    names = ("study", "metric", "value", "low", "high", "variant", "code_version", "created_at")
    return EvaluationResult(**{name: row[name] for name in names}, details=json.loads(row["details"]))


def run_row(record: TrainingRun) -> Row:
    what = "the training run"
    return {
        "settings": to_json(record.settings, f"{what}: settings"),
        "metrics": to_json(record.metrics, f"{what}: metrics"),
        "code_version": plain(record.code_version, what),
        "created_at": plain(record.created_at, what) or now(),
    }


def read_run(row: ReadRow) -> TrainingRun:
    return TrainingRun(
        settings=json.loads(row["settings"]),
        metrics=json.loads(row["metrics"]),
        code_version=row["code_version"],
        created_at=row["created_at"],
    )


def _number(value: float | None, what: str) -> float | None:
    if value is not None and not abs(value) < float("inf"):
        raise ValueError(f"{what} is {value}, expected a finite number, or None where it is undefined")
    return value
