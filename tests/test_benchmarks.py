"""The benchmarks' arithmetic, tables and alternation, on tiny shapes. No time is judged here."""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import platform
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PEERS = FOLDER.parent / ".venv-peers" / "bin" / "python"
TINY = "32,256,4,64"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts' modules by name, as they find each other when one of them is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("data", "hardware", "report", "rounds", "training_step", "memory", "pipeline", "analysis", "store", "web")
    loaded: dict[str, ModuleType] = {}
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in names:
        loaded[name] = importlib.import_module(name)
    yield SimpleNamespace(**loaded)
    for name in names:
        sys.modules.pop(name, None)


def one_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.mark.parametrize("num_rounds", [1, 2, 7, 8])
def test_a_ratio_is_of_quotients_within_rounds(bench: Any, num_rounds: int) -> None:
    generator = np.random.default_rng(num_rounds)
    a, b = generator.uniform(1, 9, num_rounds).tolist(), generator.uniform(1, 9, num_rounds).tolist()
    quotients = sorted(a[i] / b[i] for i in range(num_rounds))
    middle = num_rounds // 2
    median = quotients[middle] if num_rounds % 2 else (quotients[middle - 1] + quotients[middle]) / 2

    found = bench.rounds.ratio(a, b)

    assert (found.median, found.low, found.high) == pytest.approx((median, quotients[0], quotients[-1]))
    fields = found.named("x")
    assert fields == {"x": found.median, "x_min": found.low, "x_max": found.high}
    assert bench.rounds.Spread.read(fields, "x") == found


def test_rounds_of_different_number_are_not_compared(bench: Any) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        bench.rounds.ratio([1.0, 2.0], [1.0])


def test_each_round_asks_everyone_once_and_begins_with_another(bench: Any) -> None:
    asked: list[str] = []

    def worker(name: str) -> Any:
        return SimpleNamespace(ask=lambda **request: asked.append(name) or {"name": name, **request})

    answers = bench.rounds.alternate({name: worker(name) for name in "abc"}, 4, do="it")

    assert "".join(asked) == "abc" + "bca" + "cab" + "abc"
    assert answers == {name: [{"name": name, "do": "it"}] * 4 for name in "abc"}


def test_tables_are_markdown(bench: Any) -> None:
    table = bench.report.table(("name", "s"), [("a", "1"), ("b", "2")])
    assert table == "| name | s |\n| --- | ---: |\n| a | 1 |\n| b | 2 |\n"
    with pytest.raises(ValueError, match="1 cells in a table of 2"):
        bench.report.table(("name", "s"), [("a",)])
    spread = bench.rounds.Spread(1234.5678, 1.0, 2000.0)
    assert bench.report.spread(spread, 1) == "1,234.6 (1.0 to 2,000.0)"


@pytest.mark.parametrize("text", ["512,16384,32", "a,b,c,d", "0,16,4,8", "8,16,17,8", ""])
def test_shapes_that_are_none_are_refused(bench: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not "):
        bench.report.shape(text)


def test_a_page_is_dated_and_whole(bench: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(bench.report, "RESULTS", tmp_path / "results")
    options = argparse.Namespace(json=True, save=True)
    bench.report.publish(options, "what", "# Page\n", {"rows": []})
    assert one_line(capsys) == {"rows": []}
    (page,) = (tmp_path / "results").iterdir()
    assert page.read_text() == "# Page\n"
    year, month, day, name = page.name.split("-")
    assert (len(year), len(month), len(day), name) == (4, 2, 2, "what.md")


def test_the_machine_is_named_without_host_or_path(bench: Any) -> None:
    facts = bench.hardware.machine()
    assert facts["cores"] >= 1
    said = bench.hardware.described(facts)
    assert facts["cpu"] in said
    assert platform.node() not in said
    assert str(Path.home()) not in said


def test_activations_are_the_same_for_everyone(bench: Any) -> None:
    first, second = (bench.data.Activations(32, seed=3) for _ in range(2))
    x = first.batch(5, 400)
    assert x.dtype == np.float32
    assert x.shape == (400, 32)
    assert np.array_equal(x, second.batch(5, 400))
    assert not np.array_equal(x, first.batch(6, 400))
    assert not np.array_equal(x, bench.data.Activations(32, seed=4).batch(5, 400))
    assert np.linalg.norm(x, axis=1).mean() == pytest.approx(32**0.5, rel=0.05)
    # what is in them: few directions each, with positive strengths
    generator = np.random.default_rng([3, 1, 5])
    chosen = generator.integers(128, size=(400, 16))
    strengths = generator.standard_exponential((400, 16), dtype=np.float32)
    strengths /= np.linalg.norm(strengths, axis=1, keepdims=True)
    noise = 0.01 * generator.standard_normal((400, 32), dtype=np.float32)
    rebuilt = [(strengths[t, :, None] * first.directions[chosen[t]]).sum(0) + noise[t] for t in range(400)]
    np.testing.assert_allclose(x, first.scale * np.array(rebuilt), rtol=1e-4, atol=1e-4)


def test_who_is_compared_with_whom(bench: Any) -> None:
    step = bench.training_step
    everyone = [step.OURS, *step.PEERS]
    assert list(step.contenders("topk", everyone)) == [*everyone, step.FLOOR]
    assert list(step.contenders("ordered", everyone)) == [step.OURS, "saescope topk", step.FLOOR]
    assert list(step.contenders("jumprelu", everyone)) == [step.OURS, "sae-lens", "saescope topk", step.FLOOR]


def check_rows(data: dict[str, Any]) -> None:
    for row in data["rows"]:
        assert row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["ratio_to_encoder_product_min"] <= row["ratio_to_encoder_product"]
        assert row["tokens_per_second"] == pytest.approx(row["shape"][3] / row["seconds"])
        if row["library"] != "encoder-product":
            assert row["explained_variance"] <= 1
            assert 0 <= row["dead_share"] <= 1
            assert row["tokens"] == 3 * 2 * 64  # a round of warm-up and two others, of two steps


def test_our_own_steps_alone(bench: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(bench.training_step, "PEERS_PYTHON", Path("nowhere"))
    small = ["--shape", TINY, "--rounds", "2", "--steps", "2", "--threads", "1"]
    bench.training_step.main([*small, "--architectures", "topk", "--json"])
    data = one_line(capsys)
    assert [row["library"] for row in data["rows"]] == ["saescope", "encoder-product"]
    assert data["rows"][1]["ratio_to_encoder_product"] == 1
    assert data["ratios"] == []
    assert data["rows"][0]["l0"] == 4
    check_rows(data)
    with pytest.raises(SystemExit, match="make peers"):
        bench.training_step.main([*small, "--libraries", "sparsify"])


def test_memory_of_our_own_process(bench: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(bench.memory, "PEERS_PYTHON", Path("nowhere"))
    bench.memory.main(["--shape", TINY, "--steps", "1", "--threads", "1"])
    page = capsys.readouterr().out
    (line,) = [line for line in page.splitlines() if line.startswith("| saescope")]
    peak, imported, difference = (float(cell) for cell in line.split("|")[3:6])
    assert peak >= imported > 0.05
    assert difference == pytest.approx(peak - imported, abs=0.011)


def test_a_worker_that_dies_says_why(bench: Any) -> None:
    died = pytest.raises(bench.rounds.WorkerError, match="No module named 'no_such_module'")
    with bench.rounds.Worker("no_such_module", peers=False, threads=1) as worker, died:
        worker.ask(do="anything")


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="needs the other libraries: make peers")
def test_everyone_in_alternation(bench: Any, capsys: Any) -> None:
    small = ["--shape", TINY, "--rounds", "2", "--steps", "2", "--threads", "1"]
    for architecture in ("topk", "matryoshka", "jumprelu"):
        bench.training_step.main([*small, "--architectures", architecture, "--json"])
        data = one_line(capsys)
        names = list(bench.training_step.contenders(architecture, bench.training_step.PEERS))
        assert len(data["rows"]) == len(names)
        assert [r["of"] for r in data["ratios"]] == [n for n in names if n not in ("saescope", "encoder-product")]
        check_rows(data)
        if architecture != "jumprelu":
            assert [row["l0"] for row in data["rows"][:-1]] == pytest.approx([4.0] * (len(names) - 1), abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="needs the other libraries: make peers")
def test_from_text_to_dictionary_beside_saelens(bench: Any, capsys: Any) -> None:
    small = ["--tokens", "8192", "--batch", "1024", "--buffer", "4096", "--d-sae", "128", "--k", "8", "--rounds", "1"]
    bench.pipeline.main([*small, "--threads", "1", "--json"])
    data = one_line(capsys)
    assert [row["library"] for row in data["rows"]] == ["saescope", "sae-lens"]
    (ratio,) = data["ratios"]
    assert ratio["ratio"] == pytest.approx(data["rows"][1]["seconds"] / data["rows"][0]["seconds"])
    together = data["together"]
    parts = together["model_pass"] + together["steps_alone"]
    assert together["ratio_to_parts"] == pytest.approx(together["train_many"] / parts)


@pytest.mark.slow
def test_what_an_analysis_costs(bench: Any, capsys: Any) -> None:
    small = ["--tokens", "3000", "--warm-tokens", "3000", "--train-tokens", "0", "--rounds", "1", "--d-sae", "300"]
    bench.analysis.main([*small, "--k", "8", "--memory-tokens", "20000", "--json"])
    data = one_line(capsys)
    cost = data["cost"]["microseconds_per_token"]
    needed = cost["model and product together"]["us"]
    assert data["cost"]["ratio_from_nothing"]["ratio"] == pytest.approx(cost["analysis from nothing"]["us"] / needed)
    assert [row["tokens"] for row in data["memory"]["readings"]] == [18_000, 20_000]
    assert data["memory"]["l0"] == pytest.approx(8, abs=0.01)
    assert "analysis from nothing" in bench.analysis.page(data)


@pytest.mark.slow
def test_how_fast_a_store_answers(bench: Any, capsys: Any) -> None:
    bench.store.main(["--features", "80", "--questions", "3", "--json"])
    data = one_line(capsys)
    assert json.dumps(data).count("p95") >= 3


@pytest.fixture
def made_up(bench: Any, tmp_path: Path) -> Any:
    with bench.web.filled(tmp_path / "features.db", 60) as store:
        yield store


@pytest.mark.slow
def test_how_soon_the_pages_answer(bench: Any, made_up: Any, tmp_path: Path, capsys: Any) -> None:
    small = ["--sqlite", str(tmp_path / "features.db"), "--seconds", "1", "--rate", "40", "--beyond-seconds", "0.2"]
    bench.web.main([*small, "--only", "load", "beyond", "--json"])
    data = one_line(capsys)
    load = data["load"]
    assert (load["requests"], load["errors"], load["wrong"]) == (40, 0, [])
    assert sum(row["requests"] for row in load["rows"]) == 40
    assert 10 <= load["compared"] <= 15
    assert all(0 < row["p50"] <= row["p95"] <= row["p99"] <= row["max"] for row in load["rows"])
    assert data["beyond"]["requests"] == 80
    assert "| feature page | " in bench.web.page(data)


def test_wrong_answers_of_pages_are_seen(bench: Any, made_up: Any) -> None:
    from fastapi.testclient import TestClient

    from saescope.web.app import create_app

    web, name = bench.web, bench.store.NAME
    with TestClient(create_app(made_up), base_url="http://127.0.0.1") as client:
        feature, other = (client.get(f"/d/{name}/f/{index}").text for index in (7, 8))
        assert web._wrong_feature(made_up, feature, {"index": 7}) is None
        assert "lacks" in web._wrong_feature(made_up, other, {"index": 7})
        asked = {"sort": "density", "descending": True, "limit": 50}
        html = client.get(f"/d/{name}?sort=density").text
        assert web._wrong_list(made_up, html, asked) is None
        assert web._wrong_list(made_up, html, {**asked, "descending": False})
        rows = client.get(f"/api/d/{name}/features?sort=density").text
        assert web._wrong_rows(made_up, rows, asked) is None
        assert web._wrong_rows(made_up, rows, {**asked, "sort": "lift"})
        changed = json.loads(rows)
        changed["features"][3]["max_activation"] += 1e-9
        assert "max_activation" in web._wrong_rows(made_up, json.dumps(changed), asked)


def test_a_request_that_has_to_wait_is_slow(bench: Any) -> None:
    """Five requests at once over one connection to a server that takes 0.1 s for each: the fifth took 0.5 s."""
    plan = {"rate": 1000.0, "connections": 1, "paths": [f"/{i}" for i in range(4)] + ["/gone"], "kept": [2]}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ran = subprocess.run(
            [sys.executable, bench.web.CLIENT], input=json.dumps({**plan, "port": server.server_address[1]}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        server.shutdown()
    answers = json.loads(ran.stdout)
    assert [answer["status"] for answer in answers] == [200, 200, 200, 200, 404]
    assert all(answer["ms"] >= 99 * (i + 1) - i for i, answer in enumerate(answers))
    assert [base64.b64decode(answer["body"]) for answer in answers if "body" in answer] == [b"2", b"gone"]
    assert answers[0]["bytes"] == 1


class _Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(0.1)
        body = self.path.strip("/").encode()
        self.send_response(404 if body == b"gone" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
