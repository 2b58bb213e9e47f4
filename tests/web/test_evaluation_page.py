"""The page of an evaluation as a file: what is in it, that nothing in it acts, and how its numbers are written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from saescope.evaluation.reporting.report import EvaluationReport, write_report_json
from saescope.evaluation.reporting.summary import summarise
from saescope.web.estimates import estimate, minutes, written
from saescope.web.evaluation_page import outcome, write_evaluation_page

_VOID = {"meta", "link", "img", "br"}


class _Page(HTMLParser):
    """Tags with attributes, text without style and script, cells of every table; checks that tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, first_head: str) -> list[list[str]]:
        """The first table whose first head reads so, its cells in single spaces."""
        rows = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        return next(table for table in rows if table[0][0] == first_head)


Made = Callable[[int], EvaluationReport]


def page_of(report: EvaluationReport, path: Path, **more: Any) -> _Page:
    write_evaluation_page(path, report.as_dict(), summarise(report), **more)
    return _Page(path.read_text(encoding="utf-8"))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ({"value": 0.8731, "low": 0.8612, "high": 0.8841}, ("0.873", "[0.861, 0.884]")),
        ({"value": 0.5}, ("0.5", "")),
        ({"value": None, "reason": "why"}, ("–", "")),
        (None, ("–", "")),
        ({"value": 64.0, "low": 62.1, "high": 65.9}, ("64.0", "[62.1, 65.9]")),
        ({"value": 12_345.0, "low": 12_300.0, "high": 12_390.0}, ("12,345", "[12,300, 12,390]")),
        ({"value": -0.0004, "low": -0.25, "high": 0.25}, ("0.00", "[−0.25, 0.25]")),
        ({"value": 3.0, "low": 3.0, "high": 3.0}, ("3", "[3, 3]")),
        ({"value": 2e7, "low": 1e7, "high": 3e7}, ("2e7", "[1e7, 3e7]")),
    ],
)
def test_numbers_have_the_digits_that_their_interval_bears(number: Any, expected: tuple[str, str]) -> None:
    assert estimate(number) == expected
    assert written(number) == " ".join(filter(None, expected))


def test_durations() -> None:
    assert [minutes(seconds) for seconds in (2.5, 59.4, 60, 2104)] == ["2.5 s", "59.4 s", "1 min 0 s", "35 min 4 s"]


def test_the_page_of_many(evaluated: Made, tmp_path: Path, plot: Path) -> None:
    report = evaluated(12)
    picture = {"path": plot, "caption": "A <plot>", "alt": "Rising from 1 to 3"}
    page = page_of(report, tmp_path / "page.html", pictures=[picture])
    text = words(page.text)
    assert "Evaluation of 12 dictionaries" in text
    assert words(summarise(report)["paragraph"]) in text
    assert "Recommended L0: 30 to 60." in text
    assert "probing of topk k32 <b>s1</b>: only one class: <script>alert(1)</script>" in text
    # main numbers: a row for each dictionary, intervals, a dash with its reason for the eye and for the ear
    table = page.table("Dictionary")
    heads = page.tables[1][0]
    assert [words(head) for head in heads[:3]] == [
        "Dictionary",
        "explained variance core, more is better",
        "CE loss recovered core, more is better",
    ]
    assert len(table) == 13
    rows = {words(row[0]): [words(cell) for cell in row] for row in page.tables[1][1:]}
    row = rows["topk k32 <b>s0</b>"]
    assert row[1] == "0.862 [0.850, 0.873]"
    assert row[2] == "– no value: the <i>ablation</i> does no harm"
    assert row[-4:] == ["topk", "k = 32", "0", "2,048"]
    assert (
        "– no value: the study probing failed: only one class: <script>alert(1)</script>" in rows["topk k32 <b>s1</b>"]
    )
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert "the <i>ablation</i> does no harm" in titles
    # what not to trust is marked, with the reason, and not ranked
    assert words(heads[-5]) == "top 10 scr, more is better unreliable"
    assert heads[-4:] == ["Architecture", "Sparsity", "Seed", "d_sae"]
    assert "top 10: ranks a random dictionary (0.3) above the truth (0.1)" in text
    comparison = page.table("Number")
    by_name = {row[0]: row for row in comparison[1:]}
    assert by_name["explained variance core, more is better"][5] == "topk is best"
    assert (
        by_name["top 10 scr, more is better"][5] == "not ranked: ranks a random dictionary (0.3) above the truth (0.1)"
    )
    # targets
    assert "explained variance above 0.9: met by 0 of 12" in text
    assert "CE loss recovered (zero ablation) at least 0.97: not measured" in text
    assert "L0 (features per token) 50 to 200: not met by 6 of 12" in text
    assert "more features per token (k, or a smaller penalty)" in text  # without backquotes
    # pictures have words
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == "Rising from 1 to 3"
    assert base64.b64decode((image["src"] or "").partition(",")[2]) == plot.read_bytes()
    # what it was made with
    for fact in ("gpt & co", "120,000", "12 min 34 s", "12.5 s", "All were measured on the same tokens."):
        assert fact in text


def test_every_number_and_every_row_of_every_study_is_there(evaluated: Made, tmp_path: Path) -> None:
    report = evaluated(12)
    page = page_of(report, tmp_path / "page.html")
    cells = [words(cell) for table in page.tables for row in table for cell in row]
    for dictionary in report.dictionaries:
        for _, number in dictionary.numbers():
            assert any(cell.startswith(written(number.as_dict())) for cell in cells)
    by_position = [table for table in page.tables if words(table[0][0]) == "position"]
    assert [len(table) for table in by_position] == [5] * 12
    concepts = [
        [[words(cell) for cell in row] for row in table] for table in page.tables if words(table[0][0]) == "concept"
    ]
    assert len(concepts) == 11  # one failed
    assert concepts[0][2] == ["docstring", "– no value: 3 positives, too few", "3 positives, too few"]
    text = words(page.text)
    assert "special tokens were left out" in text
    assert "1 - E|x - x_hat|^2 / E|x - mean|^2" in text


def test_the_page_of_one(evaluated: Made, tmp_path: Path) -> None:
    page = page_of(evaluated(1), tmp_path / "page.html")
    text = words(page.text)
    targets = page.table("Measure")
    assert [row[0] for row in targets[1:]] == [
        "L0 (features per token)",
        "CE loss recovered (zero ablation)",
        "dead features (share) features silent in this evaluation; over more text fewer may be",
        "explained variance",
    ]
    assert [row[3] for row in targets[1:]] == ["not met", "–", "met", "not met"]
    assert targets[1][1:3] == ["32.0 [30.5, 33.5]", "50 to 200"]
    assert targets[2][1] == "– no value: the <i>ablation</i> does no harm"
    assert "Let more features fire" in text
    assert "Which architecture is best" not in text
    core = page.table("Number")
    assert core[1] == ["explained variance", "0.862 [0.850, 0.873]", "more is better"]
    scr = next(table for table in page.tables if words(table[1][0]) == "top 10")
    assert words(scr[1][2]) == "more is better; unreliable: ranks a random dictionary (0.3) above the truth (0.1)"


def test_nothing_in_it_acts_but_the_sorting(evaluated: Made, tmp_path: Path) -> None:
    page = page_of(evaluated(12), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "form", "b", "i")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, address)


def test_a_page_from_the_json_is_the_same(evaluated: Made, tmp_path: Path) -> None:
    report = evaluated(4)
    path = write_report_json(report, tmp_path / "report.json", summary=summarise(report))
    document = json.loads(path.read_text())
    write_evaluation_page(tmp_path / "a.html", report.as_dict(), summarise(report))
    write_evaluation_page(tmp_path / "b.html", document, document["summary"])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_long_tables_are_cut_and_say_so(evaluated: Made, tmp_path: Path) -> None:
    document = evaluated(1).as_dict()
    rows = [{"feature": i, "value": i / 7} for i in range(1500)]
    document["dictionaries"][0]["studies"]["core"]["tables"]["features"] = rows
    write_evaluation_page(tmp_path / "page.html", document, summarise(evaluated(1)))
    page = _Page((tmp_path / "page.html").read_text())
    assert "1,300 more rows are in the JSON." in words(page.text)
    assert len(page.table("feature")) == 201


@pytest.mark.parametrize(
    ("contest", "expected"),
    [
        ({"verdict": "winner", "leader": "a", "close": (), "difference": 1.0}, "a is best"),
        ({"verdict": "noise", "leader": "a", "close": ("b", "c"), "difference": 0.1}, "within seed noise: a, b, c"),
        ({"verdict": "noise", "leader": "a", "close": ("b",), "difference": 0}, "equal"),
        ({"verdict": "one seed", "leader": "a", "close": (), "difference": 1.0}, "a leads, on one seed: no winner"),
        ({"verdict": "alone", "leader": "", "close": (), "difference": None}, "nothing to compare with"),
    ],
)
def test_outcomes_in_words(contest: dict[str, Any], expected: str) -> None:
    assert outcome(contest) == expected


def test_refusals_leave_the_old_page(evaluated: Made, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    report = evaluated(1)
    (tmp_path / "no.png").write_text("no picture")
    for document, pictures, message in [
        ({"dictionaries": []}, [], "no report of an evaluation"),
        (report.as_dict(), [{"path": tmp_path / "no.png", "caption": "x", "alt": "x"}], "not a PNG"),
        (report.as_dict(), [{"path": tmp_path / "no.png", "caption": "x", "alt": ""}], "no alt text"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_evaluation_page(path, document, summarise(report), pictures=pictures)
    assert path.read_text() == "old"


def test_it_needs_no_torch() -> None:
    code = "import sys, saescope.web.evaluation_page; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)
