"""What a dictionary's weights alone say: how alike its rows are, and how far a reader looks where its writer points.

d_sae  features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Dictionary

_BLOCK = 1024  # rows compared with all others at once


@torch.no_grad()
def max_cosine(rows: Tensor) -> Tensor:
    """Largest cosine of each row with any other, float64 ``[d_sae]``; NaN where there is no other row.

    Signed, as the field's "mean max cosine similarity" has it; a row of zeros has cosine 0 with every row. Block by block:
    no ``[d_sae, d_sae]`` is made.
    """
    if len(rows) < 2:
        return torch.full((len(rows),), torch.nan, dtype=torch.float64)
    unit = F.normalize(rows.double(), dim=-1).to(torch.promote_types(rows.dtype, torch.float32))
    found = []
    for first in range(0, len(unit), _BLOCK):
        block = unit[first : first + _BLOCK] @ unit.T
        block.diagonal(first).fill_(-torch.inf)
        found.append(block.amax(-1))
    return torch.cat(found).double().cpu()


@torch.no_grad()
def encoder_decoder_cosine(dictionary: Dictionary) -> Tensor | None:
    """Cosine of each feature's encoder column with its decoder row, ``[d_sae]``; None where they have different widths."""
    if dictionary.d_in != dictionary.d_out:
        return None
    return F.cosine_similarity(dictionary.W_enc.T.double(), dictionary.W_dec.double(), dim=-1).cpu()


def require_finite(dictionary: Dictionary) -> None:
    """ValueError where a weight is not a number: nothing measured with it would be one."""
    for name, tensor in dictionary.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            known_as = name.replace("encoder_rows", "W_enc")  # how it is stored here
            raise ValueError(
                f"{bad:,} of the {tensor.numel():,} values of the dictionary's {known_as} are NaN or infinite; the file is "
                "damaged, or its training diverged"
            )
