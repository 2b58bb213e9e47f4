"""Histograms as SVG in one path, which is a third of the size of as many rectangles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from saescope.store.records import Histogram
from saescope.web.bins import trimmed
from saescope.web.drawing import Chart, chart, position_chart
from saescope.web.numbers import decimal, whole

Ticks = tuple[tuple[float, str], ...]
"""How far from the left, in percent, and the value there."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A histogram on a page, drawn with counts on a logarithmic and on a linear scale."""

    logarithmic: Markup
    linear: Markup
    """The SVG elements."""
    ticks: Ticks
    highest: int
    edges: str
    counts: str
    """JSON lists, without the empty bins at the ends."""


def bars(histogram: Histogram, what: str) -> Bars | None:
    """`what` is counted, in words; None if nothing was."""
    log, flat = chart(histogram), chart(histogram, logarithmic=False)
    if log is None or flat is None:
        return None
    filled = trimmed(histogram)
    return Bars(
        logarithmic=_svg(log, filled, what, "counts on a logarithmic scale", "log"),
        linear=_svg(flat, filled, what, "counts on a linear scale", "linear"),
        ticks=_ticks(log),
        highest=log.highest,
        edges=f"[{','.join(f'{edge:.6g}' for edge in filled.edges)}]",
        counts=json.dumps(filled.counts, separators=(",", ":")),
    )


def position_bars(positions: tuple[int, ...], context_size: int) -> tuple[Markup, Ticks] | None:
    """Firings by position in the window: the SVG element, and what stands below it."""
    drawn = position_chart(positions, context_size)
    if drawn is None:
        return None
    stretch = -(-context_size // len(positions))
    edges = tuple(float(min(i * stretch, context_size)) for i in range(len(positions) + 1))
    counted = trimmed(Histogram(edges=edges, counts=positions))
    svg = _svg(drawn, counted, "firings by position in the window, in tokens", "counts on a linear scale", "counts")
    return svg, _ticks(drawn)


def _ticks(drawn: Chart) -> Ticks:
    return tuple((round(place, 2), decimal(value, 3)) for place, value in drawn.ticks)


def _svg(drawn: Chart, counted: Histogram, what: str, scale: str, kind: str) -> Markup:
    path = "".join(f"M{x:.4g} {drawn.height:g}V{y:.4g}h{width:.4g}V{drawn.height:g}z" for x, y, width, _ in drawn.bars)
    return Markup(
        '<svg class="{}" role="img" viewBox="0 0 100 {}" preserveAspectRatio="none" aria-label="{}"><path d="{}"/></svg>'
    ).format(kind, f"{drawn.height:g}", _in_words(counted, what, scale), path)


def _in_words(counted: Histogram, what: str, scale: str) -> str:
    """What there is to see, for whoever does not see it."""
    total = sum(counted.counts)
    fullest = max(range(len(counted.counts)), key=counted.counts.__getitem__)
    half = next(place for place, passed in enumerate(accumulate(counted.counts)) if 2 * passed >= total)
    low, high = decimal(counted.edges[0], 3), decimal(counted.edges[-1], 3)
    most = f"{decimal(counted.edges[fullest], 3)} to {decimal(counted.edges[fullest + 1], 3)}"
    return (
        f"Histogram of {what}, {whole(total)} in all, from {low} to {high}, {scale}; half of them or more lie below "
        f"{decimal(counted.edges[half + 1], 3)}; the highest bar, {most}, counts {whole(counted.counts[fullest])}"
    )
