"""``saescope list``: what others have published."""

from __future__ import annotations

from typing import Annotated

import typer

list_ = typer.Typer(help="What there is: published dictionaries.", no_args_is_help=True)


@list_.callback()
def _group() -> None:
    """What there is: published dictionaries."""


@list_.command("pretrained")
def pretrained(
    release: Annotated[str | None, typer.Argument(help="A release, to list its dictionaries one by one.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model, such as gemma-2-2b.")] = None,
    hook: Annotated[
        str | None, typer.Option(metavar="HOOK", help="Only at this hook point, or part of its name: resid_post.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every dictionary in one JSON document.")] = False,
) -> None:
    """List dictionaries that others have trained and published: releases, or those of one RELEASE.

    Every command opens them by release and id, as in gpt2-small-res-jb/blocks.8.hook_resid_pre, or by the id of their page
    at Neuronpedia, as in gpt2-small/8-res-jb. No network is needed for the list.
    """
    from rich.console import Console

    from saescope.cli.printing import print_json
    from saescope.cli.views.published import dictionaries_view, releases_view
    from saescope.formats import registry

    if release is not None and not registry.release(release):
        near = ", ".join(registry.nearest_releases(release)) or "saescope list pretrained lists them"
        raise ValueError(f"no release is named {release}; nearest: {near}")
    found = registry.published(model=model or "", hook=hook or "")
    if release is not None:
        found = [each for each in found if each.release == release]
    if not found:
        said = {"release": release, "model": model, "hook": hook}
        what = ", ".join(f"{name} {value}" for name, value in said.items() if value)
        raise ValueError(f"nothing is published with {what}; leave one out to see what there is")
    if as_json:
        print_json({"made_from": registry.made_from(), "dictionaries": [each.as_json() for each in found]})
        return
    console = Console()
    console.print(releases_view(found) if release is None else dictionaries_view(found))
    if release is None:
        releases = len({each.release for each in found})
        of = f"{len(found):,} dictionaries of {releases} {'release' if releases == 1 else 'releases'}"
        console.print(f"{of}; one by one: saescope list pretrained {found[0].release}", highlight=False, soft_wrap=True)
