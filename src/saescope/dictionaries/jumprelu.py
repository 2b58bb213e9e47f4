"""The JumpReLU dictionary: every feature has a threshold of its own, and what is above it passes unchanged.

Rajamanoharan et al. 2024, "Jumping Ahead", arXiv 2407.14435: f = pre where pre > threshold, else 0. Neither the jump
nor the number of firings has a useful derivative in the threshold, so the paper estimates one from the pre-activations
near it, with a rectangle of width ``bandwidth`` as kernel K::

    df/dtheta = -(theta / bandwidth) K((pre - theta) / bandwidth)        df/dpre = H(pre - theta)
    dH/dtheta =     -(1 / bandwidth) K((pre - theta) / bandwidth)        dH/dpre = 0

The paper trains log(theta). Here theta itself is the parameter, held at or above 0, as SAELens came to do: Adam moves a
logarithm by about its learning rate per step, so that a threshold of 0.01 stays where it is in all but the longest
runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(DictionaryConfig):
    initial_threshold: float = 0.01  # activations have mean norm sqrt(d_in) in training
    bandwidth: float = 0.05  # width of the kernel that estimates gradients of thresholds

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.initial_threshold >= 0 or not self.bandwidth > 0:
            raise ValueError(
                "initial_threshold must not be negative and bandwidth must be positive, "
                f"got {self.initial_threshold} and {self.bandwidth}"
            )


@register("jumprelu", saelens_name="jumprelu")
class JumpReLU(Dictionary):
    """A JumpReLU dictionary.

    Attributes:
        threshold: ``[d_sae]``, not negative.
    """

    Config = JumpReLUConfig
    config: JumpReLUConfig
    positively_homogeneous = True
    acts_per_feature = True
    in_activation_units = ("threshold",)

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        self.threshold = nn.Parameter(torch.full((config.d_sae,), self.config.initial_threshold))

    def activate(self, pre: Tensor) -> Tensor:
        return _Jump.apply(pre, self.threshold, self.config.bandwidth)

    def firing(self, pre: Tensor) -> Tensor:
        """1 where a feature fires and 0 elsewhere, ``[B, d_sae]``, with the paper's gradient to the thresholds."""
        return _Step.apply(pre, self.threshold, self.config.bandwidth)

    def reset_features(self, rows: Tensor) -> None:
        super().reset_features(rows)
        self.threshold[rows] = self.config.initial_threshold

    def constrain(self) -> None:
        with torch.no_grad():
            self.threshold.clamp_(min=0)


def _near(grad: Tensor, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The gradient where the kernel is not 0, summed over all tokens: ``[d_sae]``."""
    within = (pre - threshold).abs() < bandwidth / 2
    return grad.where(within, 0).reshape(-1, grad.shape[-1]).sum(0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = _near(grad, pre, threshold, ctx.bandwidth)
        return grad.where(pre > threshold, 0), -threshold / ctx.bandwidth * near, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = _near(grad, pre, threshold, ctx.bandwidth)
        return torch.zeros_like(pre), -near / ctx.bandwidth, None
