"""Sums of terms, the schedule of coefficients, and which loss trains which architecture."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
import torch

from saescope.dictionaries import Dictionary, DictionaryConfig, architecture, architectures
from saescope.training import LossTerms, loss_config_type, loss_for
from saescope.training.losses import (
    AuxKConfig,
    AuxKLoss,
    Batch,
    GatedConfig,
    GatedLoss,
    JumpReLULossConfig,
    L1Config,
    LossConfig,
    MatryoshkaLossConfig,
    OrderedConfig,
    PursuitConfig,
    SquaredError,
    SumOfTerms,
    Term,
    named_term,
)

PENALISED = {
    "relu": ("l1_coefficient", "l1"),
    "gated": ("l1_coefficient", "l1"),
    "jumprelu": ("l0_coefficient", "step"),
}
ALL = sorted(architectures())


class Constant(Term):
    """A value with a gradient to b_dec, and a note of whether it was computed with a graph."""

    def __init__(self, value: float) -> None:
        self.value, self.with_graph = value, []

    def __call__(self, dictionary, batch, codes):
        out = self.value + 0 * dictionary.b_dec.sum() + dictionary.b_dec[0]
        self.with_graph.append(out.requires_grad)
        return out


def test_the_total_is_the_weighted_sum_and_parts_are_without_weights(make, tokens, batch_of):
    dictionary, x = make("relu"), tokens()
    b = float(dictionary.b_dec[0].detach())
    terms = {"a": (Constant(3.0), 2.0), "b": (Constant(5.0), lambda batch: 10.0 * batch.step), "c": (Constant(1.0), 0)}
    found = SumOfTerms(terms)(dictionary, batch_of(dictionary, x, step=3, num_steps=9))
    assert found.total.item() == pytest.approx(2 * (3 + b) + 30 * (5 + b))
    expected_mse = sum(float(((dictionary(t[None]) - t) ** 2).sum().detach()) for t in x) / len(x)
    assert {k: float(v) for k, v in found.parts.items()} == pytest.approx(
        {"a": 3 + b, "b": 5 + b, "c": 1 + b, "mse": expected_mse}
    )
    assert not any(value.requires_grad for value in found.parts.values())
    assert terms["c"][0].with_graph == [False]  # a term without weight is measured, and costs no backward pass
    assert terms["a"][0].with_graph == [True]


def test_activations_are_handed_on_without_their_graph(make, tokens, batch_of):
    for name in ("relu", "topk", "batch_topk", "abs_topk", "matching_pursuit"):
        dictionary, x = make(name), tokens()
        found = loss_for(dictionary)(dictionary, batch_of(dictionary, x, step=9, num_steps=10))
        _, f = dictionary.encode_in_training(x)
        if name not in ("ordered",):
            assert found.f.equal(f.detach())
        assert not found.f.requires_grad


def test_a_loss_without_terms_is_refused():
    with pytest.raises(ValueError, match="at least one term"):
        SumOfTerms({})


def test_progress_is_the_share_done():
    x = torch.zeros(2, 3)
    assert [Batch(x, x, torch.zeros(4), step, 8).progress for step in (0, 2, 7)] == [0, 0.25, 0.875]


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_has_a_loss_that_reaches_every_parameter(make, tokens, batch_of, gradients, name):
    dictionary = make(name)
    x = tokens(20)
    target = tokens(20, dictionary.d_out, seed=9) if dictionary.d_out != dictionary.d_in else None
    found = loss_for(dictionary)(dictionary, batch_of(dictionary, x, target, step=5, num_steps=10))
    for parameter, gradient in gradients(dictionary, found.total).items():
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter
    assert "mse" in found.parts
    assert json.loads(json.dumps(loss_for(dictionary).state_dict())) == loss_for(dictionary).state_dict()


@pytest.mark.parametrize("name", ALL)
def test_a_loss_changes_neither_dictionary_nor_batch(make, tokens, batch_of, name):
    dictionary, x = make(name), tokens()
    own = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
    before, kept = {k: v.detach().clone() for k, v in own.items()}, x.clone()
    target = tokens(6, dictionary.d_out, seed=9) if dictionary.d_out != dictionary.d_in else None
    loss_for(dictionary)(dictionary, batch_of(dictionary, x, target, dead=(2, 3))).total.backward()
    assert x.equal(kept)
    assert all(before[key].equal(tensor) for key, tensor in own.items())


@pytest.mark.parametrize("name", ["relu", "gated", "topk", "ordered", "matryoshka", "matching_pursuit", "jumprelu"])
def test_the_batch_size_does_not_weigh(make, tokens, batch_of, name):
    dictionary, x = make(name), tokens()
    loss = loss_for(dictionary)
    once = loss(dictionary, batch_of(dictionary, x, dead=(1, 5), step=9, num_steps=10)).total
    twice = loss(dictionary, batch_of(dictionary, torch.cat([x, x]), dead=(1, 5), step=9, num_steps=10)).total
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(PENALISED))
@pytest.mark.parametrize(
    ("share", "step", "rise"),
    [(0.1, 0, 0.0), (0.1, 1, 0.5), (0.1, 2, 1.0), (0.1, 19, 1.0), (0.0, 0, 1.0), (1.0, 5, 0.25), (1.0, 19, 0.95)],
)
def test_the_coefficient_warms_up(make, tokens, batch_of, name, share, step, rise):
    dictionary, x = make(name), tokens()
    setting, part = PENALISED[name]
    loss = loss_for(dictionary, {setting: 3.0, "warmup_share": share})
    found = loss(dictionary, batch_of(dictionary, x, step=step, num_steps=20))
    parts = {key: float(value) for key, value in found.parts.items()}
    assert parts[part] > 0
    expected = parts["mse"] + 3.0 * rise * parts[part] + parts.get("gate", 0.0)
    assert found.total.item() == pytest.approx(expected, rel=1e-12)


def test_the_coefficient_follows_its_schedule(batch_of, make, tokens):
    dictionary, x = make("relu"), tokens()
    weight = LossConfig(schedule="linear", warmup_share=0.2).scheduled(4.0)
    found = [weight(batch_of(dictionary, x, step=step, num_steps=10)) for step in range(10)]
    assert found[:2] == [0, 2.0]
    # after the warm-up it is at its height and falls from there, to 0 in the last step
    assert found[2:] == pytest.approx([float(4 * (1 - Fraction(step + 1, 10))) for step in range(2, 10)])


def test_normalised_error_is_the_same_at_any_scale_and_a_share_of_the_variance(make, tokens, batch_of):
    dictionary, x = make("topk"), tokens()
    found = loss_for(dictionary)(dictionary, batch_of(dictionary, x)).parts["nmse"]
    squares = sum(float(((dictionary(t[None])[0] - t) ** 2).sum().detach()) for t in x)
    variance = sum(float(((t - x.mean(0)) ** 2).sum()) for t in x)
    assert float(found) == pytest.approx(squares / variance, rel=1e-12)
    with torch.no_grad():
        dictionary.b_dec *= 10
        dictionary.b_enc *= 10
    again = loss_for(dictionary)(dictionary, batch_of(dictionary, 10 * x)).parts["nmse"]
    torch.testing.assert_close(again, found, rtol=1e-12, atol=0)


def test_each_architecture_has_its_loss():
    expected = {
        "relu": L1Config, "gated": GatedConfig, "jumprelu": JumpReLULossConfig, "topk": AuxKConfig,
        "abs_topk": AuxKConfig, "group_max": AuxKConfig, "batch_topk": AuxKConfig, "matryoshka": MatryoshkaLossConfig,
        "ordered": OrderedConfig, "matching_pursuit": PursuitConfig,
    }  # fmt: skip
    for name, config in expected.items():
        assert loss_config_type(architecture(name)) is config, name
        for form in ("archetypal", "crosscoder", "transcoder", "skip_transcoder"):
            known = architectures().get(form if name == "relu" and "trans" in form else f"{name}_{form}")
            assert known is None or loss_config_type(known) is config, form

    class Child(architecture("topk")):  # type: ignore[misc]
        pass

    assert loss_config_type(Child) is AuxKConfig


def test_settings_reach_the_loss(make):
    found = loss_for(make("topk"), {"k_aux": 7})
    assert isinstance(found, AuxKLoss)
    assert found.config == AuxKConfig(k_aux=7)
    assert loss_for(make("relu")).config == L1Config()
    with pytest.raises(TypeError, match="k_aux"):
        loss_for(make("relu"), {"k_aux": 7})


def test_a_strangers_architecture_gets_squared_error_and_l1(tokens, batch_of):
    class Stranger(Dictionary):
        Config = DictionaryConfig
        architecture = "stranger"

        def activate(self, pre: torch.Tensor) -> torch.Tensor:
            return pre.clamp(min=0.5) - 0.5

    assert loss_config_type(Stranger) is L1Config
    dictionary, x = Stranger(DictionaryConfig(d_in=4, d_sae=9)).double(), tokens()
    found = loss_for(dictionary, {"l1_coefficient": 0.0})(dictionary, batch_of(dictionary, x))
    assert found.total.item() == float(found.parts["mse"])
    with pytest.raises(ValueError, match="can not train a stranger dictionary; it is made for gated"):
        GatedLoss(GatedConfig())(dictionary, batch_of(dictionary, x))


def test_further_terms_are_added_by_name(make, tokens, batch_of):
    dictionary, x = make("topk"), tokens()
    batch = batch_of(dictionary, x, dead=(1, 2))
    plain = loss_for(dictionary)(dictionary, batch)
    more = loss_for(dictionary, {"extra_terms": {"ghost_gradients": 0.5, "mse": 2.0}})(dictionary, batch)
    expected = plain.total + 0.5 * more.parts["ghost_gradients"] + 2.0 * more.parts["mse"]
    torch.testing.assert_close(more.total, expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"unknown term of a loss 'ghost_gradient'; did you mean ghost_gradients"):
        loss_for(dictionary, {"extra_terms": {"ghost_gradient": 0.5}})
    assert isinstance(named_term("mse"), SquaredError)


def test_a_term_that_does_not_fit_an_architecture_says_so(make, tokens, batch_of):
    """Recipes name terms freely: what does not fit is refused in words, not by an attribute that is missing."""
    x = tokens()
    for name, term in (
        ("relu", "multi_topk"),
        ("gated", "multi_topk"),
        ("matching_pursuit", "auxk"),
        ("matching_pursuit", "ghost_gradients"),
        ("matching_pursuit", "reanimation"),
        ("matching_pursuit", "multi_topk"),
    ):
        dictionary = make(name)
        loss = loss_for(dictionary, {"extra_terms": {term: 1.0}})
        with pytest.raises(ValueError, match=f"can not train a {name} dictionary"):
            loss(dictionary, batch_of(dictionary, x, dead=(1,)))


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (L1Config, {"l1_coefficient": -1.0}, "l1_coefficient must not be negative, got -1"),
        (L1Config, {"l1_coefficient": float("nan")}, "l1_coefficient must not be negative"),
        (L1Config, {"warmup_share": 1.5}, r"warmup_share must lie in \[0, 1\], got 1.5"),
        (L1Config, {"reconstruction": "rmse"}, "reconstruction is 'mse' or 'nmse', not 'rmse'"),
        (L1Config, {"schedule": "square"}, "a schedule is one of constant, linear"),
        (L1Config, {"num_cycles": 0}, "num_cycles must be at least 1"),
        (L1Config, {"p_end": 0.0}, r"p_end must lie in \(0, 1\], got 0.0"),
        (L1Config, {"p_end": 1.5}, r"p_end must lie in \(0, 1\]"),
        (L1Config, {"p_end": 0.2, "anneal_start": 0.9, "anneal_end": 0.3}, "in rising order"),
        (GatedConfig, {"num_p_updates": 1}, "at least 2 values"),
        (JumpReLULossConfig, {"penalty": "sqrt"}, "penalty is one of step, quadratic, tanh"),
        (JumpReLULossConfig, {"penalty": "quadratic"}, "target_l0 goes with"),
        (JumpReLULossConfig, {"target_l0": 3.0}, "target_l0 goes with"),
        (JumpReLULossConfig, {"penalty": "quadratic", "target_l0": 0.0}, "target_l0 must be positive"),
        (JumpReLULossConfig, {"l0_coefficient": -1.0}, "must not be negative"),
        (JumpReLULossConfig, {"tanh_scale": 0.0}, "tanh_scale must be positive"),
        (AuxKConfig, {"aux_coefficient": -0.1}, "aux_coefficient must not be negative"),
        (AuxKConfig, {"k_aux": 0}, "k_aux must be at least 1, got 0.03125 and 0"),
        (AuxKConfig, {"multi_topk_coefficient": -1.0}, "multi_topk_coefficient must not be negative"),
        (AuxKConfig, {"k_start": 0.0}, "k_start must be positive"),
        (AuxKConfig, {"k_anneal_share": 1.2}, r"k_anneal_share in \[0, 1\]"),
        (AuxKConfig, {"k_anneal_shape": "square"}, "linear, cosine or exponential"),
        (MatryoshkaLossConfig, {"prefixes": "none"}, "'fixed' or 'random'"),
        (MatryoshkaLossConfig, {"num_prefixes": 0}, "num_prefixes must be at least 1"),
        (OrderedConfig, {"exponent": -1.0}, "exponent must not be negative"),
        (OrderedConfig, {"k_start_times": 0.0}, "k_start_times must be positive"),
        (OrderedConfig, {"sweep_start": 0.5, "sweep_end": 0.5}, "rising shares"),
        (PursuitConfig, {"revival_coefficient": -1.0}, "revival_coefficient must not be negative"),
    ],
)
def test_impossible_settings_are_refused(config, settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_terms_are_values():
    terms = LossTerms(torch.zeros(()))
    assert (terms.parts, terms.f) == ({}, None)
    with pytest.raises(FrozenInstanceError):
        terms.total = torch.ones(())  # type: ignore[misc]
