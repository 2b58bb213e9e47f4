"""``saescope analyze``: what every feature does, into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from saescope.cli.analysis_file import AnalysisFile
    from saescope.cli.setting import Setting
    from saescope.dictionaries import Dictionary


def analyze(
    dictionary: Annotated[
        Path | None, typer.Argument(help="A dictionary's folder, the folder of a run, or a TOML file with the options.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="File or database. \\[default: $SAESCOPE_STORE or features.db]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store. \\[default: the run's]")] = None,
    analysis: Annotated[str | None, typer.Option(help="Name of this analysis. \\[default: default]")] = None,
    series: Annotated[str | None, typer.Option(help="Project that the dictionary belongs to.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, if not the one it was trained on.")] = None,
    hook_point: Annotated[str | None, typer.Option(help="Hook point, if not the one it was trained on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, if not the one of its run.")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text. \\[default: text]")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Read activations from this cache; the model only says what tokens mean.")
    ] = None,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to analyze. \\[default: the run's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which windows are drawn. \\[default: 0]")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="logits", help="Compute the logit effects of a stored analysis anew, no more.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Read the I-th of N parts of the text, and write --statistics.")
    ] = None,
    statistics: Annotated[Path | None, typer.Option(help="File for what a shard has found.")] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Statistics of all shards; the text is not read again.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on with an analysis that was interrupted.")] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the names in the store.")] = False,
) -> None:
    """Read a text through a dictionary and store what each feature does: numbers, contexts, logits, a label.

    An analysis that was interrupted goes on where it was when it is started again.
    """
    from rich.console import Console

    from saescope.cli.analysis_file import AnalysisFile, read_analysis_file

    if only not in (None, "logits"):
        raise ValueError(f"--only knows logits, not {only!r}")
    if bool(shard) != bool(statistics):
        raise ValueError("--shard and --statistics go together: one part of the text, and the file for what it gives")
    if shard and merge:
        raise ValueError("--shard makes statistics and --merge uses them; give one of the two")
    options = {
        "dictionary": dictionary, "store": store, "name": name, "analysis": analysis, "series": series, "model": model,
        "hook_point": hook_point, "dataset": dataset, "column": column, "cache": cache, "num_tokens": num_tokens,
        "seed": seed,
    }  # fmt: skip
    given = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None
    }
    if dictionary is not None and dictionary.suffix == ".toml":
        given.pop("dictionary")
        file = read_analysis_file(dictionary, given)
    else:
        file = AnalysisFile(**given)  # type: ignore[arg-type]
    if not file.dictionary:
        raise ValueError("which dictionary? Name its folder, the folder of its run, or a TOML file that does")
    console = Console()
    if only:
        _refresh_logits(file, console, plugin)
    else:
        _analyze(
            file, console, plugin, shard=shard, statistics=statistics, merge=merge, fresh=fresh, overwrite=overwrite
        )


def _analyze(
    file: AnalysisFile,
    console: Console,
    plugin: list[Path] | None,
    *,
    shard: str | None,
    statistics: Path | None,
    merge: list[Path] | None,
    fresh: bool,
    overwrite: bool,
) -> None:
    from contextlib import ExitStack

    from saescope.activations import CachedActivations
    from saescope.analysis import CachedText, Collected, LiveText, Text, collect
    from saescope.cli.opening import find_dictionary
    from saescope.cli.run import analyze_run, load_model, load_windows, stages
    from saescope.store import Store
    from saescope.store.address import resolve_address

    opened, setting, name = _opened(file, plugin)
    config = setting.analysis
    amount = {"num_tokens": config.num_tokens, "batch_size_windows": config.batch_size_windows}
    network = load_model(setting.model)
    if file.cache:
        text: Text = CachedText(
            CachedActivations.open(file.cache), setting.reads, device=setting.model.device, **amount
        )
    else:
        windows = load_windows(network, setting.dataset, setting.windows, console)
        text = LiveText(network, windows, setting.reads, **amount)

    if shard:
        assert statistics is not None
        part = _windows_of(shard, len(text))
        with ExitStack() as stack:
            report = stages(console, stack)
            collected = collect(
                opened,
                text,
                config,
                windows=part,
                checkpoint=statistics,
                on_progress=lambda done, total: report("reading text", done, total),
            )
        collected.save(statistics)
        console.print(
            f"windows {part[0]:,} to {part[1] - 1:,} of {len(text):,} are in {statistics}",
            highlight=False,
            soft_wrap=True,
        )
        return

    place = resolve_address(file.store)
    beside = Path(f"{place}.work") if isinstance(place, Path) else Path("saescope.work")
    checkpoint = beside / f"{_file_name(name)}-{_file_name(file.analysis)}.npz"
    if fresh:
        checkpoint.unlink(missing_ok=True)
    merged: Collected | None = None
    for part_file in merge or ():
        found = Collected.load(part_file)
        if merged is None:
            merged = found
        else:
            merged.merge(found)
    with Store.open(file.store) as store:
        held_out = load_windows(network, setting.held_out, setting.windows, console) if setting.held_out else None
        analyze_run(
            setting,
            opened,
            network,
            text,
            held_out,
            store,
            console,
            name=name,
            analysis=file.analysis,
            series=file.series,
            source=find_dictionary(file.dictionary),
            overwrite=overwrite,
            checkpoint=checkpoint,
            collected=merged,
        )
    console.print(
        f"{opened.d_sae:,} features of {name} stored\nnext: saescope features {name}", highlight=False, soft_wrap=True
    )


def _refresh_logits(file: AnalysisFile, console: Console, plugin: list[Path] | None) -> None:
    from contextlib import ExitStack

    from saescope.analysis import refresh_logits
    from saescope.cli.run import load_model, stages
    from saescope.store import Store

    opened, setting, name = _opened(file, plugin)
    with Store.open(file.store, must_exist=True) as store, ExitStack() as stack:
        number = refresh_logits(
            opened,
            load_model(setting.model),
            name=name,
            store=store,
            analysis=file.analysis if file.analysis != "default" else None,
            num_logits=setting.analysis.num_logits,
            on_progress=stages(console, stack),
        )
    console.print(f"logit effects of {number:,} features of {name} stored", highlight=False, soft_wrap=True)


def _opened(file: AnalysisFile, plugin: list[Path] | None) -> tuple[Dictionary, Setting, str]:
    """The dictionary, what it is looked at with, and its name in the store."""
    from dataclasses import replace

    from saescope.cli.opening import find_dictionary, metadata_of, open_dictionary
    from saescope.cli.plugin import load_plugins
    from saescope.cli.setting import setting_of

    load_plugins(plugin)
    path = find_dictionary(file.dictionary)
    setting = setting_of(
        path,
        metadata_of(path),
        model=file.model,
        hook_point=file.hook_point,
        dataset=file.dataset,
        column=file.column,
    )
    setting = replace(setting, analysis=file.settings_over(setting.analysis))
    return open_dictionary(path), setting, file.name or (setting.run or {}).get("name") or path.name


def _windows_of(shard: str, num_windows: int) -> tuple[int, int]:
    """The windows of part I of N, counted from 1."""
    try:
        part, parts = (int(number) for number in shard.split("/"))
    except ValueError:
        raise ValueError(f"--shard {shard}: write it as I/N, for example 1/4 for the first of four parts") from None
    if not 1 <= part <= parts:
        raise ValueError(f"--shard {shard}: parts are numbered from 1 to {parts}")
    if parts > num_windows:
        raise ValueError(f"--shard {shard}: the text has only {num_windows} windows, so it has no {parts} parts")
    return num_windows * (part - 1) // parts, num_windows * part // parts


def _file_name(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
