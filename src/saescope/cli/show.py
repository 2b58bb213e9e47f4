"""``saescope show``: one thing from the store, in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

show = typer.Typer(help="Show one thing from the store.", no_args_is_help=True)


@show.callback()
def _group() -> None:
    """Show one thing from the store."""


@show.command("feature")
def show_feature(
    dictionary: Annotated[str, typer.Argument(help="Name in the store.")],
    index: Annotated[int, typer.Argument(min=0, help="Number of the feature.")],
    store: Annotated[
        str | None, typer.Option(help="File or database. [default: $SAESCOPE_STORE or features.db]")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Contexts to show.")] = 8,
) -> None:
    """A feature: label, density, histogram, logits, and the contexts in which it peaks."""
    from rich.console import Console

    from saescope.cli.views import feature_view
    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        page = opened.page(dictionary, index)
    Console().print(feature_view(page, max_examples=examples))
