"""Training in bfloat16: steps that are passed over, and the way back to float32."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.training import Loss, LossTerms, NonFiniteLossError, StepMetrics, TrainingConfig, loss_for, train
from saescope.training.checkpoint import newest_checkpoint
from saescope.training.losses import Batch

BATCH = 32
SKIPPED = r"step \d+: the loss or its gradient is not finite in bfloat16; the step is skipped"


def _config(num_steps: int = 20, **settings: Any) -> TrainingConfig:
    defaults = {"num_tokens": num_steps * BATCH, "batch_size_tokens": BATCH, "lr": 0.01, "num_warmup_steps": 2}
    defaults |= {"autocast": True, "log_every_n_steps": 1, "dead_after_tokens": 4 * BATCH}
    defaults |= {"num_threshold_tokens": 4 * BATCH}
    return TrainingConfig(**{**defaults, **settings})


class Spoilt(Loss):
    """The loss of an architecture, with NaN at chosen steps while products run in bfloat16 (or always)."""

    def __init__(self, dictionary: Dictionary, steps: set[int], *, in_float32: bool = False, gradient: bool = False):
        self.loss, self.steps, self.in_float32, self.gradient = loss_for(dictionary), steps, in_float32, gradient
        self.autocast: dict[int, bool] = {}
        self.calls: list[int] = []
        self.remembered: list[int] = []

    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        on = torch.is_autocast_enabled("cpu")
        self.autocast[batch.step] = on
        self.calls.append(batch.step)
        terms = self.loss(dictionary, batch)
        if batch.step in self.steps and (on or self.in_float32):
            bad = dictionary.b_dec.sum() * float("nan")
            if self.gradient:  # finite itself, with a gradient that is not
                bad = (dictionary.b_dec * 0).sum().abs().sqrt()
            return LossTerms(terms.total + bad, terms.parts, terms.f)
        return terms

    def after_step(self, batch: Batch) -> None:
        self.remembered.append(batch.step)
        self.loss.after_step(batch)


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}


def _run(dictionary, toy_stream, loss, config, **more):
    """Train, and keep the weights and log lines after every step."""
    states, lines = {}, []
    train(
        dictionary, toy_stream(), config, loss=loss, on_metrics=lines.append,
        on_step=lambda done, total: states.update({done: _weights(dictionary)}), **more,
    )  # fmt: skip
    return states, lines


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", ["relu", "topk"])
def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(new, toy_stream, name, gradient):
    dictionary = new(name)
    loss = Spoilt(dictionary, {5, 9}, gradient=gradient)
    with pytest.warns(UserWarning, match=SKIPPED) as warned:
        states, lines = _run(dictionary, toy_stream, loss, _config())
    assert [str(w.message).split(":")[0] for w in warned] == ["step 5", "step 9"]
    assert "(1 so far)" in str(warned[0].message)
    assert "float32" not in str(warned[1].message)
    assert sorted(states) == list(range(1, 21))  # all steps, none twice
    for step in (5, 9):
        assert all(states[step][key].equal(value) for key, value in states[step + 1].items())
        assert not all(states[step + 1][key].equal(value) for key, value in states[step + 2].items())
    assert [line.num_skipped_steps for line in lines] == [0] * 5 + [1] * 4 + [2] * 11
    assert all(loss.autocast.values())
    assert loss.remembered == [step for step in range(20) if step not in (5, 9)]
    assert all(tensor.isfinite().all() for tensor in dictionary.parameters())


def test_a_skipped_step_leaves_no_trace_but_its_place(new, toy_stream):
    """The run equals one whose learning rate is 0 in that step... for weights; here: Adam's memory is not touched."""
    a, b = new("topk"), new("topk")
    with pytest.warns(UserWarning, match=SKIPPED):
        states, _ = _run(a, toy_stream, Spoilt(a, {5, 6, 7}), _config(num_steps=12, max_nan_fallbacks=9))
    clean, _ = _run(b, toy_stream, Spoilt(b, set()), _config(num_steps=12))
    assert all(states[5][key].equal(value) for key, value in clean[5].items())
    assert not any(tensor.isnan().any() for tensor in states[12].values())


@pytest.mark.parametrize("allowed", [1, 3])
def test_after_so_many_the_run_goes_on_in_float32(new, toy_stream, allowed):
    """'After ``max_nan_fallbacks`` of them the run goes on in float32.'"""
    dictionary = new("relu")
    loss = Spoilt(dictionary, {2, 4, 5, 8, 11, 12})
    with pytest.warns(UserWarning, match=SKIPPED) as warned:
        _, lines = _run(dictionary, toy_stream, loss, _config(max_nan_fallbacks=allowed))
    last = [2, 4, 5, 8, 11, 12][allowed - 1]
    assert loss.autocast == {step: step <= last for step in range(20)}
    assert len(warned) == allowed
    assert lines[-1].num_skipped_steps == allowed
    assert "the run goes on in float32" in str(warned[-1].message)
    assert not any("goes on in float32" in str(w.message) for w in list(warned)[:-1])


def test_nan_in_float32_stops_with_the_state_before_it(new, toy_stream, tmp_path):
    dictionary = new("relu")
    after = {}
    with pytest.raises(
        NonFiniteLossError,
        match=rf"step 6: the loss or its gradient is not finite \(loss nan\) in float32; .*{tmp_path}",
    ):
        train(
            dictionary, toy_stream(), _config(autocast=False), loss=Spoilt(dictionary, {6}, in_float32=True),
            folder=tmp_path, on_step=lambda done, total: after.update(_weights(dictionary)),
        )  # fmt: skip
    kept = newest_checkpoint(tmp_path / "checkpoints")
    assert kept.step == 6
    for key, tensor in kept.part("dictionary").items():
        assert tensor.equal(after[key]), key
    assert all(tensor.isfinite().all() for tensor in dictionary.parameters())
    # and it goes on from there, after the batch that did it
    stream = toy_stream()
    train(dictionary, stream, _config(autocast=False), folder=tmp_path, resume=True)
    assert stream.drawn == 21


def test_nan_after_bfloat16_was_given_up_stops_too(new, toy_stream):
    dictionary = new("relu")
    loss = Spoilt(dictionary, {1, 2, 3, 4, 9}, in_float32=True)
    with (
        pytest.warns(UserWarning, match=SKIPPED),
        pytest.raises(NonFiniteLossError, match=r"step \d: .* in float32\."),
    ):
        train(dictionary, toy_stream(), _config(max_nan_fallbacks=1), loss=loss)


def test_without_autocast_nothing_is_in_bfloat16(new, toy_stream):
    dictionary = new("relu")
    loss = Spoilt(dictionary, {3})
    train(dictionary, toy_stream(), _config(autocast=False), loss=loss)
    assert not any(loss.autocast.values())


def test_the_count_of_skipped_steps_survives_resuming(new, toy_stream, tmp_path):
    steps = {2, 4, 10, 13}
    config = _config(max_nan_fallbacks=2, checkpoint_every_n_steps=4)
    whole, stopped, resumed = new("relu"), new("relu"), new("relu", seed=9)
    expected: list[StepMetrics] = []
    with pytest.warns(UserWarning, match=SKIPPED):
        train(whole, toy_stream(), config, loss=Spoilt(whole, steps), on_metrics=expected.append)
    with (
        pytest.warns(UserWarning, match=SKIPPED),
        pytest.raises(RuntimeError, match="power"),
    ):
        train(
            stopped, toy_stream(spoil={9: RuntimeError("power")}), config, loss=Spoilt(stopped, steps), folder=tmp_path
        )
    assert json.loads((tmp_path / "checkpoints/step-00000008/state.json").read_text())["num_skipped"] == 2
    loss = Spoilt(resumed, steps)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        seen: list[StepMetrics] = []
        train(resumed, toy_stream(), config, loss=loss, folder=tmp_path, resume=True, on_metrics=seen.append)
    assert all(value.equal(resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert seen[-1].num_skipped_steps == expected[-1].num_skipped_steps


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_first_step_that_is_skipped_can_be_logged(new, toy_stream, name):
    """BatchTopK has no threshold before its first step, and the log of that step asks for a reconstruction."""
    dictionary = new(name)
    seen: list[StepMetrics] = []
    with pytest.warns(UserWarning, match="step 0: .* the step is skipped"):
        train(dictionary, toy_stream(), _config(), loss=Spoilt(dictionary, {0}), on_metrics=seen.append)
    assert len(seen) == 20
    assert seen[-1].explained_variance > 0


@pytest.mark.parametrize(
    "name",
    [
        "relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered", "matching_pursuit",
        "topk_skip_transcoder", "relu_crosscoder", "topk_archetypal",
    ],
)  # fmt: skip
def test_every_family_learns_in_bfloat16_nearly_what_it_learns_in_float32(new, toy_stream, name):
    ends = []
    for autocast in (False, True):
        dictionary = new(name)
        result = train(
            dictionary, toy_stream(paired="transcoder" in name), _config(num_steps=60, autocast=autocast, lr=3e-3)
        )
        assert dictionary.W_dec.dtype == torch.float32
        ends.append(result.last.explained_variance)
    assert ends[1] == pytest.approx(ends[0], abs=0.05)
    assert ends[1] > 0.1
