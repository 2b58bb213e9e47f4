"""``saescope features``: the features of a dictionary as a table."""

from __future__ import annotations

from typing import Annotated

import typer


def features(
    dictionary: Annotated[str | None, typer.Argument(help="Name in the store, if it holds several.")] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database. [default: $SAESCOPE_STORE or features.db]")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="Column to sort by, e.g. density, max_activation, precision, index.")
    ] = "density",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Rows to pass over.")] = 0,
    min_density: Annotated[float | None, typer.Option(help="Leave out features that fire less often.")] = None,
    max_density: Annotated[float | None, typer.Option(help="Leave out features that fire more often.")] = None,
    search: Annotated[str | None, typer.Option(help="Show features whose label contains this.")] = None,
) -> None:
    """List features: density, strength, label."""
    from rich.console import Console

    from saescope.cli.views import features_view
    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        name = opened.dictionary(dictionary).name
        found = opened.features(
            name,
            sort=sort,
            descending=not ascending,
            limit=limit,
            offset=offset,
            min_density=min_density,
            max_density=max_density,
            search=search,
        )
    console = Console()
    console.print(features_view(found) if found else f"no feature of {name} fits; loosen the filters")
