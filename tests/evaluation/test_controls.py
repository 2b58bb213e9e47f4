"""Controls: the world's two dictionaries are what they are said to be, and verdicts follow the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saescope.activations.synthetic import matched_cosine
from saescope.dictionaries import Dictionary
from saescope.evaluation.controls import (
    World,
    coefficient_of_variation,
    controls,
    marks,
    reseed,
    verdict,
    world,
)
from saescope.evaluation.removal.perturbation import tpp
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.results import Number, StudyResult


def explained(dictionary: Dictionary, x: torch.Tensor) -> float:
    back = dictionary(x)
    return 1 - float((x - back).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_oracle_knows_the_truth_and_the_random_one_does_not(seed):
    w = world(seed)
    assert w.sample.x.shape == (20_000, 64)
    assert w.sample.num_documents == 100
    assert w.oracle.W_dec.shape == w.random.W_dec.shape == (48, 64)
    assert matched_cosine(w.oracle.W_dec, w.atoms).mean == pytest.approx(1, abs=1e-6)
    assert matched_cosine(w.random.W_dec, w.atoms).mean < 0.5
    assert explained(w.oracle, w.sample.x) > 0.98
    assert explained(w.random, w.sample.x) < 0.5
    f = w.oracle.encode(w.sample.x)
    assert ((f > 0) == (w.codes > 0)).float().mean() > 0.9999
    assert (f - w.codes)[w.codes > 0.25].abs().max() < 0.15
    l0 = [float((d.encode(w.sample.x) > 0).float().sum(-1).mean()) for d in (w.oracle, w.random)]
    assert l0[0] == pytest.approx(l0[1], rel=0.02)


def test_tokens_of_a_document_resemble_each_other():
    w = world(0)
    fired = (w.codes > 0).numpy().reshape(100, 200, 48)
    alone = fired.reshape(-1, 48)
    together = (fired[:, 1:] & fired[:, :-1]).mean((0, 1)) / alone.mean(0)
    assert (together > 2 * alone.mean(0)).all(), "firings come in runs"
    between = fired.mean(1).var(0)
    by_chance = alone.mean(0) * (1 - alone.mean(0)) / 200
    assert (between > 3 * by_chance).all(), "features like some documents"
    correlation = np.corrcoef(alone[:, 24:].T) - np.eye(24)
    assert np.abs(correlation).max() > 0.1


def test_labels_are_what_fires_and_children_fire_with_their_parents():
    w = world(2)
    for place, name in enumerate(w.labels.names[:48]):
        assert (w.labels.column(name) == (w.codes[:, place] > 0).numpy()).all()
    for parent, children in w.children.items():
        for child in children:
            assert child.startswith(f"{parent} > ")
            assert w.labels.column(child).sum() > 100
            assert not (w.labels.column(child) & ~w.labels.column(parent)).any()
    assert len(w.children) == 8
    group = np.stack([w.labels.column(f"feature {i}") for i in range(24, 28)], axis=-1)
    assert (w.labels.column("concept 0") == group.any(-1)).all()
    w.labels.check(w.sample)
    w.concepts.check(w.sample)
    assert len(w.concepts.names) == 14
    assert not any(">" in name for name in w.concepts.names)


def test_the_same_seed_draws_the_same_world_and_more_of_its_tokens():
    first, again, other = world(3, num_documents=2), world(3, num_documents=2), world(4, num_documents=2)
    assert first.sample.digest == again.sample.digest != other.sample.digest
    assert torch.equal(first.random.W_dec, again.random.W_dec)
    more = first.data.held_out(300, seed=99)
    assert explained(first.oracle, more.x) > 0.98
    with pytest.raises(ValueError, match="at least one document"):
        world(0, num_documents=0)


def small(seed: int) -> World:
    return world(seed, num_documents=3)


def study(dictionary: Dictionary, w: World) -> StudyResult:
    found = explained(dictionary, w.sample.x)
    return StudyResult(
        study="made",
        numbers=(
            Number(name="explained", value=found, better="higher"),
            Number(name="error", value=1 - found, better="lower"),
            Number(name="inverted", value=-found, better="higher"),
            Number(name="constant", value=1.0, better="higher"),
            Number(name="rounding", value=1.0 + 1e-9 * found, better="higher"),
            Number(name="plain", value=found),
            Number.of("sometimes", found if dictionary is w.oracle else None, better="higher", reason="it is random"),
        ),
    )


def test_a_number_that_is_the_wrong_way_round_is_called_so():
    found = {control.number: control for control in controls(study, seeds=(0, 1), make=small)}
    assert {name: control.verdict for name, control in found.items()} == {
        "explained": "told apart",
        "error": "told apart",
        "inverted": "upside down",
        "constant": "not told apart",
        "rounding": "not told apart",
        "sometimes": "not told apart",
    }
    worlds = [small(seed) for seed in (0, 1)]
    for side in ("oracle", "random"):
        mean = np.mean([explained(getattr(w, side), w.sample.x) for w in worlds])
        assert getattr(found["explained"], side) == pytest.approx(mean)
    assert found["sometimes"].reason == "it is random"
    assert found["sometimes"].random is None
    marked = marks(found.values())
    assert set(marked) == {"made.inverted", "made.constant", "made.rounding", "made.sometimes"}
    assert all(text.startswith("unreliable: ") for text in marked.values())
    assert "above the truth" in marked["made.inverted"]
    assert "it is random" in marked["made.sometimes"]


def test_verdicts_need_every_world_to_tell_them_apart_and_the_mean_to_turn_them_round():
    assert verdict([(2, 1), (3, 1)], "higher") == "told apart"
    assert verdict([(2, 1), (1, 1.1)], "higher") == "not told apart"
    assert verdict([(2, 1), (1, 3)], "higher") == "upside down"
    assert verdict([(2, 1), (3, 1)], "lower") == "upside down"
    assert verdict([(1, 2), (1, 3)], "lower") == "told apart"
    assert verdict([(0, 0)], "higher") == "not told apart"


def test_a_study_that_fails_is_in_the_verdicts():
    def fails(dictionary: Dictionary, w: World) -> StudyResult:
        raise ValueError("no feature fires")

    def fails_on_random(dictionary: Dictionary, w: World) -> StudyResult:
        return study(dictionary, w) if dictionary is w.oracle else fails(dictionary, w)

    (control,) = controls(fails, seeds=(0,), make=small)
    assert (control.verdict, control.reason) == ("not told apart", "no feature fires")
    found = controls(fails_on_random, seeds=(0,), make=small)
    assert {control.verdict for control in found} == {"not told apart"}
    assert {control.reason for control in found} == {"no feature fires"}
    assert found[0].oracle is not None
    with pytest.raises(ValueError, match="at least one seed"):
        controls(study, seeds=())


def test_a_real_study_is_told_apart():
    config = RemovalConfig(num_features=(4,), num_seeds=1, num_train=400)
    found = controls(
        lambda dictionary, w: tpp(dictionary, w.sample, w.concepts, config=config),
        seeds=(0,),
        make=lambda seed: world(seed, num_documents=20),
    )
    verdicts = {control.number: control.verdict for control in found}
    assert verdicts["tpp_threshold_4_total_metric"] == "told apart"
    assert verdicts["tpp_threshold_4_intended_diff_only"] == "told apart"


def test_reseeding_tells_how_numbers_scatter():
    def drawn(seed: int) -> StudyResult:
        return StudyResult(
            study="drawn",
            numbers=(
                Number(name="value", value=-float(seed)),
                Number.of("odd", float(seed) if seed % 2 else None, reason="even"),
                Number(name="zero", value=0.0),
            ),
        )

    found = reseed(drawn, seeds=(1, 2, 6))
    assert found["value"].values == (-1, -2, -6)
    assert found["value"].mean == -3
    assert found["value"].sd == pytest.approx(7**0.5)
    assert found["value"].cv == pytest.approx(7**0.5 / 3)
    assert found["odd"].values == (1, None, None)
    assert (found["odd"].mean, found["odd"].sd, found["odd"].cv) == (1, None, None)
    assert (found["zero"].sd, found["zero"].cv) == (0, None)
    assert coefficient_of_variation([]) is None
    with pytest.raises(ValueError, match="at least one seed"):
        reseed(drawn, seeds=())
