"""Training as the commands do it: one run, or several that share one pass over the activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

import saescope
from saescope.activations import ActivationStream, TokenWindows
from saescope.activations.cache import CachedActivations
from saescope.activations.stream import ShuffledStream, View
from saescope.cli.folders import RunFolder
from saescope.cli.progress import progress
from saescope.cli.recipe import RunConfig
from saescope.cli.run import bounded, load_model, load_windows, open_cache
from saescope.dictionaries import Dictionary, save_dictionary
from saescope.models import LanguageModel
from saescope.training import Run, StepMetrics, TrainingResult, loss_for, train_many

# what runs must have in common to read the same activations in the same order
_SHARED = ("model", "dataset", "windows", "stream", "cache", "seed")


def train_run(
    config: RunConfig, folder: RunFolder, console: Console, *, resume: bool
) -> tuple[LanguageModel, TokenWindows] | None:
    """Train the dictionary of a run into its folder; gives back the parts that later steps use again.

    None where activations came from a cache: neither model nor text was loaded.
    """
    return train_runs([config], [folder], console, resume=resume)


def check_shared(configs: Sequence[RunConfig]) -> None:
    """ValueError where runs can not share one stream, or have one name."""
    first = configs[0]
    for other in configs[1:]:
        pairs = {name: (getattr(first, name), getattr(other, name)) for name in _SHARED}
        pairs["training.batch_size_tokens"] = (first.training.batch_size_tokens, other.training.batch_size_tokens)
        for name, (a, b) in pairs.items():
            if a != b:
                hint = "; a dictionary's own seed is [dictionary] seed" if name == "seed" else ""
                raise ValueError(
                    f"{first.name} and {other.name} can not share one pass: {name} is {a} and {b}{hint}; "
                    "train them one by one, or make it the same"
                )
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two recipes are named {', '.join(twice)}; every run needs a folder of its own")


def train_runs(
    configs: Sequence[RunConfig], folders: Sequence[RunFolder], console: Console, *, resume: bool
) -> tuple[LanguageModel, TokenWindows] | None:
    """Train the dictionaries of runs that share one stream (see :func:`check_shared`), each into its folder."""
    check_shared(configs)
    longest = max(configs, key=lambda config: config.training.num_steps)
    source = open_cache(longest) if longest.cache else load_model(longest.model)
    hook_points = list(dict.fromkeys(name for config in configs for name in _hook_points(config)))
    widths = {name: source.width(name) for name in hook_points}
    dictionaries = [config.build_dictionary(widths) for config in configs]
    mixing: dict[str, Any] = {
        "batch_size_tokens": longest.training.batch_size_tokens,
        "config": longest.stream,
        "seed": longest.seed,
    }
    stream: ShuffledStream
    if isinstance(source, CachedActivations):
        parts, num_documents = None, source.manifest.num_documents
        stream = source.stream(hook_points, device=longest.model.device, **mixing)
    else:
        windows = load_windows(source, longest.dataset, bounded(longest), console)
        parts, num_documents = (source, windows), len(windows.documents)
        stream = ActivationStream(source, windows, hook_points, **mixing)
    for config, dictionary in zip(configs, dictionaries, strict=True):
        which = f"{config.name}: " if len(configs) > 1 else ""
        console.print(which + _announced(config, dictionary), highlight=False, soft_wrap=True)
    passes = longest.training.num_tokens / stream.num_tokens
    console.print(
        f"{longest.training.num_steps:,} steps of {longest.training.batch_size_tokens:,} tokens: "
        f"{passes:.2f} passes over {stream.num_tokens:,} tokens from {num_documents:,} documents"
        f"{f', in the cache {longest.cache}' if longest.cache else ''}\n"
        f"{stream.mixing()}",
        highlight=False,
        soft_wrap=True,
    )
    metadata = [_metadata(config, source) for config in configs]
    remarks = [""] * len(configs)

    def remember(number: int, metrics: StepMetrics) -> None:
        remarks[number] = (
            f"explained variance {metrics.explained_variance:.3f}, L0 {metrics.l0:.0f}, dead {metrics.dead_share:.1%}"
        )

    runs = [
        Run(
            dictionary,
            config.training,
            loss=loss_for(dictionary, config.loss),
            folder=folder.path,
            on_metrics=lambda metrics, number=number: remember(number, metrics),  # type: ignore[misc]
            source=" and ".join(_hook_points(config)),
            metadata=about,
        )
        for number, (config, dictionary, folder, about) in enumerate(
            zip(configs, dictionaries, folders, metadata, strict=True)
        )
    ]
    views = [View(stream, config.reads, config.hook_point_out or None) for config in configs]
    try:
        with progress(console, "training", "tokens") as update, _shown(console):
            size = longest.training.batch_size_tokens
            results = train_many(
                runs,
                stream,
                pick=[view.of for view in views],
                resume=resume,
                on_step=lambda done, total: update(done * size, total * size, remarks[0]),
            )
    except KeyboardInterrupt:
        where = ", ".join(str(folder.path) for folder in folders)
        console.print(
            f"stopped; the same command with --resume goes on from the last checkpoint in {where}",
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(130) from None
    for config, folder, about, result in zip(configs, folders, metadata, results, strict=True):
        _save(config, folder, about, result)
    return parts


def _hook_points(config: RunConfig) -> list[str]:
    return [*config.reads, *filter(None, [config.hook_point_out])]


def _announced(config: RunConfig, dictionary: Dictionary) -> str:
    where = " to " if config.hook_point_out else " and "
    return (
        f"{config.dictionary['architecture']} dictionary, {dictionary.d_sae:,} features of width {dictionary.d_in}, "
        f"at {where.join(_hook_points(config))} of {config.model.name}"
    )


def _metadata(config: RunConfig, source: LanguageModel | CachedActivations) -> dict[str, Any]:
    """SAELens' own keys for cfg.json."""
    metadata = {
        "model_name": config.model.name,
        "hook_name": ", ".join(config.reads),
        "hf_hook_name": ", ".join(source.hook_point(name).canonical for name in config.reads),
        "dataset_path": config.dataset.name,
        "context_size": config.windows.context_size,
        "prepend_bos": config.windows.prepend_bos,
    }
    if config.hook_point_out:
        metadata["hook_name_out"] = config.hook_point_out
        metadata["hf_hook_name_out"] = source.hook_point(config.hook_point_out).canonical
    return metadata


def _save(config: RunConfig, folder: RunFolder, metadata: dict[str, Any], result: TrainingResult) -> None:
    summary = {
        "num_tokens": result.num_tokens,
        "dead_share": result.dead_share,
        "dead_after_tokens": config.training.dead_after_tokens,
    }
    provenance = {"version": saescope.__version__, "run": config.as_dict(), "training": summary}
    save_dictionary(result.dictionary, folder.dictionary, metadata=metadata, saescope=provenance, overwrite=True)


@contextmanager
def _shown(console: Console) -> Iterator[None]:
    """Warnings of a run (a skipped step, a damaged checkpoint) as lines on the screen."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: console.print(
            f"note: {message}", highlight=False, soft_wrap=True
        )
        yield
