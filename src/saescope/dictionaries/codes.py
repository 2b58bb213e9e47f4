"""Sparse codes: which features fire on each token, and how strongly.

A dense ``[B, d_sae]`` tensor is nearly all zeros; analysis and evaluation only need the rest. Every token gets K slots
of (feature, value); unused slots hold value 0 and feature 0, so that sums and scatters need no special case.

B  tokens, K  slots per token (k for TopK, the busiest token's count otherwise, and never less than one).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.kernels import FlatCodes


@dataclass(frozen=True)
class Firings:
    """The firings of a batch as three flat arrays of one length, ordered by token."""

    token: Tensor  # row in the batch
    feature: Tensor
    value: Tensor  # not 0


@dataclass(frozen=True)
class SparseCodes:
    """Feature activations of B tokens: ``indices`` and ``values``, both ``[B, K]``; a slot with value 0 is empty."""

    indices: Tensor  # [B, K], int64
    values: Tensor  # [B, K]
    d_sae: int

    @classmethod
    def from_dense(cls, f: Tensor) -> SparseCodes:
        """Codes of a dense ``[B, d_sae]`` tensor."""
        token, feature = f.nonzero(as_tuple=True)
        counts = torch.bincount(token, minlength=len(f))
        slot = torch.arange(len(token), device=f.device) - (counts.cumsum(0) - counts)[token]
        shape = (len(f), max(1, int(counts.max())) if len(f) else 1)
        indices = feature.new_zeros(shape).index_put((token, slot), feature)
        values = f.new_zeros(shape).index_put((token, slot), f[token, feature])
        return cls(indices, values, f.shape[-1])

    @classmethod
    def from_flat(cls, codes: FlatCodes) -> SparseCodes:
        """The codes that a kernel gives, row by row."""
        counts = codes.starts.diff()
        token = codes.tokens
        slot = torch.arange(len(token), device=token.device) - codes.starts[token]
        shape = (codes.num_tokens, max(1, int(counts.max())) if len(counts) else 1)
        indices = codes.starts.new_zeros(shape).index_put((token, slot), codes.features.long())
        values = codes.values.new_zeros(shape).index_put((token, slot), codes.values)
        return cls(indices, values, codes.d_sae)

    def to_dense(self) -> Tensor:
        """The same codes as a dense ``[B, d_sae]`` tensor."""
        f = self.values.new_zeros(len(self.values), self.d_sae)
        return f.scatter_add(-1, self.indices, self.values)

    def firings(self) -> Firings:
        """All slots with a value other than 0, as flat arrays."""
        token, slot = self.values.nonzero(as_tuple=True)
        return Firings(token, self.indices[token, slot], self.values[token, slot])
