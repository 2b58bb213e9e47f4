"""Direct logit attribution: which tokens a feature's decoder row pushes up and down, straight through the unembedding.

The row goes through the final norm with its scale frozen at 1 and its gain applied (centred first for a LayerNorm), then
through the unembedding; the mean over the vocabulary is taken off, because a constant changes no probability. So values
rank tokens and compare features of one dictionary; divided by the final norm's scale on a given token they are that token's
change in logit per unit of activation. Later layers and any soft-capping are left out, as in all such attributions.

d_in  width of the residual stream, V  vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from saescope.models.language_model import Unembedding


@dataclass(frozen=True)
class LogitEffects:
    """The strongest effects of one feature: token ids and values, strongest first in both directions."""

    top_ids: list[int]
    top_values: list[float]
    bottom_ids: list[int]
    bottom_values: list[float]


@torch.no_grad()
def logit_effects(
    W_dec: Tensor, unembedding: Unembedding, *, num_tokens: int = 10, chunk_rows: int = 256
) -> Iterator[LogitEffects]:
    """The effects of every decoder row, ``[d_sae, d_in]``, in order; only ``[chunk_rows, V]`` is held at a time.

    Raises:
        ValueError: the rows are not as wide as the unembedding (the hook point does not write to the residual stream).
    """
    if W_dec.shape[-1] != unembedding.weight.shape[-1]:
        raise ValueError(
            f"decoder rows of width {W_dec.shape[-1]} cannot go through an unembedding of width "
            f"{unembedding.weight.shape[-1]}; logit effects need a hook point of the residual stream"
        )
    for rows in W_dec.float().split(chunk_rows):
        logits = through_unembedding(rows, unembedding)  # [rows, V]
        top, bottom = logits.topk(num_tokens), logits.topk(num_tokens, largest=False)
        for i in range(len(rows)):
            yield LogitEffects(
                top.indices[i].tolist(), top.values[i].tolist(), bottom.indices[i].tolist(), bottom.values[i].tolist()
            )


def through_unembedding(rows: Tensor, unembedding: Unembedding) -> Tensor:
    """Directions of the residual stream, ``[n, d_in]``, as centred logits, ``[n, V]``."""
    if unembedding.norm_kind == "layer_norm":
        rows = rows - rows.mean(-1, keepdim=True)
    if unembedding.norm_weight is not None:
        rows = rows * unembedding.norm_weight.float()
    logits = rows @ unembedding.weight.float().T
    return logits - logits.mean(-1, keepdim=True)
