"""Adam by the kernels, in one walk over the rows, against torch's with everything around it written out."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import JumpReLU, ReLU, architecture
from saescope.kernels import Gradients, cpu, reference
from saescope.training.optimizer import UnitNormAdam
from saescope.training.schedules import factor

D_IN, D_SAE, STEPS, LR = 5, 11, 200, 0.02
NAMES = ("W_dec", "encoder_rows", "b_enc", "b_dec")
LIMIT = 4.0
FACTORS = {"W_dec": 0.5, "b_enc": 3.0}


@cache
def _gradients(step: int) -> dict[str, Tensor]:
    """Of very different sizes, some steps to be clipped and others not; feature 4 has none most of the time."""
    generator = torch.Generator().manual_seed(step)
    scale = 10.0 ** (step % 5 - 3)
    shapes = {"W_dec": (D_SAE, D_IN), "encoder_rows": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    found = {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }
    if step % 7:
        for name in ("W_dec", "encoder_rows", "b_enc"):
            found[name][4] = 0
    return found


def _dictionary(dtype: torch.dtype = torch.float64) -> ReLU:
    generator = torch.Generator().manual_seed(0)
    dictionary = ReLU(ReLU.Config(d_in=D_IN, d_sae=D_SAE)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    dictionary.normalise_decoder()
    return dictionary.to(dtype)


def _optimizer(dictionary: Any, kernels: Any = cpu, **settings: Any) -> UnitNormAdam:
    defaults = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-9, "max_grad_norm": LIMIT, "unit_norm": True}
    return UnitNormAdam(dictionary, kernels=kernels, **{**defaults, **settings})


def _lr_factor(step: int) -> float:
    return factor(step, STEPS, num_warmup_steps=20, num_decay_steps=50)


def _put(optimizer: UnitNormAdam, step: int, *, ready: bool) -> Gradients | None:
    """Gradients into their buffers; projected and with their squares, as the kernels leave them, if ``ready``."""
    dictionary = optimizer.dictionary
    buffers = optimizer.gradient_buffers()
    for name, gradient in _gradients(step).items():
        parameter = dictionary.get_parameter(name)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.copy_(gradient)
    if not ready:
        return None
    if optimizer.unit_norm:
        dictionary.project_decoder_gradient()
    buffers.squares[0] = buffers.decoder.double().square().sum()
    buffers.squares[1] = buffers.encoder.double().square().sum()
    return buffers


def _run(optimizer: UnitNormAdam, steps: range, *, ready: bool = True, num_frozen: int = 0) -> list[float]:
    norms = []
    for step in steps:
        norms.append(float(optimizer.prepare(num_frozen, _put(optimizer, step, ready=ready))))
        optimizer.step(_lr_factor(step), num_frozen)
    return norms


def _written_out(dtype: torch.dtype, *, unit_norm: bool, limit: float | None, factors: dict[str, float]) -> Any:
    """Final weights, norms before clipping, and moments: torch's functions and four lines for rows of norm 1."""
    dictionary = _dictionary(dtype)
    plain = {name: dictionary.get_parameter(name).detach().clone().requires_grad_() for name in NAMES}
    adams = {
        name: torch.optim.Adam([tensor], lr=LR, betas=(0.9, 0.999), eps=1e-9, foreach=False, fused=False)
        for name, tensor in plain.items()
    }
    norms = []
    for step in range(STEPS):
        for name, tensor in plain.items():
            tensor.grad = _gradients(step)[name].to(dtype, copy=True)
        with torch.no_grad():
            rows, gradient = plain["W_dec"], plain["W_dec"].grad
            assert gradient is not None
            if unit_norm:
                gradient -= (gradient * rows).sum(1, keepdim=True) * rows / rows.square().sum(1, keepdim=True)
            norms.append(float(torch.nn.utils.clip_grad_norm_(plain.values(), limit or torch.inf)))
            for name, adam in adams.items():
                adam.param_groups[0]["lr"] = LR * _lr_factor(step) * factors.get(name, 1.0)
                adam.step()
            if unit_norm:
                rows /= rows.square().sum(1, keepdim=True).sqrt()
    moments = {
        f"{name}.{key}": value for name, tensor in plain.items() for key, value in adams[name].state[tensor].items()
    }
    return plain, norms, moments


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("kernels", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["", "factors"])
@pytest.mark.parametrize("limit", [LIMIT, None])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_in_float64_two_hundred_steps_are_torchs(unit_norm, limit, factors, kernels, ready):
    plain, expected_norms, moments = _written_out(torch.float64, unit_norm=unit_norm, limit=limit, factors=factors)
    assert sum(norm > LIMIT for norm in expected_norms) in range(30, STEPS - 30)
    optimizer = _optimizer(
        _dictionary(), kernels, unit_norm=unit_norm, max_grad_norm=limit, lr_factors=factors
    )  # fmt: skip
    norms = _run(optimizer, range(STEPS), ready=ready)
    assert norms == pytest.approx(expected_norms, rel=1e-12)
    for name in NAMES:
        torch.testing.assert_close(optimizer.dictionary.get_parameter(name), plain[name], rtol=1e-10, atol=1e-10)
    state = optimizer.state()
    assert (
        set(state) == set(moments) == {f"{name}.{key}" for name in NAMES for key in ("step", "exp_avg", "exp_avg_sq")}
    )
    for key, value in moments.items():
        assert state[key].dtype == value.dtype
        assert state[key].shape == value.shape
        torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-14, msg=key)


def test_in_float32_they_differ_from_float64_by_no_more_than_torchs_own():
    """1 - beta2 taken in float32 would be wrong in the fifth digit, and so would every second moment."""
    exact, _, moments = _written_out(torch.float64, unit_norm=True, limit=LIMIT, factors={})
    rounded, _, torchs = _written_out(torch.float32, unit_norm=True, limit=LIMIT, factors={})
    optimizer = _optimizer(_dictionary(torch.float32))
    _run(optimizer, range(STEPS))
    for name in NAMES:
        own = (optimizer.dictionary.get_parameter(name).double() - exact[name]).abs().max()
        assert own <= 3 * (rounded[name].double() - exact[name]).abs().max() + 1e-6, name
    state = optimizer.state()
    for name in ("encoder_rows", "b_enc", "b_dec"):  # not projected: nothing is cancelled in them
        for own in (state, torchs):
            found, expected = own[f"{name}.exp_avg_sq"].double(), moments[f"{name}.exp_avg_sq"]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            optimizer = _optimizer(_dictionary(torch.float32))
            _run(optimizer, range(20))
            found.append([tensor.detach() for tensor in optimizer.dictionary.parameters()])
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_rows_have_norm_one_after_every_step_and_gradients_are_kept_in_place():
    optimizer = _optimizer(_dictionary(), lr=0.5)
    buffers = optimizer.gradient_buffers()
    for step in range(5):
        _run(optimizer, range(step, step + 1))
        norms = optimizer.dictionary.decoder_norms
        torch.testing.assert_close(norms, torch.ones(D_SAE).double(), rtol=1e-14, atol=0)
        again = optimizer.gradient_buffers()
        for name in ("encoder", "decoder", "bias"):
            assert getattr(again, name).data_ptr() == getattr(buffers, name).data_ptr()


@pytest.mark.parametrize("other", [cpu, None], ids=["kernels", "torch"])
@pytest.mark.parametrize("own", [cpu, None], ids=["kernels", "torch"])
def test_a_state_goes_out_and_in_also_between_machines_with_and_without_kernels(own, other):
    whole = _optimizer(_dictionary(), lr_factors=FACTORS)
    _run(whole, range(60), ready=False)

    first = _optimizer(_dictionary(), own, lr_factors=FACTORS)
    _run(first, range(35), ready=False)
    state = first.state()
    snapshot = {key: value.clone() for key, value in state.items()}
    dictionary = _dictionary()
    dictionary.load_state_dict(first.dictionary.state_dict())
    second = _optimizer(dictionary, other, lr_factors=FACTORS)
    second.load_state(state)
    assert {key: value.dtype for key, value in second.state().items()} == {k: v.dtype for k, v in state.items()}
    assert all(value.equal(state[key]) for key, value in second.state().items())
    _run(second, range(35, 60), ready=False)
    for name in NAMES:
        expected, found = whole.dictionary.get_parameter(name), dictionary.get_parameter(name)
        if own is other is cpu:
            assert found.equal(expected), name
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=name)
    assert all(value.equal(snapshot[key]) for key, value in state.items()), "the loaded state must be a copy"


def test_a_state_from_before_the_first_step_is_empty_and_loads():
    optimizer = _optimizer(_dictionary())
    assert optimizer.state() == {}
    optimizer.load_state({})
    _run(optimizer, range(1))
    assert int(optimizer.state()["W_dec.step"]) == 1


@pytest.mark.parametrize("ready", [True, False])
def test_frozen_features_stand_still_bit_for_bit_and_have_no_part_in_the_norm(ready):
    optimizer = _optimizer(_dictionary(), lr=0.1)
    _run(optimizer, range(5))  # momentum to move on by
    for num_frozen in (3, 10):
        before = {name: p.detach().clone() for name, p in optimizer.dictionary.named_parameters()}
        (norm,) = _run(optimizer, range(8, 9), ready=ready, num_frozen=num_frozen)
        squares = 0.0
        for name, parameter in optimizer.dictionary.named_parameters():
            gradient = _gradients(8)[name]
            if name == "W_dec":
                gradient = gradient - (gradient * before[name]).sum(1, keepdim=True) * before[name]
            if name == "b_dec":
                assert (parameter != before[name]).all()
            else:
                assert parameter[:num_frozen].equal(before[name][:num_frozen]), name
                assert (parameter[num_frozen:] != before[name][num_frozen:]).all(), name
                gradient = gradient[num_frozen:]
            squares += float(gradient.square().sum())
        assert norm == pytest.approx(squares**0.5, rel=1e-12)


def test_forgetting_clears_the_memory_of_those_features_alone():
    optimizer = _optimizer(_dictionary())
    _run(optimizer, range(5))
    before = {key: value.clone() for key, value in optimizer.state().items()}
    optimizer.forget(torch.tensor([1, 7]))
    rest = [i for i in range(D_SAE) if i not in (1, 7)]
    for key, value in optimizer.state().items():
        if key.startswith("b_dec") or key.endswith("step"):
            assert value.equal(before[key]), key
        else:
            assert not value[[1, 7]].any(), key
            assert before[key][[1, 7]].any(), key
            assert value[rest].equal(before[key][rest]), key


def test_thresholds_take_part_and_stay_where_they_have_a_meaning():
    dictionary = JumpReLU(JumpReLU.Config(d_in=D_IN, d_sae=D_SAE, initial_threshold=0.01)).double()
    dictionary.normalise_decoder()
    optimizer = _optimizer(dictionary, lr_factors={"threshold": 10.0}, max_grad_norm=None)
    buffers = _put(optimizer, 1, ready=True)
    gradient = torch.arange(D_SAE, dtype=torch.float64) - 5
    dictionary.threshold.grad = gradient.clone()
    norm = optimizer.prepare(0, buffers)
    parts = [p.grad.square().sum() for p in dictionary.parameters() if p.grad is not None]
    assert len(parts) == 5
    assert float(norm) == pytest.approx(float(sum(parts)) ** 0.5)  # type: ignore[arg-type]
    optimizer.step(1.0)
    # the first step of Adam is lr times the sign
    expected = 0.01 - 10 * LR * gradient.sign()
    torch.testing.assert_close(dictionary.threshold.detach(), expected.clamp_min(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_is_in_the_norm(name, bad):
    optimizer = _optimizer(_dictionary())
    for ready in (True, False):
        _put(optimizer, 1, ready=False)
        optimizer.dictionary.get_parameter(name).grad.view(-1)[2] = bad
        buffers = optimizer.gradient_buffers() if ready else None
        if buffers is not None:
            buffers.squares[0] = buffers.decoder.double().square().sum()
            buffers.squares[1] = buffers.encoder.double().square().sum()
        assert not optimizer.prepare(0, buffers).isfinite()


@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_factors_for_parameters_that_do_not_exist_are_refused(name):
    cls = architecture(name)
    dictionary = cls(cls.Config(d_in=4, d_sae=8, **({"k": 2} if name == "topk" else {})))
    with pytest.raises(ValueError, match="lr_factors names elsewhere"):
        _optimizer(dictionary, lr_factors={"elsewhere": 1.0})
