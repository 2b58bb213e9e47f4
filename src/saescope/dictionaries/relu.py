"""The ReLU dictionary: f = ReLU(W_enc (x - b_dec) + b_enc), sparse because training penalises the sum of activations.

Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023, arXiv 2309.08600. The penalty weighted by
decoder norms is that of Anthropic's April 2024 update; p-annealing is Karvonen et al. 2024, arXiv 2408.00113. All of
that is in ``training/losses/``. Whether ``b_dec`` is subtracted from the input is ``apply_b_dec_to_input``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register


@register("relu", saelens_name="standard")
class ReLU(Dictionary):
    """A ReLU dictionary (also called standard or vanilla SAE)."""

    Config = DictionaryConfig
    positively_homogeneous = True
    acts_per_feature = True

    def activate(self, pre: Tensor) -> Tensor:
        return F.relu(pre)
