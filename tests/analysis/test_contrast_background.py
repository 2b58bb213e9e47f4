"""One set of texts against the text of an analysis: every number against a loop, and a set that is known to have more."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from saescope.analysis.contrast import against_store, pool_texts
from saescope.dictionaries import TopK
from saescope.interventions import Site
from saescope.store import Store
from saescope.store.records import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label

HOOK = "blocks.1.hook_resid_post"
WORDS = ["alpha", "beta", "gamma", "delta", "mu", "eta"] * 4
COMMON = [f"def {word}(x):\n    return x + {i}\n" for i, word in enumerate(WORDS)]
ODD = [f"{word} {word} eta eta {word}" for word in (f"iota{i}" for i in range(16))]


@pytest.fixture(scope="module")
def site(tiny):
    dictionary = TopK(TopK.Config(d_in=16, d_sae=48, k=3), seed=1)
    dictionary.metadata |= {"hook_name": HOOK, "context_size": 16}
    return Site(dictionary, tiny)


@pytest.fixture(scope="module")
def background(site):
    """Densities and means over the tokens of the common texts."""
    pooled = pool_texts(site, COMMON, pooling="mean")
    total = pooled.num_tokens.sum()
    return pooled.firings.toarray().sum(0) / total, (pooled.values.toarray() * pooled.num_tokens[:, None]).sum(
        0
    ) / total


@pytest.fixture
def store(background, tmp_path):
    densities, means = background
    features = [
        Feature(
            record=FeatureRecord(
                index=i,
                num_firings=round(1000 * density),
                density=float(density),
                max_activation=1.0,
                mean_activation=float(mean),
                label=Label(text=f"label {i}", kind="tokens", precision=0.5, recall=0.5, lift=2.0, num_firings=9),
            )
        )
        for i, (density, mean) in enumerate(zip(densities, means, strict=True))
    ]
    with Store.open(tmp_path / "features.db") as opened:
        opened.write(
            DictionaryRecord(name="small", model="tiny", hook_point=HOOK, architecture="topk", d_in=16, d_sae=48),
            AnalysisRecord(dataset="common", context_size=16, num_tokens=1000),
            features,
            [],
            [],
        )
        yield opened


@pytest.mark.parametrize("measure", ["density", "mean"])
def test_every_number_equals_a_loop(site, store, background, measure):
    found = against_store(site, ODD, store, "small", measure=measure, side="both", top=48, seed=2, num_draws=40)
    order = np.random.default_rng(2).permutation(16)
    ordered = [ODD[i] for i in order]
    alone = [pool_texts(site, [text], pooling="mean") for text in ordered]
    density = np.stack([each.firings.toarray()[0] / each.num_tokens[0] for each in alone])
    mean = np.stack([each.values.toarray()[0] for each in alone])
    x = (density if measure == "density" else mean)[8:]
    expected = background[0] if measure == "density" else background[1]
    tokens = np.array([each.num_tokens[0] for each in alone])
    fired = [i for i in range(48) if x[:, i].any()]
    assert found.num_tested == len(fired) == len(found.features)
    assert (found.num_texts, found.num_test_texts) == (8, 8)
    p = {}
    draws = np.random.default_rng(2).integers(8, size=(40, 8))
    for each in found.features:
        column, mu = x[:, each.feature], expected[each.feature]
        if column.std() > 0:
            p[each.feature] = stats.ttest_1samp(column, mu).pvalue
            effect = (column.mean() - mu) / column.std(ddof=1) * (1 - 3 / (4 * 7 - 1))
            assert each.effect_size == pytest.approx(effect, rel=1e-4)
        else:
            p[each.feature] = 0.0 if column[0] != mu else 1.0
            assert each.effect_size is None
        assert each.p == pytest.approx(p[each.feature], rel=1e-3, abs=1e-12)
        assert each.side == ("more" if column.mean() > mu else "less")
        held = (density[:8, each.feature] * tokens[:8]).sum() / tokens[:8].sum()
        assert each.density == pytest.approx(held)
        assert each.background_density == background[0][each.feature]
        assert each.label == f"label {each.feature}"
        if each.background_density:
            assert each.ratio == pytest.approx(held / each.background_density)
            drawn = [(density[rows, each.feature] * tokens[rows]).sum() / tokens[rows].sum() for rows in draws]
            ends = np.quantile(drawn, [0.025, 0.975]) / each.background_density
            assert (each.ratio_low, each.ratio_high) == pytest.approx(tuple(ends))
        else:
            assert each.ratio is None
    q = stats.false_discovery_control([each.p for each in found.features])
    assert [each.q for each in found.features] == pytest.approx(q)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["background"].startswith("small, analysis default")


def test_texts_like_the_background_are_not_set_apart(site, store):
    found = against_store(site, COMMON, store, "small", side="both", num_draws=20)
    assert found.num_significant == 0
    assert any("nothing sets the texts apart" in note for note in found.notes)


def test_sides(site, store):
    for side in ("more", "less"):
        found = against_store(site, ODD, store, "small", side=side, num_draws=20)
        assert found.features
        assert {each.side for each in found.features} == {side}
    more = against_store(site, ODD, store, "small", num_draws=20)
    assert more.num_significant > 0
    assert more.features[0].ratio is None or more.features[0].ratio > 1


def test_what_can_not_be_compared_is_refused(site, store, tiny):
    with pytest.raises(ValueError, match="1 different texts are too few"):
        against_store(site, ["alpha"] * 9, store, "small")
    with pytest.raises(ValueError, match="measure is"):
        against_store(site, ODD, store, "small", measure="max")
    with pytest.raises(ValueError, match="test_share lies between 0 and 1, not at 1"):
        against_store(site, ODD, store, "small", test_share=1.0)
    with pytest.raises(ValueError, match="side is"):
        against_store(site, ODD, store, "small", side="positive")
    with pytest.raises(ValueError, match="small"):
        against_store(site, ODD, store, "smal")
    wide = Site(TopK(TopK.Config(d_in=16, d_sae=64, k=3)), tiny, hook_point=HOOK)
    with pytest.raises(ValueError, match="small has 48 features in the store, and this dictionary has 64"):
        against_store(wide, ODD, store, "small")
