"""``saescope export``: features in the format of another tool, or as pages that need no server."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

export = typer.Typer(help="Write features for another tool, or as pages.", no_args_is_help=True)


class Visibility(StrEnum):
    """Who may see it on the site."""

    PUBLIC = "PUBLIC"
    UNLISTED = "UNLISTED"
    PRIVATE = "PRIVATE"


class BandKind(StrEnum):
    """Which bands the drawn examples stand for."""

    width = "width"
    quantile = "quantile"


@export.callback()
def _group() -> None:
    """Write features for another tool, or as pages."""


@export.command("neuronpedia")
def neuronpedia(
    dictionary: Annotated[str, typer.Argument(help="Name in the store.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not be there yet.")],
    model_id: Annotated[str, typer.Option(help="Neuronpedia's name of the model, such as gpt2-small.")],
    layer: Annotated[int | None, typer.Option(min=0, help="Layer that the dictionary reads.")] = None,
    source_set: Annotated[
        str | None, typer.Option("--set", help="Set of dictionaries that it belongs to, such as res-mine.")
    ] = None,
    source_id: Annotated[
        str | None, typer.Option(help="In place of --layer and --set: both, such as 6-res-mine.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the dictionary or its run: adds decoder rows, for steering."),
    ] = None,
    bands: Annotated[BandKind, typer.Option(help="Bands to export.")] = BandKind.width,
    release: Annotated[str | None, typer.Option(help="Name of the release (default: the set's).")] = None,
    description: Annotated[str, typer.Option(help="What the set is.")] = "",
    creator: Annotated[str, typer.Option(help="Who made it.")] = "",
    email: Annotated[str | None, typer.Option(help="Whom to write to.")] = None,
    url: Annotated[list[str] | None, typer.Option(help="Page about it; may be given several times.")] = None,
    hf_repo: Annotated[str | None, typer.Option(help="Hub id of the repository that has the weights.")] = None,
    hf_folder: Annotated[str | None, typer.Option(help="Folder in that repository.")] = None,
    num_layers: Annotated[int, typer.Option(min=0, help="Of a model that the site does not know.")] = 0,
    neurons_per_layer: Annotated[int, typer.Option(min=0, help="Of a model that the site does not know.")] = 0,
    model_owner: Annotated[str, typer.Option(help="Of a model that the site does not know.")] = "",
    visibility: Annotated[Visibility, typer.Option(help="Who may see it.")] = Visibility.UNLISTED,
) -> None:
    """Write an analysis in Neuronpedia's bulk layout: features, activations, explanations, and what they belong to."""
    from rich.console import Console

    from saescope.cli.progress import progress
    from saescope.formats import export_neuronpedia
    from saescope.store import Store

    console = Console()
    with Store.open(store, must_exist=True) as opened:
        name = opened.dictionary(dictionary).name
        looked_at = opened.analysis(name, analysis).name
        total = opened.count(name, analysis=looked_at)
        vectors = None if weights is None else _decoder_rows(weights, opened.dictionary(name).d_sae)
        with progress(console, "exporting", "features") as update:
            written = export_neuronpedia(
                opened,
                folder,
                name=name,
                analysis=looked_at,
                model_id=model_id,
                source_id=source_id,
                layer=layer,
                source_set=source_set,
                release=release,
                description=description,
                creator_name=creator,
                creator_email=email,
                urls=url or (),
                hf_repo=hf_repo,
                hf_folder=hf_folder,
                num_layers=num_layers,
                neurons_per_layer=neurons_per_layer,
                model_owner=model_owner,
                visibility=visibility.value,
                bands=bands.value,
                vectors=vectors,
                progress=lambda done: update(done, total, ""),
            )
    console.print(
        f"{written.num_features:,} features, {written.num_activations:,} examples and {written.num_explanations:,} "
        f"explanations written to {written.folder}\non the site they will be at {written.url}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _decoder_rows(folder: Path, d_sae: int) -> Callable[[int], list[float]]:
    from saescope.cli.opening import find_dictionary, open_dictionary

    opened = open_dictionary(find_dictionary(folder))
    rows = opened.W_dec.detach().float()
    if rows.ndim != 2 or len(rows) != d_sae:
        raise ValueError(
            f"{folder} has decoder rows of shape {list(rows.shape)}, but the dictionary in the store has {d_sae} "
            "features with one row each; name the folder that was analysed, or leave --weights out"
        )
    return lambda index: rows[index].tolist()


@export.command("html")
def html(
    out: Annotated[Path, typer.Option(metavar="FOLDER|FILE.html", help="Where: a folder of pages, or one file.")],
    dictionary: Annotated[str | None, typer.Argument(help="Name in the store, if it holds several.")] = None,
    features: Annotated[
        str, typer.Option(metavar="1,2,5-9|all|FILE", help="Which; a file has numbers with blanks or commas between.")
    ] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many of them, by index.")] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write features as pages that open without a server: to pass on, or to keep."""
    from rich.console import Console

    from saescope.cli.indices import parse_indices
    from saescope.cli.progress import progress
    from saescope.store import Store
    from saescope.web.export import export_file, export_folder

    console = Console()
    with Store.open(store, must_exist=True) as opened:
        record = opened.dictionary(dictionary)
        chosen = parse_indices(features, record.d_sae)
        if chosen is None:
            chosen = opened.order(record.name, analysis=analysis, sort="index", descending=False)
        chosen = sorted(set(chosen))[:limit]
        write = export_file if out.suffix.lower() in (".html", ".htm") else export_folder
        with progress(console, "exporting", "features") as update:
            written = write(
                opened,
                out,
                name=record.name,
                indices=chosen,
                analysis=analysis,
                overwrite=overwrite,
                progress=lambda done: update(done, len(chosen), ""),
            )
    console.print(
        f"{written.num_features:,} feature{'' if written.num_features == 1 else 's'}, {_size(written.num_bytes)}; "
        f"open {written.path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.0f} kB"
