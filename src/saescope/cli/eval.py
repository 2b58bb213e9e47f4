"""``saescope eval``: how good is a dictionary?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    dictionary: Annotated[Path, typer.Argument(help="A dictionary's folder, or the folder of a run.")],
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one of its run.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set. \\[default: held_out]")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. \\[default: text]")] = None,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to evaluate on. \\[default: the run's]")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Measure reconstruction, sparsity and what the model loses, on text that training has not seen."""
    from rich.console import Console

    from saescope.cli.folders import find_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.run import evaluate_run, load_model, load_windows, numbers_of, write_evaluation
    from saescope.cli.setting import setting_of
    from saescope.cli.views import evaluation_view
    from saescope.dictionaries import load_dictionary, read_metadata
    from saescope.evaluation import verdicts

    load_plugins(plugin)
    path = find_dictionary(dictionary)
    metadata = read_metadata(path)
    setting = setting_of(
        path, metadata, model=model, hook_point=hook_point, dataset=dataset, split=split, column=column
    )
    if setting.held_out is None:
        raise ValueError(f"which split of {setting.dataset.name} is held out? Name it with --split")
    opened = load_dictionary(path)
    network = load_model(setting.model)
    console = Console()
    windows = load_windows(network, setting.held_out, setting.windows, console)
    wanted = num_tokens or setting.evaluation.num_tokens
    evaluation = evaluate_run(opened, network, windows, setting, wanted, console)
    numbers = numbers_of(evaluation, metadata)
    console.print(evaluation_view(verdicts(numbers)))
    if evaluation.model_loss is None:
        console.print(f"loss recovered does not apply: {network.name} does not predict the next token", highlight=False)
    console.print(evaluation_view({"name": name, "value": value} for name, value in numbers.items()))
    target = json_file or (path.parent if path.name == "dictionary" else path) / "eval.json"
    write_evaluation(target, numbers, setting)
    console.print(f"numbers: {target}", highlight=False, soft_wrap=True)
