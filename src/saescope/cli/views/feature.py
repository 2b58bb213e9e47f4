"""One feature in the terminal: a card with what matters most, and the whole page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from saescope.cli.views.example import ExampleLine
from saescope.cli.views.words import BAR, MUTED, sparkline, visible
from saescope.store.records import (
    Band,
    Explanation,
    FeatureDetail,
    FeaturePage,
    FeatureRecord,
    Label,
    Neighbour,
    PageExample,
    TokenLogit,
)
from saescope.web.bins import bands_of, reach, trimmed
from saescope.web.further import further_numbers
from saescope.web.numbers import decimal, percent, quantity, whole

_BAR_COLUMNS = 32
_TOKEN_COLUMNS = 16  # of a token in a list of logits
_NUM_LOGITS = 10  # in each direction
_MAX_NEIGHBOURS = 4  # of each kind
_MAX_NEGATIVES = 2  # of each kind

_KINDS = {"quantile": "bands of equal share", "width": "bands of equal width"}
_NEGATIVES = {
    "near_miss": "near misses: it is silent, and its nearest neighbour fires at the mark",
    "silent": "silent: drawn from all windows in which it does not fire",
}
_NEIGHBOURS = {
    "decoder": "nearest by decoder row (cosine)",
    "firing": "fires with (phi; tokens on which both fire)",
}


def feature_view(
    page: FeaturePage,
    *,
    max_examples: int = 8,
    window_before: int | None = None,
    window_after: int | None = None,
) -> RenderableType:
    """The card of a feature: label and numbers, histogram, promoted and suppressed tokens, its strongest examples.

    Each example is one line, cut around its peak to the width of the terminal, and to `window_before` and
    `window_after` tokens on either side where given.
    """
    parts: list[RenderableType] = [_headline(page), _Items(_named(_statistics(page.feature)))]
    parts += _charts(page, all_of_them=False)
    parts += ["", _logits(page.detail), ""]
    return Group(*parts, *_strongest(page, max_examples, window_before, window_after))


def page_view(
    page: FeaturePage,
    *,
    labels: Mapping[int, str] | None = None,
    max_examples: int = 8,
    max_band_examples: int = 2,
    band_kind: str | None = "quantile",
    band_number: int | None = None,
    window_before: int | None = None,
    window_after: int | None = None,
    link: str | None = None,
) -> RenderableType:
    """Everything about a feature: the card, and its bands, negatives, neighbours, explanations, tags and notes.

    `labels` names neighbours. Of each band of `band_kind` (None for no bands) `max_band_examples` windows are drawn;
    with a `band_number` that band alone is shown, in place of all other windows, with up to `max_examples`. Raises
    `ValueError` for a band that the feature does not have.
    """
    detail = page.detail
    parts: list[RenderableType] = [_headline(page), *_remarks(page)]
    parts += [_Items(_named(_all_statistics(page))), *_charts(page, all_of_them=True)]
    parts += ["", _logits(detail), *_neighbours(detail, labels or {})]
    if band_number is not None:
        band = _find_band(page, band_kind or "quantile", band_number)
        parts += ["", *_band(page, band, max_examples, window_before, window_after)]
    else:
        parts += ["", *_strongest(page, max_examples, window_before, window_after)]
        parts += _bands(page, band_kind, max_band_examples, window_before, window_after)
        for kind, words in _NEGATIVES.items():
            negatives = page.negatives(kind)[: min(_MAX_NEGATIVES, max_examples)]
            if negatives:
                parts += ["", Text(words, style=MUTED), *_lines(page, negatives, window_before, window_after)]
    parts += _notes(page)
    if link is not None:
        parts += ["", Text(f"page: {link}", overflow="fold", no_wrap=False)]
    return Group(*parts)


def _headline(page: FeaturePage) -> Text:
    label = page.feature.label
    text = Text.assemble((f"feature {page.feature.index}", "bold"), (f" of {visible(page.dictionary.name)}", MUTED))
    if page.is_bookmarked:
        text.append("  ★ bookmarked", style=MUTED)
    text.append("\n")
    if label is None:
        return text.append("unlabelled", style=MUTED)
    text.append(visible(label.text), style="bold")
    return text.append(f"\n{_evidence(label)}", style=MUTED)


def _evidence(label: Label) -> str:
    parts = [] if label.precision is None else [f"precision {percent(label.precision)}"]
    parts += [] if label.recall is None else [f"recall {percent(label.recall)}"]
    parts += [] if label.lift is None else [f"lift {decimal(label.lift, 3)}×"]
    return ", ".join([*parts, f"on {whole(label.num_firings)} held-out firings"])


def _remarks(page: FeaturePage) -> list[RenderableType]:
    """What people and language models said: explanations and tags."""
    lines: list[RenderableType] = [
        Text.assemble(visible(explanation.text), (f"  {_origin(explanation)}", MUTED))
        for explanation in page.explanations
    ]
    if page.tags:
        lines.append(Text.assemble(("tags ", MUTED), ", ".join(map(visible, page.tags))))
    return lines


def _origin(explanation: Explanation) -> str:
    parts = ["explained by hand" if explanation.method == "human" else f"explained by {visible(explanation.method)}"]
    parts += [visible(explanation.author)] if explanation.author else []
    parts += [] if explanation.score is None else [f"score {decimal(explanation.score, 3)}"]
    return ", ".join(parts)


def _notes(page: FeaturePage) -> list[RenderableType]:
    if not page.notes:
        return []
    lines: list[RenderableType] = ["", Text("notes", style=MUTED)]
    for note in page.notes:
        origin = " ".join(filter(None, (visible(note.author), note.created_at[:10])))
        lines.append(Text.assemble(visible(note.text), (f"  {origin}" if origin else "", MUTED)))
    return lines


def _statistics(feature: FeatureRecord) -> dict[str, str]:
    return {
        "density": f"{percent(feature.density)} ({whole(feature.num_firings)} firings)",
        "max": decimal(feature.max_activation),
        "mean": quantity(feature.mean_positive),
    }


def _all_statistics(page: FeaturePage) -> dict[str, str]:
    """Like the mean, the median is that of the firings."""
    numbers = {**_statistics(page.feature), "median": quantity(page.feature.median_positive)}
    if page.feature.negative_share:
        numbers["negative"] = percent(page.feature.negative_share)
    return {**numbers, **dict(further_numbers(page))}


def _named(numbers: Mapping[str, str]) -> list[Text]:
    return [Text.assemble((f"{name} ", MUTED), value) for name, value in numbers.items()]


@dataclass(frozen=True)
class _Items:
    """Short texts side by side, as many to a line as fit; none is broken in two unless it must be."""

    items: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line: list[Text] = []
        for item in self.items:
            if line and cell_len("   ".join(text.plain for text in (*line, item))) > options.max_width:
                yield Text("   ").join(line)
                line = []
            line.append(item)
        if line:
            yield Text("   ").join(line)


def _charts(page: FeaturePage, *, all_of_them: bool) -> list[RenderableType]:
    """One line of bars each, between its two ends; the first is there wherever the feature fires."""
    detail, table = page.detail, Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style=MUTED)
    table.add_column(no_wrap=True, style=MUTED, justify="right")
    table.add_column(no_wrap=True, style=BAR)
    table.add_column(no_wrap=True, style=MUTED)
    table.add_column(style=MUTED)  # gives way where the line is short

    def add(name: str, low: str, high: str, counts: Sequence[int], *, logarithmic: bool) -> None:
        bars, highest = sparkline(counts, _BAR_COLUMNS, logarithmic=logarithmic)
        scale = f"{'log counts, ' if logarithmic else ''}highest {whole(highest)}"
        table.add_row(name, low, bars, high, Text(scale, no_wrap=True, overflow="ellipsis"))

    wanted = {"activations": detail.histogram}
    if all_of_them:
        wanted["logit effects"] = detail.logit_histogram
    for name, histogram in wanted.items():
        filled = trimmed(histogram)
        if filled.counts:
            ends = decimal(filled.edges[0], 3), decimal(filled.edges[-1], 3)
            add(name, *ends, filled.counts, logarithmic=True)
    if all_of_them and any(detail.positions):
        add("place in window", "0", whole(page.analysis.context_size - 1), detail.positions, logarithmic=False)
    return ["", table] if table.row_count else []


def _logits(detail: FeatureDetail) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style=MUTED)
    table.add_column()
    table.add_row("makes likelier", _tokens(detail.top_logits[:_NUM_LOGITS]))
    table.add_row("less likely", _tokens(detail.bottom_logits[:_NUM_LOGITS]))
    return table


def _tokens(tokens: Iterable[TokenLogit]) -> RenderableType:
    shown = []
    for token in tokens:
        text = Text(visible(token.text, spaces=True), style="bold")
        text.truncate(_TOKEN_COLUMNS, overflow="ellipsis")
        shown.append(Text.assemble(text, (f" {decimal(token.logit, 3, trim=False)}", MUTED)))
    return Columns(shown, padding=(0, 2)) if shown else Text("none", style=MUTED)


def shown_neighbours(detail: FeatureDetail) -> dict[str, tuple[Neighbour, ...]]:
    """The neighbours of each kind that a page has room for, the nearest first."""
    return {kind: detail.neighbours[kind][:_MAX_NEIGHBOURS] for kind in _NEIGHBOURS if detail.neighbours.get(kind)}


def _neighbours(detail: FeatureDetail, labels: Mapping[int, str]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for kind, neighbours in shown_neighbours(detail).items():
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True)
        table.add_column()  # gives way, by an ellipsis
        for neighbour in neighbours:
            label = labels.get(neighbour.feature)
            table.add_row(
                f"{neighbour.feature:>8}",
                decimal(neighbour.value, 3, trim=False),
                "" if neighbour.num_both is None else whole(neighbour.num_both),
                Text(visible(label) if label else "", no_wrap=True, overflow="ellipsis"),
            )
        parts += ["", Text(_NEIGHBOURS[kind], style=MUTED), table]
    return parts


def _strongest(page: FeaturePage, count: int, before: int | None, after: int | None) -> list[RenderableType]:
    nothing = "it never fired" if page.feature.is_dead else "no example was kept"
    words = "where it fires most" if page.examples else nothing
    return [Text(words, style=MUTED), *_lines(page, page.examples[:count], before, after)]


def _bands(
    page: FeaturePage, kind: str | None, count: int, before: int | None, after: int | None
) -> list[RenderableType]:
    """Samples of the bands of one kind, the strongest band first."""
    bands = bands_of(page.detail, kind) if kind and count else ()
    if kind is None or not bands:
        return []
    parts: list[RenderableType] = ["", Text(f"at every strength: drawn from {_KINDS[kind]} of firings", style=MUTED)]
    for band in bands:
        parts += _band(page, band, count, before, after)
    return parts


def _band(page: FeaturePage, band: Band, count: int, before: int | None, after: int | None) -> list[RenderableType]:
    told = [] if band.share is None else [f"{percent(band.share)} of firings ({quantity(band.num_tokens)})"]
    told += [] if band.num_windows is None else [f"peak of {whole(band.num_windows)} windows"]
    words = Text.assemble(
        (f"{band.kind} {band.number}", MUTED),
        f"  {reach(band, page.detail)}",
        (f"   {', '.join(told)}" if told else "", MUTED),
    )
    return [words, *_lines(page, page.in_band(band.kind, band.number)[:count], before, after)]


def _find_band(page: FeaturePage, kind: str, number: int) -> Band:
    bands = bands_of(page.detail, kind)
    for band in bands:
        if band.number == number:
            return band
    names = ", ".join(f"{kind}:{band.number}" for band in reversed(bands))
    has = f"has the bands {names}" if names else f"has no bands of the kind {kind}"
    raise ValueError(f"feature {page.feature.index} {has}, so there is no {kind}:{number}")


def _lines(
    page: FeaturePage, examples: Iterable[PageExample], before: int | None, after: int | None
) -> list[RenderableType]:
    return [ExampleLine(example, page.feature.max_activation, before, after) for example in examples]
