"""What several commands do with a run: load its parts, train, evaluate, analyze, with progress shown."""

from __future__ import annotations

import json
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
from saescope.evaluation import Number, StudyResult, evaluate
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
) -> StudyResult:
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


def with_dead_share(core: StudyResult, metadata: dict[str, Any]) -> StudyResult:
    """The core numbers and ``dead_share``: that of training where it is known, since it saw far more tokens."""
    training = metadata.get("saescope", {}).get("training", {})
    share = training.get("dead_share", core["silent_share"].value)
    num_tokens = training.get("dead_after_tokens", core["num_tokens"].value)
    dead = Number(name="dead_share", value=share, better="lower", variant=f"no firing on {num_tokens:,.0f} tokens")
    return replace(core, numbers=(*core.numbers, dead))


def write_evaluation(path: Path, core: StudyResult, setting: Setting) -> None:
    """``eval.json``: every number by name (null where it is undefined, and why), intervals, and what was measured with."""
    assert setting.held_out is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {
        "model": setting.model.name,
        "hook_point": ", ".join(setting.reads),
        **({"hook_point_out": setting.hook_point_out} if setting.hook_point_out else {}),
        "held_out": vars(setting.held_out),
    }
    written = {
        **core.values(),
        "intervals": {number.name: [number.low, number.high] for number in core.numbers if number.low is not None},
        "not_defined": {number.name: number.reason for number in core.numbers if number.value is None},
        "context": context,
    }
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(written, indent=1) + "\n")
    beside.replace(path)


def as_records(result: StudyResult) -> list[EvaluationResult]:
    """A study's numbers as a store keeps them."""
    return [
        EvaluationResult(
            study=result.study,
            metric=number.name,
            value=number.value,
            low=number.low,
            high=number.high,
            variant=number.variant,
            code_version=__version__,
            details={"reason": number.reason} if number.reason else {},
        )
        for number in result.numbers
    ]


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
    core: StudyResult | None = None,
    **options: Any,
) -> AnalysisRecord:
    """Analyze a dictionary into a store; ``options`` are those of :func:`saescope.analysis.analyze`."""
    study = [] if core is None else as_records(core)
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
