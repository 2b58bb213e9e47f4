"""The report as a file: what is in it, and that nothing in it acts."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.web import write_report

_BLOCKS = {"dt", "dd", "th", "td", "p", "li", "h1", "h2", "h3", "h4"}
_VOID = {"meta", "link", "img", "input", "br", "rect"}


class _Page(HTMLParser):
    """Flat view of a page: tags with attributes in order, the text inside each id, and a check that tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in _VOID:
            self._open.append((tag, attributes.get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1][0] == tag
        if tag in _BLOCKS:
            self.handle_data(" ")
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self._open):
            return
        self.text += data
        for _, identity in self._open:
            if identity:
                self.texts[identity] = self.texts.get(identity, "") + data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(store: Store, tmp_path: Path, evaluation: dict[str, Any], plot: Path) -> _Page:
    write_report(
        store, None, [3, 5, 7, 9], tmp_path / "report.html", evaluation=evaluation, plots={"Loss <over> time": plot}
    )
    return _Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def _words(text: str) -> str:
    return " ".join(text.split())


def test_it_says_what_the_dictionary_is(page: _Page) -> None:
    words = _words(page.text)
    for fact in (
        "tiny <b>topk</b>",
        "Model models/gpt-tiny",
        "Hook point transformer.h.1.output",
        "Features 4,096",
        "Text stdlib & more",
        "Tokens analysed 1,234,567",
    ):
        assert fact in words, fact
    assert words.lower().count("explained variance") == 1  # in the table of verdicts, not among the facts as well


def test_without_verdicts_the_stored_numbers_are_among_the_facts(store: Store, tmp_path: Path) -> None:
    write_report(store, None, [3], tmp_path / "report.html")
    assert "explained variance 0.8765 (0.875 to 0.8775)" in _words(
        _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    )


def test_it_says_which_targets_were_met(page: _Page) -> None:
    words = _words(page.text)
    assert "1 of 2 targets met." in words
    assert "Explained variance 0.8765 at least 0.85 met" in words
    assert "Loss recovered 0.9 0.95 not met" in words
    assert "L0 32 – –" in words


def test_a_card_has_the_numbers_of_its_feature(page: _Page) -> None:
    card = _words(page.texts["feature-3"])
    assert card.startswith("3 the token “self” precision 97.4 % recall 50 % lift 61.3× on 4,120 held-out firings")
    assert "Density 0.35 % Firings 4,321 Strongest 10 Mean of firings 5 Median of firings 2.5 Activations" in card
    assert "Activations 0 5 10 log counts; highest bar 4,321" in card  # the empty bin at the end is not drawn
    assert "json.decoder · token 1,000" in card
    assert "other · token 3 · 4 copies" in card
    assert "2 more" in card  # ten examples, eight of them open
    dead = _words(page.texts["feature-7"])
    assert "unlabelled" in dead
    assert "It never fired." in dead
    assert "No example was kept." in dead
    assert "At every strength" not in dead
    assert "Where it is silent" not in dead


def test_what_people_and_models_said_is_on_the_card(page: _Page) -> None:
    card = _words(page.texts["feature-3"])
    assert "a <i>receiver</i> judge, detection, score 0.812" in card
    assert "bookmarked syntax <u>" in card
    assert "Notes compare <s>5</s> Ann" in card
    assert "bookmarked" not in page.texts["feature-5"]


def test_bands_and_silent_windows_are_folded_below_the_strongest(page: _Page) -> None:
    card = _words(page.texts["feature-3"])
    bands = card[card.index("At every strength: a sample from each of 2 bands") :]
    assert bands.index("5 and above 50 % of firings peak of 8 windows 10.0 ") < bands.index("8.00 ")
    assert bands.index("8.00 ") < bands.index("0 to 5 50 % of firings peak of 7 windows 2.50 ")
    assert "Where it is silent: 1 near miss, 1 drawn by lot" in card
    folded = [name for name, _ in page.tags if name in ("details", "summary")]
    assert folded.count("details") == folded.count("summary") >= 4
    assert not any("open" in attributes for attributes in page.named("details"))


def test_neighbours_and_further_numbers_are_on_the_card(page: _Page) -> None:
    card = _words(page.texts["feature-3"])
    assert "Nearest by decoder row (cosine) 5 0.875 unlabelled 77 0.500 Fires with (phi) 9 0.250 unlabelled" in card
    links = [a["href"] for a in page.named("a")]
    assert links.count("#feature-5") == 2  # in the contents and as a neighbour
    assert "#feature-77" not in links  # it has no card here
    assert "Place in the window 0 40 60 counts; highest bar 100" not in card  # the last stretch is empty
    assert "Place in the window 0 20 40 counts; highest bar 100" in card
    assert "Effects on the logits −2 0 3 log counts; highest bar 70" in card
    assert "decoder norm 1.25" in card
    assert "encoder norm" not in card  # it was not measured


def test_tokens_carry_strength_and_exact_value(page: _Page) -> None:
    peaks = [tag for tag in page.named("mark") if tag["class"] == "peak"]
    assert len(peaks) == 14  # ten, two of them again in their band, one more in the other, and one of feature 5
    assert peaks[0] == {"class": "peak", "style": "--a:1.0", "title": "10.0"}
    others = [tag for tag in page.named("span") if tag.get("class") == "on"]
    assert {"class": "on", "style": "--a:0.361", "title": "1.25"} in others  # 0.05 + 0.95 log10(1 + 9 / 8)
    # the near miss has its place marked, the window drawn by lot has none
    assert [tag["title"] for tag in page.named("mark") if tag["class"] == "peak miss"] == ["0.0"]


def test_negative_values_and_shared_characters(page: _Page) -> None:
    card = _words(page.texts["feature-9"])
    assert "Negative 50 %" in card
    assert "−8.00 a漢b 漢" in card
    marks = [tag for tag in page.named("mark") if "neg" in str(tag["class"])]
    assert marks == [{"class": "peak neg", "style": "--a:1.0", "title": "token 21: 0.5, token 22: -8.0"}]
    assert {"class": "on neg", "style": "--a:0.361", "title": "-1.0"} in page.named("span")
    assert "blue is negative" in page.text


def test_token_text_is_text(page: _Page) -> None:
    assert page.named("script") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.named("img")) == 1
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;" in page.texts["feature-5"]
    assert "\\x00" in page.texts["feature-5"]
    assert "tiny <b>topk</b> · saescope" in page.text


def test_it_is_complete_in_itself(page: _Page, plot: Path, tmp_path: Path) -> None:
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset") if a.get(key)]
    assert {str(address).split(":")[0] for address in addresses if not str(address).startswith("#")} == {"data"}
    source = str(page.named("img")[0]["src"])
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == plot.read_bytes()
    assert page.named("img")[0]["alt"] == "Loss <over> time"
    assert "default-src 'none'" in html
    assert not re.search(r"https?://", html)


def test_headings_are_in_order_and_links_lead_somewhere(page: _Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = {str(a["href"])[1:] for a in page.named("a")}
    assert targets <= set(ids)
    assert {"feature-3", "feature-5", "feature-7", "feature-9", "features"} <= targets
    for landmark in ("header", "main", "nav", "footer"):
        assert page.named(landmark)


def test_without_evaluation_plots_or_features(store: Store, tmp_path: Path) -> None:
    write_report(store, "tiny <b>topk</b>", [], tmp_path / "new" / "bare.html")
    bare = _Page((tmp_path / "new" / "bare.html").read_text(encoding="utf-8"))
    assert "No feature was chosen" in bare.text
    assert "negative" not in bare.text
    assert "How good it is" not in bare.text
    assert bare.named("img") == []


def test_failures_leave_the_old_file(store: Store, tmp_path: Path, plot: Path) -> None:
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    with pytest.raises(ValueError, match=r"feature 4 of .* was not analysed"):
        write_report(store, None, [3, 4], path)
    with pytest.raises(ValueError, match=r"features\.db is not a PNG"):
        write_report(store, None, [3], path, plots={"no": tmp_path / "features.db"})
    with pytest.raises(ValueError, match="an evaluation row needs a name and a value"):
        write_report(store, None, [3], path, evaluation={"rows": [{"value": 1.0}]})
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_room_needs_no_torch() -> None:
    program = (
        "import sys, saescope.web, saescope.web.numbers; early = 'jinja2' in sys.modules; "
        "saescope.web.write_report; sys.exit(early or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
