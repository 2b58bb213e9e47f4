"""Concept alignment: every number against plain loops over features, thresholds and concepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from saescope.dictionaries import AbsTopK, Dictionary, DictionaryConfig, ReLU, TopKConfig
from saescope.evaluation.concepts.concept_f1 import ConceptConfig, concept_f1
from saescope.evaluation.concepts.counts import FiringLevels, f1_of_counts
from saescope.evaluation.concepts.spans import LabelledPart, follows, laid_down_anew, spans
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

THRESHOLDS = (0.0, 0.15, 0.5, 0.6, 0.8)


def identity(width: int, *, bias: float = 0.0) -> Dictionary:
    """A dictionary whose features are the positive parts of the dimensions."""
    dictionary = ReLU(DictionaryConfig(d_in=width, d_sae=width))
    with torch.no_grad():
        for weights in (dictionary.W_dec, dictionary.encoder_rows, dictionary.b_enc):
            assert weights is not None
        dictionary.W_dec.copy_(torch.eye(width))
        dictionary.encoder_rows.copy_(torch.eye(width))  # type: ignore[union-attr]
        dictionary.b_enc.fill_(bias)  # type: ignore[union-attr]
    return dictionary


def sample_of(
    values: np.ndarray, document: Sequence[int] | np.ndarray, position: np.ndarray | None = None
) -> TokenSample:
    sample = TokenSample.of_activations(torch.from_numpy(np.asarray(values, dtype=np.float32)))
    place = np.arange(len(values)) if position is None else position
    return TokenSample(
        x=sample.x, y=sample.x, ids=sample.ids, place=sample.place, document=np.asarray(document), position=place
    )


def labels_of(*columns: np.ndarray | Sequence[bool]) -> TokenLabels:
    values = np.column_stack([np.asarray(column, dtype=bool) for column in columns])
    return TokenLabels(names=tuple("abcdefgh"[: len(columns)]), values=values)


# Plain loops


def loop_spans(sample: TokenSample, concept: np.ndarray, tokens: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    before = None
    for t in tokens:
        joined = (
            before is not None
            and concept[before]
            and sample.document[before] == sample.document[t]
            and sample.position[t] == sample.position[before] + 1
        )
        if concept[t]:
            if joined:
                found[-1].append(t)
            else:
                found.append([t])
        before = t
    return found


def loop_scores(
    fires: Sequence[bool], sample: TokenSample, concept: np.ndarray, tokens: Sequence[int], recall: str
) -> tuple[float, float | None, float]:
    """F1, precision, recall."""
    said = [t for t in tokens if fires[t]]
    right = [t for t in said if concept[t]]
    items = loop_spans(sample, concept, tokens) if recall == "spans" else [[t] for t in tokens if concept[t]]
    found = sum(any(fires[t] for t in item) for item in items) / len(items)
    precision = len(right) / len(said) if said else None
    if not right or precision is None:
        return 0.0, precision, found
    return 2 * precision * found / (precision + found), precision, found


def loop_study(
    values: np.ndarray, sample: TokenSample, labels: TokenLabels, config: ConceptConfig
) -> list[dict[str, Any]]:
    """``values [T, W]``: any candidates; a row for each concept."""
    train, validation, test = (np.flatnonzero(p).tolist() for p in sample.parts(config.shares, seed=config.seed))
    rows = []
    for concept in labels.values.T:
        best: dict[str, Any] = {"f1_validation": 0.0, "feature": None}
        per_level = [(0.0, -1) for _ in config.thresholds]
        for number, threshold in enumerate(config.thresholds):
            for i in range(values.shape[1]):
                highest = max(values[t, i] for t in train)
                fires = [highest > 0 and v > threshold * highest for v in values[:, i]]
                f1 = loop_scores(fires, sample, concept, validation, config.recall)[0]
                if f1 > per_level[number][0]:
                    per_level[number] = (f1, i)
        for number, (f1, i) in enumerate(per_level):
            if f1 > best["f1_validation"]:
                best = {"f1_validation": f1, "feature": i, "threshold": config.thresholds[number]}
        best["per_level"] = per_level
        rows.append(best)
    for row, concept in zip(rows, labels.values.T, strict=True):
        for name, level, i in [
            ("f1", row.get("threshold", 0), row["feature"]),
            *((f"at {t}", t, row["per_level"][n][1]) for n, t in enumerate(config.thresholds)),
        ]:
            if i is None or i < 0:
                row[name] = 0.0
                continue
            fires = [v > level * max(values[t, i] for t in train) for v in values[:, i]]
            scores = loop_scores(fires, sample, concept, test, config.recall)
            row[name] = scores[0]
            if name == "f1":
                row["precision"], row["recall"] = scores[1:]
    return rows


def random_case(seed: int, num_documents: int = 11, num_features: int = 7) -> tuple[TokenSample, TokenLabels]:
    """Concepts in runs, features that follow them more or less, documents of many lengths, and gaps in the text."""
    generator = np.random.default_rng(seed)
    document = np.repeat(np.arange(num_documents) * 3, generator.integers(15, 40, size=num_documents))
    num_tokens = len(document)
    position = np.cumsum(1 + (generator.random(num_tokens) < 0.05))
    states = [
        np.repeat(generator.random(num_tokens) < share, generator.integers(1, 5, num_tokens)) for share in (0.3, 0.5)
    ]
    a, b = (state[:num_tokens] for state in states)
    c = generator.random(num_tokens) < 0.2
    values = generator.normal(size=(num_tokens, num_features)) - 0.3
    values[:, 0] += 1.5 * a
    values[:, 1] += 2 * c - b
    values[:, 5] = np.where(b, generator.random(num_tokens) * 3, values[:, 5])
    values[:, 3] = -1
    return sample_of(values, document, position), labels_of(a, b, c)


@pytest.mark.parametrize("recall", ["spans", "tokens"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_equals_plain_loops(recall: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saescope.evaluation.concepts.concept_f1._COLUMNS_AT_ONCE", 3)  # several blocks of dimensions
    sample, labels = random_case(seed)
    config = ConceptConfig(recall=recall, min_positives=1, seed=seed)
    result = concept_f1(identity(7), sample, labels, config)
    x = sample.x.double().numpy()
    expected = loop_study(np.maximum(x, 0), sample, labels, config)
    for row, own in zip(result.tables["concepts"], expected, strict=True):
        for key in ("feature", "threshold"):
            assert row[key] == own[key]
        for key in ("f1", "precision", "recall", "f1_validation"):
            assert row[key] == pytest.approx(own[key], abs=1e-12)
    assert result["coverage"].value == pytest.approx(np.mean([own["f1"] for own in expected]), abs=1e-12)
    on_validation = np.mean([own["f1_validation"] for own in expected])
    assert result["coverage_validation"].value == pytest.approx(on_validation, abs=1e-12)
    single = int(np.argmax([sum(own["per_level"][n][0] for own in expected) for n in range(5)]))
    at = np.mean([own[f"at {THRESHOLDS[single]}"] for own in expected])
    assert result["coverage_one_threshold"].value == pytest.approx(at, abs=1e-12)
    assert f"({THRESHOLDS[single]:g})" in result["coverage_one_threshold"].variant

    train = np.flatnonzero(sample.parts(config.shares, seed=seed)[0])
    centred = x - x[train].mean(0)
    expected = loop_study(np.concatenate([centred, -centred], 1), sample, labels, config)
    for row, own in zip(result.tables["concepts"], expected, strict=True):
        assert row["dimension"] + 7 * (row["dimension_sign"] < 0) == own["feature"]
        assert row["dimension_threshold"] == own["threshold"]
        assert row["dimension_f1"] == pytest.approx(own["f1"], abs=1e-12)
    assert result["coverage_best_dimension"].value == pytest.approx(np.mean([own["f1"] for own in expected]), abs=1e-12)


def test_the_best_concept_of_each_feature() -> None:
    sample, labels = random_case(2)
    config = ConceptConfig(min_positives=1, num_top_features=4)
    result = concept_f1(identity(7), sample, labels, config)
    values = np.maximum(sample.x.double().numpy(), 0)
    found = {}
    for i in range(7):
        of_feature = loop_study(values[:, [i]], sample, labels, config)
        best = max(range(3), key=lambda c: of_feature[c]["f1_validation"])
        if of_feature[best]["f1_validation"] > 0:
            found[i] = (of_feature[best], labels.names[best])
    order = sorted(found, key=lambda i: -found[i][0]["f1_validation"])[:4]
    rows = result.tables["features"]
    assert [row["feature"] for row in rows] == order
    for row in rows:
        own, concept = found[row["feature"]]
        assert (row["concept"], row["threshold"], row["sign"]) == (concept, own["threshold"], 1)
        for key in ("f1", "precision", "recall", "f1_validation"):
            assert row[key] == pytest.approx(own[key], abs=1e-12)


# Counting


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=40)
def test_counts_of_sparse_and_dense_firings(seed: int, num_features: int, num_levels: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(-1, 6, size=(30, num_features)).astype(np.float32)
    maximum = np.maximum(generator.integers(-1, 7, size=num_features), 0).astype(float)
    thresholds = np.sort(generator.choice(8, size=num_levels, replace=False)) / 8
    tokens = np.flatnonzero(generator.random(30) < 0.5)
    span = np.sort(generator.integers(0, 4, size=len(tokens)))
    above = np.array([[values > t * maximum] for t in thresholds])[:, 0] & (maximum > 0)  # [Q, T, F]
    both = (
        FiringLevels.of_codes(sparse.csr_array(values), maximum, thresholds.tolist()),
        FiringLevels.of_values(values, maximum, thresholds.tolist()),
    )
    for firings in both:
        assert (firings.fired() == above.sum(1).T).all()
        hits, found = firings.hits(tokens, span)
        assert (hits == above[:, tokens].sum(1).T).all()
        assert (found == sum(above[:, tokens[span == s]].any(1).T.astype(int) for s in range(4))).all()
        for i in range(num_features):
            for level in range(num_levels):
                assert (firings.where(i, level) == above[level, :, i]).all()


def test_spans_end_with_the_document_and_where_text_is_missing() -> None:
    document = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    position = np.array([5, 6, 7, 8, 9, 10, 12, 13, 14])
    concept = np.array([1, 0, 1, 1, 1, 1, 1, 1, 0], dtype=bool)
    tokens, span = spans(concept, follows(document, position))
    assert tokens.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert span.tolist() == [0, 1, 1, 2, 2, 3, 3]


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=40)
def test_spans_laid_down_anew_are_as_many_and_as_long(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    concept = np.repeat(generator.random(20) < share, generator.integers(1, 4, 20))
    after = np.ones(len(concept), dtype=bool)
    moved = laid_down_anew(concept, after, generator)
    assert moved.dtype == bool
    assert moved.sum() == concept.sum()
    before, now = (np.bincount(spans(values, after)[1], minlength=1) for values in (concept, moved))
    if len(before) <= (~concept).sum() + 1:
        assert sorted(before) == sorted(now)
    else:  # no room to keep them apart
        assert len(now) <= len(before)


def test_spans_laid_down_anew_may_be_anywhere() -> None:
    concept = np.zeros(10, dtype=bool)
    concept[:3] = True
    places = {
        int(laid_down_anew(concept, np.ones(10, dtype=bool), np.random.default_rng(seed)).argmax())
        for seed in range(200)
    }
    assert places == set(range(8))


def test_f1_of_counts() -> None:
    assert f1_of_counts(np.array(10), np.array(5), np.array(2), 4) == pytest.approx(0.5)
    assert f1_of_counts(np.array(0), np.array(0), np.array(0), 4) == 0
    assert np.isnan(f1_of_counts(np.array(3), np.array(0), np.array(0), np.array(0)))


# Known answers


def three_parts(*values: Sequence[float], times: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """One row of values for each token, the same text in ``times`` documents for each part; and the documents."""
    one = np.array(values, dtype=float).T
    return np.tile(one, (3 * times, 1)), np.repeat(np.arange(3 * times), len(one))


def test_a_planted_feature_scores_one() -> None:
    generator = np.random.default_rng(0)
    concept = generator.random(600) < 0.2
    values = np.maximum(generator.normal(size=(600, 12)), 0)
    values[:, 5] = concept * generator.uniform(1, 2, 600)
    result = concept_f1(identity(12), sample_of(values, np.arange(600) // 30), labels_of(concept))
    (row,) = result.tables["concepts"]
    assert (row["feature"], row["f1"], row["precision"], row["recall"]) == (5, 1, 1, 1)
    assert result["coverage"].value == result["coverage"].low == result["coverage"].high == 1
    assert result["num_concepts_found"].value == 1
    assert result["coverage_shuffled"].value < 0.6
    p = row["prevalence"]
    assert result["coverage_always_yes"].value == row["always_yes"] == pytest.approx(2 * p / (1 + p))
    assert result.tables["features"][0] | {"feature": 5, "concept": "a", "f1": 1} == result.tables["features"][0]


def test_always_yes_is_the_floor() -> None:
    generator = np.random.default_rng(1)
    concept = generator.random(900) < 0.4
    values = np.ones((900, 1))
    result = concept_f1(identity(1), sample_of(values, np.arange(900) // 30), labels_of(concept))
    (row,) = result.tables["concepts"]
    assert row["f1"] == pytest.approx(row["always_yes"], abs=1e-12)
    assert row["dimension"] is None  # it does not vary
    assert row["dimension_f1"] == 0


def test_spans_and_tokens_count_recall_differently() -> None:
    # two spans of 4 and 1 tokens; the feature fires once in the first, and once outside
    values, document = three_parts([2, 0, 0, 0, 0, 2, 0, 0, 0, 0])
    concept = np.tile(np.array([1, 1, 1, 1, 0, 0, 1, 0, 0, 0], dtype=bool), 12)
    sample, labels = sample_of(values, document), labels_of(concept)
    by_span = concept_f1(identity(1), sample, labels, ConceptConfig(min_positives=1)).tables["concepts"][0]
    by_token = concept_f1(identity(1), sample, labels, ConceptConfig(min_positives=1, recall="tokens")).tables[
        "concepts"
    ][0]
    assert (by_span["precision"], by_span["recall"], by_span["f1"]) == (0.5, 0.5, 0.5)
    assert (by_token["precision"], by_token["recall"]) == (0.5, 0.2)
    assert by_token["f1"] == pytest.approx(2 / 7)
    assert by_token["num_positives"] == 5 * by_span["num_positives"] / 2


def test_feature_and_threshold_are_chosen_on_validation() -> None:
    """Feature 0 is perfect on validation documents and wrong on test documents; feature 1 is good on both."""
    config = ConceptConfig(min_positives=1)
    concept = np.tile(np.arange(20) < 5, 30)
    document = np.repeat(np.arange(30), 20)
    values = np.zeros((600, 2))
    sample = sample_of(values, document)
    _, validation, test = sample.parts(config.shares, seed=config.seed)
    values[:, 0] = np.where(test, ~concept, concept)
    values[:, 1] = concept | (np.arange(600) % 20 == 5)
    result = concept_f1(identity(2), sample_of(values, document), labels_of(concept), config)
    (row,) = result.tables["concepts"]
    assert (row["feature"], row["f1_validation"], row["f1"]) == (0, 1, 0)
    assert (row["precision"], row["recall"]) == (0, 0)

    # and the threshold: strong firings are right on validation documents, weak ones too on test documents
    values[:, 1] = 0
    values[:, 0] = np.where(concept, 1.0, np.where(validation & (np.arange(600) % 20 == 5), 0.55, 0.0))
    values[test & (np.arange(600) % 20 < 4), 0] = 0.3
    result = concept_f1(
        identity(2), sample_of(values, document), labels_of(concept), ConceptConfig(min_positives=1, recall="tokens")
    )
    (row,) = result.tables["concepts"]
    assert row["threshold"] == 0.6
    assert row["f1_validation"] == 1
    assert row["recall"] == pytest.approx(0.2)
    assert result["coverage_validation"].value == 1


def test_maxima_come_from_the_training_documents() -> None:
    config = ConceptConfig(min_positives=1)
    document = np.repeat(np.arange(12), 10)
    concept = np.tile(np.arange(10) < 3, 12)
    values = np.where(concept, 2.0, 1.0)[:, None]
    train = sample_of(values, document).parts(config.shares, seed=0)[0]
    values[~train & (np.arange(120) % 10 == 9)] = 100  # out of the range of the training documents
    result = concept_f1(identity(1), sample_of(values, document), labels_of(concept), config)
    (row,) = result.tables["concepts"]
    assert row["threshold"] == 0.5
    assert row["precision"] == pytest.approx(0.75)
    silent = np.where(train[:, None], 0, values)  # nothing to take a share of
    result = concept_f1(identity(1), sample_of(silent, document), labels_of(concept), config)
    assert result["coverage"].value == 0
    assert any("1 of 1 features never fire" in note for note in result.notes)


def test_rotation_changes_the_dimensions_alone() -> None:
    sample, labels = random_case(3)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
        0
    ].float()
    dictionary = identity(7)
    with torch.no_grad():
        for weights in (dictionary.W_dec, dictionary.encoder_rows):
            weights.copy_(turn)  # type: ignore[union-attr]
    turned = sample_of((sample.x @ turn).numpy(), sample.document, sample.position)
    config = ConceptConfig(min_positives=1, thresholds=(0.15, 0.5))  # 0 hangs on the last bit of what should be 0
    plain, other = (concept_f1(d, s, labels, config) for d, s in ((identity(7), sample), (dictionary, turned)))
    assert other["coverage"].value == pytest.approx(plain["coverage"].value, abs=1e-12)
    assert other["coverage"].low == pytest.approx(plain["coverage"].low, abs=1e-12)
    assert other["coverage_shuffled"].value == pytest.approx(plain["coverage_shuffled"].value, abs=1e-12)
    assert other["coverage_best_dimension"].value != pytest.approx(plain["coverage_best_dimension"].value, abs=1e-6)


def test_a_random_dictionary_is_no_better_than_chance_and_worse_than_the_planted_one() -> None:
    generator = np.random.default_rng(4)
    concepts = generator.random((1500, 4)) < 0.15
    noise = np.maximum(generator.normal(size=(1500, 20)), 0)
    document = np.arange(1500) // 25
    random = concept_f1(identity(20), sample_of(noise, document), labels_of(*concepts.T))
    assert random["coverage"].value == pytest.approx(random["coverage_always_yes"].value, abs=0.05)
    assert random["coverage"].value == pytest.approx(random["coverage_shuffled"].value, abs=0.08)
    noise[:, :4] = concepts
    planted = concept_f1(identity(20), sample_of(noise, document), labels_of(*concepts.T))
    assert planted["coverage"].value == 1
    assert planted["coverage_shuffled"].value < 0.4
    assert planted["coverage_over_dimension"].value == pytest.approx(0)
    assert planted.curves["concepts_above"]["feature"] == [4.0] * 9


def test_the_control_is_the_same_search_for_other_labels() -> None:
    sample, labels = random_case(10, num_documents=40)
    config = ConceptConfig(min_positives=1, seed=3)
    result = concept_f1(identity(7), sample, labels, config)
    generator, moved = np.random.default_rng([3, 1]), labels.values.copy()
    for part in sample.parts(config.shares, seed=3)[1:]:
        noise = LabelledPart.of(sample, labels, part, whole_spans=True).shuffled(generator)
        assert (noise.labels != labels.values[part]).mean() > 0.1
        moved[part] = noise.labels
    other = concept_f1(identity(7), sample, TokenLabels(names=labels.names, values=moved), config)
    assert result["coverage_shuffled"].value == pytest.approx(other["coverage"].value, abs=1e-12)
    assert result["coverage_shuffled"].low == pytest.approx(other["coverage"].low, abs=1e-12)
    shuffled = [row["shuffled_f1"] for row in result.tables["concepts"]]
    assert shuffled == pytest.approx([row["f1"] for row in other.tables["concepts"]])


def test_negative_activations_say_yes_too() -> None:
    generator = np.random.default_rng(5)
    concept = generator.random(600) < 0.3
    values = generator.normal(size=(600, 3)) * 0.1
    values[:, 1] = np.where(concept, -1.0, 0.2)
    dictionary = AbsTopK(TopKConfig(d_in=3, d_sae=3, k=3))
    with torch.no_grad():
        for weights in (dictionary.W_dec, dictionary.encoder_rows):
            weights.copy_(torch.eye(3))  # type: ignore[union-attr]
    result = concept_f1(dictionary, sample_of(values, np.arange(600) // 20), labels_of(concept))
    (row,) = result.tables["concepts"]
    assert (row["feature"], row["sign"], row["f1"]) == (1, -1, 1)
    assert (row["dimension"], row["dimension_sign"]) == (1, -1)


def test_intervals_are_over_documents() -> None:
    sample, labels = random_case(6, num_documents=60)
    result = concept_f1(identity(7), sample, labels, ConceptConfig(min_positives=1))
    for name in (
        "coverage",
        "coverage_one_threshold",
        "coverage_best_dimension",
        "coverage_shuffled",
        "num_concepts_found",
    ):
        number = result[name]
        assert number.low <= number.value <= number.high
    assert result["coverage"].high - result["coverage"].low > 0.02
    for row in result.tables["concepts"]:
        assert row["low"] < row["f1"] < row["high"]
    repeated = concept_f1(identity(7), sample, labels, ConceptConfig(min_positives=1))
    assert repeated.numbers == result.numbers
    assert repeated.tables == result.tables
    # every document the same: there is nothing to be unsure of
    values, document = three_parts([1, 1, 0, 1, 0], [0, 0, 1, 0, 0])
    concept = np.tile(np.array([1, 0, 0, 0, 0], dtype=bool), 12)
    same = concept_f1(identity(2), sample_of(values, document), labels_of(concept), ConceptConfig(min_positives=1))
    assert same["coverage"].low == pytest.approx(same["coverage"].value) == same["coverage"].high


# Bad input


def test_a_dead_dictionary_covers_nothing() -> None:
    sample, labels = random_case(7)
    result = concept_f1(identity(7, bias=-1e3), sample, labels, ConceptConfig(min_positives=1))
    assert result["coverage"].value == 0
    assert result.tables["features"] == []
    for row in result.tables["concepts"]:
        assert (row["f1"], row["feature"], row["precision"]) == (0, None, None)
        assert row["reason"] == "no feature fires on it in the validation documents"
        assert row["dimension_f1"] > 0
    assert any("7 of 7 features never fire" in note for note in result.notes)


def test_rare_concepts_are_listed_with_the_reason() -> None:
    sample, labels = random_case(8, num_documents=40)
    never = np.zeros(len(sample), dtype=bool)
    result = concept_f1(identity(7), sample, labels_of(labels.column("a"), never), ConceptConfig())
    rows = result.tables["concepts"]
    assert rows[1]["f1"] is None
    assert rows[1]["reason"] == "0 spans in the training documents, fewer than min_positives = 10"
    assert set(rows[0]) == set(rows[1])
    assert result["coverage"].value == rows[0]["f1"]
    assert result["num_concepts"].value == 1
    assert any(note.startswith("b is not scored") for note in result.notes)
    none: StudyResult = concept_f1(identity(7), sample, labels_of(never), ConceptConfig())
    for name in ("coverage", "coverage_validation", "coverage_over_dimension", "num_concepts_found"):
        assert none[name].value is None
        assert none[name].reason == "no concept has positives enough in every part of the documents"


def test_refusals() -> None:
    sample, labels = random_case(9)
    with pytest.raises(ValueError, match="build both from the same windows"):
        concept_f1(identity(7), sample, labels.select(np.arange(len(sample) - 1)))
    with pytest.raises(ValueError, match="can not be dealt out to 3 parts"):
        concept_f1(identity(7), sample_of(sample.x.numpy(), sample.document % 2), labels)
    with pytest.raises(ValueError, match="width d_in = 6"):
        concept_f1(identity(6), sample, labels)
    with pytest.raises(ValueError, match="no concept to look for"):
        concept_f1(identity(7), sample, TokenLabels(names=(), values=np.zeros((len(sample), 0), dtype=bool)))
    broken = sample.x.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        concept_f1(identity(7), sample_of(broken.numpy(), sample.document), labels)
    for bad in (
        {"thresholds": (0.5, 0.1)}, {"thresholds": ()}, {"thresholds": (0.5, 1.0)}, {"thresholds": (-0.1,)},
        {"recall": "words"}, {"shares": (0.5, 0.5)}, {"shares": (1, 0, 1)}, {"min_positives": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            ConceptConfig(**bad)  # type: ignore[arg-type]
