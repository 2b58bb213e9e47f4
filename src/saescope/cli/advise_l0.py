"""``saescope advise-l0``: how many features should fire on a token?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from saescope.cli.recipe import RunConfig
    from saescope.evaluation.l0.advice import L0Advice, SweepPoint

MULTIPLES = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the recipe's own L0
SNAPSHOT_SHARE = 0.75  # of the training
MOST_TOKENS = 32_768  # that measures are taken on


def advise_l0(
    recipe: Annotated[str, typer.Argument(help="Recipe in TOML, or name of one that comes with saescope (demo).")],
    l0: Annotated[
        str | None,
        typer.Option("--l0", metavar="L0,L0,...", help="L0 to try. \\[default: 1/4 to 3 times the recipe's]"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Dictionaries at each L0.")] = 2,
    n: Annotated[
        str | None, typer.Option("--n", metavar="N,N,...", help="n of s_n. \\[default: between the L0 and d_sae / 2]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="Folder of the sweep. \\[default: runs/NAME-l0]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override, e.g. training.lr=1e-3.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    per_pass: Annotated[
        int | None, typer.Option(min=1, help="Dictionaries that train side by side. \\[default: all]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in the folder.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Train a recipe's dictionary at several L0 in one pass, and say which L0 is right.

    Two measures of the decoder (Sparse but Wrong, arXiv 2508.16560) are lowest where as many features fire as the data
    have. They are taken on held-out text, at the end of training and at three quarters of it: dictionaries that are not
    trained to the end are not judged.
    """
    from rich.console import Console

    from saescope.cli.plugin import load_plugins
    from saescope.cli.recipe import load_recipe
    from saescope.cli.sweeps import sweep_seconds, train_sweep
    from saescope.evaluation.l0.advice import advise
    from saescope.evaluation.l0.plots import plot_l0

    load_plugins(plugin)
    base = load_recipe(recipe, override or [])
    grid = _numbers(l0, "--l0") if l0 else default_grid(base)
    if len(grid) < 3:
        raise ValueError(f"a sweep needs at least three L0, got {', '.join(f'{value:g}' for value in grid)}")
    configs = [config for value in grid for config in sweep_configs(base, value, seeds)]
    ns = _numbers(n, "--n") if n else None
    folder = output or Path("runs") / f"{base.name}-l0"
    console = Console()
    paths = train_sweep(configs, folder, console, resume=resume, dictionaries_per_pass=per_pass)
    points = measured(base, [value for value in grid for _ in range(seeds)], paths, console, ns=ns)
    advice = advise(points)
    console.print(points_view(points, advice))
    for sentence in advice.sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
    plot = plot_l0(points, advice, folder / "l0.png")
    target = json_file or folder / "l0.json"
    _write(target, base, points, advice, sweep_seconds(folder))
    console.print(f"numbers: {target}\nplot: {plot}", highlight=False, soft_wrap=True)


def default_grid(base: RunConfig) -> list[float]:
    """Multiples of the L0 that a recipe has, whole numbers of at least 1."""
    own = base.dictionary.get("k") or base.loss.get("target_l0")
    if not own:
        raise ValueError(f"{base.name} names no L0 of its own to try multiples of; name some with --l0 16,24,32")
    return sorted({float(max(1, round(own * times))) for times in MULTIPLES})


def sweep_configs(base: RunConfig, l0: float, seeds: int) -> list[RunConfig]:
    """The recipe at another L0: one run for each seed, its snapshot kept.

    Raises:
        ValueError: an architecture whose L0 can not be asked for, or one that can not have this L0; so short a training
            that it has no snapshot.
    """
    from dataclasses import fields

    from saescope.cli.recipe import run_from_dict
    from saescope.dictionaries import JumpReLU, architecture

    cls = architecture(base.dictionary["architecture"])
    every, step = snapshot_steps(base.training.num_steps, base.training.checkpoint_every_n_steps)
    first = base.dictionary.get("seed", base.seed)
    configs = []
    for seed in range(first, first + seeds):
        settings = base.as_dict() | {"name": f"{base.name}-l0-{l0:g}-seed-{seed}"}
        settings["dictionary"]["seed"] = seed
        if any(field.name == "k" for field in fields(cls.Config)):
            settings["dictionary"]["k"] = int(l0) if l0 == int(l0) else l0
        elif issubclass(cls, JumpReLU):
            settings["loss"] |= {"penalty": "quadratic", "target_l0": l0}
        else:
            raise ValueError(
                f"a {base.dictionary['architecture']} dictionary can not be asked for an L0; take one that can, such as "
                "topk, batch_topk, matryoshka, ordered or jumprelu"
            )
        settings["training"] |= {"checkpoint_every_n_steps": every, "keep_every_n_steps": step, "keep_last": 1}
        configs.append(run_from_dict(settings, settings["name"]))
    return configs


def snapshot_steps(num_steps: int, at_most: int) -> tuple[int, int]:
    """(steps between checkpoints, step of the snapshot), near three quarters of the training."""
    wanted = int(SNAPSHOT_SHARE * num_steps)
    if wanted < 2:
        raise ValueError(
            f"{num_steps} training steps are too few to tell whether training has ended; raise training.num_tokens"
        )
    every = wanted // -(-wanted // at_most)
    return every, wanted // every * every


def measured(
    base: RunConfig,
    settings: Sequence[float],
    paths: Sequence[Path],
    console: Any,
    *,
    ns: Sequence[float] | None = None,
) -> list[SweepPoint]:
    """Both measures of every dictionary, and of its snapshot, on one sample of held-out activations."""
    from saescope.cli.progress import progress
    from saescope.cli.run import load_model, load_windows
    from saescope.dictionaries import load_dictionary
    from saescope.evaluation.l0.advice import SweepPoint, measure_l0
    from saescope.evaluation.l0.measures import BATCH_SIZE_TOKENS, default_ns
    from saescope.evaluation.sample import read_sample

    model = load_model(base.model)
    windows = load_windows(model, base.held_out_dataset(), base.windows, console)
    writes = [base.hook_point_out] if base.hook_point_out else []
    wanted = min(base.evaluation.num_tokens, MOST_TOKENS)
    sample = read_sample(model, windows, base.reads, writes, num_tokens=wanted)
    if ns is None:
        ns = default_ns(max(settings), base.dictionary["d_sae"])
    _, step = snapshot_steps(base.training.num_steps, base.training.checkpoint_every_n_steps)
    points = []
    with progress(console, "measuring", "dictionaries") as update:
        for done, (setting, path) in enumerate(zip(settings, paths, strict=True), start=1):
            snapshot = path / "checkpoints" / f"step-{step:08d}" / "dictionary"
            if not (snapshot / "cfg.json").exists():
                raise FileNotFoundError(f"{snapshot} is gone; the advice compares the end of training with it")
            found = [
                measure_l0(load_dictionary(folder), sample, ns, batch_size_tokens=min(BATCH_SIZE_TOKENS, len(sample)))
                for folder in (path / "dictionary", snapshot)
            ]
            seed = int(path.name.rpartition("-")[2])
            points.append(SweepPoint(setting=setting, seed=seed, final=found[0], early=found[1]))
            update(done, len(paths), "")
    return points


def points_view(points: Sequence[SweepPoint], advice: L0Advice) -> Table:
    """One line for each L0 that was asked for: means over seeds, and from where to where they go."""
    from saescope.cli.views.words import plain_table

    names = ["c_dec", *(f"s_{n:g}" for n in advice.ns)]
    table = plain_table()
    for head in ("asked for", "L0", *names, "c_dec at the snapshot"):
        table.add_column(head, justify="right", no_wrap=True)
    for setting in sorted({point.setting for point in points}):
        here = [point for point in points if point.setting == setting]
        cells = [_spread([point.final.value(name) for point in here]) for name in names]
        early = _spread([point.early.c_dec for point in here if point.early])
        mean_l0 = sum(point.final.l0 for point in here) / len(here)
        table.add_row(f"{setting:g}", f"{mean_l0:.1f}", *cells, early)
    return table


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    mean = f"{sum(known) / len(known):.4f}"
    return mean if len(known) < 2 else f"{mean} ({min(known):.4f} to {max(known):.4f})"


def _numbers(text: str, option: str) -> list[float]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{option} {text}: name numbers, parted by commas, such as {option} 16,24,32") from None
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{option} {text}: every number must be above 0")
    return values


def _write(
    target: Path, base: RunConfig, points: Sequence[SweepPoint], advice: L0Advice, training_seconds: float
) -> None:
    import json

    from saescope.evaluation.l0.measures import BATCH_SIZE_TOKENS

    def plain(measures: Any) -> dict[str, Any] | None:
        return None if measures is None else {**vars(measures), "s": {f"{n:g}": s for n, s in measures.s.items()}}

    document = {
        "advice": advice.as_dict(),
        "points": [
            {"setting": p.setting, "seed": p.seed, "final": plain(p.final), "early": plain(p.early)} for p in points
        ],
        "context": {
            "recipe": base.as_dict(),
            "batch_size_tokens": BATCH_SIZE_TOKENS,
            "training_seconds": training_seconds,
        },
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".partial")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    beside.replace(target)
