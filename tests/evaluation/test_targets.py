"""The four targets: their edges, and how they are said."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields

import pytest

from saescope.evaluation import TARGETS, Target, verdicts
from saescope.evaluation.reporting.report import EvaluatedDictionary
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.targets import target_rows

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
    explained = BY_NAME["explained_variance"]
    assert found == [
        {"name": "L0 (features per token)", "value": 64.0, "target": "50 to 200", "met": True, "advice": []},
        {"name": "dead features (share)", "value": 0.01, "target": "below 0.05", "met": True, "advice": []},
        {"name": explained.title, "value": 0.85, "target": "above 0.9", "met": False, "advice": [*explained.if_below]},
    ]
    assert verdicts({}) == []


def test_a_number_that_is_not_defined_has_no_verdict() -> None:
    (row,) = verdicts({"ce_loss_recovered": float("nan")})
    assert row["met"] is None


def a_dictionary(*numbers: Number, study: str = "core", **more: StudyResult) -> EvaluatedDictionary:
    studies = {**more, study: StudyResult(study=study, numbers=numbers)}
    return EvaluatedDictionary(name="a", architecture="topk", d_sae=64, studies=studies)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("l0", 12.0, "Let more features fire"),
        ("l0", 300.0, "Let fewer features fire"),
        ("ce_loss_recovered", 0.9, "Train on more"),
        ("dead_share", 0.2, "AuxK"),
        ("explained_variance", 0.9, "larger `d_sae`"),
    ],
)
def test_a_missed_target_says_what_to_try(name: str, value: float, words: str) -> None:
    advice = BY_NAME[name].advice(value)
    assert words in advice[0]
    assert 1 <= len(advice) <= 2
    assert all(sentence.endswith(".") for sentence in advice)


@pytest.mark.parametrize(
    ("name", "value"), [("l0", 50), ("l0", 200), ("dead_share", 0), ("explained_variance", math.nan)]
)
def test_no_advice_where_a_target_is_met_or_unknown(name: str, value: float) -> None:
    assert BY_NAME[name].advice(value) == ()


def test_every_setting_that_the_advice_names_exists() -> None:
    from saescope.dictionaries import BatchTopK, Gated, JumpReLU, ReLU, TopK
    from saescope.training import TrainingConfig
    from saescope.training.losses import GhostGradients, loss_config_type, named_term

    architectures = (TopK, BatchTopK, ReLU, Gated, JumpReLU)
    known = {field.name for field in fields(TrainingConfig)}
    for architecture in architectures:
        known |= {field.name for field in fields(architecture.Config)}
        known |= {field.name for field in fields(loss_config_type(architecture))}
    assert isinstance(named_term("ghost_gradients"), GhostGradients)
    known |= {"ghost_gradients", "saescope advise-l0", "p_end = 0.2"}
    quoted = {
        name
        for target in TARGETS
        for text in (*target.if_below, *target.if_above)
        for name in re.findall("`(.+?)`", text)
    }
    assert quoted - known == set()
    assert len(quoted) > 10
    # each where the sentence says it is
    assert "p_end" in {field.name for field in fields(loss_config_type(ReLU))}
    assert "target_l0" in {field.name for field in fields(loss_config_type(JumpReLU))}
    assert "aux_coefficient" in {field.name for field in fields(loss_config_type(BatchTopK))}


def test_rows_of_a_dictionary_have_all_four_with_intervals_and_reasons() -> None:
    numbers = (
        Number(name="l0", value=30.0, low=29.0, high=31.0),
        Number(name="ce_loss_recovered", value=None, reason="the ablation does no harm"),
        Number(name="dead_share", value=0.01),
    )
    elsewhere = StudyResult(study="l0", numbers=(Number(name="l0", value=77.0),))
    l0, recovered, dead, explained = target_rows(a_dictionary(*numbers, l0=elsewhere))
    assert (l0["value"], l0["low"], l0["high"], l0["met"]) == (30.0, 29.0, 31.0, False)  # that of core
    assert l0["advice"] == list(BY_NAME["l0"].if_below)
    assert (recovered["value"], recovered["met"], recovered["reason"]) == (None, None, "the ablation does no harm")
    assert recovered["advice"] == []
    assert (dead["met"], dead["advice"]) == (True, [])
    assert "note" not in dead
    assert (explained["value"], explained["reason"]) == (None, "it was not measured")
    json.dumps([l0, recovered, dead, explained], allow_nan=False)


def test_silent_features_stand_in_for_dead_ones_and_say_so() -> None:
    dead = target_rows(a_dictionary(Number(name="silent_share", value=0.25)))[2]
    assert (dead["value"], dead["met"]) == (0.25, False)
    assert "silent in this evaluation" in dead["note"]
