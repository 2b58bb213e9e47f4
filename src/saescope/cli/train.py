"""``saescope train``: a recipe in, a dictionary out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        list[str], typer.Argument(help="Recipes in TOML, or names of those that come with saescope (demo).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the run, or of all runs. \\[default: runs/NAME]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override, e.g. training.lr=1e-3.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
) -> None:
    """Train a dictionary as a recipe says; or, with several recipes, their dictionaries in one pass.

    The folder gets run.json (the resolved recipe), metrics.jsonl, checkpoints and the finished dictionary. Several
    recipes share model, text and batches; each run gets a folder of its name, and ends as it would have alone. Ctrl-C
    ends the step in hand and saves it.
    """
    from rich.console import Console

    from saescope.cli.folders import prepare_folder
    from saescope.cli.plugin import load_plugins
    from saescope.cli.recipe import load_recipe
    from saescope.cli.training import check_shared, train_runs

    load_plugins(plugin)
    configs = [load_recipe(name, override or []) for name in recipe]
    check_shared(configs)
    paths = [output] if output and len(configs) == 1 else [(output or Path("runs")) / c.name for c in configs]
    folders = [
        prepare_folder(path, config.as_dict(), overwrite=overwrite, resume=resume)
        for path, config in zip(paths, configs, strict=True)
    ]
    console = Console()
    train_runs(configs, folders, console, resume=resume)
    for folder in folders:
        console.print(
            f"dictionary: {folder.dictionary}\nnext: saescope eval {folder.path}", highlight=False, soft_wrap=True
        )
