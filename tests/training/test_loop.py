"""The training loop on activations whose atoms are known."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig
from saescope.metrics import explained_variance
from saescope.training import (
    AuxKConfig,
    L1Config,
    Loss,
    LossTerms,
    NonFiniteActivationsError,
    StepMetrics,
    TrainingConfig,
    loss_for,
    train,
)
from saescope.training.losses import AuxKLoss
from saescope.training.schedules import lr_factor

D_IN, D_SAE, K, BATCH = 12, 24, 2, 32


def _topk(seed: int = 0) -> TopK:
    return TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=K), seed=seed)


def _config(num_steps: int = 20, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": BATCH, "num_warmup_steps": 5, "dead_after_tokens": 5 * BATCH}
    return TrainingConfig(**{"num_tokens": num_steps * BATCH, **defaults, **settings})


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in dictionary.named_parameters()}


def _same(a: Dictionary, b: Dictionary) -> bool:
    return all(parameter.equal(b.get_parameter(name)) for name, parameter in a.named_parameters())


class _Recorder(Loss):
    """The architecture's loss, with a copy of the dictionary and the arguments as they were at every call."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.calls: list[dict[str, Any]] = []

    def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
        terms = self.loss(dictionary, x, dead=dead, progress=progress)
        call = {"dictionary": copy.deepcopy(dictionary), "x": x, "dead": dead.clone(), "progress": progress}
        self.calls.append({**call, "fired": terms.fired})
        return terms


def test_topk_finds_the_planted_atoms(toy_stream, atoms):
    dictionary = _topk()
    result = train(dictionary, toy_stream(256), _config(400, num_tokens=400 * 256, batch_size_tokens=256, lr=5e-3,
                   dead_after_tokens=5_000))  # fmt: skip
    assert result.dictionary is dictionary
    assert not dictionary.training
    x = next(toy_stream(2000, seed=9))
    assert explained_variance(x, dictionary(x)) > 0.9
    assert float((dictionary.encode(x) > 0).sum(-1).float().mean()) == pytest.approx(K, abs=0.05)
    best = (atoms @ dictionary.W_dec.T).max(-1).values
    assert float((best > 0.9).float().mean()) >= 0.8


def test_relu_learns_sparse_codes_of_the_planted_atoms(toy_stream, atoms):
    dictionary = ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE))
    loss = loss_for(dictionary, {"l1_coefficient": 0.5})
    x = next(toy_stream(2000, seed=9))
    l0_before = float((dictionary.encode(x) > 0).sum(-1).float().mean())
    train(dictionary, toy_stream(256), _config(500, num_tokens=500 * 256, batch_size_tokens=256, lr=5e-3), loss=loss)
    assert explained_variance(x, dictionary(x)) > 0.85
    l0 = float((dictionary.encode(x) > 0).sum(-1).float().mean())
    assert 1 < l0 < min(6, l0_before / 2)


def test_the_seed_decides_every_bit(toy_stream):
    first, again, other_init, other_data = (_topk(seed) for seed in (1, 1, 2, 1))
    for dictionary, seed in ((first, 0), (again, 0), (other_init, 0), (other_data, 3)):
        train(dictionary, toy_stream(seed=seed), _config(12))
    assert _same(first, again)
    assert not _same(first, other_init)
    assert not _same(first, other_data)


def test_looking_does_not_change_what_is_learnt(toy_stream, tmp_path):
    quiet, loud = _topk(), _topk()
    train(quiet, toy_stream(), _config(12, log_every_n_steps=10**9))
    seen: list[StepMetrics] = []
    train(
        loud,
        toy_stream(),
        _config(12, log_every_n_steps=1, checkpoint_every_n_steps=1),
        folder=tmp_path,
        on_metrics=seen.append,
    )
    assert len(seen) == 12
    assert _same(quiet, loud)


def test_the_log_has_a_line_at_every_interval_and_at_the_end(toy_stream, tmp_path):
    seen: list[StepMetrics] = []
    steps: list[tuple[int, int]] = []
    result = train(
        _topk(), toy_stream(), _config(10, log_every_n_steps=4), folder=tmp_path,
        on_metrics=seen.append, on_step=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert lines == [vars(metrics) for metrics in seen]
    assert steps == [(step, 10) for step in range(1, 11)]
    assert result.last == seen[-1]
    assert (result.num_steps, result.num_tokens) == (10, 10 * BATCH)
    assert result.seconds > 0
    assert not list(tmp_path.glob("*.partial"))


def test_every_number_of_the_log_can_be_computed_again(toy_stream):
    """Loss, gradient norm, L0, dead share, learning rate and explained variance from copies taken on the way."""
    dictionary, seen = _topk(), []
    recorder = _Recorder(AuxKLoss(AuxKConfig()))
    config = _config(16, log_every_n_steps=1, dead_after_tokens=3 * BATCH, lr=0.02, max_grad_norm=0.05)
    train(dictionary, toy_stream(), config, loss=recorder, on_metrics=seen.append)
    # the dictionary after each step is the one before the next; only the last has been folded
    after = [call["dictionary"] for call in recorder.calls[1:]]
    for step, (call, metrics) in enumerate(zip(recorder.calls, seen, strict=True)):
        before, x = call["dictionary"], call["x"]
        f = before.encode(x)
        terms = AuxKLoss(AuxKConfig())(before, x, dead=call["dead"], progress=call["progress"])
        assert metrics.step == step + 1
        assert metrics.num_tokens == (step + 1) * BATCH
        assert metrics.loss == terms.total.item()
        assert metrics.parts == {"nmse": float(terms.parts["nmse"]), "auxk": float(terms.parts["auxk"])}
        assert metrics.l0 == sum(value > 0 for token in f.tolist() for value in token) / BATCH
        assert metrics.lr == 0.02 * lr_factor(step, 16, 5, round(0.2 * 16))
        assert call["progress"] == step / 16
        gradients = dict(
            zip(_weights(before), torch.autograd.grad(terms.total.double(), before.parameters()), strict=True)
        )
        rows = before.W_dec
        gradients["W_dec"] -= (gradients["W_dec"] * rows).sum(-1, keepdim=True) * rows / rows.square().sum(-1, True)
        norm = math.sqrt(sum(float(gradient.detach().double().square().sum()) for gradient in gradients.values()))
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-4)  # before clipping
        if step < len(after):
            assert metrics.explained_variance == explained_variance(x, after[step](x))
    assert len({metrics.dead_share for metrics in seen}) > 1


class _FiringsByPlan(Loss):
    """Says which features fire at each step, whatever the dictionary does, and keeps what it was told of the dead."""

    def __init__(self, plan: Tensor) -> None:
        self.plan, self.dead = plan, []

    def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
        self.dead.append(dead.tolist())
        total = (dictionary(x) - x).square().mean()
        return LossTerms(total, {}, self.plan[len(self.dead) - 1])


def test_dead_features_are_counted_as_a_simulation_counts_them(toy_stream):
    num_steps, window = 30, 4 * BATCH
    rates = torch.linspace(0, 0.6, D_SAE)
    plan = torch.rand(num_steps, D_SAE, generator=torch.Generator().manual_seed(0)) < rates
    loss, shares = _FiringsByPlan(plan), []
    config = _config(num_steps, dead_after_tokens=window, log_every_n_steps=1)
    result = train(
        _topk(), toy_stream(), config, loss=loss, on_metrics=lambda metrics: shares.append(metrics.dead_share)
    )

    def dead_after(steps: int) -> list[bool]:
        """Features that did not fire on any of the last ``window`` tokens, once so many have been seen."""
        recent = plan[max(0, steps - window // BATCH) : steps]
        return [steps * BATCH >= window and not recent[:, i].any() for i in range(D_SAE)]

    assert loss.dead == [dead_after(step) for step in range(num_steps)]
    assert shares == [sum(dead_after(step + 1)) / D_SAE for step in range(num_steps)]
    assert result.dead_share == shares[-1]
    assert 0 < shares[-1] < 1


def test_a_loss_that_tells_nothing_of_firings_is_enough(toy_stream):
    class Plain(Loss):
        def __call__(self, dictionary: Dictionary, x: Tensor, *, dead: Tensor, progress: float) -> LossTerms:
            return LossTerms((dictionary(x) - x).square().mean())

    result = train(_topk(), toy_stream(), _config(6), loss=Plain())
    assert result.dead_share == 1
    assert result.last is not None
    assert math.isnan(result.last.l0)


def test_batches_are_never_modified(toy_stream):
    stream = toy_stream()
    train(_topk(), stream, _config(8))
    assert len(stream.given) == 8
    for kept, given in stream.given:
        assert given.equal(kept)


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_the_finished_dictionary_works_on_raw_activations(toy_stream, architecture):
    dictionary = _topk() if architecture == "topk" else ReLU(DictionaryConfig(d_in=D_IN, d_sae=D_SAE))
    loss = loss_for(dictionary, {} if architecture == "topk" else {"l1_coefficient": 0.2})
    recorder, stream = _Recorder(loss), toy_stream()
    result = train(dictionary, stream, _config(60, lr=0.01), loss=recorder)
    raw = stream.given[-1][0]
    scaled = recorder.calls[-1]["x"]
    assert float(recorder.calls[0]["x"].norm(dim=-1).mean()) == pytest.approx(D_IN**0.5, rel=1e-5)
    assert float((scaled / raw).std()) < 1e-6  # one factor for all
    assert explained_variance(raw, dictionary(raw)) == pytest.approx(result.last.explained_variance, abs=1e-5)
    assert result.last.explained_variance > 0.2
    torch.testing.assert_close(dictionary.decoder_norms, torch.ones(D_SAE))


def test_a_trained_dictionary_is_trained_further_from_where_it_stands(toy_stream):
    dictionary = _topk()
    train(dictionary, toy_stream(), _config(60, lr=0.01))
    before, x = copy.deepcopy(dictionary), next(toy_stream(100, seed=5))
    train(dictionary, toy_stream(seed=6), _config(3, lr=1e-12))
    torch.testing.assert_close(dictionary.encode(x), before.encode(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dictionary(x), before(x), rtol=1e-3, atol=1e-3)


def test_a_new_dictionary_starts_at_the_mean_of_the_first_batch(toy_stream):
    dictionary, stream = _topk(), toy_stream()
    train(dictionary, stream, _config(1, lr=1e-12))
    torch.testing.assert_close(dictionary.b_dec.detach(), stream.given[0][0].mean(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_stream_of_any_floating_dtype(toy_stream, dtype):
    def batches() -> Iterator[Tensor]:
        for x in toy_stream():
            yield x.to(dtype)

    as_given, as_float32 = _topk(), _topk()
    train(as_given, batches(), _config(5))
    train(as_float32, (x.float() for x in batches()), _config(5))
    assert as_given.W_dec.dtype == torch.float32
    assert _same(as_given, as_float32)


def test_a_graph_behind_the_batches_is_left_alone(toy_stream):
    gain = torch.ones(D_IN, requires_grad=True)
    attached, detached = _topk(), _topk()
    train(attached, (x * gain for x in toy_stream()), _config(4))
    train(detached, toy_stream(), _config(4))
    assert gain.grad is None
    assert _same(attached, detached)


def test_a_stream_that_ends_early_says_how_far_it_came(toy_stream):
    with pytest.raises(ValueError, match=rf"blocks.1 ended after {7 * BATCH} of {20 * BATCH} training tokens"):
        train(_topk(), toy_stream(length=7), _config(20), source="blocks.1")


def test_after_an_error_the_dictionary_works_on_raw_activations_too(toy_stream):
    stopped, whole, stream = _topk(), _topk(), toy_stream(length=10)
    config = _config(20, lr=0.01)
    with pytest.raises(ValueError, match="ended after"):
        train(stopped, stream, config)
    recorder = _Recorder(loss_for(whole))
    train(whole, toy_stream(), config, loss=recorder)
    then = recorder.calls[10]  # the weights after ten steps, on scaled activations
    raw = stream.given[-1][0]
    scale = float(recorder.calls[0]["x"].norm() / stream.given[0][0].norm())
    torch.testing.assert_close(stopped(raw), then["dictionary"](raw * scale) / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(BATCH, D_IN + 1), (BATCH, 1), (BATCH - 1, D_IN), (BATCH, 2, D_IN), (D_IN,)])
def test_a_batch_of_another_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"blocks.1 gave a batch of shape \[.*\], expected \[32, 12\]") as error:
        train(_topk(), iter([torch.ones(shape)]), _config(1), source="blocks.1")
    assert str(list(shape)) in str(error.value)


def test_something_else_than_tensors_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"gave a dict, expected a tensor \[32, 12\]; .*stream\.at\(hook_point\)"):
        train(_topk(), iter([{"values": torch.ones(BATCH, D_IN)}]), _config(1))


def test_activations_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="no finite, positive norm; is this the right hook point"):
        train(_topk(), iter([torch.zeros(BATCH, D_IN)]), _config(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_with_nan_stops_before_it_does_harm(toy_stream, value):
    dictionary, after = _topk(), {}
    with pytest.raises(
        NonFiniteActivationsError, match=r"step 5: the activations at blocks.1 contain NaN or infinity\."
    ):
        train(
            dictionary, toy_stream(spoil={5: value}), _config(20), source="blocks.1",
            on_step=lambda done, total: after.update(_weights(dictionary)),
        )  # fmt: skip
    assert after
    for name in ("encoder_rows", "W_dec"):  # biases are folded
        assert dictionary.get_parameter(name).equal(after[name]), name
    assert all(bool(parameter.isfinite().all()) for parameter in dictionary.parameters())


def test_nothing_is_written_without_a_folder(toy_stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(_topk(), toy_stream(), _config(6, checkpoint_every_n_steps=2, log_every_n_steps=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_tokens": BATCH - 1}, "num_tokens = 31 is less than one batch of batch_size_tokens = 32"),
        ({"batch_size_tokens": 0}, "batch_size_tokens must be at least 1, got 0"),
        ({"log_every_n_steps": 0}, "log_every_n_steps must be at least 1, got 0"),
        ({"checkpoint_every_n_steps": 0}, "checkpoint_every_n_steps must be at least 1, got 0"),
        ({"keep_last": 0}, "keep_last must be at least 1, got 0"),
        ({"dead_after_tokens": 0}, "dead_after_tokens must be at least 1, got 0"),
        ({"num_warmup_steps": -1}, "num_warmup_steps must not be negative, got -1"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be positive, or None for no clipping, got 0\.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be positive"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"decay_share": -0.1}, r"decay_share in \[0, 1\], got 0.001 and -0.1"),
        ({"decay_share": 1.1}, r"decay_share in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        _config(**settings)


def test_tokens_are_rounded_down_to_whole_batches():
    assert _config(num_tokens=5 * BATCH + BATCH - 1).num_steps == 5
    assert TrainingConfig(num_tokens=1_000_000).num_steps == 244


def test_the_loss_of_the_architecture_is_the_default(toy_stream):
    by_default, named = _topk(), _topk()
    train(by_default, toy_stream(), _config(4))
    train(named, toy_stream(), _config(4), loss=loss_for(named))
    assert _same(by_default, named)
    assert L1Config() == loss_for(ReLU(DictionaryConfig(d_in=2, d_sae=2))).config
