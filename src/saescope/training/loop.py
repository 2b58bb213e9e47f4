"""The training loop: pull a batch, score it, step, measure, and now and then write a checkpoint.

The loop takes any iterator of ``[B, d_in]`` tensors, or of :class:`TrainingBatch` where there is more to a batch (what
a transcoder is to rebuild; what a loss on the model's output needs). An iterator with ``state_dict()`` and
``load_state_dict()`` (such as ``saescope.ActivationStream``) can be resumed: the same weights come out as from a run
that was never stopped.

Activations are normalised, as a rule by one factor that brings their mean norm to sqrt(d_in), so that learning rates
and penalties mean the same for every model. It is measured before the first step and folded away whenever a dictionary
is saved.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import torch
from torch import Tensor

from saescope.dictionaries import Archetypal, BatchTopK, Dictionary, Transcoder
from saescope.dictionaries.normalization import NoNormalization
from saescope.metrics import explained_variance
from saescope.training.checkpoint import Checkpoint, checkpoints_in, newest_checkpoint, write_checkpoint
from saescope.training.initialization import B_DEC_INITS, DECODER_INITS, initialize
from saescope.training.losses import Batch, FunctionLoss, Loss, LossTerms, loss_for
from saescope.training.normalization import NORMALIZATIONS, Normalizer, measure, measure_again, normalizer_from
from saescope.training.optimizer import UnitNormAdam
from saescope.training.resampling import check_can_resample, resample
from saescope.training.schedules import Shape, check_shape, factor

_UNIT = 1e-3  # how far from 1 norms may be that rounding and folding have left


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train."""

    num_tokens: int  # training tokens; rounded down to whole batches
    batch_size_tokens: int = 4096
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 6.25e-10
    num_warmup_steps: int = 50
    lr_schedule: Shape = "constant"  # "constant", "linear", "cosine" or "cosine_restarts", between warm-up and decay
    num_cycles: int = 1  # of "cosine_restarts"
    lr_floor: float = 0.0  # share of lr at which "linear" and "cosine" end
    decay_share: float = 0.2  # the learning rate falls to zero over this last share of the steps
    lr_factors: dict[str, float] = field(default_factory=dict)  # multiples of lr by parameter, e.g. {"threshold": 10.0}
    max_grad_norm: float | None = 1.0
    unit_norm_decoder: bool | None = None  # None: as the architecture has it (nearly all: yes)
    normalization: str = "scale"  # "scale" (mean norm sqrt(d_in)), "unit_scale", "layer_norm", "whitening", "none"
    num_normalization_tokens: int = 0  # measured on at least so many tokens, always on the first batch
    b_dec_init: str = "mean"  # of a new dictionary: "mean" or "geometric_median" of these tokens, or "zero"
    decoder_init: str = "random"  # rows of a new dictionary: "random" directions, or "data" points
    decoder_init_norm: float | None = None  # norm of a new decoder's rows where it is free (0.1 in SAELens)
    search_init_norm: bool = False  # scale a new encoder so that the first reconstruction is as good as can be
    init_seed: int = 0  # of draws from the first tokens
    resample_every_n_steps: int | None = None  # neuron resampling: dead features start again from badly rebuilt inputs
    resample_until_share: float = 0.5  # not in the last part of the training
    autocast: bool = False  # matrix products in bfloat16 (faster where the hardware has them, slower on most CPUs)
    max_nan_fallbacks: int = 3  # steps with a loss that is not finite before autocast is given up for float32
    num_threshold_tokens: int = 65_536  # fresh tokens on which BatchTopK measures its threshold after the last step
    dead_after_tokens: int = 400_000  # a feature that has not fired for so many tokens is dead
    log_every_n_steps: int = 20
    checkpoint_every_n_steps: int = 500
    keep_last: int = 2  # checkpoints kept

    def __post_init__(self) -> None:
        counts = (
            "batch_size_tokens", "dead_after_tokens", "log_every_n_steps", "checkpoint_every_n_steps", "keep_last",
        )  # fmt: skip
        for name in counts:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_tokens < self.batch_size_tokens:
            raise ValueError(
                f"num_tokens = {self.num_tokens} is less than one batch of batch_size_tokens = {self.batch_size_tokens}"
            )
        if not self.num_warmup_steps >= 0:
            raise ValueError(f"num_warmup_steps must not be negative, got {self.num_warmup_steps}")
        check_shape(self.lr_schedule, self.num_cycles, self.lr_floor)
        for name, known in (
            ("normalization", NORMALIZATIONS), ("b_dec_init", B_DEC_INITS), ("decoder_init", DECODER_INITS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.max_nan_fallbacks < 1:
            raise ValueError(f"max_nan_fallbacks must be at least 1, got {self.max_nan_fallbacks}")
        for name in ("num_normalization_tokens", "num_threshold_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.decoder_init_norm is not None and not self.decoder_init_norm > 0:
            raise ValueError(f"decoder_init_norm must be positive, got {self.decoder_init_norm}")
        if self.resample_every_n_steps is not None and self.resample_every_n_steps < 1:
            raise ValueError(f"resample_every_n_steps must be at least 1, got {self.resample_every_n_steps}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, or None for no clipping, got {self.max_grad_norm}")
        if not self.lr > 0 or not 0 <= self.decay_share <= 1:
            raise ValueError(f"lr must be positive and decay_share in [0, 1], got {self.lr} and {self.decay_share}")

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.batch_size_tokens


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What is reported every ``log_every_n_steps`` (one line of metrics.jsonl). Shares are of d_sae features."""

    step: int  # steps done
    num_tokens: int
    loss: float
    explained_variance: float  # of this batch, with the weights after the step
    l0: float
    dead_share: float  # features without a firing in the last dead_after_tokens
    grad_norm: float
    lr: float
    tokens_per_second: float
    num_skipped_steps: int  # steps so far whose loss was not finite
    parts: dict[str, float]  # of the loss, without their weights


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The trained dictionary (on raw activations) and the state it ended in."""

    dictionary: Dictionary
    num_steps: int
    num_tokens: int
    dead_share: float  # features without a firing in the last dead_after_tokens training tokens
    seconds: float  # of this call
    last: StepMetrics | None


class NonFiniteActivationsError(ValueError):
    """A batch held NaN or infinity; the state before it is in a checkpoint, from which a run goes on after the
    batch."""


class _StreamEndedError(ValueError):
    """The stream of batches has ended before the training."""


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite in float32; the state before it is in a checkpoint."""


@dataclass(frozen=True)
class TrainingBatch:
    """What a stream may give in the place of a plain tensor."""

    x: Tensor  # [B, d_in]
    target: Tensor | None = None  # [B, d_out], what is to be rebuilt where that is not x
    context: Any = None  # for losses on the model's output


@runtime_checkable
class Resumable(Protocol):
    """What a stream of batches needs so that a run can go on exactly where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream: tensors and values that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


def train(
    dictionary: Dictionary,
    batches: Iterator[Tensor | TrainingBatch],
    config: TrainingConfig,
    *,
    loss: Loss | Callable[..., Tensor] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_metrics: Callable[[StepMetrics], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    source: str = "the stream",
    metadata: dict[str, Any] | None = None,
) -> TrainingResult:
    """Train ``dictionary`` in place. It works on raw activations before and after, also when training is interrupted.

    Args:
        dictionary: a new one, which is set up on the first tokens, or one to train further. Thresholds that the config
            of a new one names are in units of normalised activations.
        batches: activations, ``[batch_size_tokens, d_in]`` each, of any floating dtype; or :class:`TrainingBatch`.
        loss: what to minimise; by default the loss of the architecture. A function ``(x, x_hat, pre, f, dictionary)``
            that gives a scalar will do.
        folder: where ``metrics.jsonl`` and ``checkpoints/`` go; nothing is written when None.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        on_metrics: called with every line of the log. on_step: called with (steps done, steps in all).
        source: what the batches are, for error messages (the hook point).
        metadata: SAELens metadata written with checkpointed dictionaries.

    Raises:
        NonFiniteActivationsError: a batch holds NaN or infinity. The state before it is checkpointed first.
        NonFiniteLossError: the loss does, in float32. With ``autocast`` the step is skipped instead, and after
            ``max_nan_fallbacks`` of them the run goes on in float32.
        ValueError: the stream ends early, or a batch has another shape than announced.
        FileExistsError: the folder holds checkpoints and ``resume`` is not set.
    """
    if loss is not None and not isinstance(loss, Loss):
        loss = FunctionLoss(loss)
    run = _Run(
        dictionary, batches, config, loss or loss_for(dictionary), Path(folder) if folder else None, metadata or {}
    )
    run.source = source
    if resume:
        run.resume()
    else:
        run.refuse_old_checkpoints()
    started, first = time.perf_counter(), run.step
    last: StepMetrics | None = None
    log = run.open_log()
    try:
        while run.step < config.num_steps:
            batch = run.next_batch()
            step = run.try_step(batch)

            if run.step % config.log_every_n_steps == 0 or run.step == config.num_steps:
                rate = (run.step - first) * config.batch_size_tokens / (time.perf_counter() - started)
                last = run.metrics(batch, step, rate)
                if log:
                    log.write(json.dumps(vars(last)) + "\n")
                    log.flush()
                if on_metrics:
                    on_metrics(last)
            if run.step % config.checkpoint_every_n_steps == 0 and run.step < config.num_steps:
                run.checkpoint()
            if on_step:
                on_step(run.step, config.num_steps)
        if run.step > first:
            run.settle_threshold()
        run.checkpoint()
    finally:
        if log:
            log.close()
        if run.normalizer:
            run.normalizer.fold_into(dictionary)
    return TrainingResult(
        dictionary=dictionary.eval(),
        num_steps=run.step,
        num_tokens=run.step * config.batch_size_tokens,
        dead_share=float(run.dead.double().mean()),
        seconds=time.perf_counter() - started,
        last=last,
    )


@dataclass(frozen=True)
class _Step:
    """What one step leaves for the log."""

    terms: LossTerms
    grad_norm: Tensor
    lr: float


class _Run:
    """The state of one run between steps."""

    source = "the stream"

    def __init__(
        self,
        dictionary: Dictionary,
        batches: Iterator[Tensor | TrainingBatch],
        config: TrainingConfig,
        loss: Loss,
        folder: Path | None,
        metadata: dict[str, Any],
    ) -> None:
        self.dictionary = dictionary.train()
        self.batches = batches
        self.config = config
        self.loss = loss
        self.folder = folder
        self.metadata = metadata
        self.step = 0
        self.num_skipped = 0
        self.normalizer: Normalizer | None = None  # not measured yet
        self.tokens_since_fired = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=dictionary.b_dec.device)
        if config.resample_every_n_steps is not None:
            check_can_resample(dictionary)
        self.unit_norm = bool(dictionary.unit_norm) if config.unit_norm_decoder is None else config.unit_norm_decoder
        if dictionary.unit_norm is None:
            if config.unit_norm_decoder is False:
                raise ValueError(f"{dictionary.architecture} needs decoder rows of norm 1; leave unit_norm_decoder out")
            self.unit_norm = True
        if config.decoder_init_norm is not None and (self.unit_norm or isinstance(dictionary, Archetypal)):
            raise ValueError(
                "decoder_init_norm is for decoders whose norms are free: set unit_norm_decoder to false, or leave it out"
            )
        self.optimizer = UnitNormAdam(
            dictionary,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            max_grad_norm=config.max_grad_norm,
            unit_norm=self.unit_norm,
            lr_factors=config.lr_factors,
        )

    @property
    def dead(self) -> Tensor:
        return self.tokens_since_fired >= self.config.dead_after_tokens  # [d_sae]

    @property
    def in_bfloat16(self) -> bool:
        """Whether matrix products run in bfloat16: asked for, and not given up."""
        return self.config.autocast and self.num_skipped < self.config.max_nan_fallbacks

    def lr_factor(self) -> float:
        config = self.config
        return factor(
            self.step,
            config.num_steps,
            num_warmup_steps=config.num_warmup_steps,
            shape=config.lr_schedule,
            num_cycles=config.num_cycles,
            floor=config.lr_floor,
            num_decay_steps=round(config.decay_share * config.num_steps),
        )

    def try_step(self, batch: Batch) -> _Step:
        """One step, unless its loss or gradient is not finite: weights then stay as they were."""
        device = batch.x.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.in_bfloat16):
            terms = self.loss(self.dictionary, batch)
        terms.total.backward()
        d_sae = self.dictionary.d_sae
        num_frozen = min(int(self.loss.frozen_share(batch.progress) * d_sae), d_sae - 1)  # one is always free
        grad_norm = self.optimizer.prepare(num_frozen)
        lr_factor = self.lr_factor()
        if torch.isfinite(terms.total.detach() + grad_norm):
            self.optimizer.step(lr_factor, num_frozen)
            self.loss.after_step(batch)
            self.count(terms, len(batch.x))
            if terms.f is not None:
                self.dictionary.after_step(terms.f)
            self.resample_if_due(batch)
        else:
            self.optimizer.drop_gradients()
            self.skip(terms)
        return _Step(terms, grad_norm, self.config.lr * lr_factor)

    def skip(self, terms: LossTerms) -> None:
        """Pass over a step. Nothing of it has touched the weights: they are the last good ones."""
        if not self.in_bfloat16:
            self.checkpoint()
            kept = f"; the state before it is kept in {self.folder / 'checkpoints'}" if self.folder else ""
            raise NonFiniteLossError(
                f"step {self.step}: the loss or its gradient is not finite (loss {float(terms.total.detach()):g}) in "
                f"{str(self.dictionary.b_dec.dtype).removeprefix('torch.')}{kept}. A smaller lr or coefficient may help."
            )
        self.num_skipped += 1
        self.step += 1
        gone = "" if self.in_bfloat16 else "; the run goes on in float32"
        warnings.warn(
            f"step {self.step - 1}: the loss or its gradient is not finite in bfloat16; the step is skipped "
            f"({self.num_skipped} so far){gone}",
            stacklevel=2,
        )

    def next_batch(self) -> Batch:
        """The next batch, checked and normalised; the first ones also set up the normalisation and a new dictionary."""
        if self.normalizer is not None:
            return self.normalised(*self.take())
        seen = [self.take()]
        while len(seen) * self.config.batch_size_tokens < self.config.num_normalization_tokens:
            seen.append(self.take())
        x = torch.cat([raw.x for raw, _ in seen])
        target = None if seen[0][1] is None else torch.cat([y for _, y in seen if y is not None])
        is_new = not self.dictionary.b_dec.any()
        normalizer = (measure if is_new else measure_again)(self.config.normalization, x, target, self.dictionary)
        if is_new:
            x = normalizer.apply(x)
            target = x if target is None else normalizer.apply_to_target(target)
            if self.unit_norm:
                self.dictionary.normalise_decoder()
            initialize(self.dictionary, x, target, self.config, unit_norm=self.unit_norm)
            self.normalizer = normalizer
        else:
            normalizer.unfold_from(self.dictionary)
            self.normalizer = normalizer  # from here on an error folds it back
            if self.unit_norm and not ((self.dictionary.decoder_norms - 1).abs() < _UNIT).all():
                self.dictionary.take_up_norms()
        return self.normalised(*seen[-1])

    def normalised(self, raw: TrainingBatch, target: Tensor | None) -> Batch:
        assert self.normalizer is not None
        x = self.normalizer.apply(raw.x)
        y = x if target is None else self.normalizer.apply_to_target(target)
        to_raw = partial(self.normalizer.undo, x=raw.x, crossing=target is not None)
        return Batch(x, y, self.dead, self.step, self.config.num_steps, raw.context, to_raw)

    def take(self) -> tuple[TrainingBatch, Tensor | None]:
        """A batch from the stream, and what it is to rebuild if that is another activation; in the dictionary's
        dtype."""
        item = next(self.batches, None)
        if item is None:
            done = self.step * self.config.batch_size_tokens
            raise _StreamEndedError(
                f"{self.source} ended after {done} of {self.config.num_tokens} training tokens; give more text"
            )
        batch = item if isinstance(item, TrainingBatch) else TrainingBatch(item)
        x = self.checked(batch.x, self.dictionary.d_in, "d_in")
        target = None
        if batch.target is not None:
            if self.dictionary.config.apply_b_dec_to_input:
                raise ValueError(
                    f"{self.source} gave targets, but a {self.dictionary.architecture} dictionary rebuilds its own input; "
                    f"for another one train ss.transcoder({type(self.dictionary).__name__})"
                )
            target = self.checked(batch.target, self.dictionary.d_out, "d_out")
        elif self.dictionary.d_out != self.dictionary.d_in or isinstance(self.dictionary, Transcoder):
            raise ValueError(
                f"a {self.dictionary.architecture} rebuilds another activation than it reads: the stream must give "
                "TrainingBatch(x, target), for example stream.pair(hook_point, hook_point_out)"
            )
        return TrainingBatch(x, target, batch.context), target

    def checked(self, x: Tensor, width: int, name: str) -> Tensor:
        expected = [self.config.batch_size_tokens, width]
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.source} gave a {type(x).__name__}, expected a tensor {expected}; of an ActivationStream, train "
                "takes one hook point: stream.at(hook_point)"
            )
        if list(x.shape) != expected:
            raise ValueError(
                f"{self.source} gave a batch of shape {list(x.shape)}, expected {expected} (batch_size_tokens, {name}); "
                "check the hook point and the batch size of the stream"
            )
        if not torch.isfinite(x).all():
            self.checkpoint()
            kept = f"; the state before it is kept in {self.folder / 'checkpoints'}" if self.folder else ""
            raise NonFiniteActivationsError(
                f"step {self.step}: the activations at {self.source} contain NaN or infinity{kept}. "
                "Check the model's dtype (float16 overflows) and its weights."
            )
        return x.detach().to(self.dictionary.b_dec)  # dtype and device

    def count(self, terms: LossTerms, num_tokens: int) -> None:
        self.step += 1
        self.tokens_since_fired += num_tokens
        if terms.f is not None:
            self.tokens_since_fired[_fired(terms.f)] = 0

    def resample_if_due(self, batch: Batch) -> None:
        every = self.config.resample_every_n_steps
        if every is None or self.step % every or self.step > self.config.resample_until_share * self.config.num_steps:
            return
        generator = torch.Generator().manual_seed(self.config.init_seed * 1_000_003 + self.step)
        rows = resample(self.dictionary, self.optimizer, batch.x, self.dead, generator)
        self.tokens_since_fired[rows] = 0

    def settle_threshold(self) -> None:
        """Measure BatchTopK's threshold once more, on fresh tokens with the final weights."""
        if not isinstance(self.dictionary, BatchTopK) or not self.config.num_threshold_tokens:
            return
        drawn: list[Tensor] = []
        while len(drawn) * self.config.batch_size_tokens < self.config.num_threshold_tokens:
            try:
                drawn.append(self.normalised(*self.take()).x)
            except _StreamEndedError:  # what there is must do
                break
        if drawn:
            self.dictionary.fit_threshold(drawn)

    @torch.no_grad()
    def metrics(self, batch: Batch, step: _Step, rate: float) -> StepMetrics:
        f = step.terms.f
        return StepMetrics(
            step=self.step,
            num_tokens=self.step * self.config.batch_size_tokens,
            loss=float(step.terms.total.detach()),
            explained_variance=self.explained_variance(batch),
            l0=float(f.count_nonzero() / len(f)) if f is not None else float("nan"),
            dead_share=float(self.dead.double().mean()),
            grad_norm=float(step.grad_norm),
            lr=step.lr,
            tokens_per_second=rate,
            num_skipped_steps=self.num_skipped,
            parts={name: float(value) for name, value in step.terms.parts.items()},
        )

    def explained_variance(self, batch: Batch) -> float:
        """Of a batch, in the form of inference; nan as long as a BatchTopK dictionary has no threshold."""
        if isinstance(self.dictionary, BatchTopK) and bool(self.dictionary.threshold.isnan()):
            return float("nan")
        return explained_variance(batch.target, self.dictionary(batch.x))

    def open_log(self) -> TextIO | None:
        """metrics.jsonl, cut back to the step that the run starts from."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        kept: list[str] = []
        if self.step and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= self.step]
        beside = path.with_name(path.name + ".partial")
        beside.write_text("".join(line + "\n" for line in kept))
        beside.replace(path)  # whole at any moment: a kill right after resuming costs no line
        return open(path, "a")

    def checkpoint(self) -> None:
        if self.folder is None:
            return
        stream = self.batches.state_dict() if isinstance(self.batches, Resumable) else {}
        normalizer = self.normalizer.state_dict() if self.normalizer else {}
        tensors = {f"dictionary/{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"optimizer/{name}": t for name, t in self.optimizer.state().items()}
        values: dict[str, Any] = {"num_skipped": self.num_skipped, "loss": self.loss.state_dict()}
        for name, state in (("stream", stream), ("normalizer", normalizer)):
            tensors |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            values[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        tensors["counters/tokens_since_fired"] = self.tokens_since_fired
        write_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(self.step, tensors, values),
            keep_last=self.config.keep_last,
            dictionary=self._folded(),
            metadata=self.metadata,
        )

    def refuse_old_checkpoints(self) -> None:
        if self.folder is not None and checkpoints_in(self.folder / "checkpoints"):
            raise FileExistsError(
                f"{self.folder} already holds checkpoints of a run; resume it, or choose another folder"
            )

    def resume(self) -> None:
        if self.folder is None:
            raise ValueError("a run can only be resumed from the folder that holds its checkpoints; name it")
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        if not isinstance(self.batches, Resumable):
            raise ValueError("this stream of batches cannot be resumed: it has no state_dict() and load_state_dict()")
        self.dictionary.input_normalization = NoNormalization()  # as weights in checkpoints have it
        weights, own = checkpoint.part("dictionary"), self._weights()
        shapes = {name: list(tensor.shape) for name, tensor in own.items()}
        found = {name: list(tensor.shape) for name, tensor in weights.items()}
        if found != shapes:
            raise ValueError(f"{self.folder} holds the run of another dictionary: {found}, not {shapes}")
        self.batches.load_state_dict({**checkpoint.values["stream"], **checkpoint.part("stream")})
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        self.optimizer.load_state(checkpoint.part("optimizer"))
        self.loss.load_state_dict(checkpoint.values["loss"])
        self.tokens_since_fired.copy_(checkpoint.tensors["counters/tokens_since_fired"])
        self.step, self.num_skipped = checkpoint.step, checkpoint.values["num_skipped"]
        normalizer = {**checkpoint.values["normalizer"], **checkpoint.part("normalizer")}
        self.normalizer = normalizer_from(normalizer) if normalizer else None

    def _weights(self) -> dict[str, Tensor]:
        """Everything that decides what the dictionary computes: parameters, thresholds, points."""
        return dict(self.dictionary.named_parameters()) | dict(self.dictionary.named_buffers())

    def _folded(self) -> Dictionary | None:
        """A copy of the dictionary that works on raw activations; None before the first batch."""
        if self.normalizer is None:
            return None
        folded = copy.deepcopy(self.dictionary)
        self.normalizer.fold_into(folded)
        return folded


def _fired(f: Tensor) -> Tensor:
    """Which features fired in a batch of activations ``[B, d_sae]``; many times faster than sums over a mask."""
    return (f.amax(0) > 0) | (f.amin(0) < 0)


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62  # a line that was cut off by a kill
