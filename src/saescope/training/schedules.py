"""Quantities that change over a training run, as functions of the step."""

from __future__ import annotations


def lr_factor(step: int, num_steps: int, num_warmup_steps: int, num_decay_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0): linear rise, plateau, linear fall to zero after the last step.

    Either part may be of length 0. Step 0 of a warm-up of n steps has 1/n, the last step of a decay of n steps has 1/n.
    """
    rise = (step + 1) / num_warmup_steps if num_warmup_steps else 1.0
    fall = (num_steps - step) / num_decay_steps if num_decay_steps else 1.0
    return max(0.0, min(1.0, rise, fall))
