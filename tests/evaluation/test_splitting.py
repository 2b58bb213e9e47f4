"""Feature splitting: dictionaries that split, copy or sharpen a concept by construction, and coverage by plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU
from saescope.evaluation.absorption.main_latents import SparseProbing
from saescope.evaluation.absorption.splitting import SplittingConfig, splitting
from saescope.evaluation.probes import fit_probe, scores
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

T, D = 3000, 8
WHOLE, LEFT, RIGHT, FALSE_ALARM, OTHER = range(5)


def draw() -> tuple[TokenSample, TokenLabels]:
    """A concept of two kinds; the concept's direction is also there on some tokens that are not of it."""
    generator = np.random.default_rng(5)
    kind = generator.choice(3, size=T, p=[0.6, 0.25, 0.15])
    alarm = (kind == 0) & (generator.random(T) < 0.3)
    x = 0.01 * generator.standard_normal((T, D))
    x[:, WHOLE] += (kind > 0) | alarm
    x[:, LEFT] += kind == 1
    x[:, RIGHT] += kind == 2
    x[:, FALSE_ALARM] += (kind > 0) * generator.random(T)
    x[:, OTHER] += generator.random(T) < 0.2
    rare = np.zeros(T, dtype=bool)
    rare[:5] = True
    labels = TokenLabels(names=("concept", "kind one", "rare"), values=np.stack([kind > 0, kind == 1, rare], axis=-1))
    return TokenSample.of_activations(torch.from_numpy(x), document=np.arange(T) // 20), labels


SAMPLE, LABELS = draw()


def reading(*dimensions: int, lengths: float = 1.0) -> Dictionary:
    """One feature for each dimension, with a threshold of 0.1."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=len(dimensions)))
    with torch.no_grad():
        for rows, factor in ((dictionary.W_dec, lengths), (dictionary.encoder_rows, 1 / lengths)):
            rows.copy_(factor * torch.eye(D)[list(dimensions)])
        dictionary.b_enc.fill_(-0.1 / lengths)
    return dictionary


def study(dictionary: Dictionary, **settings: Any) -> StudyResult:
    return splitting(dictionary, SAMPLE, LABELS, SplittingConfig(**settings))


def test_a_split_concept() -> None:
    found = study(reading(LEFT, RIGHT, OTHER))
    concept, one_kind, rare = found.tables["concepts"]
    assert concept["kind"] == "split"
    assert concept["features"] == [0, 1]
    test = SAMPLE.parts((0.6, 0.2, 0.2), seed=0)[2]
    truth, left = LABELS.values[test, 0], LABELS.values[test, 1]
    right = (truth & ~left).sum() / truth.sum()
    assert concept["found_only_by_second"] == pytest.approx(right)
    assert concept["found_by_first"] == pytest.approx(1 - right)
    assert concept["found_by_both"] == 0
    assert concept["overlap"] == 0
    assert concept["f1"] == 1
    assert concept["f1_first"] == pytest.approx(2 * (1 - right) / (2 - right))
    assert one_kind["kind"] == "one feature"
    assert one_kind["num_features"] == 1
    assert one_kind["found_only_by_second"] == 0 if one_kind["second"] is not None else True
    assert rare["kind"] is None
    assert "tokens of 'rare', at least 10 are needed" in rare["reason"]
    assert found["num_features"].value == 1.5
    assert found["share_split"].value == 0.5
    assert found["num_concepts"].value == 3
    assert found["num_concepts_studied"].value == 2
    curve = found.curves["f1 of concept"]
    assert curve["k"] == [1, 2][: len(curve["k"])]
    assert "f1 of rare" not in found.curves


def test_copies_are_not_a_split() -> None:
    found = study(reading(WHOLE, WHOLE, OTHER))
    concept = found.tables["concepts"][0]
    assert concept["kind"] == "redundant"
    assert concept["num_features"] == 1
    assert concept["overlap"] == 1
    assert concept["found_only_by_second"] == 0
    assert concept["found_by_both"] == concept["found_by_first"] == 1
    assert found["share_redundant"].value > 0
    assert found["share_split"].value == 0


def test_a_second_feature_that_tells_false_alarms() -> None:
    concept = study(reading(WHOLE, FALSE_ALARM)).tables["concepts"][0]
    assert concept["kind"] == "sharper together"
    assert concept["num_features"] == 2
    assert concept["found_only_by_second"] == 0
    assert concept["f1"] > concept["f1_first"] + 0.03


def test_nothing_is_found_by_a_dead_dictionary() -> None:
    dead = reading(WHOLE, LEFT)
    with torch.no_grad():
        dead.b_enc.fill_(-1e4)
    found = study(dead)
    assert [row["kind"] for row in found.tables["concepts"]] == ["not found", "not found", None]
    assert "no feature fires" in found.tables["concepts"][0]["reason"]
    for name in ("num_features", "share_split", "f1", "f1_first"):
        assert found[name].value is None
        assert "no concept could be studied" in found[name].reason
    assert found["found_only_by_second"].value is None
    assert found["found_only_by_second"].reason == "no concept has a second feature"


def random_dictionary() -> Dictionary:
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=20), seed=3)
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.linspace(0.5, 2, 20)[:, None])
        dictionary.b_enc.fill_(-0.2)
    return dictionary


@pytest.mark.parametrize("dictionary", [random_dictionary(), reading(LEFT, RIGHT, WHOLE)])
def test_every_number_equals_plain_loops(dictionary: Dictionary) -> None:
    found = study(dictionary)
    with torch.no_grad():
        codes = dictionary.encode(SAMPLE.x).double() * dictionary.decoder_norms.double()
    train, validation, test = SAMPLE.parts((0.6, 0.2, 0.2), seed=0)
    x = SAMPLE.x.double().numpy()[train]
    written = codes.numpy() / np.sqrt(((x - x.mean(0)) ** 2).mean())
    onlys, counts = [], []
    for label, row in enumerate(found.tables["concepts"][:2]):
        truth = LABELS.values[:, label]
        gap = written[train & truth].mean(0) - written[train & ~truth].mean(0)
        order = [i for i in sorted(range(len(gap)), key=lambda i: -gap[i])[:10] if gap[i] > 0]

        def says(features: list[int], among: np.ndarray, truth: np.ndarray = truth) -> np.ndarray:
            probe = fit_probe(written[train][:, features], truth[train], balanced=True, max_iter=500)
            return probe.predict(written[among][:, features])

        curve = [scores(says(order[:k], validation), truth[validation]).f1 for k in range(1, len(order) + 1)]
        count = 1
        while count < len(curve) and curve[count] > curve[count - 1] + 0.03:
            count += 1
        assert row["num_features"] == count
        assert row["features"] == order[:count]
        assert found.curves[f"f1 of {LABELS.names[label]}"]["f1"] == pytest.approx(curve)
        first, second = (says([order[place]], test)[truth[test]] for place in (0, 1))
        both = only = 0
        for a, b in zip(first, second, strict=True):
            both += int(a and b)
            only += int(b and not a)
        assert row["found_by_both"] == pytest.approx(both / len(first))
        assert row["found_only_by_second"] == pytest.approx(only / len(first))
        either = sum(a or b for a, b in zip(first, second, strict=True))
        assert row["overlap"] == (pytest.approx(both / either) if either else None)
        assert row["f1_second"] == pytest.approx(scores(says(order[1:2], test), truth[test]).f1)
        assert row["f1"] == pytest.approx(scores(says(order[:count], test), truth[test]).f1)
        assert row["f1_first"] == pytest.approx(scores(says(order[:1], test), truth[test]).f1)
        onlys.append(only / len(first))
        counts.append(count)
    number = found["found_only_by_second"]
    assert number.value == pytest.approx(np.mean(onlys))
    assert number.low <= number.value <= number.high
    assert found["num_features"].value == np.mean(counts)


def test_lengths_of_decoder_rows_play_no_part_and_a_seed_decides() -> None:
    expected, found = study(reading(LEFT, RIGHT, OTHER)), study(reading(LEFT, RIGHT, OTHER, lengths=3.0))
    for number in expected.numbers:
        assert found[number.name].value == pytest.approx(number.value, abs=1e-6)
    first, again = (study(random_dictionary(), num_train_tokens=200) for _ in range(2))
    assert first.numbers == again.numbers
    assert first.tables == again.tables
    assert first.numbers != study(random_dictionary(), num_train_tokens=200, seed=1).numbers


def test_l1_takes_one_of_two_copies() -> None:
    l1 = SparseProbing(selection="l1")
    concept = study(reading(LEFT, LEFT, RIGHT), latents=l1).tables["concepts"][0]
    assert concept["kind"] == "split"
    assert 2 in concept["features"]
    by_means = study(reading(LEFT, LEFT, RIGHT)).tables["concepts"][0]
    assert by_means["kind"] == "redundant"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="build both from the same windows"):
        splitting(reading(WHOLE), SAMPLE, LABELS.select(np.arange(4)))
    with pytest.raises(ValueError, match="at least one label"):
        splitting(reading(WHOLE), SAMPLE, TokenLabels(names=(), values=np.zeros((T, 0), dtype=bool)))
    with pytest.raises(ValueError, match="d_out = 3"):
        splitting(ReLU(DictionaryConfig(d_in=3, d_sae=4)), SAMPLE, LABELS)
    for wrong in ({"shares": (1.0,)}, {"num_train_tokens": 0}, {"least_only_second": 0.0}, {"least_overlap": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SplittingConfig(**wrong)  # type: ignore[arg-type]
