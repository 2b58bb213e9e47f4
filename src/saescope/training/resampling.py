"""Resampling of dead features: they start again from inputs that the dictionary rebuilds badly.

Bricken et al. 2023, "Towards Monosemanticity": every so often each feature that has been silent gets an input of the
current batch, drawn with probability proportional to its squared loss; its decoder row becomes that input's direction,
its encoder row the same at 0.2 times the mean norm of living ones, biases and thresholds as at first, and Adam forgets it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Archetypal, Crosscoder, Dictionary, Transcoder
from saescope.training.optimizer import UnitNormAdam

_ENCODER_SHARE = 0.2


def check_can_resample(dictionary: Dictionary) -> None:
    """ValueError for architectures whose rows can not be set to a direction of the input."""
    if dictionary.encoder_rows is None or isinstance(dictionary, Archetypal | Transcoder | Crosscoder):
        raise ValueError(f"features of a {dictionary.architecture} dictionary can not be resampled")


@torch.no_grad()
def resample(
    dictionary: Dictionary, optimizer: UnitNormAdam, x: Tensor, dead: Tensor, generator: torch.Generator
) -> Tensor:
    """Start dead features anew from inputs ``x``, ``[B, d_in]``; returns which, ``[at most B]``."""
    assert dictionary.encoder_rows is not None
    rows = dead.nonzero().squeeze(-1)[: len(x)]
    if not len(rows) or bool(dead.all()):
        return rows[:0]  # without living features there is no size to go by
    losses = (dictionary(x) - x).square().sum(-1).double().cpu()
    weights = losses.square() + 1e-12 * losses.square().max().clamp_min(1e-30)
    chosen = torch.multinomial(weights, len(rows), generator=generator).to(x.device)
    directions = F.normalize(x[chosen] - dictionary.b_dec, dim=-1)
    dictionary.W_dec[rows] = directions
    dictionary.encoder_rows[rows] = directions * (_ENCODER_SHARE * dictionary.encoder_rows[~dead].norm(dim=-1).mean())
    dictionary.reset_features(rows)
    optimizer.forget(rows)
    return rows
