"""The optimizer step against torch's plain Adam with projection, clipping and renormalisation written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from saescope.dictionaries import DictionaryConfig, ReLU
from saescope.training.optimizer import UnitNormAdam
from saescope.training.schedules import lr_factor

NAMES = ("encoder_rows", "W_dec", "b_enc", "b_dec")


def _dictionary(seed: int = 0) -> ReLU:
    generator = torch.Generator().manual_seed(seed)
    dictionary = ReLU(DictionaryConfig(d_in=4, d_sae=7)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return dictionary


def _optimizer(dictionary: ReLU, **settings: Any) -> UnitNormAdam:
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


def _run(dictionary: ReLU, optimizer: UnitNormAdam, steps: range, num_steps: int = 50) -> list[float]:
    norms = []
    for step in steps:
        _objective(_weights(dictionary), step).backward()
        norms.append(float(optimizer.step(lr_factor(step, num_steps, 10, 20))))
    return norms


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("max_grad_norm", [None, 4.0])
def test_fifty_steps_equal_the_ones_written_out(unit_norm, max_grad_norm):
    dictionary = _dictionary()
    rows = {name: tensor.detach().clone() for name, tensor in _weights(dictionary).items()}
    if unit_norm:
        rows["W_dec"] /= rows["W_dec"].square().sum(1, keepdim=True).sqrt()
    plain = {name: tensor.requires_grad_() for name, tensor in rows.items()}
    adam = torch.optim.Adam(plain.values(), lr=0.02, betas=(0.9, 0.99), eps=1e-9, fused=False, foreach=False)

    expected_norms, clipped = [], 0
    for step in range(50):
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
        adam.param_groups[0]["lr"] = 0.02 * lr_factor(step, 50, 10, 20)
        adam.step()
        if unit_norm:
            with torch.no_grad():
                for i in range(7):
                    plain["W_dec"][i] /= plain["W_dec"][i].norm()
    assert max_grad_norm is None or 0 < clipped < 50

    norms = _run(dictionary, _optimizer(dictionary, unit_norm=unit_norm, max_grad_norm=max_grad_norm), range(50))
    assert norms == pytest.approx(expected_norms, rel=1e-9)
    for name in NAMES:
        torch.testing.assert_close(dictionary.get_parameter(name), plain[name], rtol=1e-9, atol=1e-10, msg=name)


def test_decoder_rows_have_unit_norm_before_and_after_every_step():
    dictionary = _dictionary()
    assert dictionary.decoder_norms.max() > 1.5
    optimizer = _optimizer(dictionary, lr=0.5)
    for step in range(6):
        torch.testing.assert_close(dictionary.decoder_norms, torch.ones(7).double(), rtol=1e-14, atol=0)
        _run(dictionary, optimizer, range(step, step + 1))
    torch.testing.assert_close(dictionary.decoder_norms, torch.ones(7).double(), rtol=1e-14, atol=0)


def test_the_projected_gradient_is_at_right_angles_to_every_row():
    dictionary = _dictionary()
    optimizer = _optimizer(dictionary)
    _objective(_weights(dictionary), 0).backward()
    before = dictionary.W_dec.grad.clone()
    assert (before * dictionary.W_dec).sum(-1).abs().max() > 1e-2
    optimizer.project_decoder_gradient()
    assert (dictionary.W_dec.grad * dictionary.W_dec).sum(-1).abs().max() < 1e-13


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
    assert float(optimizer.step(0.0)) > 0
    for name in NAMES:
        assert dictionary.get_parameter(name).equal(before[name])


def test_the_state_goes_out_and_in_bit_for_bit():
    whole, first = _dictionary(), _dictionary()
    _run(whole, _optimizer(whole), range(30))

    before = _optimizer(first)
    _run(first, before, range(17))
    state = before.state()
    assert set(state) == {f"{name}.{key}" for name in NAMES for key in ("step", "exp_avg", "exp_avg_sq")}
    second = _dictionary(seed=9)
    after = _optimizer(second)
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
