"""``saescope demo``: the whole walk on the bundled model, from text to a page that shows what features mean."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from saescope.store import FeatureRecord, Store

NUM_FEATURES_SHOWN = 12
DENSITY_RANGE = (1e-4, 1e-2)  # features that are neither nearly dead nor everywhere
PRECISION_WANTED, LIFT_WANTED = 0.8, 10.0


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder of the run.")] = Path("runs/demo"),
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override the recipe.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a demo that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a dictionary on the bundled model, evaluate it, and show what a dozen of its features mean."""
    started = time.perf_counter()
    import numpy as np
    from rich.console import Console
    from rich.rule import Rule

    from saescope.cli.folders import prepare_folder
    from saescope.cli.recipe import load_recipe
    from saescope.cli.run import (
        analyze_run,
        bounded,
        evaluate_run,
        load_model,
        load_windows,
        with_dead_share,
        write_evaluation,
    )
    from saescope.cli.setting import setting_of
    from saescope.cli.training import train_run
    from saescope.cli.views import evaluation_view, feature_view
    from saescope.dictionaries import load_dictionary, read_metadata
    from saescope.evaluation import verdicts
    from saescope.evaluation.plots import plot_densities, plot_training
    from saescope.store import Store
    from saescope.web import write_report

    console = Console()
    config = load_recipe("demo", override or [])
    folder = prepare_folder(output, config.as_dict(), overwrite=overwrite, resume=resume)

    console.print(Rule("1  train", align="left"))
    parts = train_run(config, folder, console, resume=resume)
    dictionary, metadata = load_dictionary(folder.dictionary), read_metadata(folder.dictionary)
    setting = setting_of(folder.dictionary, metadata)

    console.print(Rule("2  evaluate on held-out text", align="left"))
    if parts is None:  # trained from a cache
        model = load_model(config.model)
        windows = load_windows(model, config.dataset, bounded(config), console)
    else:
        model, windows = parts
    held_out = load_windows(model, config.held_out_dataset(), config.windows, console)
    core = evaluate_run(dictionary, model, held_out, setting, config.evaluation.num_tokens, console)
    core = with_dead_share(core, metadata)
    rows = verdicts(core.values())
    write_evaluation(folder.evaluation, core, setting)
    console.print(evaluation_view(rows))
    console.print(f"on {core['num_tokens'].value:,} held-out tokens; every number is in eval.json", highlight=False)

    console.print(Rule("3  see what features mean", align="left"))
    store_path = folder.path / "features.db"
    with Store.open(store_path) as store:
        analyze_run(
            setting, dictionary, model, windows, held_out, store, console,
            name=config.name, core=core, source=folder.dictionary, overwrite=True, checkpoint=folder.path / "analysis.npz",
        )  # fmt: skip
        drawn = draw_features(store, config.name, config.seed)
        for record in drawn:
            console.print(feature_view(store.page(config.name, record.index), max_examples=3))
        plots = {
            "How the dictionary was trained": plot_training(folder.metrics, folder.plots / "training.png"),
            "How often features fire": plot_densities(
                np.array(core.curves["features"]["density"]), folder.plots / "densities.png"
            ),
        }
        report = folder.path / "report.html"
        write_report(
            store, config.name, [record.index for record in drawn], report, evaluation={"rows": rows}, plots=plots
        )

    good = sum(map(is_well_labelled, drawn))
    console.print(
        f"{good} of these {len(drawn)} features, drawn by chance among those with a density of {DENSITY_RANGE[0]:g} to "
        f"{DENSITY_RANGE[1]:g}, have a label with precision >= {PRECISION_WANTED:g} and lift >= {LIFT_WANTED:g} "
        "on held-out text",
        highlight=False,
        soft_wrap=True,
    )
    console.print(Rule(align="left"))
    console.print(
        f"{folder.path.resolve()}\n"
        f"  report.html      open it in a browser\n"
        f"  dictionary       the trained dictionary; SAELens opens it too\n"
        f"  eval.json        every number of the evaluation\n"
        f"  features.db      all features: saescope serve --store {store_path}, or saescope features --store {store_path}\n"
        f"  plots            training and densities\n"
        f"the demo took {time.perf_counter() - started:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


def draw_features(store: Store, name: str, seed: int) -> list[FeatureRecord]:
    """A dozen features by lot: seeded, without replacement, among those with a density in ``DENSITY_RANGE``."""
    import numpy as np

    everything = store.dictionary(name).d_sae
    eligible = store.features(
        name, sort="index", descending=False, limit=everything, where={"density": DENSITY_RANGE}
    ).features
    chosen = np.random.default_rng(seed).choice(
        len(eligible), size=min(NUM_FEATURES_SHOWN, len(eligible)), replace=False
    )
    return [eligible[i] for i in sorted(chosen.tolist())]


def is_well_labelled(feature: FeatureRecord) -> bool:
    """Whether a feature's label holds on held-out text: a set of tokens or a syntax class, precise and telling."""
    label = feature.label
    return (
        label is not None
        and label.kind in ("tokens", "syntax")
        and label.precision is not None
        and label.lift is not None
        and label.precision >= PRECISION_WANTED
        and label.lift >= LIFT_WANTED
    )
