"""Numbers with reasons, and results that survive a file."""

from __future__ import annotations

import json
import math

import pytest

from saescope.evaluation import Number, StudyResult


def test_a_number_without_a_value_says_why() -> None:
    with pytest.raises(ValueError, match="f1 has no value; say why in reason"):
        Number(name="f1", value=None)
    with pytest.raises(ValueError, match="value of f1 is nan"):
        Number(name="f1", value=math.nan)
    with pytest.raises(ValueError, match="high of f1 is inf"):
        Number(name="f1", value=1.0, high=math.inf)
    assert Number.of("f1", math.nan, low=0.1, high=0.2, reason="no positives") == Number(
        name="f1", value=None, reason="no positives"
    )
    assert Number.of("f1", 0.5, low=0.1, reason="no positives").reason == ""


def test_numbers_in_print() -> None:
    assert str(Number(name="f1", value=0.12345, low=0.1, high=0.2)) == "0.1235 [0.1, 0.2]"
    assert str(Number(name="f1", value=2048)) == "2048"
    assert str(Number(name="f1", value=None, reason="no positives")) == "not defined: no positives"


def test_a_result_is_what_its_json_says() -> None:
    result = StudyResult(
        study="probing",
        numbers=(
            Number(name="f1", value=0.5, low=0.4, high=0.6, better="higher", variant="k = 1"),
            Number(name="auc", value=None, reason="one class"),
            Number(name="zero", value=0.0),
        ),
        tables={"concepts": [{"concept": "keyword", "f1": None}]},
        curves={"features": {"k": [1, 2], "f1": [0.5, None]}},
        notes=("a note",),
        seconds=1.5,
    )
    assert StudyResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    assert result.values() == {"f1": 0.5, "auc": None, "zero": 0.0}
    assert result.with_notes(["a note", "another"]).notes == ("a note", "another")
    with pytest.raises(KeyError, match="probing has no number 'recall'; it has f1, auc, zero"):
        result["recall"]


def test_a_number_is_given_once() -> None:
    twice = (Number(name="f1", value=0.0), Number(name="f1", value=1.0))
    with pytest.raises(ValueError, match="probing gives f1 more than once"):
        StudyResult(study="probing", numbers=twice)


def test_failures_in_words() -> None:
    assert StudyResult.failed("core", ValueError("no tokens")).failure == "no tokens"
    assert StudyResult.failed("core", ZeroDivisionError("division by zero")).failure == (
        "ZeroDivisionError: division by zero"
    )
    assert StudyResult.failed("core", KeyError()).failure == "KeyError: KeyError"
