"""``saescope analyze``: what every feature does, into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    dictionary: Annotated[Path, typer.Argument(help="A dictionary's folder, or the folder of a run.")],
    store: Annotated[
        str | None, typer.Option(help="File or database. [default: $SAESCOPE_STORE or features.db]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store. [default: the run's]")] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one of its run.")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. [default: text]")] = None,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to analyze. [default: the run's]")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the name in the store.")] = False,
) -> None:
    """Read a text through a dictionary and store what each feature does: numbers, contexts, logits, a label."""
    from dataclasses import replace

    from rich.console import Console

    from saescope.cli.folders import find_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.run import analyze_run, load_model, load_windows
    from saescope.cli.setting import setting_of
    from saescope.dictionaries import load_dictionary, read_metadata
    from saescope.store import Store

    load_plugins(plugin)
    path = find_dictionary(dictionary)
    setting = setting_of(path, read_metadata(path), model=model, hook_point=hook_point, dataset=dataset, column=column)
    if num_tokens:
        setting = replace(setting, analysis=replace(setting.analysis, num_tokens=num_tokens))
    name = name or (setting.run or {}).get("name") or path.name
    console = Console()
    with Store.open(store) as opened_store:
        opened = load_dictionary(path)
        network = load_model(setting.model)
        windows = load_windows(network, setting.dataset, setting.windows, console)
        held_out = load_windows(network, setting.held_out, setting.windows, console) if setting.held_out else None
        record = analyze_run(
            setting, opened, network, windows, held_out, opened_store, console, name=name, overwrite=overwrite
        )
    console.print(
        f"{record.d_sae:,} features of {name} stored\nnext: saescope features {name}", highlight=False, soft_wrap=True
    )
