"""Lists of a feature's page as HTML, built by hand: a template would escape each of their hundreds of values in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from saescope.store.records import Neighbour, TokenLogit
from saescope.web.example_html import shown
from saescope.web.numbers import decimal, whole


def logit_items(tokens: Sequence[TokenLogit], furthest: float) -> Markup:
    """Items of tokens with their logit effects; a bar of full width stands for `furthest`."""
    return Markup(
        "".join(
            f'<li style="--w:{100 * abs(token.logit) / furthest if furthest else 0:.4g}%">'
            f'<span class="token" title="{token.logit} · token {token.token_id}">{shown(token.text)}</span> '
            f'<span class="n">{decimal(token.logit, 3, trim=False)}</span></li>\n'
            for token in tokens
        )
    )


def neighbour_items(
    neighbours: Sequence[Neighbour], unit: str, name: str, labels: dict[int, str], links: Any, query: dict[str, Any]
) -> Markup:
    """Items of other features with their labels and how near they are, in `unit`; with links where they have pages."""
    parts = []
    for neighbour in neighbours:
        address = links.feature(name, neighbour.feature, **query)
        both = "" if neighbour.num_both is None else f", {whole(neighbour.num_both)} tokens on which both fire"
        tag, end = (f'<a data-keeps href="{escape(address)}">', "</a>") if address else ("<span>", "</span>")
        parts.append(
            f'<li><span class="n" title="{unit} {neighbour.value}{both}">{decimal(neighbour.value, 3, trim=False)}</span> '
            f'{tag}<span class="index">{neighbour.feature}</span> {_label(labels.get(neighbour.feature))}{end}</li>\n'
        )
    return Markup("".join(parts))


def _label(text: str | None) -> str:
    return '<span class="unlabelled">unlabelled</span>' if text is None else f"<bdi>{shown(text)}</bdi>"
