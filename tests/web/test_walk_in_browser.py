"""A visitor's walk through every page, with a real server, a real model, a real store and a real browser; then from disk.

The dictionaries are small, and trained and analysed by the commands that users type.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store

pytestmark = pytest.mark.slow

SMALL = shlex.split(
    "-o windows.max_tokens=20000 -o training.num_tokens=8192 -o training.log_every_n_steps=1 -o dictionary.d_sae=256 "
    "-o stream.buffer_size_tokens=8192 -o evaluation.num_tokens=3000 -o analysis.map=pca"
)


def saescope(*arguments: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "saescope", *arguments], cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert ran.returncode == 0, (arguments, ran.stderr)
    return ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small dictionaries, `demo` and `k32`, in one store."""
    folder = tmp_path_factory.mktemp("walk")
    saescope("demo", *SMALL, "-o", "dictionary.k=16", folder=folder)
    saescope("train", "demo", *SMALL, "-o", "dictionary.k=32", "--output", "runs/k32", folder=folder)
    saescope("analyze", "runs/k32", "--name", "k32", "--store", "runs/demo/features.db", folder=folder)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with Store.open(folder / "runs/demo/features.db", must_exist=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of `saescope serve`."""
    command = [sys.executable, "-m", "saescope", "serve", "--store", "runs/demo/features.db", "--runs", "runs"]
    process = subprocess.Popen([*command, "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(found[0] for line in process.stdout if (found := re.search(r"http://[\w.:]+", line)))
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


PAGES = {
    "home": "/",
    "features": "/d/demo?search=import",
    "feature": "/d/demo/f/12",
    "try": "/d/demo/try",
    "steer": "/d/demo/steer?f=12&s=2",
    "map": "/d/demo/map",
    "compare": "/compare",
    "compare features": "/compare?a=demo:12&b=k32:7",
    "compare dictionaries": "/compare?a=demo&b=k32",
    "training": "/d/demo/training",
    "runs": "/runs",
    "nothing": "/d/nobody",
}


def serious_faults(page: Any) -> list[Any]:
    from axe_playwright_python.sync_playwright import Axe

    # what is far from the view is not laid out until it comes near, and axe would take its place for somewhere else
    page.evaluate(
        "document.querySelectorAll('.group').forEach((each) => { each.style.contentVisibility = 'visible'; })"
    )
    result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"], "preload": False})
    return [
        (violation["id"], [node["html"] for node in violation["nodes"]][:3])
        for violation in result.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 640, 360])  # 640: the desk at 200 % zoom
def test_everyone_can_read_every_page(visit: Callable[..., Any], server: str, width: int, scheme: str):
    page = None
    for name, path in PAGES.items():
        if page is None:
            page = visit(server + path, width=width, scheme=scheme)
        else:
            page.goto(server + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        assert page.locator("h1").count() == 1, name
        assert serious_faults(page) == [], name
    visit.said[:] = [each for each in visit.said if "/d/nobody" not in each]  # a browser reports the 404 itself


def hovered(page: Any, piece: Any) -> str:
    piece.scroll_into_view_if_needed()
    piece.hover()
    page.locator("#tip").wait_for()
    return page.locator("#tip").inner_text()


def shown_values(store: Store, index: int) -> list[str]:
    """What the tooltips of the firing tokens around the peak of the strongest example have to say."""
    example = store.page("demo", index).examples[0]
    return [
        f"{example.activations[at]} · token {example.window.token_ids[at]}"
        for at in range(max(0, example.peak - 5), min(len(example.activations), example.peak + 6))
        if example.activations[at]
    ]


def test_a_visitor_walks_through_the_pages(visit: Callable[..., Any], server: str, store: Store):
    page = visit(server + "/")
    assert page.get_by_role("link", name="demo", exact=True).count() >= 1
    page.get_by_role("link", name="Features", exact=True).first.click()

    # the list: searched, sorted, and what it shows is what the store says
    page.wait_for_url("**/d/demo*")
    page.keyboard.press("/")
    page.keyboard.type("import")
    total = store.count("demo", search="import")
    page.get_by_text(re.compile(rf"^{total} features? match(es)?$")).wait_for()
    page.get_by_role("columnheader", name="Max").get_by_role("link").or_(
        page.get_by_role("columnheader", name="Max").get_by_role("button")
    ).first.click()
    best = [each.index for each in store.features("demo", search="import", sort="max_activation", limit=3).features]
    page.locator(f"tbody tr[data-index='{best[0]}']").wait_for()
    assert [int(row.get_attribute("data-index")) for row in page.locator("tbody tr[data-index]").all()[:3]] == best
    assert "search=import" in page.url

    # a feature: opened, hovered, walked by keyboard
    page.locator(f"tbody tr[data-index='{best[0]}'] a").first.click()
    page.wait_for_url(f"**/f/{best[0]}*")
    assert hovered(page, page.locator(".examples .peak").first) in shown_values(store, best[0])
    page.go_back()
    page.locator(f"tbody tr[data-index='{best[0]}']").wait_for()  # the list is as it was
    page.goto(f"{server}/d/demo/f/100")
    page.keyboard.press("j")
    page.wait_for_url("**/f/101*")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/f/100*")
    page.keyboard.press("m")
    page.get_by_role("button", name=re.compile("Bookmark"), pressed=True).wait_for()
    assert store.page("demo", 100).is_bookmarked
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")


def test_a_visitor_tries_a_text(visit: Callable[..., Any], server: str, store: Store):
    page = visit(server + "/d/demo/try")
    example = store.page("demo", 12).examples[0]
    page.locator("#try-text").fill("import os\nprint('🎉 漢字')\n")
    page.keyboard.press("Control+Enter")
    page.locator("[data-tokens] [role=option]").first.wait_for(timeout=60_000)
    assert page.locator("[data-tokens]").inner_text().count("🎉") == 1
    assert page.locator(".try-list li").count() > 0

    # one feature, on its own page: the text of an example fires as the store says it does, at the end of the window too
    page.goto(f"{server}/d/demo/f/12")
    page.locator("#try-box-text").fill(example.window.text.removeprefix("<|endoftext|>"))
    page.locator("sae-try button[type=submit]").click()
    page.locator("sae-try .on, sae-try .peak").first.wait_for(timeout=60_000)


def test_a_visitor_steers(visit: Callable[..., Any], server: str):
    page = visit(server + "/d/demo/steer?f=12&s=2&tokens=6&seed=3")
    page.locator("#steer-prompt").fill("import os\n")
    page.get_by_role("button", name="Steer", exact=True).click()
    page.locator("[data-numbers]").get_by_text(re.compile("KL")).wait_for(timeout=60_000)
    plain, steered = page.locator("[data-plain]").inner_text(), page.locator("[data-steered]").inner_text()
    assert plain
    assert steered
    link = page.url
    page.goto(link)  # a link fills the form, runs nothing, and gives the same once it is asked to
    assert page.locator("[data-steered]").inner_text() == ""
    page.get_by_role("button", name="Steer", exact=True).click()
    page.locator("[data-numbers]").get_by_text(re.compile("KL")).wait_for(timeout=60_000)
    assert page.locator("[data-steered]").inner_text() == steered


def test_a_visitor_reads_map_comparison_and_runs(visit: Callable[..., Any], server: str, store: Store):
    page = visit(server + "/d/demo/map")
    page.get_by_role("button", name="List what is in view").click()
    page.locator(".map-list li").first.wait_for()
    assert "256" in page.locator("[data-count]").inner_text()

    page.goto(server + "/compare?a=demo&b=k32")
    page.get_by_role("button", name="Match the features").click()
    page.locator("[data-found] table, [data-found] li").first.wait_for(timeout=60_000)

    page.goto(server + "/d/demo/training")
    page.locator("svg path").first.wait_for(state="attached")
    page.goto(server + "/runs")
    assert page.get_by_role("checkbox").count() >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_same_from_a_disk(
    visit: Callable[..., Any], folder: Path, store: Store, width: int, scheme: str, tmp_path: Path
):
    place = tmp_path / "pages"
    saescope(
        "export",
        "html",
        "demo",
        "--features",
        "0-60",
        "--store",
        "runs/demo/features.db",
        "--out",
        str(place),
        folder=folder,
    )
    page = visit((place / "index.html").as_uri(), width=width, scheme=scheme)
    assert serious_faults(page) == []
    page.locator("[data-search]").fill("import")
    wanted = [each.index for each in store.features("demo", search="import", limit=300).features if each.index <= 60]
    page.get_by_text(re.compile(rf"^{len(wanted)} features? match(es)?$")).wait_for()
    assert [int(row.get_attribute("data-index")) for row in page.locator("tbody tr[data-index]").all()][:5] == wanted[
        :5
    ]
    page.locator(f"tbody tr[data-index='{wanted[0]}'] a").first.click()
    page.wait_for_url(f"**/{wanted[0]}.html*")
    assert hovered(page, page.locator(".examples .peak").first) in shown_values(store, wanted[0])
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.goto((place / "f" / "10.html").as_uri())
    page.keyboard.press("j")
    page.wait_for_url("**/11.html*")


def test_one_file_from_a_disk(visit: Callable[..., Any], folder: Path, store: Store, tmp_path: Path):
    file = tmp_path / "few.html"
    saescope(
        "export",
        "html",
        "demo",
        "--features",
        "12,17",
        "--store",
        "runs/demo/features.db",
        "--out",
        str(file),
        folder=folder,
    )
    page = visit(file.as_uri())
    values = [said.split(" ")[0] for said in shown_values(store, 12)]
    assert hovered(page, page.locator(".examples .peak").first) in values
    assert serious_faults(page) == []
