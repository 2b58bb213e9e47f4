"""The training loop: pull a batch, score it, step, measure, and now and then write a checkpoint.

The loop takes any iterator of ``[B, d_in]`` tensors. An iterator with ``state_dict()`` and ``load_state_dict()`` (such as
``saescope.ActivationStream``) can be resumed: the same weights come out as from a run that was never stopped.

Activations are multiplied by one factor so that their mean norm is sqrt(d_in); learning rate and penalties then mean the
same for every model. The factor is measured on the first batch and folded away whenever a dictionary is saved.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.metrics import explained_variance
from saescope.training.checkpoint import Checkpoint, checkpoints_in, newest_checkpoint, write_checkpoint
from saescope.training.losses import Loss, LossTerms, loss_for, scale_to_unit_rms
from saescope.training.optimizer import UnitNormAdam
from saescope.training.schedules import lr_factor


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
    decay_share: float = 0.2  # the learning rate falls to zero over this last share of the steps
    max_grad_norm: float | None = 1.0
    unit_norm_decoder: bool = True
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
    parts: dict[str, float]


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
    """A batch held NaN or infinity; the state before it is in a checkpoint, from which a run goes on after the batch."""


@runtime_checkable
class Resumable(Protocol):
    """What a stream of batches needs so that a run can go on exactly where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream: tensors and values that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


def train(
    dictionary: Dictionary,
    batches: Iterator[Tensor],
    config: TrainingConfig,
    *,
    loss: Loss | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_metrics: Callable[[StepMetrics], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    source: str = "the stream",
    metadata: dict[str, Any] | None = None,
) -> TrainingResult:
    """Train ``dictionary`` in place. It works on raw activations before and after, also when training is interrupted.

    Args:
        dictionary: a new one, whose decoder bias becomes the mean of the first batch, or one to train further.
        batches: activations, ``[batch_size_tokens, d_in]`` each, of any floating dtype.
        loss: what to minimise; by default the loss of the architecture.
        folder: where ``metrics.jsonl`` and ``checkpoints/`` go; nothing is written when None.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        on_metrics: called with every line of the log. on_step: called with (steps done, steps in all).
        source: what the batches are, for error messages (the hook point).
        metadata: SAELens metadata written with checkpointed dictionaries.

    Raises:
        NonFiniteActivationsError: a batch holds NaN or infinity. The state before it is checkpointed first.
        ValueError: the stream ends early, or a batch has another shape than announced.
        FileExistsError: the folder holds checkpoints and ``resume`` is not set.
    """
    run = _Run(dictionary, config, loss or loss_for(dictionary), Path(folder) if folder else None, metadata or {})
    if resume:
        run.resume(batches)
    else:
        run.refuse_old_checkpoints()
    started, first = time.perf_counter(), run.step
    last: StepMetrics | None = None
    log = run.open_log()
    try:
        while run.step < config.num_steps:
            x = run.prepare(next(batches, None), batches, source)
            terms = run.loss(dictionary, x, dead=run.dead, progress=run.step / config.num_steps)
            factor = run.lr_factor()
            terms.total.backward()
            grad_norm = run.optimizer.step(factor)
            run.count(terms, len(x))

            if run.step % config.log_every_n_steps == 0 or run.step == config.num_steps:
                rate = (run.step - first) * config.batch_size_tokens / (time.perf_counter() - started)
                last = run.metrics(x, terms, grad_norm, factor, rate)
                if log:
                    log.write(json.dumps(vars(last)) + "\n")
                    log.flush()
                if on_metrics:
                    on_metrics(last)
            if run.step % config.checkpoint_every_n_steps == 0 and run.step < config.num_steps:
                run.checkpoint(batches)
            if on_step:
                on_step(run.step, config.num_steps)
        run.checkpoint(batches)
    finally:
        if log:
            log.close()
        if run.scale:
            dictionary.fold_input_scale(run.scale)
    return TrainingResult(
        dictionary=dictionary.eval(),
        num_steps=run.step,
        num_tokens=run.step * config.batch_size_tokens,
        dead_share=float(run.dead.double().mean()),
        seconds=time.perf_counter() - started,
        last=last,
    )


class _Run:
    """The state of one run between steps."""

    def __init__(
        self, dictionary: Dictionary, config: TrainingConfig, loss: Loss, folder: Path | None, metadata: dict[str, Any]
    ) -> None:
        self.dictionary = dictionary.train()
        self.config = config
        self.loss = loss
        self.folder = folder
        self.metadata = metadata
        self.step = 0
        self.scale = 0.0  # 0: not measured yet
        self.tokens_since_fired = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=dictionary.W_dec.device)
        self.optimizer = UnitNormAdam(
            dictionary,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            max_grad_norm=config.max_grad_norm,
            unit_norm=config.unit_norm_decoder,
        )

    @property
    def dead(self) -> Tensor:
        return self.tokens_since_fired >= self.config.dead_after_tokens  # [d_sae]

    def lr_factor(self) -> float:
        config = self.config
        return lr_factor(
            self.step, config.num_steps, config.num_warmup_steps, round(config.decay_share * config.num_steps)
        )

    def prepare(self, x: Tensor | None, batches: Iterator[Tensor], source: str) -> Tensor:
        """Check a batch and scale it; the first batch also sets the scale and the bias of a new decoder."""
        expected = [self.config.batch_size_tokens, self.dictionary.d_in]
        if x is None:
            done = self.step * self.config.batch_size_tokens
            raise ValueError(f"{source} ended after {done} of {self.config.num_tokens} training tokens; give more text")
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{source} gave a {type(x).__name__}, expected a tensor {expected}; of an ActivationStream, train takes "
                "one hook point: stream.at(hook_point)"
            )
        if list(x.shape) != expected:
            raise ValueError(
                f"{source} gave a batch of shape {list(x.shape)}, expected {expected} (batch_size_tokens, d_in); "
                "check the hook point and the batch size of the stream"
            )
        if not torch.isfinite(x).all():
            self.checkpoint(batches)
            kept = f"; the state before it is kept in {self.folder / 'checkpoints'}" if self.folder else ""
            raise NonFiniteActivationsError(
                f"step {self.step}: the activations at {source} contain NaN or infinity{kept}. "
                "Check the model's dtype (float16 overflows) and its weights."
            )
        x = x.detach().to(self.dictionary.W_dec)  # dtype and device
        if not self.scale:
            self.scale = scale_to_unit_rms(float(x.norm(dim=-1).double().sum()), len(x), x.shape[-1])
            self.dictionary.fold_input_scale(1 / self.scale)
            if not self.dictionary.b_dec.any():
                with torch.no_grad():
                    self.dictionary.b_dec.copy_(x.double().mean(0) * self.scale)
        return x * self.scale

    def count(self, terms: LossTerms, num_tokens: int) -> None:
        self.step += 1
        self.tokens_since_fired += num_tokens
        if terms.fired is not None:
            self.tokens_since_fired[terms.fired] = 0

    @torch.no_grad()
    def metrics(self, x: Tensor, terms: LossTerms, grad_norm: Tensor, factor: float, rate: float) -> StepMetrics:
        return StepMetrics(
            step=self.step,
            num_tokens=self.step * self.config.batch_size_tokens,
            loss=float(terms.total.detach()),
            explained_variance=explained_variance(x, self.dictionary(x)),
            l0=float(terms.l0) if terms.l0 is not None else float("nan"),
            dead_share=float(self.dead.double().mean()),
            grad_norm=float(grad_norm),
            lr=self.config.lr * factor,
            tokens_per_second=rate,
            parts={name: float(value) for name, value in terms.parts.items()},
        )

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

    def checkpoint(self, batches: Iterator[Tensor]) -> None:
        if self.folder is None:
            return
        stream = batches.state_dict() if isinstance(batches, Resumable) else {}
        tensors: dict[str, Tensor] = {f"dictionary/{name}": p for name, p in self.dictionary.named_parameters()}
        tensors |= {f"optimizer/{name}": t for name, t in self.optimizer.state().items()}
        tensors |= {f"stream/{name}": t for name, t in stream.items() if isinstance(t, Tensor)}
        tensors["counters/tokens_since_fired"] = self.tokens_since_fired
        values = {
            "scale": self.scale,
            "stream": {name: value for name, value in stream.items() if not isinstance(value, Tensor)},
        }
        write_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(self.step, tensors, values),
            keep_last=self.config.keep_last,
            dictionary=self._folded() if self.scale else None,
            metadata=self.metadata,
        )

    def refuse_old_checkpoints(self) -> None:
        if self.folder is not None and checkpoints_in(self.folder / "checkpoints"):
            raise FileExistsError(
                f"{self.folder} already holds checkpoints of a run; resume it, or choose another folder"
            )

    def resume(self, batches: Iterator[Tensor]) -> None:
        if self.folder is None:
            raise ValueError("a run can only be resumed from the folder that holds its checkpoints; name it")
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        if not isinstance(batches, Resumable):
            raise ValueError("this stream of batches cannot be resumed: it has no state_dict() and load_state_dict()")
        weights = checkpoint.part("dictionary")
        shapes = {name: list(parameter.shape) for name, parameter in self.dictionary.named_parameters()}
        found = {name: list(tensor.shape) for name, tensor in weights.items()}
        if found != shapes:
            raise ValueError(f"{self.folder} holds the run of another dictionary: {found}, not {shapes}")
        batches.load_state_dict({**checkpoint.values["stream"], **checkpoint.part("stream")})
        with torch.no_grad():
            for name, parameter in self.dictionary.named_parameters():
                parameter.copy_(weights[name])
        self.optimizer.load_state(checkpoint.part("optimizer"))
        self.tokens_since_fired.copy_(checkpoint.tensors["counters/tokens_since_fired"])
        self.step, self.scale = checkpoint.step, checkpoint.values["scale"]

    def _folded(self) -> Dictionary:
        """A copy of the dictionary that works on raw activations."""
        folded = copy.deepcopy(self.dictionary)
        folded.fold_input_scale(self.scale)
        return folded


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62  # a line that was cut off by a kill
