"""``saescope eval``: how good are dictionaries?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    dictionary: Annotated[list[Path], typer.Argument(help="Dictionaries' folders, or folders of runs.")],
    studies: Annotated[
        str, typer.Option("--studies", metavar="NAME,NAME,...", help="What to measure: core, probing, ..., or all.")
    ] = "core",
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one of its run.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set. \\[default: held_out]")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. \\[default: text]")] = None,
    num_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the core study. \\[default: the run's]")
    ] = None,
    num_sample_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the studies on stored activations and labels.")
    ] = 60_000,
    seed: Annotated[int, typer.Option(help="Of splits, draws and intervals.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--out", help="Folder for report.html, report.md, report.json and pictures."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Also write the numbers to this store, to dictionaries it has.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the numbers: core's, or the whole report.")
    ] = None,
    saebench: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write core results as SAEBench defines them, for its tables."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
) -> None:
    """Measure dictionaries on text that training has not seen: one in detail, or several side by side.

    The core study is reconstruction, sparsity and what the model loses. The others: l0, probing, concepts, splitting,
    absorption, cones, tpp, scr, meta_structure, first_letter. Results are kept under a hash of weights, text, settings
    and code, so that nothing is measured twice and a stopped evaluation goes on. Intervals are over documents.
    """
    from rich.console import Console

    from saescope.cli.evaluating import (
        candidates,
        evaluate_candidates,
        write_report,
        write_saebench_core,
        write_to_store,
    )
    from saescope.cli.opening import find_dictionary, metadata_of
    from saescope.cli.plugin import load_plugins
    from saescope.cli.run import write_evaluation
    from saescope.cli.setting import setting_of
    from saescope.cli.views.evaluation import report_view
    from saescope.evaluation.bench import BenchConfig
    from saescope.evaluation.kept_results import KeptResults, default_folder
    from saescope.evaluation.reporting.report import write_report_json
    from saescope.evaluation.reporting.summary import summarise
    from saescope.evaluation.studies import chosen_studies

    load_plugins(plugin)
    chosen = chosen_studies([name.strip() for name in studies.split(",")])
    paths = [find_dictionary(path) for path in dictionary]
    named = {}
    for name, path in zip(names_of(paths), paths, strict=True):
        setting = setting_of(
            path, metadata_of(path), model=model, hook_point=hook_point, dataset=dataset, split=split, column=column
        )
        named[name] = (path, setting)
    wanted = candidates(named)
    console = Console()
    first = wanted[0].setting
    config = BenchConfig(
        num_tokens=num_tokens or first.evaluation.num_tokens, num_sample_tokens=num_sample_tokens, seed=seed
    )
    kept = None if fresh else KeptResults(default_folder())
    report = evaluate_candidates(wanted, chosen, console, kept=kept, config=config)
    console.print(report_view(report.as_dict(), summarise(report)))
    core_alone = len(wanted) == 1 and [study.name for study in chosen] == ["core"]
    for candidate, evaluated in zip(wanted, report.dictionaries, strict=True):
        core = evaluated.studies.get("core")
        if core is not None and not core.failure:
            home = candidate.path.parent if candidate.path.name == "dictionary" else candidate.path
            target = json_file if json_file and core_alone else home / "eval.json"
            if not home.is_dir() and target != json_file:
                continue  # a file, or a place elsewhere
            write_evaluation(target, core, candidate.setting)
            console.print(f"numbers: {target}", highlight=False, soft_wrap=True)
    if json_file and not core_alone:
        write_report_json(report, json_file)
        console.print(f"numbers: {json_file}", highlight=False, soft_wrap=True)
    if saebench:
        for candidate, path in zip(wanted, write_saebench_core(wanted, console, saebench, config), strict=True):
            console.print(f"SAEBench's numbers of {candidate.name}: {path}", highlight=False, soft_wrap=True)
    if store:
        for line in write_to_store(report, store):
            console.print(line, highlight=False, soft_wrap=True)
    if output:
        written = write_report(report, output)
        console.print(f"report: {written[1]}", highlight=False, soft_wrap=True)
    failures = report.failures()
    if failures and len(failures) == sum(len(about.studies) for about in report.dictionaries):
        raise ValueError("every study failed")


def names_of(paths: list[Path]) -> list[str]:
    """A name for each: that of the run's folder, with as many folders above it as it takes to tell them apart.

    Raises:
        ValueError: one dictionary is named twice.
    """
    homes = [(path.parent if path.name == "dictionary" else path).resolve() for path in paths]
    twice = sorted({str(home) for home in homes if homes.count(home) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given more than once")
    for depth in range(1, max(len(home.parts) for home in homes) + 1):
        names = ["/".join(home.parts[-depth:]) for home in homes]
        if len(set(names)) == len(names):
            break
    return names
