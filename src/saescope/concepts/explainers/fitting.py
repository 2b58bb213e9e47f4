"""Fit a concept model: epochs over rows, one optimizer step per batch.

While it is fitted a model sees activations times one factor that brings their mean norm to sqrt(d), so that learning rates,
penalties and bandwidths mean the same for every model; afterwards the factor is folded into biases and thresholds. A step is
in the order of ``training/optimizer.py``: the part of the gradient along each decoder row is taken out, the norm is clipped,
the optimizer steps, rows are brought back to norm 1.

A batch that is not finite, or whose loss or gradient is not, moves nothing and is counted; all others are seen.

n  rows in a batch, d  activation width, c  concepts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from saescope.concepts.explainers.concept_model import ConceptModel
from saescope.concepts.explainers.history import History
from saescope.concepts.explainers.losses import Criterion, loss_with, total_of
from saescope.concepts.explainers.rows import Rows
from saescope.dictionaries import BatchTopK
from saescope.training.losses import Batch, LossTerms
from saescope.training.normalization import measure

_MOST_ROWS = 65_536  # to measure on: the scale, a bias, a threshold
_FEW_ROWS = 4096  # to measure what needs all concepts at once
_CODES_AT_ONCE = 1 << 26  # 256 MB in float32
_DEAD_AFTER = 400_000  # rows without a code after which a concept is dead, where an epoch is not shorter

SchedulerUnit = Literal["step", "epoch"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How to fit."""

    nb_epochs: int = 20
    lr: float = 1e-3
    criterion: Criterion | None = None
    optimizer_class: Callable[..., torch.optim.Optimizer] | None = None
    optimizer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scheduler_class: Callable[..., Any] | None = None
    scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scheduler_unit: SchedulerUnit = "step"
    clip_grad: float | None = None
    use_amp: bool = False
    max_nan_fallbacks: int | None = 5
    monitoring: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.nb_epochs, int) or self.nb_epochs < 1:
            raise ValueError(f"nb_epochs is a whole number of at least 1, got {self.nb_epochs!r}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        own = self.optimizer_kwargs.get("lr", self.lr)
        if own != self.lr:
            raise ValueError(f"two learning rates: lr = {self.lr} and optimizer_kwargs['lr'] = {own}; give lr alone")
        if isinstance(self.optimizer_class, type) and issubclass(self.optimizer_class, torch.optim.LBFGS):
            raise ValueError("LBFGS evaluates the loss several times a step, which fit does not do; choose another")
        if self.scheduler_unit not in ("step", "epoch"):
            raise ValueError(f"scheduler_unit is 'step' or 'epoch', got {self.scheduler_unit!r}")
        if self.scheduler_class is None and self.scheduler_kwargs:
            raise ValueError("scheduler_kwargs are given without a scheduler_class")
        if self.clip_grad is not None and not self.clip_grad >= 0:
            raise ValueError(f"clip_grad is a norm, or None for no clipping; got {self.clip_grad}")
        if self.max_nan_fallbacks is not None and self.max_nan_fallbacks < 1:
            raise ValueError(f"max_nan_fallbacks is at least 1, or None for no limit; got {self.max_nan_fallbacks}")


class Fit:
    """One fit of one model."""

    def __init__(self, model: ConceptModel, rows: Rows, settings: FitSettings) -> None:
        self.model, self.rows, self.settings = model, rows, settings
        self.dictionary = model.dictionary
        self.order = torch.Generator().manual_seed(settings.seed)
        self.scale = 1.0
        self.in_bfloat16 = settings.use_amp
        self.num_fallbacks = self.step = 0
        self.dead_after = min(rows.num_rows or _DEAD_AFTER, _DEAD_AFTER)
        self.rows_since_fired = torch.zeros(model.nb_concepts, dtype=torch.int64, device=model.device)
        self.num_steps = None if rows.num_batches is None else rows.num_batches * settings.nb_epochs
        self.recent: deque[Tensor] = deque()  # batches that a threshold can be measured on

    def run(self) -> dict[str, list[float]]:
        """Fit, and leave the model on raw activations and in evaluation mode, whatever happens.

        Raises:
            ValueError: activations without a finite, positive norm; an epoch without any batch that could be used.
        """
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # the user's own random numbers go on as if nothing had been drawn
            torch.manual_seed(self.settings.seed)
            scale = self._measure()
            try:
                self._begin(scale)
                history = self._epochs()
                self._set_threshold()
            finally:
                if not self.model.on_raw_activations:
                    self.dictionary.fold_scale(scale)
                    self.model.on_raw_activations = True
                self.model.eval()
        return dict(history.logs)

    def _measure(self) -> float:
        """The factor that brings the mean norm of rows to sqrt(d)."""
        sample = self.rows.sample(_MOST_ROWS, self.order).to(self.model.device, self.model.dtype)
        self.sample = sample[torch.isfinite(sample).all(-1)]
        if not len(self.sample):
            raise ValueError(
                "the activations contain NaN or infinity in every row; check the model's dtype and weights"
            )
        return measure("scale", self.sample, None, self.dictionary).scale_out

    @torch.no_grad()
    def _begin(self, scale: float) -> None:
        """Go to normalised activations, where a new model is already; its bias begins at their mean, its codes sparse."""
        recipe = self.model.recipe
        if self.model.on_raw_activations:
            self.dictionary.fold_scale(1 / scale)
        else:
            if recipe.decoder_bias:
                self.dictionary.b_dec.copy_(self.sample.double().mean(0) * scale)
            if recipe.first_share is not None:
                few = max(_FEW_ROWS // 16, min(_FEW_ROWS, _CODES_AT_ONCE // self.model.nb_concepts))
                self.model.eval().begin_sparse(self.sample[:few] * scale, recipe.first_share)
        self.scale, self.model.on_raw_activations = scale, False
        del self.sample
        self.loss = loss_with(self.settings.criterion, self.dictionary, dict(self.model.recipe.loss), scale)
        self.optimizer = self._optimizer()
        make, how = self.settings.scheduler_class, dict(self.settings.scheduler_kwargs)
        self.scheduler = make(self.optimizer, **how) if make else None
        self.history = History(self.model.nb_concepts, self.model.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        how = {**self.settings.optimizer_kwargs, "lr": self.settings.lr}
        return (self.settings.optimizer_class or torch.optim.Adam)(parameters, **how)

    def _epochs(self) -> History:
        s, history = self.settings, self.history
        for epoch in range(s.nb_epochs):
            self.model.train()
            history.begin_epoch()
            self.recent.clear()
            num_rows = 0
            for x in self.rows.epoch(self.order):
                self._remember(x)
                self._batch(x.to(self.model.device, self.model.dtype))
                num_rows += len(x)
            if not history.num_steps:
                raise ValueError(
                    f"epoch {epoch + 1}: none of {history.num_skipped} batches could be used: activations, loss or gradient "
                    "are not finite in all of them; check the activations, or try a smaller lr"
                )
            if self.rows.num_rows is None:
                self.dead_after = min(num_rows, _DEAD_AFTER)
            history.end_epoch(self.dictionary.W_dec if (s.monitoring or 0) > 1 else None)
            if self.scheduler is not None and s.scheduler_unit == "epoch":
                self._turn_scheduler(history.logs["avg_loss"][-1])
            if s.monitoring:
                print(history.last_line(epoch + 1, s.nb_epochs), flush=True)
        return history

    def _batch(self, raw: Tensor) -> None:
        """One step on ``[n, d]``, if it can be made."""
        if not torch.isfinite(raw).all():
            self.history.num_skipped += 1
            return
        x = raw * self.scale
        if self._try(x, bfloat16=self.in_bfloat16):
            return
        if self.in_bfloat16:
            self.num_fallbacks += 1
            self.history.num_fallbacks += 1
            limit = self.settings.max_nan_fallbacks
            if limit is not None and self.num_fallbacks >= limit:
                self.in_bfloat16 = False  # for good
            if self._try(x, bfloat16=False):
                return
        self.history.num_skipped += 1

    def _try(self, x: Tensor, *, bfloat16: bool) -> bool:
        """A step, unless its loss or gradient is not finite: then nothing has moved."""
        kept = [
            (buffer, buffer.clone()) for buffer in self.model.buffers()
        ]  # those of batch norm move in a forward pass
        batch = Batch(x, x, self.rows_since_fired >= self.dead_after, *self._moment())
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            terms = self.loss(self.dictionary, batch)
        if terms.total.requires_grad:  # not where no parameter has a part in it
            terms.total.backward()
        norm = self._prepare_gradients()
        if not torch.isfinite(terms.total.detach() + norm):
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in kept:
                buffer.copy_(before)
            return False
        self._step(batch, terms, norm)
        return True

    def _moment(self) -> tuple[int, int]:
        """Steps done and in all, for penalties that rise at first; without a known end they do not."""
        return (0, 1) if self.num_steps is None else (min(self.step, self.num_steps - 1), self.num_steps)

    @torch.no_grad()
    def _prepare_gradients(self) -> Tensor:
        """Project and clip; the norm before clipping."""
        if self.model.recipe.unit_rows:
            self.dictionary.project_decoder_gradient()
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad or float("inf"))

    def _step(self, batch: Batch, terms: LossTerms, norm: Tensor) -> None:
        lr = float(self.optimizer.param_groups[0]["lr"])
        assert isinstance(terms.f, Tensor)
        if (self.settings.monitoring or 0) > 1:
            self._note_norms(terms.f, norm)
        self.optimizer.step()
        self.dictionary.constrain()
        if self.model.recipe.unit_rows:
            self.dictionary.normalise_decoder()
        self.model.after_step(terms.f)
        self.loss.after_step(batch)
        self.step += 1
        self.rows_since_fired += len(batch.x)
        self.rows_since_fired[(terms.f != 0).any(0)] = 0
        total = total_of(terms.total)
        self.history.step(batch.x, terms.f, total, terms.parts["mse"], lr)
        if self.scheduler is not None and self.settings.scheduler_unit == "step":
            self._turn_scheduler(total)

    def _note_norms(self, codes: Tensor, norm: Tensor) -> None:
        self.history.note("z_l2", (codes / self.scale).norm())
        self.history.note("grad_norm", norm)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.history.note(f"params_norm_{name}", parameter.norm())
                self.history.note(f"params_grad_norm_{name}", parameter.grad.norm())

    def _turn_scheduler(self, loss: Tensor | float) -> None:
        assert self.scheduler is not None
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(float(loss))
        else:
            self.scheduler.step()

    # BatchTopK

    def _remember(self, x: Tensor) -> None:
        """Keep the last batches of an epoch, where a threshold will be measured on them."""
        if not isinstance(self.dictionary, BatchTopK):
            return
        self.recent.append(x)
        while sum(map(len, self.recent)) - len(self.recent[0]) >= _MOST_ROWS:
            self.recent.popleft()

    @torch.no_grad()
    def _set_threshold(self) -> None:
        """The threshold that lets k concepts per row through, with the final weights, in the form of inference."""
        if not isinstance(self.dictionary, BatchTopK):
            return
        self.model.eval()
        seen = (x[torch.isfinite(x).all(-1)].to(self.model.device, self.model.dtype) for x in self.recent)
        self.dictionary.fit_threshold([x * self.scale for x in seen])
