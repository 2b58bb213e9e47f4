"""Training runs in a browser: curves with the values of the file, live while it grows, runs switched on and off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import AnalysisRecord, DictionaryRecord, EvaluationResult
from saescope.web.app import create_app

pytestmark = pytest.mark.slow


def row(step: int, **values: Any) -> str:
    numbers = {"step": step, "num_tokens": 128 * step, "loss": 1 / step, "l0": 64.0, "dead_share": 0.0, **values}
    return json.dumps(numbers) + "\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, factor in (("alpha", 1.0), ("beta <i>", 3.0)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        lines = [row(i, loss=factor / i, l0=float("nan") if i < 4 else 64 * factor) for i in range(1, 31)]
        (tmp_path / "runs" / name / "metrics.jsonl").write_text("".join(lines))
    return tmp_path / "runs"


@pytest.fixture
def address(store: Store, runs: Path, tmp_path: Path, served: Callable[..., str]) -> str:
    for name, l0, explained in (("one", 32.0, 0.9), ("another", 64.0, 0.95)):
        record = DictionaryRecord(
            name=name, model="m", hook_point="h", architecture="topk", d_in=2, d_sae=2,
            details={"source": str(runs / "alpha" / "dictionary")} if name == "one" else {},
        )  # fmt: skip
        found = [("l0", l0), ("explained_variance", explained), ("ce_loss_recovered", explained)]
        results = [EvaluationResult(study="core", metric=metric, value=value) for metric, value in found]
        store.write(record, AnalysisRecord(dataset="d", context_size=4, num_tokens=4), [], [], [], evaluations=results)
    return served(create_app(store, run_folders=[runs]))


def chart(page: Any, name: str) -> Any:
    return page.locator(f'figure.curve[data-name="{name}"]')


def last(page: Any, name: str) -> list[str]:
    return page.locator(f'tr[data-curve="{name}"] td').all_inner_texts()


def hold_still(page: Any) -> None:
    page.wait_for_selector('figure.curve[data-name="loss"] path.line')


def test_curves_say_the_values_of_the_file(address: str, visit: Any):
    page = visit(f"{address}/runs")
    hold_still(page)
    assert chart(page, "loss").locator("> svg > path.line").count() == 2
    label = chart(page, "loss").locator("> svg").get_attribute("aria-label")
    assert label == "Loss. alpha: from 1 to 0.03333; beta <i>: from 3 to 0.1"
    svg = chart(page, "loss").locator("> svg")
    svg.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    box = chart(page, "loss").locator(".at")
    assert box.locator("p").inner_text() == "256 tokens, step 2"
    assert box.locator("b").all_inner_texts() == ["0.5", "1.5"]
    page.keyboard.press("End")
    assert box.locator("b").all_inner_texts() == [str(1 / 30), str(3 / 30)]
    assert "step 30" in page.locator("#status").inner_text()
    page.mouse.move(0, 0)
    area = svg.bounding_box()
    svg.hover(position={"x": area["width"] - 13, "y": 60})
    assert box.locator("b").all_inner_texts() == [str(1 / 30), str(3 / 30)]


def test_what_is_not_finite_is_a_gap(address: str, visit: Any):
    page = visit(f"{address}/runs")
    hold_still(page)
    chart(page, "l0").locator("> svg").focus()
    page.keyboard.press("Home")
    assert chart(page, "l0").locator(".at b").all_inner_texts() == ["no number", "no number"]
    assert chart(page, "l0").locator("> svg > path.line").first.get_attribute("d").count("M") == 1


def test_runs_are_switched_and_the_address_keeps_it(address: str, visit: Any):
    page = visit(f"{address}/runs")
    hold_still(page)
    colours = page.locator(".sign path.line").evaluate_all("paths => paths.map((p) => getComputedStyle(p).stroke)")
    dashes = page.locator(".sign path.line").evaluate_all(
        "paths => paths.map((p) => p.getAttribute('stroke-dasharray'))"
    )
    assert len(set(colours)) == len(set(dashes)) == 2
    page.get_by_role("checkbox", name="alpha").uncheck()
    page.wait_for_timeout(300)
    assert chart(page, "loss").locator("> svg > path.line").count() == 1
    assert last(page, "loss") == ["0.1"]
    page.get_by_role("checkbox", name="log scale").check()
    page.get_by_label("Along").select_option("step")
    assert "x=step" in page.url
    assert "log=1" in page.url
    page.reload()
    hold_still(page)
    assert not page.get_by_role("checkbox", name="alpha").is_checked()
    assert page.get_by_role("checkbox", name="beta <i>").is_checked()
    assert page.get_by_role("checkbox", name="log scale").is_checked()
    chart(page, "loss").locator("> svg").focus()
    page.keyboard.press("End")
    assert chart(page, "loss").locator(".at p").inner_text() == "step 30"
    assert "can not stand on a log scale" in chart(page, "dead_share").inner_text()
    page.get_by_role("checkbox", name="beta <i>").uncheck()
    page.wait_for_timeout(300)
    assert page.locator("figure.curve").count() == 0
    page.reload()
    page.wait_for_selector("sae-runs.ready")
    assert not page.get_by_role("checkbox", name="beta <i>").is_checked()


def test_a_log_scale_is_logarithmic(address: str, visit: Any):
    page = visit(f"{address}/runs?log=1")
    hold_still(page)
    place = """(figure) => Object.fromEntries([...figure.querySelectorAll("svg > text[text-anchor=end]")]
      .map((t) => [Number(t.textContent), Number(t.getAttribute("y"))]).filter(([n]) => n < 10))"""
    ticks = {float(key): y for key, y in chart(page, "loss").evaluate(place).items()}
    assert ticks[0.05] - ticks[0.1] == pytest.approx(ticks[1.0] - ticks[2.0], abs=0.3)


def test_what_is_written_meanwhile_appears(address: str, runs: Path, visit: Any):
    page = visit(f"{address}/d/one/training")
    hold_still(page)
    assert last(page, "step") == ["30"]
    assert "training" in page.locator("[data-state]").inner_text()
    with open(runs / "alpha" / "metrics.jsonl", "a") as end:
        end.write(row(31) + row(32)[:20])
    page.wait_for_selector('tr[data-curve="step"] td:text-is("31")', timeout=15_000)
    assert "to 0.03226" in chart(page, "loss").locator("> svg").get_attribute("aria-label")
    (runs / "alpha" / "metrics.jsonl").write_text(row(1) + row(2))
    page.wait_for_selector('tr[data-curve="step"] td:text-is("2")', timeout=15_000)
    assert chart(page, "loss").locator("> svg").get_attribute("aria-label") == "Loss. alpha: from 1 to 0.5"


def test_a_long_run_is_drawn_from_few_points(address: str, runs: Path, visit: Any):
    (runs / "alpha" / "metrics.jsonl").write_text(
        "".join(row(i, loss=9.0 if i == 12_345 else 1 + i % 7 / 10) for i in range(1, 20_001))
    )
    page = visit(f"{address}/d/one/training")
    hold_still(page)
    path = chart(page, "loss").locator("> svg > path.line").first.get_attribute("d")
    assert 900 < path.count("L") < 1100
    heights = sorted(float(point.split(" ")[1]) for point in path.replace("M", "L").split("L")[1:])
    assert heights[0] < 20  # the one peak is drawn
    assert heights[1] > 100
    assert "alpha has 20,000 lines; drawn are the lowest and the highest" in page.locator("[data-last]").inner_text()
    with open(runs / "alpha" / "metrics.jsonl", "a") as end:
        end.write("".join(row(i) for i in range(20_001, 23_001)))
    page.wait_for_selector('tr[data-curve="step"] td:text-is("23,000")', timeout=15_000)
    path = chart(page, "loss").locator("> svg > path.line").first.get_attribute("d")
    assert path.count("L") < 1100


def test_points_of_evaluations_lead_to_their_dictionaries(address: str, visit: Any):
    page = visit(f"{address}/runs")
    plot = page.locator("figure.plot").first
    points = plot.locator("a.point")
    assert points.count() == 2
    places = points.evaluate_all(
        "links => links.map((a) => { const b = a.getBoundingClientRect(); return [b.x, b.y]; })"
    )
    names = [name.split()[-1] for name in points.all_inner_texts()]
    at = dict(zip(names, places, strict=True))
    assert at["one"][0] < at["another"][0]  # a smaller L0 to the left
    assert at["one"][1] > at["another"][1]  # less explained further down
    points.filter(has_text="another").hover()
    assert page.locator("#tip").inner_text() == "another: L0 64.0, explained variance 0.95"
    plot.get_by_text("The same as a table").click()
    assert plot.locator("tbody tr").first.inner_text().split() == ["1", "another", "64", "0.95"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_values_pointed_at_lie_in_the_window(address: str, visit: Any, width: int):
    page = visit(f"{address}/runs", width=width)
    hold_still(page)
    for share in (0.2, 0.45, 0.6, 0.98):
        svg = chart(page, "loss").locator("> svg")
        area = svg.bounding_box()
        svg.hover(position={"x": share * area["width"], "y": 90})
        box = chart(page, "loss").locator(".at").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("path", ["/runs", "/d/one/training"])
def test_nothing_scrolls_sideways_or_fails_those_who_do_not_see(address: str, visit: Any, path: str):
    from axe_playwright_python.sync_playwright import Axe

    for scheme, width in (("light", 360), ("dark", 1280)):
        page = visit(f"{address}{path}", width=width, scheme=scheme)
        hold_still(page)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
        serious = [v for v in result.response["violations"] if v["impact"] in ("serious", "critical")]
        assert serious == []


def test_without_scripts_the_numbers_are_there(address: str, visit: Any):
    page = visit(f"{address}/runs", java_script_enabled=False)
    assert last(page, "loss") == ["0.03333", "0.1"]
    page.get_by_role("checkbox", name="alpha").uncheck()
    page.get_by_role("button", name="Show").click()
    assert last(page, "loss") == ["0.1"]
