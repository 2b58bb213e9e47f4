"""Contributions of features in the terminal, and how an attribution agrees with ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import BAR, MUTED, plain_table, visible
from saescope.web.numbers import decimal, percent, whole

_BAR_COLUMNS = 12
_TOKEN_COLUMNS = 16
_TERMS = {
    "features": "all features",
    "dictionary_bias": "the dictionary's bias",
    "error": "what the dictionary leaves unexplained",
    "rest": "written elsewhere",
    "norm_bias": "bias of the final norm",
    "unembedding_bias": "bias of the unembedding",
}


def attribution_view(document: Mapping[str, Any], title: str) -> RenderableType:
    """What ``saescope attribute`` found on one prompt."""
    parts: list[RenderableType] = [Text(visible(title), style="bold"), _features(document["features"])]
    number, shown = document["num_contributions"], len(document["features"])
    parts.append(Text(f"{whole(shown)} of {whole(number)} contributions, {document['method']}", style=MUTED))
    if document["terms"]:
        parts += ["", Text("the logit as a sum", style=MUTED), _terms(document["terms"], document["value"])]
    if document["completeness"]:
        parts.append(Text(_completeness(document["completeness"]), style=MUTED))
    return Group(*parts)


def agreement_view(document: Mapping[str, Any]) -> RenderableType:
    """Attribution against exact ablation."""
    prompts, top = document["prompts"], document["num_top"]
    table = plain_table()
    for column in ("measure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "measure" else "right", no_wrap=column != "measure")
    rows = {
        "rank correlation with exact ablation": "rank_correlation",
        f"share of the whole effect: the top {top}": "share_removed",
        f"... {top} at random": "share_removed_at_random",
        f"... the top {top} by exact effect": "share_removed_by_exact",
    }
    for words, key in rows.items():
        value = document[key]["value"]
        table.add_row(Text(words), "–" if value is None else decimal(value, 3), _interval(document[key]))
    numbers = [prompt["num_features"] for prompt in prompts]
    told = (
        f"{len(prompts)} prompts, {min(numbers)} to {max(numbers)} features on each; {document['method']}; the whole "
        "effect is that of ablating all features"
    )
    return Group(
        Text(f"{document['metric']}, features at {document['hook_point']}", style="bold"),
        table,
        Text(told, style=MUTED),
    )


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return ""
    return f"{decimal(estimate['low'], 3)} to {decimal(estimate['high'], 3)}"


def _features(rows: list[Mapping[str, Any]]) -> RenderableType:
    if not rows:
        return Text("no feature is active there", style=MUTED)
    table = plain_table()
    table.add_column("feature", justify="right", no_wrap=True)
    table.add_column("label", ratio=1)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True, max_width=_TOKEN_COLUMNS)
    table.add_column("activation", justify="right", no_wrap=True)
    table.add_column("contribution", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max(abs(row["contribution"]) for row in rows) or 1.0
    for row in rows:
        label = (
            Text(visible(row["label"]), no_wrap=True, overflow="ellipsis") if row["label"] else Text("", style=MUTED)
        )
        size = max(1, round(_BAR_COLUMNS * abs(row["contribution"]) / largest))
        table.add_row(
            str(row["feature"]),
            label,
            str(row["position"]),
            Text(visible(row["token"], spaces=True), overflow="ellipsis"),
            decimal(row["activation"], 3, trim=False),
            f"{row['contribution']:+.3f}".replace("-", "−"),
            Text("█" * size, style=BAR if row["contribution"] > 0 else MUTED),
        )
    return table


def _terms(terms: Mapping[str, float], value: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for name, words in _TERMS.items():
        table.add_row(f"{terms[name]:+.3f}".replace("-", "−"), words)
    table.add_row(f"{value:+.3f}".replace("-", "−"), Text("the logit", style="bold"))
    return table


def _completeness(found: Mapping[str, Any]) -> str:
    gap = "" if found["gap"] is None else f", a gap of {percent(found['gap'])}"
    verdict = "" if found["is_complete"] else ": NOT complete"
    return (
        f"contributions add up to {decimal(found['total'])} of {decimal(found['difference'])}, which the logit loses "
        f"without all features{gap}, with {found['num_steps']} steps{verdict}"
    )
