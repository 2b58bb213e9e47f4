"""Matching pursuit with dropout of atoms: in training, and there alone, each forward pass does without some of them.

A dropped row is put to zero for the pass, so that its product is 0 and a step that takes it adds nothing. What is rebuilt is
rebuilt from all rows. In evaluation nothing is dropped, and the setting stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from saescope.dictionaries import MatchingPursuit


class _Encoding(nn.Module):
    """``encode`` as a module's forward, in which a parameter can be put in the place of another."""

    def __init__(self, dictionary: MatchingPursuit) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, x: Tensor, k: int | None) -> Tensor:
        return self.dictionary.encode(x, k)


class DroppedPursuit(MatchingPursuit):
    """Matching pursuit that drops each atom with probability ``dropout`` in a training pass."""

    dropout: float = 0.0

    def encode_in_training(self, x: Tensor, k: float | None = None) -> tuple[Tensor | None, Tensor]:
        steps = None if k is None else round(k)
        if not self.training or not self.dropout:
            return None, self.encode(x, steps)
        kept = torch.rand(self.d_sae, 1, device=self.W_dec.device) >= self.dropout
        rows = {"dictionary.W_dec": self.W_dec * kept}
        return None, functional_call(_Encoding(self), rows, (x, steps))
