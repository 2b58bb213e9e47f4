"""Gradient x activation: against finite differences in float64, with one site and several; and against a planted truth."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from tests.interventions.planted import make_planted
from transformers import OPTConfig, OPTForCausalLM

from saescope.interventions import Ablate, Intervention, Site
from saescope.interventions.attribution import direct_attribution, gradient_attribution, integrated_attribution
from saescope.interventions.metrics import cross_entropy, log_probability, logit, logit_difference
from saescope.models import LanguageModel

EARLIER, LATER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
STEP = 1e-5


@torch.no_grad()
def value_of(model, ids, metric, edits=()):
    """The metric with functions at module outputs, through plain hooks."""
    with ExitStack() as stack:
        for by_hand, path, function in edits:
            stack.enter_context(by_hand(model, path, function))
        return metric(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))


def slope_by_hand(model, by_hand, ids, metric, writes, position, more=()):
    """Central difference along directions ``{path: [d]}`` at one position, for each prompt ``[B]``."""

    def moved(size):
        def adding(direction):
            def function(x):
                x = x.clone()
                x[:, position] += size * direction
                return x

            return function

        edits = [(by_hand, path, adding(direction)) for path, direction in writes.items()]
        return value_of(model, ids, metric, [*edits, *more])

    return (moved(STEP) - moved(-STEP)) / (2 * STEP)


def entry_of(contributions, prompt, position, feature):
    found = (
        (contributions.prompt == prompt) & (contributions.position == position) & (contributions.feature == feature)
    ).nonzero()
    assert len(found) == 1
    return float(contributions.contribution[found[0, 0]])


def some_entries(contributions, count=8):
    """Entries spread over prompts and positions."""
    for index in range(0, len(contributions), max(1, len(contributions) // count)):
        yield (
            int(contributions.prompt[index]),
            int(contributions.position[index]),
            int(contributions.feature[index]),
            float(contributions.activation[index]),
            float(contributions.contribution[index]),
        )


@pytest.mark.parametrize("kind", ["gpt2", "neox", "opt", "phi"])
@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu"])
def test_contributions_are_finite_differences(tiny_model, make_dictionary, blocks, by_hand, ids, kind, architecture):
    model = tiny_model(kind)
    settings = {"k": 5} if architecture == "topk" else {}
    dictionary = make_dictionary(architecture, **settings)
    path = f"{blocks(kind)}.1"
    metric = logit_difference(7, 9)
    site = Site(dictionary, model, hook_point=path)
    result = gradient_attribution(site, ids, metric)
    assert result.value.tolist() == pytest.approx(value_of(model, ids, metric).tolist(), abs=1e-6)
    x = model.read(ids, [path])[path]
    f = dictionary.encode(x).detach()
    (found,) = result.contributions
    assert len(found) == int((f != 0).sum())
    for prompt, position, feature, activation, contribution in some_entries(found):
        assert activation == pytest.approx(float(f[prompt, position, feature]))
        slope = slope_by_hand(model, by_hand, ids, metric, {path: dictionary.W_dec[feature]}, position)
        assert contribution == pytest.approx(activation * float(slope[prompt]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", ["gptj", "llama", "gemma2", "mixtral"])
def test_other_families_follow_the_gradient_of_the_plain_model(tiny_model, make_dictionary, blocks, ids, kind):
    """They compute a part in float32, too coarse for differences: a leaf at the hook point, times decoder rows."""
    model, path = tiny_model(kind, torch.float32), f"{blocks(kind)}.1"
    dictionary = make_dictionary("topk", k=5, dtype=torch.float32)
    (found,) = gradient_attribution(Site(dictionary, model, hook_point=path), ids, logit(7)).contributions
    leaf = model.read(ids, [path])[path].requires_grad_()
    value = model.logits(ids, edits={path: lambda _: leaf})[:, -1, 7].sum()
    (slope,) = torch.autograd.grad(value, leaf)
    wanted = (dictionary.encode(leaf) * (slope @ dictionary.W_dec.T)).detach()  # [B, T, d_sae]
    for prompt, position, feature, _, contribution in some_entries(found, 1000):
        assert contribution == pytest.approx(float(wanted[prompt, position, feature]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "metric", [log_probability([7, 9], position=-2), logit([7, 9]), cross_entropy], ids=["log_p", "logit", "ce"]
)
def test_any_metric_can_be_attributed(tiny_model, make_dictionary, by_hand, ids, metric):
    metric = metric(ids) if metric is cross_entropy else metric
    model, dictionary, path = tiny_model("gpt2"), make_dictionary(), "transformer.h.1"
    (found,) = gradient_attribution(Site(dictionary, model, hook_point=path), ids, metric).contributions
    for prompt, position, feature, activation, contribution in some_entries(found, 5):
        slope = slope_by_hand(model, by_hand, ids, metric, {path: dictionary.W_dec[feature]}, position)
        assert contribution == pytest.approx(activation * float(slope[prompt]), rel=1e-5, abs=1e-7)


def test_with_several_sites_the_default_is_each_ones_total_effect(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    first = Site(make_dictionary(), model, hook_point=EARLIER)
    second = Site(make_dictionary("topk", k=5), model, hook_point=LATER)
    together = gradient_attribution([first, second], ids, logit(7)).contributions
    for site, found in zip((first, second), together, strict=True):
        (alone,) = gradient_attribution(site, ids, logit(7)).contributions
        assert found.site is site
        assert found.feature.tolist() == alone.feature.tolist()
        torch.testing.assert_close(found.contribution, alone.contribution, rtol=1e-9, atol=1e-10)


def test_with_frozen_errors_an_earlier_feature_acts_through_later_features_alone(
    tiny_model, make_dictionary, by_hand, ids
):
    model = tiny_model("gpt2")
    dictionaries = make_dictionary(), make_dictionary("topk", k=5)
    sites = [Site(d, model, hook_point=place) for d, place in zip(dictionaries, (EARLIER, LATER), strict=True)]
    first, _ = gradient_attribution(sites, ids, logit(7), error_term="frozen").contributions
    later = dictionaries[1]
    clean = model.read(ids, [LATER])[LATER]
    error = clean - later(clean)
    rebuilding = (by_hand, "transformer.h.1", lambda x: later(x) + error)  # the error of the clean pass, held
    differs = 0
    (total,) = gradient_attribution(sites[0], ids, logit(7)).contributions
    for prompt, position, feature, activation, contribution in some_entries(first):
        row = {"transformer.h.0": dictionaries[0].W_dec[feature]}
        slope = slope_by_hand(model, by_hand, ids, logit(7), row, position, more=[rebuilding])
        assert contribution == pytest.approx(activation * float(slope[prompt]), rel=1e-5, abs=1e-7)
        differs += abs(contribution - entry_of(total, prompt, position, feature)) > 1e-3
    assert differs


def test_a_transcoder_counts_what_it_writes(tiny_model, make_dictionary, by_hand, ids):
    model, dictionary = tiny_model("gpt2"), make_dictionary("skip_transcoder", d_out=16)
    site = Site(dictionary, model, hook_point="blocks.1.hook_mlp_in", hook_point_out="blocks.1.hook_mlp_out")
    (found,) = gradient_attribution(site, ids, logit(7)).contributions
    for prompt, position, feature, activation, contribution in some_entries(found):
        row = {"transformer.h.1.mlp": dictionary.W_dec[feature]}
        slope = slope_by_hand(model, by_hand, ids, logit(7), row, position)
        assert contribution == pytest.approx(activation * float(slope[prompt]), rel=1e-5, abs=1e-7)


def test_a_crosscoder_counts_what_it_writes_at_all_its_places(tiny_model, make_dictionary, by_hand, ids):
    model = tiny_model("gpt2")
    dictionary = make_dictionary("relu_crosscoder", d_in=32, source_widths=(16, 16))
    (found,) = gradient_attribution(
        Site(dictionary, model, hook_point=f"{EARLIER}, {LATER}"), ids, logit(7)
    ).contributions
    for prompt, position, feature, activation, contribution in some_entries(found):
        first, second = dictionary.W_dec[feature].split(16)
        row = {"transformer.h.0": first, "transformer.h.1": second}
        slope = slope_by_hand(model, by_hand, ids, logit(7), row, position)
        assert contribution == pytest.approx(activation * float(slope[prompt]), rel=1e-5, abs=1e-7)


def test_a_padded_batch_is_its_prompts_one_by_one(tiny_model, make_dictionary):
    model = tiny_model("gpt2")
    site = Site(make_dictionary("topk", k=5), model, hook_point=LATER)
    long, short = [5, 9, 13, 2, 7], [21, 22, 23]
    ids = torch.tensor([long, [1, 1, *short]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    for attribute in (gradient_attribution, integrated_attribution):
        (found,) = attribute(site, ids, logit(4), attention_mask=mask).contributions
        for row, prompt in enumerate((long, short)):
            (alone,) = attribute(site, torch.tensor([prompt]), logit(4)).contributions
            mine = found.of_prompt(row)
            assert mine.feature.tolist() == alone.feature.tolist()
            assert (mine.position - (5 - len(prompt))).tolist() == alone.position.tolist()
            torch.testing.assert_close(mine.contribution, alone.contribution, rtol=1e-6, atol=1e-9)


def test_special_tokens_count_only_where_asked_for(tiny_model, make_dictionary):
    model = tiny_model("gpt2")
    site = Site(make_dictionary(), model, hook_point=LATER)
    ids = torch.tensor([[0, 5, 9]])
    (without,) = gradient_attribution(site, ids, logit(4)).contributions
    (whole,) = gradient_attribution(site, ids, logit(4), special_tokens=True).contributions
    assert set(without.position.tolist()) == {1, 2}
    assert set(whole.position.tolist()) == {0, 1, 2}
    assert float(whole.contribution[whole.position == 0].abs().max()) > 1e-6
    (path,) = integrated_attribution(site, ids, logit(4)).contributions
    assert set(path.position.tolist()) == {1, 2}


def test_a_baseline_is_what_features_are_compared_with(tiny_model, make_dictionary, ids):
    model, dictionary = tiny_model("gpt2"), make_dictionary()
    site = Site(dictionary, model, hook_point=LATER)
    baseline = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (plain,) = gradient_attribution(site, ids, logit(7)).contributions
    (moved,) = gradient_attribution(site, ids, logit(7), baselines=baseline).contributions
    assert len(moved) == 2 * 7 * 24  # features that do not fire are below their mean too
    for prompt, position, feature, activation, contribution in some_entries(plain, 30):
        slope = contribution / activation
        wanted = (activation - float(baseline[feature])) * slope
        assert entry_of(moved, prompt, position, feature) == pytest.approx(wanted, rel=1e-9)


def test_in_a_linear_model_all_methods_are_exact(make_dictionary, ids):
    """After the last block of a model without a final norm nothing bends."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=32, _remove_final_layer_norm=True, pad_token_id=1, init_std=0.3,
    )  # fmt: skip
    model = LanguageModel(OPTForCausalLM(config).double(), None, "early-opt")
    site = Site(make_dictionary("topk", k=5), model, hook_point="blocks.1.hook_resid_post")
    metric = logit_difference(7, 9)
    direct = direct_attribution(site, ids, metric).contributions.of_features()
    gradient = gradient_attribution(site, ids, metric).contributions[0].of_features()
    integrated = integrated_attribution(site, ids, metric).contributions[0].of_features()
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    before = metric(model.logits(ids), everywhere)
    for feature in range(24):
        with Intervention(Ablate(site, feature)):
            lost = before - metric(model.logits(ids), everywhere)
        for found in (direct, gradient, integrated):
            torch.testing.assert_close(found[:, feature], lost, rtol=0, atol=1e-10)
    assert float(direct.abs().max()) > 0.01


def test_the_planted_feature_is_found():
    """By both methods; how much it does is seen by the path alone, because the norm after it saturates."""
    planted = make_planted()
    site, metric = planted.site(), logit(planted.effect_token)
    ids = planted.prompts(6, cause=True)
    (integrated,) = integrated_attribution(site, ids, metric).contributions
    (gradient,) = gradient_attribution(site, ids, metric).contributions
    before = metric(site.model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    with Intervention(Ablate(site, planted.feature)):
        lost = before - metric(site.model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    for prompt in range(6):
        strongest = integrated.of_prompt(prompt).strongest(1)
        mine = gradient.of_prompt(prompt)
        most = int(mine.contribution.argmax())
        for feature, position in (
            (int(strongest.feature[0]), int(strongest.position[0])),
            (int(mine.feature[most]), int(mine.position[most])),
        ):
            assert feature == planted.feature
            assert int(ids[prompt, position]) == planted.cause_token
        assert float(strongest.contribution[0]) == pytest.approx(float(lost[prompt]), rel=0.5)
        assert float(mine.contribution[most]) < 0.1 * float(lost[prompt])
    (found,) = gradient_attribution(site, planted.prompts(6, cause=False), metric).contributions
    assert planted.feature not in found.feature.tolist()
    # straight to the logit it does nothing: its effect comes through the second block's attention
    direct = direct_attribution(site, ids, metric).contributions
    assert planted.feature not in direct.strongest(6).feature.tolist()


def test_the_model_is_left_as_it_was(tiny_model, make_dictionary, ids, count_hooks):
    model = tiny_model("gpt2")
    site = Site(make_dictionary(), model, hook_point=LATER)
    with torch.no_grad():  # gradients are asked for inside, whatever the caller does
        gradient_attribution(site, ids, logit(7))
        assert not torch.is_grad_enabled()
    assert count_hooks(model) == 0
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.module.parameters())
    assert all(parameter.grad is None for parameter in site.dictionary.parameters())


def test_a_metric_that_no_feature_reaches_has_contributions_of_zero(tiny_model, make_dictionary, ids):
    """The logit after the first token does not see the hook point at later tokens."""
    model = tiny_model("gpt2")
    (found,) = gradient_attribution(
        Site(make_dictionary(), model, hook_point=LATER), ids, logit(7, position=-7)
    ).contributions
    assert float(found.contribution[found.position > 0].abs().max()) == 0
    assert float(found.contribution[found.position == 0].abs().max()) > 0


# What is refused


def test_what_does_not_fit_is_refused(tiny_model, make_dictionary, ids):
    model, other = tiny_model("gpt2"), tiny_model("opt")
    site = Site(make_dictionary(), model, hook_point=LATER)
    stranger = Site(make_dictionary(), other, hook_point=LATER)
    refused = {
        "not nothing": lambda: gradient_attribution([], ids, logit(7)),
        "not str": lambda: gradient_attribution(["a"], ids, logit(7)),
        "named twice": lambda: gradient_attribution([site, site], ids, logit(7)),
        "different models": lambda: gradient_attribution([site, stranger], ids, logit(7)),
        "not among the sites": lambda: gradient_attribution(site, ids, logit(7), baselines={stranger: torch.zeros(24)}),
        r"of shape \(24,\)": lambda: gradient_attribution(site, ids, logit(7), baselines=torch.zeros(23)),
        "by site": lambda: gradient_attribution(
            [site, Site(make_dictionary(), model, hook_point=EARLIER)], ids, logit(7), baselines=torch.zeros(24)
        ),
        'True or "frozen"': lambda: gradient_attribution(site, ids, logit(7), error_term=False),
        "not in the vocabulary": lambda: gradient_attribution(site, ids, logit(40)),
        "longer than the 32": lambda: gradient_attribution(site, torch.full((1, 33), 5), logit(7)),
        "no position -9": lambda: gradient_attribution(site, ids, logit(7, position=-9)),
    }
    for words, call in refused.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="no hook point"):
        Site(make_dictionary(), model, hook_point="model.layers.1")
