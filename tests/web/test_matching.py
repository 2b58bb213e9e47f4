"""Matched features: the numbers of `relations`, and those of all cosines in float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from saescope.dictionaries import Dictionary, ReLU
from saescope.evaluation.matching.relations import relations
from saescope.web.matching import match_dictionaries

D = 96


def _dictionary(rows: np.ndarray) -> Dictionary:
    made = ReLU(ReLU.Config(d_in=rows.shape[1], d_sae=len(rows)))
    with torch.no_grad():
        made.W_dec.copy_(torch.from_numpy(rows).float())
    return made


@pytest.fixture(scope="module")
def pair() -> tuple[Dictionary, Dictionary]:
    """Of 300 and 260 features: copies with noise, second copies, halves, features of one alone, and dead ones."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, D))
    b = rng.normal(size=(260, D))
    for place in range(120):
        b[place] = 3 * a[200 - place] + 0.4 * rng.random() * rng.normal(size=D)
    b[120:130] = a[200:190:-1] + 0.7 * rng.normal(size=(10, D))  # second copies
    for place in range(130, 150, 2):  # halves of features that nothing else is near
        part = a[250 + place - 130]
        other = rng.normal(size=D)
        b[place] = part + 1.4 * other
        b[place + 1] = part - 1.4 * other
    a[295:] = 0
    b[255:] = 0
    order = rng.permutation(260)
    return _dictionary(a), _dictionary(b[order])


def _cosines(a: Dictionary, b: Dictionary) -> np.ndarray:
    rows = [each.W_dec.detach().numpy().astype(np.float64) for each in (a, b)]
    with np.errstate(invalid="ignore"):
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    return unit[0] @ unit[1].T  # nan for dead features


def test_matched_features_are_those_of_all_cosines(pair: tuple[Dictionary, Dictionary]):
    found = match_dictionaries(*pair)
    cosines = _cosines(*pair)
    known = np.nan_to_num(cosines, nan=-2)
    nearest_b, nearest_a = known.argmax(1), known.argmax(0)
    mutual = [(a, int(b)) for a, b in enumerate(nearest_b) if nearest_a[b] == a and known[a, b] >= found["bar"]]
    assert len(mutual) > 100
    assert {(a, b) for a, b, _ in found["pairs"]} == set(mutual)
    for a, b, cosine in found["pairs"]:
        assert cosine == pytest.approx(cosines[a, b], abs=1e-12)
    values = [cosine for _, _, cosine in found["pairs"]]
    assert values == sorted(values, reverse=True)

    halves = Counter(int(nearest_a[b]) for b in range(260) if known[:, b].max() >= found["part_bar"])
    split = {a for a, count in halves.items() if count > 1} - {a for a, _ in mutual}
    only_a = {a for a in range(295) if known[a].max() < found["bar"]} - split
    assert {a for a, *_ in found["only_in_a"]} == only_a
    alive = [b for b in range(260) if not np.isnan(cosines[0, b])]
    parts = {b for b in alive if known[:, b].max() >= found["part_bar"] and int(nearest_a[b]) in split}
    only_b = {b for b in alive if known[:, b].max() < found["bar"]} - parts
    assert len(parts) >= 16
    assert {b for b, *_ in found["only_in_b"]} == only_b
    assert len(split) >= 8
    assert only_a
    assert only_b
    for rows, best, which in ((found["only_in_a"], nearest_b, known), (found["only_in_b"], nearest_a, known.T)):
        for feature, nearest, cosine in rows:
            assert nearest == best[feature]
            assert cosine == pytest.approx(which[feature, nearest], abs=1e-12)
        assert [row[2] for row in rows] == sorted(row[2] for row in rows)


def test_the_counts_are_those_of_saescope_match(pair: tuple[Dictionary, Dictionary]):
    found, told = match_dictionaries(*pair), relations(*pair)
    kinds = told.counts()
    assert found["bar"] == told.bar
    assert found["part_bar"] == told.part_bar
    assert found["counts"] == {
        "num_a": 300,
        "num_b": 260,
        "pairs": kinds["shared"],
        "only_in_a": told.num_gone,
        "only_in_b": kinds["new"],
        "split": kinds["split"],
        "near": kinds["near"],
        "dead": kinds["dead"],
    }
    assert min(kinds[kind] for kind in ("shared", "new", "split", "near", "dead")) > 0
    assert sum(kinds.values()) == 260
    by_feature: dict[int, Any] = {row["feature"]: row for row in told.features()}
    for a, b, cosine in found["pairs"]:
        assert (by_feature[b]["nearest"], by_feature[b]["cosine"]) == (a, cosine)


def test_other_widths_are_refused(pair: tuple[Dictionary, Dictionary]):
    with pytest.raises(ValueError, match="decoder rows of A have width 96, those of B 8"):
        match_dictionaries(pair[0], _dictionary(np.eye(8)))
