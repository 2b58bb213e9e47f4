"""The list of features as people use it: thousands of rows behind one scrollbar, keys, filters, the address, the phone."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from saescope.store import AnalysisRecord, DictionaryRecord, Explanation, Feature, FeatureRecord, Label, Store
from saescope.web.app import create_app
from saescope.web.features import row_as_json
from saescope.web.list_rows import Row
from saescope.web.site import Links

pytestmark = pytest.mark.slow

NUMBER = 3000
WORDS = ["alpha", "beta  two", "gamma_ray", "<i>delta</i>", "Élan 漢字"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 3,000 features that nobody changes."""
    rng = random.Random(0)
    record = DictionaryRecord(name="many/x", model="m", hook_point="h", architecture="topk", d_in=4, d_sae=NUMBER)
    features = []
    for index in range(NUMBER):
        label = None
        if rng.random() < 0.8:
            text = f"{rng.choice(WORDS)} {index}"
            label = Label(
                text=text, kind="tokens", precision=rng.random(), lift=rng.choice([None, 3.0, 70.0]), num_firings=5
            )
        numbers: dict[str, Any] = {
            "num_firings": rng.randrange(0, 9999), "density": rng.choice([0.0, 0.3, 10 ** rng.uniform(-7, 0)]),
            "max_activation": rng.uniform(0.01, 2000), "mean_positive": rng.uniform(0, 3),
            "logit_kurtosis": rng.choice([None, rng.uniform(2, 9)]), "cluster": rng.choice([None, 1, 2]),
        }  # fmt: skip
        features.append(Feature(record=FeatureRecord(index=index, label=label, **numbers)))
    path = tmp_path_factory.mktemp("many") / "features.db"
    with Store.open(path) as store:
        store.write(record, AnalysisRecord(dataset="x", context_size=8, num_tokens=9999), features, [], [])
        best = store.order("many/x")[2]
        store.tag("many/x", best, "a tag")
        store.explain("many/x", best, Explanation(text="says\tthis", score=0.8125, author="judge"))
    return path


@pytest.fixture
def many(file: Path) -> Iterator[Store]:
    with Store.open(file) as store:
        yield store


@pytest.fixture
def address(many: Store, served: Callable[..., str]) -> str:
    return served(create_app(many)) + Links().features("many/x")


def _until(page: Any, condition: str) -> None:
    """Wait. The pages let nothing be evaluated inside of them, so the condition is asked for again and again."""
    end = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def _shown(page: Any) -> list[int]:
    """Indices of the rows that lie in view, from top to bottom, once all of them are there."""
    _until(page, "document.querySelectorAll('tbody.rows tr').length && !document.querySelector('tr.waiting, .busy')")
    return page.evaluate(
        """() => {
          const view = document.querySelector(".view").getBoundingClientRect();
          const top = document.querySelector("thead th").getBoundingClientRect().bottom;
          return [...document.querySelectorAll("tbody.rows tr")]
            .map((row) => [row, row.getBoundingClientRect()])
            .filter(([, box]) => box.top > top - 2 && box.bottom < view.bottom + 2)
            .map(([row]) => Number(row.dataset.index));
        }"""
    )


def _scroll(page: Any, share: float) -> None:
    """To the row at a share of the list."""
    page.evaluate(
        "(share) => { const view = document.querySelector('.view');"
        " view.scrollTop = Math.round((share * view.scrollHeight) / 38) * 38; }",
        share,
    )
    page.wait_for_timeout(150)


def _is_stretch(rows: list[int], order: list[int], at: int | None = None) -> bool:
    start = order.index(rows[0]) if at is None else at
    assert len(rows) > 5
    return rows == order[start : start + len(rows)]


def test_all_rows_are_behind_one_scrollbar(address: str, many: Store, visit: Callable[..., Any]) -> None:
    page = visit(address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/" in request.url else None)
    order = many.order("many/x")
    assert _is_stretch(_shown(page), order, 0)
    assert page.locator("tbody.rows tr").count() < 60
    assert page.locator(".count").inner_text() == "3,000 features"
    assert page.locator("table").get_attribute("aria-rowcount") == "3001"
    assert asked == []  # what the page came with is enough
    _scroll(page, 0.5)
    middle = _shown(page)
    assert _is_stretch(middle, order)
    assert 1300 < order.index(middle[0]) < 1700
    assert page.locator("tbody.rows tr").count() < 60
    first = page.locator("tbody.rows tr").first
    assert order[int(first.get_attribute("aria-rowindex")) - 2] == int(first.get_attribute("data-index"))
    _scroll(page, 1)
    end = _shown(page)
    assert end == order[-len(end) :]
    assert sum("/order" in url for url in asked) == 1
    assert all(len(parse_qs(urlsplit(url).query)["index"]) <= 50 for url in asked if "/rows" in url)
    _scroll(page, 0)
    assert _is_stretch(_shown(page), order, 0)
    many_asked = len(asked)
    _scroll(page, 1)
    assert _shown(page) == end
    assert len(asked) == many_asked  # rows that were here stay known


def test_scripts_draw_rows_as_the_server_does(
    address: str, many: Store, visit: Callable[..., Any], browser: Any
) -> None:
    order = many.order("many/x", sort="cluster", descending=False)[:50]
    marks = many.marks("many/x", range(NUMBER))
    assert marks
    order[7] = next(iter(marks))
    records = many.records("many/x", order)
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(f"{address}?sort=cluster&dir=asc")
    page = visit(address)
    look = "{ columns: [['cluster', 'whole'], ['density', 'percent'], ['max_activation', 'decimal'],"
    look += " ['mean_positive', 'decimal'], ['logit_kurtosis', 'decimal'], "
    look += "['precision', 'percent'], ['lift', 'decimal']], sort: 'cluster', hasStar: true,"
    look += " address: (index) => '/d/many%2Fx/f/' + index }"
    drawn = page.evaluate(
        f"async ([path, rows]) => {{ const {{ drawnRow }} = await import(path);"
        f" return rows.map((row) => drawnRow(row, {look}).outerHTML); }}",
        [
            Links().asset("app/listrow.js"),
            [row_as_json(Row(record=r, marks=marks.get(r.index, Row(record=r).marks))) for r in records],
        ],
    )
    server = plain.evaluate(
        "[...document.querySelectorAll('tbody.rows tr')].map((row) => row.outerHTML.replaceAll(' disabled=\"\"', ''))"
    )
    plain.context.close()
    assert len(server) == len(drawn) == 50
    for place, (one, other) in enumerate(zip(server, drawn, strict=True)):
        if place != 7:
            assert re.sub(r'style="--w: ?([\d.]+%);?"', r"\1", one) == re.sub(
                r'style="--w: ?([\d.]+%);?"', r"\1", other
            )
    assert '<i class="t">\t</i>' in drawn[7]
    assert '<span class="chip tag">a<i class="s"> </i>tag</span>' in drawn[7]
    assert "0.813" in drawn[7] or "0.812" in drawn[7]


def test_the_address_brings_the_same_list_back(address: str, many: Store, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.click('a.sort[data-sort="max_activation"]')
    page.wait_for_selector("th[aria-sort] >> text=Max")
    page.fill("[data-search]", "alpha")
    narrow = many.order("many/x", sort="max_activation", search="alpha")
    _until(page, f"document.querySelector('.count').textContent.startsWith('{len(narrow)} ')")
    _scroll(page, 0.6)
    before = _shown(page)
    assert _is_stretch(before, narrow)
    page.wait_for_timeout(300)
    query = parse_qs(urlsplit(page.url).query)
    assert (query["sort"], query["search"]) == (["max_activation"], ["alpha"])
    assert narrow[int(query["at"][0])] == before[0]
    row = page.locator(f'tr[data-index="{before[3]}"]')
    row.locator("th a").click()
    page.wait_for_url(f"**/f/{before[3]}")
    page.go_back()
    page.wait_for_selector("sae-features.ready")
    assert _shown(page)[0] == before[0]
    assert page.evaluate("document.activeElement.className") == "current"
    assert page.evaluate("document.activeElement.dataset.index") == str(before[3])
    _scroll(page, 0.2)  # away from the current row
    _until(page, "location.search.includes('row=') && !location.search.includes('at=" + query["at"][0] + "')")
    before = _shown(page)
    page.reload()
    page.wait_for_selector("sae-features.ready")
    assert _shown(page)[0] == before[0]
    assert page.input_value("[data-search]") == "alpha"
    other = visit(page.url)  # as a link
    assert _shown(other)[0] == before[0]
    other.click("a.clear")
    _until(other, "document.querySelector('.count').textContent === '3,000 features'")
    assert _is_stretch(_shown(other), many.order("many/x", sort="max_activation"), 0)
    other.click('a.sort[data-sort="max_activation"]')
    other.wait_for_selector('th[aria-sort="ascending"]')
    assert _is_stretch(_shown(other), many.order("many/x", sort="max_activation", descending=False), 0)
    assert other.evaluate("document.activeElement.dataset.sort") == "max_activation"


def test_keys(store: Store, served: Callable[..., str], visit: Callable[..., Any]) -> None:
    name = "tiny <b>topk</b>"
    page = visit(served(create_app(store)) + Links().features(name))
    order = store.order(name)
    page.wait_for_selector("sae-features.ready")
    focused = "document.activeElement.dataset.index"
    page.keyboard.press("j")
    assert page.evaluate(focused) == str(order[0])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert page.evaluate(focused) == str(order[2])
    page.keyboard.press("k")
    assert page.evaluate(focused) == str(order[1])
    was = store.page(name, order[1]).is_bookmarked
    with page.expect_response(lambda answer: answer.url.endswith("/bookmark")) as told:
        page.keyboard.press("m")
    assert told.value.status == 204
    assert store.page(name, order[1]).is_bookmarked is not was
    star = page.locator(f'tr[data-index="{order[1]}"] button.star')
    assert star.get_attribute("aria-pressed") == str(not was).lower()
    with page.expect_response(lambda answer: answer.url.endswith("/bookmark")):
        star.click()
    assert store.page(name, order[1]).is_bookmarked is was
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("j")
    assert page.input_value("#search") == "j"
    page.fill("#search", "")
    page.keyboard.press("Escape")
    _until(page, "document.querySelector('.count').textContent === '4 features'")
    page.keyboard.press("j")
    page.keyboard.press("End")
    assert page.evaluate(focused) == str(order[-1])
    page.keyboard.press("Home")
    assert page.evaluate(focused) == str(order[0])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/f/{order[0]}")
    page.go_back()
    page.wait_for_selector("sae-features.ready")
    page.keyboard.press("r")
    page.wait_for_url("**/f/*")
    page.go_back()
    page.wait_for_selector("sae-features.ready")
    page.keyboard.press("g")
    page.keyboard.press("h")
    page.wait_for_selector("h1 >> text=Dictionaries")


def test_keys_through_rows_that_are_not_there_yet(address: str, many: Store, visit: Callable[..., Any]) -> None:
    page = visit(f"{address}?sort=index&dir=asc")
    page.wait_for_selector("sae-features.ready")
    page.keyboard.press("j")
    page.keyboard.press("End")
    _until(page, "document.activeElement.dataset.index === '2999' && !document.querySelector('tr.waiting')")
    page.keyboard.press("PageUp")
    _until(page, "Number(document.activeElement.dataset.index) < 2995")
    box = page.evaluate(
        "(() => { const r = document.activeElement.getBoundingClientRect(); return [r.top, r.bottom]; })()"
    )
    view = page.evaluate(
        "[document.querySelector('thead th'), document.querySelector('.view')].map((e) => e.getBoundingClientRect().bottom)"
    )
    assert box[0] >= view[0] - 1
    assert box[1] <= view[1] + 1


def test_filters(address: str, many: Store, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.click(".ranges summary")
    page.fill('input[name="min_lift"]', "10")
    page.select_option("#add", "cluster")
    page.fill('input[name="max_cluster"]', "1")
    expected = many.order("many/x", where={"lift": (10, None), "cluster": (None, 1)})
    _until(page, f"document.querySelector('.count').textContent.startsWith('{len(expected)} ')")
    assert _is_stretch(_shown(page), expected, 0)
    assert page.locator(".ranges summary .chip").inner_text() == "2"
    assert parse_qs(urlsplit(page.url).query) == {"min_lift": ["10"], "max_cluster": ["1"]}
    page.reload()
    page.wait_for_selector("sae-features.ready")
    assert page.input_value('input[name="max_cluster"]') == "1"
    assert _is_stretch(_shown(page), expected, 0)
    page.select_option("#sort", "logit_kurtosis")
    page.select_option("#dir", "asc")
    expected = many.order(
        "many/x", where={"lift": (10, None), "cluster": (None, 1)}, sort="logit_kurtosis", descending=False
    )
    page.wait_for_selector('th[aria-sort="ascending"] >> text=Logit kurtosis')
    assert _is_stretch(_shown(page), expected, 0)
    page.fill('input[name="min_lift"]', "1000")
    page.wait_for_selector(".nothing")
    assert page.locator(".count").inner_text() == "0 features match"
    page.click("a.clear")
    _until(page, "document.querySelector('.count').textContent === '3,000 features'")
    page.check("[name=bookmarked]")
    _until(page, "document.querySelector('.count').textContent === '0 features match'")
    page.click("a.clear")
    _until(page, "document.querySelector('.count').textContent === '3,000 features'")
    assert not page.is_checked("[name=bookmarked]")
    assert page.input_value('input[name="min_lift"]') == ""
    page.wait_for_selector("tbody.rows tr")
    assert page.locator(".nothing").count() == 0


def test_a_search_that_is_refused_says_why(address: str, browser: Any) -> None:
    page = browser.new_context().new_page()  # not `visit`: the browser itself reports the 422
    page.goto(address)
    page.fill("[data-search]", "<>")
    page.wait_for_selector(".problem")
    assert "has no word in it" in page.locator(".count").inner_text()
    assert page.locator("tbody.rows tr").count() > 5  # what was there stays
    page.fill("[data-search]", "gamma")
    page.wait_for_selector(".count:not(:has(.problem))")
    page.context.close()


def test_rows_that_nobody_waits_for_are_given_up(address: str, many: Store, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.wait_for_selector("sae-features.ready")
    page.evaluate(
        """() => {
          const ask = window.fetch;
          window.slow = true;
          window.waiting = 0;
          window.givenUp = 0;
          window.fetch = async (path, options) => {
            if (!window.slow || !path.includes("/rows?")) return ask(path, options);
            window.waiting += 1;
            return new Promise((_, refuse) => options.signal.addEventListener("abort", () => {
              window.givenUp += 1;
              refuse(new DOMException("", "AbortError"));
            }));
          };
        }"""
    )
    _scroll(page, 0.3)
    _until(page, "window.waiting > 0")
    assert page.locator("tr.waiting").count() > 5
    waiting = page.evaluate("window.slow = false, window.waiting")
    _scroll(page, 0.8)
    end = _shown(page)
    assert _is_stretch(end, many.order("many/x"))
    assert page.evaluate("window.givenUp") == waiting
    _scroll(page, 0.3)
    assert _is_stretch(_shown(page), many.order("many/x"))  # and asked for again where they are wanted


def test_a_bookmark_that_can_not_be_kept_is_taken_back(address: str, many: Store, browser: Any) -> None:
    page = browser.new_context().new_page()  # not `visit`: the browser itself reports the 403
    page.goto(address)
    page.wait_for_selector("sae-features.ready")
    refused = {"error": {"status": 403, "message": "the store can only be read here"}}
    page.route("**/bookmark", lambda route: route.fulfill(status=403, json=refused))
    star = page.locator("tbody.rows tr").nth(2).locator("button.star")
    star.click()
    page.wait_for_selector(".problem >> text=the store can only be read here")
    assert (star.get_attribute("aria-pressed"), star.inner_text()) == ("false", "☆")
    page.context.close()


def test_without_scripts(address: str, many: Store, browser: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    order = many.order("many/x", search="gamma_ray", sort="lift", descending=False)
    indices = lambda: [int(row.get_attribute("data-index")) for row in page.locator("tbody.rows tr").all()]  # noqa: E731
    page.fill("[data-search]", "gamma_ray")
    page.select_option("#sort", "lift")
    page.select_option("#dir", "asc")
    page.click(".apply")
    assert indices() == order[:50]
    page.click('a[rel="next"]')
    assert indices() == order[50:100]
    page.click("text=Start of the list")
    assert indices() == order[:50]
    page.click('a.sort[data-sort="index"]')
    assert indices() == sorted(order)[:50]
    page.click(".ranges summary")
    page.select_option("#add", "num_firings")
    page.click(".apply")
    page.fill('input[name="min_num_firings"]', "5000")
    page.click(".apply")
    expected = many.order(
        "many/x", search="gamma_ray", sort="index", descending=False, where={"num_firings": (5000, None)}
    )
    assert indices() == expected[:50]
    page.context.close()


def test_a_place_by_cursor_becomes_a_place_in_the_whole(address: str, many: Store, visit: Callable[..., Any]) -> None:
    after = many.features("many/x", limit=200).next
    page = visit(f"{address}?after={after}")
    order = many.order("many/x")
    _until(page, "document.querySelector('.view').scrollTop > 0")
    assert _is_stretch(_shown(page), order, 200)
    page.wait_for_timeout(300)
    assert parse_qs(urlsplit(page.url).query) == {"at": ["200"]}
    _scroll(page, 0)
    assert _is_stretch(_shown(page), order, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everyone_can_read_both_pages(address: str, visit: Callable[..., Any], width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visit(f"{address}?min_lift=1", width=width, scheme=scheme)
    for _ in range(2):
        _until(page, "!document.querySelector('tr.waiting')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        result = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
        serious = [
            (violation["id"], [node["html"] for node in violation["nodes"]][:3])
            for violation in result.response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []
        page.goto("/".join(address.split("/")[:3]) + "/")


class TestRowsInMemory:
    """`LocalRows`, by which a page from a disk sorts and searches."""

    @pytest.fixture
    def local(self, address: str, many: Store, visit: Callable[..., Any]) -> Callable[..., Any]:
        page = visit(address)
        rows = []
        for record in many.records("many/x", range(NUMBER)):
            words = re.findall(r"\w+", record.label.text.lower()) if record.label else []
            rows.append({**row_as_json(Row(record=record)), "words": " ".join(words)})
        page.evaluate("(rows) => { window.rows = rows; }", json.loads(json.dumps(rows)))

        def run(**query: Any) -> Any:
            return page.evaluate(
                "async ([path, query]) => { const { LocalRows } = await import(path);"
                " const found = new LocalRows(window.rows, query);"
                " return Array.from({ length: found.total }, (_, place) => found.index(place)); }",
                [Links().asset("app/rows.js"), {"sort": "density", "dir": "desc", "search": "", **query}],
            )

        return run

    def test_orders_are_those_of_the_store(self, local: Callable[..., Any], many: Store) -> None:
        from saescope.store.filters import KEYS

        for sort in KEYS:
            for direction in ("asc", "desc"):
                assert local(sort=sort, dir=direction) == many.order(
                    "many/x", sort=sort, descending=direction == "desc"
                ), sort

    def test_searches_and_ranges_are_those_of_the_store(self, local: Callable[..., Any], many: Store) -> None:
        for search in ("alpha", "ALP", "tw beta", "gamma", "gamma_ray 1", "élan", "漢", "i", "ray", "alpha beta"):
            assert local(search=search) == many.order("many/x", search=search), search
        assert local(min_lift="3", max_lift="3") == many.order("many/x", where={"lift": (3, 3)})
        where: dict[str, Any] = {"precision": (0.25, 0.5), "cluster": (2, None)}
        found = local(min_precision="0.25", max_precision="0.5", min_cluster="2", search="delta", sort="lift")
        assert found == many.order("many/x", where=where, search="delta", sort="lift")
        assert 0 < len(found) < 100


def test_more_rows_than_a_browser_has_pixels_for(address: str, visit: Callable[..., Any]) -> None:
    """A window onto 600,000 rows: 23 million pixels, of which a browser draws 8."""
    page = visit(address)
    seen = page.evaluate(
        """async ([table, rows]) => {
          const { RowWindow } = await import(table);
          const { LocalRows } = await import(rows);
          const many = Array.from({ length: 600000 }, (_, index) => ({ index, density: 0.5, num_firings: 1, label: null }));
          const view = document.querySelector(".view").cloneNode(true); // to which nothing else listens
          document.querySelector(".view").replaceWith(view);
          const old = view.querySelector("tbody.rows");
          for (const space of view.querySelectorAll("tbody.space")) space.remove();
          const window = new RowWindow(view, { moved() {}, failed() {} });
          const look = { columns: [], sort: "", hasStar: true, address: (index) => `/${index}` };
          window.show(new LocalRows(many, { sort: "index", dir: "asc" }), look);
          const pause = () => new Promise((done) => setTimeout(done, 100));
          const places = () => {
            const box = view.getBoundingClientRect();
            const top = view.querySelector("thead th").getBoundingClientRect().bottom;
            return [...old.rows].map((row) => [row, row.getBoundingClientRect()])
              .filter(([, at]) => at.bottom > top + 1 && at.top < box.bottom - 1)
              .map(([row]) => Number(row.dataset.index));
          };
          const found = [];
          for (const share of [0, 0.5, 1]) {
            view.scrollTop = share * (view.scrollHeight - view.clientHeight);
            await pause();
            found.push(places());
          }
          window.select(400000);
          await pause();
          found.push(places());
          found.push([view.scrollHeight]);
          return found;
        }""",
        [Links().asset("app/table.js"), Links().asset("app/rows.js")],
    )
    start, middle, end, chosen, (height,) = seen
    assert height < 9_000_000
    for rows in (start, middle, end, chosen):
        assert len(rows) > 5
        assert rows == list(range(rows[0], rows[0] + len(rows)))
    assert start[0] == 0
    assert abs(middle[0] - 300_000) < 50
    assert end[-1] == 599_999
    assert 400_000 in chosen
