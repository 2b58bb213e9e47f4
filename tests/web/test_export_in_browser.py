"""An export as a reader meets it, opened from a disk: search, sort, hover, keys, and nothing asked of anybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    Example,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    TokenLogit,
    Window,
)
from saescope.web.export import export_file, export_folder

pytestmark = pytest.mark.slow

COUNT = 600  # more than the start page draws without scripts


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many features whose order by density, by maximum and by index differ."""
    place = tmp_path_factory.mktemp("many") / "many.db"
    words = ["alpha", "beta", "gamma", "delta"]

    def feature(index: int) -> Feature:
        label = Label(text=f"the word {words[index % 4]}{index}", kind="tokens", precision=0.5, lift=2.0, num_firings=9)
        record = FeatureRecord(
            index=index, num_firings=index % 97, density=(index % 97) / 1000, max_activation=float((index * 7) % 601),
            mean_positive=1.5, label=label if index % 2 else None,
        )  # fmt: skip
        detail = FeatureDetail(
            histogram=Histogram(edges=(0.0, 1.0, 2.0), counts=(3, index % 97)),
            top_logits=(TokenLogit(token_id=1, text=" up", logit=0.5),),
            bottom_logits=(TokenLogit(token_id=2, text=" down", logit=-0.5),),
            neighbours={"decoder": (Neighbour(feature=(index + 1) % COUNT, value=0.5),)},
        )
        return Feature(record=record, detail=detail)

    texts = [f" {words[place % 4]}" if place else "start" for place in range(64)]
    windows = [
        Window.of_texts(id=i, document=f"doc{i}", offset=64 * i, token_ids=range(64), token_texts=texts)
        for i in range(20)
    ]
    examples = [
        Example(feature=index, window_id=rank, peak=20 + rank, activation=9.0 - rank + index / 1000,
                positions=(20 + rank, 40), values=(9.0 - rank + index / 1000, 0.25), top_rank=rank)
        for index in range(COUNT) for rank in range(3)
    ]  # fmt: skip
    record = DictionaryRecord(name="many/of them", model="m", hook_point="h", architecture="topk", d_in=4, d_sae=COUNT)
    with Store.open(place) as store:
        analysis = AnalysisRecord(dataset="d", context_size=64, num_tokens=1000)
        store.write(record, analysis, map(feature, range(COUNT)), windows, examples)
    return place


@pytest.fixture(scope="module")
def folder(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "of them"
    with Store.open(many) as store:
        export_folder(store, place)
    return place


def listed(page: Any) -> list[int]:
    return [
        int(row)
        for row in page.locator("tbody.rows > tr").evaluate_all("(rows) => rows.map((row) => row.dataset.index)")
    ]


def wait_for_count(page: Any, words: str) -> None:
    page.wait_for_function("(words) => document.querySelector('.count').textContent === words", arg=words)


def test_the_list_is_searched_and_sorted_as_by_the_server(folder: Path, many: Path, visit: Callable[..., Any]):
    page = visit((folder / "index.html").as_uri())
    with Store.open(many) as store:

        def ranked(**query: Any) -> list[int]:
            return [record.index for record in store.features(limit=10, **query).features]

        wait_for_count(page, "600 features")
        assert listed(page)[:10] == ranked()
        page.click("th a[data-sort=max_activation]")
        assert listed(page)[:10] == ranked(sort="max_activation")
        page.click("th a[data-sort=max_activation]")
        assert listed(page)[:10] == ranked(sort="max_activation", descending=False)
        page.keyboard.press("/")
        page.keyboard.type("WORD beta1")
        total = store.count(search="WORD beta1")
        assert 10 < total < 100
        wait_for_count(page, f"{total} features match")
        assert listed(page)[:10] == ranked(sort="max_activation", descending=False, search="WORD beta1")
        page.click("summary")
        page.fill("input[name=min_density]", "0.05")
        total = store.count(search="WORD beta1", where={"density": (0.05, None)})
        wait_for_count(page, f"{total} features match")
        address = page.url
        page.reload()  # the address holds all of it, on a disk too
        wait_for_count(page, f"{total} features match")
        assert page.url == address
        page.fill("input[name=search]", "nothing like it")
        wait_for_count(page, "0 features match")
        page.click("a.clear")
        wait_for_count(page, "600 features")


def test_a_long_list_scrolls_to_its_end(folder: Path, visit: Callable[..., Any]):
    page = visit(f"{(folder / 'index.html').as_uri()}?sort=index&dir=asc")
    wait_for_count(page, "600 features")
    page.locator("tbody.rows > tr").first.focus()
    page.keyboard.press("End")
    page.wait_for_selector("tr[data-index='599']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/f/599.html*")
    assert page.locator("h1 .index").inner_text().endswith("599")


def test_from_the_list_to_a_feature_and_on_by_keys_and_back(folder: Path, many: Path, visit: Callable[..., Any]):
    page = visit((folder / "index.html").as_uri())
    page.fill("input[name=search]", "beta101")
    wait_for_count(page, "1 feature matches")
    page.click("tr[data-index='101'] th a")
    page.wait_for_url("**/f/101.html*")
    with Store.open(many) as store:
        strongest = store.page(None, 101).examples[0]
        value = strongest.activations[strongest.peak]
    page.locator("mark.peak").first.hover()
    assert page.locator("#tip").inner_text().startswith(str(value))
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/f/102.html*")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/f/101.html*")
    page.locator(".neighbours a").first.click()
    page.wait_for_url("**/f/102.html*")
    page.keyboard.press("?")
    assert page.locator("dialog h2").inner_text() == "Keys"
    page.keyboard.press("Escape")
    page.click("a.brand")
    page.wait_for_url("**/index.html*")
    wait_for_count(page, "600 features")


def test_it_opens_soon(folder: Path, visit: Callable[..., Any]):
    started = time.perf_counter()
    page = visit((folder / "index.html").as_uri())
    wait_for_count(page, "600 features")
    assert time.perf_counter() - started < 20  # it takes a tenth of a second; this is no measurement


def test_it_can_be_read_without_scripts(folder: Path, browser: Any):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.locator("tbody.rows > tr").count() == 500
    page.click("tr[data-index='96'] th a")
    assert "96" in page.locator("h1").inner_text()
    page.click("a[rel=prev]")
    assert page.url.endswith("/f/95.html")
    assert page.locator("ol.examples li").count() == 3
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everyone_can_read_it_and_texts_that_attack_do_nothing(
    store: Store, tmp_path: Path, visit: Callable[..., Any], width: int, scheme: str
):
    from axe_playwright_python.sync_playwright import Axe

    export_folder(store, tmp_path / "out")
    export_file(store, tmp_path / "few.html")
    for file in ("out/index.html", "out/f/3.html", "out/f/5.html", "out/f/7.html", "few.html"):
        page = visit((tmp_path / file).as_uri(), width=width, scheme=scheme)
        while closed := page.locator("main details:not([open]) > summary:visible").all():
            closed[0].click()
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width, file
        assert page.locator("img, main script:not([type='application/json'])").count() == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(22,")
        assert dark == (scheme == "dark")
        result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"], "preload": False})
        serious = [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in result.response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == [], file


def test_one_file_has_the_list_and_the_cards(many: Path, tmp_path: Path, visit: Callable[..., Any]):
    file = tmp_path / "few.html"
    with Store.open(many) as store:
        export_file(store, file, indices=range(1, 30))
        strongest = store.page(None, 9).examples[0]
        value = strongest.activations[strongest.peak]
    page = visit(file.as_uri())
    wait_for_count(page, "29 features")
    assert page.locator("article").count() == 29
    page.fill("input[name=search]", "beta9")
    wait_for_count(page, "1 feature matches")
    page.click("tr[data-index='9'] th a")
    page.wait_for_url("**#feature-9")
    card = page.locator("#feature-9")
    page.wait_for_function("() => Math.abs(document.querySelector('#feature-9').getBoundingClientRect().top) < 100")
    card.locator("mark.peak").first.hover()
    assert page.locator("#tip").inner_text().startswith(str(value))
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )
    assert page.evaluate("window.ran") is None  # only the one script runs
    assert len(visit.said) == 1
    assert "Content Security Policy" in visit.said[0]
    visit.said.clear()
