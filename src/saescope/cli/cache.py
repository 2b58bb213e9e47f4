"""``saescope cache``: a recipe in, its activations on disk out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def cache(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe in TOML, or the name of one that comes with saescope (demo).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the cache. \\[default: the recipe's key cache]")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", "--set", metavar="KEY=VALUE", help="Override, e.g. model.name=gpt2.")
    ] = None,
    hook_point: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also keep this hook point; may be given several times.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 (exact), bfloat16 or float16 (half the size).")] = "float32",
    shard_size_mb: Annotated[int, typer.Option(min=1, help="Size of a file; one is held in memory.")] = 256,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Python file that registers an architecture of your own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a cache that was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the cache in the folder.")] = False,
    verify: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Read a finished cache and compare its checksums; no recipe.")
    ] = None,
) -> None:
    """Write the activations that a recipe trains on to disk.

    Training with -o cache=FOLDER then reads them from there, and needs neither the model nor the text.
    """
    from rich.console import Console

    from saescope.activations import cache_settings, check_cache_folder, write_cache
    from saescope.activations.cache_files import bytes_per_token, readable_size
    from saescope.cli.plugin import load_plugins
    from saescope.cli.progress import progress
    from saescope.cli.recipe import load_recipe
    from saescope.cli.run import bounded, load_model, load_windows

    console = Console()
    if verify is not None:
        if recipe is not None:
            raise ValueError("--verify looks at a cache that is there; leave the recipe out")
        _verify(verify, console)
        return
    if recipe is None:
        raise ValueError("which activations? Give a recipe, or --verify FOLDER to look at a cache that is there")
    load_plugins(plugin)
    config = load_recipe(recipe, override or [])
    if output is None and not config.cache:
        raise ValueError('where to? Give --output FOLDER, or write cache = "FOLDER" at the top of the recipe')
    folder = output or Path(config.cache)
    hook_points = list(dict.fromkeys((*config.reads, *filter(None, [config.hook_point_out]), *(hook_point or []))))
    special = {"exclude_special_tokens": config.stream.exclude_special_tokens}
    shape = bounded(config)
    settings = cache_settings(config.model.name, config.model.dtype, config.dataset, shape, special)
    begun = check_cache_folder(folder, settings, hook_points, dtype, resume=resume, overwrite=overwrite)
    if begun is not None and begun.is_finished:
        _say(console, f"{folder} is finished: {begun.num_tokens:,} tokens, {readable_size(begun.num_bytes)}")
        return
    model = load_model(config.model)
    widths = {name: model.width(name) for name in hook_points}
    windows = load_windows(model, config.dataset, shape, console) if begun is None else None
    num_tokens = int(windows.tokens_per_window(**special).sum()) if windows else begun.num_tokens  # type: ignore[union-attr]
    size = readable_size(num_tokens * bytes_per_token(widths, dtype))
    where = f" ({len(begun.shards)} of {begun.num_shards} shards are there)" if begun else ""
    _say(console, f"{num_tokens:,} tokens at {' and '.join(widths)} of {model.name} in {dtype}: {size}{where}")
    started, written = time.perf_counter(), 0
    try:
        with progress(console, "writing activations", "tokens") as update:

            def on_progress(done: int, total: int) -> None:
                nonlocal written
                written = done
                update(done, total, "")

            finished = write_cache(
                model,
                windows,
                hook_points,
                folder,
                dataset=config.dataset,
                dtype=dtype,
                model_batch_size_windows=config.stream.model_batch_size_windows,
                shard_size_bytes=shard_size_mb * 1_000_000,
                resume=resume,
                overwrite=overwrite,
                on_progress=on_progress,
                **special,
            )
    except KeyboardInterrupt:
        _say(console, f"stopped; the same command with --resume goes on from the last whole shard in {folder}")
        raise SystemExit(130) from None
    rate = written / (time.perf_counter() - started)
    _say(
        console,
        f"{folder}: {finished.num_tokens:,} tokens, {readable_size(finished.manifest.num_bytes)}, "
        f"{finished.manifest.num_shards} shards, {rate:,.0f} tokens/s\n"
        f"next: saescope train {recipe} -o cache={folder}",
    )


def _verify(folder: Path, console: Console) -> None:
    from saescope.activations import CachedActivations
    from saescope.activations.cache_files import readable_size
    from saescope.cli.progress import progress

    opened = CachedActivations.open(folder)
    with progress(console, "reading", "bytes") as update:
        opened.verify(lambda done, total: update(done, total, ""))
    size = readable_size(opened.manifest.num_bytes)
    _say(
        console,
        f"{folder} is whole: {opened.num_tokens:,} tokens at {' and '.join(opened.hook_points)} of "
        f"{opened.model_name} in {opened.manifest.dtype}, {size}",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
