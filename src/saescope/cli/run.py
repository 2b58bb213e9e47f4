"""What several commands do with a run: load its parts, train, evaluate, analyze, with progress shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from saescope import __version__
from saescope.activations import DatasetConfig, TokenWindows, WindowConfig, read_documents
from saescope.activations.cache import CachedActivations
from saescope.activations.cache_writing import cache_settings
from saescope.activations.documents import has_own_splits
from saescope.analysis import Text, analyze
from saescope.cli.progress import progress
from saescope.cli.recipe import ModelConfig, RunConfig
from saescope.cli.setting import Setting
from saescope.dictionaries import Dictionary
from saescope.evaluation import Evaluation, evaluate
from saescope.models import LanguageModel
from saescope.store import AnalysisRecord, EvaluationResult, Store, TrainingRun


def load_model(config: ModelConfig) -> LanguageModel:
    return LanguageModel.load(config.name, dtype=config.dtype, device=config.device)


def load_windows(model: LanguageModel, dataset: DatasetConfig, config: WindowConfig, console: Console) -> TokenWindows:
    if model.tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer; save one beside the model")
    if model.context_size is not None and config.context_size > model.context_size:
        raise ValueError(
            f"windows of context_size = {config.context_size} do not fit {model.name}, which reads at most "
            f"{model.context_size} tokens"
        )
    with console.status("reading and tokenising text") as status:
        return TokenWindows.build(
            read_documents(dataset),
            model.tokenizer,
            config,
            on_progress=lambda tokens: status.update(f"reading and tokenising text: {tokens:,} tokens"),
        )


def open_cache(config: RunConfig) -> CachedActivations:
    """The cache that a run trains from.

    Raises:
        ValueError: it was made of another model or text than the recipe names, both shown, or is damaged.
    """
    cache = CachedActivations.open(config.cache)
    special = {"exclude_special_tokens": config.stream.exclude_special_tokens}
    settings = cache_settings(config.model.name, config.model.dtype, config.dataset, config.windows, special)
    if bounded(config) is not config.windows:  # how much of an endless text was read was up to the cache
        settings["windows"].pop("max_tokens")
    cache.require(settings, [*config.reads, *filter(None, [config.hook_point_out])])
    return cache


def evaluate_run(
    dictionary: Dictionary,
    model: LanguageModel,
    held_out: TokenWindows,
    setting: Setting,
    num_tokens: int,
    console: Console,
) -> Evaluation:
    with progress(console, "evaluating", "batches") as update:
        return evaluate(
            dictionary,
            model,
            held_out,
            setting.reads,
            hook_point_out=setting.hook_point_out or None,
            num_tokens=num_tokens,
            on_progress=lambda done, total: update(done, total, ""),
        )


def numbers_of(evaluation: Evaluation, metadata: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``eval.json``. ``dead_share`` is that of training where it is known: it saw far more tokens."""
    numbers = evaluation.numbers()
    training = metadata["saescope"].get("training", {})
    numbers["dead_share"] = training.get("dead_share", numbers["silent_share"])
    numbers["dead_share_num_tokens"] = training.get("dead_after_tokens", numbers["num_tokens"])
    return numbers


def write_evaluation(path: Path, numbers: dict[str, float], setting: Setting) -> None:
    """``eval.json``: every number by name (null where it is undefined), and what it was measured with."""
    assert setting.held_out is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {key: None if math.isnan(value) else value for key, value in numbers.items()}
    context = {
        "model": setting.model.name,
        "hook_point": ", ".join(setting.reads),
        **({"hook_point_out": setting.hook_point_out} if setting.hook_point_out else {}),
        "held_out": vars(setting.held_out),
    }
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps({**finite, "context": context}, indent=1) + "\n")
    beside.replace(path)


def stages(console: Console, stack: ExitStack) -> Callable[[str, int, int], None]:
    """Progress of work in stages, one bar after the other."""
    bars: dict[str, Callable[[int, int, str], None]] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if what not in bars:  # the next stage begins: close the bar of the one before
            stack.pop_all().close()
            unit = "tokens" if what.startswith("reading") else "features"
            bars[what] = stack.enter_context(progress(console, what, unit))
        bars[what](done, total, "")

    return on_progress


def analyze_run(
    setting: Setting,
    dictionary: Dictionary,
    model: LanguageModel,
    text: Text | TokenWindows,
    held_out: TokenWindows | None,
    store: Store,
    console: Console,
    *,
    name: str,
    metrics: dict[str, float] | None = None,
    **options: Any,
) -> AnalysisRecord:
    """Analyze a dictionary into a store; ``options`` are those of :func:`saescope.analysis.analyze`."""
    study = [
        EvaluationResult(study="reconstruction", metric=metric, value=value, code_version=__version__)
        for metric, value in (metrics or {}).items()
    ]
    with ExitStack() as stack:
        return analyze(
            dictionary,
            model,
            text,
            setting.reads,
            hook_point_out=setting.hook_point_out,
            name=name,
            store=store,
            held_out=held_out,
            config=setting.analysis,
            dataset=setting.dataset.name,
            evaluations=study,
            run=TrainingRun(settings=setting.run) if setting.run else None,
            on_progress=stages(console, stack),
            **options,
        )


def bounded(config: RunConfig) -> WindowConfig:
    """Data sets from a hub may be endless: read no more of them than the training needs."""
    if config.windows.max_tokens is not None or not has_own_splits(config.dataset.name):
        return config.windows
    wanted = max(config.training.num_tokens, config.analysis.num_tokens or 0)
    return replace(config.windows, max_tokens=wanted + wanted // 20 + config.windows.context_size)
