"""One step of training: a batch in, weights moved.

A step is sparse where the architecture's firings, the loss and the machine allow it (``sparse_pass.py``) and dense
autograd otherwise; both compute the same. Batches arrive normalised (see ``normalization.py``).

B  tokens, d_in  width, d_sae  features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Archetypal, Dictionary, Ordered
from saescope.dictionaries.sparse_encoding import MANY, WORTH_IT
from saescope.kernels import FlatCodes, kernels_for
from saescope.training.config import TrainingConfig
from saescope.training.losses import Batch, Loss, LossTerms
from saescope.training.losses.base import SumOfTerms
from saescope.training.losses.sparse_pass import has_sparse_pass, sparse_pass
from saescope.training.optimizer import UnitNormAdam
from saescope.training.resampling import check_can_resample, resample
from saescope.training.schedules import factor


@dataclass(frozen=True)
class Step:
    """What one step leaves for the log."""

    terms: LossTerms
    grad_norm: Tensor
    lr: float
    was_taken: bool  # False: loss or gradient were not finite, and nothing has moved
    in_bfloat16: bool


class Stepper:
    """What decides the next step of one dictionary: weights, Adam's moments, counters.

    Attributes:
        step: steps done. tokens_since_fired: int64, ``[d_sae]``. num_skipped: steps that were not taken.
        kernels: what sparse steps are computed with; None where all steps are dense.
    """

    def __init__(self, dictionary: Dictionary, config: TrainingConfig, loss: Loss) -> None:
        self.dictionary = dictionary.train()
        self.config = config
        self.loss = loss
        self.step = 0
        self.num_skipped = 0
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
        self.kernels = self._kernels()
        self.optimizer = UnitNormAdam(
            dictionary,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            max_grad_norm=config.max_grad_norm,
            unit_norm=self.unit_norm,
            lr_factors=config.lr_factors,
            kernels=self.kernels,
        )

    def _kernels(self) -> Any:
        config, dictionary = self.config, self.dictionary
        runs = has_sparse_pass(dictionary) and isinstance(self.loss, SumOfTerms) and self.loss.runs_sparse
        runs = runs and self.unit_norm  # the terms take rows to be of norm 1
        size = config.batch_size_tokens * dictionary.d_in * dictionary.d_sae
        k = getattr(dictionary.config, "k", 0)
        dense_is_faster = size < WORTH_IT or (k > MANY * dictionary.d_sae and not isinstance(dictionary, Ordered))
        if config.sparse_kernels == "never" or (config.sparse_kernels == "auto" and (not runs or dense_is_faster)):
            return None
        kernels = kernels_for(dictionary.b_dec) if runs else None
        if kernels is None and config.sparse_kernels == "always":
            raise ValueError(
                f'sparse_kernels = "always", but there are none for a {dictionary.architecture} dictionary with this '
                f"loss on {dictionary.b_dec.device.type} in {dictionary.b_dec.dtype}; leave it out"
            )
        if any(bool(parameter.isnan().any()) for parameter in dictionary.parameters()):
            return None  # for the kernels NaN only is a feature that never fires; a dense step has it in its loss
        return kernels

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

    def take(self, batch: Batch) -> Step:
        """One step on a normalised batch, unless its loss or gradient is not finite: weights then stay as they were.

        A step that was not taken counts when it was computed in bfloat16, which may overflow; in float32 nothing
        changes, and the caller has to stop.
        """
        d_sae = self.dictionary.d_sae
        num_frozen = min(int(self.loss.frozen_share(batch.progress) * d_sae), d_sae - 1)  # one is always free
        terms, grad_norm = self._sparse(batch, num_frozen) or self._dense(batch, num_frozen)
        lr_factor, in_bfloat16 = self.lr_factor(), self.in_bfloat16
        taken = bool(torch.isfinite(terms.total.detach() + grad_norm))
        if taken:
            self.optimizer.step(lr_factor, num_frozen)
            self.loss.after_step(batch)
            self._count(terms, len(batch.x))
            if terms.f is not None:
                self.dictionary.after_step(terms.f)
            self._resample_if_due(batch)
        else:
            self.optimizer.drop_gradients()
            if in_bfloat16:
                self._skip()
        return Step(terms, grad_norm, self.config.lr * lr_factor, taken, in_bfloat16)

    def _dense(self, batch: Batch, num_frozen: int) -> tuple[LossTerms, Tensor]:
        if self.kernels:
            self.optimizer.drop_gradients()  # what kernels wrote into the buffers that autograd adds to
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            terms = self.loss(self.dictionary, batch)
        terms.total.backward()
        return terms, self.optimizer.prepare(num_frozen)

    def _sparse(self, batch: Batch, num_frozen: int) -> tuple[LossTerms, Tensor] | None:
        """The same on the firings alone; None where that is impossible, or slower."""
        if self.kernels is None or (self.in_bfloat16 and batch.x.device.type == "cpu"):
            return None
        assert isinstance(self.loss, SumOfTerms)
        k = self.loss.k_at(self.dictionary, batch)
        forward = sparse_pass(self.kernels, self.dictionary, batch.x, k, bfloat16=self.in_bfloat16)
        if forward is None:
            return None
        terms = self.loss.of_pass(self.dictionary, batch, forward, forward.codes)
        terms.total.backward()
        buffers = self.optimizer.gradient_buffers()
        for name, gradient in forward.backward(buffers, unit_norm=self.unit_norm).items():
            self.optimizer.parameters[name].grad = gradient
        return terms, self.optimizer.prepare(num_frozen, buffers)

    def _skip(self) -> None:
        """Pass over a step. Nothing of it has touched the weights: they are the last good ones."""
        self.num_skipped += 1
        self.step += 1
        gone = "" if self.in_bfloat16 else "; the run goes on in float32"
        warnings.warn(
            f"step {self.step - 1}: the loss or its gradient is not finite in bfloat16; the step is skipped "
            f"({self.num_skipped} so far){gone}",
            stacklevel=2,
        )

    def _count(self, terms: LossTerms, num_tokens: int) -> None:
        self.step += 1
        self.tokens_since_fired += num_tokens
        if terms.f is not None:
            self.tokens_since_fired[_fired(terms.f)] = 0

    def _resample_if_due(self, batch: Batch) -> None:
        every = self.config.resample_every_n_steps
        if every is None or self.step % every or self.step > self.config.resample_until_share * self.config.num_steps:
            return
        generator = torch.Generator().manual_seed(self.config.init_seed * 1_000_003 + self.step)
        rows = resample(self.dictionary, self.optimizer, batch.x, self.dead, generator)
        self.tokens_since_fired[rows] = 0

    def tensors(self) -> dict[str, Tensor]:
        """State for a checkpoint: ``dictionary/...``, ``optimizer/...`` and counters."""
        tensors = {f"dictionary/{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        return tensors | {"counters/tokens_since_fired": self.tokens_since_fired}

    def values(self) -> dict[str, Any]:
        """What of the state JSON can hold."""
        return {"num_skipped": self.num_skipped, "loss": self.loss.state_dict()}

    def weights(self) -> dict[str, Tensor]:
        """Everything that decides what the dictionary computes: parameters, thresholds, points."""
        return dict(self.dictionary.named_parameters()) | dict(self.dictionary.named_buffers())


def _fired(f: Tensor | FlatCodes) -> Tensor:
    """Which features fired in a batch."""
    if isinstance(f, FlatCodes):
        return f.features[f.values > 0].long()
    return (f.amax(0) > 0) | (f.amin(0) < 0)  # many times faster than sums over a mask
