"""The TopK dictionary: the k largest pre-activations of each token survive, after a ReLU.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093. A token with fewer than k positive
pre-activations has fewer than k firings. The AuxK loss that revives dead features is in ``training/losses.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register
from saescope.dictionaries.codes import SparseCodes


@dataclass(frozen=True, kw_only=True)
class TopKConfig(DictionaryConfig):
    k: int  # features that may fire on a token

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.k, int) or not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must be a whole number between 1 and d_sae = {self.d_sae}, got {self.k!r}")


@register("topk", saelens_name="topk")
class TopK(Dictionary):
    """A TopK dictionary."""

    Config = TopKConfig
    config: TopKConfig

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = pre.topk(self.config.k, dim=-1, sorted=False)
        return pre.new_zeros(pre.shape).scatter(-1, indices, F.relu(values))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        values, indices = self.pre_activations(x).topk(self.config.k, dim=-1, sorted=False)
        return SparseCodes(indices.where(values > 0, 0), F.relu(values), self.d_sae)

    def saelens_extras(self) -> dict[str, Any]:
        return {**super().saelens_extras(), "rescale_acts_by_decoder_norm": False}
