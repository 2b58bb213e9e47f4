"""Trying a text and steering in a real browser: what is drawn is what the server said, by mouse and by keys."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from saescope.store import Store
from saescope.web import drawing, numbers
from saescope.web.app import create_app
from saescope.web.live import BusyError, Change, Piece, Reading

pytestmark = pytest.mark.slow

NAME = "tiny <b>topk</b>"
PATH = f"/d/{quote(NAME, safe='')}"
ATTACK = "<img src=x onerror=alert(1)>"
PIECES = (
    Piece(text="def", token_ids=(1,), features=((3, 9.5), (9, 2.0))),
    Piece(text=" 漢", token_ids=(2, 3), features=((9, -4.0), (3, 0.125))),
    Piece(text="\n", token_ids=(4,)),
    Piece(text="<|end|>", token_ids=(0,), is_special=True),
    Piece(text=ATTACK, token_ids=(5,), features=((5, 3.0),)),
)


class Network:
    """Says what it is told to; steering waits for the test before its second step."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self.steered: list[Any] = []
        self.may_go, self.closed = threading.Event(), threading.Event()
        self.refuses: Exception | None = None

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        return None

    def state(self, name: str) -> dict[str, Any]:
        return {"state": "loading", "words": "Loading the model, 4 s so far.", "num_waiting": 0}

    def read_text(self, name: str, text: str, **how: Any) -> Reading:
        self.read.append((text, how["feature"]))
        if self.refuses:
            raise self.refuses
        feature = how["feature"]
        if feature is None:
            return Reading(pieces=PIECES, features=((3, 9.5, 2), (9, -4.0, 3), (5, 3.0, 1)), num_tokens=6)
        pieces = [
            Piece(
                text=p.text,
                token_ids=p.token_ids,
                activation=dict(p.features).get(feature, 0.0),
                is_special=p.is_special,
            )
            for p in PIECES
        ]
        return Reading(pieces=tuple(pieces), num_tokens=6)

    def steer(self, name: str, prompt: str, changes: Any, **how: Any) -> Iterator[dict[str, Any]]:
        self.steered.append((prompt, list(changes), how))
        self.closed.clear()

        def token(text: str, **more: Any) -> dict[str, Any]:
            return {"text": text, "log_probability": -1.0, "is_last": False, **more}

        def steps() -> Iterator[dict[str, Any]]:
            try:
                yield {"state": {"words": "Loading the model, 4 s so far."}}
                yield {
                    "plain": token(" one"),
                    "steered": token(ATTACK, kl=0.5, log_probability_plain=-2.0),
                }
                while not self.may_go.wait(0.05):
                    yield {"state": {"words": "Writing, 3 s so far."}}
                if self.refuses:
                    raise self.refuses
                yield {"plain": token(" one"), "steered": token(ATTACK, kl=3.0, log_probability_plain=-2.0)}
                yield {"plain": None, "steered": token(ATTACK + "é", kl=1.0, log_probability_plain=-2.0)}
                numbers = {
                    "kl_per_token": 1.5,
                    "perplexity_plain": 2.71828,
                    "perplexity_steered": None,
                    "num_tokens": 3,
                }
                yield {"done": numbers}
            finally:
                self.closed.set()

        return steps()


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def address(store: Store, network: Network, served: Callable[..., str]) -> str:
    return served(create_app(store, live=network)) + PATH  # type: ignore[arg-type]


def tokens(page: Any) -> Any:
    return page.get_by_role("listbox").get_by_role("option")


def listed(page: Any) -> list[str]:
    return [row.get_attribute("data-feature") for row in page.locator("[data-list] li").all()]


def test_a_text_is_read_and_shown_whole(address: str, network: Network, visit: Callable[..., Any], store: Store):
    page = visit(f"{address}/try")
    page.get_by_label("Text", exact=True).fill("def 漢")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    tokens(page).first.wait_for()
    assert network.read == [("def 漢", None)]
    assert page.evaluate("document.querySelector('[data-tokens]').textContent") == "".join(p.text for p in PIECES)
    assert page.locator("[data-tokens] img").count() == 0
    assert listed(page) == ["3", "9", "5"]
    first = page.locator("[data-list] li").first
    record = store.page(NAME, 3).feature
    said = f"9.5 · {numbers.percent(0.95)} of its maximum · 2 tokens · density {numbers.percent(record.density)}"
    assert first.locator(".numbers").inner_text() == said
    assert first.locator(".label").inner_text() == "the token “self”"
    assert first.locator("a").first.get_attribute("href") == f"{PATH}/f/3"
    assert "neg" in (tokens(page).nth(1).get_attribute("class") or "")
    assert parse_qs(urlsplit(page.url).query) == {"text": ["def 漢"]}
    assert "Read 6 tokens" in page.locator("#status").inner_text()


def test_a_token_is_chosen_by_mouse_and_by_keys(address: str, visit: Callable[..., Any]):
    page = visit(f"{address}/try?text=x")  # a link is read at once
    tokens(page).first.wait_for()
    tokens(page).nth(1).click()
    assert listed(page) == ["9", "3"]
    assert [token.get_attribute("aria-selected") for token in tokens(page).all()] == [
        "false",
        "true",
        "false",
        "false",
        "false",
    ]
    assert "Strongest at 漢" in " ".join(page.locator("[data-title]").inner_text().split())
    tokens(page).nth(1).click()
    assert listed(page) == ["3", "9", "5"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert listed(page) == ["3", "9"]
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == ATTACK
    assert page.locator("#tip").inner_text() == "feature 5: 3\nunlabelled"
    page.keyboard.press("Space")
    assert listed(page) == ["5"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "No feature fires here." in page.locator("[data-hidden]").inner_text()
    assert page.locator("[data-tokens] [tabindex='0']").count() == 1


def test_one_feature_colours_the_text(address: str, network: Network, visit: Callable[..., Any]):
    page = visit(f"{address}/try?text=x")
    tokens(page).first.wait_for()
    page.get_by_role("button", name="Colour the text by feature 9").click()
    page.get_by_text("Coloured by feature 9, against its maximum, 8").wait_for()
    assert network.read == [("x", None), ("x", 9)]
    colours = [token.evaluate("e => e.style.getPropertyValue('--a')") for token in tokens(page).all()]
    wanted = [2.0, -4.0, 0.0, 0.0, 0.0]
    assert [float(colour or 0) for colour in colours] == pytest.approx(
        [drawing.shade(v, 8.0) for v in wanted], abs=1e-3
    )
    tokens(page).nth(1).hover()
    assert page.locator("#tip").inner_text() == "feature 9: −4\nunlabelled"
    assert page.get_by_role("button", name="Colour the text by feature 9").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Colour the text by feature 9").click()
    page.get_by_text("from 3 to 9.5").wait_for()


def test_dense_features_are_hidden_until_they_are_wanted(
    tmp_path: Any, network: Network, served: Any, visit: Any, store: Store
):
    store.update(NAME, [(9, {"density": 0.5})])
    page = visit(served(create_app(store, live=network)) + f"{PATH}/try?text=x")  # type: ignore[arg-type]
    tokens(page).first.wait_for()
    assert listed(page) == ["3", "5"]
    assert page.locator("[data-hidden]").inner_text() == "One dense feature is hidden."
    tokens(page).nth(1).click()
    assert listed(page) == ["3"]
    page.get_by_label("Hide dense features").uncheck()
    assert listed(page) == ["9", "3"]
    assert "dense=1" in page.url
    page.reload()
    tokens(page).first.wait_for()
    assert listed(page) == ["3", "9", "5"]


def test_what_goes_wrong_is_said_and_can_be_mended(address: str, network: Network, visit: Any):
    network.refuses = BusyError("8 requests wait for the model")
    page = visit(f"{address}/try")
    page.get_by_label("Text", exact=True).fill("a")
    page.get_by_role("button", name="Read").click()
    page.locator("[data-state]", has_text="8 requests wait for the model").wait_for()
    network.refuses = None
    page.get_by_role("button", name="Read").click()
    tokens(page).first.wait_for()
    assert page.locator("[data-state]").inner_text() == ""
    assert any("503" in line for line in visit.said)  # the browser notes it by itself
    visit.said.clear()


def test_a_long_text_does_not_go_into_the_address(address: str, visit: Any):
    page = visit(f"{address}/try")
    page.get_by_label("Text", exact=True).fill("x" * 2001)
    page.get_by_role("button", name="Read").click()
    tokens(page).first.wait_for()
    assert "text=" not in page.url


def test_the_box_on_the_page_of_a_feature(address: str, network: Network, visit: Any):
    page = visit(f"{address}/f/9")
    box = page.locator("sae-try")
    box.get_by_role("textbox").fill("def")
    box.get_by_role("textbox").press("Control+Enter")
    tokens(page).first.wait_for()
    assert network.read == [("def", 9)]
    said = box.locator("[data-said]").inner_text()
    assert said == f"Fires on 2 of 5 pieces; most on “漢” with −4, {numbers.percent(0.5)} of its maximum."
    colours = [token.evaluate("e => e.style.getPropertyValue('--a')") for token in tokens(page).all()]
    assert [float(c or 0) for c in colours] == pytest.approx(
        [drawing.shade(v, 8.0) for v in (2, -4, 0, 0, 0)], abs=1e-3
    )
    tokens(page).first.focus()
    assert page.locator("#tip").inner_text() == "2"
    page.keyboard.press("ArrowRight")  # moves along the tokens, and not to the next feature
    assert page.locator("#tip").inner_text() == "-4"
    assert page.url.endswith("/f/9")


FORM = "/steer?f=3&f=9&s=4&s=-1.5&kind=add&kind=clamp&prompt=def+x&tokens=7&temperature=0.25&seed=9"


def test_steering_is_shown_while_it_is_written(address: str, network: Network, visit: Any):
    page = visit(address + FORM + "&run=1")
    page.get_by_role("button", name="Steer").wait_for()
    assert network.steered == []  # a link fills the form, and no more
    page.get_by_role("button", name="Steer").click()
    steered, plain = page.locator("[data-steered] [data-tip]"), page.locator("[data-plain] [data-tip]")
    steered.first.wait_for()
    assert page.get_by_role("button", name="Stop").is_enabled()
    how = {"max_new_tokens": 7, "temperature": 0.25, "seed": 9, "analysis": None}
    changes = [Change(feature=3, strength=4.0), Change(feature=9, strength=-1.5, kind="clamp")]
    assert network.steered == [("def x", changes, how)]
    page.get_by_text("Writing, 3 s so far.").wait_for()
    network.may_go.set()
    page.get_by_text("To the plain model").wait_for()
    assert [span.inner_text() for span in steered.all()] == [ATTACK, "é"]
    assert [span.inner_text().strip() for span in plain.all()] == ["one"]
    assert page.locator("[data-steered] img").count() == 0
    assert page.locator("[data-steered]").text_content() == f"def x{ATTACK}é"
    steered.first.hover()
    assert page.locator("#tip").inner_text() == "KL 0.5 nats; probability 0.368, plain 0.135"
    steered.nth(1).hover()  # a token that had shown nothing is told with the next one
    assert page.locator("#tip").inner_text().split("\n") == [
        "KL 3 nats; probability 0.368, plain 0.135", "KL 1 nats; probability 0.368, plain 0.135"
    ]  # fmt: skip
    colours = [float(span.evaluate("e => e.style.getPropertyValue('--a')")) for span in steered.all()]
    assert colours == pytest.approx([drawing.shade(0.5, 5), drawing.shade(3.0, 5)], abs=1e-3)
    said = page.locator("[data-numbers]").inner_text()
    assert "moved the model by 1.5 nats a token" in said
    assert "perplexity of 2.718, and the steered one beyond all numbers:" in said
    assert page.get_by_role("button", name="Stop").is_disabled()
    assert parse_qs(urlsplit(page.url).query) == parse_qs(urlsplit(FORM).query) | {"run": ["1"]}


def test_stopping_frees_the_model(address: str, network: Network, visit: Any):
    page = visit(address + FORM)
    page.get_by_role("button", name="Steer").click()
    page.locator("[data-steered] [data-tip]").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    assert network.closed.wait(20)
    page.get_by_text("Stopped.", exact=True).first.wait_for()
    assert page.get_by_role("button", name="Stop").is_disabled()
    page.get_by_role("button", name="Steer").click()
    page.locator("[data-steered] [data-tip]").first.wait_for()
    page.goto("about:blank")  # leaving the page is leaving as well
    assert network.closed.wait(20)


def test_an_error_on_the_way_is_said(address: str, network: Network, visit: Any):
    network.refuses = BusyError("this took the model longer than 60 s")
    network.may_go.set()
    page = visit(address + FORM)
    page.get_by_role("button", name="Steer").click()
    page.locator("[data-state].warn", has_text="longer than 60 s").wait_for()
    assert page.locator("[data-steered] [data-tip]").count() == 1  # what was written stays


def test_features_are_added_changed_and_removed(address: str, network: Network, visit: Any):
    network.may_go.set()
    page = visit(f"{address}/steer")
    assert page.get_by_role("button", name="Steer").is_disabled()
    field = page.get_by_label("Add a feature")
    field.fill("5")
    field.press("Enter")
    page.get_by_label("Strength of feature 5", exact=True).wait_for()
    field.fill("self")
    page.get_by_role("button", name=re.compile("^3")).click()
    page.get_by_label("Strength of feature 3", exact=True).fill("-12.5")
    page.get_by_label("Strength of feature 5, slider").fill("3.5")
    page.get_by_label("What is done with feature 5").select_option("clamp")
    assert page.get_by_label("Strength of feature 5", exact=True).input_value() == "3.5"
    assert page.get_by_label("Strength of feature 3, slider").input_value() == "-10"
    assert (
        page.locator("[data-rows] li").last.locator(".strength .quiet").inner_text()
        == "times its maximum activation, 10: −125"
    )
    field.fill("5")
    field.press("Enter")
    page.get_by_text("Feature 5 is there already.").first.wait_for()
    field.fill("7")
    field.press("Enter")
    page.get_by_text("Feature 7 never fired").first.wait_for()
    page.get_by_label("Prompt").fill("a\nb")
    page.get_by_label("Prompt").press("Control+Enter")
    page.get_by_text("To the plain model").wait_for()
    changes = [Change(feature=5, strength=3.5, kind="clamp"), Change(feature=3, strength=-12.5)]
    assert network.steered[0][:2] == ("a\nb", changes)
    query = parse_qs(urlsplit(page.url).query)
    assert query == {"f": ["5", "3"], "s": ["3.5", "-12.5"], "kind": ["clamp", "add"], "prompt": ["a\nb"]}
    page.reload()  # gives the same form
    assert page.get_by_label("Strength of feature 3", exact=True).input_value() == "-12.5"
    assert page.get_by_label("Prompt").input_value() == "a\nb"
    page.get_by_role("button", name="Remove feature 5").click()
    page.get_by_role("button", name="Remove feature 3").click()
    assert page.get_by_role("button", name="Steer").is_disabled()
    assert page.get_by_text("None yet").is_visible()
    assert "f=" not in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_both_pages_fit_and_can_be_used_by_everybody(
    address: str, network: Network, visit: Any, width: int, scheme: str
):
    from axe_playwright_python.sync_playwright import Axe

    network.may_go.set()
    page = visit(f"{address}/try?text=x", width=width, scheme=scheme, bypass_csp=True)  # axe brings a script of its own
    tokens(page).first.wait_for()
    tokens(page).nth(1).click()

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        serious = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []

    check()
    page.goto(address + FORM)
    page.get_by_label("Add a feature").fill("self")
    page.locator("[data-found] li").first.wait_for()
    page.get_by_role("button", name="Steer").click()
    page.get_by_text("To the plain model").wait_for()
    check()
