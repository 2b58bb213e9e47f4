"""What a feature card needs beyond the record: shades, bars, and token text in which blanks can be seen.

Nothing here knows the page around it; the functions are the vocabulary of the templates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape

from saescope.store import Histogram, PageExample

TOKENS_BEFORE = 32  # of the peak; enough to see what led to it
TOKENS_AFTER = 16

_CHART_HEIGHT = 70.0


def shade(value: float, strongest: float) -> float:
    """Opacity of a token's colour, from 0 to 1: logarithmic, and the same for all examples of a feature."""
    if value <= 0 or strongest <= 0:
        return 0.0
    return round(0.05 + 0.95 * math.log10(1 + 9 * min(value / strongest, 1.0)), 3)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring silent tokens in one piece, or one token on which the feature fires."""

    text: str
    activation: float
    is_peak: bool


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The part of a window that a card shows, and whether there is more of it on either side."""

    pieces: tuple[Piece, ...]
    more_before: bool
    more_after: bool


def excerpt(example: PageExample, before: int = TOKENS_BEFORE, after: int = TOKENS_AFTER) -> Excerpt:
    """The tokens around the peak."""
    size = len(example.activations)
    start, end = max(0, example.peak - before), min(size, example.peak + after + 1)

    def pieces() -> Iterator[Piece]:
        silent = ""
        for position in range(start, end):
            text, activation = example.window.token_texts[position], example.activations[position]
            if activation == 0 and position != example.peak:
                silent += text
                continue
            if silent:
                yield Piece(text=silent, activation=0.0, is_peak=False)
                silent = ""
            yield Piece(text=text, activation=activation, is_peak=position == example.peak)
        if silent:
            yield Piece(text=silent, activation=0.0, is_peak=False)

    return Excerpt(pieces=tuple(pieces()), more_before=start > 0, more_after=end < size)


# runs of blanks; single line ends; and what would be invisible, or would act on the page instead of standing on it
_BLANKS = re.compile(
    r"(?P<space> +)|(?P<line>\r?\n)|(?P<tab>\t)|(?P<control>[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff])"
)


def visible(text: str) -> Markup:
    """Token text as HTML in which spaces, tabs and line ends can be seen, and are still copied as what they are."""
    parts, at = [], 0
    for blank in _BLANKS.finditer(text):
        parts.append(escape(text[at : blank.start()]))
        if blank["control"]:
            code = ord(blank[0])
            parts.append(Markup('<i class="c">{}</i>').format(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"))
        else:
            parts.append(Markup('<i class="{}">{}</i>').format(blank.lastgroup[0] if blank.lastgroup else "", blank[0]))
        at = blank.end()
    return Markup("").join([*parts, escape(text[at:])])


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram as bars in a box of width 100 and `height`, with words for whoever does not see it."""

    bars: tuple[tuple[float, float, float, float], ...]
    """x, y, width, height of each."""
    ticks: tuple[float, float, float]
    """The activation at the left end, the middle and the right end."""
    highest: int
    """Count of the highest bar."""
    height: float = _CHART_HEIGHT


def chart(histogram: Histogram) -> Chart | None:
    """Bars of equal width whose heights are logarithmic in the counts; `None` if nothing was counted."""
    counts, edges = histogram.counts, histogram.edges
    highest = max(counts, default=0)
    if highest == 0:
        return None
    width = 100 / len(counts)
    bars = []
    for place, count in enumerate(counts):
        if count:  # log(1 + n), so that a single firing can be seen
            height = _CHART_HEIGHT * math.log1p(count) / math.log1p(highest)
            bars.append((place * width, _CHART_HEIGHT - height, width * 0.86, height))
    return Chart(bars=tuple(bars), ticks=(edges[0], _middle(edges), edges[-1]), highest=highest)


def _middle(edges: tuple[float, ...]) -> float:
    half, odd = divmod(len(edges), 2)
    return edges[half] if odd else (edges[half - 1] + edges[half]) / 2
