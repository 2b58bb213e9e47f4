"""The demo, shrunk: every step runs and leaves what it promises. The wheel runs it outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from saescope.cli.demo import DENSITY_RANGE, draw_features, is_well_labelled
from saescope.cli.recipe import load_recipe
from saescope.dictionaries import load_dictionary
from saescope.store import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label, Store

ROOT = Path(__file__).parents[2]
SHRUNK = [
    "-o", "training.num_tokens=40960", "-o", "stream.buffer_size_tokens=8192", "-o", "evaluation.num_tokens=4000",
    "-o", "analysis.num_tokens=6000", "-o", "analysis.num_held_out_tokens=6000", "-o", "training.dead_after_tokens=20000",
]  # fmt: skip


def check_demo_folder(folder: Path) -> None:
    left = {p.name for p in folder.iterdir()}
    assert {"dictionary", "eval.json", "features.db", "report.html", "plots", "metrics.jsonl", "run.json"} <= left
    assert {"explained_variance", "ce_loss_recovered", "dead_share", "l0"} <= set(
        json.loads((folder / "eval.json").read_text())
    )
    assert load_dictionary(folder / "dictionary").d_sae == 2048
    assert (folder / "plots" / "training.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    with Store.open(folder / "features.db", must_exist=True) as store:
        for feature in draw_features(store, "demo", 0):
            assert f"{feature.index}" in page


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path):
    command = [sys.executable, "-m", "saescope", "demo", "--output", "runs/demo", *SHRUNK]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    check_demo_folder(tmp_path / "runs" / "demo")
    assert "explained variance" in ran.stdout
    assert "not met" in ran.stdout  # ten steps are not enough, and the demo says so
    assert str((tmp_path / "runs" / "demo").resolve()) in ran.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.slow
def test_the_wheel_runs_the_demo_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "recipes/demo.toml",
        "web/templates/report.html",
        "bundled/weights/model.safetensors",
        "weights/card.json",
    ):
        assert any(name.endswith(needed) for name in names), needed
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import saescope; print(saescope.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert str(site) in found.stdout
    command = [sys.executable, "-m", "saescope", "demo", "--output", "out", *SHRUNK]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    check_demo_folder(tmp_path / "out")


def test_the_recipe_is_what_the_demo_promises():
    run = load_recipe("demo")
    assert run.dictionary == {"architecture": "topk", "d_sae": 2048, "k": 64}
    assert run.training.num_tokens <= 3_000_000
    assert run.training.dead_after_tokens == 400_000
    assert run.evaluation.num_tokens >= 100_000
    assert run.held_out_dataset().split == "held_out"


def feature(index: int, density: float, **label: object) -> FeatureRecord:
    return FeatureRecord(
        index=index,
        num_firings=10,
        density=density,
        max_activation=1.0,
        label=Label(**{"text": "x", "kind": "tokens", "precision": 0.9, "lift": 20.0, "num_firings": 5, **label}),
    )


def test_features_are_drawn_by_lot_within_the_range(tmp_path):
    densities = np.geomspace(1e-6, 0.5, 200)
    record = DictionaryRecord(name="d", model="m", hook_point="h", architecture="topk", d_in=4, d_sae=200)
    analysis = AnalysisRecord(dataset="t", context_size=8, num_tokens=9)
    with Store.open(tmp_path / "f.db") as store:
        store.write(record, analysis, [Feature(record=feature(i, float(d))) for i, d in enumerate(densities)], [], [])
        drawn = draw_features(store, "d", seed=0)
        assert [f.index for f in drawn] == [f.index for f in draw_features(store, "d", seed=0)]
        assert [f.index for f in drawn] != [f.index for f in draw_features(store, "d", seed=1)]
    assert len({f.index for f in drawn}) == 12
    assert all(DENSITY_RANGE[0] <= f.density <= DENSITY_RANGE[1] for f in drawn)


@pytest.mark.parametrize(
    ("label", "good"),
    [
        ({}, True),
        ({"precision": 0.79}, False),
        ({"lift": 9.9}, False),
        ({"precision": None, "lift": None, "num_firings": 0}, False),
        ({"kind": "after"}, False),
        ({"kind": "syntax"}, True),
    ],
)
def test_what_counts_as_a_good_label(label, good):
    assert is_well_labelled(feature(0, 0.001, **label)) is good
