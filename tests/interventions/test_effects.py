"""Batched removals against a plain loop of one intervention, one prompt and one forward pass at a time."""

from __future__ import annotations

import copy
from itertools import pairwise, product

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from saescope.dictionaries import architecture
from saescope.interventions import Ablate, Clamp, Intervention, Site, Splice, read_features
from saescope.interventions.effects import ablation_effects, greedy_ablation
from saescope.interventions.metrics import PerPrompt, cross_entropy, log_probability, logit, logit_difference
from saescope.interventions.removal import Node
from saescope.models import LanguageModel

NUM_FEATURES = 12
METRIC = logit_difference(PerPrompt([3, 5, 7]), 9)
GREEDY_METRIC = logit_difference(PerPrompt([3, 5]), 9)


def make(name, seed, **settings):
    cls = architecture(name)
    dictionary = cls(cls.Config(**{"d_in": 16, "d_sae": NUM_FEATURES, **settings}), seed=seed)
    with torch.no_grad():
        dictionary.b_dec.copy_(0.3 * torch.randn(dictionary.d_out, generator=torch.Generator().manual_seed(seed)))
    return dictionary.double()


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny model in float64, so that batched and single passes agree to the last digits."""
    return LanguageModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer, "tiny")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 320, (3, 6), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def padding():
    return torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def sites(model):
    """An SAE in the stream, a transcoder over the second MLP, and a crosscoder of two layers."""
    stream = Site(make("topk", 1, k=3), model, hook_point="blocks.0.hook_resid_post")
    mlp = Site(
        make("topk_transcoder", 2, k=3, d_out=16), model, hook_point="blocks.1.hook_mlp_in",
        hook_point_out="blocks.1.hook_mlp_out",
    )  # fmt: skip
    both = Site(
        make("relu_crosscoder", 3, d_in=32, source_widths=(16, 16)), model,
        hook_point=["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"],
    )  # fmt: skip
    return {"stream": stream, "mlp": mlp, "both": both}


def measured(model, ids, metric, changes, prompt, attention=None):
    """The metric of one prompt by itself."""
    row = torch.tensor([prompt])
    tokens = torch.ones_like(ids) if attention is None else attention
    mask = None if attention is None else attention[row]
    if changes:
        with Intervention(changes):
            logits = model.logits(ids[row], attention_mask=mask)
    else:
        logits = model.logits(ids[row], attention_mask=mask)
    return float(metric.of_rows(row)(logits.detach(), tokens[row]))


def firing(site, ids, attention=None, prompt=None):
    """The features that fire, of one prompt or of all."""
    (reading,) = read_features([site], ids, attention_mask=attention)
    codes = reading.codes.to_dense()
    rows = reading.tokens.nonzero()[:, 0]
    keep = torch.ones_like(rows, dtype=torch.bool) if prompt is None else rows == prompt
    return sorted((codes[keep] != 0).any(0).nonzero().flatten().tolist())


@pytest.mark.parametrize("place", ["stream", "mlp", "both"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_effects_are_those_of_a_plain_loop(model, ids, sites, place, batch_size):
    site = sites[place]
    found = ablation_effects(site, ids, METRIC, batch_size=batch_size)
    assert [node.feature for node in found.nodes] == firing(site, ids)
    assert all(node.site is site for node in found.nodes)
    for (row, node), prompt in product(enumerate(found.nodes), range(3)):
        before = measured(model, ids, METRIC, [], prompt)
        after = measured(model, ids, METRIC, [Ablate(site, node.feature)], prompt)
        assert float(found.before[prompt]) == pytest.approx(before, abs=1e-10)
        assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)
        assert float(found.effects[row, prompt]) == pytest.approx(after - before, abs=1e-10)
    torch.testing.assert_close(found.mean, found.effects.mean(1))
    assert float(found.effects.abs().max()) > 0.01
    assert found.conditions == "removed features are set to 0, the error term kept"


def test_only_pairs_that_fire_are_run(ids, sites):
    found = ablation_effects(sites["stream"], ids, METRIC)
    expected = {(feature, prompt) for prompt in range(3) for feature in firing(sites["stream"], ids, prompt=prompt)}
    listed = [(found.nodes[row].feature, prompt) for row, prompt in zip(found.row, found.prompt.tolist(), strict=True)]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    assert len(expected) < 3 * len(found.nodes)


@pytest.mark.parametrize("metric", [logit(4), log_probability([4, 6]), cross_entropy(torch.zeros(3, 6).long())])
def test_padding_and_other_metrics(model, ids, padding, sites, metric):
    if metric.name == "cross-entropy":
        metric = cross_entropy(ids)
    site = sites["stream"]
    found = ablation_effects(site, ids, metric, attention_mask=padding, batch_size=4)
    assert [node.feature for node in found.nodes] == firing(site, ids, padding)
    for (row, node), prompt in product(enumerate(found.nodes), range(3)):
        after = measured(model, ids, metric, [Ablate(site, node.feature)], prompt, padding)
        assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)


def test_several_sites_at_once_are_each_by_itself(ids, sites):
    together = ablation_effects([sites["mlp"], sites["stream"]], ids, METRIC, batch_size=7)
    for site in (sites["mlp"], sites["stream"]):
        alone = ablation_effects(site, ids, METRIC)
        rows = [row for row, node in enumerate(together.nodes) if node.site is site]
        assert [together.nodes[row] for row in rows] == list(alone.nodes)
        torch.testing.assert_close(together.effects[rows], alone.effects, rtol=0, atol=1e-10)


def test_features_that_are_named_keep_their_order(ids, sites):
    every = ablation_effects(sites["stream"], ids, METRIC)
    a, b = every.nodes[3].feature, every.nodes[0].feature
    found = ablation_effects(sites["stream"], ids, METRIC, features=[a, b])
    assert found.nodes == (every.nodes[3], every.nodes[0])
    torch.testing.assert_close(found.effects, every.effects[[3, 0]], rtol=0, atol=1e-10)
    named = ablation_effects(list(sites.values()), ids, METRIC, features=[Node(sites["stream"], a)])
    torch.testing.assert_close(named.effects, every.effects[[3]], rtol=0, atol=1e-10)
    as_tensor = ablation_effects(sites["stream"], ids, METRIC, features=torch.tensor([a, b]))
    assert as_tensor.nodes == found.nodes


@pytest.mark.parametrize("mask", [torch.tensor([0, 0, 1, 0, 1, 1]), torch.tensor([[1, 0, 0, 0, 1, 0]] * 3)])
def test_positions(model, ids, sites, mask):
    site, mask = sites["stream"], mask.bool()
    found = ablation_effects(site, ids, METRIC, positions=mask)
    (reading,) = read_features([site], ids)
    where = mask.expand(3, -1).flatten()
    assert [node.feature for node in found.nodes] == (
        reading.codes.to_dense()[where] != 0
    ).any(0).nonzero().flatten().tolist()  # fmt: skip
    for (row, node), prompt in product(enumerate(found.nodes), range(3)):
        change = Ablate(site, node.feature, positions=mask if mask.dim() == 1 else mask[:1])
        after = measured(model, ids, METRIC, [change], prompt)
        assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)


def test_a_mask_of_each_prompts_own_goes_with_its_prompt(model, ids, sites):
    mask = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1]]).bool()
    found = ablation_effects(sites["stream"], ids, METRIC, positions=mask, batch_size=5)
    for (row, node), prompt in product(enumerate(found.nodes), range(3)):
        change = Ablate(sites["stream"], node.feature, positions=mask[prompt])
        after = measured(model, ids, METRIC, [change], prompt)
        assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)


def test_special_tokens_are_left_alone_unless_asked_for(model, ids, sites):
    with_first = ids.clone()
    with_first[:, 0] = 0  # <|endoftext|>
    site = sites["stream"]
    for special in (False, True):
        found = ablation_effects(site, with_first, METRIC, special_tokens=special)
        for (row, node), prompt in product(enumerate(found.nodes), range(3)):
            after = measured(
                model, with_first, METRIC, [Ablate(site, node.feature, special_tokens=special)], prompt
            )  # fmt: skip
            assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)


def test_the_mean_as_baseline(model, ids, padding, sites):
    site = sites["stream"]
    (reading,) = read_features([site], ids, attention_mask=padding)
    means = reading.codes.to_dense().double().mean(0)
    found = ablation_effects(site, ids, METRIC, attention_mask=padding, baseline="mean")
    assert len(found.row) == 3 * len(found.nodes)  # also where it does not fire its mean is put
    for (row, node), prompt in product(enumerate(found.nodes), range(3)):
        change = Clamp(site, node.feature, float(means[node.feature]), unit="activation")
        after = measured(model, ids, METRIC, [change], prompt, padding)
        assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-9)
    given = ablation_effects(site, ids, METRIC, attention_mask=padding, baseline=means)
    torch.testing.assert_close(given.effects, found.effects, rtol=0, atol=1e-9)
    assert "their mean" in found.conditions
    assert "values that were given" in given.conditions


def without_error(site, gone):
    """A splice that leaves out the error and some features; written another way than that under test."""

    def codes(f):
        f = f.clone()
        f[..., list(gone)] = 0
        return f

    return Splice(site, error_term=False, codes=codes)


def test_without_the_error_term_it_is_missing_in_all_passes(model, ids, sites):
    stream, mlp = sites["stream"], sites["mlp"]
    found = ablation_effects([stream, mlp], ids, METRIC, error_term=False, batch_size=4)
    assert "without the error term, in all passes" in found.conditions
    seen = {}
    spy = Splice(mlp, error_term=False, codes=lambda f: seen.setdefault("f", f))
    with Intervention([Splice(stream, error_term=False), spy]):
        model.logits(ids)
    features = [node.feature for node in found.nodes if node.site is mlp]
    assert features == (seen["f"] != 0).flatten(0, 1).any(0).nonzero().flatten().tolist()
    for prompt in range(3):
        base = [Splice(stream, error_term=False), Splice(mlp, error_term=False)]
        assert float(found.before[prompt]) == pytest.approx(measured(model, ids, METRIC, base, prompt), abs=1e-10)
        for row, node in enumerate(found.nodes):
            gone = {stream: (), mlp: ()} | {node.site: (node.feature,)}
            changes = [without_error(site, each) for site, each in gone.items()]
            after = measured(model, ids, METRIC, changes, prompt)
            assert float(found.after[row, prompt]) == pytest.approx(after, abs=1e-10)


def test_ranking_is_by_size(ids, sites):
    found = ablation_effects(sites["stream"], ids, METRIC)
    sizes = {node: abs(float(value)) for node, value in zip(found.nodes, found.mean, strict=True)}
    ranked = found.ranked()
    assert set(ranked) == set(found.nodes)
    assert all(sizes[a] >= sizes[b] for a, b in pairwise(ranked))
    assert min(found.mean) < 0 < max(found.mean)


@pytest.mark.parametrize(
    ("place", "direction"), [("stream", "either"), ("stream", "down"), ("stream", "up"), ("both", "either")]
)
def test_greedy_ablation_is_a_greedy_loop(model, ids, sites, place, direction):
    site, ids = sites[place], ids[:2]
    path = greedy_ablation(site, ids, GREEDY_METRIC, steps=2, direction=direction, batch_size=16)

    def mean_without(gone):
        changes = [Ablate(site, gone)] if gone else []
        return sum(measured(model, ids, GREEDY_METRIC, changes, prompt) for prompt in range(2)) / 2

    left, gone = firing(site, ids), []
    assert float(path.mean[0]) == pytest.approx(mean_without([]), abs=1e-10)
    for step in range(2):
        now = mean_without(gone)
        moves = {feature: mean_without([*gone, feature]) - now for feature in left}
        sizes = {
            feature: {"either": abs(move), "up": move, "down": -move}[direction] for feature, move in moves.items()
        }
        best = max(left, key=sizes.__getitem__)
        gone.append(best)
        left.remove(best)
        assert path.nodes[step] == Node(site, best)
        assert float(path.mean[step + 1]) == pytest.approx(mean_without(gone), abs=1e-10)
    everything = mean_without(firing(site, ids))
    assert float(path.all_removed.mean()) == pytest.approx(everything, abs=1e-9)
    start = float(path.mean[0])
    expected = [(float(value) - start) / (everything - start) for value in path.mean]
    assert path.share.tolist() == pytest.approx(expected, abs=1e-9)


def test_greedy_ablation_over_two_layers(model, ids, sites):
    stream, mlp, ids = sites["stream"], sites["mlp"], ids[:1]
    metric = logit_difference(3, 9)
    path = greedy_ablation([stream, mlp], ids, metric, steps=2)
    nodes = [Node(stream, each) for each in firing(stream, ids)] + [Node(mlp, each) for each in firing(mlp, ids)]

    def value(gone):
        by_site = {site: [node.feature for node in gone if node.site is site] for site in (stream, mlp)}
        return measured(model, ids, metric, [Ablate(site, each) for site, each in by_site.items() if each], 0)

    whole = value([])
    first = max(nodes, key=lambda node: abs(value([node]) - whole))
    left, now = [node for node in nodes if node != first], value([first])
    second = max(left, key=lambda node: abs(value([first, node]) - now))
    assert path.nodes == (first, second)
    assert path.values[:, 0].tolist() == pytest.approx([whole, now, value([first, second])], abs=1e-10)


def test_features_of_a_later_layer_that_a_removal_wakes_are_removed(model, ids, sites):
    stream, mlp = sites["stream"], sites["mlp"]
    awake = {prompt: firing(mlp, ids, prompt=prompt) for prompt in range(3)}
    woken = []
    for feature in firing(stream, ids):
        with Intervention(Ablate(stream, feature)):
            woken += [
                (feature, prompt, each)
                for prompt in range(3)
                for each in firing(mlp, ids, prompt=prompt)
                if each not in awake[prompt]
            ]
    feature, prompt, later = woken[0]
    path = greedy_ablation([stream, mlp], ids, METRIC, order=[Node(stream, feature), Node(mlp, later)])
    expected = measured(model, ids, METRIC, [Ablate(stream, feature), Ablate(mlp, later)], prompt)
    assert float(path.values[2, prompt]) == pytest.approx(expected, abs=1e-10)
    assert abs(expected - float(path.values[1, prompt])) > 1e-3


def test_a_given_order_is_kept(model, ids, sites):
    site = sites["stream"]
    order = firing(site, ids)[:5][::-1]
    path = greedy_ablation(site, ids, METRIC, order=order)
    assert [node.feature for node in path.nodes] == order
    for prompt in range(3):
        for size in range(len(order) + 1):
            changes = [Ablate(site, order[:size])] if size else []
            expected = measured(model, ids, METRIC, changes, prompt)
            assert float(path.values[size, prompt]) == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(path.all_removed, path.values[-1], rtol=0, atol=1e-10)
    assert len(greedy_ablation(site, ids, METRIC, order=order, steps=2).nodes) == 2


def test_no_feature_fires_and_nothing_is_the_result(model, ids):
    silent = make("relu", 5)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    site = Site(silent, model, hook_point="blocks.1.hook_resid_post")
    found = ablation_effects(site, ids, METRIC)
    assert found.nodes == ()
    assert found.effects.shape == (0, 3)
    assert found.before.shape == (3,)
    assert found.ranked() == ()
    path = greedy_ablation(site, ids, METRIC)
    assert path.nodes == ()
    assert path.share is None
    torch.testing.assert_close(path.all_removed, path.values[0])
    named = ablation_effects(site, ids, METRIC, features=[4])  # named, but it does nothing
    assert named.effects.tolist() == [[0, 0, 0]]
    assert ablation_effects(site, ids, METRIC, features=[]).nodes == ()


def test_inside_an_intervention_its_model_is_studied(model, ids, sites):
    site = sites["stream"]
    gone = ablation_effects(site, ids, METRIC).ranked()[0].feature
    with Intervention(Ablate(site, gone)):
        inside = ablation_effects(sites["mlp"], ids, METRIC)
    node = inside.ranked()[0]
    changes = [Ablate(site, gone), Ablate(sites["mlp"], node.feature)]
    row = inside.nodes.index(node)
    for prompt in range(3):
        expected = measured(model, ids, METRIC, changes, prompt)
        assert float(inside.after[row, prompt]) == pytest.approx(expected, abs=1e-10)


def test_the_model_is_left_as_it_was(model, ids, sites):
    before = model.logits(ids)
    ablation_effects(list(sites.values()), ids, METRIC, batch_size=9)
    assert torch.equal(model.logits(ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_rows_of_a_pass_are_bounded(model, ids, sites, monkeypatch):
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **more: sizes.append(len(ids)) or forward(ids, **more))
    found = ablation_effects(sites["stream"], ids, METRIC, batch_size=4)
    assert max(sizes) == 4
    assert len(sizes) == 1 + 1 + -(-len(found.row) // 4)  # as it is, reading, and full batches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": [0, NUM_FEATURES]}, "feature 12 is out of range"),
        ({"features": [-1]}, "feature -1 is out of range"),
        ({"features": [1, 2, 1]}, "feature 1 at blocks.0.hook_resid_post is named twice"),
        ({"features": ["one"]}, "not by 'one'"),
        ({"metric": logit(320)}, "token 320 is not in the vocabulary"),
        ({"metric": logit(PerPrompt([1, 2]))}, "targets for 2 prompts, and 3 prompts"),
        ({"metric": "logit"}, "a metric such as"),
        ({"batch_size": 0}, "batch_size"),
        ({"baseline": "median"}, 'baseline is "zero", "mean"'),
        ({"baseline": torch.zeros(3)}, r"one finite number for each of its 12 features, not \(3,\)"),
        ({"baseline": torch.full((12,), torch.nan)}, "with numbers that are none"),
        ({"baseline": [torch.zeros(12)] * 2}, "baselines for 2 sites, and 1 sites"),
        ({"error_term": "frozen"}, "error_term is True or False"),
        ({"attention_mask": torch.ones(3, 5)}, "attention_mask has the shape"),
        ({"positions": torch.ones(3, 6)}, "a bool mask"),
        ({"positions": torch.ones(5).bool()}, "a bool mask"),
        ({"ids": torch.zeros(6, dtype=torch.long)}, "prompts are token ids"),
        ({"ids": torch.ones(3, 33, dtype=torch.long)}, "a window of 33 tokens is longer than the 32"),
        ({"ids": torch.full((3, 6), 320)}, "token id 320 is not in the vocabulary"),
        ({"attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6])}, "prompt 1 has 0 tokens"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_words(ids, sites, settings, message):
    given = {"metric": METRIC, "ids": ids} | settings
    with pytest.raises(ValueError, match=message):
        ablation_effects(sites["stream"], given.pop("ids"), given.pop("metric"), **given)


def test_sites_that_do_not_go_together(ids, sites, tiny):
    other = Site(make("relu", 1).float(), tiny, hook_point="blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="different models"):
        ablation_effects([sites["stream"], other], ids, METRIC)
    with pytest.raises(ValueError, match="one Site or several"):
        ablation_effects([], ids, METRIC)
    with pytest.raises(ValueError, match="named twice"):
        ablation_effects([sites["stream"]] * 2, ids, METRIC)
    with pytest.raises(ValueError, match=r"name features as Node\(site, feature\), not as 3"):
        ablation_effects(list(sites.values()), ids, METRIC, features=[3])
    with pytest.raises(ValueError, match="at none of the sites"):
        ablation_effects(sites["stream"], ids, METRIC, features=[Node(sites["mlp"], 3)])


@pytest.mark.parametrize(
    ("settings", "message"), [({"steps": -1}, "steps"), ({"steps": 1.5}, "steps"), ({"direction": "best"}, "direction")]
)
def test_greedy_settings(ids, sites, settings, message):
    with pytest.raises(ValueError, match=message):
        greedy_ablation(sites["stream"], ids, METRIC, **settings)


def test_numbers_that_are_none_are_named(model, ids, sites):
    broken = make("topk", 1, k=3)
    with torch.no_grad():
        broken.W_dec[firing(sites["stream"], ids, prompt=1)[0]] = 1e308
    site = Site(broken, model, hook_point="blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="no numbers or infinite"):
        ablation_effects(site, ids, METRIC)


def test_a_metric_that_is_no_number_is_named(model, ids, sites):
    class Broken(type(logit(1))):
        def __call__(self, logits, tokens):
            return torch.tensor([0.0, torch.nan, 0.0])

    metric = Broken("broken", a=torch.tensor([[1]]))
    with pytest.raises(ValueError, match="the metric broken is nan for prompt 1 when nothing is removed"):
        ablation_effects(sites["stream"], ids, metric)

    class Short(type(logit(1))):
        def __call__(self, logits, tokens):
            return torch.zeros(2)

    with pytest.raises(ValueError, match=r"gives \(2,\) for 3 prompts"):
        ablation_effects(sites["stream"], ids, Short("short", a=torch.tensor([[1]])))


def test_masked_language_models_are_refused():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    bert = LanguageModel(BertForMaskedLM(config), None, "tiny-bert")
    site = Site(make("topk", 1, k=3).float(), bert, hook_point="bert.encoder.layer.0.output")
    with pytest.raises(ValueError, match="the metric logit of 3 needs a causal language model; tiny-bert"):
        ablation_effects(site, torch.ones(1, 4, dtype=torch.long), logit(3))
