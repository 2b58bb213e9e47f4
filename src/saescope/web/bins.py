"""Histograms and bands as terminal and HTML show them: what is left out, and how a stretch of values is said in words."""

from __future__ import annotations

from saescope.store.records import Band, FeatureDetail, Histogram
from saescope.web.numbers import decimal


def trimmed(histogram: Histogram) -> Histogram:
    """A histogram without the empty bins at its ends; empty if nothing was counted."""
    filled = [place for place, count in enumerate(histogram.counts) if count]
    if not filled:
        return Histogram()
    first, last = filled[0], filled[-1] + 1
    return Histogram(edges=histogram.edges[first : last + 1], counts=histogram.counts[first:last])


def bands_of(detail: FeatureDetail, kind: str) -> tuple[Band, ...]:
    """The bands of one kind, the strongest first."""
    return tuple(sorted((band for band in detail.bands if band.kind == kind), key=lambda band: -band.number))


def reach(band: Band, detail: FeatureDetail) -> str:
    """The values of a band in words; the strongest of its kind has no upper end."""
    if band.number == bands_of(detail, band.kind)[0].number:
        return f"{decimal(band.low, 3)} and above"
    return f"{decimal(band.low, 3)} to {decimal(band.high, 3)}"
