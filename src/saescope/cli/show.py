"""``saescope show``: one thing from the store, in the terminal or as JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from saescope.store import Store
    from saescope.store.records import FeaturePage

show = typer.Typer(help="Show one thing from the store.", no_args_is_help=True)

_BAND = re.compile(r"(?P<kind>quantile|width)(:(?P<number>\d+))?")


@show.callback()
def _group() -> None:
    """Show one thing from the store."""


@show.command("feature")
def show_feature(
    dictionary: Annotated[str, typer.Argument(help="Name in the store.")],
    index: Annotated[int, typer.Argument(min=0, help="Number of the feature.")],
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Contexts to show.")] = 8,
    band: Annotated[
        str, typer.Option(metavar="BAND", help="Samples by strength: quantile, width, none, or one band: quantile:3.")
    ] = "quantile",
    before: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tokens before the peak (default: what fits).")
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tokens after the peak (default: what fits).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything the store has, as one JSON document.")] = False,
    link: Annotated[
        str | None, typer.Option(metavar="BASE", help="Address of the pages (default: $SAESCOPE_PAGES).")
    ] = None,
) -> None:
    """A feature: label, numbers, histogram, logits, neighbours, and contexts of every strength."""
    import os

    from rich.console import Console

    from saescope.cli.printing import print_json
    from saescope.cli.views import page_view
    from saescope.store import Store
    from saescope.web.page_json import page_as_json

    kind, number = _parse_band(band)
    with Store.open(store, must_exist=True) as opened:
        page = opened.page(dictionary, index, analysis=analysis)
        labels = {} if as_json else _neighbour_labels(opened, page)
    if as_json:
        print_json(page_as_json(page))
        return
    base = link or os.environ.get("SAESCOPE_PAGES")
    view = page_view(
        page,
        labels=labels,
        max_examples=examples,
        max_band_examples=min(2, examples),
        band_kind=kind,
        band_number=number,
        window_before=before,
        window_after=after,
        link=_address(base, page) if base else None,
    )
    Console().print(view)


@show.command("dictionary")
def show_dictionary(
    dictionary: Annotated[str | None, typer.Argument(help="Name in the store, if it holds several.")] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, its numbers as stored.")] = False,
) -> None:
    """A dictionary: what it reads, how many features are dead or dense, how often they fire, how good it is."""
    from dataclasses import asdict

    from rich.console import Console

    from saescope.cli.printing import print_json
    from saescope.cli.views import dictionary_view
    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        summary = opened.summary(dictionary, analysis=analysis)
    if as_json:
        print_json(asdict(summary))
        return
    Console().print(dictionary_view(summary))


def _parse_band(written: str) -> tuple[str | None, int | None]:
    if written == "none":
        return None, None
    match = _BAND.fullmatch(written)
    if match is None:
        raise ValueError(f"--band is quantile, width, none, or one band such as quantile:3, not {written!r}")
    return match["kind"], None if match["number"] is None else int(match["number"])


def _neighbour_labels(store: Store, page: FeaturePage) -> dict[int, str]:
    """Labels of the neighbours that the page names."""
    from saescope.cli.views.feature import shown_neighbours

    wanted = {neighbour.feature for kind in shown_neighbours(page.detail).values() for neighbour in kind}
    return store.labels(page.dictionary.name, wanted, analysis=page.analysis.name)


def _address(base: str, page: FeaturePage) -> str:
    return f"{base.rstrip('/')}/{quote(page.dictionary.name, safe='')}/f/{page.feature.index}"
