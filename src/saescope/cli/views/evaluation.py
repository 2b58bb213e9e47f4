"""An evaluation in the terminal: one dictionary number by number, or many in a table, and what to try for a missed target.

The views read the plain values of the report and of its summary, as they stand in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import MUTED, plain_table, visible
from saescope.web.estimates import minutes, written
from saescope.web.numbers import met_words

_GOOD, _BAD = "bold green", "bold red"
_LONGEST_NAME = 28  # columns of a terminal; a longer name is folded


def report_view(report: Mapping[str, Any], summary: Mapping[str, Any]) -> RenderableType:
    """All of an evaluation: of one dictionary every number, of many the headlines and the outcome in words.

    `report` is what `EvaluationReport.as_dict` gave, `summary` what `saescope.evaluation.summarise` gave for it.
    """
    if len(report["dictionaries"]) == 1:
        (dictionary,) = report["dictionaries"]
        parts: list[RenderableType] = [
            targets_view(summary["targets"][dictionary["name"]]),
            dictionary_numbers_view(dictionary, summary, summary["unreliable"]),
        ]
    else:
        parts = [
            dictionaries_view(report, summary),
            targets_met_view(summary["targets"]),
            *_trouble(report, summary),
            Text(summary["paragraph"]),
        ]
    took = ", ".join(f"{what} {minutes(seconds)}" for what, seconds in report["seconds"].items())
    return Group(*parts, *[Text(visible(note), style=MUTED) for note in (*report["notes"], took) if note])


def targets_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The usual targets beside the values of one dictionary, met or not, and under them what to try."""
    table = plain_table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], written(row), row["target"], _verdict(row["met"]))
    said = [
        Text(f"{row['name']}: {row[what]}", style=MUTED) for row in rows for what in ("reason", "note") if row.get(what)
    ]
    advice = [(f"{row['name']} {row['target']} is not met", row["advice"]) for row in rows if row["met"] is False]
    return Group(table, *said, *_to_try(advice))


def targets_met_view(targets: Mapping[str, Sequence[Mapping[str, Any]]]) -> RenderableType:
    """How many dictionaries meet each of the usual targets, and what to try with the others."""
    table = plain_table()
    table.add_column("target")
    table.add_column("met by", justify="right", no_wrap=True)
    table.add_column("missed by", overflow="fold")
    advice: dict[tuple[str, tuple[str, ...]], None] = {}
    for rows in zip(*([(name, row) for row in own] for name, own in targets.items()), strict=True):
        judged = [(name, row) for name, row in rows if row["met"] is not None]
        missed = [name for name, row in judged if not row["met"]]
        words = f"{rows[0][1]['name']} {rows[0][1]['target']}"
        style = MUTED if not judged else _BAD if missed else _GOOD
        met = Text(f"{len(judged) - len(missed)} of {len(judged)}" if judged else "not measured", style=style)
        table.add_row(words, met, Text(visible(_some(missed))))
        advice |= {(f"{words} is not met", tuple(row["advice"])): None for _, row in judged if not row["met"]}
    return Group(table, *_to_try(advice))


def dictionary_numbers_view(
    dictionary: Mapping[str, Any], summary: Mapping[str, Any], unreliable: Mapping[str, str]
) -> RenderableType:
    """Every number of one dictionary by study, with its interval; failures, notes and missing values with their reasons."""
    parts: list[RenderableType] = []
    for study, result in dictionary["studies"].items():
        if result["failure"]:
            parts += [Text.assemble((f"{study} failed: ", _BAD), visible(result["failure"])), ""]
            continue
        table = plain_table()
        table.add_column(study)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("", overflow="fold", style=MUTED)
        for name, number in result["numbers"].items():
            key = f"{study}.{name}"
            good = {"higher": "more is better", "lower": "less is better"}.get(number.get("better", ""), "")
            warning = Text(f"unreliable: {unreliable[key]}", style=_BAD) if key in unreliable else Text("")
            words = [good, number.get("reason", ""), number.get("variant", "")]
            about = Text("; ".join(visible(word) for word in words if word))
            said = Text("; ").join(text for text in (warning, about) if text.plain)
            table.add_row(summary["titles"].get(key, name), written(number), said)
        parts.append(table)
        parts += [Text(f"{study}: {visible(note)}", style=MUTED) for note in result["notes"]]
    return Group(*parts)


def dictionaries_view(report: Mapping[str, Any], summary: Mapping[str, Any], *, most: int = 8) -> RenderableType:
    """A line for each dictionary, a column for each headline, in as many tables as the width of the terminal asks for.

    The first `most` headlines are shown; a terminal is no place for all.
    """
    columns = []
    for key in summary["headlines"][:most]:
        study, _, name = key.partition(".")
        found = [d["studies"].get(study, {}).get("numbers", {}).get(name) for d in report["dictionaries"]]
        mark = " (unreliable)" if key in summary["unreliable"] else ""
        columns.append((f"{summary['titles'][key]}{mark}", [written(number) for number in found]))
    return _Folded([visible(dictionary["name"]) for dictionary in report["dictionaries"]], columns)


@dataclass(frozen=True)
class _Folded:
    """A table whose columns go on in a further table where the terminal is too narrow for them."""

    names: Sequence[str]
    columns: Sequence[tuple[str, Sequence[str]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = options.max_width - 2 - min(_LONGEST_NAME, max(map(cell_len, ["dictionary", *self.names])))
        part: list[tuple[str, Sequence[str]]] = []
        used = 0
        for title, cells in self.columns:
            width = 3 + max(min(cell_len(title), 16), *map(cell_len, cells))  # a title may take two lines
            if part and used + width > left:
                yield self._table(part)
                part, used = [], 0
            part.append((title, cells))
            used += width
        yield self._table(part)

    def _table(self, columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
        table = plain_table()
        table.add_column("dictionary", overflow="fold", max_width=_LONGEST_NAME)
        for title, cells in columns:
            table.add_column(title, justify="right", min_width=max(map(cell_len, cells)))
        for at, name in enumerate(self.names):
            table.add_row(Text(name), *[Text(cells[at], no_wrap=True) for _, cells in columns])
        return table


def _trouble(report: Mapping[str, Any], summary: Mapping[str, Any]) -> list[RenderableType]:
    """Studies that failed, and numbers not to be trusted."""
    failed = [
        Text.assemble((f"{study} of {visible(dictionary['name'])} failed: ", _BAD), visible(result["failure"]))
        for dictionary in report["dictionaries"]
        for study, result in dictionary["studies"].items()
        if result["failure"]
    ]
    doubtful = [
        Text.assemble((f"{summary['titles'].get(key, key)} is unreliable: ", _BAD), visible(reason))
        for key, reason in summary["unreliable"].items()
    ]
    return [*failed, *doubtful, *([""] if failed or doubtful else [])]


def _to_try(advice: Iterable[tuple[str, Sequence[str]]]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for missed, sentences in advice:
        parts.append(Text(f"{missed}. What to try:"))
        listed = Table.grid(padding=(0, 1))
        for sentence in sentences:
            listed.add_row(" -", Text(sentence))
        parts.append(listed)
    return [*parts, ""] if parts else []


def _verdict(met: bool | None) -> Text:
    return Text(met_words(met), style=MUTED if met is None else _GOOD if met else _BAD)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"
