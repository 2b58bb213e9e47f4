"""Pictures of a report: PNG files with something on them and words for who does not see them, for one and for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saescope.evaluation.reporting.plots import (
    plot_density_histograms,
    plot_numbers,
    plot_pareto,
    plot_probing,
    plot_report,
)
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
from saescope.evaluation.results import Number, StudyResult

BLUE, ORANGE, GREEN = (0x25, 0x63, 0xA8), (0xC2, 0x57, 0x1A), (0x1F, 0x8A, 0x5B)


def studies(l0: float | None, ev: float | None, f1: float = 0.5) -> dict[str, StudyResult]:
    edges = np.linspace(-6, 0, 13)
    counts = [0.0] * 12
    counts[7] = 40.0
    numbers = (
        Number.of("explained_variance", ev, low=None if ev is None else ev - 0.02, high=None if ev is None else ev + 0.03,
                  better="higher"),
        Number.of("l0", l0),
        Number.of("ce_loss_recovered", ev, better="higher"),
    )  # fmt: skip
    histogram = {"left": edges[:-1].tolist(), "right": edges[1:].tolist(), "count": counts}
    curve = {"k": [1, 4], "f1_features": [f1, f1 + 0.1], "f1_dimensions": [0.25, None], "f1_dense": [0.95, 0.95]}
    return {
        "core": StudyResult(study="core", numbers=numbers, curves={"density_histogram": histogram}),
        "probing": StudyResult(
            study="probing",
            numbers=(Number(name="f1_features_k1", value=f1, better="higher"),),
            curves={"probing": curve},
        ),
    }


def report_of(*made: tuple[str, str, int, dict[str, StudyResult]], **more: Any) -> EvaluationReport:
    return EvaluationReport(
        dictionaries=tuple(
            EvaluatedDictionary(name=f"{a}-{s}-{seed}", architecture=a, d_sae=64, seed=seed, sparsity=s, studies=own)
            for a, s, seed, own in made
        ),
        **more,
    )


def many(num_architectures: int = 2) -> EvaluationReport:
    return report_of(
        *(
            (f"arch{a}", f"k = {k}", seed, studies(k + seed, 0.5 + 0.1 * a + 0.001 * k, 0.4 + 0.1 * a))
            for a in range(num_architectures)
            for k in (8, 32, 128)
            for seed in (0, 1)
        )
    )


FEW = report_of(("topk", "k = 8", 0, studies(8.0, 0.75)), ("relu", "k = 8", 0, studies(9.0, 0.5)))
ONE = report_of(("topk", "k = 8", 0, studies(8.0, 0.75)))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def of_colour(path: Path, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels(path) - colour).sum(-1) < 40).sum())


def test_pareto(tmp_path: Path) -> None:
    picture = plot_pareto(many(), tmp_path / "new" / "pareto.png")
    assert picture is not None
    assert picture.path == tmp_path / "new" / "pareto.png"
    assert of_colour(picture.path, BLUE) > 300
    assert of_colour(picture.path, ORANGE) > 300
    assert of_colour(picture.path, GREEN) == 0  # there is no third architecture
    # means over the two seeds, by rising L0
    assert picture.alt == (
        "Explained variance against sparsity. arch0: 0.508 at L0 8.5, 0.532 at L0 32.5, 0.628 at L0 128; "
        "arch1: 0.608 at L0 8.5, 0.632 at L0 32.5, 0.728 at L0 128."
    )
    assert "seed" in picture.caption


def test_a_pareto_of_points_without_values(tmp_path: Path) -> None:
    gaps = report_of(
        ("topk", "k = 8", 0, studies(8.0, None)), ("topk", "k = 32", 0, studies(0.0, 0.5)), ("relu", "", 0, {}),
        ("relu", "k = 8", 0, studies(9.0, -4.0)),
    )  # fmt: skip
    picture = plot_pareto(gaps, tmp_path / "gaps.png")
    assert picture is not None
    assert picture.alt == "Explained variance against sparsity. relu: -4 at L0 9."
    assert plot_pareto(report_of(("topk", "", 0, {})), tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_densities_of_one_and_of_many(tmp_path: Path) -> None:
    one = plot_density_histograms(ONE, tmp_path / "one.png")
    assert one is not None
    assert of_colour(one.path, BLUE) == 0  # the bars are a little lighter than the colour of lines
    blueish = pixels(one.path)
    assert int(((blueish[..., 2] - blueish[..., 0]) > 60).sum()) > 2000
    assert "topk -2.25" in one.alt  # the middle of bin 7 of 12
    assert "seeds" not in one.caption
    grid = plot_density_histograms(many(5), tmp_path / "many.png")
    assert grid is not None
    assert "seeds over one another" in grid.caption
    height, width, _ = pixels(grid.path).shape
    assert width == 864  # three settings side by side
    assert height > 900  # five architectures
    assert plot_density_histograms(report_of(("topk", "", 0, {})), tmp_path / "none.png") is None


def test_densities_of_a_dead_dictionary(tmp_path: Path) -> None:
    dead = studies(0.0, 0.0)
    curve = {**dead["core"].curves["density_histogram"], "count": [0.0] * 12}
    report = report_of(("topk", "k", 0, {"core": StudyResult(study="core", curves={"density_histogram": curve})}))
    picture = plot_density_histograms(report, tmp_path / "dead.png")
    assert picture is not None
    assert "topk nowhere" in picture.alt


def test_probing(tmp_path: Path) -> None:
    picture = plot_probing(many(), tmp_path / "probing.png")
    assert picture is not None
    assert of_colour(picture.path, BLUE) > 200
    assert of_colour(picture.path, ORANGE) > 200
    assert picture.alt == (
        "F1 of sparse probes. arch0 with 1 0.4, arch0 with 4 0.5, arch1 with 1 0.5, arch1 with 4 0.6, "
        "k dimensions of x 0.25, all of x 0.95."
    )
    assert plot_probing(ONE, tmp_path / "one.png") is not None
    failed = {"probing": StudyResult.failed("probing", ValueError("no"))}
    assert plot_probing(report_of(("topk", "", 0, failed)), tmp_path / "none.png") is None


def test_numbers(tmp_path: Path) -> None:
    keys = ["core.explained_variance", "core.l0", "core.nothing", "probing.f1_features_k1"]
    report = report_of(("topk", "k = 8", 0, studies(8.0, 0.75)), ("relu", "k = 8", 0, studies(9.0, None)))
    picture = plot_numbers(report, tmp_path / "numbers.png", keys)
    assert picture is not None
    assert picture.alt == (
        "Numbers with intervals. explained variance: topk 0.75, relu nowhere (no value); L0: topk 8, relu 9; "
        "F1 features k1: topk 0.5, relu 0.5."
    )
    assert plot_numbers(report, tmp_path / "none.png", ["core.nothing"]) is None


@pytest.mark.parametrize(("report", "expected"), [(ONE, 3), (FEW, 5), (report_of(("topk", "", 0, {})), 0)])
def test_all_pictures(report: EvaluationReport, expected: int, tmp_path: Path) -> None:
    drawn = plot_report(report, tmp_path / "plots")
    assert len(drawn) == expected
    assert {picture.path for picture in drawn} == set((tmp_path / "plots").glob("*.png"))
    for picture in drawn:
        assert picture.alt
        assert picture.caption
        assert len(np.unique(pixels(picture.path).reshape(-1, 3), axis=0)) > 20
        assert picture.as_dict()["path"] == str(picture.path)


def test_more_architectures_than_colours(tmp_path: Path) -> None:
    report = report_of(*((f"arch{i}", "k = 8", 0, studies(8.0 + i, 0.5)) for i in range(11)))
    assert plot_pareto(report, tmp_path / "pareto.png") is not None
