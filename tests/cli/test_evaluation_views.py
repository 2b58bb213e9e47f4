"""An evaluation in the terminal, read back as plain text at several widths."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from saescope.cli.views.evaluation import dictionaries_view, report_view, targets_met_view, targets_view
from saescope.evaluation.reporting.report import EvaluatedDictionary, EvaluationReport
from saescope.evaluation.reporting.summary import summarise
from saescope.evaluation.results import Number, StudyResult


def plain(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(renderable)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= width for line in text.splitlines())
    return text


def words(text: str) -> str:
    return " ".join(text.split())


def evaluated(architecture: str, seed: int, *, failed: bool = False) -> EvaluatedDictionary:
    value = 0.95 if architecture == "topk" else 0.80
    core = StudyResult(
        study="core",
        numbers=(
            Number(name="explained_variance", value=value + seed / 1000, low=value - 0.01, high=value + 0.01,
                   better="higher", variant="the right one"),
            Number(name="ce_loss_recovered", value=None, better="higher", reason="the [red]ablation does no harm"),
            Number(name="l0", value=64.25, low=63.0, high=65.5),
            Number(name="dead_share", value=0.125, better="lower"),
        ),
        notes=("special tokens were left out",),
    )  # fmt: skip
    scr = StudyResult(study="scr", numbers=(Number(name="top_10", value=0.25, better="higher"),))
    if failed:
        scr = StudyResult.failed("scr", ValueError("no [bold]pair of labels\x1b[2J"))
    return EvaluatedDictionary(
        name=f"{architecture}-[b]{seed}", architecture=architecture, d_sae=64, seed=seed, sparsity="k = 64",
        studies={"core": core, "scr": scr},
    )  # fmt: skip


def report_of(*dictionaries: EvaluatedDictionary) -> EvaluationReport:
    return EvaluationReport(
        dictionaries=dictionaries,
        notes=("same tokens for all",),
        unreliable={"scr.top_10": "unreliable: upside down"},
        seconds={"training": 754.0, "studies": 12.0},
    )


MANY = report_of(*(evaluated(a, seed, failed=(a, seed) == ("relu", 1)) for a in ("topk", "relu") for seed in (0, 1)))


def shown(report: EvaluationReport, width: int = 80) -> str:
    return plain(report_view(report.as_dict(), summarise(report)), width)


def test_one_dictionary() -> None:
    text = shown(report_of(evaluated("topk", 0)), 100)
    lines = [words(line) for line in text.splitlines()]
    assert "L0 (features per token) 64.2 [63.0, 65.5] 50 to 200 met" in lines
    assert "CE loss recovered (zero ablation) – at least 0.97 –" in lines
    assert "dead features (share) 0.125 below 0.05 not met" in lines
    assert "explained variance 0.950 [0.940, 0.960] above 0.9 met" in lines
    assert "CE loss recovered (zero ablation): the [red]ablation does no harm" in lines
    assert "dead features (share) below 0.05 is not met. What to try:" in lines
    assert "AuxK revives features" in text
    assert "Let more features fire" not in text  # that target is met
    # every number of every study, with what it is and whether to trust it
    assert "explained variance 0.950 [0.940, 0.960] more is better; the right one" in lines
    assert "top 10 0.25 unreliable: upside down; more is better" in lines
    assert "core: special tokens were left out" in lines
    assert lines[-2:] == ["same tokens for all", "training 12 min 34 s, studies 12 s"]


def test_a_failed_study_is_shown_as_failed() -> None:
    text = shown(report_of(evaluated("relu", 1, failed=True)))
    assert "scr failed: no [bold]pair of labels\\x1b[2J" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_many_dictionaries(width: int) -> None:
    text = shown(MANY, width)
    flat = words(text)
    assert "scr of relu-[b]1 failed: no [bold]pair of labels\\x1b[2J" in flat
    assert "top 10 is unreliable: upside down" in flat
    assert "topk is best in explained variance (core)" in flat
    assert "training 12 min 34 s, studies 12 s" in flat
    for dictionary in MANY.dictionaries:
        assert dictionary.name in text
    for cell in ("0.950 [0.940, 0.960]", "0.801 [0.790, 0.810]", "64.2 [63.0, 65.5]", "0.125", "0.25"):
        assert cell in text
    if width == 160:
        assert "dead features (share) below 0.05 0 of 4 topk-[b]0, topk-[b]1, relu-[b]0" in flat
        assert "explained variance above 0.9 2 of 4 relu-[b]0, relu-[b]1" in flat
        assert "not measured" in flat


def test_columns_go_on_in_a_further_table_when_the_terminal_is_narrow() -> None:
    def tables(width: int) -> list[str]:
        view = dictionaries_view(MANY.as_dict(), summarise(MANY))
        return [words(line) for line in plain(view, width).splitlines() if line.strip().startswith("dictionary")]

    assert tables(120) == ["dictionary explained variance CE loss recovered L0 dead share top 10 (unreliable)"]
    narrow = tables(60)
    assert len(narrow) == 3
    assert " ".join(narrow).count("explained variance") == 1
    for width in (50, 60, 80, 120):
        text = plain(dictionaries_view(MANY.as_dict(), summarise(MANY)), width)
        assert text.count("0.950 [0.940, 0.960]") == 1  # nothing is cut, and nothing stands twice
        assert text.count("64.2 [63.0, 65.5]") == 4
        rows = [words(line) for line in text.splitlines() if "relu-[b]1" in line]
        assert len(rows) == len(tables(width))
        assert rows[-1].endswith("–")  # the study that failed


def test_the_first_headlines_alone() -> None:
    text = plain(dictionaries_view(MANY.as_dict(), summarise(MANY), most=1))
    assert "explained variance" in text
    assert "L0" not in text


def test_advice_is_given_once_for_each_way_of_missing() -> None:
    def row(value: float, met: bool | None, *advice: str) -> dict[str, Any]:
        return {"name": "L0", "target": "50 to 200", "value": value, "met": met, "advice": [*advice]}

    targets = {f"d{i}": [row(10, False, "more")] for i in range(5)} | {
        "e": [row(900, False, "fewer")],
        "f": [row(60, True)],
    }
    text = plain(targets_met_view(targets))
    assert "1 of 7" in text
    assert "d0, d1, d2 and 3 more" in text
    assert text.count("- more") == 1
    assert text.count("- fewer") == 1
    assert "What to try" not in plain(targets_met_view({"f": [row(60, True)]}))
    assert "What to try" not in plain(targets_view([row(60, True), row(0, None)]))


def test_it_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, saescope.cli.views.evaluation; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)
