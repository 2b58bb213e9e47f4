"""Reading a feature set published in Neuronpedia's bulk layout, to browse it here.

The examples are read four times from their files: once to check every line and to learn their order, then for each of the
iterables that want them. Between the times a few numbers per example are kept, in arrays, so memory hardly grows with
the length of the texts.

What the layout does not have stays unknown: token ids (here -1), the mean and median of activations, how many windows lie
in a band. Bars come with their centres alone, so their edges are put halfway between.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from saescope.formats.feature_set import FeatureSet, Repeatable
from saescope.formats.neuronpedia.checked_lines import (
    MAX_COUNT,
    CheckedLine,
    batches,
    find_source,
    lines_in,
    single_line,
)
from saescope.formats.neuronpedia.example_rows import (
    NO_TOKEN,
    ExampleRows,
    order_examples,
    read_examples,
    read_windows,
)
from saescope.formats.neuronpedia.layout import KINDS
from saescope.formats.neuronpedia.lines import Line, edges_from_centres, label_from_line, notes_of_ours
from saescope.store.records import (
    LABEL_NUMBERS,
    AnalysisRecord,
    Band,
    DictionaryRecord,
    Explanation,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    TokenLogit,
)

FILLER_LOGIT = -10_000  # stands where a list of logits has no entry


def read_neuronpedia(
    folder: str | Path,
    *,
    name: str | None = None,
    analysis: str = "neuronpedia",
    d_in: int | None = None,
    d_sae: int | None = None,
    architecture: str | None = None,
) -> FeatureSet:
    """Read one source of the bulk layout (files of the bucket `neuronpedia-datasets`, or what `export_neuronpedia` wrote).

    Every line is checked before this returns; nothing of a damaged set is ever handed on.

    Args:
        folder: the source's folder, with `source.jsonl` in it, or one above that holds exactly one such folder.
        name: what to call the dictionary; by default its name in the store it came from, else `{model}/{source}`.
        analysis: what to call the analysis.
        d_in, d_sae, architecture: where the files do not say. Without them the width comes from the decoder rows and
            the number of features from the highest index; what nobody knows is 0 or "unknown".

    Raises:
        FileNotFoundError: no source, or no features in it.
        ValueError: several sources; a line that is no JSON, lacks a field or holds something else than the layout says.
            The message names the file and the line.
    """
    place = find_source(Path(folder).expanduser())
    source = single_line(place / "source.jsonl")
    source_set = single_line(place / "sourceset.jsonl", must_exist=False)
    model = single_line(place / "model.jsonl", must_exist=False)
    ours = notes_of_ours(source.get("notes")) or {}
    remarks: list[str] = []

    model_id, source_id = str(source.get("modelId", "")), str(source.get("id", ""))
    if not (place / KINDS[0]).is_dir() or not batches(place, KINDS[0]):
        raise FileNotFoundError(f"{place} holds no features: features/batch-0.jsonl.gz is missing")
    num_tokens = _known_tokens(source, ours)
    labels = _check_explanations(place)
    examples = order_examples(place, "quantile" if ours.get("band_kind") == "quantile" else "width")
    found = _check_features(place, num_tokens, examples, labels)

    config = _json_object(source.get("saelensConfig"))
    metadata = _json_object(config.get("metadata"))
    width = d_in or _whole(config.get("d_in")) or found.width or _whole(model.get("dimension")) or 0
    size = d_sae or _whole(config.get("d_sae")) or found.highest + 1
    if found.highest >= size:
        raise ValueError(f"{place} has a feature {found.highest}, but d_sae is {size}")
    if not width:
        remarks.append("the width of the activations is not in the files; give d_in if you know it")
    if examples.num_silent:
        remarks.append(f"{examples.num_silent:,} examples without a positive activation were left out")
    if lost := int(np.count_nonzero(~np.isin(examples.features, found.indices))):
        raise ValueError(f"{place} has {lost:,} examples of features that are not in it")

    dictionary = DictionaryRecord(
        name=name or str(ours.get("dictionary") or f"{model_id}/{source_id}"),
        model=str(metadata.get("model_name") or model_id),
        hook_point=str(metadata.get("hook_name") or config.get("hook_name") or found.hook_point),
        hook_point_out=str(ours.get("hook_point_out", "")),
        architecture=architecture or str(config.get("architecture") or "unknown"),
        d_in=width,
        d_sae=size,
        series=str(ours.get("series", "")),
        details={
            "source": "neuronpedia",
            "neuronpedia": {"model": model_id, "source": source_id},
            "description": source_set.get("description"),
        },
    )
    record = AnalysisRecord(
        name=analysis,
        dataset=str(source.get("dataset") or "unknown"),
        context_size=_whole(source.get("num_tokens_in_prompt")) or examples.longest,
        num_tokens=num_tokens,
        num_windows=_whole(source.get("num_prompts")) or 0,
        created_at=str(source.get("createdAt") or ""),
        details={
            "source": "neuronpedia",
            "token_ids": "not in the files",
            "histograms": "edges lie halfway between the published centres of the bars",
        },
    )
    return FeatureSet(
        dictionary=dictionary,
        analysis=record,
        features=Repeatable(lambda: _features(place, num_tokens, examples, labels)),
        windows=Repeatable(lambda: read_windows(place, examples)),
        examples=Repeatable(lambda: read_examples(place, examples)),
        explanations=Repeatable(lambda: _explanations(place)),
        remarks=tuple(remarks),
    )


def _json_object(value: Any) -> Line:
    """An object, given as such or as JSON; empty if it is neither."""
    if isinstance(value, dict):
        return value
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(value: Any, below: int = MAX_COUNT) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below else None


def _known_tokens(source: Mapping[str, Any], ours: Mapping[str, Any]) -> int:
    exact = _whole(ours.get("num_tokens"), MAX_COUNT**2)
    if exact is not None:
        return exact
    return (_whole(source.get("num_prompts")) or 0) * (_whole(source.get("num_tokens_in_prompt")) or 0)


@dataclass(frozen=True)
class _FoundFeatures:
    indices: np.ndarray
    highest: int
    width: int
    hook_point: str


def _check_features(place: Path, num_tokens: int, rows: ExampleRows, labels: dict[int, Label]) -> _FoundFeatures:
    indices: dict[int, int] = {}
    width, hook_point = 0, ""
    for at in lines_in(place, "features"):
        index = at.index()
        if index in indices:
            raise at.error(f"feature {index} was there before")
        indices[index] = at.number
        _feature(at, num_tokens, rows, labels)
        width = width or len(at.numbers("vector"))
        hook_point = hook_point or at.text("hookName", "")
    if not indices:
        raise FileNotFoundError(f"{place} holds no features: its files in features/ are empty")
    return _FoundFeatures(np.fromiter(indices, dtype=np.int64), max(indices), width, hook_point)


def _features(place: Path, num_tokens: int, rows: ExampleRows, labels: dict[int, Label]) -> Iterator[Feature]:
    for at in lines_in(place, "features"):
        yield _feature(at, num_tokens, rows, labels)


def _feature(at: CheckedLine, num_tokens: int, rows: ExampleRows, labels: dict[int, Label]) -> Feature:
    index = at.index()
    density = at.number_of("frac_nonzero", 0.0)
    maximum = at.number_of("maxActApprox", 0.0)
    if not 0 <= density <= 1:
        raise at.error(f"frac_nonzero is {density}, expected a share from 0 to 1")
    counts, centres = _bars(at, "freq_hist_data")
    num_firings = sum(counts)
    if not num_firings and density > 0:
        num_firings = max(1, round(density * num_tokens))
    vector = at.numbers("vector")
    record = FeatureRecord(
        index=index,
        num_firings=num_firings,
        density=density,
        max_activation=maximum,
        mean_activation=None,
        std_activation=None,
        mean_positive=None,
        median_positive=None,
        decoder_norm=math.sqrt(math.fsum(value * value for value in vector)) if vector else None,
        map_x=at.optional("umap_x"),
        map_y=at.optional("umap_y"),
        cluster=None if at.line.get("umap_cluster") is None else at.index("umap_cluster"),
        label=labels.get(index),
    )
    near = _neighbours(at)
    detail = FeatureDetail(
        histogram=_histogram(counts, centres, maximum),
        bands=tuple(_with_tokens(band, num_firings) for band in rows.bins.get(index, ())),
        top_logits=_logits(at, "pos"),
        bottom_logits=_logits(at, "neg"),
        logit_histogram=_histogram(*_bars(at, "logits_hist_data"), None),
        neighbours={"decoder": near} if near else {},
    )
    return Feature(record=record, detail=detail)


def _neighbours(at: CheckedLine) -> tuple[Neighbour, ...]:
    """The nearest decoder rows. The layout has the feature itself among them."""
    others, values = at.numbers("topkCosSimIndices"), at.numbers("topkCosSimValues")
    if len(others) != len(values):
        raise at.error(f"topkCosSimIndices names {len(others)} features but topkCosSimValues has {len(values)} numbers")
    if not all(0 <= other < MAX_COUNT and other == int(other) for other in others):
        raise at.error("topkCosSimIndices holds something else than indices of features")
    itself = at.index()
    near = zip(others, values, strict=True)
    return tuple(Neighbour(feature=int(other), value=value) for other, value in near if other != itself)


def _with_tokens(band: Band, num_firings: int) -> Band:
    """A band with its number of firings, which is its share of them all."""
    return band if band.share is None else replace(band, num_tokens=round(band.share * num_firings))


def _bars(at: CheckedLine, name: str) -> tuple[list[int], list[float]]:
    """Counts and centres of a histogram's bars."""
    heights, centres = at.numbers(f"{name}_bar_heights"), at.numbers(f"{name}_bar_values")
    if len(heights) != len(centres):
        raise at.error(f"{name} has {len(heights)} heights but {len(centres)} centres of bars")
    if any(height != int(height) or not 0 <= height <= 1 << 53 for height in heights):
        raise at.error(f"{name} has heights that are no counts")
    return [int(height) for height in heights], centres


def _histogram(counts: list[int], centres: list[float], maximum: float | None) -> Histogram:
    # centres that were rounded to one value have lost their bars
    if not any(counts) or any(later <= earlier for earlier, later in pairwise(centres)):
        return Histogram()
    return Histogram(edges=edges_from_centres(centres, maximum), counts=tuple(counts))


def _logits(at: CheckedLine, side: str) -> tuple[TokenLogit, ...]:
    texts, values = at.texts(f"{side}_str"), at.numbers(f"{side}_values")
    if len(texts) != len(values):
        raise at.error(f"{side}_str has {len(texts)} tokens but {side}_values {len(values)} numbers")
    return tuple(
        TokenLogit(token_id=NO_TOKEN, text=text, logit=value)
        for text, value in zip(texts, values, strict=True)
        if value != FILLER_LOGIT
    )


def _check_explanations(place: Path) -> dict[int, Label]:
    """Check every line; the automatic labels among them."""
    labels: dict[int, Label] = {}
    for at in lines_in(place, "explanations"):
        found = _explanation(at)
        if isinstance(found, Label):
            labels[at.index()] = found
    return labels


def _explanations(place: Path) -> Iterator[tuple[int, Explanation]]:
    for at in lines_in(place, "explanations"):
        found = _explanation(at)
        if isinstance(found, Explanation):
            yield at.index(), found


def _explanation(at: CheckedLine) -> Explanation | Label:
    text, notes, ours = at.text("description"), at.line.get("notes"), notes_of_ours(at.line.get("notes"))
    method, author = at.text("typeName", ""), at.text("explanationModelName", "")
    at.index()
    details: Line = {}
    score: float | None = None
    if ours is None:
        details = {"notes": notes} if notes else {}
    elif "label" in ours:
        label = ours["label"]
        if not method or not isinstance(label, dict) or set(label) != {*LABEL_NUMBERS, "num_firings"}:
            raise at.error(f"the label in its notes is not one of saescope's: {ours}")
        numbers = CheckedLine(at.path, at.number, label)
        for name in LABEL_NUMBERS:
            numbers.optional(name)
        numbers.index("num_firings")
        return label_from_line(at.line, label)
    else:
        author = author or str(ours.get("author", ""))
        score = CheckedLine(at.path, at.number, ours).optional("score")
        details = ours["details"] if isinstance(ours.get("details"), dict) else {}
    return Explanation(
        text=text,
        method=method or ("human" if not at.line.get("explanationModelName") else "unknown"),
        author=author,
        score=score,
        details=details,
        created_at=at.text("createdAt", ""),
    )
