"""Features, examples and explanations as lines of Neuronpedia's tables, and the little that both directions share.

The importer takes the columns from the first line of a file and writes NULL where a later line lacks one. So each
function here names every field of its table, whatever the record knows. What those tables have no field for goes, as
JSON, where they keep free text: `notes`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from saescope.formats.neuronpedia.layout import Place, stable_id
from saescope.store.records import (
    Band,
    FeaturePage,
    Histogram,
    Label,
    PageExample,
    TokenLogit,
    Window,
)

Line = dict[str, Any]

NUM_LOGITS = 10  # as many as the site shows
OURS = "saescope"  # the key under which `notes` holds what the tables have no field for
LABEL_PREFIX = "saescope-"  # the kind of an explanation that is an automatic label
_TOP_BIN = (-1.0, -1.0)  # binMin and binContains of the strongest examples
_STEER_STRENGTH = 10.0  # the site's own default
_UNFIT = re.compile("[\x00\ud800-\udfff]")  # the importer makes a blank of NUL


def dump_line(line: Line) -> bytes:
    """One line of a file. Text is made fit for PostgreSQL, which holds neither NUL nor halves of surrogate pairs."""
    text = json.dumps(_clean(line), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # the importer blanks the six characters \u0000 wherever they stand; a backslash before "u0000" would lose its meaning
    return text.replace("\\\\u0000", "\\u005cu0000").encode() + b"\n"


def timestamp(moment: str) -> str:
    """An ISO 8601 moment as the site writes it: UTC, to the millisecond. An empty one is now."""
    try:
        when = datetime.fromisoformat(moment) if moment else datetime.now(UTC)
    except ValueError:
        raise ValueError(f"{moment!r} is no moment in ISO 8601, such as 2026-01-31T12:00:00Z") from None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bar_centres(histogram: Histogram) -> list[float]:
    """The middle of each bar, which is what the site draws."""
    return [(low + high) / 2 for low, high in pairwise(histogram.edges)]


def edges_from_centres(centres: Sequence[float], maximum: float | None = None) -> tuple[float, ...]:
    """Edges halfway between neighbouring centres; the outer bars are symmetric, one of activations begins at 0 or above.

    `maximum` is a value that the last bar must reach.
    """
    if not centres:
        return ()
    inner = [(low + high) / 2 for low, high in pairwise(centres)]
    if inner:
        first, last = 2 * centres[0] - inner[0], 2 * centres[-1] - inner[-1]
    else:  # the width of a bar by itself is unknown: it reaches to 0
        half = abs(centres[0]) or 0.5
        first, last = centres[0] - half, centres[0] + half
    if maximum is not None:
        first = max(first, 0.0) if centres[0] > 0 else first
        last = max(last, maximum)
    return (first, *inner, last)


def token_pieces(window: Window) -> list[str]:
    """The text of each token such that all together are the text: a character of several tokens belongs to the first."""
    pieces, covered = [], 0
    for start, end in window.token_ranges:
        pieces.append(window.text[max(start, covered) : max(end, covered)])
        covered = max(covered, end)
    return pieces


def feature_line(page: FeaturePage, place: Place, creator_id: str, created_at: str, vector: Sequence[float]) -> Line:
    """A line of the table `Neuron`."""
    record, detail = page.feature, page.detail
    near = [(neighbour.feature, neighbour.value) for neighbour in detail.neighbours.get("decoder", ())]
    if near:
        near.insert(0, (record.index, 1.0))  # the site takes the first for the feature itself
    return {
        **_identity(place, record.index, creator_id, created_at),
        "sourceSetName": place.source_set,
        "maxActApprox": record.max_activation,
        "hasVector": len(vector) > 0,
        "vector": list(vector),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": record.max_activation if record.max_activation > 0 else _STEER_STRENGTH,
        "hookName": page.dictionary.hook_point,
        "topkCosSimIndices": [index for index, _ in near],
        "topkCosSimValues": [value for _, value in near],
        # correlations with neurons and among activations are not measured here
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "correlated_features_indices": [],
        "correlated_features_pearson": [],
        "correlated_features_l1": [],
        **_logits("neg", detail.bottom_logits),
        **_logits("pos", detail.top_logits),
        "frac_nonzero": record.density,
        "freq_hist_data_bar_heights": list(detail.histogram.counts),
        "freq_hist_data_bar_values": bar_centres(detail.histogram),
        "logits_hist_data_bar_heights": list(detail.logit_histogram.counts),
        "logits_hist_data_bar_values": bar_centres(detail.logit_histogram),
        "decoder_weights_dist": [],
        "umap_x": record.map_x,
        "umap_y": record.map_y,
        "umap_log_feature_sparsity": math.log10(record.density) if record.density > 0 else None,
        "umap_cluster": record.cluster,
    }


def activation_lines(
    page: FeaturePage, place: Place, creator_id: str, created_at: str, band_kind: str
) -> Iterable[Line]:
    """Lines of the table `Activation`: the strongest examples, then those drawn for bands; no example twice.

    An example that is among the strongest is a line of that group only. Windows in which the feature is not positive
    have no line, because the site hides them.
    """
    bands = {band.number: band for band in page.detail.bands if band.kind == band_kind}
    drawn = [page.in_band(band_kind, number) for number in sorted(bands, reverse=True)]
    seen: set[str] = set()
    for example in (*page.examples, *(example for band in drawn for example in band if example.top_rank is None)):
        strongest = max(example.activations, default=0.0)
        if strongest <= 0:
            continue
        band = None if example.top_rank is not None else bands[_band_number(example, band_kind)]
        line = _activation_line(page, place, creator_id, created_at, example, strongest, band)
        if line["id"] not in seen:
            seen.add(line["id"])
            yield line


def explanation_lines(page: FeaturePage, place: Place, creator_id: str, created_at: str) -> Iterable[Line]:
    """Lines of the table `Explanation`: the automatic label, then what people and language models said."""
    index = page.feature.index
    if page.feature.label is not None:
        label = page.feature.label
        measured = {name: getattr(label, name) for name in ("precision", "lift", "recall", "num_firings")}
        yield _explanation_line(
            place, index, creator_id, created_at, label.text, f"{LABEL_PREFIX}{label.kind}", None, {"label": measured}
        )
    for number, explanation in enumerate(page.explanations):
        is_human = explanation.method == "human"
        ours: Line = {}
        if is_human and explanation.author:
            ours["author"] = explanation.author
        if explanation.score is not None:
            ours["score"] = explanation.score
        if explanation.details:
            ours["details"] = explanation.details
        yield _explanation_line(
            place,
            index,
            creator_id,
            timestamp(explanation.created_at) if explanation.created_at else created_at,
            explanation.text,
            None if is_human else explanation.method,
            None if is_human else explanation.author or None,
            ours,
            number,
        )


def label_from_line(line: Line, measured: Any) -> Label:
    """The automatic label behind a line that `explanation_lines` wrote; `measured` is what its notes say."""
    return Label(text=line["description"], kind=line["typeName"].removeprefix(LABEL_PREFIX), **measured)


def notes_of_ours(notes: Any) -> Line | None:
    """What saescope wrote into a `notes` field; None if somebody else wrote it."""
    try:
        found = json.loads(notes) if isinstance(notes, str) else None
    except (ValueError, RecursionError):
        return None
    ours = found.get(OURS) if isinstance(found, dict) else None
    return ours if isinstance(ours, dict) else None


def _identity(place: Place, index: int, creator_id: str, created_at: str) -> Line:
    return {
        "modelId": place.model_id,
        "layer": place.source_id,
        "index": str(index),
        "creatorId": creator_id,
        "createdAt": created_at,
    }


def _logits(side: str, logits: Sequence[TokenLogit]) -> Line:
    shown = logits[:NUM_LOGITS]
    return {f"{side}_str": [entry.text for entry in shown], f"{side}_values": [entry.logit for entry in shown]}


def _band_number(example: PageExample, kind: str) -> int:
    number: int = example.width_band if kind == "width" else example.quantile_band  # type: ignore[assignment]
    return number


def _activation_line(
    page: FeaturePage,
    place: Place,
    creator_id: str,
    created_at: str,
    example: PageExample,
    strongest: float,
    band: Band | None,
) -> Line:
    values = list(example.activations)
    low: float | None
    high: float | None
    share: float | None
    tokens = token_pieces(example.window)
    where = example.peak if values[example.peak] == strongest else values.index(strongest)
    if band is None:
        low, share = _TOP_BIN
        high = page.feature.max_activation
    else:
        low, high, share = band.low, band.high, band.share
    document = f"{example.window.document}:{example.window.offset}"
    content = json.dumps([tokens, values, document, low, high])
    return {
        "id": stable_id("activation", place.model_id, place.source_id, str(page.feature.index), content),
        **_identity(place, page.feature.index, creator_id, created_at),
        "tokens": tokens,
        "values": values,
        "maxValue": strongest,
        "maxValueTokenIndex": where,
        "minValue": min(values),
        "binMin": low,
        "binMax": high,
        "binContains": share,
        "qualifyingTokenIndex": where,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
        "zIndices": [[], []],
        "zValues": [],
        "dataIndex": document,
        "dataSource": page.analysis.dataset,
    }


def _explanation_line(
    place: Place,
    index: int,
    creator_id: str,
    created_at: str,
    text: str,
    method: str | None,
    author: str | None,
    ours: Line,
    number: int = 0,
) -> Line:
    content = json.dumps([text, method, author, ours, number], sort_keys=True)
    return {
        "id": stable_id("explanation", place.model_id, place.source_id, str(index), content),
        "modelId": place.model_id,
        "layer": place.source_id,
        "index": str(index),
        "description": text,
        "authorId": creator_id,
        "embedding": None,
        "triggeredByUserId": None,
        "typeName": method,
        "explanationModelName": author,
        "notes": json.dumps({OURS: ours}, sort_keys=True) if ours else None,
        "createdAt": created_at,
    }


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNFIT.sub(lambda found: " " if found[0] == "\x00" else "\ufffd", value)
    if isinstance(value, dict):
        return {key: _clean(entry) for key, entry in value.items()}
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        are_fit_texts = isinstance(value[0], str) and not _UNFIT.search("".join(value))
        return value if are_fit_texts else [_clean(entry) for entry in value]
    return value
