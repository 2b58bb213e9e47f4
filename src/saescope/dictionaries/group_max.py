"""The GroupMax dictionary: features stand in k groups of neighbours, and the strongest of each group fires.

An option of EleutherAI's sparsify (``activation = "groupmax"``), whose dictionaries this opens: with k groups there are at
most k firings on a token, found without a search over all features. Where k does not divide d_sae, which sparsify refuses,
the last groups are smaller.

B  tokens, k  groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries.base import register
from saescope.dictionaries.topk import TopK


@register("group_max")
class GroupMax(TopK):
    """A GroupMax dictionary."""

    def strongest(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        width = pre.shape[-1]  # d_sae, or fewer in a loss that looks at some features alone
        size = -(-width // k)
        first = torch.arange(0, width, size, device=pre.device)  # of each group
        filled = F.pad(pre, (0, len(first) * size - width), value=-torch.inf)
        values, places = filled.unflatten(-1, (len(first), size)).max(dim=-1)
        return F.relu(values), places + first
