"""The Gated dictionary: which features fire is decided apart from how strongly.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", arXiv 2404.16014::

    u = W_gate (x - b_dec)                      f = 1[u + b_gate > 0] * ReLU(exp(r_mag) u + b_mag)

The penalty falls on ReLU(u + b_gate) alone, so that magnitudes are not shrunk. The step passes no gradient: gates learn
from the penalty and from an auxiliary reconstruction through a frozen decoder (``training/losses/gated.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register


@register("gated", saelens_name="gated")
class Gated(Dictionary):
    """A Gated dictionary with tied gate and magnitude weights.

    Attributes:
        b_gate, b_mag: biases of the gate and of the magnitude, ``[d_sae]``.
        r_mag: log of the ratio of magnitude and gate weights, ``[d_sae]``.
    """

    Config = DictionaryConfig
    positively_homogeneous = True
    acts_per_feature = True
    in_activation_units = ("b_gate", "b_mag")

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        self.b_enc = None
        self.b_gate, self.b_mag, self.r_mag = (nn.Parameter(torch.zeros(config.d_sae)) for _ in range(3))

    def activate(self, pre: Tensor) -> Tensor:
        return torch.where(pre + self.b_gate > 0, F.relu(self.r_mag.exp() * pre + self.b_mag), 0)

    def gate_activations(self, pre: Tensor) -> Tensor:
        """ReLU(u + b_gate), ``[B, d_sae]``: what the penalty and the auxiliary loss see."""
        return F.relu(pre + self.b_gate)

    def reset_features(self, rows: Tensor) -> None:
        for parameter in (self.b_gate, self.b_mag, self.r_mag):
            parameter[rows] = 0

    def shift_pre_activations(self, shift: Tensor) -> None:
        self.b_gate.add_(shift)
        self.b_mag.add_(self.r_mag.exp() * shift)
