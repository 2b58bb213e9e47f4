"""The list of features and its JSON twins: every row and every number as the store has it, whatever was asked for."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    Explanation,
    Feature,
    FeatureRecord,
    Label,
    Store,
)
from saescope.store.filters import KEYS
from saescope.web import columns
from saescope.web.app import create_app
from saescope.web.list_query import BOUNDED
from saescope.web.page_json import feature_as_json

NAME = "a/b c?&é"
QUOTED = "a%2Fb%20c%3F%26%C3%A9"
LIST, API = f"/d/{QUOTED}", f"/api/d/{QUOTED}"


@pytest.fixture
def records() -> list[FeatureRecord]:
    """140 of 300 features with ties and gaps."""
    rng = random.Random(0)
    made = []
    for index in sorted(rng.sample(range(300), 140)):
        label = None
        if rng.random() < 0.7:
            text = rng.choice(["`self` and <b>", "loops", "looping, or digits"])
            label = Label(
                text=text, kind="tokens", precision=rng.random(), lift=rng.choice([None, 2.5, 40.0]), num_firings=9
            )
        made.append(
            FeatureRecord(
                index=index,
                num_firings=rng.randrange(1, 5000),
                density=rng.choice([0.5, 0.25, 0.001, 2e-5]),
                max_activation=rng.uniform(1, 30),
                mean_positive=rng.uniform(0, 3),
                logit_kurtosis=rng.choice([None, 3.0, 4.5]),
                encoder_norm=rng.choice([None, 1.0, 1.25]),
                cluster=rng.choice([None, 0, 1]),
                label=label,
            )
        )
    return made


@pytest.fixture
def filled(tmp_path: Path, records: list[FeatureRecord]) -> Iterator[Store]:
    record = DictionaryRecord(name=NAME, model="m", hook_point="h", architecture="topk", d_in=4, d_sae=300)
    with Store.open(tmp_path / "many.db") as store:
        store.write(
            record,
            AnalysisRecord(name="early <1>", dataset="x", context_size=8, num_tokens=9),
            [Feature(record=records[0])],
            [],
            [],
        )
        analysis = AnalysisRecord(dataset="x", context_size=8, num_tokens=1000)
        store.write(record, analysis, [Feature(record=each) for each in records], [], [])
        for each in records[::5]:
            store.bookmark(NAME, each.index)
        for each in records[::7]:
            store.tag(NAME, each.index, "odd & <i>")
        store.explain(NAME, records[3].index, Explanation(text="weak words", score=0.25, author="judge"))
        store.explain(NAME, records[3].index, Explanation(text="says <i>zebra</i>", score=0.75, author="judge"))
        store.explain(NAME, records[4].index, Explanation(text="no score"))
        yield store


@pytest.fixture
def ask(filled: Store, client_of: Callable[..., Any]) -> Any:
    return client_of(create_app(filled))


class _Table(HTMLParser):
    """The cells of the rows of a page, as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def _indices(page: str) -> list[int]:
    return [int(row[0]) for row in _Table(page).rows[1:]]


def _value(record: FeatureRecord, key: str) -> float | None:
    if key in ("precision", "recall", "lift"):
        return None if record.label is None else getattr(record.label, key)
    return getattr(record, key)


def _expected(records: list[FeatureRecord], sort: str, *, up: bool = False, **bounds: tuple[Any, Any]) -> list[int]:
    def passes(record: FeatureRecord) -> bool:
        for key, (low, high) in bounds.items():
            value = _value(record, key)
            if value is None or (low is not None and value < low) or (high is not None and value > high):
                return False
        return True

    def rank(record: FeatureRecord) -> tuple[bool, float, int]:
        value = _value(record, sort)
        return value is None, 0 if value is None else value if up else -value, record.index

    return [record.index for record in sorted(filter(passes, records), key=rank)]


def _order(ask: Any, query: str = "") -> list[int]:
    content = ask.get(f"{API}/order{query}").content
    return list(struct.unpack(f"<{len(content) // 4}I", content))


def test_the_page_shows_the_numbers_of_the_store(ask: Any, filled: Store, records: list[FeatureRecord]) -> None:
    page = ask.get(LIST)
    assert page.status_code == 200
    head, *rows = _Table(page.text).rows
    assert [cell.strip() for cell in head] == [
        "Index", "Bookmark", "Label", "Density", "Max", "Mean of firings", "Logit kurtosis", "Precision", "Lift",
    ]  # fmt: skip
    by_index = {record.index: record for record in records}
    assert [int(row[0]) for row in rows] == _expected(records, "density")[:50]
    for row in rows:
        record = by_index[int(row[0])]
        assert row[1] == ("★" if record.index in {each.index for each in records[::5]} else "☆")
        assert row[2].startswith(record.label.text if record.label else ("says", "no score", "unlabelled"))
        numbers = [float(re.sub("[ ×%,\xa0]|^–$", "", cell) or "nan") for cell in row[3:]]
        stored = [
            _value(record, key)
            for key in ("density", "max_activation", "mean_positive", "logit_kurtosis", "precision", "lift")
        ]
        for place, (number, value) in enumerate(zip(numbers, stored, strict=True)):
            if value is None:
                assert number != number
            else:
                assert number == pytest.approx(value * (100 if place in (0, 4) else 1), rel=6e-3), (record.index, place)
    assert "140 features<" in page.text.replace("\n", "")
    assert f'href="/d/{QUOTED}/f/{rows[0][0]}"' in page.text
    assert "<b>" not in page.text.split("<tbody")[1].split("</tbody")[0]
    assert 'aria-sort="descending"><a class="sort" data-sort="density"' in page.text


def test_a_number_that_has_no_column_gets_one_when_sorted_by(ask: Any, records: list[FeatureRecord]) -> None:
    head, *rows = _Table(ask.get(f"{LIST}?sort=encoder_norm&dir=asc").text).rows
    assert head[3].strip() == "Encoder norm"
    assert [int(row[0]) for row in rows] == _expected(records, "encoder_norm", up=True)[:50]
    assert rows[0][3] == "1.00"
    assert set(columns.NUMBERS) == set(KEYS)  # every key of the store has a name, and none is made up
    assert set(columns.BOUNDED) == set(BOUNDED)
    for key in KEYS:
        assert ask.get(f"{LIST}?sort={key}").status_code == 200, key


def test_pages_follow_each_other_without_scripts(ask: Any, records: list[FeatureRecord]) -> None:
    found, address = [], f"{LIST}?sort=lift&min_precision=0.1&max_density="
    while True:
        page = ask.get(address).text
        found += _indices(page)
        following = re.search(r'<a href="([^"]+)" rel="next">', page)
        if following is None:
            break
        address = LIST + following[1].replace("&amp;", "&")
        assert parse_qs(urlsplit(address).query).keys() == {"sort", "min_precision", "after"}
    assert found == _expected(records, "lift", precision=(0.1, None))
    assert len(found) > 50
    assert "Start of the list" in page


def test_json_gives_the_same_rows_with_all_numbers(ask: Any, filled: Store, records: list[FeatureRecord]) -> None:
    answer = ask.get(f"{API}/features?limit=200").json()
    assert answer["total"] == len(answer["features"]) == len(records)
    assert answer["next"] is None
    by_index = {record.index: record for record in records}
    for row in answer["features"]:
        record = by_index[row["index"]]
        for key in KEYS:
            told = (row["label"] or {}).get(key) if key in ("precision", "recall", "lift") else row[key]
            assert told == _value(record, key), key
        assert feature_as_json(record).items() <= row.items()
        page = filled.page(NAME, record.index)
        assert (row["tags"], row["is_bookmarked"]) == (list(page.tags), page.is_bookmarked)
    said = {row["index"]: row["explanation"] for row in answer["features"] if row["explanation"]}
    assert said == {
        records[3].index: {"text": "says <i>zebra</i>", "method": "human", "author": "judge", "score": 0.75},
        records[4].index: {"text": "no score", "method": "human", "author": "", "score": None},
    }
    first = ask.get(f"{API}/features?limit=3&sort=index&dir=asc").json()
    assert [row["index"] for row in first["features"]] == [record.index for record in records[:3]]
    assert first["total"] == 140
    second = ask.get(
        f"{API}/features", params={"limit": 3, "sort": "index", "dir": "asc", "after": first["next"]}
    ).json()
    assert [row["index"] for row in second["features"]] == [record.index for record in records[3:6]]
    assert second["total"] == 140


@pytest.mark.parametrize(
    ("query", "bounds"),
    [
        ("sort=density", {}),
        ("sort=index&dir=asc", {}),
        ("sort=logit_kurtosis&min_max_activation=10", {"max_activation": (10, None)}),
        ("sort=max_activation&dir=asc&min_density=0.001&max_density=0.25", {"density": (0.001, 0.25)}),
        ("sort=precision&min_cluster=0.5&max_index=200", {"cluster": (0.5, None), "index": (None, 200)}),
        ("sort=precision&max_lift=2.5&min_lift=", {"lift": (None, 2.5)}),
    ],
)
def test_filters_and_order_of_the_whole_list(
    ask: Any, records: list[FeatureRecord], query: str, bounds: dict[str, tuple[Any, Any]]
) -> None:
    given = parse_qs(query)
    expected = _expected(records, given["sort"][0], up=given.get("dir") == ["asc"], **bounds)
    assert _order(ask, f"?{query}") == expected
    answer = ask.get(f"{API}/features?{query}").json()
    assert [row["index"] for row in answer["features"]] == expected[:50]
    assert answer["total"] == len(expected)
    page = ask.get(f"{LIST}?{query}").text
    assert _indices(page) == expected[:50]
    words = f"{len(expected)} features" + (" match" if bounds else "")
    assert f">{words}</p>" in page
    for key, (low, high) in bounds.items():
        for end, value in (("min", low), ("max", high)):
            field = re.search(rf'<input [^>]*name="{end}_{key}" value="([^"]*)"', page)
            assert field is not None
            assert (float(field[1]) if field[1] else None) == value


def test_words_tags_and_bookmarks(ask: Any, records: list[FeatureRecord]) -> None:
    looping = {record.index for record in records if record.label and record.label.text.startswith("loop")}
    assert set(_order(ask, "?search=LOOP")) == looping
    assert _order(ask, "?search=zebra") == [records[3].index]
    tagged, marked = ({record.index for record in records[::step]} for step in (7, 5))
    assert set(_order(ask, "?tag=odd+%26+%3Ci%3E")) == tagged
    assert set(_order(ask, "?bookmarked=1")) == marked
    assert set(_order(ask, "?bookmarked=1&tag=odd+%26+%3Ci%3E&search=")) == tagged & marked
    assert _order(ask, "?bookmarked=0") == _order(ask)
    assert _order(ask, "?min_explanation_score=0.5&max_explanation_score=0.8") == [records[3].index]
    page = ask.get(f"{LIST}?tag=odd+%26+%3Ci%3E&bookmarked=true").text
    assert f'<option value="odd &amp; &lt;i&gt;" selected>odd &amp; &lt;i&gt; ({len(tagged)})</option>' in page
    assert set(_indices(page)) == tagged & marked
    assert "No feature matches." in ask.get(f"{LIST}?tag=none").text


def test_rows_come_in_the_order_asked_for(ask: Any, records: list[FeatureRecord]) -> None:
    wanted = [records[place].index for place in (9, 3, 120, 3)]
    answer = ask.get(f"{API}/rows", params={"index": wanted}).json()
    assert [row["index"] for row in answer["features"]] == wanted
    assert answer["features"][1]["explanation"]["text"] == "says <i>zebra</i>"
    listed = {row["index"]: row for row in ask.get(f"{API}/features?limit=200").json()["features"]}
    assert answer["features"] == [listed[index] for index in wanted]
    missing = next(index for index in range(300) if index not in listed)
    assert ask.get(f"{API}/rows?index={missing}").status_code == 404


def test_another_analysis_stays_in_the_links(ask: Any, records: list[FeatureRecord]) -> None:
    page = ask.get(f"{LIST}?analysis=early+%3C1%3E&sort=lift").text
    assert _indices(page) == [records[0].index]
    assert f'href="/d/{QUOTED}/f/{records[0].index}?analysis=early+%3C1%3E"' in page
    assert re.search(r'data-sort="max_activation" href="\?analysis=early\+%3C1%3E&amp;sort=max_activation"', page)
    assert '<input type="hidden" name="analysis" value="early &lt;1&gt;">' in page
    assert _order(ask, "?analysis=early+%3C1%3E") == [records[0].index]
    assert ask.get(f"{LIST}?analysis=x").status_code == ask.get(f"{API}/order?analysis=x").status_code == 404
    assert ask.get(API, params={"analysis": "early <1>"}).json()["num_features"] == 1


def test_the_summary_of_a_dictionary(ask: Any, filled: Store, records: list[FeatureRecord]) -> None:
    answer = ask.get(API).json()
    summary = filled.summary(NAME)
    assert answer["num_features"] == len(records)
    assert answer["num_labelled"] == sum(record.label is not None for record in records)
    assert answer["log_density"]["counts"] == list(summary.log_density.counts)
    assert answer["dictionary"]["name"] == NAME
    assert ask.get("/api/d/nothing").json()["error"]["status"] == 404


def test_a_feature_by_lot_is_one_of_the_list(ask: Any, records: list[FeatureRecord]) -> None:
    known = {record.index for record in records}
    drawn = [ask.get(f"{API}/random").json()["index"] for _ in range(30)]
    assert set(drawn) <= known
    assert len(set(drawn)) > 5
    narrow = set(_order(ask, "?min_max_activation=25&search=self"))
    assert 0 < len(narrow) < 20
    for _ in range(10):
        answer = ask.get(f"{LIST}/random?min_max_activation=25&search=self", follow_redirects=False)
        assert (answer.status_code, answer.headers["cache-control"]) == (303, "no-store")
        found = re.fullmatch(rf"/d/{QUOTED}/f/(\d+)", answer.headers["location"])
        assert found is not None
        assert int(found[1]) in narrow
    early = ask.get(f"{LIST}/random?analysis=early+%3C1%3E", follow_redirects=False).headers["location"]
    assert early == f"/d/{QUOTED}/f/{records[0].index}?analysis=early+%3C1%3E"
    assert ask.get(f"{API}/random?tag=none").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "sort=densty", "dir=up", "min_density=a", "min_density=nan", "max_lift=inf", "limit=0", "limit=201", "after=zz",
        "search=%2E%2E", "search=" + "a" * 501, "tag=%00", "search=a%00", "analysis=%00", "bookmarked=perhaps", "mode=x",
        "mode=meaning&search=a",
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_refused_in_words(ask: Any, query: str) -> None:
    answer = ask.get(f"{API}/features?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]
    page = ask.get(f"{LIST}?{query}")
    assert page.status_code == 422
    assert page.headers["content-type"].startswith("text/html")


def test_numbers_too_large_for_a_database_are_bounds_like_others(ask: Any, records: list[FeatureRecord]) -> None:
    assert _order(ask, "?min_index=1e300") == []
    assert len(_order(ask, "?max_index=1e300&min_num_firings=-1e300")) == len(records)
    for query in ("index=-1", f"index={2**40}", "", "index=a", "&".join(["index=1"] * 501)):
        assert ask.get(f"{API}/rows?{query}").status_code == 422, query
    assert ask.get(f"{API}?analysis=%00").status_code == ask.get(f"{API}/rows?index=1&analysis=%00").status_code == 422


def test_a_search_without_a_word_keeps_the_form(ask: Any) -> None:
    page = ask.get(f"{LIST}?search=%3C%3E&min_lift=2")
    assert page.status_code == 422
    assert "has no word in it" in page.text
    assert 'value="&lt;&gt;" maxlength' in page.text
    assert ask.get("/d/nothing").status_code == 404


def test_texts_that_attack_stay_texts(store: Store, client_of: Callable[..., Any]) -> None:
    store.explain("tiny <b>topk</b>", 5, Explanation(text="<script>alert(1)</script>\u202e", score=0.5))
    client = client_of(create_app(store))
    page = client.get("/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.replace('<i class="s"> </i>', " ")
    assert "<script>alert" not in page
    assert "<b>topk" not in page
    assert "syntax <u>" not in page
    found = {row[0]: row for row in _Table(page).rows[1:]}
    assert "dead" in found["7"][2]
    island = re.search(r'<script type="application/json" id="features">(.*?)</script>', page, re.DOTALL)
    assert island is not None
    data = json.loads(island[1])
    assert data["name"] == "tiny <b>topk</b>"
    assert data["feature_url"] == "/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E/f/{index}"


class TestMeaning:
    """Search by meaning: features by the cosine of their explanations with the search."""

    VECTORS = {"weak words": (1.0, 0.0), "says <i>zebra</i>": (0.6, 0.8), "no score": (0.0, 1.0)}  # noqa: RUF012

    @pytest.fixture
    def meaning(self, filled: Store, client_of: Callable[..., Any]) -> Any:
        filled.embed(NAME, "toy", lambda texts: [self.VECTORS[text] for text in texts])
        self.fails: Exception | None = None

        def embed(texts: list[str]) -> list[tuple[float, float]]:
            if self.fails:
                raise self.fails
            return [(0.0, 1.0) if text == "north" else (1.0, 0.0) for text in texts]

        return client_of(create_app(filled, embedder="toy", embed=embed))

    def test_the_nearest_come_first_each_feature_once(self, meaning: Any, records: list[FeatureRecord]) -> None:
        north = [records[4].index, records[3].index]
        assert _order(meaning, "?mode=meaning&search=north") == north
        answer = meaning.get(f"{API}/features?mode=meaning&search=north").json()
        assert [(row["index"], row["similarity"]) for row in answer["features"]] == [
            (north[0], pytest.approx(1.0)),
            (north[1], pytest.approx(0.8)),
        ]
        assert (answer["total"], answer["next"]) == (2, None)
        assert _order(meaning, "?mode=meaning&search=east") == north[::-1]
        head, *rows = _Table(meaning.get(f"{LIST}?mode=meaning&search=north").text).rows
        assert head[3].strip() == "Nearness"
        assert [(row[0], row[3]) for row in rows] == [(str(north[0]), "1.00"), (str(north[1]), "0.800")]

    def test_the_other_filters_hold(self, meaning: Any, records: list[FeatureRecord]) -> None:
        narrow = f"?mode=meaning&search=east&max_index={records[3].index}"
        assert _order(meaning, narrow) == [records[3].index]
        assert meaning.get(f"{API}/random{narrow}").json() == {"index": records[3].index}

    def test_an_embedder_that_fails_is_busy_not_broken(self, meaning: Any) -> None:
        self.fails = RuntimeError("connection refused")
        answer = meaning.get(f"{API}/features?mode=meaning&search=north")
        assert answer.status_code == 503
        assert "connection refused" in answer.json()["error"]["message"]
        self.fails = ValueError("too long for the embedder")
        assert meaning.get(f"{API}/order?mode=meaning&search=north").status_code == 422

    def test_the_choice_is_offered_where_it_can_be_met(self, meaning: Any, ask: Any) -> None:
        assert '<option value="meaning"' in meaning.get(LIST).text
        page = ask.get(LIST).text
        assert '<option value="meaning"' not in page
        assert "start the server with an embedder" in page
