"""Two features and two dictionaries side by side: each number is the store's, or follows from it by brute force."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Store,
    TokenLogit,
    Window,
)
from saescope.store.records import NUMBERS
from saescope.web import comparison
from saescope.web.app import create_app
from saescope.web.live import BusyError, NoModelError
from saescope.web.page_json import page_as_json

A, B = "one:two", "b/<i>b"  # a colon in a name, and a slash


def _features(seed: int) -> list[Feature]:
    rng = random.Random(seed)
    made = []
    for index in range(30):
        numbers = {name: rng.uniform(0.01, 5) for name in ("density", "max_activation", "logit_kurtosis", "logit_mean")}
        if index % 3:
            numbers["decoder_norm"] = rng.random()
        label = Label(text=f"<b>{seed}</b> {index}", kind="tokens", precision=0.5, lift=2.0, num_firings=9)
        record = FeatureRecord(
            index=index,
            num_firings=rng.randrange(1, 9999),
            label=label if index % 4 else None,
            **numbers,
        )
        tokens = rng.sample(range(40), 12)
        logits = tuple(TokenLogit(token_id=t, text=f"t{t}<", logit=3.0 - at / 8) for at, t in enumerate(tokens))
        first = rng.randrange(4)
        edges = tuple(2.0 ** (first + at / 4) for at in range(9))
        neighbours = {}
        if index == 1:
            neighbours = {
                "decoder": (Neighbour(feature=2, value=0.875),),
                "firing": (Neighbour(feature=2, value=0.25, num_both=77),),
            }
        if index == 2:
            neighbours = {"decoder": (Neighbour(feature=1, value=0.875),)}
        detail = FeatureDetail(
            histogram=Histogram(edges=edges, counts=tuple(rng.randrange(50) for _ in range(8))),
            top_logits=logits,
            bottom_logits=logits[::-1],
            neighbours=neighbours,
        )
        made.append(Feature(record=record, detail=detail))
    return made


def _windows(seed: int) -> list[Window]:
    texts = [["a", " b", " c", "<d>", " e", "f"], ["x", "y", "z", "u", "v", "w"]]
    return [
        Window.of_texts(
            id=at, document=f"doc {at % 3}", offset=6 * (at // 3), token_ids=range(6), token_texts=texts[at % 2]
        )
        for at in range(9)
    ]


def _examples(seed: int) -> list[Example]:
    rng = random.Random(seed)
    made = []
    for feature in range(30):
        for rank, window in enumerate(sorted(rng.sample(range(9), 6))):
            positions = sorted(rng.sample(range(6), 2))
            peak, value = positions[0], 1 + rng.randrange(64) / 64
            values = (value, value / 2)
            role = {"top_rank": rank} if rank < 4 else {"negative": "silent"}
            if rank >= 4:
                positions, values, value = [], (), 0.0
            made.append(
                Example(
                    feature=feature,
                    window_id=window,
                    peak=peak,
                    activation=value,
                    positions=tuple(positions),
                    values=values,
                    **role,  # type: ignore[arg-type]
                )
            )
    return made


def _evaluations(seed: int) -> list[EvaluationResult]:
    shift = 0.5 * seed
    return [
        EvaluationResult(study="core", metric="l0", value=30.0 + shift, low=29.9 + shift, high=30.1 + shift),
        EvaluationResult(study="core", metric="ev", value=0.9, low=0.8, high=1.0, variant="<v>"),
        EvaluationResult(study="core", metric=f"only_{seed}", value=1.0),
        EvaluationResult(study="core", metric="nothing", value=None),
        EvaluationResult(study="core", metric="ev", value=0.1, variant=f"of {seed}"),
    ]


def _write(store: Store, name: str, seed: int, **record: Any) -> None:
    values: dict[str, Any] = {"model": "m", "hook_point": "h", "architecture": "topk", "d_in": 8, "d_sae": 30}
    store.write(
        DictionaryRecord(name=name, **values | record),
        AnalysisRecord(dataset="d", context_size=6, num_tokens=1000 + seed),
        _features(seed), _windows(seed), _examples(seed), evaluations=_evaluations(seed),
    )  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "pair.db") as store:
        _write(store, A, 0)
        _write(store, B, 1)
        _write(store, "wide", 2, d_in=9)
        _write(store, "one", 3)
        yield store


class Matching:
    """Knows the weights of all, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refuses: Exception | None = None
        self.missing: dict[str, str] = {}

    def absent(self, name: str, **_: Any) -> str | None:
        return self.missing.get(name)

    def match(self, a: str, b: str) -> dict[str, Any]:
        if self.refuses:
            raise self.refuses
        self.asked.append((a, b))
        pairs = [[at, 29 - at, 1 - at / 100] for at in range(20)]
        return {
            "bar": 0.7,
            "part_bar": 0.3,
            "pairs": pairs,
            "only_in_a": [[at, 3, at / 100] for at in range(20, 30)],
            "only_in_b": [[at, 5, at / 50] for at in range(10)],
            "counts": {"num_a": 30, "num_b": 30, "pairs": 20, "only_in_a": 10, "only_in_b": 10, "split": 0, "near": 0},
        }


@pytest.fixture
def matching() -> Matching:
    return Matching()


@pytest.fixture
def pair_client(pair: Store, matching: Matching, client_of: Callable[..., Any]) -> Any:
    return client_of(create_app(pair, live=matching))  # type: ignore[arg-type]


# Two features


def test_all_numbers_of_both_with_their_difference(pair: Store, pair_client: Any):
    a, b = pair.page(A, 4), pair.page(B, 5)
    answer = pair_client.get("/api/compare", params={"a": f"{A}:4", "b": f"{B}:5"}).json()
    assert answer["kind"] == "features"
    assert [answer["a"], answer["b"]] == [json.loads(json.dumps(page_as_json(each))) for each in (a, b)]
    for key in NUMBERS:
        assert answer["a"]["feature"][key] == getattr(a.feature, key)
        assert answer["b"]["feature"][key] == getattr(b.feature, key)
    for key, difference in answer["differences"].items():
        if key in ("precision", "lift", "recall"):
            continue
        ours, theirs = getattr(a.feature, key), getattr(b.feature, key)
        assert difference == (None if ours is None or theirs is None else theirs - ours)
    assert {"density", "num_firings", "max_activation", "logit_kurtosis", "decoder_norm"} <= set(answer["differences"])
    page = pair_client.get("/compare", params={"a": f"{A}:4", "b": f"{B}:5"}).text
    for record in (a.feature, b.feature):
        for key in ("density", "max_activation", "logit_kurtosis"):
            assert f'title="{getattr(record, key)}"' in page
    assert f'title="{b.feature.density - a.feature.density}"' in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    assert "<b>1</b>" not in page


def test_tokens_in_both_lists_are_marked(pair: Store, pair_client: Any):
    for first, second in ((4, 5), (6, 7), (8, 20)):
        a, b = pair.page(A, first), pair.page(B, second)
        answer = pair_client.get("/api/compare", params={"a": f"{A}:{first}", "b": f"{B}:{second}"}).json()
        page = pair_client.get("/compare", params={"a": f"{A}:{first}", "b": f"{B}:{second}"}).text
        total = 0
        for kind in ("top", "bottom"):
            lists = [getattr(each.detail, f"{kind}_logits")[:10] for each in (a, b)]
            both = {t.token_id for t in lists[0]} & {t.token_id for t in lists[1]}
            assert set(answer["shared_tokens"][kind]) == both
            total += len(both)
        assert total
        assert page.count('class="both"') == 2 * total
        assert page.count('<span class="in-both">both</span>') == 2 * total


def test_windows_in_which_both_fire(pair: Store, pair_client: Any):
    num_shared = 0
    are_mixed = False
    for first, second in ((4, 5), (6, 7), (8, 20), (0, 29), (9, 9), (10, 11), (12, 12), (13, 3)):
        a, b = pair.page(A, first), pair.page(B, second)
        expected = {
            (x.window.document, x.window.offset): (
                x.activation,
                y.activation,
                sum(1 for p, q in zip(x.activations, y.activations, strict=True) if p and q),
            )
            for x in a.all_examples
            for y in b.all_examples
            if (x.window.document, x.window.offset) == (y.window.document, y.window.offset)
            and any(x.activations)
            and any(y.activations)
        }
        found = pair_client.get("/api/compare", params={"a": f"{A}:{first}", "b": f"{B}:{second}"}).json()[
            "shared_windows"
        ]
        assert {
            (each["document"], each["offset"]): (*each["activations"], each["num_both"]) for each in found
        } == expected
        strongest = (a.feature.max_activation, b.feature.max_activation)
        ranks = [
            (
                not each["num_both"],
                -min(value / most for value, most in zip(each["activations"], strongest, strict=True)),
            )
            for each in found
        ]
        assert ranks == sorted(ranks)
        are_mixed |= [rank[1] for rank in ranks] != sorted(rank[1] for rank in ranks)
        num_shared += len(expected)
        page = pair_client.get("/compare", params={"a": f"{A}:{first}", "b": f"{B}:{second}"}).text
        assert page.count('<div class="shown">') == 2 * min(8, len(expected))
    assert num_shared > 8
    assert are_mixed  # strength alone would give another order


def test_neighbours_of_one_dictionary(pair_client: Any):
    answer = pair_client.get("/api/compare", params={"a": f"{A}:1", "b": f"{A}:2"}).json()
    assert answer["neighbours"] == [
        {"kind": "decoder", "value": 0.875, "num_both": None, "listed_by": ["a", "b"]},
        {"kind": "firing", "value": 0.25, "num_both": 77, "listed_by": ["a"]},
    ]
    page = pair_client.get("/compare", params={"a": f"{A}:2", "b": f"{A}:1"}).text
    assert "Cosine of decoder rows: <b" in page
    assert "Each is among the nearest of the other" in page
    assert "A is among the nearest of B, and B not of A" in page
    assert "77 tokens" in page
    across = pair_client.get("/api/compare", params={"a": f"{A}:1", "b": f"{B}:2"}).json()
    assert across["neighbours"] == []
    assert "Neither is in" in pair_client.get("/compare", params={"a": f"{A}:5", "b": f"{A}:6"}).text


def test_examples_are_coloured_on_each_ones_own_scale(pair: Store, pair_client: Any):
    from saescope.web.drawing import shade

    a, b = pair.page(A, 4), pair.page(B, 5)
    page = pair_client.get("/compare", params={"a": f"{A}:4", "b": f"{B}:5"}).text
    tops = page.split("<h2>Where each fires most</h2>")[1].split("<section")[1:]
    for part, each in zip(tops, (a, b), strict=True):
        shades = re.findall(r'<mark class="peak" style="--a:([\d.]+)" title="([\d.]+)"', part)
        assert [(float(s), float(v)) for s, v in shades] == [
            (shade(e.activation, each.feature.max_activation), e.activation) for e in each.examples[:8]
        ]


def _place(chart: Any, value: float) -> float:
    low, high = chart.ticks[0][1], chart.ticks[-1][1]
    return 100 * math.log(value / low) / math.log(high / low)


def test_histograms_stand_on_one_axis():
    one = Histogram(edges=(0.5, 1.0, 2.0, 4.0), counts=(0, 8, 2))
    two = Histogram(edges=(4.0, 8.0, 16.0), counts=(100, 0))
    charts = comparison.charts_on_one_axis([one, two, Histogram()])
    assert charts[2] is None
    first, second = charts[0], charts[1]
    assert first is not None
    assert second is not None
    assert first.ticks == second.ticks
    assert [tick[1] for tick in (first.ticks[0], first.ticks[-1])] == pytest.approx([1.0, 8.0])
    assert first.highest == 8
    assert second.highest == 100
    for chart, histogram in ((first, one), (second, two)):
        bars = [(e, c) for e, c in zip(histogram.edges, histogram.counts, strict=False) if c]
        assert len(chart.bars) == len(bars)
        for (x, y, _, height), (edge, count) in zip(chart.bars, bars, strict=True):
            assert x == pytest.approx(_place(chart, edge))
            assert height == pytest.approx(chart.height * math.log1p(count) / math.log1p(100))
            assert y + height == pytest.approx(chart.height)
    linear = comparison.charts_on_one_axis([Histogram(edges=(-2.0, -1.0, 0.0), counts=(1, 1))])[0]
    assert linear is not None
    assert [x for x, *_ in linear.bars] == pytest.approx([0, 50])
    assert comparison.charts_on_one_axis([Histogram(), Histogram()]) == (None, None)


# Which two


def test_what_follows_the_last_colon_is_a_feature_unless_it_is_a_name(pair: Store, pair_client: Any):
    def kind(**asked: Any) -> Any:
        return pair_client.get("/api/compare", params=asked).json()

    assert kind(a=A, b=B)["kind"] == "dictionaries"
    found = kind(a=f"{A}:7", b="one:7")
    assert [found[side]["dictionary"]["name"] for side in "ab"] == [A, "one"]
    _write(pair, "one:7", 4)
    assert kind(a="one:7", b=A)["a"]["dictionary"]["name"] == "one:7"
    assert kind(a="one", a_feature="7", b="one:7:3")["b"]["dictionary"]["name"] == "one:7"
    assert kind(a="one", a_feature="", b="wide")["kind"] == "dictionaries"


def test_an_analysis_can_be_chosen_for_each(pair: Store, pair_client: Any):
    record = pair.dictionary(A)
    analysis = AnalysisRecord(name="other", dataset="d2", context_size=6, num_tokens=9)
    pair.write(record, analysis, [dataclasses.replace(each) for each in _features(9)], [], [])
    found = pair_client.get("/api/compare", params={"a": f"{A}:3", "b": f"{A}:3", "analysis_a": "default"}).json()
    assert [found[side]["analysis"]["name"] for side in "ab"] == ["default", "other"]
    assert found["a"]["feature"]["density"] == pair.page(A, 3, analysis="default").feature.density
    page = pair_client.get("/compare", params={"a": f"{A}:3", "b": f"{A}:3", "analysis_a": "default"}).text
    assert "different text" in page
    assert "analysis=default" in page


def test_without_both_a_form_chooses(pair_client: Any):
    page = pair_client.get("/compare").text
    assert html.escape(B) in page
    assert page.count("<select") == 2
    assert page.count("<option") == 8
    page = pair_client.get("/compare", params={"a": f"{A}:7"}).text
    assert f'<option value="{A}" selected' in page
    assert 'value="7"' in page
    assert pair_client.get("/api/compare").json() == {"kind": "choice", "dictionaries": sorted([A, B, "one", "wide"])}


_NONSENSE = [
    (":", "one"), ("one:", "one"), (":1", "one"), ("one:30", "one:1"), ("one:-1", "one"), ("one:1e3", "one"),
    ("one:" + "9" * 900, "one:1"), ("one:٣", "one"), ("nobody", "one"), ("one", "nobody:3"), ("one:1", "one"),
    ("one", "one:1"), ("one\0", "one"), ("x" * 5000, "one"), ("one:1:1", "one:1"), ("\ud800", "one"), ("one", "' or 1=1 --"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), _NONSENSE)
def test_whatever_is_asked_is_answered_in_words(pair_client: Any, a: str, b: str):
    query = {"a": a.encode(errors="surrogatepass"), "b": b}
    for path in ("/compare", "/api/compare", "/api/compare/match"):
        answer = pair_client.get(path, params=query)
        assert answer.status_code in (404, 422)
        if path.startswith("/api"):
            assert answer.json()["error"]["message"]
    for changes in ({"a_feature": a[:50]}, {"analysis_a": a[:50]}):
        asked = {"a": "one", "b": "one", **{k: v.encode(errors="surrogatepass") for k, v in changes.items()}}
        assert pair_client.get("/api/compare", params=asked).status_code in (404, 422)


def test_errors_say_what_is_nearest_and_the_form_stays(pair_client: Any):
    message = pair_client.get("/api/compare", params={"a": "won:3", "b": "one:3"}).json()["error"]["message"]
    assert "no dictionary named 'won'" in message
    assert "did you mean 'one'" in message
    message = pair_client.get("/api/compare", params={"a": "one:30", "b": "one:3"}).json()["error"]["message"]
    assert "features 0 to 29" in message
    answer = pair_client.get("/compare", params={"a": "one:3", "b": "wide"})
    assert answer.status_code == 422
    assert "compare two features or two dictionaries" in answer.text
    assert '<option value="one" selected' in answer.text
    assert 'value="3"' in answer.text
    assert '<option value="wide" selected' in answer.text


# Two dictionaries


def test_summaries_and_evaluations_side_by_side(pair: Store, pair_client: Any):
    answer = pair_client.get("/api/compare", params={"a": A, "b": B}).json()
    for side, name in (("a", A), ("b", B)):
        summary = pair.summary(name)
        assert answer[side]["num_labelled"] == summary.num_labelled
        assert answer[side]["density_quantiles"] == [list(each) for each in summary.density_quantiles]
    rows = {(row["metric"], row["variant"]): row for row in answer["evaluations"]}
    assert set(rows) == {("l0", ""), ("ev", "<v>"), ("nothing", "")}
    assert rows["l0", ""]["difference"] == 0.5
    assert rows["l0", ""]["are_apart"] is True
    assert rows["ev", "<v>"]["are_apart"] is False
    assert rows["nothing", ""]["difference"] is None
    assert rows["nothing", ""]["are_apart"] is None
    page = pair_client.get("/compare", params={"a": A, "b": B}).text
    assert "29.9 to 30.1" in page
    assert "30.4 to 30.6" in page
    assert "&lt;v&gt;" in page
    assert "<v>" not in page
    assert page.count('class="differs"') >= 2
    assert "<i>b" not in page


def test_the_last_measurement_counts():
    def of(value: float, made: str) -> EvaluationResult:
        return EvaluationResult(study="s", metric="m", value=value, code_version=made, created_at=made)

    rows = comparison.shared_evaluations([of(2, "2026"), of(1, "2025")], [of(5, "2024")])
    assert [(row.a.value, row.b.value, row.difference) for row in rows] == [(2, 5, 3)]


# Matched features


def test_matched_features_come_in_pages_with_labels_and_densities(pair: Store, pair_client: Any, matching: Matching):
    whole = matching.match(A, B)
    matching.asked.clear()
    seen: dict[str, list[Any]] = {"pairs": [], "only_in_a": [], "only_in_b": []}
    for offset in range(0, 28, 7):
        answer = pair_client.get("/api/compare/match", params={"a": A, "b": B, "offset": offset, "limit": 7}).json()
        assert answer["bar"] == 0.7
        assert answer["counts"] == whole["counts"]
        named: dict[str, set[int]] = {"a": set(), "b": set()}
        for key, some in seen.items():
            some += answer[key]
            for row in answer[key]:
                ours, theirs = row[:2] if key != "only_in_b" else row[1::-1]
                named["a"].add(ours)
                named["b"].add(theirs)
        for side, name in (("a", A), ("b", B)):
            records = {index: pair.page(name, index).feature for index in named[side]}
            assert answer[side]["labels"] == {str(i): r.label.text for i, r in sorted(records.items()) if r.label}
            assert answer[side]["densities"] == {str(i): r.density for i, r in sorted(records.items())}
    assert seen == {key: whole[key] for key in seen}
    assert matching.asked == [(A, B)]
    pair_client.get("/api/compare/match", params={"a": B, "b": A})
    assert matching.asked == [(A, B), (B, A)]


def test_a_dictionary_that_was_replaced_is_matched_anew(pair: Store, pair_client: Any, matching: Matching):
    pair_client.get("/api/compare/match", params={"a": A, "b": "one"})
    pair.delete("one")
    _write(pair, "one", 3, details={"source": "elsewhere"})
    pair_client.get("/api/compare/match", params={"a": A, "b": "one"})
    assert matching.asked == [(A, "one")] * 2


def test_few_pairs_are_kept(pair: Store, pair_client: Any, matching: Matching):
    for place in range(9):
        _write(pair, f"more {place}", 5)
        assert pair_client.get("/api/compare/match", params={"a": A, "b": f"more {place}"}).status_code == 200
    pair_client.get("/api/compare/match", params={"a": A, "b": "more 8"})
    assert len(matching.asked) == 9
    pair_client.get("/api/compare/match", params={"a": A, "b": "more 0"})
    assert len(matching.asked) == 10


def test_features_that_were_not_analysed_have_no_label(pair: Store, pair_client: Any):
    record = dataclasses.replace(pair.dictionary(B), name="part")
    analysis = AnalysisRecord(dataset="d", context_size=6, num_tokens=9)
    pair.write(record, analysis, _features(1)[20:], [], [])
    answer = pair_client.get("/api/compare/match", params={"a": A, "b": "part", "limit": 500}).json()
    assert set(answer["b"]["densities"]) == {str(index) for index in range(20, 30)}


def test_why_features_can_not_be_matched(
    pair: Store, pair_client: Any, matching: Matching, client_of: Callable[..., Any]
):
    def asked(client: Any, b: str) -> tuple[int, str, dict[str, Any]]:
        answer = client.get("/api/compare/match", params={"a": A, "b": b})
        return answer.status_code, answer.json()["error"]["message"], dict(answer.headers)

    status, message, _ = asked(pair_client, "wide")
    assert status == 422
    assert "width 8" in message
    assert "'wide' 9" in message
    assert "can not be matched by their rows" in pair_client.get("/compare", params={"a": A, "b": "wide"}).text
    matching.missing["one"] = "Nobody knows the weights of <one>."
    assert asked(pair_client, "one")[:2] == (404, "Nobody knows the weights of <one>.")
    page = pair_client.get("/compare", params={"a": A, "b": "one"}).text
    assert "weights of &lt;one&gt;" in page
    assert "sae-match" not in page
    matching.missing.clear()
    matching.refuses = BusyError("too many wait")
    status, message, headers = asked(pair_client, "one")
    assert (status, message) == (503, "too many wait")
    assert "retry-after" in headers
    matching.refuses = NoModelError("gone")
    assert asked(pair_client, "one")[:2] == (404, "gone")
    assert matching.asked == []
    without = client_of(create_app(pair))
    status, message, _ = asked(without, "one")
    assert status == 404
    assert "saescope serve --model" in message
    assert "saescope serve --model" in without.get("/compare", params={"a": A, "b": "one"}).text
    assert asked(pair_client, "one:3")[0] == 422
