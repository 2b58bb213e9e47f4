"""``saescope store``: look after a store: what is in it, bring in, hand on, throw away."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

store = typer.Typer(help="Look after a store: what is in it, bring in, hand on, delete.", no_args_is_help=True)

_STORE = typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
_OVERWRITE = typer.Option("--overwrite", help="Replace analyses that have the same name.")


class Source(StrEnum):
    """Whose files to import."""

    saescope = "saescope"
    lm_saes = "lm-saes"
    neuronpedia = "neuronpedia"


@store.callback()
def _group() -> None:
    """Look after a store: what is in it, bring in, hand on, delete."""


@store.command("info")
def info(
    store: Annotated[str | None, _STORE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """What a store holds, where it is, and how large it is."""
    from dataclasses import asdict

    from rich.console import Console

    from saescope.cli.printing import print_json
    from saescope.cli.views import store_view
    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        found = opened.info()
    if as_json:
        print_json(asdict(found))
    else:
        Console().print(store_view(found))


@store.command("merge")
def merge(
    others: Annotated[list[str], typer.Argument(help="Other stores: files or databases.")],
    store: Annotated[str | None, _STORE] = None,
    overwrite: Annotated[bool, _OVERWRITE] = False,
) -> None:
    """Bring all dictionaries of other stores into this one; the others stay as they are."""
    from saescope.store import Store

    for other in others:  # a mistake in the last one is found before the first is read
        Store.open(other, must_exist=True).close()
    with Store.open(store) as opened:
        for other in others:
            names = opened.take(other, overwrite=overwrite)
            typer.echo(f"from {other}: {', '.join(names)}")


@store.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="An exported file, or the folder of a foreign format.")],
    source: Annotated[
        Source, typer.Option("--from", help="Whose format: saescope, lm-saes (a mongodump), neuronpedia.")
    ] = Source.saescope,
    store: Annotated[str | None, _STORE] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dictionary in this store (default: its own).")] = None,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    sae: Annotated[str | None, typer.Option(help="lm-saes: which dictionary, if the dump has several.")] = None,
    series: Annotated[str | None, typer.Option(help="lm-saes: the dictionary's series.")] = None,
    analysis: Annotated[str | None, typer.Option(help="lm-saes: which analysis, if there are several.")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DATA", help="lm-saes: data set with the text, of that name in the dump."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="lm-saes: folder or hub id of the tokenizer.")] = None,
    context_size: Annotated[int | None, typer.Option(min=1, help="lm-saes: tokens of a window.")] = None,
    num_tokens: Annotated[
        int | None, typer.Option(min=1, help="lm-saes: tokens analysed, for a dump that does not say.")
    ] = None,
    split: Annotated[str, typer.Option(help="lm-saes: split of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="lm-saes: column that holds the text.")] = "text",
    prepend_bos: Annotated[
        bool, typer.Option("--bos/--no-bos", help="lm-saes: windows began with the special token.")
    ] = True,
) -> None:
    """Bring in an exported analysis, or features that another tool made.

    Language-Model-SAEs keeps features in MongoDB, and mongodump writes them to a folder. Their text is not among them: it is
    read once from --dataset with --tokenizer and --context-size, and stored.
    """
    from saescope.store import Store

    for_lm_saes = {
        "--sae": sae, "--series": series, "--analysis": analysis, "--dataset": dataset, "--tokenizer": tokenizer,
        "--context-size": context_size, "--num-tokens": num_tokens,
    }  # fmt: skip
    given = [option for option, value in for_lm_saes.items() if value is not None]
    if given and source is not Source.lm_saes:
        raise ValueError(f"{' and '.join(given)} only mean something with --from lm-saes")
    if source is Source.saescope:
        with Store.open(path, must_exist=True) as exported:
            own = exported.dictionary().name if name else ""
        with Store.open(store) as opened:
            names = opened.take(path, rename={own: name} if name else None, overwrite=overwrite)
        typer.echo(f"from {path}: {', '.join(names)}")
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; name the folder with the files of {source.value}")
    try:
        if source is Source.neuronpedia:
            from saescope.formats import read_neuronpedia

            found: Any = read_neuronpedia(path, name=name)
        else:
            from saescope.cli.foreign import dataset_texts
            from saescope.formats import read_lm_saes

            texts = dataset_texts(dataset, tokenizer, context_size, split=split, column=column, prepend_bos=prepend_bos)
            found = read_lm_saes(
                path, sae=sae, series=series, analysis=analysis, name=name, texts=texts, num_tokens=num_tokens
            )
        with Store.open(store) as opened:
            found.write_to(opened, overwrite=overwrite)
    except ImportError as error:  # an optional package; it says which
        raise ValueError(str(error)) from error
    for remark in found.remarks:
        typer.echo(remark)
    typer.echo(f"from {path}: {found.dictionary.name}\nnext: saescope features {found.dictionary.name}")


@store.command("export")
def export(
    dictionary: Annotated[str, typer.Argument(help="Name in the store.")],
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    store: Annotated[str | None, _STORE] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of the analysis (default: the newest).")] = None,
) -> None:
    """Write an analysis, and what people added to its features, to one file.

    The file is a store itself: every command opens it, and `saescope store import` brings it into another store.
    """
    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        opened.export(file, dictionary, analysis)
    typer.echo(f"{dictionary} written to {file}")


@store.command("delete")
def delete(
    dictionary: Annotated[str, typer.Argument(help="Name in the store.")],
    store: Annotated[str | None, _STORE] = None,
    analysis: Annotated[str | None, typer.Option(help="Only this analysis; the last one takes all with it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a dictionary with all that was written about its features, or one of its analyses."""
    import sys

    from saescope.store import Store

    with Store.open(store, must_exist=True) as opened:
        analyses = [record.name for record in opened.analyses(dictionary)]
        if analysis is not None:
            opened.analysis(dictionary, analysis)  # or it says which there are
        if analysis is None or analyses == [analysis]:
            what = f"{dictionary} with its analyses ({', '.join(analyses)}) and all that was written about its features"
        else:
            what = f"the analysis {analysis} of {dictionary}"
        if not yes:
            if not sys.stdin.isatty():
                raise ValueError(f"this would delete {what}; where nobody can be asked, pass --yes")
            if not typer.confirm(f"Delete {what}?"):
                typer.echo("nothing was deleted")
                raise typer.Exit(1)
        opened.delete(dictionary, analysis)
    typer.echo(f"deleted {what}")
