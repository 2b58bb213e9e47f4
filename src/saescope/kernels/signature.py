"""What the kernels share beside arguments: where gradients are written, and how Adam is to step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """Buffers for the gradients of one dictionary; allocated once, because fresh memory costs more than arithmetic."""

    encoder: Tensor  # [d_sae, d_in]
    decoder: Tensor  # [d_sae, d_out]
    bias: Tensor  # [d_sae]
    squares: Tensor  # float64, [2]: sums of squares of the decoder's and of the encoder's gradient

    @classmethod
    def like(cls, encoder: Tensor, decoder: Tensor) -> Gradients:
        """Buffers, all zero, for a dictionary with these matrices."""
        return cls(
            torch.zeros_like(encoder, memory_format=torch.contiguous_format),
            torch.zeros_like(decoder, memory_format=torch.contiguous_format),
            encoder.new_zeros(len(encoder)),
            torch.zeros(2, dtype=torch.float64, device=encoder.device),
        )


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """One step of Adam (Kingma & Ba 2014, arXiv 1412.6980)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int  # of this update, from 1
    gradient_factor: float = 1.0  # what gradients are multiplied by first (clipping)
    unit_norm: bool = False  # bring rows to norm 1 afterwards
