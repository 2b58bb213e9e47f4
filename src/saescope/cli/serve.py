"""``saescope serve``: the pages of a store in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from saescope.store import Store
    from saescope.web.spread import Readers


def serve(
    store: Annotated[
        str | None, typer.Option(help="File or database (default: $SAESCOPE_STORE, else features.db).")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Model of a dictionary, or of all, where it is not what the store says; repeatable.",
        ),
    ] = None,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Where the weights of a dictionary lie, if not where they were; repeatable."
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Folder with training runs to show; repeatable.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 24576,
    token: Annotated[
        str | None, typer.Option(help="What requests must know. \\[default: made up, if others can reach the server]")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0, max=64, help="Processes that draw pages beside this one. \\[default: one per core, at most 4]"
        ),
    ] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="Only show; texts can not be tried.")] = False,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL#MODEL", help="For search by meaning: a local encoder, or an OpenAI-compatible endpoint."
        ),
    ] = None,
) -> None:
    """Browse, search, try and steer features in the browser, from this machine alone."""
    import os
    import secrets
    from contextlib import ExitStack
    from urllib.parse import quote

    if token is not None and not token.strip():
        raise ValueError(
            "--token is empty, which would let everybody in; give one, or leave it out to have one made up"
        )
    if no_models and (model or dictionary):
        raise ValueError("--no-models leaves nothing for --model and --dictionary to do")
    for folder in runs or ():
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} to look for training runs in")

    from saescope.store import Store
    from saescope.web.app import create_app
    from saescope.web.server import address_of, bound, is_loopback
    from saescope.web.server import serve as run_server

    with ExitStack() as stack:
        opened = stack.enter_context(Store.open(store, must_exist=True))
        place = stack.enter_context(bound(host, port))
        if token is None and not is_loopback(place):
            token = secrets.token_urlsafe(24)
        live: Any = None
        if not no_models:
            live = _networks(opened, model, dictionary)
            stack.callback(live.close)
        embed = _embedder(opened, embedder)
        readers = _readers(store, min(4, os.cpu_count() or 1) if processes is None else processes)
        if readers is not None:
            stack.callback(readers.close)
        app = create_app(
            opened,
            live=live,
            run_folders=runs or (),
            token=token,
            embedder=embedder if embed else None,
            embed=embed,
            readers=readers,
        )
        address = address_of(place) + (f"?token={quote(token, safe='')}" if token else "")
        run_server(
            app,
            place,
            ready=lambda: typer.echo(f"{address} (Ctrl+C stops)"),
            stopping=live.close if live else lambda: None,
        )


def _readers(store: str | None, number: int) -> Readers | None:
    from saescope.web.spread import Readers

    return Readers(store, number) if number else None


def _networks(store: Store, models: list[str] | None, dictionaries: list[str] | None) -> Any:
    from saescope.web.whereabouts import options_by_name

    records = store.dictionaries()
    names = [record.name for record in records]
    of_models = options_by_name(models or (), [*names, *(record.model for record in records)])
    sources = options_by_name(dictionaries or (), names)
    if "" in sources:
        raise ValueError(
            f"--dictionary takes NAME=PATH; got {sources['']!r}, which does not say which dictionary it is"
        )
    from saescope.web.network import Networks

    return Networks(store, models=of_models, sources=sources)


def _embedder(store: Store, given: str | None) -> Any:
    """The embedder, with a vector for every explanation that had none."""
    if given is None:
        return None
    from rich.console import Console

    from saescope.web.embedding import make_embedder

    embed = make_embedder(given)
    with Console(stderr=True).status(f"vectors of explanations from {given}"):
        count = sum(store.embed(record.name, given, embed) for record in store.dictionaries())
    if count:
        typer.echo(f"{count:,} {'explanation has' if count == 1 else 'explanations have'} a vector now")
    return embed
