"""The Ordered dictionary (OSAE): a TopK dictionary whose features stand in a canonical order.

Wang et al. 2025, arXiv 2512.02194. Codes are those of TopK; the loss is the expected error over all
prefixes of the dictionary, so that the feature that helps most comes first and seeds agree on the order. The loss with
its warm-up of k and its unit sweeping is in ``training/losses/nested.py``.
"""

from __future__ import annotations

from saescope.dictionaries.base import register
from saescope.dictionaries.topk import TopK


@register("ordered", written_as="topk")
class Ordered(TopK):
    """An Ordered dictionary."""
