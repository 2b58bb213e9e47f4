"""The AbsTopK dictionary: the k pre-activations of largest absolute value survive, with their signs.

arXiv 2510.00404: one feature then stands for a direction and its opposite. Activations may be
negative, and a feature fires where its activation is not zero. The auxiliary loss ranks dead features by absolute
value.
"""

from __future__ import annotations

from torch import Tensor

from saescope.dictionaries.base import register
from saescope.dictionaries.topk import TopK


@register("abs_topk", saelens_name="abstopk")
class AbsTopK(TopK):
    """An AbsTopK dictionary."""

    def strongest(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        indices = pre.abs().topk(k, dim=-1, sorted=False).indices
        return pre.gather(-1, indices), indices
