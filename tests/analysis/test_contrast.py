"""Features that separate two sets of texts: every number against loops in float64, no leak, the planted feature found."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from saescope.analysis.contrast import contrast, contrast_tokens, pool_texts
from saescope.analysis.contrast.area import auroc, auroc_intervals
from saescope.analysis.contrast.paired import paired_effect, paired_p
from saescope.analysis.contrast.separation import adjusted, separation
from saescope.analysis.contrast.texts import split_sets
from saescope.dictionaries import AbsTopK, TopK
from saescope.interventions import Site

HOOK = "blocks.1.hook_resid_post"
LETTERS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


@pytest.fixture(scope="module")
def site(tiny):
    dictionary = TopK(TopK.Config(d_in=16, d_sae=48, k=3), seed=1)
    dictionary.metadata |= {"hook_name": HOOK, "context_size": 16}
    return Site(dictionary, tiny)


@pytest.fixture(scope="module")
def planted():
    path = Path(__file__).parents[1] / "interventions" / "planted.py"
    spec = importlib.util.spec_from_file_location("planted_for_contrast", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.make_planted()


def random_texts(number, seed, length=(3, 9)):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(LETTERS, size=generator.integers(*length))) + f" {i}" for i in range(number)]


def by_hand(site, text):
    """Feature activations of each token of a text, window by window, one at a time: float64 [tokens, d_sae]."""
    ids = site.model.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos, width, found = site.model.tokenizer.bos_token_id, 15, []
    for first in range(0, len(ids), width):
        window = torch.tensor([[bos, *ids[first : first + width]]])
        x = site.model.read(window, [HOOK])[HOOK][0, 1:]
        found.append(site.dictionary.encode(x).double())
    return torch.cat(found).detach().numpy()


# --- one number for a text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_pooled_texts_equal_texts_read_one_by_one(site, pooling):
    texts = [*random_texts(7, 0), "alpha " * 30, "beta"]  # one is longer than a window
    pooled = pool_texts(site, texts, pooling=pooling, batch_size_windows=3)
    values, firings = pooled.values.toarray(), pooled.firings.toarray()
    for row, text in enumerate(texts):
        found = by_hand(site, text)
        if pooling == "last":  # the last window is as long as can be
            ids = site.model.tokenizer(text, add_special_tokens=False)["input_ids"][-15:]
            window = torch.tensor([[site.model.tokenizer.bos_token_id, *ids]])
            found = site.dictionary.encode(site.model.read(window, [HOOK])[HOOK][0, -1:]).double().detach().numpy()
        expected = found.mean(0) if pooling == "mean" else found.max(0)
        np.testing.assert_allclose(values[row], expected, atol=2e-6)
        np.testing.assert_array_equal(firings[row], (found != 0).sum(0))
        assert pooled.num_tokens[row] == len(found)
    assert pooled.num_cut == 1


def test_signed_dictionaries_pool_what_is_farthest_from_zero(tiny):
    dictionary = AbsTopK(AbsTopK.Config(d_in=16, d_sae=48, k=3), seed=1)
    dictionary.metadata |= {"hook_name": HOOK, "context_size": 16}
    signed = Site(dictionary, tiny)
    texts = random_texts(6, 3)
    values = pool_texts(signed, texts).values.toarray()
    assert (values < 0).any()
    for row, text in enumerate(texts):
        found = by_hand(signed, text)
        np.testing.assert_allclose(values[row], found[np.abs(found).argmax(0), np.arange(48)], atol=2e-6)


def test_special_tokens_in_a_text_are_not_counted(site):
    plain, special = pool_texts(site, ["alpha beta", "alpha<|endoftext|> beta"]).num_tokens
    assert plain == special
    with pytest.raises(ValueError, match=r"text 1 of 2 .* only special tokens"):
        pool_texts(site, ["alpha", "<|endoftext|>"])


# --- numbers of two groups ------------------------------------------------------------------------------------------


def sparse_groups(seed=0, n1=9, n2=13, features=17):
    generator = np.random.default_rng(seed)
    values = generator.gamma(2.0, 1.0, (n1 + n2, features)).round(1) * (generator.random((n1 + n2, features)) < 0.4)
    values[:n1, 3] += 2.0
    values[:, 5] = 0.0  # never fires
    values[:, 6] = 1.5  # always the same
    return sparse.csr_array(values), np.arange(n1 + n2) < n1


def test_every_number_of_two_groups_equals_a_loop():
    values, positive = sparse_groups()
    found = separation(values, positive)
    dense = values.toarray()
    assert 5 not in found.feature
    assert found.feature.tolist() == [i for i in range(17) if dense[:, i].any()]
    for place, feature in enumerate(found.feature):
        x, y = dense[positive, feature].tolist(), dense[~positive, feature].tolist()
        n1, n2 = len(x), len(y)
        mx, my = sum(x) / n1, sum(y) / n2
        spread = math.sqrt((sum((v - mx) ** 2 for v in x) + sum((v - my) ** 2 for v in y)) / (n1 + n2 - 2))
        g = (mx - my) / spread * (1 - 3 / (4 * (n1 + n2) - 9)) if spread else 0.0
        wins = sum((a > b) + (a == b) / 2 for a in x for b in y)
        more, less = sum(a > b for a in x for b in y), sum(a < b for a in x for b in y)
        assert found.effect_size[place] == pytest.approx(g, abs=1e-12)
        assert found.auroc[place] == pytest.approx(wins / (n1 * n2), abs=1e-12)
        assert found.delta[place] == pytest.approx((more - less) / (n1 * n2), abs=1e-12)
        assert found.p[place] == pytest.approx(mann_whitney_by_hand(x, y), abs=1e-12)
        assert found.mean_positive[place] == pytest.approx(mx, abs=1e-12)
        assert found.mean_negative[place] == pytest.approx(my, abs=1e-12)
        assert found.share_positive[place] == sum(v != 0 for v in x) / n1
        assert found.share_negative[place] == sum(v != 0 for v in y) / n2
    np.testing.assert_allclose(found.q, benjamini_hochberg_by_hand(found.p.tolist()), atol=1e-12)


def mann_whitney_by_hand(x, y):
    """Two-sided, normal approximation with ties and continuity."""
    n1, n2, n = len(x), len(y), len(x) + len(y)
    everything = x + y
    if len(set(everything)) == 1:
        return 1.0
    u = sum((a > b) + (a == b) / 2 for a in x for b in y)
    ties = sum(everything.count(v) ** 3 - everything.count(v) for v in set(everything))
    s = math.sqrt(n1 * n2 / 12 * (n + 1 - ties / (n * (n - 1))))
    z = (max(u, n1 * n2 - u) - n1 * n2 / 2 - 0.5) / s
    return min(1.0, math.erfc(z / math.sqrt(2)))


def benjamini_hochberg_by_hand(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    q, smallest = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * len(p) / rank)
        q[order[rank - 1]] = smallest
    return q


def test_corrected_p_of_a_known_list():
    """0.01, 0.02, 0.03, 0.04 of four: each p times 4 over its rank is 0.04."""
    np.testing.assert_allclose(adjusted(np.array([0.03, 0.01, 0.04, 0.02])), [0.04] * 4)
    np.testing.assert_allclose(adjusted(np.array([0.5, 0.001])), [0.5, 0.002])
    assert len(adjusted(np.zeros(0))) == 0


def test_groups_that_differ_without_any_spread_have_an_infinite_effect():
    values = sparse.csr_array(np.array([[1.0], [1.0], [0.0], [0.0]]))
    found = separation(values, np.array([True, True, False, False]))
    assert found.effect_size[0] == np.inf
    assert found.auroc[0] == 1.0
    with pytest.raises(ValueError, match="fewer than two"):
        separation(values, np.array([True, False, False, False]))


def test_blocks_of_columns_change_nothing(monkeypatch):
    values, positive = sparse_groups(4)
    whole = separation(values, positive)
    monkeypatch.setattr("saescope.analysis.contrast.separation._CELLS_AT_ONCE", 1)
    one_by_one = separation(values, positive)
    for name in ("effect_size", "auroc", "p", "q"):
        np.testing.assert_allclose(getattr(one_by_one, name), getattr(whole, name), atol=1e-14)


def test_the_area_counts_rows_as_often_as_their_weight():
    generator = np.random.default_rng(2)
    values, positive = generator.integers(0, 4, 15).astype(float), generator.random(15) < 0.5
    weights = generator.integers(0, 3, (6, 15))
    for row, found in zip(weights, auroc(values, positive, weights), strict=True):
        x = [v for v, w, up in zip(values, row, positive, strict=True) for _ in range(w) if up]
        y = [v for v, w, up in zip(values, row, positive, strict=True) for _ in range(w) if not up]
        assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a in x for b in y) / (len(x) * len(y)))
    x, y = values[positive], values[~positive]
    wins = sum((a > b) + (a == b) / 2 for a in x for b in y)
    assert auroc(values, positive)[0] == pytest.approx(wins / (len(x) * len(y)))


def test_intervals_draw_texts_of_a_set_among_themselves_and_their_tokens_together():
    generator = np.random.default_rng(3)
    values = generator.random((24, 2)).round(1)
    positive = np.arange(24) % 2 == 0
    texts = np.repeat(np.arange(6), 4)  # every text has tokens of both kinds
    found = auroc_intervals(values, positive, texts, num_draws=50, seed=7)
    drawn = np.random.default_rng(7)
    draws = []
    for _ in range(50):
        rows = np.concatenate([np.flatnonzero(texts == text) for text in drawn.choice(6, size=6)])
        draws.append([auroc(values[rows, k], positive[rows])[0] for k in range(2)])
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975], axis=0).T)

    alone = np.arange(24)  # every row a text: sizes of sets stay
    found = auroc_intervals(values, positive, alone, num_draws=50, seed=7)
    drawn, draws = np.random.default_rng(7), []
    for _ in range(50):
        rows = [drawn.choice(np.flatnonzero(group), size=12) for group in (positive, ~positive)]
        draws.append([auroc(values[np.concatenate(rows), k], np.arange(24) < 12)[0] for k in range(2)])
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975], axis=0).T)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Normal sets one apart: the area is P(x > y) = Phi(1 / sqrt 2) = 0.760."""
    truth, held = 0.5 * (1 + math.erf(0.5)), 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        values = np.concatenate([generator.normal(1, 1, 40), generator.normal(0, 1, 40)])[:, None]
        ((low, high),) = auroc_intervals(values, np.arange(80) < 40, np.arange(80), num_draws=200, seed=seed)
        held += low <= truth <= high
    assert 87 <= held <= 100


# --- the search -----------------------------------------------------------------------------------------------------


def test_the_planted_feature_is_found_and_measured_on_other_texts(planted):
    site = planted.site()
    found = contrast(site, planted.texts(40, cause=True), planted.texts(40, cause=False), seed=0)
    best = found.features[0]
    assert best.feature == planted.feature
    assert best.side == "positive"
    assert best.q < 1e-6
    assert best.auroc == best.auroc_low == best.auroc_high == 1.0
    assert best.share_positive == 1.0
    assert best.share_negative == 0.0
    assert found.separates
    assert all(each.q > 0.05 for each in found.features if each.feature in planted.random_features)
    turned = contrast(site, planted.texts(40, cause=False), planted.texts(40, cause=True), seed=0)
    assert (turned.features[0].feature, turned.features[0].side) == (planted.feature, "negative")
    assert turned.features[0].auroc == 1.0
    assert all(each.side == "positive" for each in contrast(
        site, planted.texts(20, cause=True), planted.texts(20, cause=False), side="positive"
    ).features)  # fmt: skip


def test_the_record_says_what_the_two_halves_say(planted):
    """Every number of the record, from the halves, each text read by itself."""
    site = planted.site()
    positive, negative = planted.texts(12, cause=True, seed=3), planted.texts(14, cause=False, seed=4)
    found = contrast(site, positive, negative, pooling="mean", seed=5, top=50, order_by="auroc")
    (chosen_by, measured_on), _ = split_sets(positive, negative, None, 0.5, 5)
    assert (found.num_positive, found.num_negative) == tuple(map(len, chosen_by))
    assert (found.num_test_positive, found.num_test_negative) == tuple(map(len, measured_on))
    train = [
        np.stack([pool_texts(site, [text], pooling="mean").values.toarray()[0] for text in half]) for half in chosen_by
    ]
    test = [
        np.stack([pool_texts(site, [text], pooling="mean").values.toarray()[0] for text in half])
        for half in measured_on
    ]
    assert found.num_tested == int((np.concatenate(train) != 0).any(0).sum()) == len(found.features)
    for each in found.features:
        x, y = (half[:, each.feature] for half in train)
        own = float(np.mean([(a > b) + (a == b) / 2 for a in x for b in y]))
        held = float(
            np.mean([(a > b) + (a == b) / 2 for a in test[0][:, each.feature] for b in test[1][:, each.feature]])
        )
        up = x.mean() > y.mean()
        assert each.side == ("positive" if up else "negative")
        assert each.auroc_train == pytest.approx(own if up else 1 - own)
        assert each.auroc == pytest.approx(held if up else 1 - held)
        assert each.delta == pytest.approx(2 * own - 1)
        assert each.auroc_low <= each.auroc <= each.auroc_high
    keys = [(each.q > 0.05, -abs(each.delta)) for each in found.features]
    assert keys == sorted(keys)
    assert (
        json.loads(json.dumps(found.as_dict(), allow_nan=False))["features"][0]["feature"] == found.features[0].feature
    )


def test_on_sets_that_do_not_differ_chosen_features_are_no_better_than_chance(site):
    """On the texts that chose them the best look good; on others they are at 0.5. A split that leaks would show here."""
    chosen, held, significant = [], [], 0
    for seed in range(8):
        texts = random_texts(60, 100 + seed)
        found = contrast(site, texts[:30], texts[30:], top=5, seed=seed, num_draws=20)
        significant += found.num_significant
        chosen += [each.auroc_train for each in found.features]
        held += [each.auroc for each in found.features]
    assert np.mean(chosen) > 0.6
    assert 0.42 < np.mean(held) < 0.56
    assert significant <= 8  # of some 8 x 48 tests
    assert np.mean(chosen) - np.mean(held) > 0.08


def test_texts_never_stand_on_both_halves():
    positive, negative = random_texts(21, 0), random_texts(10, 1, (10, 12))
    (chosen_by, measured_on), notes = split_sets([*positive, *positive[:6]], negative, None, 0.3, 4)
    assert "6 texts more than once" in notes[0]
    for place, texts in enumerate((positive, negative)):
        assert not set(chosen_by[place]) & set(measured_on[place])
        assert set(chosen_by[place]) | set(measured_on[place]) == set(texts)
        assert len(measured_on[place]) == round(0.3 * len(texts))
    again, _ = split_sets(positive, negative, None, 0.3, 4)
    assert again == (chosen_by, measured_on)
    assert split_sets(positive, negative, None, 0.3, 5)[0] != again


def test_given_test_texts_measure_and_all_others_choose(planted):
    site = planted.site()
    test = planted.texts(7, cause=True, seed=11), planted.texts(9, cause=False, seed=12)
    found = contrast(
        site, planted.texts(10, cause=True), planted.texts(11, cause=False), test=test, top=1, num_draws=20
    )
    assert (found.num_positive, found.num_negative) == (10, 11)
    assert (found.num_test_positive, found.num_test_negative) == (7, 9)
    assert found.features[0].feature == planted.feature


def test_labels_are_put_beside_features(planted):
    found = contrast(planted.site(), planted.texts(8, cause=True), planted.texts(8, cause=False), num_draws=20)
    named = found.labelled({planted.feature: "the cause"})
    assert named.features[0].label == "the cause"
    assert all(each.label is None for each in named.features[1:])


def test_what_keeps_a_result_from_meaning_much_is_said(site):
    short, long = random_texts(12, 0), [f"{text} alpha beta " * 6 for text in random_texts(12, 1)]
    notes = " ".join(contrast(site, short, long, num_draws=20).notes)
    assert "longer text has a larger maximum" in notes
    assert "12 of 24 texts are longer than a window: they were read window by window" in notes
    assert "6 positive and 6 negative texts chose" in notes
    same = contrast(site, *(random_texts(16, 2)[i::2] for i in (0, 1)), false_discovery_rate=1e-9, num_draws=20)
    assert not same.separates
    assert any("nothing separates the sets" in note for note in same.notes)


@pytest.mark.parametrize(
    ("positive", "negative", "options", "said"),
    [
        ([], ["a"], {}, "the positive set is empty"),
        (["a"], [], {}, "the negative set is empty"),
        (["alpha"], random_texts(9, 0), {}, "the positive set has 1 different text; it takes four"),
        (["alpha"] * 9, random_texts(9, 0), {}, "the positive set has 1 different text;"),
        (random_texts(9, 0), random_texts(9, 0), {}, "9 texts are both in the positive and in the negative set"),
        ("alpha", ["a"], {}, "a list of texts, not one text"),
        (random_texts(5, 0), [*random_texts(5, 1, (9, 12)), ""], {}, "has no token; leave it out"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"pooling": "median"}, "pooling is 'max', 'mean', 'last'"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"order_by": "p"}, "order_by is 'effect_size' or 'auroc'"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"side": "left"}, "side is"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"top": 0}, "top is a number of features"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"test_share": 1.0}, "test_share lies between"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"false_discovery_rate": 2.0}, "lies between 0 and 1"),
        (random_texts(5, 0), random_texts(5, 1, (9, 12)), {"context_size": 99}, "windows of 99 tokens do not fit tiny"),
        (random_texts(5, 0), ["b"], {"test": (["c"], ["d"])}, "the negative set has one text"),
        (["a", "b"], ["c", "d"], {"test": (["a"], ["e"])}, "both in the positive and in the positive test set"),
    ],
)  # fmt: skip
def test_sets_that_can_not_be_compared_are_refused(site, positive, negative, options, said):
    with pytest.raises(ValueError, match=said):
        contrast(site, positive, negative, **options)


def test_activations_that_are_no_numbers_are_refused(tiny):
    dictionary = TopK(TopK.Config(d_in=16, d_sae=48, k=3), seed=1)
    dictionary.metadata |= {"hook_name": HOOK, "context_size": 16}
    with torch.no_grad():
        dictionary.b_enc[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        contrast(Site(dictionary, tiny), random_texts(5, 0), random_texts(5, 1, (9, 12)))


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_the_planted_feature_marks_its_tokens(planted):
    site = planted.site()
    texts = planted.texts(20, cause=True)
    labels = [[word == "fox" for word in text.split()] for text in texts]
    found = contrast_tokens(site, texts, labels, top=3, num_draws=50)
    best = found.features[0]
    assert (best.feature, best.side, best.auroc, best.auroc_train) == (planted.feature, "positive", 1.0, 1.0)
    assert best.share_positive == 1.0
    assert best.share_negative == 0.0
    assert found.unit == "token"
    assert found.num_positive + found.num_test_positive == 20


def test_every_number_of_tokens_equals_a_loop(site):
    texts = random_texts(10, 8)
    generator = np.random.default_rng(0)
    lengths = [len(site.model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    labels = [(generator.random(length) < 0.4).tolist() for length in lengths]
    found = contrast_tokens(site, texts, labels, top=48, seed=3, num_draws=20)
    order = np.random.default_rng(3).permutation(10)
    codes = [by_hand(site, text) for text in texts]
    p = {}
    for each in found.features:
        halves = []
        for half in (order[5:], order[:5]):
            x = [v for i in half for v, up in zip(codes[i][:, each.feature], labels[i], strict=True) if up]
            y = [v for i in half for v, up in zip(codes[i][:, each.feature], labels[i], strict=True) if not up]
            halves.append((x, y))
        (x, y), held = halves
        n1, n2, mx, my = len(x), len(y), np.mean(x), np.mean(y)
        spread = math.sqrt((sum((v - mx) ** 2 for v in x) + sum((v - my) ** 2 for v in y)) / (n1 + n2 - 2))
        up = mx > my
        pair = (lambda x, y: (x, y)) if up else (lambda x, y: (y, x))
        areas = [np.mean([(a > b) + (a == b) / 2 for a in u for b in v]) for u, v in (pair(x, y), pair(*held))]
        assert (found.num_positive, found.num_negative) == (n1, n2)
        assert each.effect_size == pytest.approx((mx - my) / spread * (1 - 3 / (4 * (n1 + n2) - 9)), abs=1e-5)
        assert (each.auroc_train, each.auroc) == pytest.approx(tuple(areas), abs=1e-12)
        assert each.mean_positive == pytest.approx(mx, abs=1e-5)
        assert each.share_negative == pytest.approx(np.mean([v != 0 for v in y]))
        differences = []
        for i in order[5:]:
            column, marks = codes[i][:, each.feature], np.array(labels[i])
            if marks.any() and not marks.all():
                differences.append(column[marks].mean() - column[~marks].mean())
        p[each.feature] = signed_rank_by_hand([d for d in differences if d != 0])
        assert each.p == pytest.approx(p[each.feature], abs=1e-9)
    assert found.num_tested == len(found.features)
    names = list(p)
    expected = dict(zip(names, benjamini_hochberg_by_hand([p[name] for name in names]), strict=True))
    assert {each.feature: each.q for each in found.features} == pytest.approx(expected)


def signed_rank_by_hand(differences):
    """Exact, two-sided: all ways of giving signs to the ranks."""
    n = len(differences)
    if n < 2:
        return 1.0
    sizes = sorted(abs(d) for d in differences)
    above = sum(sizes.index(abs(d)) + 1 for d in differences if d > 0)
    sums = [sum(i + 1 for i in range(n) if signs >> i & 1) for signs in range(2**n)]
    tail = min(sum(s <= above for s in sums), sum(s >= above for s in sums)) / 2**n
    return min(1.0, 2 * tail)


def test_paired_numbers_equal_loops():
    generator = np.random.default_rng(1)
    dense = generator.normal(0.3, 1, (9, 6)) * (generator.random((9, 6)) < 0.7)
    dense[:, 2] = 0.0
    dense[:, 3] = 2.0
    values = sparse.csr_array(dense)
    p, effect = paired_p(values, np.arange(6)), paired_effect(values, np.arange(6))
    for feature in (0, 1, 4, 5):
        column = dense[:, feature].tolist()
        mean = sum(column) / 9
        sd = math.sqrt(sum((v - mean) ** 2 for v in column) / 8)
        assert effect[feature] == pytest.approx(mean / sd * (1 - 3 / 31))
        assert p[feature] == pytest.approx(signed_rank_by_hand([v for v in column if v]))
    assert (p[2], effect[2]) == (1.0, 0.0)
    assert effect[3] == np.inf


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[True]], "10 texts and marks for 1"),
        ([[True]] * 10, "text 0 .* and marks for 1"),
        (None, "0 marked tokens"),
    ],
)
def test_marks_that_do_not_go_with_the_tokens_are_refused(site, labels, said):
    texts = random_texts(10, 8)
    if labels is None:
        tokenizer = site.model.tokenizer
        labels = [[False] * len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    with pytest.raises(ValueError, match=said):
        contrast_tokens(site, texts, labels)
