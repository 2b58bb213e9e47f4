"""Spurious correlation removal: against plain loops over full decodings, and cases with known answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from saescope.dictionaries import Dictionary, ReLU
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation.removal.perturbation import split
from saescope.evaluation.removal.removal import Units
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.removal.spurious import _scores, pairs_with_quadrants, scr
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

D, F, T, DOCUMENTS = 8, 12, 1200, 30
CONFIG = RemovalConfig(num_features=(1, 4), num_seeds=2, num_train=300, least=5)
PAIR = [("c", "a")]


def sample_of(noise: float = 0.4, lengths: tuple[float, float] = (1.0, 2.0)) -> tuple[TokenSample, TokenLabels]:
    """Tokens that show c and a in two directions; the cue a is the louder one."""
    generator = np.random.default_rng(0)
    values = generator.random((T, 2)) < 0.5
    x = (values * np.array(lengths)) @ np.eye(2, D) + noise * generator.normal(size=(T, D))
    document = np.repeat(np.arange(DOCUMENTS), T // DOCUMENTS)
    sample = TokenSample.of_activations(torch.from_numpy(x).float(), document=document)
    return sample, TokenLabels(names=("c", "a"), values=values)


def random_dictionary() -> Dictionary:
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=F))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return dictionary


def planted(scale: torch.Tensor | None = None) -> Dictionary:
    """Feature i is dimension i."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=D))
    with torch.no_grad():
        dictionary.encoder_rows.copy_(torch.eye(D))
        dictionary.W_dec.copy_(torch.eye(D))
        if scale is not None:
            dictionary.encoder_rows.mul_(scale[:, None])
            dictionary.W_dec.div_(scale[:, None])
    return dictionary


def plain(result: StudyResult) -> dict:
    found = result.as_dict()
    del found["seconds"]
    return found


def brute_force(dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, config: RemovalConfig):
    """Scores [S, N, 2] and the biased probe's accuracies [S, 2]."""
    units = Units.of(dictionary, sample, labels, "tokens")  # for its probes alone
    wide, x = dictionary.double(), sample.x.double()
    rows = wide.W_dec.detach().numpy()
    f = wide.encode(x).detach()
    c, a = labels.values.T
    quadrants = [c & a, c & ~a, ~c & a, ~c & ~a]
    scores, starts = [], []
    for reseed in range(config.num_seeds):
        train, test = split(sample, units, config.train_share, config.seed, reseed)
        generator = np.random.default_rng([config.seed, reseed])

        def drawn(which, size, generator=generator, train=train):
            places = train[quadrants[which][train]]
            return places if len(places) <= size else np.sort(generator.choice(places, size, replace=False))

        smallest = min(q[train].sum() for q in quadrants)
        even = np.concatenate([drawn(q, min(smallest, config.num_train // 4)) for q in range(4)])
        smallest = min(quadrants[0][train].sum(), quadrants[3][train].sum())
        ends = np.concatenate([drawn(q, min(smallest, config.num_train // 2)) for q in (0, 3)])
        clean = [units.probe(even, truth[even], c=config.c) for truth in (c, a)]
        biased = units.probe(ends, c[ends], c=config.c)

        def accuracy(probe, truth, y, test=test):
            right = (y[test] @ probe.weights + probe.bias > 0) == truth[test]
            return np.mean([right[q[test]].mean() for q in quadrants])

        mean = np.array([[f[train[q[train]], k].mean().item() for k in range(F)] for q in quadrants])
        gaps = [(mean[0] + mean[1] - mean[2] - mean[3]) / 2, (mean[0] + mean[2] - mean[1] - mean[3]) / 2]
        found = np.zeros((len(config.num_features), 2))
        for direction, truth in enumerate((c, a)):
            other = 1 - direction
            effects = [abs(gaps[other][k] * (clean[other].weights @ rows[k])) for k in range(F)]
            ranked = sorted(range(F), key=lambda k, e=effects: -e[k])
            start = accuracy(biased, truth, x.numpy())
            for place, n in enumerate(config.num_features):
                without = f.clone()
                without[:, ranked[:n]] = 0
                left = (wide.decode(without, x) + (x - wide.decode(f, x))).detach().numpy()
                gap = accuracy(clean[direction], truth, x.numpy()) - start
                found[place, direction] = (accuracy(biased, truth, left) - start) / gap
        scores.append(found)
        starts.append([accuracy(biased, truth, x.numpy()) for truth in (c, a)])
    dictionary.float()
    return np.array(scores), np.array(starts)


def test_the_scores_equal_plain_loops_over_full_decodings():
    sample, labels = sample_of()
    dictionary = random_dictionary()
    result = scr(dictionary, sample, labels, PAIR, config=CONFIG)
    scores, starts = brute_force(dictionary, sample, labels, CONFIG)
    harder = int(starts.mean(0).argmin())
    assert np.abs(scores).max() > 0.05, "the case shows something"
    assert result.tables["pairs"][0]["metric"] == f"scr_dir{harder + 1}"
    assert result.tables["pairs"][0]["biased_target"] == pytest.approx(starts[:, 0].mean())
    for place, n in enumerate(CONFIG.num_features):
        of_n = scores[:, place]
        for direction in range(2):
            assert result[f"scr_dir{direction + 1}_threshold_{n}"].value == pytest.approx(
                of_n[:, direction].mean(), abs=2e-3
            )
        number = result[f"scr_metric_threshold_{n}"]
        assert number.value == pytest.approx(of_n[:, harder].mean(), abs=2e-3)
        assert number.low < number.value < number.high
        assert result[f"scr_metric_threshold_{n}_legacy"].value == pytest.approx(number.value)
        cv = of_n[:, harder].std(ddof=1) / abs(of_n[:, harder].mean())
        assert result[f"scr_metric_threshold_{n}_reseed_cv"].value == pytest.approx(cv, rel=0.1, abs=0.02)
        row = next(row for row in result.tables["removals"] if row["n"] == n)
        assert row["scr_dir1"] == pytest.approx(result[f"scr_dir1_threshold_{n}"].value)
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_feature_that_is_the_cue_is_all_there_is_to_remove():
    """Yes and no have a dimension each, so that without the cue's two features the biased probe still stands upright."""
    generator = np.random.default_rng(0)
    values = generator.random((T, 2)) < 0.5
    x = np.concatenate([values * [1.0, 2.0], ~values * [1.0, 2.0], np.zeros((T, D - 4))], axis=1)
    document = np.repeat(np.arange(DOCUMENTS), T // DOCUMENTS)
    sample = TokenSample.of_activations(torch.from_numpy(x).float(), document=document)
    result = scr(
        planted(),
        sample,
        TokenLabels(names=("c", "a"), values=values),
        PAIR,
        config=dataclasses.replace(CONFIG, num_features=(2,)),
    )
    row = result.tables["pairs"][0]
    assert row["clean_target"] == row["clean_spurious"] == 1
    assert row["biased_target"] == pytest.approx(0.5)  # it goes by the cue
    assert row["metric"] == "scr_dir1"
    assert result["scr_metric_threshold_2"].value == pytest.approx(1, abs=0.02)


def test_where_there_is_nothing_to_remove_there_is_no_score():
    """The biased probe goes by the loud cue, and is as good at it as the clean one."""
    sample, labels = sample_of(noise=0.02, lengths=(1.0, 30.0))
    result = scr(planted(), sample, labels, PAIR, config=CONFIG)
    number = result["scr_dir2_threshold_1"]
    assert number.value is None
    assert "nothing to remove" in number.reason
    assert result["scr_metric_threshold_1"].value == result["scr_dir1_threshold_1"].value is not None
    row = next(row for row in result.tables["removals"] if row["n"] == 1)
    assert row["scr_dir2"] is None
    assert "scr_dir2: in 2 of 2 splits" in result.tables["pairs"][0]["reason"]


def test_the_legacy_number_counts_nothing_to_remove_as_zero():
    """A constant direction alone: no probe can be worse than another."""
    sample, labels = sample_of()
    blind = dataclasses.replace(sample, x=torch.ones(T, D), y=torch.ones(T, D))
    result = scr(planted(), blind, labels, PAIR, config=CONFIG)
    assert result["scr_metric_threshold_1"].value is None
    assert result["scr_metric_threshold_1_legacy"].value == 0
    assert "0 where" in result["scr_metric_threshold_1_legacy"].variant


def test_pairs_that_can_not_be_used_are_listed_and_the_others_count():
    sample, labels = sample_of()
    never = labels.values[:, 0] & False
    more = TokenLabels(names=("c", "a", "never"), values=np.column_stack([labels.values, never]))
    alone = scr(planted(), sample, labels, PAIR, config=CONFIG)
    result = scr(planted(), sample, more, [("c", "never"), ("c", "a")], config=CONFIG)
    assert "0 tokens with both labels" in result.tables["pairs"][0]["reason"]
    assert result.tables["pairs"][0]["metric"] is None
    assert result["scr_metric_threshold_4"].value == alone["scr_metric_threshold_4"].value
    assert "1 of 2 pairs" in result["scr_metric_threshold_4"].variant
    assert "no interval" not in result["scr_metric_threshold_4"].variant
    none = scr(planted(), sample, more, [("c", "never")], config=CONFIG)
    assert {number.value for number in none.numbers} == {None}
    assert all("both labels" in number.reason for number in none.numbers)
    assert [n.name for n in none.numbers] == [n.name for n in result.numbers]


def test_the_lengths_of_decoder_rows_do_not_matter():
    sample, labels = sample_of()
    factors = 2.0 ** torch.tensor([3, -2, 1, 0, 5, -4, 2, -1])
    first, second = (scr(planted(scale), sample, labels, PAIR, config=CONFIG) for scale in (None, factors))
    assert plain(first) == plain(second)
    again = scr(planted(), sample, labels, PAIR, config=dataclasses.replace(CONFIG, seed=1))
    assert plain(again)["numbers"] != plain(first)["numbers"]


def test_a_dead_dictionary_has_no_score():
    sample, labels = sample_of()
    dictionary = planted()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e3)
    result = scr(dictionary, sample, labels, PAIR, config=CONFIG)
    assert {number.value for number in result.numbers} == {None}
    assert "fires" in result.numbers[0].reason


def test_usable_pairs_come_with_the_fullest_first():
    values = np.zeros((100, 4), dtype=bool)
    values[:50, 0] = True
    values[25:75, 1] = True  # quadrants with 0: 25 each
    values[40:60, 2] = True  # with 0: 10, 40, 10, 40; with 1: all within 1
    labels = TokenLabels(names=("w", "x", "y", "never"), values=values)
    assert pairs_with_quadrants(labels, 5) == [("w", "x"), ("w", "y")]
    assert pairs_with_quadrants(labels, 11) == [("w", "x")]
    assert pairs_with_quadrants(labels, 26) == []


def test_bad_input_is_refused_in_words():
    sample, labels = sample_of()
    for pairs, words in (
        ([], "at least one pair"),
        ([("c", "c")], "two different"),
        ([("c", "z")], "no label is named 'z'"),
    ):
        with pytest.raises(ValueError, match=words):
            scr(planted(), sample, labels, pairs, config=CONFIG)
    with pytest.raises(ValueError, match="labels for 10 tokens"):
        scr(planted(), sample, labels.select(np.arange(10)), PAIR, config=CONFIG)
    with pytest.raises(ValueError, match="num_train"):
        RemovalConfig(num_train=3)


def test_a_gap_below_a_thousandth_is_nothing_to_remove():
    """(clean, biased, without) of five splits: a gap of 0.0005, none, the biased probe ahead, and two real ones."""
    accuracies = np.array([[0.8005, 0.8, 0.9], [0.8, 0.8, 0.9], [0.7, 0.8, 0.9], [0.802, 0.8, 0.801], [0.9, 0.8, 0.7]])
    np.testing.assert_allclose(_scores(accuracies), [np.nan, np.nan, np.nan, 0.5, -1.0], atol=1e-9)
