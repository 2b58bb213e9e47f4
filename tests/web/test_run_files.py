"""Metrics files: found without leaving their folders, read once as they grow, thinned without losing a peak."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from saescope.web import run_files
from saescope.web.run_files import Metrics, find_runs, kept_points, planned_tokens


def line(step: int, **values: Any) -> str:
    return json.dumps({"step": step, "num_tokens": 10 * step, "loss": 1 / step, **values}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def steps(metrics: Metrics) -> list[float | None]:
    return metrics.curves()["loss"]["step"] if metrics.num_rows else []


def a_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(line(1))
    return folder


def test_every_number_is_as_written(file: Path):
    rows = [{"l0": random.random() * 100, "parts": {"mse": random.random(), "words": "no"}} for _ in range(50)]
    file.write_text("".join(line(i + 1, **row) for i, row in enumerate(rows)))
    metrics = Metrics(file)
    metrics.read()
    assert metrics.names == ["loss", "l0", "parts.mse"]
    curves = metrics.curves()
    assert curves["l0"] == {
        "step": list(range(1, 51)), "num_tokens": list(range(10, 501, 10)), "value": [row["l0"] for row in rows],
    }  # fmt: skip
    assert curves["parts.mse"]["value"] == [row["parts"]["mse"] for row in rows]
    assert metrics.last() == {
        "step": 50,
        "num_tokens": 500,
        "loss": 1 / 50,
        "l0": rows[-1]["l0"],
        "parts.mse": rows[-1]["parts"]["mse"],
    }


def test_half_a_line_waits_for_its_end(file: Path):
    metrics, whole = Metrics(file), line(2)
    file.write_text(line(1) + whole[:17])
    metrics.read()
    assert steps(metrics) == [1]
    version = metrics.version
    with open(file, "a") as end:
        end.write(whole[17:-1])
    metrics.read()  # all but its end
    assert steps(metrics) == [1]
    with open(file, "a") as end:
        end.write("\n" + line(3))
    metrics.read()
    assert steps(metrics) == [1, 2, 3]
    assert metrics.num_damaged == 0
    assert metrics.version == version


def test_what_was_read_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch):
    file.write_text("".join(line(i + 1) for i in range(100)))
    metrics, read = Metrics(file), []
    metrics.read()
    real = json.loads
    monkeypatch.setattr(run_files.json, "loads", lambda text: read.append(text) or real(text))
    metrics.read()
    assert read == []
    with open(file, "a") as end:
        end.write(line(101))
    version = metrics.version
    metrics.read()
    assert len(read) == 1
    assert metrics.num_rows == 101
    assert metrics.version == version


@pytest.mark.parametrize("how", ["shrunk", "replaced", "rewritten to the same length", "gone"])
def test_another_file_is_read_anew(file: Path, how: str):
    file.write_text(line(1) + line(2))
    metrics = Metrics(file)
    metrics.read()
    version, length = metrics.version, file.stat().st_size
    if how == "shrunk":
        os.truncate(file, len(line(1)))
        expected = [1]
    elif how == "replaced":
        beside = file.with_name("beside")
        beside.write_text(line(1) + line(2) + line(3))
        beside.replace(file)
        expected = [1, 2, 3]
    elif how == "gone":
        file.unlink()
        expected = []
    else:
        with open(file, "r+") as same:
            same.write(line(1) + line(5))
        assert file.stat().st_size == length
        expected = [1, 5]
    metrics.read()
    assert steps(metrics) == expected
    assert metrics.version != version


def test_a_run_that_goes_on_from_an_earlier_step_drops_what_came_after(file: Path):
    file.write_text("".join(line(i) for i in (1, 2, 3, 4)))
    metrics = Metrics(file)
    metrics.read()
    version = metrics.version
    with open(file, "a") as end:
        end.write(line(3, loss=9.0))
    metrics.read()
    assert metrics.curves()["loss"]["step"] == [1, 2, 3]
    assert metrics.curves()["loss"]["value"] == [1, 0.5, 9.0]
    assert metrics.version != version


def test_numbers_that_are_not_finite_are_gaps(file: Path):
    file.write_text(line(1, l0=math.nan) + line(2, l0=math.inf) + line(3, l0=-math.inf, big=10**400) + line(4, l0=5.0))
    metrics = Metrics(file)
    metrics.read()
    assert metrics.curves()["l0"]["value"] == [None, None, None, 5.0]
    assert metrics.curves()["big"]["value"] == [None] * 4
    json.dumps(metrics.curves(), allow_nan=False)


def test_lines_that_are_no_metrics_are_counted_and_passed_over(file: Path):
    bad = [b"nonsense\n", b"[1, 2]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'"text"\n', b"7" * 5000 + b"\n"]
    odd = b'{"step": true, "loss": 0.25}\n{"step": NaN, "loss": "x", "l0": null}\n\n'
    file.write_bytes(line(1).encode() + b"".join(bad) + odd + line(9).encode())
    metrics = Metrics(file)
    metrics.read()
    assert metrics.num_damaged == len(bad)
    assert steps(metrics) == [1, 2, 3, 9]  # a line without a step follows the one before
    assert metrics.curves()["loss"]["value"] == [1, 0.25, None, 1 / 9]


def test_a_line_without_end_does_not_fill_the_memory(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_files, "_PIECE", 1000)
    file.write_text(line(1) + '{"step": 2, "x": "' + "y" * 5500)
    metrics = Metrics(file)
    metrics.read()
    assert steps(metrics) == [1]
    with open(file, "a") as end:
        end.write('"}\n' + line(3) + line(4))
    metrics.read()
    assert steps(metrics) == [1, 3, 4]
    assert metrics.num_damaged == 1


def test_pieces_of_any_size_give_the_same(file: Path, monkeypatch: pytest.MonkeyPatch):
    file.write_text("".join(line(i + 1, l0=i) for i in range(200)))
    for size in (150, 151, 999, 1 << 20):
        monkeypatch.setattr(run_files, "_PIECE", size)
        metrics = Metrics(file)
        metrics.read()
        assert steps(metrics) == list(range(1, 201))


def test_only_what_comes_after_a_step(file: Path):
    file.write_text("".join(line(i) for i in range(1, 3001)))
    metrics = Metrics(file)
    metrics.read()
    assert metrics.curves(2990)["loss"]["step"] == list(range(2991, 3001))
    assert metrics.curves(2990.5)["loss"]["step"] == list(range(2991, 3001))
    assert metrics.curves(3000)["loss"]["step"] == []
    assert len(metrics.curves(0)["loss"]["step"]) == 3000


def test_a_thinned_curve_keeps_every_peak_and_both_ends():
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(54_321)]
    values[12_345], values[40_000], values[30_000] = 99.0, -99.0, math.nan
    kept = kept_points(values, 1000)
    assert kept == sorted(set(kept))
    assert len(kept) <= 1003
    assert {0, 54_320, 12_345, 40_000, 30_000} <= set(kept)
    stretch = range(54_321 * 7 // 500, 54_321 * 8 // 500)
    inside = [values[i] for i in kept if i in stretch]
    assert (min(inside), max(inside)) == (min(values[i] for i in stretch), max(values[i] for i in stretch))
    assert kept_points(values[:1000], 1000) == list(range(1000))


def test_a_curve_that_begins_later_is_empty_before(file: Path):
    file.write_text(line(1) + line(2, l0=3.0) + line(3))
    metrics = Metrics(file)
    metrics.read()
    assert metrics.curves()["l0"]["value"] == [None, 3.0, None]


def test_names_without_end_are_bounded(file: Path):
    file.write_text(line(1, **{f"x{i}": i for i in range(1000)}))
    metrics = Metrics(file)
    metrics.read()
    assert len(metrics.names) <= 64


def test_runs_are_found_three_levels_deep(tmp_path: Path):
    root = tmp_path / "runs"
    for name in ("a", "b/c", "b/d/e", "b/d/e/deep", ".hidden", "a/inside"):
        a_run(root / name)
    found = find_runs([root])
    assert [run.name for run in found] == ["a", "a/inside", "b/c", "b/d/e"]
    assert len({run.id for run in found}) == 4
    assert [run.id for run in find_runs([root])] == [run.id for run in found]
    assert [run.name for run in find_runs([root / "a"])] == ["a", "inside"]
    assert find_runs([tmp_path / "nowhere"]) == []


def test_links_that_lead_out_are_not_followed(tmp_path: Path):
    a_run(tmp_path / "outside" / "secret")
    root = tmp_path / "runs"
    a_run(root / "own")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "linked").mkdir()
    (root / "linked" / "metrics.jsonl").symlink_to(tmp_path / "outside" / "secret" / "metrics.jsonl")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.jsonl")
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / "metrics.jsonl")  # reading it would wait for ever
    assert [run.name for run in find_runs([root])] == ["own"]


def test_a_search_opens_a_bounded_number_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(30):
        a_run(tmp_path / "runs" / f"{number:02}" / "x")
    monkeypatch.setattr(run_files, "_MOST_FOLDERS", 10)
    found = find_runs([tmp_path / "runs"])
    assert [run.name for run in found] == [f"{number:02}/x" for number in range(9)]


def test_the_run_of_a_dictionary_lies_beside_it(tmp_path: Path):
    run = a_run(tmp_path / "runs" / "mine")
    (run / "dictionary").mkdir()
    sources = [("at the run", str(run)), ("beside", str(run / "dictionary")), ("elsewhere", str(tmp_path / "nothing"))]
    (found,) = find_runs([], [*sources, ("hub", "hf:org/repo"), ("foreign", "lm-saes"), ("odd", "/a\0b")])
    assert found.folder == run
    assert found.name == "mine"
    assert found.dictionaries == ("at the run", "beside")
    # one run, though it was found in two ways
    (both,) = find_runs([tmp_path / "runs"], sources)
    assert (both.id, both.dictionaries) == (found.id, found.dictionaries)


def test_how_many_tokens_were_planned(tmp_path: Path):
    assert planned_tokens(tmp_path) is None
    for text in ("nonsense", "[]", '{"training": {"num_tokens": "x"}}', '{"training": {"num_tokens": 1e999}}'):
        (tmp_path / "run.json").write_text(text)
        assert planned_tokens(tmp_path) is None
    (tmp_path / "run.json").write_text('{"training": {"num_tokens": 4096}}')
    assert planned_tokens(tmp_path) == 4096
