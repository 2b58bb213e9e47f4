"""Absorption of a synthetic forest: the true rate against a loop, and the measure by labels against the true rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saescope.activations import synthetic
from saescope.activations.synthetic import (
    Bernoulli,
    Ones,
    SyntheticData,
    child_parent_cosine,
    matched_cosine,
    orthonormal_atoms,
)
from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU
from saescope.evaluation.absorption.known_absorption import KnownAbsorptionConfig, known_absorption, known_sample
from saescope.evaluation.absorption.study import absorption

CHILDREN = 6
FOREST = synthetic.Hierarchy.two_levels(Bernoulli([0.25, 0.35]), CHILDREN, 0.1)
N = FOREST.num_features
D = N + 2
DATA = SyntheticData(orthonormal_atoms(N, D, torch.Generator().manual_seed(1)), FOREST, Ones(), bias=0.3)
FEW = KnownAbsorptionConfig(num_tokens=4000)


def planted(absorbed: int, length: float = 1.0) -> Dictionary:
    """Parents that are silent beside their first children, whose rows contain them."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=N))
    rows, encoder = DATA.atoms.clone(), DATA.atoms.clone()
    for parent, family in FOREST.children.items():
        for child in family[:absorbed]:
            rows[child] = DATA.atoms[child] + DATA.atoms[parent]
            encoder[parent] -= 2 * DATA.atoms[child]
    with torch.no_grad():
        dictionary.W_dec.copy_(length * rows)
        dictionary.encoder_rows.copy_(encoder / length)
        dictionary.b_dec.fill_(0.3)
    return dictionary


def random_dictionary() -> Dictionary:
    return ReLU(DictionaryConfig(d_in=D, d_sae=N), seed=2)


@pytest.mark.parametrize("dictionary", [planted(0), planted(2), planted(6), planted(3, 2.5), random_dictionary()])
def test_the_true_rate_equals_a_plain_loop(dictionary: Dictionary) -> None:
    found = known_absorption(dictionary, DATA, FEW)
    drawn = DATA.held_out(4000, 0)
    with torch.no_grad():
        codes = dictionary.encode(drawn.x)
    match = matched_cosine(dictionary.W_dec, DATA.atoms)
    rates, alone = [], []
    for parent, family in FOREST.children.items():
        latent = match.row_of(parent)
        silent = {True: [0, 0], False: [0, 0]}
        for token in range(4000):
            if drawn.codes[token, parent] != 0:
                kind = silent[any(drawn.codes[token, child] != 0 for child in family)]
                kind[0] += int(codes[token, latent] == 0)
                kind[1] += 1
        rates.append(silent[True][0] / silent[True][1])
        alone.append(silent[False][0] / silent[False][1])
    assert [row["absorption"] for row in found.tables["parents"]] == pytest.approx(rates)
    assert [row["silent_without_child"] for row in found.tables["parents"]] == pytest.approx(alone)
    number = found["absorption"]
    assert number.value == pytest.approx(np.mean(rates))
    assert number.low <= number.value <= number.high
    assert number.value == pytest.approx(synthetic.absorption(codes, drawn.codes, FOREST.children, match).mean)
    cosine = child_parent_cosine(dictionary.W_dec, DATA.atoms, FOREST.children, match)
    assert found["child_parent_cosine"].value == pytest.approx(cosine)
    assert found["matched_cosine"].value == pytest.approx(match.mean)


@pytest.mark.parametrize(("absorbed", "rate"), [(0, 0.0), (3, 0.5), (6, 1.0)])
def test_absorption_by_labels_agrees_with_the_true_rate(absorbed: int, rate: float) -> None:
    dictionary = planted(absorbed)
    true = known_absorption(dictionary, DATA, FEW)["absorption"].value
    assert true == pytest.approx(rate, abs=0.05)
    known = known_sample(DATA, 4000)
    by_labels = absorption(dictionary, known.sample, known.labels, known.hierarchies)
    for name in ("absorption_fraction", "full_absorption"):
        assert by_labels[f"{name}_children"].value == pytest.approx(rate, abs=0.12)  # 270 tokens of each parent
        assert by_labels[f"{name}_others"].value == 0
        assert by_labels[f"{name}_difference"].value == pytest.approx(rate, abs=0.12)
    for parent, row in enumerate(by_labels.tables["parents"]):
        assert row["main_latents"] == [parent]


def test_the_oracle_is_exact_and_random_rows_are_not() -> None:
    oracle, random = (known_absorption(each, DATA, FEW) for each in (planted(0), random_dictionary()))
    assert oracle["absorption"].value == 0
    assert oracle["child_parent_cosine"].value == pytest.approx(0, abs=1e-5)
    assert oracle["matched_cosine"].value == pytest.approx(1)
    assert random["absorption"].value > 0.1
    assert random["matched_cosine"].value < 0.8
    whole = known_absorption(planted(CHILDREN), DATA, FEW)
    assert whole["child_parent_cosine"].value == pytest.approx(0.5**0.5, abs=1e-5)
    assert abs(whole["child_parent_cosine_random"].value) < 0.3


def test_a_dead_latent_absorbs_nothing() -> None:
    dead = planted(CHILDREN)
    with torch.no_grad():
        dead.b_enc[0] = -1e4
    found = known_absorption(dead, DATA, FEW)
    first, second = found.tables["parents"]
    assert first["absorption"] is None
    assert "never fires" in first["reason"]
    assert second["absorption"] == 1
    assert found["absorption"].value == 1
    assert found["num_parents_scored"].value == 1
    with torch.no_grad():
        dead.b_enc.fill_(-1e4)
    everything = known_absorption(dead, DATA, FEW)
    assert everything["absorption"].value is None
    assert "no parent could be scored" in everything["absorption"].reason


def test_fewer_latents_than_features() -> None:
    small = ReLU(DictionaryConfig(d_in=D, d_sae=3))
    with torch.no_grad():
        for rows in (small.W_dec, small.encoder_rows):
            rows.copy_(DATA.atoms[[1, 2, 3]])
        small.b_dec.fill_(0.3)
    found = known_absorption(small, DATA, FEW)
    first, second = found.tables["parents"]
    assert first["latent"] is None
    assert "no latent is matched" in first["reason"]
    assert second["absorption"] == 0


def test_a_parent_that_is_never_alone_or_never_with_a_child() -> None:
    always = synthetic.Hierarchy.two_levels(Bernoulli([0.3]), 2, 0.5)
    data = SyntheticData(orthonormal_atoms(3, 4, torch.Generator().manual_seed(0)), always, Ones())
    never = synthetic.Hierarchy.two_levels(Bernoulli([0.3]), 2, 0.0)
    lonely = SyntheticData(data.atoms, never, Ones())
    oracle = ReLU(DictionaryConfig(d_in=4, d_sae=3))
    with torch.no_grad():
        for rows in (oracle.W_dec, oracle.encoder_rows):
            rows.copy_(data.atoms)
        oracle.b_enc.fill_(-0.1)
    found = known_absorption(oracle, data, FEW)
    assert found["absorption"].value == 0
    assert found["silent_without_child"].value is None
    assert "without any child" in found["silent_without_child"].reason
    none = known_absorption(oracle, lonely, FEW)
    assert none["absorption"].value is None
    assert "none of its children" in none.tables["parents"][0]["reason"]


def test_labels_are_the_truth() -> None:
    known = known_sample(DATA, 50, seed=3)
    drawn = DATA.held_out(50, 3)
    assert known.labels.names[5] == "feature 5"
    np.testing.assert_array_equal(known.labels.values, drawn.codes.numpy() != 0)
    assert torch.equal(known.sample.x, drawn.x)
    assert [(h.parent, len(h.children)) for h in known.hierarchies] == [
        ("feature 0", CHILDREN),
        ("feature 1", CHILDREN),
    ]
    assert known.hierarchies[1].children[0] == f"feature {2 + CHILDREN}"


def test_what_does_not_fit_is_refused() -> None:
    flat = SyntheticData(DATA.atoms, Bernoulli([0.1] * N))
    with pytest.raises(ValueError, match="parents and children"):
        known_absorption(planted(0), flat)
    with pytest.raises(ValueError, match="parents and children"):
        known_sample(flat, 10)
    with pytest.raises(ValueError, match="width 3"):
        known_absorption(ReLU(DictionaryConfig(d_in=3, d_sae=4)), DATA)
    with pytest.raises(ValueError, match="num_tokens"):
        KnownAbsorptionConfig(num_tokens=0)
