"""What was changed, both texts side by side, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import MUTED, plain_table, visible
from saescope.web.numbers import decimal, whole

_KINDS = {"add": "add", "clamp": "clamp", "ablate": "remove"}
_PLACES = {
    "all": "all tokens but special ones",
    "prompt": "the prompt's tokens but special ones",
    "generated": "the generated tokens but special ones",
}


def steering_view(document: Mapping[str, Any]) -> RenderableType:
    """The document of ``saescope steer``, in 80 columns."""
    parts: list[RenderableType] = [_changes(document)]
    parts += [_search(document["search"])] if document["search"] else []
    return Group(*parts, _pairs(document["texts"]), _numbers(document))


def _changes(document: Mapping[str, Any]) -> Text:
    text = Text()
    for change in document["changes"]:
        strength = "" if change["kind"] == "ablate" else f", {_strength(change)}"
        text.append(f"{_KINDS[change['kind']]} feature {change['feature']}", "bold").append(f"{strength}\n")
        if change["label"]:
            text.append(f"  {visible(change['label'])}\n")
    return text.append(f"{document['name']} at {document['hook_point']}, {_PLACES[document['positions']]}", MUTED)


def _strength(change: Mapping[str, Any]) -> str:
    if change["max_activation"] is None:
        return f"strength {decimal(change['activation'])} (an activation)"
    return (
        f"strength {decimal(change['strength'])} × maximum {decimal(change['max_activation'])} = "
        f"{decimal(change['activation'])}"
    )


def _search(search: Mapping[str, Any]) -> Text:
    tried = f"{whole(len(search['tried']))} strengths tried"
    if search["met"]:
        within = f"{100 * search['tolerance']:g} %"
        return Text(f"strength found for a KL of {decimal(search['wanted_kl'])} within {within}; {tried}", MUTED)
    return Text(f"not found: {search['reason']}; {tried}", "bold red")


def _pairs(texts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, expand=True)
    table.add_column("prompt", no_wrap=True)
    for side in ("plain", "steered"):
        table.add_column(side, ratio=1, overflow="fold")
    for number, text in enumerate(texts):
        sides = [_written(text["prompt"], text[side]) for side in ("plain", "steered")]
        table.add_row(str(number), *sides, end_section=True)
    return table


def _written(prompt: str, side: Mapping[str, Any]) -> Text:
    shown = Text(_lines(prompt), MUTED)
    shown.append(_lines(side["text"]), "not dim")
    if side["ended"]:
        shown.append(" (end)", MUTED)
    return shown


def _lines(text: str) -> str:
    """Line ends stay, all else that has no shape is a code."""
    return "\n".join(visible(line).replace("⇥", "    ") for line in text.replace("\r\n", "\n").split("\n"))


def _numbers(document: Mapping[str, Any]) -> Table:
    table = plain_table()
    table.add_column("prompt")
    for name in ("KL(steered || plain)", "perplexity, plain", "perplexity, steered"):
        table.add_column(name, justify="right")
    rows = [(f"{number}", text) for number, text in enumerate(document["texts"])]
    if len(rows) > 1:
        rows.append(("all", document))
    for name, row in rows:
        numbers = (row["kl_per_token"], row["perplexity_plain"], row["perplexity_steered"])
        table.add_row(name, *["beyond all numbers" if number is None else decimal(number) for number in numbers])
    table.caption = "KL in nats per generated token, along the steered text; perplexities under the plain model"
    table.caption_justify = "left"
    return table
