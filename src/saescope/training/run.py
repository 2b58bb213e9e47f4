"""One dictionary's way through a stream of activations: measure, train, settle.

The first batches set the normalisation (and a new dictionary's beginning), the last of them is also the first trained
on. After the last step, BatchTopK measures its threshold on the batches that follow. A run says whether it wants
another batch; who brings it, and whether other dictionaries look at the same one, is the loop's business.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from saescope.dictionaries import BatchTopK, Dictionary, Transcoder
from saescope.dictionaries.normalization import NoNormalization
from saescope.metrics import explained_variance
from saescope.training.checkpoint import Checkpoint, checkpoints_in, newest_checkpoint, prune, write_checkpoint
from saescope.training.config import TrainingConfig
from saescope.training.initialization import initialize
from saescope.training.losses import Batch, FunctionLoss, Loss, loss_for
from saescope.training.losses.sparse_pass import reconstruct
from saescope.training.normalization import Normalizer, measure, measure_again, normalizer_from
from saescope.training.records import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    StepMetrics,
    TrainingBatch,
    TrainingResult,
)
from saescope.training.stepper import Step, Stepper

_UNIT = 1e-3  # how far from 1 norms may be that rounding and folding have left


class Run:
    """The state of one run between batches.

    Attributes:
        num_taken: batches of the stream that this run was measured and trained on.
        stream_state: where the stream stood after the last of them.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        config: TrainingConfig,
        *,
        loss: Loss | Callable[..., Tensor] | None = None,
        folder: str | Path | None = None,
        on_metrics: Callable[[StepMetrics], None] | None = None,
        source: str = "the stream",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """See :func:`saescope.training.train`."""
        if loss is not None and not isinstance(loss, Loss):
            loss = FunctionLoss(loss)
        self.dictionary, self.config = dictionary, config
        self.stepper = Stepper(dictionary, config, loss or loss_for(dictionary))
        self.folder = Path(folder) if folder else None
        self.on_metrics, self.source, self.metadata = on_metrics, source, metadata or {}
        self.normalizer: Normalizer | None = None  # not measured yet
        self.num_taken = 0
        self.stream_state: dict[str, Any] = {}
        self._first: list[tuple[TrainingBatch, Tensor | None]] = []  # batches that the normalisation waits for
        self._fresh: list[Tensor] = []  # batches for the threshold
        self._settled = False
        self._log: TextIO | None = None
        self._started = time.perf_counter()
        self._first_step = 0
        self._saved_at = -1
        self.last: StepMetrics | None = None

    @property
    def step(self) -> int:
        return self.stepper.step

    @property
    def trains(self) -> bool:
        """Whether there are steps to be made."""
        return self.step < self.config.num_steps

    @property
    def num_seen(self) -> int:
        """Batches of the stream that have passed, those for the threshold included."""
        return self.num_taken + len(self._fresh)

    @property
    def wants_more(self) -> bool:
        return self.trains or self._settles

    @property
    def _settles(self) -> bool:
        """Whether batches for the threshold are wanted still."""
        wanted = self.config.num_threshold_tokens
        if self._settled or not isinstance(self.dictionary, BatchTopK) or not wanted:
            return False
        return len(self._fresh) * self.config.batch_size_tokens < wanted

    def begin(self, *, resume: bool) -> None:
        """Go on from the newest checkpoint, or refuse to write over one. Nothing is written yet."""
        if resume:
            self._resume()
        elif self.folder is not None and checkpoints_in(self.folder / "checkpoints"):
            raise FileExistsError(
                f"{self.folder} already holds checkpoints of a run; resume it, or choose another folder"
            )
        self._first_step, self._saved_at = self.step, self.step if resume and self.num_taken else -1
        self._started = time.perf_counter()

    def open_log(self) -> None:
        """Open metrics.jsonl: the first that is written."""
        self._log = self._open_log()

    def take(self, item: Tensor | TrainingBatch, stream_state: dict[str, Any]) -> None:
        """See one batch of the stream: train on it, or put it to what else the run is at.

        Args:
            stream_state: where the stream stands after this batch.

        Raises:
            NonFiniteActivationsError, NonFiniteLossError: a checkpoint made now goes on after this batch.
        """
        if not self.trains:  # the place to go on from stays that of the last step
            try:
                self._fresh.append(self._normalised(*self._checked(item)).x)
            except NonFiniteActivationsError:  # but for this: the threshold is measured on what follows
                self.num_taken, self.stream_state, self._fresh = self.num_seen + 1, stream_state, []
                raise
            return
        self.num_taken += 1
        self.stream_state = stream_state
        raw, target = self._checked(item)
        if self.normalizer is None:
            self._first.append((raw, target))
            if len(self._first) * self.config.batch_size_tokens < self.config.num_normalization_tokens:
                return
            self._set_up()
        batch = self._normalised(raw, target)
        step = self.stepper.take(batch)
        if not step.was_taken and not step.in_bfloat16:
            raise NonFiniteLossError(
                f"step {self.step}: the loss or its gradient is not finite (loss {float(step.terms.total.detach()):g}) in "
                f"{str(self.dictionary.b_dec.dtype).removeprefix('torch.')}{self._kept()}. "
                "A smaller lr or coefficient may help."
            )
        if self.step % self.config.log_every_n_steps == 0 or not self.trains:
            self._report(batch, step)

    def checkpoint_if_due(self) -> None:
        if self.trains and self.step % self.config.checkpoint_every_n_steps == 0:
            self.checkpoint_if_new()

    def checkpoint_if_new(self) -> None:
        """Write the state of now, unless it is there already, or there is none: first batches are measured again."""
        if self.step and self._saved_at != self.step:
            self.checkpoint()

    def finish(self) -> None:
        """What follows the last batch: the threshold, the last checkpoint. Does nothing the second time."""
        if self._fresh and not self._settled:
            assert isinstance(self.dictionary, BatchTopK)
            self.dictionary.fit_threshold(self._fresh)
        changed = bool(self._fresh) or self._saved_at != self.step
        self._fresh, self._settled = [], True
        if changed:
            self.checkpoint()
        elif self.folder is not None:  # a kill may have come before that was done
            prune(self.folder / "checkpoints", self.step, self.config.keep_last, self.config.keep_every_n_steps)

    def close(self) -> None:
        """Give the dictionary back on raw activations, whatever has happened, and close the log."""
        if self.normalizer:
            self.normalizer.fold_into(self.dictionary)
        if self._log:
            self._log.close()

    def result(self) -> TrainingResult:
        return TrainingResult(
            dictionary=self.dictionary.eval(),
            num_steps=self.step,
            num_tokens=self.step * self.config.batch_size_tokens,
            dead_share=float(self.stepper.dead.double().mean()),
            seconds=time.perf_counter() - self._started,
            last=self.last,
        )

    # Batches

    def _checked(self, item: Tensor | TrainingBatch) -> tuple[TrainingBatch, Tensor | None]:
        """A batch, and what it is to rebuild if that is another activation; in the dictionary's dtype."""
        batch = item if isinstance(item, TrainingBatch) else TrainingBatch(item)
        x = self._checked_tensor(batch.x, self.dictionary.d_in, "d_in")
        target = None
        if batch.target is not None:
            if self.dictionary.config.apply_b_dec_to_input:
                raise ValueError(
                    f"{self.source} gave targets, but a {self.dictionary.architecture} dictionary rebuilds its own input; "
                    f"for another one train ss.transcoder({type(self.dictionary).__name__})"
                )
            target = self._checked_tensor(batch.target, self.dictionary.d_out, "d_out")
        elif self.dictionary.d_out != self.dictionary.d_in or isinstance(self.dictionary, Transcoder):
            raise ValueError(
                f"a {self.dictionary.architecture} rebuilds another activation than it reads: the stream must give "
                "TrainingBatch(x, target), for example stream.pair(hook_point, hook_point_out)"
            )
        return TrainingBatch(x, target, batch.context), target

    def _checked_tensor(self, x: Tensor, width: int, name: str) -> Tensor:
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
            raise NonFiniteActivationsError(
                f"step {self.step}: the activations at {self.source} contain NaN or infinity{self._kept()}. "
                "Check the model's dtype (float16 overflows) and its weights."
            )
        return x.detach().to(self.dictionary.b_dec)  # dtype and device

    def _kept(self) -> str:
        return f"; the state before it is kept in {self.folder / 'checkpoints'}" if self.folder else ""

    def _set_up(self) -> None:
        """Measure the normalisation on the first batches, and give a new dictionary its beginning."""
        seen, self._first = self._first, []
        unit_norm = self.stepper.unit_norm
        x = torch.cat([raw.x for raw, _ in seen])
        target = None if seen[0][1] is None else torch.cat([y for _, y in seen if y is not None])
        is_new = not self.dictionary.b_dec.any()
        normalizer = (measure if is_new else measure_again)(self.config.normalization, x, target, self.dictionary)
        if is_new:
            x = normalizer.apply(x)
            target = x if target is None else normalizer.apply_to_target(target)
            if unit_norm:
                self.dictionary.normalise_decoder()
            initialize(self.dictionary, x, target, self.config, unit_norm=unit_norm)
            self.normalizer = normalizer
        else:
            normalizer.unfold_from(self.dictionary)
            self.normalizer = normalizer  # from here on an error folds it back
            if unit_norm and not ((self.dictionary.decoder_norms - 1).abs() < _UNIT).all():
                self.dictionary.take_up_norms()

    def _normalised(self, raw: TrainingBatch, target: Tensor | None) -> Batch:
        assert self.normalizer is not None
        x = self.normalizer.apply(raw.x)
        y = x if target is None else self.normalizer.apply_to_target(target)
        to_raw = partial(self.normalizer.undo, x=raw.x, crossing=target is not None)
        return Batch(x, y, self.stepper.dead, self.step, self.config.num_steps, raw.context, to_raw)

    # What others see of the run

    @torch.no_grad()
    def _report(self, batch: Batch, step: Step) -> None:
        f = step.terms.f
        done = self.step - self._first_step
        values = None if f is None else f if isinstance(f, Tensor) else f.values
        self.last = StepMetrics(
            step=self.step,
            num_tokens=self.step * self.config.batch_size_tokens,
            loss=float(step.terms.total.detach()),
            explained_variance=self._explained_variance(batch),
            l0=float("nan") if values is None else float(values.count_nonzero() / len(batch.x)),
            dead_share=float(self.stepper.dead.double().mean()),
            grad_norm=float(step.grad_norm),
            lr=step.lr,
            tokens_per_second=done * self.config.batch_size_tokens / (time.perf_counter() - self._started),
            num_skipped_steps=self.stepper.num_skipped,
            parts={name: float(value) for name, value in step.terms.parts.items()},
        )
        if self._log:
            self._log.write(json.dumps(vars(self.last)) + "\n")
            self._log.flush()
        if self.on_metrics:
            self.on_metrics(self.last)

    def _explained_variance(self, batch: Batch) -> float:
        """Of a batch, in the form of inference; nan as long as a BatchTopK dictionary has no threshold."""
        if isinstance(self.dictionary, BatchTopK) and bool(self.dictionary.threshold.isnan()):
            return float("nan")
        return explained_variance(batch.target, reconstruct(self.stepper.kernels, self.dictionary, batch.x))

    def _open_log(self) -> TextIO | None:
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

    # Checkpoints

    def checkpoint(self) -> None:
        """Write the state of now."""
        if self.folder is None:
            return
        if self._log:
            os.fsync(self._log.fileno())  # a checkpoint never knows of more steps than the log
        normalizer = self.normalizer.state_dict() if self.normalizer else {}
        tensors = self.stepper.tensors()
        values = self.stepper.values() | {"num_taken": self.num_taken, "settled": self._settled}
        values["architecture"] = self.dictionary.architecture
        for name, state in (("stream", self.stream_state), ("normalizer", normalizer)):
            tensors |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            values[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        write_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(self.step, tensors, values),
            keep_last=self.config.keep_last,
            keep_every_n_steps=self.config.keep_every_n_steps,
            dictionary=self._folded(),
            metadata=self.metadata,
        )
        self._saved_at = self.step

    def _resume(self) -> None:
        if self.folder is None:
            raise ValueError("a run can only be resumed from the folder that holds its checkpoints; name it")
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        normalization = self.dictionary.input_normalization
        self.dictionary.input_normalization = NoNormalization()  # as weights in checkpoints have it
        weights, own = checkpoint.part("dictionary"), self.stepper.weights()
        shapes = {name: list(tensor.shape) for name, tensor in own.items()}
        found = {name: list(tensor.shape) for name, tensor in weights.items()}
        name, own_name = checkpoint.values["architecture"], self.dictionary.architecture
        if (name, found) != (own_name, shapes):
            self.dictionary.input_normalization = normalization
            raise ValueError(
                f"{self.folder} holds the run of another dictionary: {name} with {found}, not {own_name} with {shapes}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        self.stepper.optimizer.load_state(checkpoint.part("optimizer"))
        self.stepper.loss.load_state_dict(checkpoint.values["loss"])
        self.stepper.tokens_since_fired.copy_(checkpoint.tensors["counters/tokens_since_fired"])
        self.stepper.step, self.stepper.num_skipped = checkpoint.step, checkpoint.values["num_skipped"]
        self.num_taken = checkpoint.values["num_taken"]
        self._settled = checkpoint.values["settled"] and not self.trains  # not where the config now asks for more steps
        self.stream_state = {**checkpoint.values["stream"], **checkpoint.part("stream")}
        normalizer = {**checkpoint.values["normalizer"], **checkpoint.part("normalizer")}
        self.normalizer = normalizer_from(normalizer) if normalizer else None

    def _folded(self) -> Dictionary | None:
        """A copy of the dictionary that works on raw activations; None before the first batch."""
        if self.normalizer is None:
            return None
        folded = copy.deepcopy(self.dictionary)
        self.normalizer.fold_into(folded)
        return folded


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62  # a line that was cut off by a kill
