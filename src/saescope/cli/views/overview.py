"""A dictionary at a glance, and what a store holds."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import BAR, MUTED, plain_table, sparkline, visible
from saescope.store.records import DictionaryInfo, EvaluationResult, StoreInfo, Summary
from saescope.web.numbers import decimal, percent, quantity, whole

_BAR_COLUMNS = 32


def dictionary_view(summary: Summary) -> RenderableType:
    """What a dictionary reads, what its features do, and how good it is."""
    record, analysis = summary.dictionary, summary.analysis
    facts = {
        "model": record.model,
        "hook point": record.hook_point,
        "writes to": record.hook_point_out,
        "architecture": record.architecture,
        "series": record.series,
        "features": f"{whole(record.d_sae)}, of activations of width {whole(record.d_in)}",
        "analysis": " ".join(filter(None, (analysis.name, analysis.created_at[:10]))),
        "text": f"{analysis.dataset}: {whole(analysis.num_tokens)} tokens, {whole(analysis.context_size)} to a window",
    }
    features = {
        "analysed": whole(summary.num_features),
        "dead": _of(summary.num_dead, summary.num_features),
        "dense": f"{_of(summary.num_dense, summary.num_features)}, on more than a tenth of the tokens",
        "labelled": _of(summary.num_labelled, summary.num_features),
        "explained": _of(summary.num_explained, summary.num_features),
    }
    parts: list[RenderableType] = [Text(visible(record.name), style="bold"), _facts(facts), "", _facts(features)]
    if summary.log_density.counts:
        bars, highest = sparkline(summary.log_density.counts, _BAR_COLUMNS, logarithmic=False)
        low, high = (decimal(10 ** summary.log_density.edges[end], 2) for end in (0, -1))
        parts += ["", _density_line(low, bars, high, highest)]
    if summary.density_quantiles:
        parts += ["", Text("of the features that fire", style=MUTED), _quantiles(summary)]
    if summary.evaluations:
        parts.append(_evaluations(summary.evaluations))
    return Group(*parts)


def store_view(info: StoreInfo) -> RenderableType:
    """Where a store is, how large it is, and its dictionaries with their analyses."""
    facts = {"store": info.place, "database": info.database, "size": _bytes(info.num_bytes)}
    parts: list[RenderableType] = [_facts(facts)]
    if not info.dictionaries:
        parts += ["", Text("it holds no dictionary yet; `saescope analyze DICTIONARY` writes one", style=MUTED)]
        return Group(*parts)
    table = plain_table()
    for title in ("dictionary", "analysis"):
        table.add_column(title, overflow="fold")
    for title in ("features", "windows", "examples", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    for dictionary in info.dictionaries:
        name = Text(visible(dictionary.dictionary.name))
        for held in dictionary.analyses:
            numbers = (held.num_features, held.num_windows, held.num_examples, held.analysis.num_tokens)
            table.add_row(name, Text(visible(held.analysis.name)), *map(whole, numbers))
            name = Text("")
        if not dictionary.analyses:
            table.add_row(name, Text("none", style=MUTED))
    added = [(held.dictionary.name, _added(held)) for held in info.dictionaries]
    return Group(*parts, table, *[Text(f" {visible(name)}: {what}", style=MUTED) for name, what in added if what])


def _added(info: DictionaryInfo) -> str:
    """What people, language models and evaluations added, in words."""
    counts = {
        "explanation": info.num_explanations, "tag": info.num_tags, "bookmark": info.num_bookmarks,
        "note": info.num_notes, "evaluation result": info.num_evaluations, "run": info.num_runs,
    }  # fmt: skip
    return ", ".join(f"{whole(n)} {word}{'' if n == 1 else 's'}" for word, n in counts.items() if n)


def _facts(facts: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=MUTED, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(visible(value)))
    return table


def _of(part: int, total: int) -> str:
    return f"{whole(part)} ({percent(part / total)})" if total else whole(part)


def _density_line(low: str, bars: str, high: str, highest: int) -> Text:
    return Text.assemble(
        ("density  ", MUTED), (f"{low} ", MUTED), (bars, BAR), (f" {high}   log scale, highest {whole(highest)}", MUTED)
    )


def _quantiles(summary: Summary) -> Table:
    table = plain_table()
    table.add_column("")
    shares = [share for share, _ in summary.density_quantiles]
    for share in shares:
        name = {0.0: "least", 0.5: "median", 1.0: "most"}.get(share, percent(share))
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("density", *[percent(value, 2) for _, value in summary.density_quantiles])
    table.add_row("max", *[decimal(value, 3) for _, value in summary.max_quantiles])
    return table


def _evaluations(results: Iterable[EvaluationResult]) -> Table:
    table = plain_table()
    table.add_column("evaluation")
    table.add_column("measure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("interval", no_wrap=True)
    before = ""
    for result in results:
        interval = ""
        if result.low is not None and result.high is not None:
            interval = f"{decimal(result.low)} to {decimal(result.high)}"
        measure = ", ".join(filter(None, (result.metric.replace("_", " "), result.variant)))
        study = "" if result.study == before else result.study
        table.add_row(Text(visible(study)), Text(visible(measure)), quantity(result.value), interval)
        before = result.study
    return table


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{decimal(count / size, 3)} {unit}"
    return f"{whole(count)} bytes"
