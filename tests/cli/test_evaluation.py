"""``saescope eval`` of several dictionaries with several studies, and ``saescope sweep``: what a user sees and finds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from saescope.evaluation.reporting.report import read_report_json
from saescope.store import Store


@pytest.fixture(autouse=True)
def results_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def another(trained: Path, tmp_path: Path) -> Path:
    """The same run with other weights."""
    copy = tmp_path / "another"
    shutil.copytree(trained, copy)
    weights = copy / "dictionary" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"].flip(0).contiguous()
    save_file(tensors, weights)
    return copy


def test_several_dictionaries_and_studies(cli: Any, trained: Path, another: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("eval", trained, another, "--studies", "core,l0", "--num-sample-tokens", 500, "--out", out)
    ran = cli(*arguments)
    assert ran.code == 0, ran.err
    assert "another" in ran.out
    assert "explained variance" in ran.out
    report = read_report_json(out / "report.json")
    assert [about.name for about in report.dictionaries] == [trained.name, "another"]
    good, bad = (about.number("core.explained_variance").value for about in report.dictionaries)
    assert good > bad
    assert {"core", "l0"} <= set(report.dictionaries[0].studies)
    assert "report.html" in ran.out
    assert "<script" in (out / "report.html").read_text()
    assert list((out / "plots").glob("*.png"))
    for home in (trained, another):
        assert json.loads((home / "eval.json").read_text())["num_tokens"] > 0
    again = cli(*arguments)
    assert again.code == 0
    first, second = (re.findall(r"2 studies, (\d+) s", run.out) for run in (ran, again))
    assert len(first) == len(second) == 2
    assert read_report_json(out / "report.json").dictionaries == report.dictionaries  # found, not made again


def test_json_holds_every_study_that_was_asked_for(cli: Any, trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    assert cli("eval", trained, "--studies", "l0", "--num-sample-tokens", 500, "--json", target).code == 0
    (about,) = read_report_json(target).dictionaries
    assert list(about.studies) == ["l0"]


def test_numbers_go_to_the_store(cli: Any, trained: Path, tmp_path: Path) -> None:
    store = tmp_path / "features.db"
    assert cli("analyze", trained, "--store", store).code == 0
    with Store.open(store) as opened:
        name = opened.dictionaries()[0].name
    renamed = tmp_path / name
    if renamed != trained:
        shutil.copytree(trained, renamed, ignore=shutil.ignore_patterns("*.db"))
    ran = cli("eval", renamed, "--store", store)
    assert ran.code == 0, ran.err
    with Store.open(store) as opened:
        found = {e.metric: e for e in opened.evaluations(name) if e.study == "core"}
    assert found["explained_variance"].low <= found["explained_variance"].value <= found["explained_variance"].high
    assert "numbers of" in ran.out
    elsewhere = cli("eval", trained, "--store", tmp_path / "empty.db")
    assert elsewhere.code == 2


def test_what_saebench_would_say_stands_in_a_file_of_its_own(cli: Any, trained: Path, tmp_path: Path) -> None:
    ran = cli("eval", trained, "--saebench", tmp_path / "tables")
    assert ran.code == 0, ran.err
    (path,) = (tmp_path / "tables").glob("*_eval_results.json")
    written = json.loads(path.read_text())
    assert written["eval_type_id"] == "core"
    theirs = written["eval_result_metrics"]["reconstruction_quality"]["explained_variance"]
    ours = json.loads((trained / "eval.json").read_text())
    assert theirs != pytest.approx(ours["explained_variance"], abs=1e-6)
    assert "explained_variance_saebench" not in ours


def test_mistakes_in_words(cli: Any, trained: Path) -> None:
    ran = cli("eval", trained, "--studies", "cores")
    assert ran.code == 2
    assert "no study is named 'cores'; there are all, core, l0" in ran.err
    ran = cli("eval", trained, trained)
    assert ran.code == 2
    assert "more than once" in ran.err
    ran = cli("eval", trained, "--hook-point", "transformer.h.9")
    assert ran.code == 2


def test_nan_weights_are_an_error(cli: Any, another: Path) -> None:
    weights = another / "dictionary" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][0, 0] = float("nan")
    save_file(tensors, weights)
    ran = cli("eval", another)
    assert ran.code == 2
    assert "W_dec" in ran.out + ran.err
    assert "Traceback" not in ran.err


SWEEP = """
name = "small"
seeds = [0, 1]
dictionaries_per_pass = 3
studies = ["core", "l0"]

[base]
{recipe}

[[variants]]
name = "topk-4"
sparsity = "L0 4"
dictionary = {{ architecture = "topk", k = 4 }}

[[variants]]
name = "batch-4"
sparsity = "L0 4"
dictionary = {{ architecture = "batch_topk", k = 4 }}
"""


def test_a_sweep_is_trained_evaluated_and_gone_on_with(cli: Any, recipe: Path, tmp_path: Path) -> None:
    lines = recipe.read_text().splitlines()
    text, section = [], "base"
    for line in lines:
        if re.match(r"\[\w+\]", line):
            section = f"base.{line.strip('[] ')}"
            text.append(f"[{section}]")
        elif not re.match(r"(architecture|k) =" if section != "base" else r"name =", line):
            text.append(line)
    file = tmp_path / "small.toml"
    file.write_text(SWEEP.format(recipe="\n".join(text)))
    out = tmp_path / "out"
    ran = cli("sweep", file, "--out", out, "--num-sample-tokens", 500)
    assert ran.code == 0, ran.err
    assert "pass 2 of 2: 1 dictionaries" in ran.out
    report = read_report_json(out / "report.json")
    assert [about.name for about in report.dictionaries] == [
        "topk-4-seed-0", "batch-4-seed-0", "topk-4-seed-1", "batch-4-seed-1"
    ]  # fmt: skip
    assert {about.sparsity for about in report.dictionaries} == {"L0 4"}
    assert {about.seed for about in report.dictionaries} == {0, 1}
    assert all("consistency" in about.studies for about in report.dictionaries)
    assert re.search(r"training \d+ s, studies \d+ s", ran.out)
    assert set(report.seconds) == {"training", "studies"}
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    shutil.rmtree(out / "topk-4-seed-1" / "dictionary")
    again = cli("sweep", file, "--out", out, "--num-sample-tokens", 500, "--resume")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in weights if "topk-4-seed-1" not in str(path)} == {
        path: time for path, time in weights.items() if "topk-4-seed-1" not in str(path)
    }
    assert read_report_json(out / "report.json").dictionaries == report.dictionaries
    refused = cli("sweep", file, "--out", out)
    assert refused.code == 2
    assert "--resume" in refused.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0, 1]", "seeds = [0, 0]"), "two seeds are 0"),
        (('name = "batch-4"', 'name = "topk-4"'), "two variants are named topk-4"),
        (("seeds = [0, 1]", "seed = [0, 1]"), "unknown key seed; did you mean seeds"),
        (('"topk", k = 4', '"topk", kk = 4'), "variant topk-4"),
        (('studies = ["core", "l0"]', 'studies = ["cores"]'), "no study is named 'cores'"),
    ],
)
def test_mistakes_in_a_sweep(cli: Any, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    base = 'hook_point = "blocks.1.hook_resid_post"\ndictionary = { d_sae = 64 }\ntraining = { num_tokens = 5000 }'
    file = tmp_path / "bad.toml"
    file.write_text(SWEEP.format(recipe=base).replace(*change))
    ran = cli("sweep", file, "--out", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()
