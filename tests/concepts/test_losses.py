"""Criteria: what they are, what they are called with, and how dead concepts are pushed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saescope.concepts.explainers import (
    BatchTopKSAE,
    DeadNeuronsReanimationLoss,
    JumpReLUSAE,
    MpSAE,
    MSELoss,
    SAELoss,
    SAELossClasses,
    TopKSAE,
    VanillaSAE,
)

ALL = [VanillaSAE, TopKSAE, BatchTopKSAE, JumpReLUSAE, MpSAE]
D, C = 6, 16


class Split:
    split_points = ("layer.1",)

    def get_latent_shape(self, inputs=None):
        return {"layer.1": torch.Size([1, 3, D])}


@pytest.fixture(scope="module")
def x():
    return 3 * torch.randn(160, D, generator=torch.Generator().manual_seed(3))


def fit(cls, x, **how):
    explainer = cls(Split(), nb_concepts=C)
    return explainer, explainer.fit(x, nb_epochs=2, batch_size=64, **how)


def test_members_are_the_classes():
    assert [member.name for member in SAELossClasses] == ["MSE", "DeadNeuronsReanimation"]
    assert SAELossClasses.MSE.value is MSELoss
    assert SAELossClasses.DeadNeuronsReanimation.value is DeadNeuronsReanimationLoss
    assert isinstance(SAELossClasses.DeadNeuronsReanimation(coefficient=0.5), DeadNeuronsReanimationLoss)


def test_mse_is_the_mean_over_all_entries():
    generator = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(7, D, generator=generator), torch.randn(7, D, generator=generator)
    value = MSELoss()(x, x_hat, None, torch.zeros(7, C), torch.zeros(C, D))
    assert float(value) == pytest.approx(float(((x - x_hat).double() ** 2).mean()))


@pytest.mark.parametrize("c", [10, 1000])
def test_the_push_on_a_dead_concept_does_not_depend_on_the_number_of_concepts(c):
    """Row 22."""
    n = 5
    pre = torch.randn(n, c, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes = torch.ones(n, c)
    codes[:, 3] = 0
    x = torch.zeros(n, D)
    DeadNeuronsReanimationLoss(coefficient=0.2)(x, x, pre, codes, torch.zeros(c, D)).backward()
    wanted = torch.zeros(n, c)
    wanted[:, 3] = -0.2 / n
    torch.testing.assert_close(pre.grad, wanted)


def test_dead_is_what_is_said_where_it_is_said():
    pre = torch.ones(4, C, requires_grad=True)
    dead = torch.zeros(C, dtype=torch.bool)
    dead[:2] = True
    x = torch.zeros(4, D)
    DeadNeuronsReanimationLoss()(x, x, pre, torch.zeros(4, C), torch.zeros(C, D), dead=dead).backward()
    assert pre.grad.sum(0).nonzero().squeeze(1).tolist() == [0, 1]
    nobody = DeadNeuronsReanimationLoss()(x, x + 1, pre, torch.ones(4, C), torch.zeros(C, D))
    assert float(nobody) == 1.0


def test_without_pre_codes_rows_turn_to_what_is_left():
    generator = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(7, D, generator=generator), torch.randn(7, D, generator=generator)
    rows = torch.randn(C, D, generator=generator).requires_grad_()
    codes = torch.ones(7, C)
    codes[:, 5] = 0
    value = DeadNeuronsReanimationLoss(coefficient=0.3)(x, x_hat, None, codes, rows)
    value.backward()
    wanted = torch.zeros(C, D)
    wanted[5] = -0.3 * (x - x_hat).mean(0)
    torch.testing.assert_close(rows.grad, wanted)
    expected = ((x - x_hat) ** 2).mean() - 0.3 * ((x - x_hat) @ rows[5]).mean()
    assert float(value.detach()) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("criterion", list(SAELossClasses))
def test_every_class_takes_both(cls, criterion, x):
    """Row 22: matching pursuit too."""
    explainer = cls(Split(), nb_concepts=C)
    logs = explainer.fit(x, criterion=criterion, nb_epochs=20, batch_size=32, lr=5e-3)
    assert logs["avg_loss"][-1] < 0.95 * logs["avg_loss"][0]
    assert explainer.encode_activations(x).shape == (len(x), C)


def test_reanimation_brings_concepts_back(x):
    """Biases put half of the concepts to sleep; the push wakes them, MSE alone does not."""
    dead = {}
    for name, criterion in (("mse", MSELoss()), ("pushed", DeadNeuronsReanimationLoss(coefficient=3.0))):
        explainer = VanillaSAE(Split(), nb_concepts=C, l1_coefficient=0.0)
        with torch.no_grad():
            explainer.concept_model.dictionary.b_enc[: C // 2] = -12
        logs = explainer.fit(x, criterion=criterion, nb_epochs=60, batch_size=40, lr=0.05, warm_start=True)
        dead[name] = logs["dead_features"][-1]
    assert dead["mse"] == 0.5
    assert dead["pushed"] < 0.2


def mean_absolute(x, x_hat, pre_codes, codes, dictionary):
    return (x - x_hat).abs().mean()


class Written(SAELoss):
    def __call__(self, x, x_hat, pre_codes, codes, dictionary):
        return mean_absolute(x, x_hat, pre_codes, codes, dictionary)


class Module(nn.Module):
    def forward(self, x, x_hat, pre_codes, codes, dictionary):
        return mean_absolute(x, x_hat, pre_codes, codes, dictionary)


@pytest.mark.parametrize("criterion", [Written, Written(), Module, Module(), lambda *a: mean_absolute(*a)])
def test_classes_instances_and_functions_are_the_same_criterion(criterion, x):
    wanted = fit(TopKSAE, x, criterion=mean_absolute)
    got = fit(TopKSAE, x, criterion=criterion)
    assert got[1]["step_loss"] == wanted[1]["step_loss"]
    assert torch.equal(got[0].get_dictionary(), wanted[0].get_dictionary())


@pytest.mark.parametrize("cls", ALL)
def test_criteria_see_raw_units(cls, x):
    """In evaluation the model gives what the criterion saw, but for the step between."""
    seen = []

    def watch(x, x_hat, pre_codes, codes, dictionary):
        seen.append((x, x_hat.detach(), None if pre_codes is None else pre_codes.detach(), codes.detach(), dictionary))
        return (x - x_hat).square().mean()

    explainer = cls(Split(), nb_concepts=C, top_k=3) if cls in (TopKSAE, BatchTopKSAE) else cls(Split(), nb_concepts=C)
    explainer.fit(x, criterion=watch, nb_epochs=1, batch_size=len(x), lr=1e-7)
    rows, x_hat, pre, codes, dictionary = seen[0]
    order = [int((x - row).norm(dim=1).argmin()) for row in rows]
    torch.testing.assert_close(rows, x[order])
    torch.testing.assert_close(dictionary.detach(), explainer.get_dictionary(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x_hat, codes @ dictionary.detach(), rtol=1e-4, atol=1e-5)
    same, again = explainer.encode_activations(rows, return_pre=True)
    agree = (same > 0) == (codes > 0)
    assert agree.float().mean() > 0.99
    torch.testing.assert_close(same[agree], codes[agree], rtol=1e-3, atol=1e-4)
    if cls is MpSAE:
        assert pre is None
    else:
        torch.testing.assert_close(pre, again, rtol=1e-3, atol=1e-4)


def test_dead_is_given_to_those_who_ask(x):
    """A concept is dead when an epoch's rows have passed without a code."""
    seen = []

    def asks(x, x_hat, pre_codes, codes, dictionary, dead):
        seen.append((int(dead.sum()), int((codes.detach() == 0).all(0).sum())))
        return (x - x_hat).square().mean()

    explainer = VanillaSAE(Split(), nb_concepts=C, l1_coefficient=0.0)
    with torch.no_grad():
        explainer.concept_model.dictionary.b_enc[:5] = -1000
    explainer.fit(x, criterion=asks, nb_epochs=3, batch_size=40, warm_start=True)
    assert [dead for dead, _ in seen] == [0] * 4 + [5] * 8
    assert all(silent >= 5 for _, silent in seen)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (nn.MSELoss, "MSELoss is not"),
        (lambda x, x_hat: x_hat.sum(), "criterion is called with"),
        (3.0, "a class, an instance or a function"),
        (lambda x, x_hat, p, z, d: x_hat, "scalar tensor, but gave a tensor of shape"),
        (lambda x, x_hat, p, z, d: 1.0, "scalar tensor, but gave float"),
    ],
)
def test_no_criterion(criterion, words, x):
    with pytest.raises(ValueError, match=words):
        fit(TopKSAE, x, criterion=criterion)


def test_a_class_that_needs_arguments():
    class Needs(SAELoss):
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, x, x_hat, pre_codes, codes, dictionary):
            return self.weight * (x - x_hat).square().mean()

    with pytest.raises(ValueError, match="give an instance"):
        fit(TopKSAE, torch.randn(10, D), criterion=Needs)
    with pytest.raises(ValueError, match="coefficient"):
        DeadNeuronsReanimationLoss(coefficient=-1)


@pytest.mark.parametrize("cls", [VanillaSAE, JumpReLUSAE])
def test_own_criteria_are_all_there_is(cls, x):
    """The library's criteria keep the penalty; a user's does not get it."""

    def function(x, x_hat, pre_codes, codes, dictionary):
        return (x - x_hat).square().mean()

    alone, kept = (fit(cls, x, criterion=c)[1]["step_loss"][1] for c in (function, MSELoss))
    assert kept > alone
