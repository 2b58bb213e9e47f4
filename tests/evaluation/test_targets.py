"""The four targets: their edges, and how they are said."""

from __future__ import annotations

import math

import pytest

from saescope.evaluation import TARGETS, Target, verdicts

BY_NAME = {target.name: target for target in TARGETS}


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("l0", 49.999, False),
        ("l0", 50, True),
        ("l0", 120.5, True),
        ("l0", 200, True),
        ("l0", 200.001, False),
        ("ce_loss_recovered", 0.96999, False),
        ("ce_loss_recovered", 0.97, True),
        ("ce_loss_recovered", 1.001, True),
        ("dead_share", 0, True),
        ("dead_share", 0.0499, True),
        ("dead_share", 0.05, False),
        ("dead_share", 1, False),
        ("explained_variance", 0.90, False),
        ("explained_variance", 0.90001, True),
        ("explained_variance", -3, False),
    ],
)
def test_edges(name: str, value: float, met: bool) -> None:
    assert BY_NAME[name].met(value) is met


@pytest.mark.parametrize("name", BY_NAME)
def test_an_undefined_number_meets_nothing(name: str) -> None:
    assert not BY_NAME[name].met(math.nan)


def test_in_words() -> None:
    assert {name: str(target) for name, target in BY_NAME.items()} == {
        "l0": "50 to 200",
        "ce_loss_recovered": "at least 0.97",
        "dead_share": "below 0.05",
        "explained_variance": "above 0.9",
    }
    assert str(Target("x", "X", low=0.5, low_included=False)) == "above 0.5"


def test_verdicts() -> None:
    found = verdicts({"l0": 64.0, "explained_variance": 0.85, "something_else": 1.0, "dead_share": 0.01})
    assert found == [
        {"name": "L0 (features per token)", "value": 64.0, "target": "50 to 200", "met": True},
        {"name": "dead features (share)", "value": 0.01, "target": "below 0.05", "met": True},
        {"name": "explained variance", "value": 0.85, "target": "above 0.9", "met": False},
    ]
    assert verdicts({}) == []


def test_a_number_that_is_not_defined_has_no_verdict() -> None:
    (row,) = verdicts({"ce_loss_recovered": float("nan")})
    assert row["met"] is None
