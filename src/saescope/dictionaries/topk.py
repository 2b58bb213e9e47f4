"""The TopK dictionary: the k largest pre-activations of each token survive, after a ReLU.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093. A token with fewer than k positive
pre-activations has fewer than k firings. The paper layer-normalises its input: train with ``normalization =
"layer_norm"`` for that. AuxK, which revives dead features, and Multi-TopK are in ``training/losses/``.
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
    positively_homogeneous = True

    def strongest(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The activations of the k features that win on each token, and which they are: two ``[B, k]``."""
        values, indices = pre.topk(k, dim=-1, sorted=False)
        return F.relu(values), indices

    def activate(self, pre: Tensor) -> Tensor:
        return self.activate_in_training(pre)

    def activate_in_training(self, pre: Tensor, k: float | None = None) -> Tensor:
        """As :meth:`activate`; training may let another number of features fire for a while."""
        values, indices = self.strongest(pre, round(k or self.config.k))
        return pre.new_zeros(pre.shape).scatter(-1, indices, values)

    def _encode_sparse(self, x: Tensor) -> SparseCodes:
        values, indices = self.strongest(self.pre_activations(x), self.config.k)
        return SparseCodes(indices.where(values != 0, 0), values, self.d_sae)

    def saelens_extras(self) -> dict[str, Any]:
        return {**super().saelens_extras(), "rescale_acts_by_decoder_norm": False}
