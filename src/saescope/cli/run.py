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

import saescope
from saescope.activations import ActivationStream, DatasetConfig, TokenWindows, WindowConfig, read_documents
from saescope.activations.documents import has_own_splits
from saescope.analysis import analyze
from saescope.cli.folders import RunFolder
from saescope.cli.progress import progress
from saescope.cli.recipe import ModelConfig, RunConfig
from saescope.cli.setting import Setting
from saescope.dictionaries import Dictionary, save_dictionary
from saescope.evaluation import Evaluation, evaluate
from saescope.models import LanguageModel
from saescope.store import DictionaryRecord, Store
from saescope.training import StepMetrics, loss_for, train


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


def train_run(
    config: RunConfig, folder: RunFolder, console: Console, *, resume: bool
) -> tuple[LanguageModel, TokenWindows]:
    """Train the dictionary of a run into its folder; gives back the parts that later steps use again."""
    model = load_model(config.model)
    hook_points = [*config.reads, *([config.hook_point_out] if config.hook_point_out else [])]
    dictionary = config.build_dictionary({name: model.width(name) for name in hook_points})
    windows = load_windows(model, config.dataset, _bounded(config), console)
    stream = ActivationStream(
        model,
        windows,
        hook_points,
        batch_size_tokens=config.training.batch_size_tokens,
        config=config.stream,
        seed=config.seed,
    )
    passes = config.training.num_tokens / windows.num_tokens
    console.print(
        f"{config.dictionary['architecture']} dictionary, {dictionary.d_sae:,} features of width {dictionary.d_in}, "
        f"at {' to '.join(hook_points) if config.hook_point_out else ' and '.join(hook_points)} of {model.name}\n"
        f"{config.training.num_steps:,} steps of {config.training.batch_size_tokens:,} tokens: "
        f"{passes:.2f} passes over {windows.num_tokens:,} tokens from {len(windows.documents):,} documents\n"
        f"{stream.mixing()}",
        highlight=False,
        soft_wrap=True,
    )
    metadata = {
        "model_name": config.model.name,
        "hook_name": ", ".join(config.reads),
        "hf_hook_name": ", ".join(model.hook_point(name).canonical for name in config.reads),
        "dataset_path": config.dataset.name,
        "context_size": config.windows.context_size,
        "prepend_bos": config.windows.prepend_bos,
    }
    if config.hook_point_out:
        metadata["hook_name_out"] = config.hook_point_out
        metadata["hf_hook_name_out"] = model.hook_point(config.hook_point_out).canonical
    remark = ""

    def on_metrics(metrics: StepMetrics) -> None:
        nonlocal remark
        remark = (
            f"explained variance {metrics.explained_variance:.3f}, L0 {metrics.l0:.0f}, dead {metrics.dead_share:.1%}"
        )

    try:
        with progress(console, "training", "tokens") as update:
            size = config.training.batch_size_tokens
            result = train(
                dictionary,
                stream.pair(*hook_points) if config.hook_point_out else stream.joined(hook_points),
                config.training,
                loss=loss_for(dictionary, config.loss),
                folder=folder.path,
                resume=resume,
                on_metrics=on_metrics,
                on_step=lambda done, total: update(done * size, total * size, remark),
                source=" and ".join(hook_points),
                metadata=metadata,
            )
    except KeyboardInterrupt:
        console.print(
            f"stopped; the same command with --resume goes on from the last checkpoint in {folder.path}",
            highlight=False,
            soft_wrap=True,
        )
        raise SystemExit(130) from None
    summary = {
        "num_tokens": result.num_tokens,
        "dead_share": result.dead_share,
        "dead_after_tokens": config.training.dead_after_tokens,
    }
    provenance = {"version": saescope.__version__, "run": config.as_dict(), "training": summary}
    save_dictionary(dictionary, folder.dictionary, metadata=metadata, saescope=provenance, overwrite=True)
    return model, windows


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


def analyze_run(
    setting: Setting,
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    held_out: TokenWindows | None,
    store: Store,
    console: Console,
    *,
    name: str,
    metrics: dict[str, float] | None = None,
    overwrite: bool = False,
) -> DictionaryRecord:
    """Analyze a dictionary into a store."""
    with ExitStack() as stack:
        bars: dict[str, Callable[[int, int, str], None]] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:  # the next stage begins: close the bar of the one before
                stack.pop_all().close()
                bars[what] = stack.enter_context(progress(console, what, "features" if "naming" in what else "tokens"))
            bars[what](done, total, "")

        return analyze(
            dictionary,
            model,
            windows,
            ", ".join(setting.reads),
            hook_point_out=setting.hook_point_out or None,
            name=name,
            store=store,
            held_out=held_out,
            config=setting.analysis,
            dataset=setting.dataset.name,
            metrics=metrics,
            details={"run": setting.run} if setting.run else {},
            overwrite=overwrite,
            on_progress=on_progress,
        )


def _bounded(config: RunConfig) -> WindowConfig:
    """Data sets from a hub may be endless: read no more of them than the training needs."""
    if config.windows.max_tokens is not None or not has_own_splits(config.dataset.name):
        return config.windows
    wanted = max(config.training.num_tokens, config.analysis.num_tokens or 0)
    return replace(config.windows, max_tokens=wanted + wanted // 20 + config.windows.context_size)
