"""``saescope info``: what a dictionary is, and whether it does on data what it should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from saescope.evaluation.loading_check import LoadingCheck
    from saescope.formats.foreign import Foreign


def info(
    ref: Annotated[str, typer.Argument(help="Folder, file, or another reference of a dictionary.")],
    check: Annotated[
        bool, typer.Option("--check", help="Measure on the model that it names whether it was opened as it should.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Measure on this model.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one it names.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set. \\[default: held_out]")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. \\[default: text]")] = None,
    num_tokens: Annotated[int, typer.Option(min=64, help="Tokens to measure on.")] = 4096,
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Format of the files. \\[default: what it is]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="What its files do not say, e.g. k=32.")
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Let keys of configurations be that are not known here.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON document.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
) -> None:
    """What a dictionary is: format, function, size, model, hook point, and what was decided on opening it.

    Read from the headers of its files alone. With --check or --model it is run on text: L0, explained variance and loss
    recovered beside what was published, and what looks wrong (scale, layer, centring, BOS) in words.
    """
    from rich.console import Console
    from rich.table import Table

    from saescope.cli.overrides import overrides_of
    from saescope.cli.plugin import load_plugins
    from saescope.cli.printing import print_json
    from saescope.formats.description import description_lines, description_of
    from saescope.formats.loading import read_foreign

    load_plugins(plugin)
    how = {"format": from_format, "lenient": lenient, **overrides_of(override)}
    description = description_of(read_foreign(ref, shapes_only=True, **how))
    console = Console(stderr=as_json)
    if not as_json:
        table = Table.grid(padding=(0, 2))
        for name, words in description_lines(description):
            table.add_row(_plain(name), _plain(words))
        console.print(table)
    if check or model:
        chosen = {"model": model, "hook_point": hook_point, "dataset": dataset, "split": split, "column": column}
        found = _checked(ref, read_foreign(ref, **how), description, chosen, num_tokens, console)
        description["check"] = found.as_dict()
        if not as_json:
            for line in found.lines():
                console.print(_plain(line), soft_wrap=True)
    if as_json:
        print_json(description)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _checked(
    ref: str,
    foreign: Foreign,
    description: dict[str, Any],
    chosen: dict[str, str | None],
    num_tokens: int,
    console: Console,
) -> LoadingCheck:
    from dataclasses import replace

    from saescope.cli.run import load_model, load_windows
    from saescope.cli.setting import setting_of
    from saescope.evaluation.loading_check import check_loading
    from saescope.formats.description import published_claims
    from saescope.formats.loading import build

    metadata = {**foreign.metadata, "saescope": foreign.metadata.get("saescope") or {}}
    metadata.setdefault("hook_name", metadata.get("hf_hook_name"))
    setting = setting_of(Path(ref), metadata, **chosen)
    if setting.held_out is None:
        raise ValueError(f"{ref}: which split of {setting.dataset.name} is text to measure on? Name it with --split")
    model = load_model(setting.model)
    context_size = min(setting.windows.context_size, model.context_size or setting.windows.context_size)
    windows = replace(setting.windows, context_size=context_size, max_tokens=8 * num_tokens)
    with console.status("measuring"):
        return check_loading(
            build(foreign),
            model,
            load_windows(model, setting.held_out, windows, console),
            setting.reads[0] if len(setting.reads) == 1 else setting.reads,
            setting.hook_point_out or None,
            num_tokens=num_tokens,
            claims=published_claims(description),
        )
