"""The first page: numbers as the store has them, series, other analyses, and an empty store."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Feature,
    FeatureRecord,
    Label,
    Store,
)
from saescope.web.app import create_app
from saescope.web.home import newest
from saescope.web.summaries import SECONDS, Summaries


def _write(
    store: Store, name: str, *, series: str = "", analysis: str = "default", dead: int = 3, **options: Any
) -> None:
    record = DictionaryRecord(
        name=name, model="gpt <x>", hook_point="h.1", architecture="topk", d_in=64, d_sae=40, series=series
    )
    label = Label(text="a", kind="tokens", precision=1.0, lift=2.0, num_firings=3)
    densities = [0.0] * dead + [0.5] * 2 + [0.001 * (i + 1) for i in range(20)]
    features = [
        Feature(
            record=FeatureRecord(
                index=i,
                num_firings=round(1000 * density),
                density=density,
                max_activation=1.0,
                label=label if i % 5 == 0 else None,
            )
        )
        for i, density in enumerate(densities)
    ]
    store.write(
        record,
        AnalysisRecord(name=analysis, dataset="x", context_size=8, num_tokens=12_345),
        features,
        [],
        [],
        **options,
    )


def _result(metric: str, value: float | None, created_at: str = "2026-01-01", **changes: Any) -> EvaluationResult:
    return EvaluationResult(metric=metric, value=value, created_at=created_at, **{"study": "core", **changes})


def _dd(page: str, title: str) -> str:
    found = re.search(rf"<dt>{title}</dt><dd>(.*?)</dd>", page, re.DOTALL)
    assert found is not None, title
    return re.sub("<[^>]+>", "", found[1]).replace("\xa0", " ")


def test_numbers_of_a_dictionary(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    results = [
        _result("explained_variance", 0.5, "2026-01-01"),
        _result("explained_variance", 0.912345, "2026-02-03", low=0.9, high=0.92, variant="1 - E/E", code_version="2"),
        _result("l0", 31.75),
        _result("ce_loss_recovered", 0.98765, low=0.98, high=0.99),
    ]
    with Store.open(tmp_path / "features.db") as store:
        _write(store, "one", evaluations=results)
        client = client_of(create_app(store))
        page = client.get("/").text
        assert _dd(page, "Tokens analysed") == "12,345"
        assert _dd(page, "Explained variance") == "0.9123"
        assert 'title="0.912345, interval 0.9 to 0.92; study core (1 - E/E); measured on 2026-02-03"' in page
        assert _dd(page, "L0") == "31.75"
        assert _dd(page, "Loss recovered") == "98.8 %"
        assert (_dd(page, "Dead"), _dd(page, "Dense"), _dd(page, "Labelled")) == ("12 %", "8 %", "20 %")
        assert 'title="3 of 25 features"' in page
        assert "64 → 40" in page
        assert "gpt</i> &lt;x&gt;" in page or "&lt;x&gt;" in page

        answer = client.get("/api/dictionaries").json()["dictionaries"]
        assert [each["dictionary"]["name"] for each in answer] == ["one"]
        summary = answer[0]["summary"]
        assert (summary["num_features"], summary["num_dead"], summary["num_dense"], summary["num_labelled"]) == (
            25,
            3,
            2,
            5,
        )
        assert answer[0]["numbers"]["explained_variance"]["value"] == 0.912345
        assert answer[0]["analyses"][0]["num_tokens"] == 12_345


def test_the_histogram_counts_densities(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    with Store.open(tmp_path / "features.db") as store:
        _write(store, "one")
        page = client_of(create_app(store)).get("/").text
    counted = Counter(
        math.floor(4 * math.log10(density)) for density in [0.5] * 2 + [0.001 * (i + 1) for i in range(20)]
    )
    drawing = re.search(r'<svg role="img"[^>]*aria-label="([^"]*)">(.*?)</svg>', page, re.DOTALL)
    assert drawing is not None
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', drawing[2])]
    highest = max(counted.values())
    assert heights == [pytest.approx(70 * counted[place] / highest, abs=0.01) for place in sorted(counted)]
    assert "the 22 features that fire" in drawing[1]
    assert f"the highest bar counts {highest}" in drawing[1]
    assert "from 0.1\xa0% to 56\xa0% of the tokens" in drawing[1]
    assert "at most 1.15\xa0%" in drawing[1]


def test_series_and_other_analyses(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    with Store.open(tmp_path / "features.db") as store:
        _write(store, "z", series="sweep <1>")
        _write(store, "a/b", series="sweep <1>", analysis="first one")
        _write(store, "a/b", series="sweep <1>", analysis="second")
        _write(store, "alone")
        page = client_of(create_app(store)).get("/").text
    headings = [re.sub("<[^>]+>", "", each) for each in re.findall(r"<h[123][^>]*>(.*?)</h", page)]
    assert headings == ["Dictionaries", "sweep &lt;1&gt;", "a/b", "z", "Without a series", "alone"]
    assert 'href="/d/a%2Fb?analysis=first+one"' in page
    assert "?analysis=second" not in page  # it is the one that is shown
    for kind in ("map", "try", "steer", "training"):
        assert f'href="/d/a%2Fb/{kind}"' in page


def test_an_empty_store_says_what_fills_it(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    with Store.open(tmp_path / "features.db") as store:
        client = client_of(create_app(store))
        page = client.get("/")
        assert page.status_code == 200
        assert "saescope analyze DICTIONARY" in page.text
        assert client.get("/api/dictionaries").json() == {"dictionaries": []}


def test_nothing_fires_and_nothing_was_measured(tmp_path: Path, client_of: Callable[..., Any]) -> None:
    record = DictionaryRecord(name="x", model="m", hook_point="h", architecture="relu", d_in=2, d_sae=2)
    analysis = AnalysisRecord(dataset="x", context_size=8, num_tokens=1)
    dead = FeatureRecord(index=0, num_firings=0, density=0.0, max_activation=0.0)
    with Store.open(tmp_path / "features.db") as store:
        store.write(record, analysis, [Feature(record=dead)], [], [])
        page = client_of(create_app(store)).get("/").text
    assert "No feature fires." in page
    assert _dd(page, "Explained variance") == "not measured"
    assert _dd(page, "Dead") == "100 %"


def test_names_that_attack(client: Any) -> None:
    page = client.get("/").text
    assert "<b>topk" not in page
    assert _dd(page, "Explained variance") == "0.8765"
    assert 'href="/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E"' in page


def test_which_number_counts() -> None:
    early, late = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    results = [
        _result("l0", 1.0, early, study="other"),
        _result("l0", 2.0, late, study="other"),
        _result("l0", 3.0, late),
        _result("l0", 4.0, late, study="zzz"),
        _result("l0", None, "2027"),
        _result("loss_recovered", 0.5, late),
        _result("ce_loss_recovered", 0.25, early),
    ]
    found = newest(results)
    assert found["l0"].value == 3.0  # at one time the study that measures just this
    assert found["loss_recovered"].value == 0.25
    assert "explained_variance" not in found
    results = [_result("explained_variance", 0.1, early), _result("explained_variance", 0.2, late, study="other")]
    assert newest(results)["explained_variance"].value == 0.2


def test_summaries_are_kept_for_a_while(tmp_path: Path) -> None:
    with Store.open(tmp_path / "features.db") as store:
        _write(store, "one")
        now = 100.0
        summaries = Summaries(store, clock=lambda: now)
        first = summaries.get("one")
        store.add_evaluations("one", [_result("l0", 1.0)])
        now += SECONDS
        assert summaries.get("one") is first
        now += 0.5
        second = summaries.get("one", "default")
        assert [result.value for result in second.evaluations] == [1.0]
        assert summaries.get("one") is second
        _write(store, "one", analysis="next", dead=1)
        assert summaries.get("one").num_dead == 1  # another analysis is another summary
        assert summaries.get("one", "default") is second


def test_pages_of_one_store_share_summaries(tmp_path: Path) -> None:
    with Store.open(tmp_path / "features.db") as store, Store.open(tmp_path / "features.db") as other:
        assert Summaries.of(store) is Summaries.of(store)
        assert Summaries.of(store) is not Summaries.of(other)
