"""The strength with a wanted KL: it has it when measured without a cache, and where there is none the search says so."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import saescope as ss
from saescope.interventions import Add, Clamp, Site
from saescope.interventions.generation import generate
from saescope.interventions.side_by_side import side_by_side
from saescope.interventions.strength import _search, strength_for_kl
from saescope.models import LanguageModel

PROMPTS = ["def alpha(x", "return", "    return x + 7\ndef beta(x, mu)"]
HOW = {"max_new_tokens": 6, "seed": 5, "stop_at_end": False}


@pytest.fixture(scope="module")
def double(tiny):
    return LanguageModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer, "tiny64")


@pytest.fixture(scope="module")
def site(double):
    torch.manual_seed(1)
    dictionary = ss.ReLU(ss.ReLU.Config(d_in=16, d_sae=24)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.normal_(std=0.5)
        dictionary.W_dec[4] = 0  # a feature that writes nothing
    return Site(dictionary, double, hook_point="blocks.1.hook_resid_post", max_activations={3: 0.5})


@torch.no_grad()
def measured(model, site, feature, activation, written):
    """KL(steered || plain) per new token of texts steered at every token, pass by pass over whole texts."""
    kls = []
    for prompt, new in zip(written.prompt_ids, written.new_ids, strict=True):
        for place in range(len(new)):
            ids = torch.tensor([prompt + new[:place]])
            q = model.module(ids, use_cache=False).logits[0, -1].log_softmax(-1)
            block = model.module.transformer.h[1]
            plain_forward = block.forward

            def forward(*args, plain_forward=plain_forward, **kwargs):
                output = plain_forward(*args, **kwargs)
                moved = activation * site.dictionary.direction(feature)
                return (output[0] + moved, *output[1:]) if isinstance(output, tuple) else output + moved

            block.forward = forward
            p = model.module(ids, use_cache=False).logits[0, -1].log_softmax(-1)
            del block.forward
            kls.append(math.fsum((p.exp() * (p - q)).tolist()))
    return math.fsum(kls) / len(kls)


@pytest.mark.parametrize(("kl", "start", "tolerance"), [(0.3, 1.0, 0.05), (1.0, 40.0, 0.05), (0.3, -0.5, 0.02)])
def test_the_strength_found_has_the_kl_when_measured_by_hand(double, site, kl, start, tolerance):
    def changes_of(strength):
        return Add(site, 3, strength, special_tokens=True)

    found = strength_for_kl(double, PROMPTS, changes_of, kl, start=start, tolerance=tolerance, **HOW)
    assert found.met, found.reason
    assert found.reason == ""
    assert math.copysign(1, found.strength) == math.copysign(1, start)
    written = generate(double, PROMPTS, changes=changes_of(found.strength), **HOW)
    by_hand = measured(double, site, 3, 0.5 * found.strength, written)
    assert by_hand == pytest.approx(found.kl, abs=1e-9)
    assert abs(by_hand - kl) <= tolerance * kl
    assert side_by_side(double, PROMPTS, changes_of(found.strength), **HOW).kl_per_token == pytest.approx(found.kl)
    assert found.tried[0].strength == start
    assert (found.strength, found.kl) in [(each.strength, each.kl) for each in found.tried]
    assert len({each.strength for each in found.tried}) == len(found.tried)


def test_a_feature_that_writes_nothing_is_never_strong_enough(double, site):
    found = strength_for_kl(
        double, PROMPTS[0], lambda strength: Add(site, 4, strength, "activation"), 0.5, max_strength=100, **HOW
    )
    assert not found.met
    assert [each.strength for each in found.tried] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert (found.strength, found.kl) == (100, 0)
    assert "a KL of 0.5 was not reached up to strength 100: the largest is 0, at strength" in found.reason


def test_changes_that_move_the_model_at_any_strength_are_said(double, site):
    """Strength 0 of a clamp is the feature removed."""

    def changes_of(strength):
        return [Add(site, 3, 4.0), Clamp(site, 5, strength, "activation")]

    found = strength_for_kl(double, PROMPTS[0], changes_of, 1e-6, **HOW)
    assert not found.met
    assert found.kl == min(each.kl for each in found.tried) > 1e-6
    assert "the changes move the model also where their strength is nearly 0" in found.reason


def test_what_the_first_strength_is_refused_for_is_raised(double, site):
    with pytest.raises(ValueError, match="reads at most 32"):
        strength_for_kl(double, [[5] * 40], lambda strength: Add(site, 3, strength))
    with pytest.raises(ValueError, match="out of range"):
        strength_for_kl(double, "x", lambda strength: Add(site, 99, strength), **HOW)


def test_later_strengths_that_are_refused_count_as_too_strong(double, site):
    def changes_of(strength):
        if strength > 3:
            raise ValueError("no more than 3 here")
        return Add(site, 3, strength / 100)

    found = strength_for_kl(double, PROMPTS[0], changes_of, 2.0, **HOW)
    assert not found.met
    assert 2.99 < found.strength <= 3
    assert len(found.tried) <= 40
    assert "no more than 3 here" in found.reason
    assert [each.kl for each in found.tried if each.refused] == [math.inf] * sum(bool(e.refused) for e in found.tried)


def search(kl_at, wanted=1.0, tolerance=0.05, start=1.0, max_strength=1e4, max_trials=40):
    return _search(kl_at, wanted, tolerance, start, max_strength, max_trials)


@pytest.mark.parametrize("power", [0.3, 1, 4])
@pytest.mark.parametrize("start", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize("tolerance", [0.2, 1e-3])
def test_a_smooth_curve_is_met_from_anywhere(power, start, tolerance):
    found = search(lambda strength: (strength / 7) ** power, 2.0, tolerance, start)
    assert found.met
    assert found.kl == (found.strength / 7) ** power == pytest.approx(2.0, rel=tolerance)
    assert found.is_monotone
    assert not found.tried[-1].refused


def test_a_curve_that_goes_up_and_down_is_met_and_said_not_to_be_monotone():
    def kl_at(strength):
        return 0.9 * strength * (1 + 0.8 * math.sin(5 * strength))

    found = search(kl_at, 3.0, 0.01)
    assert found.met
    assert kl_at(found.strength) == pytest.approx(3.0, rel=0.01)
    assert not search(lambda strength: {1: 0.5, 2: 0.2}.get(strength, 1.0)).is_monotone


def test_a_jump_over_the_wanted_kl_is_said_with_both_sides():
    found = search(lambda strength: 0.4 if strength < math.pi else 1.7)
    assert not found.met
    assert found.kl == 0.4
    assert any(0 < math.pi - each.strength < 1e-3 for each in found.tried)
    assert any(0 < each.strength - math.pi < 1e-3 for each in found.tried)
    assert "no strength with a KL of 1 was found: the nearest are 0.4 at strength " in found.reason
    assert " and 1.7 at " in found.reason


def test_behind_a_jump_another_crossing_is_found():
    """A line meets 1 at 3.8, and everywhere else the KL jumps: as it is where every strength writes another text."""

    def kl_at(strength):
        return 0.4 if strength < math.pi else strength - 2.8 if 3.7 < strength < 3.9 else 1.7

    found = search(kl_at, 1.0, 0.02)
    assert found.met
    assert found.strength == pytest.approx(3.8, abs=0.02)
    assert not found.is_monotone


def test_no_more_strengths_are_tried_than_allowed():
    for curve in (lambda strength: 0.0, lambda strength: 1e9, lambda strength: 0.4 if strength < math.pi else 1.7):
        found = search(curve, max_trials=5)
        assert len(found.tried) == 5
        assert not found.met
        assert found.reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kl": 0.0}, "the wanted KL is above 0"),
        ({"kl": math.inf}, "the wanted KL is above 0"),
        ({"kl": math.nan}, "the wanted KL is above 0"),
        ({"tolerance": 0.0}, "the tolerance is a share"),
        ({"tolerance": 1.0}, "the tolerance is a share"),
        ({"start": 0.0}, "the search starts from a finite strength other than 0"),
        ({"start": math.nan}, "the search starts from"),
        ({"max_strength": 0.5}, "max_strength is finite and at least the start's 1"),
        ({"max_trials": 0}, "max_trials is at least 1"),
    ],
    ids=str,
)
def test_a_search_for_nothing_is_refused(double, site, settings, words):
    with pytest.raises(ValueError, match=words):
        strength_for_kl(double, "x", lambda strength: Add(site, 3, strength), **settings, **HOW)
