"""The BatchTopK dictionary: k features per token on average; busy tokens may take from quiet ones.

Bussmann, Leask & Nanda 2024, arXiv 2412.06410. In training, the k * B largest of a batch's B * d_sae activations
survive. At inference one threshold decides, so that a token's codes never depend on the batch it is in: f = a where a >
threshold.

The threshold is the mean, over training batches, of the smallest activation that survived: a plain mean over the first
steps and an exponential one afterwards, so that nothing of a starting value is left in it. After training it is
measured once more on fresh tokens with the final weights (:meth:`BatchTopK.fit_threshold`), as the value that lets
exactly k per token through. On disk it is a JumpReLU dictionary with one threshold for all features, which is the same
function.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register
from saescope.kernels import FlatCodes

_HORIZON = 100  # steps that the running mean looks back on


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(DictionaryConfig):
    k: float  # features that fire on a token, on average; need not be whole

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.k, bool) or not isinstance(self.k, int | float) or not 0 < self.k <= self.d_sae:
            raise ValueError(f"k must be above 0 and at most d_sae = {self.d_sae}, got {self.k!r}")


@register("batch_topk", written_as="jumprelu")
class BatchTopK(Dictionary):
    """A BatchTopK dictionary.

    Attributes:
        threshold: scalar; activations above it survive at inference. NaN until training has set it.
        threshold_steps: scalar int64, batches that the running mean has seen.
    """

    Config = BatchTopKConfig
    config: BatchTopKConfig
    positively_homogeneous = True
    in_activation_units = ("threshold",)
    threshold: Tensor
    threshold_steps: Tensor

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        self.register_buffer("threshold", torch.tensor(float("nan")))
        self.register_buffer("threshold_steps", torch.tensor(0))

    def activate(self, pre: Tensor) -> Tensor:
        if self.threshold.isnan():
            raise ValueError(
                "this BatchTopK dictionary has no threshold yet: train it, or measure one with fit_threshold(batches)"
            )
        return torch.where(pre > self.threshold, pre, 0)

    def activate_in_training(self, pre: Tensor, k: float | None = None) -> Tensor:
        """The ``k * B`` largest positive pre-activations of the whole batch."""
        flat = F.relu(pre).flatten()
        values, places = flat.topk(self.num_chosen(len(pre), k), sorted=False)
        return torch.zeros_like(flat).scatter(0, places, values).view_as(pre)

    def num_chosen(self, num_tokens: int, k: float | None = None) -> int:
        """How many activations of a batch survive in training."""
        return min(num_tokens * self.d_sae, max(1, int((k or self.config.k) * num_tokens)))

    @torch.no_grad()
    def after_step(self, f: Tensor | FlatCodes) -> None:
        f = f.values if isinstance(f, FlatCodes) else f
        if not f.numel():
            return
        smallest = f.where(f > 0, torch.inf).min()
        if smallest.isfinite():
            self.threshold_steps += 1
            share = max(1 / _HORIZON, 1 / int(self.threshold_steps))
            self.threshold.copy_(smallest if share == 1 else self.threshold + share * (smallest - self.threshold))

    @torch.no_grad()
    def fit_threshold(self, batches: Iterable[Tensor]) -> None:
        """Set the threshold so that exactly k activations per token of these batches, ``[B, d_in]``, are above it.

        Raises:
            ValueError: no tokens.
        """
        largest: Tensor | None = None
        batches = list(batches)
        num_tokens = sum(map(len, batches))
        if not num_tokens:
            raise ValueError("a threshold is measured on activations, and there are none")
        wanted = int(self.config.k * num_tokens)
        for x in batches:
            values = F.relu(self.pre_activations(x)).flatten()
            pool = values if largest is None else torch.cat([largest, values])
            # one more than may pass: the threshold lies between the last that does and the first that does not
            largest = pool.topk(min(len(pool), wanted + 1), sorted=False).values
        if largest is None or len(largest) <= wanted:
            self.threshold.fill_(0)  # every activation may pass
        elif not wanted:
            self.threshold.copy_(largest[0])
        else:
            first_out, last_in = largest.topk(2, largest=False, sorted=True).values
            self.threshold.copy_((first_out.double() + last_in.double()) / 2)
            if not self.threshold < last_in:  # neighbouring numbers: there is none between them
                self.threshold.copy_(first_out)
        self.threshold_steps.fill_(max(1, int(self.threshold_steps)))

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        del tensors["threshold_steps"]
        return tensors | {"threshold": self.threshold.to(self.W_dec.dtype).expand(self.d_sae)}

    @torch.no_grad()
    def take_tensors(self, tensors: dict[str, Tensor], *, copy: bool = True) -> None:
        threshold = tensors["threshold"]
        if not bool((threshold == threshold[0]).all()) and not bool(threshold.isnan().all()):
            raise ValueError("a BatchTopK dictionary has one threshold for all features; this file has several")
        super().take_tensors({**tensors, "threshold": threshold[0].clone()}, copy=copy)
        self.threshold_steps.fill_(0 if self.threshold.isnan() else 1)
