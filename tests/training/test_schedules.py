"""The learning rate over a run, at its edges and in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saescope.training.schedules import lr_factor


def test_a_small_schedule_number_by_number():
    assert [lr_factor(step, 10, 4, 5) for step in range(10)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


def test_parts_of_length_zero():
    assert [lr_factor(step, 4, 0, 0) for step in range(4)] == [1, 1, 1, 1]
    assert [lr_factor(step, 4, 0, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [lr_factor(step, 4, 4, 0) for step in range(4)] == [0.25, 0.5, 0.75, 1]


def test_a_run_shorter_than_its_warmup_never_reaches_the_peak():
    assert [lr_factor(step, 2, 8, 0) for step in range(2)] == [1 / 8, 2 / 8]
    assert lr_factor(0, 1, 1, 1) == 1


def test_nothing_is_left_after_the_last_step():
    assert lr_factor(10, 10, 3, 5) == 0
    assert lr_factor(11, 10, 3, 5) == 0


@given(num_steps=st.integers(1, 200), warmup=st.integers(0, 250), decay=st.integers(0, 250))
def test_it_rises_once_then_falls_and_stays_a_share(num_steps, warmup, decay):
    factors = [lr_factor(step, num_steps, warmup, decay) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[0] <= 1 / max(warmup, 1)
    assert factors[-1] <= 1 / max(decay, 1)
    if warmup + decay <= num_steps:
        assert max(factors) == 1
