"""The record of an evaluation: what it answers, and that it comes back from its JSON as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.evaluation.reporting.report import (
    EvaluatedDictionary,
    EvaluationReport,
    read_report_json,
    write_report_json,
)
from saescope.evaluation.results import Number, StudyResult

CORE = StudyResult(
    study="core",
    numbers=(
        Number(name="explained_variance", value=0.9, low=0.8, high=0.95, better="higher", variant="right"),
        Number(name="ce_loss_recovered", value=None, better="higher", reason="no harm"),
        Number(name="l0", value=0.0),
    ),
    tables={"by position": [{"position": "0-16", "l0": 3.5, "reason": None}]},
    curves={"density_histogram": {"left": [-6.0], "right": [0.0], "count": [3.0, None]}},
    notes=("a note",),
    seconds=1.5,
)


def dictionary(name: str = "a", **changes: Any) -> EvaluatedDictionary:
    values: dict[str, Any] = {
        "architecture": "topk",
        "d_sae": 64,
        "seed": 0,
        "sparsity": "k = 4",
        "studies": {"core": CORE},
    }
    return EvaluatedDictionary(name=name, **values | changes)


REPORT = EvaluationReport(
    dictionaries=(
        dictionary(),
        dictionary(
            "b", seed=None, studies={"core": CORE, "probing": StudyResult.failed("probing", ValueError("one class"))}
        ),
    ),
    notes=("of all",),
    context={"model": "tiny", "num_tokens": 400},
    unreliable={"core.l0": "unreliable: upside down", "scr.": "not checked"},
    seconds={"studies": 2.0},
    advice="Recommended L0: 4 to 8.",
)


def test_numbers_by_key_and_why_there_is_none() -> None:
    a, b = REPORT.dictionaries
    assert a.number("core.explained_variance").value == 0.9
    assert a.number("core.l0").value == 0.0
    for key, of, why in [
        ("core.ce_loss_recovered", a, "no harm"),
        ("probing.f1", a, "the study probing was not made"),
        ("probing.f1", b, "the study probing failed: one class"),
        ("core.kl", a, "core gave no such number"),
    ]:
        assert of.number(key).value is None
        assert of.number(key).reason == why
    assert REPORT["b"] is b
    with pytest.raises(KeyError, match="it has a, b"):
        REPORT["c"]


def test_what_is_in_it() -> None:
    assert REPORT.metrics() == ["core.explained_variance", "core.ce_loss_recovered", "core.l0"]
    assert [REPORT.better(key) for key in REPORT.metrics()] == ["higher", "higher", ""]
    assert REPORT.failures() == [("b", "probing", "one class")]
    assert REPORT.why_unreliable("core.l0") == "upside down"
    assert REPORT.why_unreliable("scr.top_10") == "not checked"
    assert REPORT.why_unreliable("core.explained_variance") == ""


def test_numbers_that_one_dictionary_lacks_stay_with_their_study() -> None:
    other = StudyResult(study="core", numbers=(Number(name="kl", value=1.0), Number(name="l0", value=1.0)))
    tail = StudyResult(study="tpp", numbers=(Number(name="top", value=1.0),))
    report = EvaluationReport(
        dictionaries=(dictionary(studies={"core": CORE, "tpp": tail}), dictionary("b", studies={"core": other}))
    )
    assert report.metrics() == [
        "core.explained_variance", "core.ce_loss_recovered", "core.l0", "core.kl", "tpp.top",
    ]  # fmt: skip


def test_settings_rise_and_name_the_size_where_there_are_several() -> None:
    names = ["k = 128", "k = 8", "k = 32", "target L0 = 2.5", ""]
    made = [dictionary(str(i), sparsity=words) for i, words in enumerate(names)]
    assert EvaluationReport(dictionaries=tuple(made)).settings() == [
        "",
        "k = 8",
        "k = 32",
        "k = 128",
        "target L0 = 2.5",
    ]
    two = EvaluationReport(dictionaries=(dictionary("a", d_sae=1024), dictionary("b", d_sae=64)))
    assert two.settings() == ["k = 4, d_sae = 64", "k = 4, d_sae = 1024"]


def test_json_and_back(tmp_path: Path) -> None:
    path = write_report_json(REPORT, tmp_path / "new" / "report.json", summary={"paragraph": "all is well"})
    assert read_report_json(path) == REPORT
    document = json.loads(path.read_text())
    assert document["summary"] == {"paragraph": "all is well"}
    numbers = document["dictionaries"][0]["studies"]["core"]["numbers"]
    assert numbers["ce_loss_recovered"]["value"] is None
    assert numbers["ce_loss_recovered"]["reason"] == "no harm"
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


@given(st.floats(), st.sampled_from([np.float32, np.float64, float]))
def test_what_is_not_finite_is_null_in_json(value: float, kind: type) -> None:
    with np.errstate(over="ignore"):
        odd = StudyResult(study="s", tables={"t": [{"x": kind(value), "n": np.int64(3), "y": np.array([1.0, np.nan])}]})
    (row,) = EvaluationReport(dictionaries=(dictionary(studies={"s": odd}),)).as_dict()["dictionaries"][0]["studies"][
        "s"
    ]["tables"]["t"]
    text = json.dumps(row, allow_nan=False)
    with np.errstate(over="ignore"):
        expected = float(kind(value))
    assert json.loads(text) == {"x": expected if np.isfinite(expected) else None, "n": 3, "y": [1.0, None]}


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report_json(REPORT, tmp_path / "report.json")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report_json(EvaluationReport(dictionaries=(dictionary("other"),)), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one dictionary"):
        EvaluationReport(dictionaries=())
    with pytest.raises(ValueError, match="two dictionaries are named a"):
        EvaluationReport(dictionaries=(dictionary(), dictionary()))
    with pytest.raises(FileNotFoundError):
        read_report_json(tmp_path / "none.json")
    for text, words in [
        ("{", "is no report"),
        ("[1]", "holds a list"),
        ('{"format": 2, "dictionaries": []}', "format 2, not 1"),
        ('{"l0": 3}', "format None"),
    ]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_report_json(tmp_path / "bad.json")
