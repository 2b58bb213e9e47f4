"""A feature's page in Chromium: what is pointed at says the store's value, keys and switches act, edits stay."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from saescope.store import Store
from saescope.web.feature_charts import bars
from saescope.web.page_json import page_as_json

pytestmark = pytest.mark.slow

NAME = "tiny <b>topk</b>"
ADDRESS = f"/d/{quote(NAME, safe='')}/f"


@pytest.fixture
def server(store: Store, fake_live: Any, served: Callable[..., str]) -> str:
    from saescope.web.app import create_app

    return served(create_app(store, live=fake_live))


def _shown(page: Any, row: int = 0) -> str:
    """The text of a row of the top group that can be seen, ellipses included."""
    return (
        page.locator("#top .context")
        .nth(row)
        .evaluate(
            """context => {
          let text = "";
          for (const zone of context.children) {
            if (getComputedStyle(zone).display === "none") continue;
            for (const side of ["::before", "::after"]) {
              const drawn = getComputedStyle(zone, side).content;
              const words = drawn === "none" || drawn === "normal" ? "" : JSON.parse(drawn);
              text += side === "::before" ? words + zone.textContent : words;
            }
          }
          return text;
        }"""
        )
    )


def _text(store: Store, row: int, reach: int | None) -> str:
    example = store.page(NAME, 3).examples[row]
    texts = example.window.token_texts
    if reach is None:
        return "".join(texts)
    first, last = max(0, example.peak - reach), min(len(texts), example.peak + reach + 1)
    return f"{'…' * (first > 0)}{''.join(texts[first:last])}{'…' * (last < len(texts))}"


def test_pointing_and_focus_tell_the_value_in_the_store(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3?context=whole")
    for row, example in enumerate(store.page(NAME, 3).examples[:3]):
        firing = [place for place, value in enumerate(example.activations) if value]
        tokens = page.locator("#top > ol > li").nth(row).locator(".on, .peak")
        assert tokens.count() == len(firing) == 2
        for place, position in enumerate(firing):
            tokens.nth(place).hover()
            said = f"{example.activations[position]} · token {example.window.token_ids[position]}"
            assert page.locator("#tip").inner_text() == said
            page.mouse.move(0, 0)
            assert page.locator("#tip").is_hidden()
            tokens.nth(place).focus() if place == firing.index(example.peak) else None
    # of a character that two tokens share, each has its own
    page = visit(f"{server}{ADDRESS}/9")
    page.locator("#top .peak").focus()
    assert page.locator("#tip").inner_text() == "token 21: 0.5, token 22: -8.0"


def test_arrows_walk_through_tokens_and_examples(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3?context=whole")
    example = store.page(NAME, 3).examples[0]

    def focused() -> str:
        return page.evaluate("document.activeElement.dataset.tip ?? document.activeElement.title")

    page.locator("#top .peak").first.focus()
    assert focused().startswith("10.0 ")
    page.keyboard.press("ArrowRight")
    assert focused().startswith("1.25 ")
    assert page.locator("#tip").inner_text().startswith("1.25 ")
    page.keyboard.press("ArrowRight")  # the last one
    assert focused().startswith("1.25 ")
    assert page.locator("#top > ol > li").first.locator("[tabindex]").count() == 1
    page.keyboard.press("Home")
    assert focused().startswith(str(example.activation))
    page.keyboard.press("ArrowDown")
    assert focused().startswith("9.0 ")
    page.keyboard.press("ArrowUp")
    assert focused().startswith("10.0 ")
    assert page.locator(".feature").get_attribute("data-feature") == "3"  # the page's own arrows were not asked
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('[data-feature="5"]')


def test_the_context_is_switched_without_a_request(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    page.wait_for_timeout(700)  # the neighbours are fetched
    asked: list[str] = []
    page.on("request", lambda request: None if "/static/" in request.url else asked.append(request.url))
    rows = range(len(store.page(NAME, 3).examples))
    for choice, reach in (("5", 5), ("16", 16), ("48", 48), ("whole", None)):
        page.locator(f"label:has(#context-{choice})").click()
        for row in rows:
            assert _shown(page, row) == _text(store, row, reach), (choice, row)
    assert asked == []
    assert page.url.endswith("/3?context=whole")
    page.keyboard.press("c")
    assert page.url.endswith("/3?context=5")
    assert page.locator("#context-5").is_checked()
    page.reload()
    assert _shown(page) == _text(store, 0, 5)
    page.keyboard.press("j")  # and the next feature keeps it
    page.wait_for_url("**/5?context=5")
    assert page.locator("#context-5").is_checked()
    page.keyboard.press("k")
    page.wait_for_url("**/3?context=5")
    assert _shown(page) == _text(store, 0, 5)


def test_without_scripts_all_can_be_read_and_switched(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3", java_script_enabled=False)
    assert _shown(page) == _text(store, 0, 16)
    page.locator("label:has(#context-5)").click()
    assert _shown(page) == _text(store, 0, 5)
    assert page.locator("svg.log").first.is_visible()
    page.locator("label:has(#scale-linear)").click()
    assert page.locator("svg.linear").first.is_visible()
    assert page.locator("svg.log").first.is_hidden()
    assert page.locator("#top .peak").first.get_attribute("title").startswith("10.0 · token ")
    assert page.locator("[data-bookmark]").is_hidden()


def test_line_breaks_are_shown_or_not(server: str, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    context = page.locator("#top .context").first
    flat = context.bounding_box()["height"]
    page.keyboard.press("b")
    assert page.locator("#breaks").is_checked()
    assert context.bounding_box()["height"] > 1.5 * flat
    assert page.url.endswith("?breaks=1")
    page.reload()
    assert context.bounding_box()["height"] > 1.5 * flat


def test_both_scales_are_there_and_a_bar_says_what_it_counts(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    first = page.locator("sae-histogram").first
    assert first.locator("svg.log").is_visible()
    page.locator("label:has(#scale-linear)").click()
    assert first.locator("svg.linear").is_visible()
    assert page.url.endswith("?scale=linear")
    page.locator("#scale-linear").press("ArrowLeft")  # the radio buttons' own key
    assert page.locator("#scale-log").is_checked()
    assert page.locator(".feature").get_attribute("data-feature") == "3"
    counts = json.loads(bars(store.page(NAME, 3).detail.histogram, "").counts)  # type: ignore[union-attr]
    box = first.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 20)
    assert first.locator(".scale").inner_text() == f"5 to 10: {counts[1]}"
    page.mouse.move(0, 0)
    assert "highest bar 4,321" in first.locator(".scale").inner_text()
    # where the value of a token lies: 10 is the upper end of two bins, 1.25 in the first quarter of the first
    page.locator("#top .peak").first.focus()
    assert first.locator(".marker").evaluate("mark => mark.style.left") == "100%"
    page.locator("label:has(#context-whole)").click()
    page.locator("#top .on").first.hover()
    assert first.locator(".marker").evaluate("mark => mark.style.left") == "12.5%"


def test_keys_lead_from_feature_to_feature(server: str, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    page.evaluate("window.mark = 'the same page'")
    for key, index in (("j", 5), ("ArrowRight", 7), ("j", 9), ("k", 7), ("ArrowLeft", 5)):
        page.keyboard.press(key)
        page.wait_for_selector(f'[data-feature="{index}"]')
        assert page.url == f"{server}{ADDRESS}/{index}"
        assert page.title().startswith(f"{index} ")
        assert page.locator("#status").inner_text().startswith(f"{index} ")
    assert page.evaluate("window.mark") == "the same page"  # nothing was loaded anew
    page.go_back()
    page.wait_for_selector('[data-feature="7"]')
    page.reload()
    assert page.locator(".feature").get_attribute("data-feature") == "7"
    page.locator('[data-go="following"]').click()
    page.wait_for_selector('[data-feature="9"]')
    assert page.locator('[data-go="following"]').count() == 0
    page.keyboard.press("j")  # there is no next one
    assert page.locator(".feature").get_attribute("data-feature") == "9"
    page.keyboard.press("g")
    page.keyboard.press("f")
    page.wait_for_url(f"{server}/d/{quote(NAME, safe='')}")


def test_a_feature_that_can_not_be_fetched_is_gone_to(server: str, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/7")
    page.route("**/f/9", lambda route: route.abort() if route.request.resource_type == "fetch" else route.continue_())
    page.reload()
    page.wait_for_timeout(700)
    page.keyboard.press("j")
    page.wait_for_selector('[data-feature="9"]')
    visit.said[:] = [words for words in visit.said if "ERR_FAILED" not in words]  # type: ignore[attr-defined]


def test_groups_are_gone_through(server: str, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    for key, group in (("]", "top"), ("]", "quantile-1"), ("]", "quantile-0"), ("[", "quantile-1"), ("[", "top")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == group
        assert page.locator(f"#{group}").evaluate("group => group.getBoundingClientRect().top") < 844


def test_what_is_written_shows_at_once_and_stays(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/9")
    status = page.locator("#status")

    def shown(kind: str) -> list[str]:
        return page.locator(f'[data-kind="{kind}"] .text').all_inner_texts()

    def stored() -> tuple[list[str], list[str], list[str], bool]:
        found = store.page(NAME, 9)
        return (
            [n.text for n in found.notes],
            list(found.tags),
            [e.text for e in found.explanations],
            found.is_bookmarked,
        )

    page.keyboard.press("n")
    page.keyboard.type("a <b>note</b>\nof j and k")
    page.get_by_label("Your name").fill("Ann")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector('[data-kind="notes"] .by')
    assert status.inner_text() == "The note was added"
    assert shown("notes") == ["a <b>note</b>\nof j and k"]
    for tag in ("zeta", "alpha", "zeta"):
        page.get_by_role("button", name="Add a tag").click()
        page.wait_for_selector('datalist option[value="syntax <u>"]', state="attached")  # known of other features
        page.keyboard.type(f" {tag} ")
        page.keyboard.press("Enter")
        page.wait_for_selector(f'[data-kind="tags"] :text-is("{tag}")')
    page.get_by_role("button", name="Explain").click()
    page.get_by_label("What does it mean?").fill("numbers")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector('[data-kind="explanations"] .text')
    page.keyboard.press("m")
    page.wait_for_selector('[data-bookmark][aria-pressed="true"]')
    assert stored() == (["a <b>note</b>\nof j and k"], ["alpha", "zeta"], ["numbers"], True)
    before = [page.locator(f'[data-kind="{kind}"]').inner_text() for kind in ("notes", "tags", "explanations")]
    page.reload()
    assert [page.locator(f'[data-kind="{kind}"]').inner_text() for kind in ("notes", "tags", "explanations")] == before

    page.get_by_role("button", name=re.compile("Edit the note")).click()
    assert page.get_by_label("Note", exact=True).input_value() == "a <b>note</b>\nof j and k"
    page.get_by_label("Note", exact=True).fill("shorter")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(':text-is("shorter")')
    assert status.inner_text() == "The note was changed"
    page.get_by_role("button", name=re.compile("Remove the tag “zeta")).click()
    page.wait_for_selector('[data-kind="tags"] li:only-child')
    assert stored() == (["shorter"], ["alpha"], ["numbers"], True)
    for kind in ("note", "tag", "explanation"):
        page.get_by_role("button", name=re.compile(f"Remove the {kind} ")).click()
        page.wait_for_selector(f'[data-kind="{kind}s"]:not(:has(li))', state="attached")
    page.get_by_role("button", name="Bookmark").click()
    page.wait_for_selector('[data-bookmark][aria-pressed="false"]')
    assert stored() == ([], [], [], False)


def test_what_the_server_refuses_is_said_and_not_lost(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3")
    (note,) = store.page(NAME, 3).notes
    page.get_by_role("button", name=re.compile("Edit the note")).click()
    page.get_by_label("Note", exact=True).fill("mine")
    assert note.id is not None
    store.delete_note(note.id)  # somebody else was quicker
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector('[role="alert"]:visible')
    assert f"no note number {note.id}" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Note", exact=True).input_value() == "mine"
    page.get_by_label("Note", exact=True).press("Escape")
    assert page.locator("sae-remarks form").count() == 0
    assert page.locator('[data-kind="notes"] .text').inner_text() == note.text
    visit.said[:] = [words for words in visit.said if "404" not in words]  # type: ignore[attr-defined]


def test_it_is_copied_as_link_json_and_markdown(server: str, store: Store, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3", permissions=["clipboard-read", "clipboard-write"])

    def copied(name: str) -> str:
        page.get_by_role("button", name=f"Copy {name}").click()
        page.wait_for_selector('button[data-copy]:text-is("Copied")')
        text = page.evaluate("navigator.clipboard.readText()")
        page.wait_for_selector('button[data-copy]:text-is("Copied")', state="detached")
        return text

    assert copied("link") == page.url
    assert json.loads(copied("JSON")) == json.loads(json.dumps(page_as_json(store.page(NAME, 3))))
    assert copied("Markdown").startswith("## Feature 3 of ")


def test_it_is_copied_where_there_is_no_clipboard(server: str, visit: Callable[..., Any]):
    page = visit(f"{server}{ADDRESS}/3", permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_selector('button[data-copy]:text-is("Copied")')
    page.evaluate("delete navigator.clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("index", [3, 5, 7, 9])
def test_it_fits_a_phone_and_can_be_read_by_all(server: str, visit: Callable[..., Any], index: int, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for width in (360, 1280):
        page = visit(f"{server}{ADDRESS}/{index}", width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]})
        faults = [
            fault for fault in found.response["violations"] if fault["impact"] in ("serious", "critical", "moderate")
        ]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []
