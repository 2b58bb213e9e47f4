"""Faithfulness and completeness against their definition, one prompt and one circuit at a time."""

from __future__ import annotations

import copy

import pytest
import torch

from saescope.dictionaries import architecture
from saescope.interventions import Ablate, Clamp, Intervention, Site, Splice, read_features
from saescope.interventions.effects import ablation_effects
from saescope.interventions.faithfulness import faithfulness_curve
from saescope.interventions.metrics import logit, logit_difference
from saescope.interventions.removal import Node
from saescope.models import LanguageModel

METRIC = logit_difference(3, 9)
NUM_FEATURES = 10


@pytest.fixture(scope="module")
def model(tiny):
    return LanguageModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer, "tiny")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 320, (2, 5), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def sites(model):
    cls = architecture("topk")
    found = []
    for layer in (0, 2):
        dictionary = cls(cls.Config(d_in=16, d_sae=NUM_FEATURES, k=3), seed=layer).double()
        with torch.no_grad():
            dictionary.b_dec.fill_(0.2)
        found.append(Site(dictionary, model, hook_point=f"blocks.{layer}.hook_resid_post"))
    return found


def mean_metric(model, ids, changes):
    values = []
    for row in ids:
        if changes:
            with Intervention(changes):
                logits = model.logits(row[None])
        else:
            logits = model.logits(row[None])
        values.append(float(METRIC(logits.detach(), torch.ones(1, len(row)))))
    return sum(values) / len(values)


def others(kept):
    return [feature for feature in range(NUM_FEATURES) if feature not in kept]


def removing(sites, gone, error_term=True):
    """Removes features, by the number of the site; all the others in the case of an error term through splices."""
    if error_term:
        return [Ablate(site, each) for site, each in zip(sites, gone, strict=True) if each]

    def codes(each):
        def without(f):
            f = f.clone()
            f[..., each] = 0
            return f

        return without

    return [
        Splice(site, error_term=False, codes=codes(each) if each else None)
        for site, each in zip(sites, gone, strict=True)
    ]


@pytest.mark.parametrize("error_term", [True, False])
def test_the_curve_is_its_definition_over_two_layers(model, ids, sites, error_term):
    order = [Node(sites[1], 4), Node(sites[0], 7), Node(sites[0], 1), Node(sites[1], 0)]
    found = faithfulness_curve(sites, ids, METRIC, order=order, sizes=[0, 1, 3, 4], error_term=error_term, batch_size=3)
    everything = [list(range(NUM_FEATURES))] * 2
    full = mean_metric(model, ids, removing(sites, [[], []], error_term))
    empty = mean_metric(model, ids, removing(sites, everything, error_term))
    assert found.order == tuple(order)
    assert found.reason is None
    assert float(found.full.mean()) == pytest.approx(full, abs=1e-9)
    assert float(found.empty.mean()) == pytest.approx(empty, abs=1e-9)
    assert abs(full - empty) > 0.1
    for place, size in enumerate(found.sizes):
        kept = [[node.feature for node in order[:size] if node.site is site] for site in sites]
        circuit = mean_metric(model, ids, removing(sites, [others(each) for each in kept], error_term))
        rest = mean_metric(model, ids, removing(sites, kept, error_term))
        assert found.faithfulness[place] == pytest.approx((circuit - empty) / (full - empty), abs=1e-9)
        assert found.completeness[place] == pytest.approx((rest - empty) / (full - empty), abs=1e-9)
    assert found.faithfulness[0] == pytest.approx(0, abs=1e-9)
    assert found.completeness[0] == pytest.approx(1, abs=1e-9)


def test_the_papers_baseline_is_the_mean(model, ids, sites):
    site = sites[0]
    (reading,) = read_features([site], ids)
    means = reading.codes.to_dense().double().mean(0)
    found = faithfulness_curve(site, ids, METRIC, order=[2, 5, 8], sizes=[2], baseline="mean")

    def at_mean(features):
        return [Clamp(site, feature, float(means[feature]), unit="activation") for feature in features]

    full, empty = mean_metric(model, ids, []), mean_metric(model, ids, at_mean(range(NUM_FEATURES)))
    circuit, rest = mean_metric(model, ids, at_mean(others([2, 5]))), mean_metric(model, ids, at_mean([2, 5]))
    assert found.faithfulness == pytest.approx([(circuit - empty) / (full - empty)], abs=1e-8)
    assert found.completeness == pytest.approx([(rest - empty) / (full - empty)], abs=1e-8)


def test_without_an_order_it_is_that_of_exact_effects(ids, sites):
    found = faithfulness_curve(sites, ids, METRIC)
    assert found.order == ablation_effects(sites, ids, METRIC).ranked()
    largest = len(found.order)
    assert found.sizes == tuple(sorted({0, 1, 2, 4, 8, largest} - {size for size in (8,) if size > largest}))
    assert found.circuit.shape == found.rest.shape == (len(found.sizes), 2)


def test_all_features_at_one_site_are_the_model(ids, sites):
    found = faithfulness_curve(sites[0], ids, METRIC)
    assert found.sizes[-1] == len(found.order)
    assert found.faithfulness[-1] == pytest.approx(1, abs=1e-9)
    assert found.completeness[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_removing_all_does_nothing_there_is_no_share_and_a_reason(model, tiny, ids, dtype):
    cls = architecture("relu")
    dictionary = cls(cls.Config(d_in=16, d_sae=4)).to(dtype)
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
        dictionary.b_dec.fill_(3.7)
    site = Site(dictionary, model if dtype == torch.float64 else tiny, hook_point="blocks.1.hook_resid_post")
    found = faithfulness_curve(site, ids, METRIC, order=[1, 2])
    assert found.faithfulness == found.completeness == (None, None, None)
    assert "a circuit can have no share of such an effect" in found.reason
    assert "logit of 3 less that of 9" in found.reason
    none = faithfulness_curve(site, ids, METRIC)
    assert none.order == ()
    assert none.sizes == (0,)
    assert none.faithfulness == (None,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_effect_of_rounding_alone_is_none(model, tiny, ids, dtype):
    cls = architecture("relu")
    dictionary = cls(cls.Config(d_in=16, d_sae=4)).to(dtype)
    with torch.no_grad():
        dictionary.b_enc.fill_(5)  # all fire, and write what the final norm takes away
        dictionary.W_dec.fill_(1)
    site = Site(dictionary, model if dtype == torch.float64 else tiny, hook_point="blocks.2.hook_resid_post")
    found = faithfulness_curve(site, ids, METRIC)
    assert len(found.order) == 4
    assert not torch.equal(found.full, found.empty)
    assert found.faithfulness == found.completeness == (None,) * len(found.sizes)
    assert found.reason is not None


@pytest.mark.parametrize("sizes", [[3], [-1], [], [1.0], [True]])
def test_sizes_beyond_the_ranking(ids, sites, sizes):
    with pytest.raises(ValueError, match="sizes are numbers of features to keep, of the 2 that are ranked"):
        faithfulness_curve(sites[0], ids, METRIC, order=[1, 2], sizes=sizes)


def test_features_that_are_none(ids, sites):
    with pytest.raises(ValueError, match="feature 10 is out of range"):
        faithfulness_curve(sites[0], ids, METRIC, order=[10])
    with pytest.raises(ValueError, match="token 320 is not in the vocabulary"):
        faithfulness_curve(sites[0], ids, logit(320))
