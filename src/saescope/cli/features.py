"""``saescope features``: the features of a dictionary as a table, or as JSON."""

from __future__ import annotations

from typing import Annotated

import typer


def features(
    dictionary: Annotated[str | None, typer.Argument(help="Name in the store, if it holds several.")] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
    sort: Annotated[
        str, typer.Option(help="Any statistic: density, max_activation, logit_kurtosis, precision, lift, index, ...")
    ] = "density",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where a list ended; it printed the cursor.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FILTER", help="'density>=0.001', '2<=lift<=5'; all of several must hold."),
    ] = None,
    min_density: Annotated[float | None, typer.Option(help="Leave out features that fire less often.")] = None,
    max_density: Annotated[float | None, typer.Option(help="Leave out features that fire more often.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words of labels, explanations and tokens of examples.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only features with this tag.")] = None,
    bookmarked: Annotated[bool, typer.Option("--bookmarked", help="Only bookmarked features.")] = False,
    dead: Annotated[bool, typer.Option("--dead", help="Only features that never fired.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, its numbers as stored.")] = False,
) -> None:
    """List features: density, strength, label, and the statistic they are sorted by."""
    from typing import Any

    from rich.console import Console

    from saescope.cli.filters import parse_filters
    from saescope.cli.printing import print_json
    from saescope.cli.views import features_view
    from saescope.store import Store
    from saescope.store.records import LABEL_NUMBERS, NUMBERS
    from saescope.web.page_json import feature_as_json

    filters = list(where or [])
    filters += [] if min_density is None else [f"density>={min_density}"]
    filters += [] if max_density is None else [f"density<={max_density}"]
    filters += ["num_firings=0"] if dead else []
    ranges = parse_filters(filters, ("index", *NUMBERS, *LABEL_NUMBERS))
    chosen: dict[str, Any] = {"where": ranges, "search": search, "tag": tag, "bookmarked": bookmarked}
    with Store.open(store, must_exist=True) as opened:
        name = opened.dictionary(dictionary).name
        looked_at = opened.analysis(name, analysis).name
        found = opened.features(
            name, analysis=looked_at, sort=sort, descending=not ascending, limit=limit, after=after, **chosen
        )
        num_fitting = opened.count(name, analysis=looked_at, **chosen)
    if as_json:
        document = {
            "dictionary": name,
            "analysis": looked_at,
            "sort": sort,
            "descending": not ascending,
            "num_fitting": num_fitting,
            "features": [feature_as_json(record) for record in found.features],
            "next": found.next,
        }
        print_json(document)
        return
    console = Console()
    if not found.features:
        nothing = "this is the end of the list" if num_fitting else f"no feature of {name} fits; loosen the filters"
        console.print(nothing, markup=False, highlight=False)
        return
    console.print(features_view(found.features, shown=[sort, *ranges]))
    console.print(f"{len(found.features):,} of {num_fitting:,} features", highlight=False)
    if found.next is not None:
        console.print(f"next: --after {found.next}", markup=False, highlight=False, soft_wrap=True)
