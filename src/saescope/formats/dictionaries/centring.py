"""Moving ``b_dec`` between the encoder's input and its bias, which leaves every pre-activation what it was.

    (x - b_dec) @ W_enc + b_enc  =  x @ W_enc + (b_enc - b_dec @ W_enc)

Some formats always subtract ``b_dec`` from the input and some never do; so a dictionary of one kind is written as the other.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 22  # numbers brought to float64 at a time


def shift_of_centring(b_dec: Tensor, W_enc: Tensor) -> Tensor:
    """``b_dec @ W_enc``: what centring takes from each pre-activation, ``[d_sae]`` in float64."""
    if W_enc.is_meta:  # arithmetic without values would load torch's compiler first, which takes seconds
        return torch.empty(W_enc.shape[1], dtype=torch.float64, device="meta")
    rows, bias = W_enc.T, b_dec.double()  # [d_sae, d_in], [d_in]
    return torch.cat([block.double() @ bias for block in rows.split(max(1, _BLOCK // rows.shape[1]))])
