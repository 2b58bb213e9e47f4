"""The optimizer step against torch's plain Adam with projection, clipping and renormalisation written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from saescope.dictionaries import DictionaryConfig, ReLU, architectures
from saescope.training.optimizer import UnitNormAdam
from saescope.training.schedules import factor

NAMES = ("encoder_rows", "W_dec", "b_enc", "b_dec")
UNIT = sorted(name for name, cls in architectures().items() if cls.unit_norm is not False)


def _dictionary(seed: int = 0) -> ReLU:
    generator = torch.Generator().manual_seed(seed)
    dictionary = ReLU(DictionaryConfig(d_in=4, d_sae=7)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dictionary


def _optimizer(dictionary: Any, **settings: Any) -> UnitNormAdam:
    """As the loop has it: rows have norm 1 before the first step."""
    if settings.get("unit_norm", True):
        dictionary.normalise_decoder()
    return UnitNormAdam(
        dictionary,
        **{"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-9, "max_grad_norm": 1.0, "unit_norm": True, **settings},
    )


def _objective(weights: dict[str, torch.Tensor], step: int) -> torch.Tensor:
    """A reconstruction error on a batch of its own for every step."""
    generator = torch.Generator().manual_seed(step)
    x = (3 if step % 5 == 0 else 0.2) * torch.randn(8, 4, dtype=torch.float64, generator=generator) + 1
    f = torch.relu((x - weights["b_dec"]) @ weights["encoder_rows"].T + weights["b_enc"])
    return (f @ weights["W_dec"] + weights["b_dec"] - x).square().sum(-1).mean()


def _weights(dictionary: ReLU) -> dict[str, torch.Tensor]:
    return {name: dictionary.get_parameter(name) for name in NAMES}


def _lr_factor(step: int, num_steps: int = 50) -> float:
    return factor(step, num_steps, num_warmup_steps=10, num_decay_steps=20)


def _run(dictionary: ReLU, optimizer: UnitNormAdam, steps: range, num_frozen: int = 0) -> list[float]:
    norms = []
    for step in steps:
        _objective(_weights(dictionary), step).backward()
        norms.append(float(optimizer.prepare(num_frozen)))
        optimizer.step(_lr_factor(step), num_frozen)
    return norms


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("max_grad_norm", [None, 4.0])
@pytest.mark.parametrize("lr_factors", [{}, {"b_enc": 3.0, "W_dec": 0.25}])
def test_fifty_steps_equal_the_ones_written_out(unit_norm, max_grad_norm, lr_factors):
    dictionary = _dictionary()
    rows = {name: tensor.detach().clone() for name, tensor in _weights(dictionary).items()}
    if unit_norm:
        rows["W_dec"] /= rows["W_dec"].square().sum(1, keepdim=True).sqrt()
    plain = {name: tensor.requires_grad_() for name, tensor in rows.items()}
    adams = {
        name: torch.optim.Adam([tensor], lr=0.02, betas=(0.9, 0.99), eps=1e-9, fused=False, foreach=False)
        for name, tensor in plain.items()
    }

    expected_norms, clipped = [], 0
    for step in range(50):
        for adam in adams.values():
            adam.zero_grad()
        _objective(plain, step).backward()
        with torch.no_grad():
            if unit_norm:
                for i in range(7):
                    row, gradient = plain["W_dec"][i], plain["W_dec"].grad[i]
                    gradient -= row * (row @ gradient) / (row @ row)
            total = math.sqrt(sum(float(tensor.grad.square().sum()) for tensor in plain.values()))
            expected_norms.append(total)
            if max_grad_norm is not None and total > max_grad_norm:
                clipped += 1
                for tensor in plain.values():
                    tensor.grad *= max_grad_norm / (total + 1e-6)  # torch's own guard against 0
        for name, adam in adams.items():
            adam.param_groups[0]["lr"] = 0.02 * _lr_factor(step) * lr_factors.get(name, 1.0)
            adam.step()
        if unit_norm:
            with torch.no_grad():
                for i in range(7):
                    plain["W_dec"][i] /= plain["W_dec"][i].norm()
    assert max_grad_norm is None or 0 < clipped < 50

    optimizer = _optimizer(dictionary, unit_norm=unit_norm, max_grad_norm=max_grad_norm, lr_factors=lr_factors)
    norms = _run(dictionary, optimizer, range(50))
    assert norms == pytest.approx(expected_norms, rel=1e-9)
    for name in NAMES:
        torch.testing.assert_close(dictionary.get_parameter(name), plain[name], rtol=1e-9, atol=1e-10, msg=name)


def test_factors_for_parameters_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"lr_factors names threshold; the parameters are .*W_dec") as error:
        _optimizer(_dictionary(), lr_factors={"threshold": 2.0, "b_enc": 1.0})
    assert "b_enc" in str(error.value)


def test_decoder_rows_have_unit_norm_before_and_after_every_step():
    dictionary = _dictionary()
    assert dictionary.decoder_norms.max() > 1.5
    optimizer = _optimizer(dictionary, lr=0.5)
    for step in range(6):
        torch.testing.assert_close(dictionary.decoder_norms, torch.ones(7).double(), rtol=1e-14, atol=0)
        _run(dictionary, optimizer, range(step, step + 1))
    torch.testing.assert_close(dictionary.decoder_norms, torch.ones(7).double(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", UNIT)
def test_no_prepared_gradient_can_change_the_norm_of_a_row(make, tokens, batch_of, name):
    """The derivative of each row's norm (the sum over sources, for crosscoders) along the gradient is 0."""
    from saescope.training.losses import loss_for

    dictionary = make(name)
    x = tokens(20)
    target = tokens(20, dictionary.d_out, seed=9) if dictionary.d_out != dictionary.d_in else None
    optimizer = _optimizer(dictionary, max_grad_norm=None)
    loss_for(dictionary)(dictionary, batch_of(dictionary, x, target, step=5, num_steps=10)).total.backward()

    def slopes() -> torch.Tensor:
        W = dictionary.W_dec.detach().clone().requires_grad_()
        widths = getattr(dictionary.config, "source_widths", (dictionary.d_out,))
        norms = sum(part.norm(dim=-1) for part in W.split(widths, dim=-1))
        torch.testing.assert_close(norms.detach(), torch.ones(len(W)).double(), rtol=1e-12, atol=0)
        (normals,) = torch.autograd.grad(norms.sum(), W)
        return (normals * dictionary.W_dec.grad).sum(-1)

    assert slopes().abs().max() > 1e-4
    optimizer.prepare()
    assert slopes().abs().max() < 1e-12
    assert dictionary.W_dec.grad.abs().max() > 1e-6


def test_norms_are_left_alone_when_that_is_off():
    dictionary = _dictionary()
    before = dictionary.decoder_norms.clone()
    optimizer = _optimizer(dictionary, unit_norm=False)
    assert dictionary.decoder_norms.equal(before)
    _run(dictionary, optimizer, range(5))
    assert (dictionary.decoder_norms - 1).abs().max() > 0.1


def test_gradients_are_zeroed_after_a_step_and_old_ones_are_no_part_of_the_first():
    clean, soiled = _dictionary(), _dictionary()
    (100 * _objective(_weights(soiled), 3)).backward()  # somebody looked at gradients before training
    _run(clean, _optimizer(clean), range(2))
    _run(soiled, _optimizer(soiled), range(2))
    for name in NAMES:
        assert clean.get_parameter(name).equal(soiled.get_parameter(name)), name
        assert not clean.get_parameter(name).grad.any()


def test_a_factor_of_zero_moves_nothing():
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary, unit_norm=False)
    before = {name: tensor.detach().clone() for name, tensor in _weights(dictionary).items()}
    _objective(_weights(dictionary), 0).backward()
    assert float(optimizer.prepare()) > 0
    optimizer.step(0.0)
    for name in NAMES:
        assert dictionary.get_parameter(name).equal(before[name])


@pytest.mark.parametrize("unit_norm", [True, False])
def test_frozen_features_stand_still_bit_for_bit_though_adam_has_momentum(unit_norm):
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary, lr=0.1, unit_norm=unit_norm)
    _run(dictionary, optimizer, range(5))  # momentum to move on by
    for num_frozen in (2, 4):
        before = {name: tensor.detach().clone() for name, tensor in _weights(dictionary).items()}
        _run(dictionary, optimizer, range(5, 12), num_frozen=num_frozen)
        for name, tensor in _weights(dictionary).items():
            if name == "b_dec":
                assert not tensor.equal(before[name])  # belongs to no feature
            else:
                assert tensor[:num_frozen].equal(before[name][:num_frozen]), name
                assert (tensor[num_frozen:] != before[name][num_frozen:]).all(), name


def test_frozen_features_have_no_part_in_the_clipped_norm():
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary, max_grad_norm=1e-3)
    _objective(_weights(dictionary), 0).backward()
    for name in ("encoder_rows", "W_dec", "b_enc"):
        dictionary.get_parameter(name).grad[:3] = 0
    optimizer_norm = float(optimizer.prepare())
    optimizer.drop_gradients()
    _objective(_weights(dictionary), 0).backward()
    assert float(optimizer.prepare(3)) == pytest.approx(optimizer_norm, rel=1e-12)
    optimizer.drop_gradients()


def test_forgetting_clears_the_memory_of_those_features_alone():
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary)
    _run(dictionary, optimizer, range(5))
    before = {key: value.clone() for key, value in optimizer.state().items()}
    optimizer.forget(torch.tensor([1, 4]))
    for key, value in optimizer.state().items():
        name, _, kind = key.rpartition(".")
        if name == "b_dec" or kind == "step":
            assert value.equal(before[key]), key
        else:
            assert not value[[1, 4]].any(), key
            assert value[[0, 2, 3, 5, 6]].equal(before[key][[0, 2, 3, 5, 6]]), key
            assert before[key][[1, 4]].any(), key


@pytest.mark.parametrize("lr_factors", [{}, {"W_dec": 2.0}])
def test_the_state_goes_out_and_in_bit_for_bit(lr_factors):
    whole, first = _dictionary(), _dictionary()
    _run(whole, _optimizer(whole, lr_factors=lr_factors), range(30))

    before = _optimizer(first, lr_factors=lr_factors)
    _run(first, before, range(17))
    state = before.state()
    assert set(state) == {f"{name}.{key}" for name in NAMES for key in ("step", "exp_avg", "exp_avg_sq")}
    second = _dictionary(seed=9)
    after = _optimizer(second, lr_factors=lr_factors)
    second.load_state_dict(first.state_dict())
    after.load_state(state)
    for key, tensor in after.state().items():
        assert tensor.equal(state[key]), key
    snapshot = {key: tensor.clone() for key, tensor in state.items()}
    _run(second, after, range(17, 30))
    for name in NAMES:
        assert second.get_parameter(name).equal(whole.get_parameter(name)), name
    for key, tensor in snapshot.items():
        assert state[key].equal(tensor), key  # the loaded state is a copy


def test_a_state_from_before_the_first_step_is_empty_and_loads():
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary)
    assert optimizer.state() == {}
    optimizer.load_state({})
    _run(dictionary, optimizer, range(1))
