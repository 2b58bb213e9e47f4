"""What a finished dictionary is looked at with: the model, the hook point and the texts of its run, or what options say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saescope.activations import DatasetConfig, WindowConfig
from saescope.activations.documents import BUNDLED, has_own_splits
from saescope.analysis import AnalysisConfig
from saescope.cli.recipe import EvaluationConfig, ModelConfig, recorded_run


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Model, hook point, texts and amounts for evaluation and analysis."""

    model: ModelConfig
    reads: tuple[str, ...]  # one hook point, or the sources of a crosscoder
    hook_point_out: str = ""  # what a transcoder rebuilds
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    held_out: DatasetConfig | None = None
    windows: WindowConfig = field(default_factory=WindowConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    run: dict[str, Any] | None = None  # the resolved recipe, for the record


def setting_of(
    path: Path,
    metadata: dict[str, Any],
    *,
    model: str | None = None,
    hook_point: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    column: str | None = None,
) -> Setting:
    """The setting of a dictionary's own run, changed by the options that are given.

    Raises:
        ValueError: a dictionary without provenance, and no option that says what is missing.
    """
    recorded = metadata["saescope"].get("run")
    if recorded:
        run = recorded_run(recorded, f"{path}/cfg.json")
        own_splits = run.held_out is None and has_own_splits(run.dataset.name)
        setting = Setting(
            model=run.model,
            reads=run.reads,
            hook_point_out=run.hook_point_out,
            dataset=run.dataset,
            held_out=None if own_splits else run.held_out_dataset(),
            windows=run.windows,
            evaluation=run.evaluation,
            analysis=run.analysis,
            run=recorded,
        )
    else:
        found_model, found_hook = model or metadata.get("model_name"), hook_point or metadata.get("hook_name")
        if not found_model or not found_hook:
            raise ValueError(f"{path} does not say what it was trained on; name it with --model and --hook-point")
        context_size = int(metadata.get("context_size") or 128)
        windows = WindowConfig(context_size=context_size, prepend_bos=bool(metadata.get("prepend_bos", True)))
        name = str(metadata.get("dataset_path") or BUNDLED)
        setting = Setting(
            model=ModelConfig(name=found_model),
            reads=tuple(str(found_hook).split(", ")),
            hook_point_out=str(metadata.get("hook_name_out") or ""),
            dataset=DatasetConfig(name=name),
            held_out=None if has_own_splits(name) else DatasetConfig(name=name, split="held_out"),
            windows=windows,
        )
    if model:
        setting = replace(setting, model=replace(setting.model, name=model))
    if hook_point:
        setting = replace(setting, reads=tuple(name.strip() for name in hook_point.split(",")))
    if dataset or split or column:
        text = setting.dataset if not dataset else DatasetConfig(name=dataset)
        text = replace(text, column=column or text.column)
        held_out = text if has_own_splits(text.name) else replace(text, split="held_out")
        setting = replace(
            setting,
            dataset=replace(text, split=split or text.split),
            held_out=replace(held_out, split=split or held_out.split),
        )
    return setting
