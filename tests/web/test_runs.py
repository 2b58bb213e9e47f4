"""The pages of training runs and their twins: numbers as in the files and in the store, and no way to another file."""

from __future__ import annotations

import json
import math
import os
import re
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import AnalysisRecord, DictionaryRecord, EvaluationResult, TrainingRun
from saescope.web.app import create_app
from saescope.web.evaluated import plot_of, table_rows
from saescope.web.numbers import decimal

ATTACK = "<script>alert(1)</script>"


def rows(num: int, factor: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": 10 * i, "num_tokens": 1280 * i, "loss": factor / i, "dead_share": 0.125,
         "explained_variance": math.nan if i < 3 else 1 - factor / i, "parts": {"mse": factor * 3.5 / i, ATTACK: 1.5}}
        for i in range(1, num + 1)
    ]  # fmt: skip


def write_run(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def add_dictionary(store: Store, name: str, results: list[EvaluationResult], **details: Any) -> None:
    record = DictionaryRecord(
        name=name, model="m", hook_point="h", architecture="topk", d_in=2, d_sae=2, details=details
    )
    analysis = AnalysisRecord(dataset="d", context_size=4, num_tokens=4)
    run = TrainingRun(settings={"training": {"lr": 0.002, "nothing": None}, "note": ATTACK})
    store.write(record, analysis, [], [], [], evaluations=results, run=run)


def core(l0: float, explained: float, recovered: float | None) -> list[EvaluationResult]:
    return [
        EvaluationResult(study="core", metric="l0", value=l0, low=l0 - 0.5, high=l0 + 0.5),
        EvaluationResult(study="core", metric="explained_variance", value=explained, low=explained - 0.01, high=0.99),
        EvaluationResult(study="core", metric="ce_loss_recovered", value=recovered, variant="zero"),
    ]


@pytest.fixture
def runs(tmp_path: Path, store: Store) -> Path:
    """Two runs in a folder, and one beside the dictionary "a/b"."""
    write_run(tmp_path / "runs" / "first", rows(20))
    write_run(tmp_path / "runs" / "deep" / ATTACK.replace("/", "_"), rows(3000, 2.0))
    (write_run(tmp_path / "own", rows(5)) / "run.json").write_text('{"training": {"num_tokens": 12800}}')
    add_dictionary(store, "a/b", core(32.0, 0.91234, 0.95), source=str(tmp_path / "own" / "dictionary"))
    add_dictionary(store, "other", core(200.0, 0.95, None))
    return tmp_path / "runs"


@pytest.fixture
def asking(store: Store, runs: Path, client_of: Any) -> Any:
    return client_of(create_app(store, run_folders=[runs]))


def ids(asking: Any) -> dict[str, str]:
    return {run["name"]: run["id"] for run in asking.get("/api/runs").json()["runs"]}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def test_curves_are_as_in_the_file(asking: Any, runs: Path):
    answer = asking.get("/api/runs/metrics", params={"run": ids(asking)["first"]})
    assert answer.status_code == 200
    found = answer.json()
    assert found["curves"]["loss"] == {
        "title": "Loss", "step": [10 * i for i in range(1, 21)], "num_tokens": [1280 * i for i in range(1, 21)],
        "value": [1 / i for i in range(1, 21)],
    }  # fmt: skip
    assert found["curves"]["explained_variance"]["value"][:3] == [None, None, 1 - 1 / 3]
    assert found["curves"]["parts.mse"]["title"] == "Part of the loss: mse"
    assert found["num_rows"] == 20
    assert found["last"]["loss"] == 1 / 20
    assert list(found["curves"])[:3] == ["loss", "explained_variance", "dead_share"]


def test_a_long_run_is_thinned_and_what_is_new_comes_whole(asking: Any, runs: Path):
    name = next(name for name in ids(asking) if name.startswith("deep"))
    identity = ids(asking)[name]
    found = asking.get("/api/runs/metrics", params={"run": identity}).json()
    assert 900 < len(found["curves"]["loss"]["value"]) <= 1003
    assert found["num_rows"] == 3000
    more = {"step": 30_010, "num_tokens": 3_841_280, "loss": 0.5}
    with open(runs / name / "metrics.jsonl", "a") as end:
        end.write(json.dumps(more) + "\n" + '{"step": 30_02')
    new = asking.get("/api/runs/metrics", params={"run": identity, "after": 30_000}).json()
    assert new["curves"]["loss"] == {"title": "Loss", "step": [30_010], "num_tokens": [3_841_280], "value": [0.5]}
    assert new["version"] == found["version"]
    assert new["num_rows"] == 3001
    (runs / name / "metrics.jsonl").write_text(json.dumps(more) + "\n")
    assert asking.get("/api/runs/metrics", params={"run": identity}).json()["version"] != found["version"]


def test_the_page_shows_the_last_values_of_the_runs_asked_for(asking: Any):
    known = ids(asking)
    page = asking.get("/runs", params={"run": known["first"]})
    assert page.status_code == 200
    words = text_of(page.text)
    assert "Step 200" in words
    assert f"Loss {decimal(1 / 20)}" in words
    assert "Dead share 12.5 %" in words
    assert "3,840,000" not in words  # of another run
    assert ATTACK not in page.text
    assert "&lt;script&gt;" in page.text
    twin = asking.get("/api/runs", params={"run": known["first"]}).json()
    assert twin["selected"] == [known["first"]]
    assert twin["last"][known["first"]]["loss"] == 1 / 20


def test_without_a_choice_the_newest_are_shown_and_an_empty_one_is_none(asking: Any):
    assert len(asking.get("/api/runs").json()["selected"]) == 3
    assert asking.get("/api/runs?run=").json()["selected"] == []
    assert "No run is chosen." in asking.get("/runs?run=").text


@pytest.mark.parametrize("given", ["../../etc", "x", "%00", "/etc/passwd"])
def test_only_runs_that_were_found_can_be_asked_for(asking: Any, given: str):
    for path in ("/api/runs/metrics", "/api/runs", "/runs"):
        answer = asking.get(f"{path}?run={given}")
        assert answer.status_code == 404, path
        assert "no training run" in unescape(answer.text)


@pytest.mark.parametrize(
    "query", ["run=" + "x" * 13, "run=x&after=nan", "run=x&after=inf", "run=x&after=1e300", "after=1", "run=x&after=y"]
)
def test_questions_that_make_no_sense_are_refused(asking: Any, query: str):
    assert asking.get(f"/api/runs/metrics?{query}").status_code == 422


def test_no_more_runs_than_can_be_told_apart(asking: Any):
    assert asking.get("/runs?" + "&".join(["run=x"] * 9)).status_code == 422


def test_the_training_page_belongs_to_its_dictionary(asking: Any, tmp_path: Path):
    page = asking.get("/d/a%2Fb/training")
    assert page.status_code == 200
    words = text_of(page.text)
    assert "Step 50" in words
    assert f"explained variance {decimal(0.91234)}" in words
    assert f"{decimal(0.90234)} to {decimal(0.99)}" in words
    assert "training.lr" in words
    assert "nothing" not in words
    twin = asking.get("/api/d/a%2Fb/training").json()
    (run,) = twin["runs"]
    assert run["dictionaries"] == ["a/b"]
    assert run["num_planned_tokens"] == 12800
    assert run["is_live"] is True
    assert [result["value"] for result in twin["evaluations"]["a/b"] if result["metric"] == "explained_variance"] == [
        0.91234
    ]
    assert twin["trained"][0]["settings"]["training"]["lr"] == 0.002
    old = time.time() - 7200
    os.utime(tmp_path / "own" / "metrics.jsonl", (old, old))
    assert asking.get("/api/d/a%2Fb/training").json()["runs"][0]["is_live"] is False
    assert "2 h ago" in asking.get("/d/a%2Fb/training").text


def test_what_is_not_there_is_said(store: Store, client_of: Any):
    asking = client_of(create_app(store))
    assert "No training run was found." in asking.get("/runs").text
    name = "tiny%20%3Cb%3Etopk%3C%2Fb%3E"
    page = asking.get(f"/d/{name}/training")
    assert page.status_code == 200
    assert "There are no curves" in page.text
    assert "does not hold the settings" in page.text
    assert asking.get("/d/nobody/training").status_code == 404
    assert asking.get("/api/d/nobody/training").status_code == 404


def test_an_empty_file_and_a_damaged_one_have_words(store: Store, tmp_path: Path, client_of: Any):
    write_run(tmp_path / "runs" / "empty", [])
    (write_run(tmp_path / "runs" / "bad", rows(2)) / "metrics.jsonl").write_text("x\ny\n")
    page = text_of(client_of(create_app(store, run_folders=[tmp_path / "runs"])).get("/runs").text)
    assert "empty has no line yet" in page
    assert "2 lines of bad could not be read" in page


def test_numbers_of_evaluations_are_those_of_the_store(asking: Any, store: Store):
    page = asking.get("/runs")
    twin = asking.get("/api/runs").json()
    assert set(twin["evaluations"]) == {"a/b", "other", "tiny <b>topk</b>"}
    for name, results in twin["evaluations"].items():
        assert [(r["metric"], r["value"]) for r in results] == [(r.metric, r.value) for r in store.evaluations(name)]
    points = {plot["y"]: plot["points"] for plot in twin["plots"]}
    assert points["explained_variance"] == [
        {"dictionary": "a/b", "x": 32.0, "y": 0.91234},
        {"dictionary": "other", "x": 200.0, "y": 0.95},
    ]
    assert points["ce_loss_recovered"] == [{"dictionary": "a/b", "x": 32.0, "y": 0.95}]
    assert page.text.count('class="point') == 3
    assert "L0 against explained variance" in text_of(page.text)
    assert "tiny <b>" not in page.text


def test_numbers_that_are_not_finite_stay_out_of_the_json(store: Store, tmp_path: Path, client_of: Any):
    store.add_evaluations(None, [EvaluationResult(study="s", metric="m", value=None)])
    write_run(tmp_path / "runs" / "r", [{"step": 1, "loss": math.inf}])
    asking = client_of(create_app(store, run_folders=[tmp_path / "runs"]))
    twin = asking.get("/api/runs")
    assert twin.status_code == 200
    json.loads(twin.text, parse_constant=lambda _: pytest.fail("not finite"))
    assert asking.get("/runs").status_code == 200
    assert asking.get("/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E/training").status_code == 200


# evaluated.py


def test_of_a_number_measured_twice_the_newest_stands_in_the_table():
    def result(value: float, created: str) -> EvaluationResult:
        return EvaluationResult(study="core", metric="mse", value=value, code_version=created, created_at=created)

    (row,) = table_rows({"a": [result(1.0, "2026-01-02"), result(2.0, "2026-01-01")], "b": []})
    assert row.cells[0] is not None
    assert row.cells[0].value == 1.0
    assert row.cells[1] is None
    assert row.words == "mean squared error"


def test_places_on_a_plot_are_in_proportion():
    plot = plot_of(
        {"a": core(10, 0.8, None), "b": core(20, 0.9, None), "c": core(40, 0.85, None)}, "l0", "explained_variance"
    )
    assert plot is not None
    a, b, c = plot.points
    assert not plot.logarithmic
    assert (b.left - a.left) / (c.left - a.left) == pytest.approx(1 / 3, abs=1e-3)
    assert (c.up - a.up) / (b.up - a.up) == pytest.approx(1 / 2, abs=1e-3)
    assert all(0 < p.left < 100 and 0 < p.up < 100 for p in plot.points)
    ticks = {float(words): place for place, words in plot.x_ticks}
    assert len(ticks) >= 3
    low, high = min(ticks), max(ticks)
    per_unit = (ticks[high] - ticks[low]) / (high - low)
    assert a.left == pytest.approx(ticks[low] + per_unit * (10 - low), abs=0.05)
    assert plot.summary.startswith("L0 against explained variance. a: L0 10, explained variance 0.8;")


def test_a_wide_range_is_drawn_on_a_log_scale():
    plot = plot_of(
        {"a": core(4, 0.8, None), "b": core(40, 0.9, None), "c": core(400, 0.9, None)}, "l0", "explained_variance"
    )
    assert plot is not None
    assert plot.logarithmic
    a, b, c = plot.points
    assert b.left - a.left == pytest.approx(c.left - b.left, abs=0.02)
    assert [words for _, words in plot.x_ticks][:3] == ["5", "10", "20"]


def test_a_single_dictionary_and_equal_ones_have_a_place():
    for results in ({"a": core(64, 0.0, None)}, {"a": core(64, 0.9, None), "b": core(64, 0.9, None)}):
        plot = plot_of(results, "l0", "explained_variance")
        assert plot is not None
        assert [(p.left, p.up) for p in plot.points] == [(50.0, 50.0)] * len(results)
        assert 2 <= len(plot.y_ticks) <= 12
    assert plot_of({"a": []}, "l0", "explained_variance") is None


def test_names_lie_on_nothing():
    crowd = {f"dictionary {i}": core(64 + i / 100, 0.9 + i / 1e4, None) for i in range(12)} | {
        "far": core(100, 0.5, None)
    }
    plot = plot_of(crowd, "l0", "explained_variance")
    assert plot is not None
    sides = {p.name: p.side for p in plot.points}
    assert "" in sides.values()
    assert sides["far"]
    apart = plot_of({"left": core(10, 0.5, None), "right": core(70, 0.9, None)}, "l0", "explained_variance")
    assert apart is not None
    assert [p.side for p in apart.points] == ["right", "left"]
    row = {f"{name} with a name of some length": core(l0, 0.9, None) for name, l0 in (("a", 10), ("b", 20), ("c", 30))}
    level = plot_of(row, "l0", "explained_variance")
    assert level is not None
    assert [p.side for p in level.points] == ["right", "right", ""]  # b's name stands to the left of the last
