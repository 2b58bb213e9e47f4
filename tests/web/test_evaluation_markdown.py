"""An evaluation as Markdown: every dictionary has its row, and nothing in a name breaks the table or becomes HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from saescope.evaluation.reporting.report import EvaluationReport
from saescope.evaluation.reporting.summary import summarise
from saescope.web.estimates import written
from saescope.web.evaluation_markdown import evaluation_markdown, write_evaluation_markdown


def test_rows_numbers_and_failures(evaluated: Callable[[int], EvaluationReport]) -> None:
    report = evaluated(12)
    summary = summarise(report)
    text = evaluation_markdown(report.as_dict(), summary)
    assert text.startswith("12 dictionaries were evaluated")
    assert "Recommended L0: 30 to 60." in text
    table = [
        [cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| topk k32")
    ]
    assert len(table) == sum(d.name.startswith("topk k32") for d in report.dictionaries) > 0
    study, _, name = summary["headlines"][0].partition(".")
    first = next(d for d in report.as_dict()["dictionaries"] if d["name"].startswith("topk k32"))
    assert table[0][1] == written(first["studies"][study]["numbers"][name])
    assert "probing failed: only one class: &lt;script>alert(1)&lt;/script>" in text
    assert not re.search(r"<(b|i|script)>", text)
    assert "\\*" in text  # the marked number
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith(("| dictionary", "| topk", "| batch"))}
    assert len(widths) == 1


def test_pictures_are_named_from_where_the_file_lies(
    evaluated: Callable[[int], EvaluationReport], tmp_path: Path
) -> None:
    report = evaluated(2)
    pictures = [{"path": str(tmp_path / "plots" / "a.png"), "caption": "A | plot", "alt": "Rising"}]
    write_evaluation_markdown(tmp_path / "report.md", report.as_dict(), summarise(report), pictures=pictures)
    assert "![Rising](plots/a.png)\n\nA \\| plot\n" in (tmp_path / "report.md").read_text()
