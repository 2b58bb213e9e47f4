"""Sparse probing: choice and numbers against plain loops, and dictionaries and labels whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from saescope.dictionaries import Dictionary, ReLU
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation.probing.k_sparse import (
    METRICS,
    Fitted,
    Task,
    balanced_rows,
    best_thresholds,
    class_differences,
    largest,
    metrics,
    placements,
)
from saescope.evaluation.probing.labelled_text import LabelledTexts
from saescope.evaluation.probing.pooled_texts import pool_texts
from saescope.evaluation.probing.run import _scaled
from saescope.evaluation.probing.studies import ProbingConfig, TextProbingConfig, probe_features, probe_texts
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample

T, D_IN, D_SAE = 3000, 12, 24
CONFIG = ProbingConfig(ks=(1, 2, 4), least_positives=5, most_positives=200)


def make_dictionary(encoder: torch.Tensor, b_enc: torch.Tensor | None = None, scale: float = 1.0) -> Dictionary:
    """ReLU with these encoder rows ``[d_sae, d_in]``; decoder rows are the same, ``scale`` times as long."""
    dictionary = ReLU(DictionaryConfig(d_in=encoder.shape[1], d_sae=len(encoder)))
    with torch.no_grad():
        dictionary.encoder_rows.copy_(encoder / scale)
        dictionary.W_dec.copy_(encoder * scale)
        dictionary.b_enc.copy_(torch.zeros(len(encoder)) if b_enc is None else b_enc / scale)
        dictionary.b_dec.zero_()
    return dictionary


def random_rows(seed: int, count: int = D_SAE) -> torch.Tensor:
    rows = torch.randn(count, D_IN, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def planted() -> tuple[TokenSample, TokenLabels, torch.Tensor]:
    """Three concepts, each a direction of its own in x, on 60 documents; directions are oblique to the axes."""
    generator = np.random.default_rng(0)
    atoms = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(9)))[0]
    on = generator.random((T, D_IN)) < np.linspace(0.3, 0.05, D_IN)
    strength = on * generator.uniform(1, 2, on.shape)
    x = torch.from_numpy(strength).float() @ atoms + 0.02 * torch.randn(
        T, D_IN, generator=torch.Generator().manual_seed(1)
    )
    sample = TokenSample.of_activations(x, document=np.sort(generator.integers(60, size=T)))
    return sample, TokenLabels(names=("a", "b", "c"), values=on[:, [0, 4, 8]]), atoms


def row_of(result: StudyResult, concept: str) -> dict[str, Any]:
    (table,) = result.tables.values()
    (row,) = [row for row in table if row["concept"] == concept]
    return row


# what is known beforehand


def test_a_feature_that_is_the_concept_scores_one(planted: Any) -> None:
    sample, labels, atoms = planted
    oracle = make_dictionary(atoms, torch.full((D_IN,), -0.5))
    result = probe_features(oracle, sample, labels, CONFIG)
    assert result.study == "probing"
    for metric in METRICS:
        assert result[f"{metric}_features_k1"].value == 1
        assert result[f"{metric}_all_features"].value == pytest.approx(1, abs=0.01)
        assert result[f"{metric}_dense"].value == pytest.approx(1, abs=0.02)
    assert [row["features"][0] for row in result.tables["probing"]] == [0, 4, 8]
    assert (result["f1_features_k1"].low, result["f1_features_k1"].high) == (1, 1)
    # no single dimension of x is a concept
    assert result["f1_dimensions_k1"].value < 0.7
    assert result["f1_gain_k1"].value == pytest.approx(1 - result["f1_dimensions_k1"].value, abs=1e-12)


def test_a_random_dictionary_is_well_below(planted: Any) -> None:
    sample, labels, _ = planted
    result = probe_features(make_dictionary(random_rows(3)), sample, labels, CONFIG)
    assert 0.2 < result["f1_features_k1"].value < 0.75
    assert result["f1_features_k1"].value <= result["f1_features_k4"].value < 0.95
    assert result["f1_features_k1"].low < result["f1_features_k1"].value < result["f1_features_k1"].high


def test_labels_without_meaning_give_chance(planted: Any) -> None:
    sample, labels, atoms = planted
    mixed = replace(labels, values=np.random.default_rng(5).permutation(labels.values))
    result = probe_features(make_dictionary(atoms, torch.full((D_IN,), -0.5)), sample, mixed, CONFIG)
    for method in ("features_k1", "features_k4", "dimensions_k1", "dense", "all_features"):
        assert result[f"balanced_accuracy_{method}"].value == pytest.approx(0.5, abs=0.08)
        assert result[f"auc_{method}"].value == pytest.approx(0.5, abs=0.08)
        assert result[f"f1_{method}"].value == pytest.approx(result["f1_constant"].value, abs=0.08)


def test_the_constant_answer(planted: Any) -> None:
    sample, labels, atoms = planted
    result = probe_features(make_dictionary(atoms), sample, labels, CONFIG)
    test = sample.parts(CONFIG.shares, seed=CONFIG.seed)[2]
    share = labels.values[test].mean(0)
    assert result["f1_constant"].value == pytest.approx((2 * share / (1 + share)).mean(), abs=1e-12)
    assert result["accuracy_constant"].value == pytest.approx((1 - share).mean(), abs=1e-12)
    assert result["balanced_accuracy_constant"].value == result["auc_constant"].value == 0.5


def test_scales_of_activations_and_decoder_rows_do_not_matter(planted: Any) -> None:
    sample, labels, _ = planted
    rows = random_rows(4)
    result = probe_features(make_dictionary(rows), sample, labels, CONFIG)
    lengths = torch.linspace(0.01, 50, D_SAE)[:, None]
    rescaled = make_dictionary(rows)
    with torch.no_grad():
        rescaled.encoder_rows.div_(lengths)
        rescaled.W_dec.mul_(lengths)
    large = TokenSample.of_activations(sample.x * 64, document=sample.document)
    for other in (
        probe_features(rescaled, sample, labels, CONFIG),
        probe_features(make_dictionary(rows), large, labels, CONFIG),
    ):
        for concept in labels.names:
            assert row_of(other, concept)["features"] == row_of(result, concept)["features"]
        for number in result.numbers:
            assert other[number.name].value == pytest.approx(number.value, abs=2e-3)


# choice and numbers against plain loops


@pytest.mark.parametrize("rule", ["mean_difference", "normalised"])
def test_differences_of_class_means(rule: Any) -> None:
    generator = np.random.default_rng(1)
    dense = generator.random((90, 7)) * (generator.random((90, 7)) < 0.4)
    dense[:, 3] = 0
    tasks = []
    for number in range(3):
        order = generator.permutation(90)
        y = generator.random(90) < 0.3
        tasks.append(Task(name=str(number), y=y, train=order[:50], fit=order[:50], validation=order, test=order))
    found = class_differences(sparse.csr_array(dense.astype(np.float32)), tasks, rule)
    expected = np.zeros((3, 7))
    for row, task in enumerate(tasks):
        for feature in range(7):
            values = {True: [], False: []}
            for place in task.train:
                values[bool(task.y[place])].append(float(np.float32(dense[place, feature])))
            total, fired = sum(values[True] + values[False]), sum(v != 0 for v in values[True] + values[False])
            scale = total / (fired + 1e-6) + 1e-6 if rule == "normalised" else 1.0
            expected[row, feature] = abs(
                sum(values[True]) / len(values[True]) - sum(values[False]) / len(values[False])
            )
            expected[row, feature] /= scale
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if rule == "mean_difference":
        np.testing.assert_allclose(class_differences(dense.astype(np.float32), tasks, rule), expected, atol=1e-12)
    assert (found[:, 3] == 0).all()
    for row in expected:
        chosen = sorted((feature for feature in range(7) if row[feature] > 0), key=lambda f: -row[f])
        assert largest(row, 4).tolist() == chosen[:4]


def test_largest_leaves_out_what_tells_nothing() -> None:
    assert largest(np.array([0.0, 2.0, 0.0, 2.0, 3.0]), 9).tolist() == [4, 1, 3]
    assert largest(np.zeros(4), 2).tolist() == []


LOGITS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=25)


@given(LOGITS)
def test_placements_and_thresholds_by_pairs(rows: list[tuple[int, bool]]) -> None:
    logits, y = np.array([float(v) for v, _ in rows]), np.array([label for _, label in rows])
    positives, negatives = logits[y], logits[~y]
    if len(positives) and len(negatives):
        auc = np.mean([(p > n) + 0.5 * (p == n) for p in positives for n in negatives])
        placed = placements(logits, y)
        assert placed[y].mean() == pytest.approx(auc, abs=1e-12)
        assert placed[~y].mean() == pytest.approx(auc, abs=1e-12)
        first = np.mean([(positives[0] > n) + 0.5 * (positives[0] == n) for n in negatives])
        assert placed[y][0] == pytest.approx(first, abs=1e-12)

    def f1(threshold: float) -> float:
        said = logits > threshold
        return 2 * (said & y).sum() / (said.sum() + y.sum()) if (said | y).any() else 0.0

    def accuracy(threshold: float) -> float:
        return float(((logits > threshold) == y).mean())

    by_f1, by_accuracy = best_thresholds(logits, y)
    cuts = [-np.inf, np.inf, *(cut + 0.5 for cut in range(-5, 5))]
    assert f1(by_f1) == pytest.approx(max(map(f1, cuts)), abs=1e-12)
    assert accuracy(by_accuracy) == pytest.approx(max(map(accuracy, cuts)), abs=1e-12)


def test_metrics_of_a_probe_by_counting(planted: Any) -> None:
    sample, labels, _ = planted
    codes = encode_sample(make_dictionary(random_rows(7)), sample.x)
    train, validation, test = [np.flatnonzero(part) for part in sample.parts((0.5, 0.25, 0.25), seed=2)]
    y = labels.column("b")
    fit = balanced_rows(y, train, 100, seed=[1])
    assert y[fit].sum() == (~y[fit]).sum() == 100
    assert set(fit) <= set(train)
    assert len(set(fit)) == 200
    task = Task(name="b", y=y, train=train, fit=fit, validation=validation, test=test)
    fitted = Fitted.of(codes, task, c=1.0)
    document = np.searchsorted(np.unique(sample.document[test]), sample.document)
    num_documents = int(document[test].max()) + 1
    sums = fitted.sums(codes, task, document, num_documents)
    assert sums.shape == (num_documents, 9)
    logits = codes[test].toarray().astype(np.float64) @ fitted.probe.weights + fitted.probe.bias
    truth = y[test]

    def count(threshold: float) -> tuple[int, int, int, int]:
        pairs = [(bool(value > threshold), bool(label)) for value, label in zip(logits, truth, strict=True)]
        return tuple(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))  # type: ignore[return-value]

    hits, alarms, missed, _ = count(fitted.f1_threshold)
    expected = [2 * hits / (2 * hits + alarms + missed)]
    hits, alarms, missed, quiet = count(fitted.accuracy_threshold)
    expected.append((hits + quiet) / len(truth))
    hits, alarms, missed, quiet = count(0.0)
    expected.append((hits / (hits + missed) + quiet / (quiet + alarms)) / 2)
    expected.append(np.mean([(p > n) + 0.5 * (p == n) for p in logits[truth] for n in logits[~truth]]))
    total = sums.sum(0)
    np.testing.assert_allclose(metrics(total, total[7] / total[0]), expected, atol=1e-12)
    # and of the part of a draw, the first metric again, document by document
    for number in (0, 3):
        here = document[test] == number
        assert sums[number, 0] == truth[here].sum()
        assert sums[number, 2] == (truth & (logits > fitted.f1_threshold))[here].sum()


@pytest.mark.parametrize("selection", ["mean_difference", "normalised"])
def test_the_study_by_hand(planted: Any, selection: Any) -> None:
    """The whole walk of one concept in plain steps, with scikit-learn called directly."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    sample, labels, _ = planted
    dictionary = make_dictionary(random_rows(11), scale=3.0)
    result = probe_features(dictionary, sample, labels, replace(CONFIG, selection=selection))
    train, validation, test = sample.parts(CONFIG.shares, seed=CONFIG.seed)
    x = sample.x.double().numpy()
    f = np.maximum(x @ dictionary.W_enc.detach().double().numpy(), 0)
    f *= np.linalg.norm(dictionary.W_dec.detach().double().numpy(), axis=1)
    y = labels.column("a")
    difference = np.abs(f[train & y].mean(0) - f[train & ~y].mean(0))
    if selection == "normalised":
        difference /= f[train].sum(0) / (f[train] > 0).sum(0)
    best = np.argsort(-difference)[:2]
    row = row_of(result, "a")
    assert row["features"][:2] == best.tolist()
    assert row["num_positives_training"] == (train & y).sum()
    assert row["num_negatives_test"] == (test & ~y).sum()
    unit = np.sqrt(((x[train] - x[train].mean(0)) ** 2).mean())
    import zlib

    fit = balanced_rows(y, np.flatnonzero(train), CONFIG.most_positives, seed=[CONFIG.seed, zlib.crc32(b"a")])
    model = LogisticRegression(C=CONFIG.c, max_iter=1000).fit(f[fit][:, best] / unit, y[fit])
    logits = model.decision_function(f[:, best] / unit)
    assert row["auc_features_k2"] == pytest.approx(roc_auc_score(y[test], logits[test]), abs=1e-4)
    expected = balanced_accuracy_score(y[test], logits[test] > 0)
    assert row["balanced_accuracy_features_k2"] == pytest.approx(expected, abs=2e-3)
    cuts = np.unique(logits[validation])
    f1 = [
        2 * (y & (logits > cut))[validation].sum() / (y[validation].sum() + (logits > cut)[validation].sum())
        for cut in cuts
    ]
    said = logits > cuts[int(np.argmax(f1))]
    expected = 2 * (y & said)[test].sum() / (y[test].sum() + said[test].sum())
    assert row["f1_features_k2"] == pytest.approx(expected, abs=5e-3)
    means = np.mean([row_of(result, name)["auc_features_k2"] for name in labels.names])
    assert result["auc_features_k2"].value == pytest.approx(means, abs=1e-12)
    assert result.curves["probing"]["k"] == [1, 2, 4]
    assert result.curves["probing"]["f1_features"][1] == result["f1_features_k2"].value
    assert result.curves["probing"]["auc_dense"] == [result["auc_dense"].value] * 3


# splits


def test_test_documents_choose_nothing(planted: Any) -> None:
    sample, labels, _ = planted
    dictionary = make_dictionary(random_rows(5))
    result = probe_features(dictionary, sample, labels, CONFIG)
    test = sample.parts(CONFIG.shares, seed=CONFIG.seed)[2]
    values = labels.values.copy()
    values[test] = ~values[test]
    other_labels = probe_features(dictionary, sample, replace(labels, values=values), CONFIG)
    x = sample.x.clone()
    x[torch.from_numpy(test)] *= 5
    other_x = probe_features(dictionary, TokenSample.of_activations(x, document=sample.document), labels, CONFIG)
    for other in (other_labels, other_x):
        for concept in labels.names:
            for chosen in ("features", "dimensions"):
                assert row_of(other, concept)[chosen] == row_of(result, concept)[chosen]
    # the same probes on opposite labels: what was ranked above is now ranked below
    for concept in labels.names:
        for method in ("features_k2", "dense", "all_features"):
            before, after = (row_of(r, concept)[f"auc_{method}"] for r in (result, other_labels))
            assert after == pytest.approx(1 - before, abs=1e-9)


def test_units_come_from_training_rows(planted: Any) -> None:
    sample, labels, _ = planted
    train, validation, test = np.split(np.random.default_rng(0).permutation(T), [1000, 2000])
    task = Task(name="a", y=labels.column("a"), train=train, fit=train, validation=validation, test=test)
    x = sample.x.numpy().copy()
    x[test] += 100
    scaled, scale = _scaled(x, [task])
    mean = x[train].astype(np.float64).mean(0)
    assert scale == pytest.approx(np.sqrt(((x[train] - mean) ** 2).mean()), rel=1e-6)
    np.testing.assert_allclose(scaled, (x - mean) / scale, rtol=1e-5, atol=1e-5)
    assert _scaled(np.ones_like(x), [task])[1] == 1  # nothing varies


def test_no_document_is_in_two_parts(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import saescope.evaluation.probing.studies as probing

    sample, labels, atoms = planted
    seen: list[Task] = []

    def spy(*args: Any, **more: Any) -> Any:
        seen.extend(args[5])
        return run(*args, **more)

    run = probing.run_probes
    monkeypatch.setattr(probing, "run_probes", spy)
    probe_features(make_dictionary(atoms), sample, labels, CONFIG)
    assert len(seen) == 3
    for task in seen:
        documents = [set(sample.document[rows]) for rows in (task.train, task.validation, task.test)]
        assert sum(map(len, documents)) == len(set.union(*documents)) == sample.num_documents
        assert set(task.fit) <= set(task.train)
        assert task.y[task.fit].sum() * 2 == len(task.fit) <= 2 * CONFIG.most_positives


def test_the_seed_decides_everything(planted: Any) -> None:
    sample, labels, _ = planted
    dictionary = make_dictionary(random_rows(6))
    first, again = (probe_features(dictionary, sample, labels, CONFIG) for _ in range(2))
    other = probe_features(dictionary, sample, labels, replace(CONFIG, seed=1))
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert first["f1_features_k2"].value != other["f1_features_k2"].value
    alone = probe_features(dictionary, sample, TokenLabels(names=("c",), values=labels.values[:, 2:]), CONFIG)
    assert row_of(alone, "c")["f1_features_k4"] == row_of(first, "c")["f1_features_k4"]


def test_every_activation_a_document_of_its_own(planted: Any) -> None:
    sample, labels, atoms = planted
    bare = TokenSample.of_activations(torch.cat([sample.x] * 4))  # more test documents than are drawn one by one
    names = TokenLabels(names=labels.names, values=np.concatenate([labels.values] * 4))
    result = probe_features(make_dictionary(atoms, torch.full((D_IN,), -0.5)), bare, names, CONFIG)
    assert result["f1_features_k1"].value == 1
    dense = result["auc_dimensions_k1"]
    assert dense.low < dense.value < dense.high < dense.low + 0.1


# bad input


def test_concepts_that_cannot_be_probed_for_are_rows_with_a_reason(planted: Any) -> None:
    sample, labels, atoms = planted
    values = np.concatenate([labels.values, np.zeros((T, 2), dtype=bool)], axis=1)
    values[:, 4] = True
    values[:7, 3] = True
    result = probe_features(
        make_dictionary(atoms), sample, TokenLabels(names=("a", "b", "c", "rare", "all"), values=values), CONFIG
    )
    plain = probe_features(make_dictionary(atoms), sample, labels, CONFIG)
    assert result["num_concepts"].value == 3
    assert result["f1_features_k1"].value == plain["f1_features_k1"].value
    for name, words in (("rare", "positives and"), ("all", "and 0 negatives; a probe needs 5 of each")):
        row = row_of(result, name)
        assert words in row["reason"]
        assert row["f1_features_k1"] is row["f1_dense"] is None
        assert set(row) >= {key for key in row_of(result, "a") if key not in ("features", "dimensions")}
    assert any("2 of 5 concepts have too few examples" in note for note in result.notes)
    assert StudyResult.from_dict(result.as_dict()) == result


def test_no_concept_at_all_gives_numbers_without_value(planted: Any) -> None:
    sample, labels, atoms = planted
    none = TokenLabels(names=("never",), values=np.zeros((T, 1), dtype=bool))
    result = probe_features(make_dictionary(atoms), sample, none, CONFIG)
    assert result["num_concepts"].value == 0
    assert result["f1_features_k1"].value is None
    assert "no concept has enough positives" in result["f1_features_k1"].reason
    usual = probe_features(make_dictionary(atoms), sample, labels, CONFIG)
    assert [number.name for number in usual.numbers] == [number.name for number in result.numbers]


def test_what_does_not_fit_is_refused(planted: Any) -> None:
    sample, labels, atoms = planted
    with pytest.raises(ValueError, match="labels for 2,999 tokens, but the sample has 3,000"):
        probe_features(make_dictionary(atoms), sample, labels.select(np.arange(T - 1)), CONFIG)
    with pytest.raises(ValueError, match="reads width 8, but the sample was read at a width of 12"):
        probe_features(make_dictionary(torch.eye(8)), sample, labels, CONFIG)
    with pytest.raises(ValueError, match="no feature of the dictionary fires here"):
        probe_features(make_dictionary(atoms, torch.full((D_IN,), -1e4)), sample, labels, CONFIG)
    with pytest.raises(ValueError, match="NaN"):
        probe_features(make_dictionary(atoms * torch.nan), sample, labels, CONFIG)
    infinite = sample.x.clone()
    infinite[5] = -torch.inf
    broken = TokenSample.of_activations(infinite, document=sample.document)
    with pytest.raises(ValueError, match="NaN"):
        probe_features(make_dictionary(torch.ones(1, D_IN)), broken, labels, CONFIG)
    few = TokenSample.of_activations(sample.x, document=np.arange(T) % 2)
    with pytest.raises(ValueError, match="2 documents can not be dealt out to 3 parts"):
        probe_features(make_dictionary(atoms), few, labels, CONFIG)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ks": ()}, "ks must be"),
        ({"ks": (0, 1)}, "ks must be"),
        ({"ks": (2, 2)}, "ks must be"),
        ({"selection": "best"}, "selection must be mean_difference or normalised"),
        ({"shares": (0.5, 0.5, 0.0)}, "shares must be three numbers above 0"),
        ({"c": 0.0}, "above 0"),
        ({"regularisations": ()}, "above 0"),
        ({"least_positives": 0}, "least_positives"),
        ({"most_positives": 3}, "least_positives"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProbingConfig(**settings)


def test_few_live_features_are_used_as_they_are(planted: Any) -> None:
    sample, labels, atoms = planted
    bias = torch.full((D_IN,), -1e4)
    bias[[0, 4]] = -0.5
    result = probe_features(make_dictionary(atoms, bias), sample, labels, CONFIG)
    assert row_of(result, "a")["features"][0] == 0
    assert len(row_of(result, "c")["features"]) == 2
    assert row_of(result, "a")["f1_features_k4"] == 1


# texts

HOOK = "transformer.h.1"
TEXT_CONFIG = TextProbingConfig(ks=(1, 2), least_positives=4, most_positives=40, context_size=12, batch_size_texts=7)


def tiny_dictionary(seed: int = 0) -> Dictionary:
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(seed))
    return make_dictionary(rows / rows.norm(dim=-1, keepdim=True), torch.full((30,), -0.5))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_pooled_texts_one_text_at_a_time(tiny: Any, pooling: Any, prepend_bos: bool) -> None:
    texts = ["def alpha(x):\n    return x + 1\n" * 4, "x", "beta = gamma", "a<|endoftext|>b", "kappa mu " * 20, "q"]
    dictionary = tiny_dictionary()
    pooled = pool_texts(
        dictionary, tiny, texts, [HOOK], pooling=pooling, context_size=12, prepend_bos=prepend_bos, batch_size_texts=4
    )
    assert pooled.codes.shape == (6, 30)
    for row, text in enumerate(texts):
        ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
        width = 12 - prepend_bos
        ids = [0] * prepend_bos + (ids[:width] if pooling == "mean" else ids[-width:])
        x = tiny.read(torch.tensor([ids]), [HOOK])[HOOK][0]
        places = [place for place, token in enumerate(ids) if token != 0]
        if pooling == "last":
            places = places[-1:]
        codes = np.mean([dictionary.encode(x[place]).detach().double().numpy() for place in places], axis=0)
        np.testing.assert_allclose(pooled.codes[[row]].toarray()[0], codes, atol=1e-5)
        np.testing.assert_allclose(pooled.x[row], x[places].double().mean(0).numpy(), atol=1e-5)


def test_a_token_of_zeros_is_a_token(tiny: Any) -> None:
    """Activations that are all zero count in the mean; only the mask says what is padding."""
    ids = tiny.tokenizer("alpha beta", add_special_tokens=False)["input_ids"]
    with tiny.edit({HOOK: lambda x: torch.zeros_like(x)}):
        pooled = pool_texts(make_dictionary(torch.eye(16), torch.ones(16)), tiny, ["alpha beta", "mu"], [HOOK])
    np.testing.assert_array_equal(pooled.codes.toarray(), np.ones((2, 16)))
    assert len(ids) > 1
    with pytest.raises(ValueError, match="text 1 has no token that is not special"):
        pool_texts(tiny_dictionary(), tiny, ["x", ""], [HOOK])
    with pytest.raises(ValueError, match="there are no texts"):
        pool_texts(tiny_dictionary(), tiny, [], [HOOK])
    with pytest.raises(ValueError, match="pooling must be 'mean' or 'last', got 'max'"):
        pool_texts(tiny_dictionary(), tiny, ["x"], [HOOK], pooling="max")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def labelled() -> LabelledTexts:
    """The first word tells the class, so that a bag of tokens knows it."""
    generator = np.random.default_rng(0)
    words = {"greek": ("alpha", "beta", "gamma"), "code": ("def", "return", "x"), "other": ("mu", "eta", "zeta")}
    texts, labels = [], []
    for i in range(240):
        name = ("greek", "code", "other")[i % 3]
        texts.append(" ".join(generator.choice(words[name], size=4)) + f" {i}")
        labels.append(name)
    return LabelledTexts(name="made", texts=(*texts, "lone"), labels=(*labels, "lonely"))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_classes_of_texts(tiny: Any, labelled: LabelledTexts, pooling: Any) -> None:
    config = replace(TEXT_CONFIG, pooling=pooling)
    steps: list[tuple[int, int]] = []
    result = probe_texts(
        tiny_dictionary(), tiny, labelled, [HOOK], config, on_progress=lambda *done: steps.append(done)
    )
    assert result.study == "text_probing"
    assert result["num_concepts"].value == 3
    assert steps[-1][0] == steps[-1][1] <= len(labelled)
    if pooling == "mean":
        assert result["auc_dense"].value > 0.9
        assert result["auc_features_k2"].value > 0.6
    row = row_of(result, "lonely")
    assert row["f1_features_k1"] is None
    assert "texts of this class" in row["reason"]
    row = row_of(result, "greek")
    assert 4 <= row["num_positives_test"] == row["num_negatives_test"] <= 13  # a third of most_positives
    assert row["num_positives_training"] == row["num_negatives_training"] == 40
    assert row["accuracy_constant"] == 0.5
    if pooling == "mean":
        other = probe_texts(tiny_dictionary(), tiny, labelled, [HOOK], replace(config, batch_size_texts=64))
        for number in result.numbers:
            assert other[number.name].value == pytest.approx(number.value, abs=0.03)


def test_classes_that_are_all_too_small(tiny: Any) -> None:
    data = LabelledTexts(name="small", texts=("x", "y", "z"), labels=("a", "b", "b"), notes=("a note",))
    result = probe_texts(tiny_dictionary(), tiny, data, [HOOK], TEXT_CONFIG)
    assert result["f1_features_k1"].value is None
    assert "a note" in result.notes
    assert [row["concept"] for row in result.tables["text_probing"]] == ["a", "b"]
