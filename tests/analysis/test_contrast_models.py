"""Two models through one dictionary: every number against loops, and a planted change found."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from saescope.analysis.contrast import diff_models
from saescope.dictionaries import TopK
from saescope.dictionaries.transcoder import transcoder
from saescope.interventions import Site
from saescope.models import LanguageModel

HOOK = "blocks.1.hook_resid_post"
WORDS = ["alpha", "beta", "gamma", "delta", "mu", "eta"] * 2
TEXTS = [f"def {word}(x, y):\n    return {word} + {i}\n" * (1 + i % 3) for i, word in enumerate(WORDS)]


def fresh_dictionary(seed=1, k=3):
    dictionary = TopK(TopK.Config(d_in=16, d_sae=48, k=k), seed=seed)
    dictionary.metadata |= {"hook_name": HOOK, "context_size": 16}
    return dictionary


def changed(model, change, name="changed"):
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        change(module)
    return LanguageModel(module, model.tokenizer, name)


@pytest.fixture(scope="module")
def dictionary():
    return fresh_dictionary()


@pytest.fixture(scope="module")
def noisy(tiny):
    torch.manual_seed(0)
    return changed(tiny, lambda module: module.transformer.h[0].mlp.c_proj.weight.add_(0.3 * torch.randn(64, 16)))


def codes_by_hand(dictionary, model, text):
    ids, found, values = model.tokenizer(text, add_special_tokens=False)["input_ids"], [], []
    for first in range(0, len(ids), 15):
        window = torch.tensor([[model.tokenizer.bos_token_id, *ids[first : first + 15]]])
        x = model.read(window, [HOOK])[HOOK][0, 1:]
        found.append(dictionary.encode(x).double())
        values.append(x.double())
    f, x = torch.cat(found).detach(), torch.cat(values)
    rebuilt = f @ dictionary.W_dec.detach().double() + dictionary.b_dec.detach().double()
    return f.numpy(), x.numpy(), (x - rebuilt).numpy()


def test_every_number_equals_a_loop(tiny, noisy, dictionary):
    from scipy.stats import wilcoxon

    found = diff_models(Site(dictionary, tiny), Site(dictionary, noisy), TEXTS, top=48, batch_size_windows=4)
    read = [[codes_by_hand(dictionary, model, text) for text in TEXTS] for model in (tiny, noisy)]
    codes = [np.concatenate([each[0] for each in texts]) for texts in read]
    norms = dictionary.W_dec.detach().double().norm(dim=1).numpy()
    assert found.num_tokens == len(codes[0])
    assert found.num_texts == len(TEXTS)
    assert (found.l0, found.other_l0) == pytest.approx([np.mean((f != 0).sum(1)) for f in codes])
    for value, texts in zip((found.fvu, found.other_fvu), read, strict=True):
        x, error = (np.concatenate([each[place] for each in texts]) for place in (1, 2))
        assert value == pytest.approx((error**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-5)
    fires = [(f != 0).any(0) for f in codes]
    assert found.num_tested == (fires[0] | fires[1]).sum() == len(found.features)
    assert (found.only, found.other_only) == ((fires[0] & ~fires[1]).sum(), (fires[1] & ~fires[0]).sum())
    for each in found.features:
        a, b = codes[0][:, each.feature], codes[1][:, each.feature]
        assert (each.mean, each.other_mean) == pytest.approx((a.mean(), b.mean()), abs=1e-5)
        assert each.difference == pytest.approx(b.mean() - a.mean(), abs=1e-5)
        assert each.written == pytest.approx(abs(b.mean() - a.mean()) * norms[each.feature], abs=1e-5)
        assert (each.density, each.other_density) == ((a != 0).mean(), (b != 0).mean())
        if a.std() and b.std():
            assert each.correlation == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-4)
        else:
            assert each.correlation is None
        differences = np.array([
            second[0][:, each.feature].mean() - first[0][:, each.feature].mean()
            for first, second in zip(*read, strict=True)
        ])  # fmt: skip
        some = differences[differences != 0]
        method = "exact" if len(set(np.abs(some))) == len(some) else "asymptotic"
        assert each.p == pytest.approx(wilcoxon(some, method=method).pvalue if len(some) > 1 else 1.0)
        effect = differences.mean() / differences.std(ddof=1) * (1 - 3 / (4 * (len(TEXTS) - 1) - 1))
        assert each.effect_size == pytest.approx(effect, rel=1e-3)
    from scipy.stats import false_discovery_control

    q = false_discovery_control([each.p for each in found.features])
    assert [each.q for each in found.features] == pytest.approx(q)
    assert found.num_significant == sum(q <= 0.05)
    keys = [(each.q > 0.05, -each.written) for each in found.features]
    assert keys == sorted(keys)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["num_texts"] == len(TEXTS)


def test_a_planted_direction_is_the_feature_that_changed(tiny, dictionary):
    """A checkpoint that writes more of one decoder row, everywhere: that feature leads, by however one orders."""
    row = dictionary.W_dec[7].detach()
    grown = changed(tiny, lambda module: module.transformer.h[1].mlp.c_proj.bias.add_(6.0 * row))
    for order_by in ("written", "effect_size", "density"):
        found = diff_models(Site(dictionary, tiny), Site(dictionary, grown), TEXTS, order_by=order_by)
        assert found.features[0].feature == 7, order_by
        assert found.features[0].difference > 0
        assert found.features[0].q < 0.01
    assert not any("no feature changed" in note for note in found.notes)


def test_a_model_and_its_copy_do_not_differ(tiny, dictionary):
    found = diff_models(Site(dictionary, tiny), Site(fresh_dictionary(), changed(tiny, lambda module: None)), TEXTS)
    assert found.num_significant == 0
    assert all((each.difference, each.p) == (0, 1) for each in found.features)
    assert all(each.correlation in (None, pytest.approx(1.0)) for each in found.features)
    assert "as far as this dictionary sees, they are one" in found.notes[0]
    assert found.fvu == found.other_fvu


def test_noise_around_nothing_is_no_finding(tiny, dictionary):
    """Two models that differ on every text in another direction: p is spread, and corrected p finds next to nothing."""
    torch.manual_seed(3)
    jitter = changed(tiny, lambda module: module.transformer.wte.weight.add_(0.05 * torch.randn(320, 16)))
    found = diff_models(Site(dictionary, tiny), Site(dictionary, jitter), TEXTS, false_discovery_rate=1e-6, top=3)
    assert found.num_significant == 0
    assert any("no feature changed" in note for note in found.notes)
    assert len(found.features) == 3


def test_labels_are_put_beside_features(tiny, noisy, dictionary):
    found = diff_models(Site(dictionary, tiny), Site(dictionary, noisy), TEXTS, top=2)
    first = found.features[0].feature
    assert [each.label for each in found.labelled({first: "it"}).features] == ["it", None]


def test_what_can_not_be_compared_is_refused(tiny, noisy, dictionary):
    site = Site(dictionary, tiny)
    with pytest.raises(ValueError, match="different dictionaries"):
        diff_models(site, Site(fresh_dictionary(seed=2), noisy), TEXTS)
    with pytest.raises(ValueError, match="two texts or more, and there is 1"):
        diff_models(site, Site(dictionary, noisy), TEXTS[:1])
    with pytest.raises(ValueError, match="order_by is one of"):
        diff_models(site, Site(dictionary, noisy), TEXTS, order_by="p")
    with pytest.raises(ValueError, match="text 1 of 2"):
        diff_models(site, Site(dictionary, noisy), ["alpha", ""])
    narrow = TopK(TopK.Config(d_in=8, d_sae=48, k=3))
    with pytest.raises(ValueError, match="width 8 there"):
        Site(narrow, tiny, hook_point=HOOK)


def test_models_with_other_tokenizers_are_refused(tiny, dictionary):
    from saescope.models.bundled.tokenizer import train_tokenizer

    other = LanguageModel(tiny.module, train_tokenizer(["x y z " * 50] * 3, vocab_size=300, context_size=32), "other")
    with pytest.raises(ValueError, match="cut these texts into different tokens"):
        diff_models(Site(dictionary, tiny), Site(dictionary, other), TEXTS)


def test_a_transcoder_is_judged_by_what_it_rebuilds(tiny, noisy):
    """Its error is at the place it writes to."""
    kind = transcoder(TopK)
    between = kind(kind.Config(d_in=16, d_sae=32, d_out=16, k=4))
    places = {"hook_point": "blocks.1.hook_mlp_in", "hook_point_out": "blocks.1.hook_mlp_out"}
    found = diff_models(Site(between, tiny, **places), Site(between, noisy, **places), TEXTS)
    assert found.fvu > 0
