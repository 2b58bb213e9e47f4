"""Targeted probe perturbation: the sparse shortcuts against full decoding in float64, and planted dictionaries."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import sparse

from saescope.dictionaries import Dictionary, ReLU, TopK
from saescope.dictionaries.base import DictionaryConfig
from saescope.dictionaries.normalization import LayerNorm, Whitening
from saescope.dictionaries.topk import TopKConfig
from saescope.dictionaries.transcoder import transcoder
from saescope.evaluation.removal.perturbation import split, tpp
from saescope.evaluation.removal.removal import Decoded, Units, strongest, written
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

D, F, T, DOCUMENTS = 8, 12, 1200, 30
CONFIG = RemovalConfig(num_features=(1, 3), num_seeds=2, num_train=300, least=5)


class Squashing(ReLU):
    """A decoder that is not affine."""

    def decode(self, f, x=None):
        return torch.tanh(super().decode(f, x))


def randomised(dictionary: Dictionary, seed: int = 1) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return dictionary


def dictionary_of(kind: str) -> Dictionary:
    config = DictionaryConfig(d_in=D, d_sae=F)
    if kind == "topk":
        return randomised(TopK(TopKConfig(d_in=D, d_sae=F, k=4)))
    if kind == "squashing":
        return randomised(Squashing(config))
    if kind == "skip_transcoder":
        made = transcoder(ReLU, skip=True)
        return randomised(made(made.Config(d_in=D, d_sae=F, d_out=5)))
    dictionary = randomised(ReLU(config))
    if kind == "layer_norm":
        dictionary.input_normalization = LayerNorm()
    if kind == "whitening":
        matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(3)) + 3 * torch.eye(D)
        dictionary.input_normalization = Whitening(torch.arange(D) / 8, matrix, torch.linalg.inv(matrix))
    return dictionary


def sample_of(seed: int = 0, d_out: int | None = None) -> tuple[TokenSample, TokenLabels]:
    """Correlated tokens, and three labels that they show."""
    generator = np.random.default_rng(seed)
    values = generator.random((T, 3)) < [0.3, 0.5, 0.2]
    directions = generator.normal(size=(3, D))
    x = values @ directions + 0.5 * generator.normal(size=(T, D))
    x = torch.from_numpy(x).float()
    y = None if d_out is None else x[:, :d_out] * 2
    document = np.repeat(np.arange(DOCUMENTS), T // DOCUMENTS)
    return TokenSample.of_activations(x, y, document=document), TokenLabels(names=("a", "b", "c"), values=values)


@pytest.mark.parametrize("unit", ["tokens", "documents"])
@pytest.mark.parametrize("kind", ["relu", "topk", "layer_norm", "whitening", "skip_transcoder", "squashing"])
def test_what_is_removed_is_the_difference_of_two_decodings(kind, unit):
    dictionary = dictionary_of(kind)
    sample, labels = sample_of(d_out=5 if kind == "skip_transcoder" else None)
    units = Units.of(dictionary, sample, labels, unit)
    assert isinstance(units.written, Decoded) == (kind == "squashing")
    weights = np.random.default_rng(2).normal(size=(dictionary.d_out, 2))
    features = np.array([7, 0, 3, 9])
    places = np.arange(1, len(units.y), 3)
    wide, x = dictionary.double(), sample.x.double()
    with torch.no_grad():
        f = wide.encode(x)
        for size, fall in zip(
            (0, 1, 4), units.written.select(places).removed(features, (0, 1, 4), weights), strict=True
        ):
            without = f.clone()
            without[:, features[:size].tolist()] = 0
            difference = (wide.decode(f, x) - wide.decode(without, x)).numpy()
            if unit == "documents":
                difference = np.stack([difference[sample.document == d].mean(0) for d in range(DOCUMENTS)])
            np.testing.assert_allclose(fall, difference[places] @ weights, atol=2e-5)


def brute_force(dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, config: RemovalConfig):
    """(intended, unintended) for every n, by plain loops over labels and full decodings, and all accuracies."""
    wide, x = dictionary.double(), sample.x.double()
    units = Units.of(dictionary.float(), sample, labels, config.unit)  # for its probes alone
    wide = dictionary.double()
    rows = wide.W_dec.detach().numpy()
    intended, unintended, accuracies = [], [], []
    with torch.no_grad():
        f = wide.encode(x)
    for reseed in range(config.num_seeds):
        train, test = split(sample, units, config.train_share, config.seed, reseed)
        assert not set(sample.document[train]) & set(sample.document[test])
        assert len(train) + len(test) == T
        probes = []
        for label in range(3):
            truth = labels.values[:, label]
            generator = np.random.default_rng([config.seed, reseed, label])
            chosen = []
            for side in (train[truth[train]], train[~truth[train]]):
                half = config.num_train // 2
                chosen.append(side if len(side) <= half else np.sort(generator.choice(side, half, replace=False)))
            chosen = np.concatenate(chosen)
            probes.append(units.probe(chosen, truth[chosen], c=config.c))

        def accuracy(probe, truth, y, test=test):
            said = y[test] @ probe.weights + probe.bias > 0
            right = said == truth[test]
            return (right[truth[test]].mean() + right[~truth[test]].mean()) / 2

        clean = [accuracy(p, labels.values[:, j], x.numpy()) for j, p in enumerate(probes)]
        accuracies.append(np.mean(clean))
        drops = np.zeros((len(config.num_features), 3, 3))
        for i, probe in enumerate(probes):
            truth = labels.values[:, i]
            effects = []
            for k in range(F):
                of_train = f[:, k].numpy()[train]
                gap = of_train[truth[train]].mean() - of_train[~truth[train]].mean()
                effects.append(max(gap, 0) * (probe.weights @ rows[k]))
            ranked = [k for k in sorted(range(F), key=lambda k: -effects[k]) if effects[k] != 0]
            for place, n in enumerate(config.num_features):
                without = f.clone()
                without[:, ranked[:n]] = 0
                with torch.no_grad():
                    left = (wide.decode(without, x) + (x - wide.decode(f, x))).numpy()
                for j, other in enumerate(probes):
                    drops[place, i, j] = clean[j] - accuracy(other, labels.values[:, j], left)
        intended.append([np.mean([d[i, i] for i in range(3)]) for d in drops])
        unintended.append([np.mean([np.mean([d[i, j] for j in range(3) if j != i]) for i in range(3)]) for d in drops])
    dictionary.float()
    return np.array(intended), np.array(unintended), float(np.mean(accuracies))


@pytest.mark.parametrize("kind", ["relu", "squashing"])
def test_the_metric_equals_plain_loops_over_full_decodings(kind):
    dictionary = dictionary_of(kind)
    sample, labels = sample_of()
    result = tpp(dictionary, sample, labels, config=CONFIG)
    intended, unintended, accuracy = brute_force(dictionary, sample, labels, CONFIG)
    assert result["mean_probe_accuracy"].value == pytest.approx(accuracy, abs=1e-12)
    assert np.abs(intended).max() > 0.02, "the case shows something"
    for place, n in enumerate(CONFIG.num_features):
        name = f"tpp_threshold_{n}"
        # a logit within rounding of 0 may fall on either side: not more than one token
        assert result[f"{name}_intended_diff_only"].value == pytest.approx(intended[:, place].mean(), abs=2e-3)
        assert result[f"{name}_unintended_diff_only"].value == pytest.approx(unintended[:, place].mean(), abs=2e-3)
        total = (intended - unintended)[:, place]
        assert result[f"{name}_total_metric"].value == pytest.approx(total.mean(), abs=2e-3)
        cv = total.std(ddof=1) / abs(total.mean())
        assert result[f"{name}_reseed_cv"].value == pytest.approx(cv, rel=0.1, abs=0.02)
        number = result[f"{name}_total_metric"]
        assert number.low < number.value < number.high
        rows = [row for row in result.tables["perturbations"] if row["n"] == n]
        assert np.mean([row["intended"] for row in rows]) == pytest.approx(
            result[f"{name}_intended_diff_only"].value, abs=1e-12
        )
        assert np.mean([row["unintended"] for row in rows]) == pytest.approx(
            result[f"{name}_unintended_diff_only"].value, abs=1e-12
        )


def planted(scale: torch.Tensor | None = None) -> tuple[Dictionary, TokenSample, TokenLabels]:
    """Orthogonal concepts that fire independently of each other; feature i is concept i, those after the third are idle."""
    generator = np.random.default_rng(4)
    values = generator.random((T, 3)) < 0.4
    x = torch.from_numpy(3.0 * values @ np.eye(3, D) + 0.02 * generator.normal(size=(T, D))).float()
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=D))
    with torch.no_grad():
        dictionary.encoder_rows.copy_(torch.eye(D))
        dictionary.W_dec.copy_(torch.eye(D))
        dictionary.b_enc.fill_(-0.5)
        if scale is not None:
            dictionary.encoder_rows.mul_(scale[:, None])
            dictionary.b_enc.mul_(scale)
            dictionary.W_dec.div_(scale[:, None])
    document = np.repeat(np.arange(DOCUMENTS), T // DOCUMENTS)
    return (
        dictionary,
        TokenSample.of_activations(x, document=document),
        TokenLabels(names=("a", "b", "c"), values=values),
    )


def plain(result: StudyResult) -> dict:
    found = result.as_dict()
    del found["seconds"]
    return found


def test_a_feature_that_is_the_concept_takes_it_all_and_no_other():
    dictionary, sample, labels = planted()
    result = tpp(dictionary, sample, labels, config=CONFIG)
    assert result["mean_probe_accuracy"].value == 1
    assert result["tpp_threshold_1_intended_diff_only"].value == pytest.approx(0.5)
    assert result["tpp_threshold_1_unintended_diff_only"].value == pytest.approx(0, abs=1e-12)
    assert result["tpp_threshold_1_total_metric"].value == pytest.approx(0.5)
    assert result["tpp_threshold_1_reseed_cv"].value == pytest.approx(0, abs=1e-9)


def test_the_lengths_of_decoder_rows_do_not_matter():
    factors = 2.0 ** torch.tensor([3, -2, 1, 0, 5, -4, 2, -1])  # powers of two: exact
    first, second = (tpp(*planted(scale), config=CONFIG) for scale in (None, factors))
    assert plain(first) == plain(second)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    sample, labels = sample_of()
    dictionary = dictionary_of("relu")
    first, again = (tpp(dictionary, sample, labels, config=CONFIG) for _ in range(2))
    assert plain(first) == plain(again)
    other = tpp(dictionary, sample, labels, config=dataclasses.replace(CONFIG, seed=1))
    assert first["tpp_threshold_3_total_metric"].value != other["tpp_threshold_3_total_metric"].value
    json.dumps(first.as_dict(), allow_nan=False)


def test_documents_are_told_apart_by_means_over_their_tokens():
    generator = np.random.default_rng(6)
    of_documents = generator.random((120, 2)) < 0.5
    values = np.repeat(of_documents, 10, axis=0)
    sample = TokenSample.of_activations(
        torch.from_numpy(3.0 * values @ np.eye(2, D) + 0.1 * generator.normal(size=(T, D))),
        document=np.repeat(np.arange(120), 10),
    )
    flipped = values.copy()
    flipped[::10] ^= True  # one token in ten says otherwise
    labels = TokenLabels(names=("a", "b"), values=flipped)
    dictionary, _, _ = planted()
    units = Units.of(dictionary, sample, labels, "documents")
    assert (units.values == of_documents).all()
    np.testing.assert_allclose(units.y, sample.x.view(120, 10, D).mean(1).numpy(), atol=1e-6)
    result = tpp(dictionary, sample, labels, config=dataclasses.replace(CONFIG, unit="documents"))
    assert result["tpp_threshold_1_total_metric"].value == pytest.approx(0.5, abs=0.05)


def test_labels_with_too_few_positives_are_listed_with_the_reason():
    dictionary, sample, labels = planted()
    rare = np.zeros(T, dtype=bool)
    rare[:3] = True
    values = np.column_stack([labels.values, rare, np.ones(T, dtype=bool)])
    more = TokenLabels(names=(*labels.names, "rare", "always"), values=values)
    result = tpp(dictionary, sample, more, config=CONFIG)
    rows = {row["label"]: row for row in result.tables["labels"]}
    assert list(rows) == list(more.names)
    assert rows["rare"]["probe_accuracy"] is None
    assert "positive" in rows["rare"]["reason"]
    assert " 0 negative tokens" in rows["always"]["reason"]
    assert "reason" not in rows["a"]
    without = tpp(dictionary, sample, labels, config=CONFIG)
    assert plain(result)["numbers"] == plain(without)["numbers"], "labels left out change nothing"


def test_one_label_has_an_intended_drop_alone():
    dictionary, sample, labels = planted()
    one = TokenLabels(names=("a",), values=labels.values[:, :1])
    result = tpp(dictionary, sample, one, config=CONFIG)
    assert result["tpp_threshold_1_intended_diff_only"].value == pytest.approx(0.5)
    for part in ("total_metric", "unintended_diff_only", "reseed_cv"):
        assert result[f"tpp_threshold_1_{part}"].value is None
        assert "second label" in result[f"tpp_threshold_1_{part}"].reason


def test_numbers_that_are_not_there_say_why():
    dictionary, sample, labels = planted()
    nothing = TokenLabels(names=("a",), values=np.zeros((T, 1), dtype=bool))
    result = tpp(dictionary, sample, nothing, config=CONFIG)
    assert {number.value for number in result.numbers} == {None}
    assert "5 positives" in result.numbers[0].reason
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e3)
    dead = tpp(dictionary, sample, labels, config=CONFIG)
    assert {number.value for number in dead.numbers} == {None}
    assert "fires" in dead.numbers[0].reason
    assert len(dead.numbers) == len(tpp(planted()[0], sample, labels, config=CONFIG).numbers)


def test_labels_within_each_other_are_noted():
    dictionary, sample, labels = planted()
    inner = labels.values[:, 0] & (np.arange(T) % 2 == 0)
    nested = TokenLabels(names=("outer", "inner"), values=np.column_stack([labels.values[:, 0], inner]))
    assert any("inner in outer" in note for note in tpp(dictionary, sample, nested, config=CONFIG).notes)


def test_bad_input_is_refused_in_words():
    dictionary, sample, labels = planted()
    with pytest.raises(ValueError, match="labels for 10 tokens"):
        tpp(dictionary, sample, labels.select(np.arange(10)), config=CONFIG)
    one = TokenSample.of_activations(sample.x, document=np.zeros(T))
    with pytest.raises(ValueError, match="documents can not be dealt"):
        tpp(dictionary, one, labels, config=CONFIG)
    with torch.no_grad():
        dictionary.W_dec[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        tpp(dictionary, sample, labels, config=CONFIG)
    with pytest.raises(ValueError, match="width"):
        tpp(ReLU(DictionaryConfig(d_in=D + 1, d_sae=4)), sample, labels, config=CONFIG)
    for wrong in ({"num_features": (5, 2)}, {"num_features": ()}, {"unit": "words"}, {"num_seeds": 0}, {"least": 0}):
        with pytest.raises(ValueError, match=r"must be|is tokens"):
            RemovalConfig(**wrong)


def test_the_strongest_are_in_order_and_never_zero():
    assert strongest(np.array([0.0, -1.0, 3.0, 3.0, 0.0, 1.0]), 10).tolist() == [2, 3, 5, 1]
    assert strongest(np.array([0.0, -1.0, 3.0, 3.0, 0.0, 1.0]), 2).tolist() == [2, 3]


def test_groups_of_units_weigh_alike_in_a_difference():
    dictionary, sample, labels = planted()
    f = dictionary.encode(sample.x).detach().double().numpy()
    units = Units.of(dictionary, sample, labels, "tokens")
    groups = [np.arange(3), np.arange(10, 300), np.arange(400, 450)]
    expected = (f[groups[0]].mean(0) + f[groups[1]].mean(0)) / 2 - f[groups[2]].mean(0)
    np.testing.assert_allclose(units.difference(groups[:2], groups[2:]), expected, atol=1e-12)


def test_codes_of_units_are_sparse():
    dictionary, sample, _ = planted()
    made = written(dictionary, sample.x, sparse.eye_array(T, format="csr"))
    assert made.codes.nnz < T * D / 2
    assert (made.codes.toarray() == dictionary.encode(sample.x).detach().numpy()).all()
