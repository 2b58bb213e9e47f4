"""Plots: PNG files with something on them, also for runs of which there is little to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saescope.evaluation.plots import plot_densities, plot_training


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (864, 504)  # 7.2 x 4.2 inches at 120 dots
        return np.asarray(image.convert("RGB")).astype(int)


def bars(path: Path) -> int:
    """Number of blue pixels."""
    return int((np.abs(pixels(path) - (0x25, 0x63, 0xA8)).sum(-1) < 40).sum())


def metrics_file(path: Path, explained_variances: list[float]) -> Path:
    lines = [
        {"num_tokens": 1000 * (i + 1), "explained_variance": value, "dead_share": 0.01 * i, "l0": 32.0}
        for i, value in enumerate(explained_variances)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("values", [[0.2, 0.6, 0.8, 0.85], [0.7], [-5.0, -0.2, 0.99]])
def test_training(values: list[float], tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "training.png"
    assert plot_training(metrics_file(tmp_path / "metrics.jsonl", values), target) == target
    assert len(np.unique(pixels(target).reshape(-1, 3), axis=0)) > 20
    if len(values) > 2:
        assert bars(target) > 100


def test_densities(tmp_path: Path) -> None:
    density = 10 ** np.random.default_rng(0).uniform(-5, -1, 2000)
    target = tmp_path / "densities.png"
    assert plot_densities(density, target) == target
    assert bars(target) > 10_000


def test_densities_of_dead_dictionaries(tmp_path: Path) -> None:
    assert bars(plot_densities(np.zeros(64), tmp_path / "dead.png")) == 0
    one_alive = np.zeros(64)
    one_alive[3] = 0.5
    assert bars(plot_densities(one_alive, tmp_path / "one.png")) > 1000


@pytest.mark.parametrize("density", [1.0, 1e-6, 1e-9])
def test_no_feature_falls_off_the_edge(density: float, tmp_path: Path) -> None:
    assert bars(plot_densities(np.full(8, density), tmp_path / "edge.png")) > 1000
