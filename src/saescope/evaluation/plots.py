"""Pictures of a training run and of a dictionary, as PNG files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GRID = "#1f2933", "#2563a8", "#c2571a", "#d9dee3"


def plot_training(metrics: Path, target: Path) -> Path:
    """Explained variance and dead share over the training tokens, from a run's ``metrics.jsonl``."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    tokens = np.array([line["num_tokens"] for line in lines]) / 1e6
    figure = new_figure()
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    axes[0].plot(tokens, [line["explained_variance"] for line in lines], color=BLUE)
    axes[0].set_ylabel("explained variance")
    axes[0].set_ylim(min(0.5, max(0.0, min(line["explained_variance"] for line in lines))), 1)
    axes[1].plot(tokens, [100 * line["dead_share"] for line in lines], color=ORANGE)
    axes[1].set_ylabel("dead features, %")
    axes[1].set_ylim(0, max(1.0, 110 * max(line["dead_share"] for line in lines)))  # a single dead feature is no peak
    axes[1].set_xlabel("training tokens, millions")
    axes[0].set_title("Training", loc="left")
    return save(figure, axes, target)


def plot_densities(density: np.ndarray, target: Path) -> Path:
    """Histogram of log10 density over the features that fire; the others are counted in the title."""
    alive = density[density > 0]
    figure = new_figure()
    axes = figure.subplots()
    axes.hist(np.log10(alive).clip(-6), bins=np.linspace(-6, 0, 61).tolist(), color=BLUE)
    axes.set_xlabel("density: share of tokens on which a feature fires (log10)")
    axes.set_ylabel("features")
    axes.set_title(f"Densities of {len(alive):,} features; {len(density) - len(alive):,} never fired", loc="left")
    return save(figure, [axes], target)


def new_figure(width: float = 7.2, height: float = 4.2) -> Figure:
    """An empty picture, in inches; at 120 dots an inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Figure, axes: Any, target: Path) -> Path:
    """Give all axes the same light frame and write the picture."""
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target
