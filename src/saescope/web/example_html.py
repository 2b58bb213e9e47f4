"""Examples as HTML: the text once, cut into zones by distance from the peak, marks only where the feature fires.

A page holds some 45 windows of 64 tokens or more, of which few fire, so this goes from firing to firing along the
characters and never looks at a silent token. A style sheet shows or hides the zones: ``z0`` reaches 5 tokens to either
side of the peak, ``z1`` 16, ``z2`` 48, ``z3`` is the rest. An empty ``z3`` says that there is more than was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from markupsafe import Markup

from saescope.store.records import PageExample
from saescope.web.drawing import shade, visible
from saescope.web.numbers import decimal, whole

REACHES = (5, 16, 48)
"""Tokens on either side of the peak that the zones 0, 1 and 2 reach to."""
SENT_WHOLE = 128
"""Windows of more tokens are sent up to the last of `REACHES`, unless all of it is asked for."""

_ONE_LINE = 16  # characters
_ZONES = (3, 2, 1, 0, 1, 2, 3)
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_IN_TOKEN = re.compile(rf"[&<>]| +|\r?\n|\t|[{_CONTROLS}]")
_IN_TEXT = re.compile(rf"[&<>]|  +|\r?\n|\t|[{_CONTROLS}]")  # one blank between words needs no mark
# letters written from right to left, and characters that turn the text around them
_TURNING = re.compile(
    "[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefc"
    "\U00010800-\U00010fff\U0001e800-\U0001efff]"
)


def example_rows(examples: Iterable[PageExample], strongest: float, *, whole_windows: bool = False) -> Markup:
    """List items, one per example.

    Args:
        strongest: the value that has the full colour; the same for the whole page.
        whole_windows: send windows of any length to their ends.
    """
    return Markup("".join(_row(example, strongest, whole_windows) for example in examples))


def is_cut(example: PageExample) -> bool:
    """Whether its window has tokens that are sent only with `whole_windows`."""
    count, reach = len(example.activations), REACHES[-1]
    return count > SENT_WHOLE and not reach >= max(example.peak, count - 1 - example.peak)


def _row(example: PageExample, strongest: float, whole_windows: bool) -> str:
    window, copies = example.window, ""
    if example.num_copies > 1:
        copies = f'<span class="copies"> · {whole(example.num_copies)} copies</span>'
    return (
        f'<li><span class="value n">{decimal(example.activation, 3, trim=False)}</span>'
        f'<p class="context">{context_html(example, strongest, whole_windows=whole_windows)}</p>'
        f'<span class="source">{_silent(window.document)}<span class="at"> · token {whole(window.offset + example.peak)}'
        f"</span>{copies}</span></li>\n"
    )


def context_html(example: PageExample, strongest: float, *, whole_windows: bool = False) -> str:
    """The text of an example in zones, with its firings marked."""
    ranges, text = example.window.token_ranges, example.window.text
    count, peak = len(ranges), example.peak

    def snapped(token: int, step: int) -> int:
        """The nearest token from here on that begins a piece of its own, as in `Window.spans`; or an end."""
        while 0 < token < count:
            start, end = ranges[token]
            if end > start == ranges[token - 1][1]:
                break
            token += step
        return token

    before = [snapped(max(0, peak - reach), -1) for reach in reversed(REACHES)]
    after = [snapped(min(count, peak + reach + 1), 1) for reach in REACHES]
    all_sent = whole_windows or count <= SENT_WHOLE
    cuts = [0 if all_sent else before[0], *before, *after, count if all_sent else after[-1]]
    firing = [token for token, value in enumerate(example.activations) if value]
    if example.negative == "near_miss":
        firing = [peak]

    parts: list[str] = []
    for place, zone in enumerate(_ZONES):
        first, last = cuts[place], cuts[place + 1]
        if (place < 3 and last == 0) or (place > 3 and first == count):
            continue  # the window does not reach so far
        parts.append(f'<span class="z{zone}">')
        token = first
        for fires in firing:
            if fires < token:
                continue  # not sent, or of a piece that is drawn
            if fires >= last:
                break
            start, stop = snapped(fires, -1), snapped(fires + 1, 1)
            if start > token:
                parts.append(_silent(text[ranges[token][0] : ranges[start - 1][1]]))
            parts.append(_mark(example, start, stop, strongest))
            token = stop
        if last > token:
            parts.append(_silent(text[ranges[token][0] : ranges[last - 1][1]]))
        parts.append("</span>")
    return "".join(parts)


def _mark(example: PageExample, start: int, stop: int, strongest: float) -> str:
    """A piece of text in which the feature fires, or would: one token, or those that share a character."""
    window, values, ranges = example.window, example.activations, example.window.token_ranges
    text = shown(window.text[ranges[start][0] : ranges[stop - 1][1]])
    if stop == start + 1:
        value = values[start]
        said = f"{value} · token {window.token_ids[start]}"
    else:
        value = max(values[start:stop], key=abs)
        said = ", ".join(f"token {window.token_ids[token]}: {values[token]}" for token in range(start, stop))
    kind = " neg" if value < 0 else ""
    # a short token stays on one line; a long run of blanks may be wider than a phone
    long = " long" if ranges[stop - 1][1] - ranges[start][0] > _ONE_LINE else ""
    if start <= example.peak < stop:
        kind = (" miss" if example.negative else kind) + long
        return f'<mark class="peak{kind}" style="--a:{shade(value, strongest)}" title="{said}">{text}</mark>'
    return f'<span class="on{kind}{long}" style="--a:{shade(value, strongest)}" title="{said}">{text}</span>'


@lru_cache(maxsize=8192)
def shown(text: str) -> str:
    """The text of a token as HTML, with every blank drawn, as `drawing.visible` does."""
    return _IN_TOKEN.sub(_drawn, text)


def _silent(text: str) -> str:
    """A stretch in which nothing fires. What is written from right to left turns only itself around."""
    drawn = _IN_TEXT.sub(_drawn, text)
    return drawn if text.isascii() or not _TURNING.search(text) else f"<bdi>{drawn}</bdi>"


def _drawn(found: re.Match[str]) -> str:
    character = found[0]
    match character[0]:
        case "&" | "<" | ">":
            return _ESCAPED[character]
        case " ":
            return f'<i class="s">{character}</i>'
        case "\t":
            return '<i class="t">\t</i>'
        case _ if character[-1] == "\n":
            return f'<i class="l">{character}</i>'
    return str(visible(character))
