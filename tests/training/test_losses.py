"""Losses against a naive float64 implementation, token by token, with autograd for every gradient."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig
from saescope.training import AuxKConfig, L1Config, LossTerms, loss_config_type, loss_for
from saescope.training.losses import AuxKLoss, L1Loss, scale_to_unit_rms

D_IN, D_SAE, K, B = 4, 10, 2, 6
PARAMETERS = ("encoder_rows", "W_dec", "b_enc", "b_dec")
NONE_DEAD = torch.zeros(D_SAE, dtype=torch.bool)


def _dictionary(architecture: str, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=K)).double()
    else:
        dictionary = ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dictionary


def _batch(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(B, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(500 + seed)) + 1


def _dead(*features: int) -> torch.Tensor:
    dead = NONE_DEAD.clone()
    dead[list(features)] = True
    return dead


def _gradients(dictionary: Dictionary, total: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = [dictionary.get_parameter(name) for name in PARAMETERS]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for name, leaf, gradient in zip(PARAMETERS, leaves, found, strict=True)
    }


def _assert_same_gradients(dictionary: Dictionary, found: torch.Tensor, expected: torch.Tensor) -> None:
    a, b = _gradients(dictionary, found), _gradients(dictionary, expected)
    for name in PARAMETERS:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-11, msg=name)


def _naive_l1(dictionary: Dictionary, x: torch.Tensor, coefficient: float) -> tuple[torch.Tensor, ...]:
    W_enc, W_dec, b_enc, b_dec = dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec
    error = l1 = torch.zeros((), dtype=torch.float64)
    for token in x:
        x_hat = b_dec
        for i in range(D_SAE):
            pre = ((token - b_dec) * W_enc[:, i]).sum() + b_enc[i]
            if pre > 0:
                x_hat = x_hat + pre * W_dec[i]
                l1 = l1 + pre * (W_dec[i] ** 2).sum().sqrt() / B
        error = error + ((token - x_hat) ** 2).sum() / B
    return error + coefficient * l1, error, l1


def _naive_auxk(
    dictionary: Dictionary, x: torch.Tensor, dead: torch.Tensor, coefficient: float, k_aux: int
) -> tuple[torch.Tensor, ...]:
    W_enc, W_dec, b_enc, b_dec = dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec
    squares, auxiliary_answers, residuals = torch.zeros((), dtype=torch.float64), [], []
    dead_features = [i for i in range(D_SAE) if dead[i]]
    for token in x:
        pre = [((token - b_dec) * W_enc[:, i]).sum() + b_enc[i] for i in range(D_SAE)]
        x_hat = b_dec
        for i in sorted(range(D_SAE), key=lambda i: -pre[i].item())[:K]:
            if pre[i] > 0:
                x_hat = x_hat + pre[i] * W_dec[i]
        answer = torch.zeros(D_IN, dtype=torch.float64)
        for i in sorted(dead_features, key=lambda i: -pre[i].item())[:k_aux]:
            if pre[i] > 0:
                answer = answer + pre[i] * W_dec[i]
        squares = squares + ((token - x_hat) ** 2).sum()
        residuals.append((token - x_hat).detach())
        auxiliary_answers.append(answer)
    error = squares / sum(((token - x.mean(0)) ** 2).sum() for token in x)
    auxiliary = torch.zeros((), dtype=torch.float64)
    if dead_features:
        mean = torch.stack(residuals).mean(0)
        for residual, answer in zip(residuals, auxiliary_answers, strict=True):
            auxiliary = auxiliary + ((residual - answer) ** 2).sum()
        auxiliary = auxiliary / sum(((residual - mean) ** 2).sum() for residual in residuals)
    return error + coefficient * auxiliary, error, auxiliary


@given(seed=st.integers(0, 10_000), coefficient=st.sampled_from([0.0, 0.7, 5.0]))
@settings(deadline=None, max_examples=15)
def test_l1_equals_the_naive_loss_with_its_gradients(seed, coefficient):
    dictionary, x = _dictionary("relu", seed), _batch(seed)
    loss = L1Loss(L1Config(l1_coefficient=coefficient))
    found = loss(dictionary, x, dead=NONE_DEAD, progress=1.0)
    total, error, l1 = _naive_l1(dictionary, x, coefficient)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    assert {name: float(value) for name, value in found.parts.items()} == pytest.approx(
        {"mse": float(error.detach()), "l1": float(l1.detach())}, rel=1e-12
    )
    _assert_same_gradients(dictionary, found.total, total)


@given(
    seed=st.integers(0, 10_000),
    dead=st.sets(st.integers(0, D_SAE - 1)),
    k_aux=st.integers(1, D_SAE + 3),
    coefficient=st.sampled_from([0.0, 1 / 32, 2.0]),
)
@settings(deadline=None, max_examples=30)
def test_auxk_equals_the_naive_loss_with_its_gradients(seed, dead, k_aux, coefficient):
    dictionary, x = _dictionary("topk", seed), _batch(seed)
    loss = AuxKLoss(AuxKConfig(aux_coefficient=coefficient, k_aux=k_aux))
    found = loss(dictionary, x, dead=_dead(*dead), progress=0.5)
    total, error, auxiliary = _naive_auxk(dictionary, x, _dead(*dead), coefficient, k_aux)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    assert {name: float(value) for name, value in found.parts.items()} == pytest.approx(
        {"nmse": float(error.detach()), "auxk": float(auxiliary.detach())}, rel=1e-12
    )
    _assert_same_gradients(dictionary, found.total, total)


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_firings_and_l0_are_those_of_the_dictionary(architecture):
    dictionary, x = _dictionary(architecture), _batch()
    found = loss_for(dictionary)(dictionary, x, dead=_dead(1, 2), progress=1.0)
    f = dictionary.encode(x).tolist()
    assert found.fired.tolist() == [any(token[i] > 0 for token in f) for i in range(D_SAE)]
    assert float(found.l0) == pytest.approx(sum(value > 0 for token in f for value in token) / B)
    assert not any(value.requires_grad for value in (found.l0, found.fired, *found.parts.values()))


def _auxiliary_gradients(dictionary: Dictionary, x: torch.Tensor, dead: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the auxiliary term alone sends back: the loss with it minus the loss without it."""
    with_it = AuxKLoss(AuxKConfig(aux_coefficient=1.0))(dictionary, x, dead=dead, progress=0.0).total
    without = AuxKLoss(AuxKConfig(aux_coefficient=0.0))(dictionary, x, dead=dead, progress=0.0).total
    a, b = _gradients(dictionary, with_it), _gradients(dictionary, without)
    return {name: a[name] - b[name] for name in PARAMETERS}


def test_the_auxiliary_loss_reaches_encoder_and_decoder_of_the_dead_alone():
    dictionary, x = _dictionary("topk"), _batch()
    with torch.no_grad():
        dictionary.b_enc += 20  # the living outdo the dead on every token
        dictionary.b_enc[[3, 8]] = 1.0
    dead = _dead(3, 8)
    assert not dictionary.encode(x)[:, dead].any()
    assert (dictionary.pre_activations(x)[:, dead] > 0).any(0).all()
    gradients = _auxiliary_gradients(dictionary, x, dead)
    for name in ("encoder_rows", "W_dec", "b_enc"):
        assert gradients[name][dead].abs().amax(-1 if gradients[name].ndim == 2 else ()).min() > 1e-3, name
        assert gradients[name][~dead].abs().max() < 1e-14, name  # the residual is a target, not a path
    # the bias is reached through the dead features' input alone: -W_enc times what their pre-activations receive
    through_input = -(gradients["b_enc"] @ dictionary.encoder_rows)
    torch.testing.assert_close(gradients["b_dec"], through_input, rtol=1e-9, atol=1e-12)


def test_without_dead_features_the_auxiliary_loss_is_exactly_zero():
    dictionary, x = _dictionary("topk"), _batch()
    found = AuxKLoss(AuxKConfig(aux_coefficient=1e6))(dictionary, x, dead=NONE_DEAD, progress=0.0)
    assert float(found.parts["auxk"]) == 0
    assert found.total.item() == float(found.parts["nmse"])
    assert not any(gradient.any() for gradient in _auxiliary_gradients(dictionary, x, NONE_DEAD).values())


def test_dead_features_below_zero_help_with_nothing_and_stay_as_they_are():
    dictionary, x = _dictionary("topk"), _batch()
    with torch.no_grad():
        dictionary.b_enc[[3, 8]] = -1000.0
    gradients = _auxiliary_gradients(dictionary, x, _dead(3, 8))
    assert all(gradient.abs().max() < 1e-14 for gradient in gradients.values())


def test_k_aux_beyond_the_dead_takes_all_of_them():
    dictionary, x, dead = _dictionary("topk"), _batch(), _dead(0, 4, 7)
    terms = [
        AuxKLoss(AuxKConfig(k_aux=k_aux))(dictionary, x, dead=dead, progress=0.0).parts["auxk"] for k_aux in (3, 4, 999)
    ]
    assert terms[0].equal(terms[1])
    assert terms[0].equal(terms[2])


def test_k_aux_is_half_the_width_when_left_out():
    dictionary, x, dead = _dictionary("topk"), _batch(), ~NONE_DEAD
    by_default, half, more = (
        AuxKLoss(AuxKConfig(k_aux=k_aux))(dictionary, x, dead=dead, progress=0.0).parts["auxk"]
        for k_aux in (None, 2, 3)
    )
    assert by_default.equal(half)
    assert not by_default.equal(more)
    narrow = TopK(TopKConfig(d_in=1, d_sae=3, k=1)).double()
    column = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = AuxKLoss(AuxKConfig(k_aux=1))(narrow, column, dead=torch.ones(3, dtype=torch.bool), progress=0.0)
    left_out = AuxKLoss(AuxKConfig())(narrow, column, dead=torch.ones(3, dtype=torch.bool), progress=0.0)
    assert left_out.parts["auxk"].equal(one.parts["auxk"])  # never none at all


def test_the_auxiliary_answer_has_no_bias():
    """Moving activations and b_dec together moves no residual; an answer that added b_dec would notice."""
    dictionary, x, dead = _dictionary("topk"), _batch(), _dead(1, 5, 6)
    loss = AuxKLoss(AuxKConfig(aux_coefficient=1.0))
    before = loss(dictionary, x, dead=dead, progress=0.0)
    shift = torch.tensor([30.0, -20.0, 10.0, 5.0], dtype=torch.float64)
    with torch.no_grad():
        dictionary.b_dec += shift
    after = loss(dictionary, x + shift, dead=dead, progress=0.0)
    assert float(before.parts["auxk"]) > 0
    torch.testing.assert_close(after.parts["auxk"], before.parts["auxk"], rtol=1e-10, atol=0)
    torch.testing.assert_close(after.total, before.total, rtol=1e-10, atol=0)


def test_the_topk_loss_means_the_same_at_every_scale():
    dictionary, x, dead = _dictionary("topk"), _batch(), _dead(1, 5, 6)
    loss = AuxKLoss(AuxKConfig())
    before = loss(dictionary, x, dead=dead, progress=0.0)
    with torch.no_grad():
        dictionary.b_dec *= 10
        dictionary.b_enc *= 10
    after = loss(dictionary, 10 * x, dead=dead, progress=0.0)
    torch.testing.assert_close(after.total, before.total, rtol=1e-12, atol=0)
    assert after.parts["auxk"] == pytest.approx(float(before.parts["auxk"]), rel=1e-12)


def test_the_batch_size_does_not_weigh():
    for architecture in ("relu", "topk"):
        dictionary, x = _dictionary(architecture), _batch()
        loss = loss_for(dictionary)
        once = loss(dictionary, x, dead=_dead(1, 5), progress=1.0).total
        twice = loss(dictionary, torch.cat([x, x]), dead=_dead(1, 5), progress=1.0).total
        torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("share", "progress", "rise"),
    [(0.1, 0.0, 0.0), (0.1, 0.05, 0.5), (0.1, 0.1, 1.0), (0.1, 0.9, 1.0), (0.0, 0.0, 1.0), (1.0, 0.25, 0.25)],
)
def test_the_l1_coefficient_warms_up(share, progress, rise):
    dictionary, x = _dictionary("relu"), _batch()
    found = L1Loss(L1Config(l1_coefficient=3.0, warmup_share=share))(dictionary, x, dead=NONE_DEAD, progress=progress)
    expected = float(found.parts["mse"]) + 3.0 * rise * float(found.parts["l1"])
    assert found.total.item() == pytest.approx(expected, rel=1e-12)


def test_the_l1_penalty_cannot_be_cheated_by_long_decoder_rows():
    dictionary, x = _dictionary("relu"), _batch()
    loss = L1Loss(L1Config())
    before = loss(dictionary, x, dead=NONE_DEAD, progress=1.0)
    with torch.no_grad():
        dictionary.W_dec *= 100
        dictionary.encoder_rows /= 100
        dictionary.b_enc /= 100
    after = loss(dictionary, x, dead=NONE_DEAD, progress=1.0)
    torch.testing.assert_close(after.total, before.total, rtol=1e-10, atol=0)


def test_a_loss_changes_neither_dictionary_nor_batch():
    for architecture in ("relu", "topk"):
        dictionary, x = _dictionary(architecture), _batch()
        before = [parameter.detach().clone() for parameter in dictionary.parameters()]
        copy = x.clone()
        loss_for(dictionary)(dictionary, x, dead=_dead(2), progress=0.5)
        assert x.equal(copy)
        assert all(a.equal(b) for a, b in zip(before, dictionary.parameters(), strict=True))


def test_each_architecture_has_its_loss():
    class Child(TopK):
        pass

    assert loss_config_type(ReLU) is L1Config
    assert loss_config_type(TopK) is loss_config_type(Child) is AuxKConfig
    found = loss_for(_dictionary("topk"), {"k_aux": 7})
    assert isinstance(found, AuxKLoss)
    assert found.config == AuxKConfig(k_aux=7)
    assert loss_for(_dictionary("relu")).config == L1Config()


def test_an_architecture_without_a_loss_is_told_what_to_do():
    class Stranger(Dictionary):
        Config = DictionaryConfig

        def activate(self, pre: torch.Tensor) -> torch.Tensor:
            return pre

    with pytest.raises(ValueError, match=r"no loss is known for Stranger; known are those of ReLU, TopK\. Pass a Loss"):
        loss_for(Stranger(DictionaryConfig(d_in=2, d_sae=2)))


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (L1Config, {"l1_coefficient": -1.0}, "l1_coefficient must not be negative"),
        (L1Config, {"warmup_share": 1.5}, r"warmup_share must lie in \[0, 1\], got 5.0 and 1.5"),
        (AuxKConfig, {"aux_coefficient": -0.1}, "aux_coefficient must not be negative"),
        (AuxKConfig, {"k_aux": 0}, "k_aux must be at least 1, got 0.03125 and 0"),
    ],
)
def test_impossible_settings_are_refused(config, settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_terms_are_values():
    terms = LossTerms(torch.zeros(()))
    assert (terms.parts, terms.fired, terms.l0) == ({}, None, None)
    with pytest.raises(FrozenInstanceError):
        terms.total = torch.ones(())  # type: ignore[misc]


def test_the_scale_brings_the_mean_norm_to_the_root_of_the_width():
    x = _batch().tolist()
    norms = [sum(value * value for value in token) ** 0.5 for token in x]
    scale = scale_to_unit_rms(sum(norms), B, D_IN)
    assert sum(scale * norm for norm in norms) / B == pytest.approx(D_IN**0.5)
    for norm_sum, num_tokens in [(0.0, 4), (float("inf"), 4), (float("nan"), 4), (1.0, 0)]:
        with pytest.raises(ValueError, match="no finite, positive norm"):
            scale_to_unit_rms(norm_sum, num_tokens, D_IN)
