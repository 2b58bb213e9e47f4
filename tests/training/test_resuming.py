"""Stopped in the middle and resumed: every architecture, every loss with a memory, every normalisation, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, architectures, load_dictionary
from saescope.training import Run, TrainingConfig, loss_for, train, train_many

BATCH, STEPS, STOP = 32, 18, 12
POWER_CUT = RuntimeError("the power went off")

ANNEALED = {"p_end": 0.2, "anneal_start": 0.2, "anneal_end": 1.0, "num_p_updates": 6}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "p_annealing": ("relu", ANNEALED, {}),
    "gated_annealed": ("gated", ANNEALED, {}),
    "quadratic": ("jumprelu", {"penalty": "quadratic", "target_l0": 3.0, "pre_act_coefficient": 0.1}, {}),
    "k_ramp": ("topk", {"k_start": 10, "k_anneal_share": 1.0, "multi_topk_coefficient": 0.1}, {}),
    "fractional_k": ("batch_topk", {"k_start": 6.5}, {}),
    "random_prefixes": ("matryoshka", {"prefixes": "random", "num_prefixes": 4}, {}),
    "sweep": ("ordered", {"sweep_start": 0.2, "sweep_end": 0.9}, {}),
    "revival": ("matching_pursuit", {"revival_coefficient": 0.1}, {}),
    "archetypal": ("topk_archetypal", {}, {}),
    "skip": ("topk_skip_transcoder", {}, {}),
    "crosscoder": ("relu_crosscoder", ANNEALED, {}),
    "resampled": ("topk", {}, {"resample_every_n_steps": 4, "resample_until_share": 1.0}),
    "schedules": ("relu", {}, {"lr_schedule": "cosine_restarts", "num_cycles": 3, "lr_factors": {"b_enc": 3.0}}),
    "first_size": ("topk", {}, {"search_init_norm": True, "decoder_init": "data", "b_dec_init": "geometric_median"}),
    "autocast": ("topk", {}, {"autocast": True}),
    "many_first_tokens": ("topk", {}, {"num_normalization_tokens": 100}),
}
NORMALIZED = [
    (name, normalization)
    for normalization in ("unit_scale", "layer_norm", "whitening", "none")
    for name in (
        "relu",
        "batch_topk",
        "matching_pursuit",
        "topk_skip_transcoder",
        "gated_crosscoder",
        "topk_archetypal",
    )
]


def _config(**settings: Any) -> TrainingConfig:
    defaults = {"num_tokens": STEPS * BATCH, "batch_size_tokens": BATCH, "dead_after_tokens": 4 * BATCH, "lr": 0.01}
    defaults |= {"checkpoint_every_n_steps": 5, "num_warmup_steps": 5, "log_every_n_steps": 6}
    return TrainingConfig(**{**defaults, "num_threshold_tokens": 3 * BATCH, **settings})


def _everything(dictionary: Dictionary) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in dictionary.state_dict().items()}


def _assert_same(found: Dictionary, expected: Dictionary, *, from_file: bool = False) -> None:
    a, b = _everything(found), _everything(expected)
    if from_file:  # a file does not hold how many batches a running mean has seen
        a.pop("threshold_steps", None)
        b.pop("threshold_steps", None)
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        torch.testing.assert_close(tensor, b[key], rtol=0, atol=0, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}")
    assert type(found.input_normalization) is type(expected.input_normalization)


def _check(new, toy_stream, folder, name, loss_settings, settings, *, same_object=False) -> None:
    paired = "transcoder" in name
    num_first = -(-settings.get("num_normalization_tokens", 0) // BATCH) or 1
    whole, resumed, stopped = new(name), new(name, seed=99), new(name)
    config = _config(**settings)

    def run(dictionary: Dictionary, stream: Any, **more: Any) -> None:
        train(dictionary, stream, config, loss=loss_for(dictionary, loss_settings), **more)

    run(whole, toy_stream(paired=paired))
    with pytest.raises(RuntimeError, match="power went off"):
        run(stopped, toy_stream(paired=paired, spoil={STOP + num_first: POWER_CUT}), folder=folder)
    if same_object:
        resumed = stopped
    run(resumed, toy_stream(paired=paired), folder=folder, resume=True)
    assert whole.W_dec.isfinite().all()
    _assert_same(resumed, whole)
    _assert_same(load_dictionary(folder / "checkpoints" / f"step-{STEPS:08d}" / "dictionary"), whole, from_file=True)


@pytest.mark.parametrize("name", sorted(architectures()))
def test_every_architecture(new, toy_stream, tmp_path, name):
    _check(new, toy_stream, tmp_path, name, {}, {})


@pytest.mark.parametrize("case", sorted(CASES))
def test_everything_with_a_memory(new, toy_stream, tmp_path, case):
    name, loss_settings, settings = CASES[case]
    _check(new, toy_stream, tmp_path, name, loss_settings, settings)


@pytest.mark.parametrize(("name", "normalization"), NORMALIZED)
def test_every_normalization(new, toy_stream, tmp_path, name, normalization):
    # a covariance needs more tokens than the width
    _check(new, toy_stream, tmp_path, name, {}, {"normalization": normalization})


@pytest.mark.parametrize(
    ("name", "normalization"),
    [("topk", "scale"), ("topk", "layer_norm"), ("relu", "whitening"), ("matching_pursuit", "whitening")],
)
def test_with_the_very_dictionary_that_was_interrupted(new, toy_stream, tmp_path, name, normalization):
    """After an interruption it works on raw activations; resuming brings it back to where it trained."""
    _check(new, toy_stream, tmp_path, name, {}, {"normalization": normalization}, same_object=True)


def test_the_resampled_case_does_resample(new, toy_stream):
    """What the case above is there for: its features die, and rows are set."""
    plain, resampled = new("topk"), new("topk")
    for dictionary, settings in ((plain, {}), (resampled, CASES["resampled"][2])):
        train(dictionary, toy_stream(), _config(**settings))
    assert not plain.W_dec.equal(resampled.W_dec)


def test_resuming_where_nothing_was_changed_is_a_copy_of_the_checkpoint(new, toy_stream, tmp_path):
    dictionary = new("jumprelu")
    train(dictionary, toy_stream(), _config(), folder=tmp_path)
    before = copy.deepcopy(dictionary)
    again = new("jumprelu", seed=5)
    train(again, toy_stream(), _config(), folder=tmp_path, resume=True)
    _assert_same(again, before)


@pytest.mark.parametrize(("name", "loss_settings"), [("relu", ANNEALED), ("topk", {})])
def test_counters_and_memories_are_there_before_the_first_step(new, toy_stream, tmp_path, name, loss_settings):
    """Not only the weights in the end: everything that a step depends on is restored, and nothing else matters."""
    dictionary, again = new(name), new(name, seed=5)
    run = Run(dictionary, _config(autocast=True), loss=loss_for(dictionary, loss_settings), folder=tmp_path)
    run.stepper.num_skipped = 1  # as if one step had not been finite
    with pytest.raises(RuntimeError, match="power went off"):
        train_many([run], toy_stream(spoil={10: POWER_CUT}))
    resumed = Run(again, _config(autocast=True), loss=loss_for(again, loss_settings), folder=tmp_path)
    torch.manual_seed(77)
    resumed.begin(resume=True)
    assert (resumed.step, resumed.num_taken, resumed.stream_state["drawn"]) == (10, 10, 10)
    a, b = run.stepper, resumed.stepper
    assert b.num_skipped == 1
    assert b.tokens_since_fired.equal(a.tokens_since_fired)
    assert bool(a.tokens_since_fired.any()) == (name == "topk")  # some are dead there
    assert b.loss.state_dict() == a.loss.state_dict()
    assert bool(a.loss.state_dict()) == (name == "relu")
    moments, expected = b.optimizer.state(), a.optimizer.state()
    assert moments.keys() == expected.keys() != set()
    assert all(tensor.equal(expected[key]) for key, tensor in moments.items())
    assert b.lr_factor() == a.lr_factor()


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_stopped_while_the_normalisation_is_measured_or_just_after(new, toy_stream, tmp_path, stop):
    """Batches that were only measured on are in no checkpoint; they are measured again."""
    config = _config(num_tokens=6 * BATCH, num_normalization_tokens=4 * BATCH, checkpoint_every_n_steps=1)
    whole, resumed = new("topk"), new("topk")
    train(whole, toy_stream(), config)
    with pytest.raises(RuntimeError, match="power went off"):
        train(new("topk"), toy_stream(spoil={stop: POWER_CUT}), config, folder=tmp_path)
    train(resumed, toy_stream(), config, folder=tmp_path, resume=True)
    _assert_same(resumed, whole)


@pytest.mark.parametrize("stop", [STEPS, STEPS + 1, STEPS + 2])
def test_stopped_while_the_threshold_is_measured(new, toy_stream, tmp_path, stop):
    whole, resumed = new("batch_topk"), new("batch_topk", seed=4)
    train(whole, toy_stream(), _config())
    with pytest.raises(RuntimeError, match="power went off"):
        train(new("batch_topk"), toy_stream(spoil={stop: POWER_CUT}), _config(), folder=tmp_path)
    train(resumed, toy_stream(), _config(), folder=tmp_path, resume=True)
    _assert_same(resumed, whole)


def test_stopped_in_the_middle_of_fitting_the_threshold(new, toy_stream, tmp_path, monkeypatch):
    whole, resumed = new("batch_topk"), new("batch_topk", seed=4)
    train(whole, toy_stream(), _config())

    def fail(self: Dictionary, batches: list[Tensor]) -> None:
        self.threshold.fill_(3.0)
        raise POWER_CUT

    with monkeypatch.context() as patch:
        patch.setattr("saescope.dictionaries.BatchTopK.fit_threshold", fail)
        with pytest.raises(RuntimeError, match="power went off"):
            train(new("batch_topk"), toy_stream(), _config(), folder=tmp_path)
    train(resumed, toy_stream(), _config(), folder=tmp_path, resume=True)
    _assert_same(resumed, whole)


def test_a_finished_run_may_be_given_more_steps(new, toy_stream, tmp_path):
    """Its threshold is measured again, after the last of them."""
    dictionary, stream = new("batch_topk", k=2.5), toy_stream()
    train(new("batch_topk", k=2.5), toy_stream(), _config(), folder=tmp_path)
    longer = _config(num_tokens=2 * STEPS * BATCH)
    assert train(dictionary, stream, longer, folder=tmp_path, resume=True).num_steps == 2 * STEPS
    fresh = torch.cat([raw for raw, _ in stream.given[-3:]])
    assert float((dictionary.encode(fresh) != 0).sum()) == pytest.approx(2.5 * 3 * BATCH, abs=2)
    assert stream.drawn == 2 * STEPS + 3


@pytest.mark.parametrize("kernels", [("always", "always"), ("always", "never"), ("never", "always")])
def test_sparse_steps_resume_too(new, toy_stream, tmp_path, kernels):
    """And where the machine that goes on has other kernels, from the same state."""
    first, then = kernels
    whole, resumed = new("topk", d_sae=40), new("topk", d_sae=40, seed=4)
    train(whole, toy_stream(), _config(sparse_kernels=first))
    with pytest.raises(RuntimeError, match="power went off"):
        train(
            new("topk", d_sae=40), toy_stream(spoil={STOP: POWER_CUT}), _config(sparse_kernels=first), folder=tmp_path
        )  # fmt: skip
    train(resumed, toy_stream(), _config(sparse_kernels=then), folder=tmp_path, resume=True)
    if first == then:
        _assert_same(resumed, whole)
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-3, atol=1e-4)
