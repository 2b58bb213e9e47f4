"""The examples of a published set: what each line says, and how the lines order themselves into examples.

A first pass over the files keeps a few numbers per line, in arrays. From them follow the ranks, the numbers of the bands,
which lines are one example (the same feature in the same window), and which line is the first with its window. Further
passes then read windows and examples without remembering any text.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saescope.formats.neuronpedia.checked_lines import CheckedLine, lines_in
from saescope.store.records import Band, Example, Window

NO_TOKEN = -1  # the layout has the texts of tokens, not their ids
_TOP = -1.0  # binMin of the strongest examples


@dataclass(frozen=True)
class ExampleRows:
    """A few numbers per line of the activations, in the order of the files: `[num_lines]` each."""

    features: np.ndarray
    is_first_use: np.ndarray
    """Whether the line is the first with its window."""
    speaks: np.ndarray
    """Whether the line stands for its example: the first one of its feature and window."""
    ranks: np.ndarray
    """Place among the strongest of the feature; -1 if it is not one of them. Of the example, as are the bands."""
    bands: np.ndarray
    """Number of the band; -1 without."""
    bins: dict[int, tuple[Band, ...]]
    """Of each feature, from the weakest. Their numbers of tokens are not filled in."""
    band_kind: str
    longest: int
    num_silent: int


@dataclass(frozen=True)
class _Activation:
    """A checked line of the activations."""

    index: int
    tokens: list[str]
    positions: list[int]
    values: list[float]
    peak: int
    activation: float
    bin: tuple[float, float, float] | None
    """Low, high and share (NaN if unknown); None for one of the strongest."""
    document: str
    offset: int
    window_id: int


def _activation(at: CheckedLine) -> _Activation | None:
    """The line's example; None if the feature is not positive in it, which the site would hide."""
    tokens, values = at.texts("tokens"), at.numbers("values")
    if len(tokens) != len(values):
        raise at.error(f"there are {len(tokens)} tokens but {len(values)} values")
    positions = [place for place, value in enumerate(values) if value]
    strongest = max(values, default=0.0)
    index = at.index()
    if strongest <= 0:
        return None
    low, high, share = at.optional("binMin"), at.optional("binMax"), at.optional("binContains")
    is_top = low is None or high is None or low == _TOP
    peak = values.index(strongest)
    if not is_top and not (low <= strongest < high):  # type: ignore[operator]
        # some makers draw tokens instead of windows for a bin, and name the token
        token = at.line.get("qualifyingTokenIndex")
        if isinstance(token, int) and 0 <= token < len(values) and low <= values[token] < high:  # type: ignore[operator]
            peak = token
    source, place = at.text("dataSource", ""), at.text("dataIndex", "")
    document, colon, offset = place.rpartition(":")
    if not colon or not (offset.isascii() and offset.isdigit() and len(offset) < 16):
        document, offset = place, "0"
    digest = hashlib.blake2b(json.dumps([tokens, place, source]).encode(), digest_size=8).digest()
    return _Activation(
        index=index,
        tokens=tokens,
        positions=positions,
        values=[values[position] for position in positions],
        peak=peak,
        activation=values[peak],
        bin=None if is_top else (low, high, math.nan if share is None else share),  # type: ignore[arg-type]
        document=document or source,
        offset=int(offset),
        # 63 bits: among ten million windows two differing ones get one number once in 200,000 sets
        window_id=int.from_bytes(digest, "big") >> 1,
    )


def order_examples(place: Path, band_kind: str) -> ExampleRows:
    features, windows, peaks, bins = array("q"), array("q"), array("d"), array("q")
    known_bins: dict[tuple[int, float, float, float], int] = {}
    by_feature: dict[int, set[tuple[float, float, float]]] = {}
    longest = num_silent = 0
    for at in lines_in(place, "activations"):
        found = _activation(at)
        if found is None:
            num_silent += 1
            features.append(at.index())
            windows.append(-1)
            peaks.append(0.0)
            bins.append(-1)
            continue
        longest = max(longest, len(found.tokens))
        features.append(found.index)
        windows.append(found.window_id)
        peaks.append(found.activation)
        if found.bin is None:
            bins.append(-1)
        else:
            by_feature.setdefault(found.index, set()).add(found.bin)
            bins.append(known_bins.setdefault((found.index, *found.bin), len(known_bins)))
    feature, window = np.array(features, dtype=np.int64), np.array(windows, dtype=np.int64)
    peak, bin_of = np.array(peaks, dtype=np.float64), np.array(bins, dtype=np.int64)
    kept = window >= 0

    ordered = {index: sorted(edges) for index, edges in by_feature.items()}
    number_of_bin = np.zeros(len(known_bins), dtype=np.int64)
    for (index, low, high, share), bin_number in known_bins.items():
        number_of_bin[bin_number] = ordered[index].index((low, high, share))
    band_of_line = np.full(len(feature), -1, dtype=np.int64)
    in_band = kept & (bin_of >= 0)
    band_of_line[in_band] = number_of_bin[bin_of[in_band]]

    # lines of one feature and window are one example: it has the roles of all, and speaks with the first
    order = np.lexsort((np.arange(len(feature)), window, feature))
    pair = np.stack([feature, window], axis=1)[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = np.any(pair[1:] != pair[:-1], axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(starts) - 1
    speaks = np.zeros(len(order), dtype=bool)
    speaks[order[starts]] = True
    speaks &= kept
    num_groups = int(starts.sum())
    band_of_group = np.full(num_groups, -1, dtype=np.int64)
    np.maximum.at(band_of_group, group[in_band], band_of_line[in_band])
    top_of_group = np.zeros(num_groups, dtype=bool)
    top_of_group[group[kept & (bin_of < 0)]] = True

    ranks = np.full(len(feature), -1, dtype=np.int64)
    (top,) = np.nonzero(speaks & top_of_group[group])
    top = top[np.lexsort((top, -peak[top], feature[top]))]
    first_of_feature = np.ones(len(top), dtype=bool)
    first_of_feature[1:] = feature[top][1:] != feature[top][:-1]
    begin = np.maximum.accumulate(np.where(first_of_feature, np.arange(len(top)), 0))
    ranks[top] = np.arange(len(top)) - begin

    is_first_use = np.zeros(len(feature), dtype=bool)
    is_first_use[np.unique(window, return_index=True)[1]] = True
    return ExampleRows(
        features=feature[kept],
        is_first_use=is_first_use & kept,
        speaks=speaks,
        ranks=ranks,
        bands=band_of_group[group],
        bins={
            index: tuple(
                Band(
                    kind=band_kind,
                    number=number,
                    low=low,
                    high=high,
                    num_windows=None,
                    num_tokens=None,
                    share=None if math.isnan(share) else share,
                )
                for number, (low, high, share) in enumerate(edges)
            )
            for index, edges in ordered.items()
        },
        band_kind=band_kind,
        longest=longest,
        num_silent=num_silent,
    )


def read_windows(place: Path, rows: ExampleRows) -> Iterator[Window]:
    for at, is_first_use in zip(lines_in(place, "activations"), rows.is_first_use, strict=True):
        if is_first_use:
            found = _activation(at)
            assert found is not None
            yield Window.of_texts(
                id=found.window_id,
                document=found.document,
                offset=found.offset,
                token_ids=[NO_TOKEN] * len(found.tokens),
                token_texts=found.tokens,
            )


def read_examples(place: Path, rows: ExampleRows) -> Iterator[Example]:
    role = f"{rows.band_kind}_band"
    numbers = zip(rows.speaks, rows.ranks, rows.bands, strict=True)
    for at, (speaks, rank, band) in zip(lines_in(place, "activations"), numbers, strict=True):
        if speaks:
            found = _activation(at)
            assert found is not None
            yield Example(
                feature=found.index,
                window_id=found.window_id,
                peak=found.peak,
                activation=found.activation,
                positions=tuple(found.positions),
                values=tuple(found.values),
                top_rank=None if rank < 0 else int(rank),
                **{role: None if band < 0 else int(band)},  # type: ignore[arg-type]
            )
