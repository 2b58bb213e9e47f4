"""Factors over a run and ramps: closed forms, edges, and lengths of zero."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.training.schedules import check_shape, factor, ramp

SHAPES = ["constant", "linear", "cosine", "cosine_restarts"]


def test_a_small_schedule_number_by_number():
    found = [factor(step, 10, num_warmup_steps=4, num_decay_steps=5) for step in range(10)]
    assert found == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


def test_parts_of_length_zero():
    assert [factor(step, 4) for step in range(4)] == [1, 1, 1, 1]
    assert [factor(step, 4, num_decay_steps=4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [factor(step, 4, num_warmup_steps=4) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    for shape in SHAPES:
        assert 0 <= factor(0, 1, shape=shape) <= 1
        assert 0 <= factor(0, 1, shape=shape, num_warmup_steps=1, num_decay_steps=1) <= 1
        assert 0 <= factor(3, 4, shape=shape, num_warmup_steps=4) <= 1


def test_a_run_shorter_than_its_warmup_never_reaches_the_peak():
    assert [factor(step, 2, num_warmup_steps=8) for step in range(2)] == [1 / 8, 2 / 8]
    assert factor(0, 1, num_warmup_steps=1, num_decay_steps=1) == 1


def test_nothing_is_left_after_the_last_step():
    assert factor(10, 10, num_warmup_steps=3, num_decay_steps=5) == 0
    assert factor(11, 10, num_warmup_steps=3, num_decay_steps=5) == 0


@given(
    num_steps=st.integers(1, 200), warmup=st.integers(0, 250), decay=st.integers(0, 250),
    shape=st.sampled_from(SHAPES), cycles=st.integers(1, 5), floor=st.floats(0, 1),
)  # fmt: skip
def test_it_is_a_share_for_every_length_of_every_part(num_steps, warmup, decay, shape, cycles, floor):
    factors = [
        factor(
            step, num_steps, num_warmup_steps=warmup, shape=shape, num_cycles=cycles, floor=floor,
            num_decay_steps=decay,
        )
        for step in range(num_steps)
    ]  # fmt: skip
    assert all(0 <= value <= 1 for value in factors)
    assert factors[0] <= 1 / max(warmup, 1)
    assert factors[-1] <= 1 / max(decay, 1)
    if shape != "cosine_restarts":  # it rises once, then falls
        top = factors.index(max(factors))
        assert factors[: top + 1] == sorted(factors[: top + 1])
        assert factors[top:] == sorted(factors[top:], reverse=True)
    if shape == "constant":
        assert all(value > 0 for value in factors)
        if warmup + decay <= num_steps:
            assert max(factors) == 1
    elif num_steps > max(warmup, 1) and not decay:
        assert factors[-1] == pytest.approx(min(1.0, floor), abs=1e-12)  # the shape has come down in the last step


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize(("num_steps", "warmup"), [(50, 0), (50, 10), (7, 3)])
def test_linear_and_cosine_in_closed_form(num_steps, warmup, floor):
    for step in range(warmup, num_steps):
        done = Fraction(step - warmup + 1, num_steps - warmup)
        settings = {"num_warmup_steps": warmup, "floor": floor}
        linear = floor + (1 - floor) * float(1 - done)
        assert factor(step, num_steps, shape="linear", **settings) == pytest.approx(linear, abs=1e-12)
        cosine = floor + (1 - floor) * (1 + math.cos(math.pi * float(done))) / 2
        assert factor(step, num_steps, shape="cosine", **settings) == pytest.approx(cosine, abs=1e-12)
        assert factor(step, num_steps, shape="cosine_restarts", num_cycles=1, **settings) == pytest.approx(
            cosine, abs=1e-12
        )


@given(num_steps=st.integers(2, 400), cycles=st.integers(1, 12), warmup=st.integers(0, 30))
def test_every_restart_comes_where_it_is_due(num_steps, cycles, warmup):
    """In exact arithmetic: a cycle that ends on a step begins the next one there, whatever the rounding."""
    for step in range(warmup, num_steps):
        done = Fraction(step - warmup + 1, num_steps - warmup)
        turn = done * cycles
        turn = Fraction(1) if done == 1 else turn - math.floor(turn)
        expected = (1 + math.cos(math.pi * float(turn))) / 2
        found = factor(step, num_steps, num_warmup_steps=warmup, shape="cosine_restarts", num_cycles=cycles)
        assert found == pytest.approx(expected, abs=1e-9), (step, done)


def test_each_cycle_begins_at_the_peak_and_comes_down():
    values = [factor(step, 40, shape="cosine_restarts", num_cycles=4) for step in range(40)]
    jumps = [step for step in range(1, 40) if values[step] > values[step - 1]]
    assert len(jumps) == 3
    assert all(values[step] == 1 for step in jumps)
    assert values[-1] == 0


def test_warm_up_and_decay_bound_the_shape():
    whole = [factor(s, 20, num_warmup_steps=5, shape="cosine", num_decay_steps=4) for s in range(20)]
    for step, value in enumerate(whole):
        cosine = factor(step, 20, num_warmup_steps=5, shape="cosine")
        assert value == min(cosine, (step + 1) / 5, (20 - step) / 4)


def test_schedules_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"a schedule is one of constant, linear, cosine, cosine_restarts, not 'step'"):
        check_shape("step", 1, 0.0)
    with pytest.raises(ValueError, match=r"num_cycles must be at least 1 and the floor in \[0, 1\], got 0"):
        check_shape("cosine", 0, 0.0)
    with pytest.raises(ValueError, match="the floor"):
        check_shape("cosine", 1, 1.5)


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
def test_ramps_in_closed_form(shape):
    for start, end, share in ((64.0, 4.0, 0.5), (2.0, 9.0, 1.0), (5.5, 5.5, 0.1)):
        assert ramp(0.0, start, end, share, shape) == pytest.approx(start)
        half = {"linear": (start + end) / 2, "cosine": (start + end) / 2, "exponential": math.sqrt(start * end)}
        assert ramp(share / 2, start, end, share, shape) == pytest.approx(half[shape])
        quarter = {
            "linear": 0.75 * start + 0.25 * end,
            "cosine": end + (start - end) * (1 + math.cos(math.pi / 4)) / 2,
            "exponential": start**0.75 * end**0.25,
        }
        assert ramp(share / 4, start, end, share, shape) == pytest.approx(quarter[shape])
        assert ramp(share, start, end, share, shape) == end


@given(
    progress=st.floats(0, 1, exclude_max=True), start=st.floats(1, 1e4), k=st.floats(0.5, 1e4), share=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine", "exponential"]),
)  # fmt: skip
def test_a_ramp_stays_between_its_ends_and_keeps_the_end(progress, start, k, share, shape):
    value = ramp(progress, start, k, share, shape)
    low, high = min(start, k), max(start, k)
    assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)
    if progress >= share:
        assert value == k


def test_a_ramp_of_no_length_is_its_end():
    for shape in ("linear", "cosine", "exponential"):
        assert ramp(0.0, 100.0, 7.0, 0.0, shape) == 7.0
