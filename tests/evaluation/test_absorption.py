"""Absorption on labelled tokens: scores against plain loops, dictionaries whose answer is known, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from saescope.activations import synthetic
from saescope.activations.synthetic import Bernoulli, FoldedNormal, SyntheticData, orthonormal_atoms
from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, architecture
from saescope.dictionaries.normalization import LayerNorm, Whitening
from saescope.evaluation.absorption.absorbing import AbsorptionRule, absorption_of_tokens
from saescope.evaluation.absorption.concept_absorption import ConceptScores, mean_rates
from saescope.evaluation.absorption.ground_truth import training_tokens
from saescope.evaluation.absorption.known_absorption import KnownSample, known_sample
from saescope.evaluation.absorption.main_latents import SparseProbing, main_latents, ranked
from saescope.evaluation.absorption.study import AbsorptionConfig, Hierarchy, absorption
from saescope.evaluation.absorption.written import Written
from saescope.evaluation.probes import fit_probe, scores
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

CHILDREN = 6
FOREST = synthetic.Hierarchy.two_levels(Bernoulli([0.3]), CHILDREN, 0.1)
N = FOREST.num_features
D = N + 3
DATA = SyntheticData(
    orthonormal_atoms(N, D, torch.Generator().manual_seed(3)), FOREST, FoldedNormal(mean=2.0, sd=0.2), bias=0.4
)


@pytest.fixture(scope="module")
def known() -> KnownSample:
    return known_sample(DATA, 3000)


def planted(absorbed: int) -> Dictionary:
    """The truth as a dictionary, but that the parent is silent beside its first children, whose rows contain it."""
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=N))
    rows, encoder = DATA.atoms.clone(), DATA.atoms.clone()
    for child in FOREST.children[0][:absorbed]:
        rows[child] = DATA.atoms[child] + DATA.atoms[0]
        encoder[0] -= 3 * DATA.atoms[child]
    with torch.no_grad():
        dictionary.W_dec.copy_(rows)
        dictionary.encoder_rows.copy_(encoder)
        dictionary.b_dec.fill_(0.4)
    return dictionary


def random_dictionary(d_sae: int = 30) -> Dictionary:
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=d_sae), seed=4)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        dictionary.W_dec.mul_(0.5 + torch.rand(d_sae, 1, generator=generator))
        dictionary.b_enc.copy_(0.6 * torch.randn(d_sae, generator=generator) - 0.5)
        dictionary.b_dec.copy_(0.3 * torch.randn(D, generator=generator))
    return dictionary


def measured(dictionary: Dictionary, known: KnownSample, **settings: Any) -> StudyResult:
    return absorption(dictionary, known.sample, known.labels, known.hierarchies, AbsorptionConfig(**settings))


def loop(
    written: np.ndarray, cosines: np.ndarray, along: np.ndarray, main: list[int], rule: AbsorptionRule
) -> tuple[list[float], list[bool]]:
    """Both scores token by token, as they are defined."""
    fractions, fulls = [], []
    for row, a in zip(written, along, strict=True):
        parts = [float(w * c) for w, c in zip(row, cosines, strict=True)]
        own = sum(parts[i] for i in main)
        others = [
            parts[i]
            for i in range(len(parts))
            if i not in main and abs(cosines[i]) >= rule.least_cosine and parts[i] > 0
        ]
        most = sum(sorted(others, reverse=True)[: rule.num_absorbing])
        if a <= 0 or own >= a or most / a < rule.least_share:
            fractions.append(0.0)
        elif own <= 0:
            fractions.append(1.0)
        else:
            taken = min(most, a - own)
            fractions.append(min(1.0, max(0.0, taken / (taken + own))))
        top = max(range(len(parts)), key=lambda i: parts[i])
        fulls.append(
            a > 0
            and all(abs(row[i]) < rule.silent_below for i in main)
            and abs(cosines[top]) >= rule.least_cosine_full
            and parts[top] / a >= rule.least_share
        )
    return fractions, fulls


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_tokens_equal_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    written = generator.gamma(1.0, size=(300, 12)) * (generator.random((300, 12)) < 0.3)
    if seed % 2:  # a signed architecture
        written *= generator.choice([-1, 1], size=written.shape)
    written[:5] = 0  # tokens without any feature
    cosines = generator.uniform(-0.4, 0.9, 12)
    cosines[[1, 7]] = 0.5, 0.3
    along = generator.normal(0.6, 0.6, 300)
    rule = AbsorptionRule(least_cosine=0.2, least_cosine_full=0.3, num_absorbing=1 + seed % 3)
    main = [1, 7][: 1 + seed % 2]
    found = absorption_of_tokens(sparse.csr_array(written), cosines, along, np.array(main), rule)
    fractions, fulls = loop(written, cosines, along, main, rule)
    np.testing.assert_allclose(found.fraction, fractions, rtol=0, atol=1e-12)
    assert found.full.tolist() == fulls
    assert ((found.fraction > 0) & (found.fraction < 1)).any()  # every branch is taken
    assert 0 < found.full.sum() < 200
    assert (found.fraction == 1).any()


@pytest.mark.parametrize("absorbed", [0, 3, 6])
def test_planted_absorption_is_found_on_the_children_alone(known: KnownSample, absorbed: int) -> None:
    found = measured(planted(absorbed), known)
    test = known.sample.parts((0.6, 0.2, 0.2), seed=0)[2]
    values = known.labels.values[test]
    among = values[:, 1:].any(-1)
    expected = values[among][:, 1 : 1 + absorbed].any(-1).mean()
    for name in ("absorption_fraction", "full_absorption"):
        number = found[f"{name}_children"]
        assert number.value == pytest.approx(expected, abs=1e-9)  # the probe finds every token
        assert number.low <= number.value <= number.high
        assert found[f"{name}_others"].value == 0
        assert found[f"{name}_difference"].value == pytest.approx(expected, abs=1e-9)
        assert found[name].value == pytest.approx(expected * among.sum() / values[:, 0].sum(), abs=1e-9)
    (row,) = found.tables["parents"]
    assert row["main_latents"] == [0]
    assert row["reason"] == ""
    assert row["num_true_positives"] == values[:, 0].sum()
    for child, entry in enumerate(found.tables["children"], start=1):
        assert entry["full_absorption"] == float(child <= absorbed)
        assert entry["num_tokens"] == values[:, child].sum()
    assert any("deceptively low" in note for note in found.notes)


def test_features_of_frequent_children_pass_for_the_parents_own_where_all_tokens_count(known: KnownSample) -> None:
    everything = measured(planted(CHILDREN), known, main_latents_from="all")
    assert everything["full_absorption_children"].value < 0.2
    assert everything["num_split_features"].value == 1 + CHILDREN
    apart = measured(planted(CHILDREN), known)
    assert apart["num_split_features"].value == 1 + CHILDREN  # the published number, whichever features are used
    assert apart["full_absorption_children"].value == 1


@pytest.mark.parametrize("main_latents_from", ["without_children", "all"])
def test_the_whole_study_equals_plain_loops(known: KnownSample, main_latents_from: str) -> None:
    dictionary = random_dictionary()
    found = measured(dictionary, known, main_latents_from=main_latents_from)
    x = known.sample.x.double().numpy()
    train, validation, test = known.sample.parts((0.6, 0.2, 0.2), seed=0)
    parent, child = known.labels.values[:, 0], known.labels.values[:, 1:].any(-1)
    center = x[train].mean(0)
    scale = np.sqrt(((x[train] - center) ** 2).mean())
    z = (x - center) / scale
    probe = fit_probe(z[train | validation], parent[train | validation], balanced=True)
    direction = probe.weights / np.linalg.norm(probe.weights)
    with torch.no_grad():
        codes = dictionary.encode(known.sample.x).double().numpy()
        rows = dictionary.W_dec.double().numpy()
        offset = dictionary.b_dec.double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    written = codes * norms / scale

    used = ~child if main_latents_from == "without_children" else np.ones_like(child)
    fit, held_out = train & used, validation & used
    means = [written[fit & answer].mean(0) for answer in (parent, ~parent)]
    order = sorted(range(len(rows)), key=lambda i: means[1][i] - means[0][i])[:10]
    best, count = None, 0
    for k in range(1, 11):
        sparse_probe = fit_probe(written[fit][:, order[:k]], parent[fit], balanced=True, max_iter=500)
        f1 = scores(sparse_probe.predict(written[held_out][:, order[:k]]), parent[held_out]).f1
        if best is not None and f1 <= best + 0.03:
            break
        best, count = f1, k
    (row,) = found.tables["parents"]
    assert row["main_latents"] == order[:count]
    assert row["sparse_probe_f1"] == pytest.approx(best)
    assert row["probe_f1"] == pytest.approx(scores(probe.predict(z[test]), parent[test]).f1)

    scored = np.flatnonzero(test & parent & probe.predict(z))
    along = (x[scored] - offset) @ direction / scale
    cosines = rows @ direction / norms
    fractions, fulls = loop(written[scored], cosines, along, order[:count], AbsorptionRule())
    for name, values in (("absorption_fraction", fractions), ("full_absorption", fulls)):
        for where, among in (("children", child[scored]), ("others", ~child[scored])):
            assert found[f"{name}_{where}"].value == pytest.approx(np.mean(np.array(values)[among]), abs=1e-6)
        assert found[name].value == pytest.approx(np.mean(values), abs=1e-6)
    assert 0 < found["absorption_fraction"].value < 1


def test_lengths_of_decoder_rows_and_units_play_no_part(known: KnownSample) -> None:
    plain = random_dictionary()
    expected = measured(plain, known)

    stretched = random_dictionary()
    with torch.no_grad():
        stretched.W_dec.mul_(3)
        stretched.encoder_rows.div_(3)
        stretched.b_enc.div_(3)
    same_values(measured(stretched, known), expected)

    larger = random_dictionary()
    with torch.no_grad():
        for parameter in (larger.b_enc, larger.b_dec):
            parameter.mul_(64)
    inflated = replace(known, sample=TokenSample.of_activations(64 * known.sample.x))
    same_values(measured(larger, inflated), expected)


def same_values(found: StudyResult, expected: StudyResult) -> None:
    for number in expected.numbers:
        assert found[number.name].value == pytest.approx(number.value, abs=1e-4), number.name
    assert [row["main_latents"] for row in found.tables["parents"]] == [
        row["main_latents"] for row in expected.tables["parents"]
    ]


def test_the_same_seed_gives_the_same_numbers(known: KnownSample) -> None:
    first, again = (measured(random_dictionary(), known, num_train_tokens=500) for _ in range(2))
    assert first.numbers == again.numbers
    assert first.numbers != measured(random_dictionary(), known, num_train_tokens=500, seed=1).numbers


def test_an_all_dead_dictionary_has_no_numbers_but_reasons(known: KnownSample) -> None:
    dead = planted(0)
    with torch.no_grad():
        dead.b_enc.fill_(-1e4)
    found = measured(dead, known)
    for name in ("absorption_fraction", "full_absorption_children", "full_absorption_difference", "num_split_features"):
        assert found[name].value is None
        assert "no parent could be scored" in found[name].reason
    (row,) = found.tables["parents"]
    assert "no feature fires more strongly" in row["reason"]
    assert row["absorption_fraction_children"] is None
    assert {entry["reason"] for entry in found.tables["children"]} == {row["reason"]}
    assert found["num_parents_scored"].value == 0
    assert found["probe_f1"].value > 0.9


def test_parents_that_cannot_be_scored_are_listed(known: KnownSample) -> None:
    generator = np.random.default_rng(0)
    length = len(known.sample)
    rare = np.zeros(length, dtype=bool)
    rare[:4] = True
    noise = generator.random(length) < 0.1
    everywhere = known.labels.values[:, 0]
    labels = TokenLabels(
        names=("noise", "rare", "known", "all children", "child", "stray"),
        values=np.stack([noise, rare, everywhere, everywhere, everywhere & known.labels.values[:, 1], noise], axis=-1),
    )
    hierarchies = [
        Hierarchy("noise", ("child",)),
        Hierarchy("rare", ("child",)),
        Hierarchy("known", ("child", "stray")),
        Hierarchy("all children", ("known",)),
    ]
    found = absorption(planted(0), known.sample, labels, hierarchies)
    reasons = {row["parent"]: row["reason"] for row in found.tables["parents"]}
    assert "below 0.6" in reasons["noise"]
    assert "tokens of 'rare', at least 10" in reasons["rare"]
    assert "0 train tokens of 'all children' without any of its children" in reasons["all children"]
    assert reasons["known"] == ""
    assert found["num_parents"].value == 4
    assert found["num_parents_scored"].value == 1
    by_name = {row["parent"]: row for row in found.tables["parents"]}
    assert by_name["noise"]["probe_f1"] < 0.6
    assert by_name["rare"]["probe_f1"] is None
    assert any("'stray' are not of 'known'" in note for note in found.notes)


def test_children_without_tokens_have_a_reason(known: KnownSample) -> None:
    values = known.labels.values.copy()
    values[:, 2] = False
    found = absorption(planted(3), known.sample, replace(known.labels, values=values), known.hierarchies)
    row = found.tables["children"][1]
    assert row["num_tokens"] == 0
    assert row["full_absorption"] is None
    assert "no test token" in row["reason"]
    only = absorption(
        planted(3), known.sample, replace(known.labels, values=values), [Hierarchy("feature 0", ("feature 2",))]
    )
    assert only["full_absorption_children"].value is None
    assert only["full_absorption_difference"].value is None
    assert "no parent has scored tokens" in only["full_absorption_children"].reason
    assert only["full_absorption"].value is not None


def test_what_does_not_fit_is_refused(known: KnownSample) -> None:
    good = planted(0)
    with pytest.raises(ValueError, match="build both from the same windows"):
        absorption(good, known.sample, known.labels.select(np.arange(10)), known.hierarchies)
    with pytest.raises(ValueError, match="no label is named 'keyword'"):
        absorption(good, known.sample, known.labels, [Hierarchy("keyword", ("def",))])
    for wrong in ([], [*known.hierarchies, *known.hierarchies]):
        with pytest.raises(ValueError, match="one for each parent"):
            absorption(good, known.sample, known.labels, wrong)
    with pytest.raises(ValueError, match="d_out = 4"):
        measured(ReLU(DictionaryConfig(d_in=4, d_sae=8)), known)
    broken = planted(0)
    with torch.no_grad():
        broken.W_dec[2, 1] = float("nan")
    with pytest.raises(ValueError, match="decoder rows hold numbers that are not finite"):
        measured(broken, known)
    with pytest.raises(ValueError, match="all activations of the sample are the same"):
        measured(good, replace(known, sample=TokenSample.of_activations(torch.ones(3000, D))))
    holed = known.sample.x.clone()
    holed[5, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        measured(good, replace(known, sample=TokenSample.of_activations(holed)))
    one = TokenSample.of_activations(known.sample.x, document=np.zeros(3000))
    with pytest.raises(ValueError, match="read more text"):
        measured(good, replace(known, sample=one))


@pytest.mark.parametrize(
    "settings",
    [
        {"shares": (0.5, 0.5)}, {"shares": (0.5, 0.5, 0.0)}, {"num_train_tokens": 1}, {"least_positives": 0},
        {"least_probe_f1": 1.0}, {"probe_c": 0.0}, {"main_latents_from": "some"},
    ],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AbsorptionConfig(**settings)


def test_other_settings_are_checked() -> None:
    for wrong in ({"max_k": 0}, {"num_candidates": 3}, {"f1_jump": -0.1}, {"l1": 0.0}, {"selection": "best"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SparseProbing(**wrong)  # type: ignore[arg-type]
    for wrong in ({"num_absorbing": 0}, {"least_share": 0.0}, {"least_cosine": 1.0}, {"silent_below": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AbsorptionRule(**wrong)  # type: ignore[arg-type]
    for children in ((), ("a", "a"), ("p",)):
        with pytest.raises(ValueError, match="needs children"):
            Hierarchy("p", children)


def copies() -> tuple[sparse.csr_array, np.ndarray]:
    """A concept in two halves, with feature 0 and its copy 1 on the first, 2 on the second, and 3 everywhere."""
    generator = np.random.default_rng(1)
    half = generator.choice([0, 1, 2], size=2000, p=[0.7, 0.18, 0.12])
    codes = np.zeros((2000, 6))
    codes[:, 0] = (half == 1) * (1 + 0.1 * generator.random(2000))
    codes[:, 1] = 0.99 * codes[:, 0]
    codes[:, 2] = half == 2
    codes[:, 3] = 5.0
    codes[:, 4] = generator.random(2000) < 0.3
    return sparse.csr_array(codes), half > 0


def test_difference_of_means_takes_both_copies_and_l1_one() -> None:
    codes, truth = copies()
    assert ranked(codes, truth, SparseProbing(max_k=3)).tolist() == [0, 1, 2]
    l1 = ranked(codes, truth, SparseProbing(max_k=4, selection="l1")).tolist()
    assert len({0, 1} & set(l1[:2])) == 1
    assert 2 in l1[:2]
    assert 3 not in l1  # the same everywhere
    by_means = main_latents(codes, truth, codes, truth, SparseProbing(max_k=4))
    assert by_means.count == 1  # the copy brings nothing, and the search ends
    assert len(by_means.f1) == 2
    by_l1 = main_latents(codes, truth, codes, truth, SparseProbing(max_k=4, selection="l1"))
    assert by_l1.count == 2
    assert by_l1.f1[1] == 1
    whole = main_latents(codes, truth, codes, truth, SparseProbing(max_k=4), whole_curve=True)
    assert whole.count == 1
    assert whole.f1[:2] == by_means.f1
    assert whole.f1[2] == 1


def test_means_of_rates_equal_plain_loops() -> None:
    generator = np.random.default_rng(2)
    document = np.repeat(np.arange(12), 25)
    test = document % 2 == 0
    concepts, families = [ConceptScores(reason="not scored")], [np.zeros(300, dtype=bool)]
    for number in range(3):
        tokens = np.flatnonzero(test & (generator.random(300) < 0.4))
        concepts.append(ConceptScores(tokens=tokens, values={"fraction": generator.random(len(tokens))}))
        families.append(generator.random(300) < (0.4 if number else 0.0))  # the first has no token of a child
    found = mean_rates(concepts, families, "fraction", document, test, seed=0)
    per: dict[str, list[float]] = {"all": [], "children": [], "others": [], "difference": []}
    for concept, family in zip(concepts[1:], families[1:], strict=True):
        child = [v for t, v in zip(concept.tokens, concept.values["fraction"], strict=True) if family[t]]
        other = [v for t, v in zip(concept.tokens, concept.values["fraction"], strict=True) if not family[t]]
        per["all"].append(float(np.mean(child + other)))
        per["others"].append(float(np.mean(other)))
        if child:
            per["children"].append(float(np.mean(child)))
            per["difference"].append(float(np.mean(child) - np.mean(other)))
    for where, values in per.items():
        assert found[where]["value"] == pytest.approx(np.mean(values))
        low, high = found[where]["low"], found[where]["high"]
        assert low is not None
        assert high is not None
        assert low < np.mean(values) < high
    assert found["children"]["high"] - found["children"]["low"] < 0.4  # type: ignore[operator]


def test_training_tokens_keep_rare_concepts() -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(1000) % 50 == 0
    among = np.arange(1000) < 900
    few = training_tokens(truth, among, 100, generator)
    assert len(few) == 100
    assert truth[few].sum() == 18  # all there are
    assert (few < 900).all()
    assert (np.diff(few) > 0).all()
    assert truth[training_tokens(truth, among, 20, generator)].sum() == 10
    assert len(training_tokens(truth, among, 5000, generator)) == 900
    assert truth[training_tokens(~truth, among, 100, generator)].sum() == 18


def test_what_is_written_adds_up_to_the_reconstruction() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, D, generator=generator) + 0.5
    normed, whitened, skipping = random_dictionary(), random_dictionary(), architecture("skip_transcoder")
    normed.input_normalization = LayerNorm()
    matrix = torch.randn(D, D, generator=generator) / D**0.5
    whitened.input_normalization = Whitening(torch.randn(D, generator=generator), matrix, torch.linalg.inv(matrix))
    through = skipping(skipping.Config(d_in=D, d_sae=20, d_out=7))
    with torch.no_grad():
        through.W_dec.mul_(2)
        through.b_dec.fill_(0.3)
    for dictionary in (random_dictionary(), normed, whitened, through):
        y = None if dictionary.d_out == D else torch.randn(20, 7, generator=generator)
        written = Written.of(dictionary, TokenSample.of_activations(x, y))
        tokens = np.array([3, 0, 11])
        with torch.no_grad():
            expected = dictionary(x).double().numpy()[tokens]
        together = written.offset(tokens) + written.rows(tokens) @ written.directions
        np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.abs(written.rows(tokens).toarray()).max() > 0.1
        np.testing.assert_allclose(np.linalg.norm(written.directions, axis=1), 1, atol=1e-6)
