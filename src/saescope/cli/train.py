"""``saescope train``: a recipe in, a dictionary out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe in TOML, or the name of one that comes with saescope (demo).")
    ],
    output: Annotated[Path | None, typer.Option("--output", help="Folder of the run. [default: runs/NAME]")] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override, e.g. training.lr=1e-3.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
) -> None:
    """Train a dictionary as a recipe says.

    The folder gets run.json (the resolved recipe), metrics.jsonl, checkpoints and the finished dictionary.
    """
    from rich.console import Console

    from saescope.cli.folders import prepare_folder
    from saescope.cli.plugin import load_plugins
    from saescope.cli.recipe import load_recipe
    from saescope.cli.run import train_run

    load_plugins(plugin)
    config = load_recipe(recipe, override or [])
    folder = prepare_folder(output or Path("runs") / config.name, config.as_dict(), overwrite=overwrite, resume=resume)
    console = Console()
    train_run(config, folder, console, resume=resume)
    console.print(
        f"dictionary: {folder.dictionary}\nnext: saescope eval {folder.path}", highlight=False, soft_wrap=True
    )
