"""Records as the terminal shows them: a feature page, a list of features, the verdicts of an evaluation.

Pure functions from records to Rich renderables. Token text is data: it is never read as markup, and what could move the
cursor or reorder the line is shown as a code. Colour has three strengths; the peak can be found without it, between
guillemets and with its value in front.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log1p
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from saescope.store import FeaturePage, FeatureRecord, Histogram, Label, PageExample, TokenLogit
from saescope.web.numbers import decimal, met_words, percent, quantity, whole

# read alike on light and on dark terminals: a background brings its own foreground, and the weakest has none
STRONG = "#ffffff on #c2410c"
MEDIUM = "#000000 on #f59e42"
WEAK = "#c2630a"
PEAK = "bold underline"
MUTED = "dim"

_BARS = " ▁▂▃▄▅▆▇█"
_BAR_COLUMNS = 50
_TOKEN_COLUMNS = 16  # of a token in a list of logits


def feature_view(
    page: FeaturePage,
    *,
    max_examples: int = 8,
    window_before: int | None = None,
    window_after: int | None = None,
) -> RenderableType:
    """One feature: label and numbers, histogram, promoted and suppressed tokens, and its strongest examples.

    Each example is one line, cut around its peak to the width of the terminal, and to `window_before` and
    `window_after` tokens on either side where given.
    """
    feature = page.feature
    parts: list[RenderableType] = [_headline(page), _statistics(feature)]
    if any(feature.histogram.counts):
        parts += ["", _histogram(feature.histogram)]
    parts += ["", _logits(feature), ""]
    if page.examples:
        parts.append(Text("where it fires most", style=MUTED))
    else:
        never = feature.num_firings == 0
        parts.append(Text("it never fired" if never else "no example was kept", style=MUTED))
    parts += [
        _ExampleLine(example, feature.max_activation, window_before, window_after)
        for example in page.examples[:max_examples]
    ]
    return Group(*parts)


def features_view(records: Iterable[FeatureRecord]) -> Table:
    """A table of features, one line each, in the order given."""
    table = _table()
    for name in ("feature", "density", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("label")  # the one column that may give way, by an ellipsis
    for name in ("precision", "lift"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        label = record.label
        table.add_row(
            str(record.index),
            percent(record.density),
            decimal(record.max_activation),
            Text(visible(label.text), no_wrap=True, overflow="ellipsis") if label else Text("unlabelled", style=MUTED),
            percent(label.precision) if label and label.precision is not None else "",
            f"{decimal(label.lift, 3)}×" if label and label.lift is not None else "",
        )
    return table


def evaluation_view(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of evaluation numbers: rows of name and value, and target and met where something was promised."""
    table = _table()
    table.add_column("measure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("target", justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        met = row.get("met")
        style = MUTED if met is None else "bold green" if met else "bold red"
        table.add_row(
            Text(str(row["name"])),
            Text(quantity(row["value"])),
            Text(quantity(row.get("target"))),
            Text(met_words(met), style=style),
        )
    return table


def visible(text: str, *, spaces: bool = False) -> str:
    """Token text on one line: line ends as ↵, tabs as ⇥, what has no shape as a code, and spaces as · if asked."""
    return "".join(_shown(character, spaces) for character in text.replace("\r\n", "\n"))


def _shown(character: str, spaces: bool) -> str:
    if character == " ":
        return "·" if spaces else " "
    if character in "\n\t":
        return "↵" if character == "\n" else "⇥"
    # control and format characters (escape sequences, direction marks), surrogates, separators of lines and paragraphs
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character


def _headline(page: FeaturePage) -> Text:
    label = page.feature.label
    text = Text.assemble((f"feature {page.feature.index}", "bold"), (f" of {visible(page.dictionary.name)}", MUTED))
    text.append("\n")
    if label is None:
        return text.append("unlabelled", style=MUTED)
    text.append(visible(label.text), style="bold")
    return text.append(f"\n{_evidence(label)}", style=MUTED)


def _evidence(label: Label) -> str:
    parts = [] if label.precision is None else [f"precision {percent(label.precision)}"]
    parts += [] if label.lift is None else [f"lift {decimal(label.lift, 3)}×"]
    return ", ".join([*parts, f"on {whole(label.num_firings)} held-out firings"])


def _statistics(feature: FeatureRecord) -> Text:
    numbers = {
        "density": f"{percent(feature.density)} ({whole(feature.num_firings)} firings)",
        "max": decimal(feature.max_activation),
        "mean": decimal(feature.mean_activation),
    }
    return Text("   ").join(Text.assemble((f"{name} ", MUTED), value) for name, value in numbers.items())


def _histogram(histogram: Histogram) -> Text:
    """One line of bars, logarithmic in the counts, between its two ends."""
    counts = histogram.counts
    merged = -(-len(counts) // _BAR_COLUMNS)  # neighbouring bins share a column where there are too many
    columns = [sum(counts[i : i + merged]) for i in range(0, len(counts), merged)]
    highest = max(columns)
    # a count of one is never drawn as nothing
    heights = [max(1, round(8 * log1p(n) / log1p(highest))) if n else 0 for n in columns]
    bars = "".join(_BARS[height] for height in heights)
    return Text.assemble(
        (f"{decimal(histogram.edges[0], 3)} ", MUTED),
        (bars, "dark_orange"),
        (f" {decimal(histogram.edges[-1], 3)}", MUTED),
        (f"   log counts, highest {whole(highest)}", MUTED),
    )


def _logits(feature: FeatureRecord) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style=MUTED)
    table.add_column()
    table.add_row("makes likelier", _tokens(feature.top_logits))
    table.add_row("less likely", _tokens(feature.bottom_logits))
    return table


def _tokens(tokens: Iterable[TokenLogit]) -> RenderableType:
    shown = []
    for token in tokens:
        text = Text(visible(token.text, spaces=True), style="bold")
        text.truncate(_TOKEN_COLUMNS, overflow="ellipsis")
        shown.append(Text.assemble(text, (f" {decimal(token.logit, 3, trim=False)}", MUTED)))
    return Columns(shown, padding=(0, 2)) if shown else Text("none", style=MUTED)


@dataclass(frozen=True)
class _ExampleLine:
    """One example on one line. The width is known only when it is drawn, so it is cut there."""

    example: PageExample
    strongest: float
    before: int | None
    after: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        value = f"{decimal(self.example.activation, 3, trim=False):>8}  "
        line = Text(no_wrap=True, overflow="crop").append(value, style="bold")
        yield line.append_text(self._context(max(1, options.max_width - cell_len(value))))

    def _context(self, width: int) -> Text:
        peak, size = self.example.peak, len(self.example.activations)
        start = 0 if self.before is None else max(0, peak - self.before)
        end = size if self.after is None else min(size, peak + self.after + 1)
        left, right = self._tokens(start, peak), self._tokens(peak + 1, end)
        if start > 0:
            left = Text.assemble(("…", MUTED), left)
        if end < size:
            right.append("…", style=MUTED)

        middle = self._tokens(peak, peak + 1)
        middle.truncate(max(1, width - 2), overflow="ellipsis")
        middle.stylize(PEAK)
        middle = Text.assemble("«", middle, "»")

        room = max(0, width - middle.cell_len)
        # what came before says more about a firing than what follows; either side may use what the other leaves
        room_left = min(left.cell_len, max(room * 2 // 3, room - right.cell_len))
        return Text.assemble(_keep_end(left, room_left), middle, _keep_start(right, room - room_left))

    def _tokens(self, start: int, end: int) -> Text:
        text = Text(no_wrap=True)
        for position in range(start, end):
            text.append(
                visible(self.example.window.token_texts[position]),
                style=_strength(self.example.activations[position], self.strongest),
            )
        return text


def _strength(activation: float, strongest: float) -> str:
    if activation <= 0 or strongest <= 0:
        return ""
    share = activation / strongest
    return STRONG if share > 2 / 3 else MEDIUM if share > 1 / 3 else WEAK


def _keep_start(text: Text, width: int) -> Text:
    """The first `width` columns of a line."""
    if width == 0:  # no room for an ellipsis either
        return Text()
    text.truncate(width, overflow="ellipsis")
    return text


def _keep_end(text: Text, width: int) -> Text:
    """The last `width` columns of a line."""
    if text.cell_len <= width:
        return text
    if width == 0:
        return Text()
    cut = len(text)
    while cut > 0 and text[cut - 1 :].cell_len <= width - 1:
        cut -= 1
    kept = Text.assemble(("…", MUTED), text[cut:])
    return Text.assemble(" " * (width - kept.cell_len), kept)  # half a wide character may be missing


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
