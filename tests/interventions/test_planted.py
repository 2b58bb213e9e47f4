"""The planted feature: whatever is asked, reading, ablating or steering, the answer is this one."""

from __future__ import annotations

import pytest
import torch
from tests.interventions.planted import make_planted

from saescope.interventions import Ablate, Add, Clamp, Intervention, Where, read_features
from saescope.interventions.effects import ablation_effects, greedy_ablation
from saescope.interventions.faithfulness import faithfulness_curve
from saescope.interventions.metrics import log_probability, logit, logit_difference, token_id


@pytest.fixture(scope="module")
def planted():
    return make_planted()


@pytest.fixture(scope="module")
def site(planted):
    return planted.site()


@pytest.fixture(scope="module")
def with_cause(planted):
    return planted.prompts(20, cause=True, seed=1)


@pytest.fixture(scope="module")
def without_cause(planted):
    return planted.prompts(20, cause=False, seed=1)


def share_of_effect(planted, ids, changes=()):
    """How often the effect is the model's first choice."""
    if changes:
        with Intervention(changes):
            logits = planted.model.logits(ids)
    else:
        logits = planted.model.logits(ids)
    return float((logits[:, -1].argmax(-1) == planted.effect_token).double().mean())


def test_the_cause_brings_the_effect(planted, with_cause, without_cause):
    assert share_of_effect(planted, with_cause) == 1
    assert share_of_effect(planted, without_cause) == 0
    assert token_id(planted.model, "fox") == planted.cause_token
    assert token_id(planted.model, "mole") == planted.effect_token


def test_texts_and_ids_are_the_same_prompts(planted, with_cause):
    encoded = planted.model.tokenizer(planted.texts(20, cause=True, seed=1), add_special_tokens=False)["input_ids"]
    assert encoded == with_cause.tolist()


def test_two_of_them_are_the_same_network(planted, with_cause):
    again = make_planted()
    assert (again.feature, again.random_features) == (planted.feature, planted.random_features)
    assert torch.equal(again.model.logits(with_cause), planted.model.logits(with_cause))
    double = make_planted(torch.float64)
    assert double.model.logits(with_cause).dtype == torch.float64


def test_reading_finds_it_where_the_cause_is_and_nowhere_else(planted, site, with_cause, without_cause):
    ids = torch.cat([with_cause, without_cause])
    (reading,) = read_features([site], ids)
    codes = reading.codes.to_dense().reshape(*ids.shape, -1)
    assert torch.equal(codes[..., planted.feature] > 0, ids == planted.cause_token)
    others = [feature for feature in range(site.dictionary.d_sae) if feature != planted.feature]
    agree = ((codes[..., others] > 0) == (ids == planted.cause_token)[..., None]).all(0).all(0)
    assert not bool(agree.any())
    assert len(reading.codes.to_dense().any(0).nonzero()) > 10  # it stands among distractors that fire


@pytest.mark.parametrize("kind", ["logit", "difference", "log-probability"])
def test_ablation_ranks_it_first(planted, site, with_cause, kind):
    effect = planted.effect_token
    metric = {
        "logit": logit(effect),
        "difference": logit_difference(effect, effect - 1),
        "log-probability": log_probability(effect),
    }[kind]
    found = ablation_effects(site, with_cause, metric)
    ranked = found.ranked()
    assert ranked[0].feature == planted.feature
    size = {node.feature: abs(float(value)) for node, value in zip(found.nodes, found.mean, strict=True)}
    assert size[planted.feature] > 10 * size[ranked[1].feature]
    assert float(found.mean[found.nodes.index(ranked[0])]) < -3


def test_ablating_it_takes_the_effect_away_and_ablating_others_does_not(planted, site, with_cause):
    assert share_of_effect(planted, with_cause, Ablate(site, planted.feature)) == 0
    for feature in planted.random_features:
        assert share_of_effect(planted, with_cause, Ablate(site, feature)) == 1


def test_greedy_ablation_takes_it_first(planted, site, with_cause):
    path = greedy_ablation(site, with_cause, logit(planted.effect_token), steps=2)
    assert path.nodes[0].feature == planted.feature
    assert float(path.share[1]) > 0.5


def test_it_is_a_faithful_circuit_by_itself(planted, site, with_cause):
    found = faithfulness_curve(site, with_cause, logit(planted.effect_token), order=[planted.feature])
    assert found.sizes == (0, 1)
    assert found.faithfulness == pytest.approx((0, 1), abs=0.02)
    assert found.completeness[1] < 0.5  # the words of the prompt hold the logit of the effect down, or up, a little
    random = faithfulness_curve(site, with_cause, logit(planted.effect_token), order=planted.random_features)
    assert abs(random.faithfulness[-1]) < 0.1


@pytest.mark.parametrize("change", [Add, Clamp])
def test_steering_brings_the_effect_and_random_features_do_not(planted, site, without_cause, change):
    assert share_of_effect(planted, without_cause, change(site, planted.feature, 1.0)) == 1
    as_strong = site.amount(planted.feature, 1.0, "max_activation")
    for feature in planted.random_features:
        assert share_of_effect(planted, without_cause, change(site, feature, as_strong, unit="activation")) == 0


def test_steering_where_a_word_is_does_it_only_in_texts_with_that_word(planted, site, without_cause):
    word = 3
    (reading,) = read_features([site], without_cause)
    codes = reading.codes.to_dense().reshape(*without_cause.shape, -1)
    there = without_cause == word
    (atom,) = [f for f in range(site.dictionary.d_sae) if torch.equal(codes[..., f] > 0.9, there)]
    change = Add(site, planted.feature, 1.0, positions=Where(site, atom, above=0.9))
    texts = there.any(1)
    assert 0 < int(texts.sum()) < len(texts)
    assert share_of_effect(planted, without_cause[texts], change) == 1
    assert share_of_effect(planted, without_cause[~texts], change) == 0
