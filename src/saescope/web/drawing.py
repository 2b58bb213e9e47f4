"""What a feature card needs beyond the record: shades, bars, and token text in which blanks can be seen.

Nothing here knows the page around it; the functions are the vocabulary of the templates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from saescope.store.records import Histogram, PageExample
from saescope.web.bins import trimmed
from saescope.web.pieces import Piece, surroundings

TOKENS_BEFORE = 32  # of the peak; enough to see what led to it
TOKENS_AFTER = 16

_CHART_HEIGHT = 70.0


def shade(value: float, strongest: float) -> float:
    """Opacity of a token's colour, from 0 to 1: logarithmic in the size, and the same for all examples of a feature."""
    if value == 0 or strongest <= 0:
        return 0.0
    return round(0.05 + 0.95 * math.log10(1 + 9 * min(abs(value) / strongest, 1.0)), 3)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Neighbouring silent pieces in one, or one piece in which the feature fires, or the peak."""

    text: str
    activation: float
    is_peak: bool
    title: str = ""
    """The exact value; of a piece that several tokens share, that of each."""


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The part of a window that a card shows, and whether there is more of it on either side."""

    pieces: tuple[Drawn, ...]
    more_before: bool
    more_after: bool


def excerpt(example: PageExample, before: int = TOKENS_BEFORE, after: int = TOKENS_AFTER) -> Excerpt:
    """The tokens around the peak. A window drawn by lot from the silent ones has no peak."""
    around = surroundings(example, before, after)

    def drawn() -> Iterator[Drawn]:
        silent = ""
        for piece in (*around.before, around.peak, *around.after):
            is_peak = piece.is_peak and example.negative != "silent"
            if piece.activation == 0 and not is_peak:
                silent += piece.text
                continue
            if silent:
                yield Drawn(text=silent, activation=0.0, is_peak=False)
                silent = ""
            yield Drawn(text=piece.text, activation=piece.activation, is_peak=is_peak, title=_title(example, piece))
        if silent:
            yield Drawn(text=silent, activation=0.0, is_peak=False)

    return Excerpt(pieces=tuple(drawn()), more_before=around.more_before, more_after=around.more_after)


def _title(example: PageExample, piece: Piece) -> str:
    if len(piece.tokens) == 1:
        return str(piece.activation)
    return ", ".join(f"token {example.window.token_ids[at]}: {example.activations[at]}" for at in piece.tokens)


# runs of blanks; single line ends; and what would be invisible, or would act on the page instead of standing on it
_BLANKS = re.compile(
    r"(?P<space> +)|(?P<line>\r?\n)|(?P<tab>\t)|(?P<control>[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff])"
)


def visible(text: str) -> Markup:
    """Token text as HTML in which spaces, tabs and line ends can be seen, and are still copied as what they are."""
    return Markup(_BLANKS.sub(_drawn, str(escape(text))))  # escaping neither takes nor adds a blank


def _drawn(blank: re.Match[str]) -> str:
    if blank["control"]:
        code = ord(blank[0])
        return f'<i class="c">\\x{code:02x}</i>' if code < 256 else f'<i class="c">\\u{code:04x}</i>'
    return f'<i class="{blank.lastgroup[0] if blank.lastgroup else ""}">{blank[0]}</i>'


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram as bars in a box of width 100 and `height`, with words for whoever does not see it."""

    bars: tuple[tuple[float, float, float, float], ...]
    """x, y, width, height of each."""
    ticks: tuple[tuple[float, float], ...]
    """Edges between bars: how far from the left, of 100, and the value there. The first and the last are the ends."""
    highest: int
    """Count of the highest bar."""
    height: float = _CHART_HEIGHT


def chart(histogram: Histogram, *, logarithmic: bool = True, num_ticks: int = 5) -> Chart | None:
    """Bars of equal width, one for each bin whatever its reach, without the empty bins at the ends.

    Heights are logarithmic in the counts, or linear. `None` if nothing was counted.
    """
    filled = trimmed(histogram)
    counts, edges = filled.counts, filled.edges
    highest = max(counts, default=0)
    if highest == 0:
        return None
    width, bars = 100 / len(counts), []
    for place, count in enumerate(counts):
        if count:  # log(1 + n), so that a single firing can be seen
            share = math.log1p(count) / math.log1p(highest) if logarithmic else count / highest
            bars.append((place * width, _CHART_HEIGHT * (1 - share), width * 0.86, _CHART_HEIGHT * share))
    places = dict.fromkeys(round(i * len(counts) / (num_ticks - 1)) for i in range(num_ticks))
    return Chart(bars=tuple(bars), ticks=tuple((place * width, edges[place]) for place in places), highest=highest)


def position_chart(positions: Sequence[int], context_size: int) -> Chart | None:
    """Firings by position in the window, on a linear scale."""
    stretch = -(-context_size // len(positions)) if positions else 0
    edges = [float(min(i * stretch, context_size)) for i in range(len(positions) + 1)]
    return chart(Histogram(edges=tuple(edges), counts=tuple(positions)), logarithmic=False, num_ticks=3)
