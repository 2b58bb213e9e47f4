"""Sparse codes: which features fire on each token, and how strongly.

A dense ``[B, d_sae]`` tensor is nearly all zeros; analysis and evaluation only need the rest. Every token gets K slots of
(feature, value); unused slots hold value 0 and feature 0, so that sums and scatters need no special case.

B  tokens, K  slots per token (k for TopK, the busiest token's count otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Firings:
    """The firings of a batch as three flat arrays of one length, ordered by token."""

    token: Tensor  # row in the batch
    feature: Tensor
    value: Tensor  # > 0


@dataclass(frozen=True)
class SparseCodes:
    """Feature activations of B tokens: ``indices`` and ``values``, both ``[B, K]``; a slot with value 0 is empty."""

    indices: Tensor  # [B, K], int64
    values: Tensor  # [B, K]
    d_sae: int

    @classmethod
    def from_dense(cls, f: Tensor) -> SparseCodes:
        """Codes of a dense ``[B, d_sae]`` tensor."""
        active = f != 0
        slots = int(active.sum(-1).max()) if f.numel() else 0
        # stable sort puts active features first, in the order of their index
        indices = active.int().argsort(dim=-1, descending=True, stable=True)[:, :slots]
        values = f.gather(-1, indices)
        return cls(torch.where(values != 0, indices, 0), values, f.shape[-1])

    def to_dense(self) -> Tensor:
        """The same codes as a dense ``[B, d_sae]`` tensor."""
        f = self.values.new_zeros(len(self.values), self.d_sae)
        return f.scatter_add(-1, self.indices, self.values)

    def firings(self) -> Firings:
        """All slots with a value other than 0, as flat arrays."""
        token, slot = self.values.nonzero(as_tuple=True)
        return Firings(token, self.indices[token, slot], self.values[token, slot])
