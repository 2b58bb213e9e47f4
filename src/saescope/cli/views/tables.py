"""Tables: features one line each, and the numbers of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import MUTED, plain_table, visible
from saescope.store import FeatureRecord
from saescope.web.numbers import decimal, met_words, percent, quantity, whole

_SHARES = ("density", "special_share", "negative_share", "precision", "recall")
_ALWAYS = ("index", "density", "max_activation", "precision", "lift")


def features_view(records: Iterable[FeatureRecord], shown: Iterable[str] = ()) -> Table:
    """A table of features, one line each, in the order given, with the statistics `shown` beside the usual ones."""
    more = [name for name in dict.fromkeys(shown) if name not in _ALWAYS]
    in_front = [name for name in more if name != "recall"]
    table = plain_table()
    for name in ("feature", "density", "max", *map(_title, in_front)):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("label", ratio=1 if more else None)  # the one column that may give way, by an ellipsis
    behind = ["precision", *[name for name in more if name == "recall"], "lift"]
    for name in behind:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        label = record.label
        table.add_row(
            str(record.index),
            percent(record.density),
            decimal(record.max_activation),
            *[_number(record, name) for name in in_front],
            Text(visible(label.text), no_wrap=True, overflow="ellipsis") if label else Text("unlabelled", style=MUTED),
            *[_number(record, name) for name in behind],
        )
    return table


def evaluation_view(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of evaluation numbers: rows of name and value, and target and met where something was promised."""
    table = plain_table()
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


def _title(name: str) -> str:
    return name.removeprefix("num_").replace("_activation", "").replace("_", " ")


def _number(record: FeatureRecord, name: str) -> str:
    value = getattr(record, name) if hasattr(record, name) else getattr(record.label, name, None)
    if value is None:
        return ""
    if name in _SHARES:
        return percent(value)
    if name == "lift":
        return f"{decimal(value, 3)}×"
    return whole(value) if isinstance(value, int) else decimal(value)
