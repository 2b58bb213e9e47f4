"""Sparse codes as the kernels read them: one flat list of firings, token by token.

B  tokens, n  entries in all, d_sae  features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatCodes:
    """The entries ``starts[b] : starts[b + 1]`` belong to token b, in rising order of feature."""

    starts: Tensor  # int64, [B + 1]
    features: Tensor  # int32, [n]
    values: Tensor  # [n]: activations, above 0; 0 for an entry that only a threshold's gradient needs
    d_sae: int

    @property
    def num_tokens(self) -> int:
        return len(self.starts) - 1

    @property
    def tokens(self) -> Tensor:
        """The token of every entry, int64, ``[n]``."""
        counts = self.starts.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def to_dense(self) -> Tensor:
        """The same as ``[B, d_sae]``."""
        f = self.values.new_zeros(self.num_tokens, self.d_sae)
        return f.index_put((self.tokens, self.features.long()), self.values)

    def with_values(self, values: Tensor) -> FlatCodes:
        return FlatCodes(self.starts, self.features, values, self.d_sae)

    @classmethod
    def from_mask(cls, values: Tensor, mask: Tensor) -> FlatCodes:
        """Entries where ``mask`` ``[B, d_sae]`` is set, with their values from ``[B, d_sae]``."""
        token, feature = mask.nonzero(as_tuple=True)
        counts = torch.bincount(token, minlength=len(mask))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(starts, feature.int(), values[token, feature], mask.shape[-1])
