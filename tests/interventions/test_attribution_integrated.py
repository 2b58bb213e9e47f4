"""Integrated gradients: completeness, and the integral by hand; and attributions against exact ablation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.interventions.planted import make_planted

from saescope.interventions import Ablate, Intervention, Site
from saescope.interventions.attribution import (
    compare_with_ablation,
    gradient_attribution,
    integrated_attribution,
)
from saescope.interventions.metrics import log_probability, logit, logit_difference

EARLIER, LATER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def without(model, ids, metric, changes):
    with Intervention(changes):
        return metric(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))


def everything(site):
    return Ablate(site, list(range(site.dictionary.d_sae)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "neox"])
@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu"])
def test_contributions_add_up_to_what_ablating_all_does(tiny_model, make_dictionary, ids, kind, architecture):
    model = tiny_model(kind)
    site = Site(make_dictionary(architecture, **({"k": 5} if architecture == "topk" else {})), model, hook_point=LATER)
    metric = logit_difference(7, 9)
    found = integrated_attribution(site, ids, metric)
    (completeness,) = found.completeness
    lost = metric(model.logits(ids), torch.ones_like(ids, dtype=torch.bool)) - without(
        model, ids, metric, everything(site)
    )
    torch.testing.assert_close(completeness.difference, lost, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.contributions[0].totals(), completeness.total, rtol=1e-9, atol=1e-12)
    assert found.is_complete
    share = (found.contributions[0].totals() - lost).abs() / lost.abs()
    assert float(share.max()) <= 0.01 + 1e-4
    assert completeness.gap.tolist() == pytest.approx(share.tolist(), abs=1e-4)
    # and the gradient does not, so that the path is no luxury
    assert float((gradient_attribution(site, ids, metric).contributions[0].totals() - lost).abs().max()) > 0.01


def test_each_contribution_is_the_integral_by_hand(tiny_model, make_dictionary, ids):
    """A midpoint sum of plain gradients at a leaf that is put in the place of the activation."""
    model, dictionary = tiny_model("gpt2"), make_dictionary("topk", k=5)
    (found,) = integrated_attribution(
        Site(dictionary, model, hook_point=LATER), ids, logit(7), num_steps=32
    ).contributions
    x = model.read(ids, [LATER])[LATER]
    f = dictionary.encode(x).detach()
    wanted, steps = torch.zeros_like(f), 400
    for step in range(steps):
        codes = ((step + 0.5) / steps * f).requires_grad_()
        value = model.logits(ids, edits={LATER: lambda old, codes=codes: old + (codes - f) @ dictionary.W_dec.detach()})
        (slope,) = torch.autograd.grad(value[:, -1, 7].sum(), codes)
        wanted += f * slope / steps
    assert len(found) == int((f != 0).sum())
    got = torch.zeros_like(f).index_put((found.prompt, found.position, found.feature), found.contribution)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_points_are_doubled_until_the_sum_is_complete_and_it_is_said_where_it_is_not(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    site = Site(make_dictionary(), model, hook_point=EARLIER)
    doubled = integrated_attribution(site, ids, logit(7), num_steps=1, tolerance=1e-3)
    assert doubled.is_complete
    assert doubled.completeness[0].num_steps in (2, 4, 8, 16, 32, 64, 128, 256)
    assert float(doubled.completeness[0].gap.max()) <= 1e-3
    single = integrated_attribution(site, ids, logit(7), num_steps=1, max_steps=1)
    assert not single.is_complete
    assert single.completeness[0].num_steps == 1
    assert float(single.completeness[0].gap.max()) > 0.01


def test_several_sites_each_on_its_own_path(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    sites = [Site(make_dictionary("topk", k=5), model, hook_point=place) for place in (EARLIER, LATER)]
    found = integrated_attribution(sites, ids, logit(7))
    assert [each.sites for each in found.completeness] == [(sites[0],), (sites[1],)]
    assert found.is_complete
    for site, mine in zip(sites, found.contributions, strict=True):
        (alone,) = integrated_attribution(site, ids, logit(7)).contributions
        torch.testing.assert_close(mine.contribution, alone.contribution)


def test_several_sites_on_one_path_add_up_to_ablating_all_at_all(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    sites = [Site(make_dictionary("relu"), model, hook_point=place) for place in (EARLIER, LATER)]
    found = integrated_attribution(sites, ids, logit(7), together=True)
    (completeness,) = found.completeness
    before = logit(7)(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    lost = before - without(model, ids, logit(7), [everything(site) for site in sites])
    torch.testing.assert_close(completeness.difference, lost, rtol=1e-9, atol=1e-9)
    total = sum(each.totals() for each in found.contributions)
    assert found.is_complete
    assert float(((total - lost) / lost).abs().max()) <= 0.01
    assert all(float(each.contribution.abs().max()) > 1e-3 for each in found.contributions)


def test_encoders_that_jump_on_a_common_path_are_told_on(tiny_model, make_dictionary, ids):
    """Where they are not complete the result says so, with a gap that is the true one."""
    model = tiny_model("gpt2")
    sites = [Site(make_dictionary("topk", k=5), model, hook_point=place) for place in (EARLIER, LATER)]
    found = integrated_attribution(sites, ids, logit(7), together=True, max_steps=32)
    before = logit(7)(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    lost = before - without(model, ids, logit(7), [everything(site) for site in sites])
    missed = (sum(each.totals() for each in found.contributions) - lost).abs() / lost.abs()
    assert found.completeness[0].gap.tolist() == pytest.approx(missed.tolist(), rel=1e-6)
    assert found.is_complete == bool((missed <= 0.01).all())
    assert not found.is_complete


@pytest.mark.parametrize("kind", ["skip_transcoder", "relu_crosscoder"])
def test_other_kinds_of_dictionaries(tiny_model, make_dictionary, ids, kind):
    model = tiny_model("gpt2")
    if kind == "relu_crosscoder":
        dictionary = make_dictionary(kind, d_in=32, source_widths=(16, 16))
        site = Site(dictionary, model, hook_point=f"{EARLIER}, {LATER}")
    else:
        site = Site(
            make_dictionary(kind, d_out=16),
            model,
            hook_point="blocks.1.hook_mlp_in",
            hook_point_out="blocks.1.hook_mlp_out",
        )
    found = integrated_attribution(site, ids, logit(7))
    before = logit(7)(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    lost = before - without(model, ids, logit(7), everything(site))
    assert found.is_complete
    assert found.contributions[0].totals().tolist() == pytest.approx(lost.tolist(), rel=0.011)


def test_from_mean_activations(tiny_model, make_dictionary, ids):
    model, dictionary = tiny_model("gpt2"), make_dictionary()
    site = Site(dictionary, model, hook_point=LATER)
    x = model.read(ids, [LATER])[LATER]
    f = dictionary.encode(x).detach()
    mean = f.flatten(0, 1).mean(0)
    found = integrated_attribution(site, ids, logit(7), baselines=mean)
    moved = model.logits(ids, edits={LATER: lambda old: old + (mean - f) @ dictionary.W_dec})[:, -1, 7].detach()
    lost = model.logits(ids)[:, -1, 7] - moved
    assert found.completeness[0].removed.tolist() == pytest.approx(moved.tolist())
    assert found.is_complete
    assert found.contributions[0].totals().tolist() == pytest.approx(lost.tolist(), rel=0.011)


def test_wrong_numbers_are_refused(tiny_model, make_dictionary, ids):
    site = Site(make_dictionary(), tiny_model("gpt2"), hook_point=LATER)
    with pytest.raises(ValueError, match="num_steps"):
        integrated_attribution(site, ids, logit(7), num_steps=0)
    with pytest.raises(ValueError, match="num_steps"):
        integrated_attribution(site, ids, logit(7), num_steps=512)
    with pytest.raises(ValueError, match="tolerance"):
        integrated_attribution(site, ids, logit(7), tolerance=0)


# Against exact ablation


def by_hand(site, ids, metric, attribution, num_top):
    """Rank correlation, and the effects of ablating the top features and all, with one pass for each."""
    model, everywhere = site.model, torch.ones_like(ids, dtype=torch.bool)
    before = float(metric(model.logits(ids), everywhere)[0])
    f = site.dictionary.encode(model.read(ids, [str(site)])[str(site)])
    active = (f != 0).any(1)[0].nonzero()[:, 0].tolist()
    guessed = attribution.of_features()[0]
    lost = [before - float(without(model, ids, metric, Ablate(site, i))[0]) for i in active]
    ranked = sorted(active, key=lambda i: -float(guessed[i]))[:num_top]
    exact = [active[i] for i in np.argsort(-np.array(lost), kind="stable")[:num_top]]
    return (
        spearmanr([float(guessed[i]) for i in active], lost).statistic,
        before - float(without(model, ids, metric, Ablate(site, ranked))[0]),
        before - float(without(model, ids, metric, everything(site))[0]),
        before - float(without(model, ids, metric, Ablate(site, exact))[0]),
    )


def test_agreement_is_what_single_passes_give(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    site = Site(make_dictionary("topk", k=5), model, hook_point=LATER)
    metric = logit(7)
    found = compare_with_ablation(site, list(ids), metric, num_top=3, batch_size=5)
    wanted = [
        by_hand(site, row[None], metric, gradient_attribution(site, row[None], metric).contributions[0], 3)
        for row in ids
    ]
    for mine, (correlation, top, everything_, exact) in zip(found.prompts, wanted, strict=True):
        assert mine.rank_correlation == pytest.approx(correlation)
        assert mine.effect_of_top == pytest.approx(top)
        assert mine.effect_of_all == pytest.approx(everything_)
        assert mine.effect_of_exact_top == pytest.approx(exact)
    correlation, top, all_of_it, exact = np.array(wanted).T
    assert found.rank_correlation.value == pytest.approx(correlation.mean())
    assert found.share_removed.value == pytest.approx(top.sum() / all_of_it.sum())
    assert found.share_removed_by_exact.value == pytest.approx(exact.sum() / all_of_it.sum())
    # of two prompts a drawn mean is one of three numbers, and the interval reaches from the lowest to the highest
    assert (found.rank_correlation.low, found.rank_correlation.high) == pytest.approx(sorted(correlation))
    assert compare_with_ablation(site, list(ids), metric, num_top=3) == found


def test_agreement_over_several_sites_and_other_methods(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    sites = [Site(make_dictionary("topk", k=5), model, hook_point=place) for place in (EARLIER, LATER)]
    metric = log_probability(7)
    found = compare_with_ablation(
        sites,
        list(ids),
        lambda _: metric,
        method=lambda *given: integrated_attribution(*given).contributions,
        num_top=1000,
    )
    before = metric(model.logits(ids), torch.ones_like(ids, dtype=torch.bool))
    lost = before - without(model, ids, metric, [everything(site) for site in sites])
    assert [each.effect_of_all for each in found.prompts] == pytest.approx(lost.tolist())
    assert [each.num_features for each in found.prompts] == [
        sum(int((s.dictionary.encode(model.read(row[None], [str(s)])[str(s)]) != 0).any(1).sum()) for s in sites)
        for row in ids
    ]


def test_on_the_planted_network_attribution_agrees_with_ablation():
    planted = make_planted()
    told = []
    found = compare_with_ablation(
        planted.site(),
        list(planted.prompts(5, cause=True)),
        logit(planted.effect_token),
        num_top=1,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(n, 5) for n in range(1, 6)]
    assert found.share_removed.value > 0.5
    assert found.share_removed.value == pytest.approx(found.share_removed_by_exact.value)
    assert abs(found.share_removed_at_random.value) < 0.1
    assert found.rank_correlation.value > 0.9
    assert found.rank_correlation.low is not None
    assert found.rank_correlation.low <= found.rank_correlation.value <= found.rank_correlation.high


def test_a_bad_attribution_is_seen_to_be_bad(tiny_model, make_dictionary, ids):
    """The check can fail: with all signs turned round the correlation is, too."""
    model = tiny_model("gpt2")
    site = Site(make_dictionary("topk", k=5), model, hook_point="blocks.2.hook_resid_post")

    def turned(sites, ids, metric):
        from dataclasses import replace

        (found,) = gradient_attribution(sites, ids, metric).contributions
        return [replace(found, contribution=-found.contribution)]

    good = compare_with_ablation(site, list(ids), logit(7), num_top=2)
    bad = compare_with_ablation(site, list(ids), logit(7), num_top=2, method=turned)
    assert good.rank_correlation.value == pytest.approx(-bad.rank_correlation.value)
    assert good.rank_correlation.value > 0.5
    assert bad.prompts[0].effect_of_top < good.prompts[0].effect_of_top


def test_a_share_of_no_effect_is_none(tiny_model, make_dictionary):
    """The logit after the first token does not see features at later tokens, and the first one is special."""
    model = tiny_model("gpt2")
    site = Site(make_dictionary("topk", k=5), model, hook_point=LATER)
    with pytest.raises(ValueError, match="nothing to rank"):
        compare_with_ablation(site, [[0, 5, 6]], logit(7, position=-3))
    one = compare_with_ablation(site, [[5, 6]], logit(7))
    assert one.share_removed.low is None
    from saescope.interventions.attribution.agreement import _estimate

    nothing = _estimate(np.zeros((3, 2)), lambda rows: rows[..., 0].sum(-1) / rows[..., 1].sum(-1), 0)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)


def test_comparisons_without_prompts_or_features_are_refused(tiny_model, make_dictionary):
    model = tiny_model("gpt2")
    site = Site(make_dictionary("topk", k=5), model, hook_point=LATER)
    with pytest.raises(ValueError, match="needs prompts"):
        compare_with_ablation(site, [], logit(7))
    with pytest.raises(ValueError, match="num_top"):
        compare_with_ablation(site, [[5, 6]], logit(7), num_top=0)
    with pytest.raises(ValueError, match="nothing to rank"):
        compare_with_ablation(site, [[0, 0]], logit(7))  # special tokens alone


@pytest.mark.slow
def test_on_the_bundled_model_ten_features_carry_half_of_the_effect():
    """A TopK dictionary of some seconds of training, 20 prompts of held-out text."""
    import saescope as ss

    model = ss.LanguageModel.load("bundled")
    hook_point = "blocks.1.hook_resid_post"
    shape = ss.WindowConfig(context_size=128, max_tokens=200_000)
    windows = ss.TokenWindows.build(ss.read_documents("bundled"), model.tokenizer, shape)
    stream = ss.ActivationStream(model, windows, [hook_point], batch_size_tokens=1024)
    dictionary = ss.TopK(ss.TopK.Config(d_in=256, d_sae=1024, k=32))
    ss.train(dictionary, stream.at(hook_point), ss.TrainingConfig(num_tokens=200_000, batch_size_tokens=1024, lr=2e-3))
    prompts = ss.TokenWindows.build(
        ss.read_documents("bundled", split="held_out"), model.tokenizer, ss.WindowConfig(context_size=24)
    )
    rows = np.linspace(0, len(prompts) - 1, 20).round().astype(int)
    found = compare_with_ablation(
        Site(dictionary, model, hook_point=hook_point),
        list(prompts.batch(rows).ids),
        lambda ids: logit_difference(*model.logits(ids)[0, -1].topk(2).indices.tolist()),
    )
    for estimate in (found.rank_correlation, found.share_removed, found.share_removed_at_random):
        print(f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})")
    assert found.rank_correlation.low > 0.8
    assert found.share_removed.value >= 0.5
    assert found.share_removed_at_random.value < 0.25
