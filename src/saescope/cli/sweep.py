"""``saescope sweep``: train many dictionaries, evaluate them all, and say which is better at what."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from saescope.cli.recipe import RunConfig


def sweep(
    file: Annotated[
        str, typer.Argument(help="Sweep in TOML, or name of one that comes with saescope (architectures).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="Folder of runs and report. \\[default: runs/NAME]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override, e.g. base.training.lr=1e-3.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in the folder.")] = False,
    num_sample_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the studies on stored activations and labels.")
    ] = 60_000,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
) -> None:
    """Train the dictionaries of a sweep in as few passes as it asks for, evaluate them, and write a report.

    The same command with --resume goes on where it was stopped, in training and in evaluation.
    """
    from rich.console import Console

    from saescope.cli.evaluating import candidates, evaluate_candidates, write_report
    from saescope.cli.opening import find_dictionary, metadata_of
    from saescope.cli.plugin import load_plugins
    from saescope.cli.setting import setting_of
    from saescope.cli.sweep_file import load_sweep
    from saescope.cli.sweeps import sweep_seconds, train_sweep
    from saescope.cli.views.evaluation import report_view
    from saescope.evaluation.bench import BenchConfig
    from saescope.evaluation.kept_results import KeptResults
    from saescope.evaluation.reporting.summary import summarise
    from saescope.evaluation.studies import chosen_studies

    load_plugins(plugin)
    config = load_sweep(file, override or [])
    studies = chosen_studies(config.studies or ("all",))
    runs = config.runs(file)
    console = Console()
    folder = output or Path("runs") / config.name
    paths = train_sweep(runs, folder, console, resume=resume, dictionaries_per_pass=config.dictionaries_per_pass)
    named = {}
    for run, path in zip(runs, paths, strict=True):
        home = find_dictionary(path)
        named[run.name] = (home, setting_of(home, metadata_of(home)))
    sparsities = {name: str(variant.get("sparsity", "")) for name, variant in config.variant_of.items()}
    started = time.perf_counter()
    advice = l0_advice(runs, paths, console)
    report = evaluate_candidates(
        candidates(named, sparsities),
        studies,
        console,
        kept=KeptResults(folder / "results"),
        config=BenchConfig(num_tokens=runs[0].evaluation.num_tokens, num_sample_tokens=num_sample_tokens),
        training_seconds=sweep_seconds(folder),
        notes=[*config.notes, *(f"{name}: {' '.join(said)}" for name, said in advice.items())],
        advice="; ".join(f"{name}: {said[-1].rstrip('.')}" for name, said in advice.items()),
    )
    report = replace(report, seconds={**report.seconds, "studies": time.perf_counter() - started})  # with the advice
    console.print(report_view(report.as_dict(), summarise(report)))
    written = write_report(report, folder)
    console.print(
        f"training {report.seconds['training']:.0f} s, studies {report.seconds['studies']:.0f} s\nreport: {written[1]}",
        highlight=False,
        soft_wrap=True,
    )


def l0_advice(runs: Sequence[RunConfig], paths: Sequence[Path], console: Console) -> dict[str, tuple[str, ...]]:
    """What the sweep says about the right L0, in sentences, for every architecture that was asked for three L0 or more.

    Architectures are judged apart: overlap of rows depends on more than L0.
    """
    from saescope.cli.advise_l0 import measured
    from saescope.evaluation.l0.advice import advise

    found = {}
    for architecture in dict.fromkeys(run.dictionary["architecture"] for run in runs):
        group = [
            (wanted, run, path)
            for run, path in zip(runs, paths, strict=True)
            if run.dictionary["architecture"] == architecture
            and (wanted := run.dictionary.get("k") or run.loss.get("target_l0"))
        ]
        if len({wanted for wanted, *_ in group}) < 3:
            continue
        settings = [float(wanted) for wanted, *_ in group]
        try:
            points = measured(group[0][1], settings, [path for *_, path in group], console)
            found[architecture] = advise(points).sentences
        except (FileNotFoundError, ValueError) as error:  # no snapshots, or too few steps: the report goes without
            found[architecture] = (f"no advice: {error}",)
    return found
