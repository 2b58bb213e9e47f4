"""What a search for features has found, in the terminal: one line a feature, and what is to be kept in mind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import MUTED, plain_table, visible
from saescope.web.numbers import decimal, percent, whole

if TYPE_CHECKING:
    from saescope.analysis.contrast import Contrast, Enrichment, ModelDifference


def contrast_view(found: Contrast) -> RenderableType:
    """Features that separate two sets; the sign of g is the side, and the last numbers are in how many texts it fires."""
    table = _table(("feature", "g", "q", "AUROC", "95 %", "in +", "in −"), label=_labelled(found.features))
    for row in found.features:
        table.add_row(
            str(row.feature),
            _effect(row.effect_size, row.side == "positive"),
            _small(row.q),
            f"{row.auroc:.3f}",
            f"{row.auroc_low:.2f} to {row.auroc_high:.2f}",
            percent(row.share_positive),
            percent(row.share_negative),
            *_label(row.label, found.features),
        )
    kind = f"{found.unit}s"
    head = Text(
        f"{whole(found.num_significant)} of {whole(found.num_tested)} features that fire separate the sets (q <= "
        f"{found.false_discovery_rate:g}); chosen on {whole(found.num_positive)} positive and {whole(found.num_negative)} "
        f"negative {kind}, AUROC on {whole(found.num_test_positive)} and {whole(found.num_test_negative)} others"
    )
    return Group(head, *([table] if found.features else []), *_notes(found.notes))


def enrichment_view(found: Enrichment) -> RenderableType:
    """Features that a set has more of than the background."""
    table = _table(
        ("feature", "effect", "q", "density", "background", "ratio", "95 %"), label=_labelled(found.features)
    )
    for row in found.features:
        ends = "" if row.ratio_low is None else f"{decimal(row.ratio_low, 3)} to {decimal(row.ratio_high or 0.0, 3)}"
        table.add_row(
            str(row.feature),
            _effect(row.effect_size, row.side == "more"),
            _small(row.q),
            percent(row.density),
            percent(row.background_density),
            "∞" if row.ratio is None else decimal(row.ratio, 3),
            ends,
            *_label(row.label, found.features),
        )
    head = Text(
        f"{whole(found.num_significant)} of {whole(found.num_tested)} features that fire are set apart (q <= "
        f"{found.false_discovery_rate:g}) from {found.background}; chosen on {whole(found.num_texts)} texts, density and "
        f"ratio on {whole(found.num_test_texts)} others"
    )
    return Group(head, *([table] if found.features else []), *_notes(found.notes))


def difference_view(found: ModelDifference) -> RenderableType:
    """Features that two models use differently."""
    columns = ("feature", "mean", "other's", "written", "density", "other's", "r", "q")
    table = _table(columns, label=_labelled(found.features))
    for row in found.features:
        table.add_row(
            str(row.feature),
            decimal(row.mean, 3),
            decimal(row.other_mean, 3),
            decimal(row.written, 3),
            percent(row.density),
            percent(row.other_density),
            "" if row.correlation is None else f"{row.correlation:.2f}".replace("-", "−"),
            _small(row.q),
            *_label(row.label, found.features),
        )
    head = Text(
        f"{whole(found.num_significant)} of {whole(found.num_tested)} features that fire in either model changed (q <= "
        f"{found.false_discovery_rate:g}), on {whole(found.num_tokens)} tokens of {whole(found.num_texts)} texts\n"
        f"variance left unexplained: {percent(found.fvu)}, in the other model {percent(found.other_fvu)}; L0 "
        f"{decimal(found.l0)} and {decimal(found.other_l0)}; {whole(found.only)} features fire in the first alone, "
        f"{whole(found.other_only)} in the other alone"
    )
    return Group(head, *([table] if found.features else []), *_notes(found.notes))


def _table(columns: Iterable[str], *, label: bool) -> Table:
    table = plain_table()
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if label:
        table.add_column("label")  # the one column that may give way, by an ellipsis
    return table


def _labelled(rows: Iterable[object]) -> bool:
    return any(getattr(row, "label", None) for row in rows)


def _label(label: str | None, rows: Iterable[object]) -> list[Text]:
    return [Text(visible(label or ""), no_wrap=True, overflow="ellipsis")] if _labelled(rows) else []


def _effect(size: float | None, up: bool) -> str:
    """With its sign, which is the side."""
    return ("+∞" if up else "−∞") if size is None else f"{size:+.2f}".replace("-", "−")


def _small(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}".replace("e-0", "e-").replace("-", "−")


def _notes(notes: Iterable[str]) -> list[Text]:
    return [Text(f"note: {note}", style=MUTED) for note in notes]
