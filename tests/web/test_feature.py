"""A feature's page: what it shows is what the store holds, cut, marked and said in words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    Example,
    Feature,
    FeatureRecord,
    Histogram,
    PageExample,
    Store,
    TokenLogit,
    Window,
)
from saescope.web.drawing import chart, excerpt, shade, visible
from saescope.web.example_html import REACHES, SENT_WHOLE, context_html, is_cut, shown
from saescope.web.feature import View, neighbours_of, render_feature
from saescope.web.feature_charts import bars, position_bars
from saescope.web.feature_lists import logit_items
from saescope.web.markdown_card import _code, feature_markdown
from saescope.web.numbers import decimal, percent, whole
from saescope.web.page_json import page_as_json
from saescope.web.site import Links, Site

NAME = "tiny <b>topk</b>"
ADDRESS = f"/d/{quote(NAME, safe='')}/f"


# Text in zones


@dataclass
class Zone:
    number: int
    text: str = ""
    marks: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class Zones(HTMLParser):
    """The zones of an example: text as it is read, marks with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.zones: list[Zone] = []
        self.open: list[bool] = []  # whether each open tag is a mark
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        given = dict(attributes)
        found = re.fullmatch(r"z(\d)", given.get("class", ""))
        if found:
            self.zones.append(Zone(int(found[1])))
        is_mark = "--a" in given.get("style", "")
        if is_mark:
            self.zones[-1].marks.append(("", given))
        self.open.append(is_mark)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.zones[-1].text += data
        if any(self.open):
            text, given = self.zones[-1].marks[-1]
            self.zones[-1].marks[-1] = (text + data, given)


def _as_read(text: str) -> str:
    """What is left of `visible(text)` when it is read."""
    return "".join(zone.text for zone in Zones(f'<span class="z0">{visible(text)}</span>').zones)


_characters = st.characters() | st.sampled_from("<>&\"'  \n\t\r\x00\u202eא漢\ud800")


@st.composite
def _examples(draw: st.DrawFn) -> PageExample:
    count = draw(st.integers(1, 150))
    text, ranges = "", []
    for _ in range(count):
        own = draw(st.text(_characters, max_size=3)) if draw(st.booleans()) else "word"
        # a token may share characters with the one before, or have none of its own
        start = draw(st.sampled_from([len(text), len(text), max(0, ranges[-1][0] if ranges else 0)]))
        text += own
        ranges.append((start, len(text)))
    peak = draw(st.integers(0, count - 1))
    negative = draw(st.sampled_from([None, None, None, "near_miss", "silent"]))
    values = [0.0] * count
    if negative is None:
        for place in draw(st.lists(st.integers(0, count - 1), max_size=12)):
            values[place] = draw(st.sampled_from([0.1, 2.5, -3.25, 1e-7, 7.000000953674316]))
        values[peak] = draw(st.sampled_from([9.0, -9.0]))
    window = Window(id=0, document="d", offset=0, text=text, token_ids=tuple(range(count)), token_ranges=tuple(ranges))
    return PageExample(
        window=window, peak=peak, activation=values[peak], activations=tuple(values), negative=negative, top_rank=0
    )


@given(_examples())
def test_zones_up_to_a_reach_are_the_excerpt_of_that_reach(example: PageExample):
    zones = Zones(context_html(example, 9.0, whole_windows=True)).zones
    for number, reach in [*enumerate(REACHES), (3, 10_000)]:
        plain = excerpt(example, reach, reach)
        kept = [zone for zone in zones if zone.number <= number]
        assert "".join(zone.text for zone in kept) == "".join(_as_read(piece.text) for piece in plain.pieces)
        drawn = [piece for piece in plain.pieces if piece.activation or piece.is_peak]
        marks = [mark for zone in kept for mark in zone.marks]
        assert [text for text, _ in marks] == [_as_read(piece.text) for piece in drawn]
        for piece, (_, said) in zip(drawn, marks, strict=True):
            assert said["style"] == f"--a:{shade(piece.activation, 9.0)}"
            kinds = said["class"].split()
            assert ("peak" in kinds, "neg" in kinds) == (piece.is_peak, piece.activation < 0)
            assert ("miss" in kinds) == (example.negative == "near_miss")
            assert said["title"] == piece.title or said["title"].startswith(f"{piece.title} · token ")
        # an ellipsis stands where a zone further out follows
        sides = [zone.number for zone in zones]
        middle = sides.index(0)
        assert any(each > number for each in sides[:middle]) == plain.more_before
        assert any(each > number for each in sides[middle:]) == plain.more_after
    assert [zone.number for zone in zones] == sorted(
        (z.number for z in zones[: sides.index(0)]), reverse=True
    ) + sorted(z.number for z in zones[sides.index(0) :])


@given(st.text(_characters))
@case("a  b \r\n")
def test_a_token_is_drawn_as_everywhere(text: str):
    plain = str(visible(text)).replace("&#34;", '"').replace("&#39;", "'")
    assert shown(text) == plain


def _long(count: int, peak: int) -> PageExample:
    window = Window.of_texts(
        id=0, document="d", offset=0, token_ids=range(count), token_texts=[f" {i}" for i in range(count)]
    )
    values = [0.5 if place % 10 == 0 else 0.0 for place in range(count)]
    values[peak] = 2.0
    return PageExample(window=window, peak=peak, activation=2.0, activations=tuple(values), top_rank=0)


def test_of_a_long_window_only_what_can_be_shown_is_sent():
    assert not is_cut(_long(SENT_WHOLE, 0))
    example = _long(300, 150)
    assert is_cut(example)
    zones = Zones(context_html(example, 2.0)).zones
    assert [(zone.number, bool(zone.text)) for zone in zones] == [
        (3, False), (2, True), (1, True), (0, True), (1, True), (2, True), (3, False)
    ]  # fmt: skip
    assert "".join(zone.text for zone in zones) == "".join(f" {i}" for i in range(150 - 48, 150 + 49))
    assert [text for zone in zones for text, _ in zone.marks] == [f" {i}" for i in range(110, 199, 10)]
    whole_window = Zones(context_html(example, 2.0, whole_windows=True)).zones
    assert "".join(zone.text for zone in whole_window) == example.window.text
    # nothing to the left of the first token
    assert [zone.number for zone in Zones(context_html(_long(300, 3), 2.0)).zones] == [0, 1, 2, 3]
    assert not is_cut(replace(_long(129, 64), peak=80)) or is_cut(_long(129, 80))


# Histograms


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_bars_of_a_path_are_those_of_the_chart(counts: list[int]):
    histogram = Histogram(edges=tuple(float(i) for i in range(len(counts) + 1)), counts=tuple(counts))
    drawn = bars(histogram, "things")
    plain = {kind: chart(histogram, logarithmic=kind == "logarithmic") for kind in ("logarithmic", "linear")}
    if drawn is None:
        assert not any(counts)
        return
    for kind, each in plain.items():
        svg = getattr(drawn, kind)
        assert each is not None
        found = re.findall(r"M([\d.]+) 70V([\d.e-]+)h([\d.]+)V70z", svg)
        assert [tuple(map(float, bar)) for bar in found] == [
            pytest.approx((x, y, width), rel=1e-3, abs=1e-3) for x, y, width, _ in each.bars
        ]
        assert f"counts {whole(max(counts))}" in svg
        assert f"{whole(sum(counts))} in all" in svg
    assert (
        json.loads(drawn.counts)
        == list(counts[counts.index(next(filter(None, counts))) :])[: len(json.loads(drawn.counts))]
    )
    assert sum(json.loads(drawn.counts)) == sum(counts)
    assert len(json.loads(drawn.edges)) == len(json.loads(drawn.counts)) + 1


def test_the_half_is_said_as_it_is():
    drawn = bars(Histogram(edges=(0.0, 1.0, 2.0, 4.0), counts=(3, 3, 1)), "the activations")
    assert drawn is not None
    assert "7 in all, from 0 to 4," in drawn.linear
    assert "half of them or more lie below 2;" in drawn.linear
    assert "the highest bar, 0 to 1, counts 3" in drawn.linear
    even = bars(Histogram(edges=(0.0, 1.0, 2.0), counts=(2, 2)), "the activations")
    assert even is not None
    assert "half of them or more lie below 1;" in even.linear
    assert bars(Histogram(edges=(0.0, 1.0), counts=(0,)), "nothing") is None


def test_bars_behind_logits_are_as_long_as_the_effects_are_large():
    tokens = [TokenLogit(token_id=7, text=" a", logit=-0.5), TokenLogit(token_id=8, text="<b>", logit=-2.0)]
    html = logit_items(tokens, 2.0)
    assert re.findall(r"--w:([\d.e+-]+)%", html) == ["25", "100"]
    assert "&lt;b&gt;" in html
    assert "−0.500" in html
    assert "--w:0%" in logit_items([TokenLogit(token_id=7, text="a", logit=0.0)], 0.0)


def test_firings_by_place_end_where_the_last_one_is():
    svg, ticks = position_bars((100, 50, 0), 60) or ("", ())
    assert "150 in all, from 0 to 40, counts on a linear scale; half of them or more lie below 20;" in svg
    assert ticks == ((0.0, "0"), (50.0, "20"), (100.0, "40"))
    assert position_bars((0, 0), 60) is None


# The page


@pytest.fixture
def html(client: Any) -> str:
    answer = client.get(f"{ADDRESS}/3")
    assert answer.status_code == 200
    return answer.text


def _words(html: str) -> str:
    """What is read, without the marks."""
    import html as markup

    return re.sub(r"\s+", " ", markup.unescape(re.sub(r"<[^>]*>", "", html)))


def test_its_numbers_are_those_of_the_store(html: str, store: Store):
    page, words = store.page(NAME, 3), _words(html)
    feature, label = page.feature, page.feature.label
    assert label is not None
    assert label.text in words
    assert f"precision {percent(label.precision or 0)} recall 50\u00a0%".replace("\u00a0", " ") in words
    assert f"lift {decimal(label.lift or 0, 3)}×" in words
    for name, value in (
        ("Density", percent(feature.density)), ("Firings", whole(feature.num_firings)), ("Mean of firings", "5"),
        ("Strongest", decimal(feature.max_activation)), ("Median of firings", "2.5"), ("decoder norm", "1.25"),
    ):  # fmt: skip
        assert re.search(rf"<dt>{name}</dt><dd[^>]*>{re.escape(value)}</dd>", html), name
    for token in (*page.detail.top_logits, *page.detail.bottom_logits):
        assert f'title="{token.logit} · token {token.token_id}">{shown(token.text)}</span>' in html
        assert f'<span class="n">{decimal(token.logit, 3, trim=False)}</span>' in html
    assert 'title="cosine 0.875"' in html
    assert 'title="phi 0.25, 1,234 tokens on which both fire"' in html


def test_every_example_stands_in_its_groups(html: str, store: Store):
    page = store.page(NAME, 3)
    groups = dict(re.findall(r'<section class="group \w+" id="([\w-]+)"(.*?)</section>', html, re.S))
    assert list(groups) == ["top", "quantile-1", "quantile-0", "near_miss", "silent"]
    wanted = {
        "top": page.examples, "quantile-1": page.in_band("quantile", 1), "quantile-0": page.in_band("quantile", 0),
        "near_miss": page.negatives("near_miss"), "silent": page.negatives("silent"),
    }  # fmt: skip
    for name, examples in wanted.items():
        rows = re.findall(r'<li><span class="value n">(.*?)</span><p class="context">(.*?)</p>', groups[name], re.S)
        assert [value for value, _ in rows] == [decimal(each.activation, 3, trim=False) for each in examples], name
        for example, (_, context) in zip(examples, rows, strict=True):
            assert context == context_html(example, page.feature.max_activation)
    said = {name: _words(re.search(r"<h3.*?</h3>", group, re.S)[0]) for name, group in groups.items()}  # type: ignore[index]
    assert said["top"] == "Top the 10 windows in which it peaks highest"
    assert said["quantile-1"] == "5 and above 50 % of firings peak of 8 windows".replace("50 %", "50 %")
    assert said["quantile-0"] == "0 to 5 50 % of firings peak of 7 windows"
    assert "4 copies" in groups["top"]
    assert groups["top"].count("copies") == 2  # the word, and its class


def test_what_people_said_is_there(html: str):
    words = _words(html)
    assert "a <i>receiver</i> judge, detection, score 0.812" in words
    assert "syntax <u>" in words
    assert "compare <s>5</s> Ann " in words
    assert re.search(r'data-bookmark aria-pressed="true"', html)


@pytest.mark.parametrize("index", [3, 5, 9])
def test_no_text_acts_on_the_page(client: Any, index: int):
    html = client.get(f"{ADDRESS}/{index}").text
    for attack in ("<script>alert", "alert(1)</script>", "<img", "<b>topk", "<u>", "<s>5", "<i>receiver", "</style>"):
        assert attack not in html.replace("</script>\n", ""), attack
    assert html.count("<script") == 1  # that of all pages


def test_a_dead_feature_says_so(client: Any):
    html = client.get(f"{ADDRESS}/7").text
    words = _words(html)
    assert "This feature is dead: it fired on none of the 1,234,567 tokens" in words
    assert "It never fired." in words
    assert 'class="all-examples"' not in html
    assert "Makes likelier" in words
    assert "This feature is dead" not in client.get(f"{ADDRESS}/9").text


def test_negative_values_are_told_apart(client: Any):
    html = client.get(f"{ADDRESS}/9").text
    assert 'class="peak neg"' in html
    assert 'title="token 21: 0.5, token 22: -8.0"' in html
    assert '<span class="on neg"' in html
    assert "<dt>Negative</dt><dd>50\u00a0%</dd>" in html


def test_steps_lead_to_the_analysed_features_and_keep_the_choices(client: Any):
    html = client.get(f"{ADDRESS}/5").text
    assert f'rel="prev" data-go="previous" data-keeps href="{ADDRESS}/3"' in html
    assert f'rel="next" data-go="following" data-keeps href="{ADDRESS}/7"' in html
    assert 'rel="prev"' not in client.get(f"{ADDRESS}/3").text
    assert 'rel="next"' not in client.get(f"{ADDRESS}/9").text
    chosen = "context=5&breaks=1&bands=width&scale=linear"
    html = client.get(f"{ADDRESS}/3?analysis=default&{chosen}").text
    for each in ("context-5", "breaks", "scale-linear"):
        assert re.search(rf'id="{each}"[^>]* checked', html), each
    kept = f"analysis=default&amp;{chosen}".replace("&", "&").replace("&amp;", "&").replace("&", "&amp;")
    assert f'href="{ADDRESS}/5?{kept}"' in html
    assert f'data-keeps href="{ADDRESS}/77?{kept}"' in html  # a neighbour
    standard = client.get(f"{ADDRESS}/3?context=16&scale=log").text
    assert f'href="{ADDRESS}/5"' in standard


def test_both_kinds_of_bands_can_be_chosen(client_of: Any, tmp_path: Any):
    from saescope.web.app import create_app

    with Store.open(tmp_path / "bands.db") as store:
        _fill(store, count=150)
        client = client_of(create_app(store))
        html = client.get("/d/many/f/0?bands=width").text
        assert re.search(r'id="bands-width"[^>]* checked', html)
        assert len(re.findall(r'class="group width"', html)) == 1
        assert len(re.findall(r'class="group quantile"', html)) == 1
        # the window is longer than what is sent
        assert 'data-go="whole" href="/d/many/f/0?bands=width&amp;context=whole"' in html
        assert "context-whole" not in html
        assert " 149</" not in html
        all_of_it = client.get("/d/many/f/0?context=whole").text
        assert re.search(r'id="context-whole"[^>]* checked', all_of_it)
        assert " 149</" in all_of_it


def _fill(store: Store, count: int) -> None:
    from saescope.store import Band, FeatureDetail

    bands = tuple(
        Band(kind=kind, number=0, low=0.0, high=3.0, num_windows=1, num_tokens=2, share=1.0)
        for kind in ("quantile", "width")
    )
    record = FeatureRecord(index=0, num_firings=2, density=0.1, max_activation=3.0)
    store.write(
        DictionaryRecord(name="many", model="m", hook_point="h", architecture="relu", d_in=4, d_sae=8),
        AnalysisRecord(dataset="d", context_size=count, num_tokens=count),
        [Feature(record=record, detail=FeatureDetail(bands=bands))],
        [Window.of_texts(id=0, document="d", offset=0, token_ids=range(count), token_texts=[f" {i}" for i in range(count)])],
        [Example(feature=0, window_id=0, peak=5, activation=3.0, positions=(5, 9), values=(3.0, 1.0), top_rank=0,
                 quantile_band=0, width_band=0)],
    )  # fmt: skip


def test_in_a_frame_it_is_the_card_alone(client: Any):
    html = client.get(f"{ADDRESS}/3?embed=1").text
    assert '<header class="bar"' not in html
    for editing in ("api=", "data-bookmark", "sae-try", 'rel="next"', "data-copy"):
        assert editing not in html, editing
    assert re.findall(r'<section class="group \w+" id="([\w-]+)"', html) == ["top"]
    assert "Feature 3 of tiny <b>topk</b>" in _words(html)


def test_a_file_has_nothing_that_needs_a_server(store: Store, fake_live: Any):
    class Files(Links):
        is_live = False
        policy = generator = ""

        def asset(self, name: str) -> str:
            return name

        def features(self, name: str, **query: Any) -> str:
            return "index.html"

        def feature(self, name: str, index: int, **query: Any) -> str:
            return f"{index}.html" if index != 77 else ""

    page = store.page(NAME, 3)
    labels = {5: "five"}
    html = render_feature(Site(store=store, live=fake_live, links=Files()), page, labels, following=5)
    for needs in ("/api", "sae-try", "data-bookmark", "steer", "/map", "Random", 'data-copy="json"'):
        assert needs not in html, needs
    assert 'rel="next" data-go="following" data-keeps href="5.html"' in html
    assert '<a data-keeps href="5.html"><span class="index">5</span> <bdi>five</bdi></a>' in html
    assert '<span><span class="index">77</span>' in html  # has no page among the files
    assert "bookmarked" in html
    island = re.search(r'<script type="application/json" id="markdown">(.*?)</script>', html, re.S)
    assert island is not None
    assert json.loads(island[1]) == feature_markdown(page, labels)


def test_without_a_network_it_says_why(client_of: Any, store: Store):
    from saescope.web.app import create_app

    assert "started without models" in client_of(create_app(store)).get(f"{ADDRESS}/3").text


# Its twins


def test_the_json_is_the_page(client: Any, store: Store):
    for index in (3, 5, 7, 9):
        answer = client.get(f"/api{ADDRESS}/{index}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == json.loads(json.dumps(page_as_json(store.page(NAME, index))))
    assert client.get(f"/api{ADDRESS}/5").json()["previous"] == 3


def test_half_a_character_can_be_said_in_json(client_of: Any, tmp_path: Any):
    from saescope.web.app import create_app

    with Store.open(tmp_path / "half.db") as store:
        store.write(
            DictionaryRecord(name="half", model="m", hook_point="h", architecture="relu", d_in=4, d_sae=8),
            AnalysisRecord(dataset="d", context_size=2, num_tokens=2),
            [Feature(record=FeatureRecord(index=0, num_firings=1, density=0.5, max_activation=1.0))],
            [Window.of_texts(id=0, document="d", offset=0, token_ids=(1, 2), token_texts=("\ud83d", "b"))],
            [Example(feature=0, window_id=0, peak=0, activation=1.0, positions=(0,), values=(1.0,), top_rank=0)],
        )
        client = client_of(create_app(store))
        assert json.loads(client.get("/api/d/half/f/0").content)["examples"][0]["window"]["text"] == "\ud83db"
        assert "\\ud83d" in client.get("/d/half/f/0").text
        assert "\\ud83d" in client.get("/api/d/half/f/0?format=markdown").text


def test_markdown_says_the_same_in_short(client: Any, store: Store):
    answer = client.get(f"/api{ADDRESS}/3?format=markdown")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    page = store.page(NAME, 3)
    assert answer.text == feature_markdown(page, store.labels(NAME, neighbours_of(page)))
    lines = answer.text.splitlines()
    assert lines[0] == "## Feature 3 of tiny \\<b\\>topk\\</b\\>: the token “self”"
    assert f"| {percent(page.feature.density)} | 4,321 | 10 | 5 | 2.5 | 97.4\u00a0% | 50\u00a0% | 61.3× |" in lines
    assert "- makes likelier: `  self ` 2.50, ` ↵ ` 1.50, ` <script> ` 0.500" in lines
    assert [line[:6] for line in lines if line[:3] in ("- 1", "- 9")] == ["- 10.0", "- 9.00", "- 1.00"]
    assert "- 10.0 ` «def» first(self):↵    return self.def first(self):↵    … `" in lines
    assert "> a \\<i\\>receiver\\</i\\> (judge, detection, score 0.812)" in lines
    assert "Note by Ann: compare \\<s\\>5\\</s\\>" in lines


def test_markdown_of_backticks_stays_in_one_span():
    assert _code("a `` b") == "``` a `` b ```"
    assert _code("\n\u202e\x00") == "` ↵\\u202e\\x00 `"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (f"{ADDRESS}/4", 404, "was not analysed"),
        (f"{ADDRESS}/4096", 404, "has features 0 to 4095"),
        (f"{ADDRESS}/{2**53}", 422, "index"),
        (f"{ADDRESS}/{10**30}", 422, "index"),
        ("/d/nothing/f/3", 404, "no dictionary named"),
        ("/d/nul%00/f/3", 422, "no database keeps"),
        (f"{ADDRESS}/3?analysis=other", 404, "no analysis named"),
        (f"{ADDRESS}/3?analysis=%00", 422, "no database keeps"),
    ],
)
def test_what_is_not_there_is_said_in_words(client: Any, path: str, status: int, words: str):
    page, twin = client.get(path), client.get(f"/api{path}")
    assert (page.status_code, twin.status_code) == (status, status)
    assert words in page.text
    assert words in twin.json()["error"]["message"]


def test_switches_out_of_their_values_are_refused(client: Any):
    for wrong in ("context=17", "bands=top", "scale=cubic", "embed=2", "breaks=perhaps"):
        assert client.get(f"{ADDRESS}/3?{wrong}").status_code == 422, wrong


def test_only_what_differs_goes_into_addresses():
    assert View().query() == {}
    assert View(context="48", breaks=True).query() == {"context": "48", "breaks": 1}
