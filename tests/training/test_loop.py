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

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig, architectures
from saescope.metrics import explained_variance
from saescope.training import (
    Loss,
    LossTerms,
    NonFiniteActivationsError,
    NonFiniteLossError,
    StepMetrics,
    TrainingBatch,
    TrainingConfig,
    loss_for,
    train,
)
from saescope.training.losses import AuxKConfig, AuxKLoss, Batch, L1Config
from saescope.training.schedules import factor

D_IN, D_SAE, K, BATCH = 12, 24, 2, 32


def _topk(seed: int = 0) -> TopK:
    return TopK(TopKConfig(d_in=D_IN, d_sae=D_SAE, k=K), seed=seed)


def _config(num_steps: int = 20, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": BATCH, "num_warmup_steps": 5, "dead_after_tokens": 5 * BATCH}
    defaults["num_threshold_tokens"] = 4 * BATCH
    return TrainingConfig(**{"num_tokens": num_steps * BATCH, **defaults, **settings})


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in dictionary.named_parameters()}


def _same(a: Dictionary, b: Dictionary) -> bool:
    return all(parameter.equal(b.get_parameter(name)) for name, parameter in a.named_parameters())


class _Recorder(Loss):
    """The architecture's loss, with a copy of the dictionary and the batch as they were at every call."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.calls: list[dict[str, Any]] = []

    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        terms = self.loss(dictionary, batch)
        self.calls.append(
            {"dictionary": copy.deepcopy(dictionary), "x": batch.x, "batch": batch, "dead": batch.dead.clone()}
        )
        return terms

    def after_step(self, batch: Batch) -> None:
        self.loss.after_step(batch)


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
        assert call["batch"].dead.equal(call["dead"])
        terms = AuxKLoss(AuxKConfig())(before, call["batch"])
        assert metrics.step == step + 1
        assert metrics.num_tokens == (step + 1) * BATCH
        assert metrics.loss == terms.total.item()
        assert metrics.parts == {name: float(terms.parts[name]) for name in ("nmse", "auxk", "mse")}
        assert metrics.l0 == sum(value > 0 for token in f.tolist() for value in token) / BATCH
        assert metrics.lr == 0.02 * factor(step, 16, num_warmup_steps=5, num_decay_steps=round(0.2 * 16))
        assert call["batch"].progress == step / 16
        assert metrics.num_skipped_steps == 0
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

    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        self.dead.append(batch.dead.tolist())
        total = (dictionary(batch.x) - batch.x).square().mean()
        fired = self.plan[len(self.dead) - 1]
        f = torch.zeros(len(batch.x), len(fired))
        f[len(self.dead) % len(f)] = torch.where(torch.arange(len(fired)) % 2 == 0, 1.0, -1.0) * fired
        return LossTerms(total, {}, f)


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
        def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
            return LossTerms((dictionary(batch.x) - batch.x).square().mean())

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
        ({"lr_schedule": "step"}, "a schedule is one of constant, linear"),
        ({"lr_floor": 1.5}, "the floor"),
        ({"normalization": "batch"}, "normalization is one of scale, unit_scale, layer_norm, whitening, none"),
        ({"b_dec_init": "median"}, "b_dec_init is one of mean, geometric_median, zero, not 'median'"),
        ({"decoder_init": "pca"}, "decoder_init is one of random, data"),
        ({"num_normalization_tokens": -1}, "num_normalization_tokens must not be negative"),
        ({"num_threshold_tokens": -1}, "num_threshold_tokens must not be negative"),
        ({"max_nan_fallbacks": -1}, "max_nan_fallbacks must be at least 1"),
        ({"resample_every_n_steps": 0}, "resample_every_n_steps must be at least 1"),
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


# Before the first step


def test_more_tokens_than_a_batch_are_measured_on_and_the_last_of_them_trained_on(new, toy_stream):
    stream, dictionary = toy_stream(), new("topk")
    recorder = _Recorder(loss_for(dictionary))
    train(dictionary, stream, _config(4, num_normalization_tokens=3 * BATCH - 5, lr=1e-12), loss=recorder)
    seen = torch.cat([raw for raw, _ in stream.given[:3]])
    scale = D_IN**0.5 / float(seen.norm(dim=-1).mean())
    torch.testing.assert_close(recorder.calls[0]["x"], stream.given[2][0] * scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.b_dec.detach(), seen.mean(0))
    assert len(recorder.calls) == 4
    assert len(stream.given) == 6  # two were for measuring alone


def test_a_stream_that_ends_while_it_is_measured_leaves_the_dictionary_alone(new, toy_stream):
    dictionary = new("topk")
    before = copy.deepcopy(dictionary)
    with pytest.raises(ValueError, match="ended after 0 of"):
        train(dictionary, toy_stream(length=2), _config(4, num_normalization_tokens=3 * BATCH))
    for name, value in dictionary.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name])


def test_a_run_that_could_not_begin_can_begin_with_other_settings(new, toy_stream):
    """A dictionary on which the first tokens were too few is a new one still."""
    first, fresh = new("topk_archetypal", num_points=40), new("topk_archetypal", num_points=40)
    with pytest.raises(ValueError, match="40 points can not be drawn from 32 activations"):
        train(first, toy_stream(), _config(5))
    for dictionary in (first, fresh):
        train(dictionary, toy_stream(), _config(5, num_normalization_tokens=64))
    assert _same(first, fresh)


@pytest.mark.parametrize(("name", "width"), [("transcoder", 7), ("topk_skip_transcoder", 12), ("topk_transcoder", 12)])
def test_a_transcoder_without_targets_is_refused_in_words(new, toy_stream, name, width):
    with pytest.raises(ValueError, match=rf"a {name} rebuilds another activation .* TrainingBatch\(x, target\)"):
        train(new(name, d_out=width), toy_stream(), _config(3))


def test_a_target_of_another_width_is_refused_with_both_shapes(new):
    batch = TrainingBatch(torch.ones(BATCH, D_IN), torch.ones(BATCH, 5))
    with pytest.raises(ValueError, match=r"shape \[32, 5\], expected \[32, 7\] \(batch_size_tokens, d_out\)"):
        train(new("transcoder"), iter([batch]), _config(1))


def test_a_spoilt_target_stops_the_run_too(new):
    batch = TrainingBatch(torch.ones(BATCH, D_IN), torch.full((BATCH, 7), float("nan")))
    with pytest.raises(NonFiniteActivationsError, match="step 0"):
        train(new("transcoder"), iter([batch]), _config(1))


@pytest.mark.parametrize("apply", [True, False])
def test_a_target_for_an_sae_is_trained_on_or_refused_before_the_first_step(new, toy_stream, apply):
    """Where b_dec belongs to input and output at once two scales can not be folded: then no step is wasted on it."""
    dictionary = new("relu", apply_b_dec_to_input=apply)
    recorder = _Recorder(loss_for(dictionary))

    def batches() -> Iterator[TrainingBatch]:
        for x in toy_stream():
            yield TrainingBatch(x, 2 * x + 1, {"step": len(recorder.calls)})

    try:
        train(dictionary, batches(), _config(3), loss=recorder)
    except ValueError:
        assert recorder.calls == []
    else:
        batch = recorder.calls[2]["batch"]
        assert batch.context == {"step": 2}
        assert not batch.target.equal(batch.x)


@pytest.mark.parametrize(("name", "same_space"), [("relu", True), ("jumprelu", True), ("topk_transcoder", False)])
def test_free_rows_begin_with_the_norm_that_was_asked_for(new, toy_stream, name, same_space):
    dictionary = new(name, d_out=12)
    encoder = dictionary.encoder_rows.detach().clone()
    recorder = _Recorder(loss_for(dictionary))
    stream = toy_stream()
    batches = (TrainingBatch(x, x.flip(-1)) for x in stream) if "transcoder" in name else stream
    config = _config(2, unit_norm_decoder=False, decoder_init_norm=0.1)
    train(dictionary, batches, config, loss=recorder)
    first = recorder.calls[0]["dictionary"]
    torch.testing.assert_close(first.decoder_norms, torch.full((D_SAE,), 0.1))
    # the encoder starts equal to the decoder, but for one that reads another space
    assert first.encoder_rows.equal(first.W_dec if same_space else encoder)


def test_a_norm_for_rows_that_have_norm_one_is_refused(new):
    for name, settings in (("relu", {}), ("topk_archetypal", {"unit_norm_decoder": False}), ("matching_pursuit", {})):
        with pytest.raises(ValueError, match="decoder_init_norm is for decoders whose norms are free"):
            train(new(name), iter(()), _config(2, decoder_init_norm=0.1, **settings))
    with pytest.raises(ValueError, match="decoder_init_norm must be positive, got 0"):
        _config(decoder_init_norm=0.0)


@pytest.mark.parametrize("decoder_init", ["random", "data"])
@pytest.mark.parametrize("name", sorted(name for name, cls in architectures().items() if cls.unit_norm is not False))
def test_rows_have_norm_one_whenever_a_loss_is_computed(new, toy_stream, name, decoder_init):
    dictionary = new(name)
    recorder = _Recorder(loss_for(dictionary))
    config = _config(4, lr=0.05, decoder_init=decoder_init, num_threshold_tokens=0)
    train(dictionary, toy_stream(paired="transcoder" in name), config, loss=recorder)
    for call in recorder.calls:
        torch.testing.assert_close(call["dictionary"].decoder_norms, torch.ones(D_SAE), rtol=1e-5, atol=0)


# Raw activations


RAW = ["relu", "gated", "batch_topk", "matching_pursuit", "topk_archetypal", "topk_skip_transcoder", "relu_crosscoder"]


def _affine(z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """The map from normalised to raw activations, found by least squares: raw = z @ A + c."""
    z = torch.cat([z.double(), torch.ones(len(z), 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(z, raw.double()).solution
    assert (z @ solution - raw).abs().max() < 1e-3
    return solution[:-1], solution[-1]


@pytest.mark.parametrize("normalization", ["scale", "unit_scale", "layer_norm", "whitening", "none"])
@pytest.mark.parametrize("name", RAW)
def test_an_interrupted_run_leaves_a_dictionary_for_raw_activations(new, toy_stream, name, normalization):
    """Whatever the normalisation: what it said of the normalised batch, brought back to raw units."""
    settings = {"num_normalization_tokens": 10 * BATCH} if normalization == "whitening" else {}
    dictionary = new(name)
    paired = "transcoder" in name
    recorder = _Recorder(loss_for(dictionary))

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise Stop

    stream = toy_stream(paired=paired)
    given = []

    def batches() -> Iterator[Any]:
        for item in stream:
            given.append(item)
            yield item

    with pytest.raises(Stop):
        train(
            dictionary, batches(), _config(20, lr=0.01, normalization=normalization, **settings), loss=recorder,
            on_step=stop,
        )  # fmt: skip
    # one more step of a twin gives the weights of the moment
    twin = new(name)
    later = _Recorder(loss_for(twin))
    train(
        twin, toy_stream(paired=paired), _config(20, lr=0.01, normalization=normalization, **settings), loss=later,
    )  # fmt: skip
    inside = later.calls[6]["dictionary"]
    zs = [call["batch"] for call in later.calls]
    all_given = toy_stream(paired=paired)
    skip = max(0, -(-settings.get("num_normalization_tokens", 0) // BATCH) - 1)
    raws = [next(all_given) for _ in range(20 + skip)][skip:]
    raw_x = torch.cat([r.x if paired else r for r in raws])
    raw_y = torch.cat([r.target for r in raws]) if paired else raw_x
    z_x, z_y = torch.cat([b.x for b in zs]), torch.cat([b.target for b in zs])
    with torch.no_grad():
        answer = inside(z_x).double()
        if normalization == "layer_norm" and not paired:
            spread = raw_x.std(-1, keepdim=True)
            expected = answer * spread + raw_x.mean(-1, keepdim=True)
        else:
            A, c = _affine(z_y, raw_y)
            expected = answer @ A + c
        found = dictionary(raw_x).double()
    # a token at a threshold may fall on either side of it by rounding
    close = (found - expected).norm(dim=-1) < 1e-3 * expected.norm(dim=-1)
    assert float(close.double().mean()) > 0.99


@pytest.mark.parametrize("normalization", ["scale", "unit_scale", "layer_norm", "whitening", "none"])
@pytest.mark.parametrize("name", sorted(architectures()))
def test_training_further_begins_with_the_same_function(new, toy_stream, name, normalization):
    """With a learning rate of next to nothing a trained dictionary stays what it is (the same first tokens: the same
    statistics)."""
    dictionary = new(name)
    paired = "transcoder" in name
    settings = {"normalization": normalization, "num_threshold_tokens": BATCH, "num_normalization_tokens": 4 * BATCH}
    train(dictionary, toy_stream(paired=paired), _config(12, lr=0.01, **settings))
    before, recorder = copy.deepcopy(dictionary), _Recorder(loss_for(dictionary))
    train(dictionary, toy_stream(paired=paired), _config(3, lr=1e-12, **settings), loss=recorder)
    if dictionary.unit_norm is not False:  # and so it is in its very first step
        first = recorder.calls[0]["dictionary"]
        torch.testing.assert_close(first.decoder_norms, torch.ones(D_SAE), rtol=1e-4, atol=0)
    if hasattr(dictionary, "threshold_steps"):
        dictionary.threshold.copy_(before.threshold)  # goes on being measured
    item = next(toy_stream(200, seed=5, paired=paired))
    x = item.x if paired else item
    with torch.no_grad():
        expected, found = before(x), dictionary(x)
    close = (found - expected).norm(dim=-1) < 1e-2 * expected.norm(dim=-1)
    assert float(close.double().mean()) > 0.98


@pytest.mark.parametrize("normalization", ["scale", "layer_norm", "whitening"])
@pytest.mark.parametrize("name", ["relu", "topk", "matching_pursuit", "relu_crosscoder"])
def test_training_further_on_other_tokens_is_nearly_the_same_function(new, toy_stream, name, normalization):
    """Statistics of other tokens differ by little, and so does what a trained dictionary says."""
    dictionary = new(name)
    settings = {"normalization": normalization, "num_normalization_tokens": 2048}
    train(dictionary, toy_stream(), _config(12, lr=0.01, **settings))
    before = copy.deepcopy(dictionary)
    train(dictionary, toy_stream(seed=6), _config(3, lr=1e-12, **settings))
    x = next(toy_stream(300, seed=5))
    with torch.no_grad():
        expected, found = before(x), dictionary(x)
    assert float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("relu", "scale", "none"),
        ("relu", "none", "scale"),
        ("topk", "layer_norm", "scale"),
        ("topk", "layer_norm", "none"),
        ("topk", "layer_norm", "whitening"),
        ("topk", "scale", "layer_norm"),
        ("matching_pursuit", "whitening", "scale"),
        ("matching_pursuit", "scale", "whitening"),
    ],
)  # fmt: skip
def test_training_further_under_another_normalisation_is_the_same_function_or_refused(
    new, toy_stream, name, first, then
):
    """What a normalisation cannot take in is said in words: it never trains something else in silence."""
    dictionary = new(name)
    train(dictionary, toy_stream(), _config(30, lr=0.01, normalization=first, num_normalization_tokens=4 * BATCH))
    before, stream, seen = copy.deepcopy(dictionary), toy_stream(seed=6), []
    config = _config(1, lr=1e-12, normalization=then, num_normalization_tokens=4 * BATCH, log_every_n_steps=1)
    try:
        train(dictionary, stream, config, on_metrics=seen.append)
    except ValueError as error:
        assert "normali" in str(error)  # noqa: PT017
        after = dictionary
    else:
        after = dictionary
        raw = stream.given[-1][0]
        if then in ("scale", "none"):  # the explained variance does not see a factor
            assert seen[0].explained_variance == pytest.approx(explained_variance(raw, before(raw)), abs=1e-2)
    x = next(toy_stream(200, seed=5))
    with torch.no_grad():
        expected, found = before(x), after(x)
    close = (found - expected).norm(dim=-1) < 1e-2 * expected.norm(dim=-1)
    assert float(close.double().mean()) > 0.98


def test_rows_of_any_length_are_brought_to_norm_one_without_changing_the_function(new, toy_stream):
    """A dictionary from elsewhere may have rows of other lengths: the encoder takes them up before training further."""
    dictionary = new("relu")
    train(dictionary, toy_stream(), _config(30, lr=0.01))
    with torch.no_grad():
        scales = torch.linspace(0.5, 3, D_SAE)
        dictionary.W_dec *= scales[:, None]
        dictionary.encoder_rows /= scales[:, None]
        dictionary.b_enc /= scales
    before, x = copy.deepcopy(dictionary), next(toy_stream(100, seed=5))
    train(dictionary, toy_stream(seed=6), _config(2, lr=1e-12))
    torch.testing.assert_close(dictionary(x), before(x), rtol=1e-3, atol=1e-2)


# Parts of a step


def test_units_freeze_one_by_one_bit_for_bit_and_the_last_never(new, toy_stream):
    dictionary = new("ordered")
    loss = loss_for(dictionary, {"sweep_start": 0.25, "sweep_end": 0.75})
    states: dict[int, dict[str, Tensor]] = {0: {}}
    train(
        dictionary, toy_stream(), _config(40, lr=0.05, num_warmup_steps=0, decay_share=0.0), loss=loss,
        on_step=lambda done, total: states.update({done: _weights(dictionary)}),
    )  # fmt: skip
    for step in range(1, 40):
        before, after = states[step], states[step + 1]
        progress = step / 40
        share = min(1.0, max(0.0, (progress - 0.25) / 0.5))
        frozen = min(D_SAE - 1, int(share * D_SAE + 1e-9))
        for name in ("encoder_rows", "W_dec", "b_enc"):
            assert after[name][:frozen].equal(before[name][:frozen]), (step, name)
        assert not after["W_dec"][frozen:].equal(before["W_dec"][frozen:]), step
        assert not after["b_dec"].equal(before["b_dec"]), step
        if progress >= 0.75:
            # 'the share at which all but the last are frozen'
            assert not after["W_dec"][-1].equal(before["W_dec"][-1]) or not after["b_enc"][-1].equal(
                before["b_enc"][-1]
            ), step


def test_a_parameter_has_its_own_learning_rate(new, toy_stream):
    starts, ends = {}, {}
    for share in (0.0, 1.0, 5.0):
        dictionary = new("jumprelu")
        loss = loss_for(dictionary, {"l0_coefficient": 5.0, "warmup_share": 0.0})
        starts[share] = dictionary.threshold.detach().clone()
        config = _config(15, normalization="none", lr_factors={"threshold": share}, num_warmup_steps=0)
        train(dictionary, toy_stream(), config, loss=loss)
        ends[share] = dictionary.threshold.detach()
    assert ends[0.0].equal(starts[0.0])
    moved = {share: float((ends[share] - starts[share]).abs().max()) for share in ends}
    assert moved[5.0] > 3 * moved[1.0] > 0


def test_a_function_is_a_loss(new, toy_stream):
    plain, named = new("topk"), new("topk")
    train(plain, toy_stream(), _config(6), loss=lambda x, x_hat, pre, f, dictionary: (x - x_hat).square().mean())

    class Squares(Loss):
        def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
            x_hat = dictionary.decode(dictionary.activate_in_training(dictionary.pre_activations(batch.x)))
            return LossTerms((x_hat - batch.x).square().mean())

    train(named, toy_stream(), _config(6), loss=Squares())
    assert _same(plain, named)


def test_a_loss_that_is_not_finite_in_float32_says_which_step(new, toy_stream):
    dictionary, calls = new("topk"), []

    def spoilt(x: Tensor, x_hat: Tensor, pre: Tensor, f: Tensor, dictionary: Dictionary) -> Tensor:
        calls.append(1)
        return (x - x_hat).square().mean() * (float("inf") if len(calls) == 4 else 1)

    with pytest.raises(NonFiniteLossError, match=r"step 3: .* \(loss inf\) in float32\. A smaller lr"):
        train(dictionary, toy_stream(), _config(6), loss=spoilt)
    assert all(bool(parameter.isfinite().all()) for parameter in dictionary.parameters())


def test_the_learning_rate_of_the_log_is_the_schedules(toy_stream):
    seen: list[StepMetrics] = []
    settings = {"lr_schedule": "cosine_restarts", "num_cycles": 3, "lr_floor": 0.1, "decay_share": 0.25}
    train(_topk(), toy_stream(), _config(24, lr=0.5, log_every_n_steps=1, **settings), on_metrics=seen.append)
    expected = [
        0.5 * factor(step, 24, num_warmup_steps=5, shape="cosine_restarts", num_cycles=3, floor=0.1, num_decay_steps=6)
        for step in range(24)
    ]
    assert [metrics.lr for metrics in seen] == expected


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "batch_topk_transcoder", "matryoshka_crosscoder"])
def test_the_threshold_lets_k_per_token_through_on_fresh_tokens(new, toy_stream, name):
    dictionary, paired = new(name, k=2.5), "transcoder" in name
    stream = toy_stream(paired=paired)
    train(dictionary, stream, _config(20, num_threshold_tokens=10 * BATCH - 3))
    assert len(stream.given) == 30
    fresh = torch.cat([raw for raw, _ in stream.given[20:]])
    assert float((dictionary.encode(fresh) != 0).sum()) == pytest.approx(2.5 * 10 * BATCH, abs=2)


def test_a_stream_that_ends_leaves_what_there_is_for_the_threshold(new, toy_stream):
    dictionary = new("batch_topk")
    stream = toy_stream(length=22)
    train(dictionary, stream, _config(20, num_threshold_tokens=10 * BATCH))
    fresh = torch.cat([raw for raw, _ in stream.given[20:]])
    assert float((dictionary.encode(fresh) != 0).sum()) == pytest.approx(2 * 2 * BATCH, abs=2)
    with_none_left = new("batch_topk")
    train(with_none_left, toy_stream(length=20), _config(20, num_threshold_tokens=10 * BATCH))
    assert 0 < float((with_none_left.encode(fresh) != 0).sum()) / len(fresh) < 6  # the running mean's


def test_a_loss_that_tells_nothing_of_firings_trains_batch_topk_too(new, toy_stream):
    class Plain(Loss):
        def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
            _, f = dictionary.encode_in_training(batch.x)
            return LossTerms((dictionary.decode(f) - batch.x).square().mean())

    result = train(new("batch_topk"), toy_stream(), _config(6, log_every_n_steps=2), loss=Plain())
    assert result.num_steps == 6
