"""Quantities that change over a training run, as functions of the step: learning rate, penalty, number of features.

A factor rises linearly, follows a shape, and may fall to zero at the end::

    rise     (step + 1) / num_warmup_steps
    shape    constant; linear or cosine from 1 to ``floor``; cosine_restarts, which does so ``num_cycles`` times
    fall     linear to zero over the last ``num_decay_steps``

Step 0 of a warm-up of n steps has 1/n, the last step of a decay of n steps has 1/n, and any part may have length 0.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Shape = Literal["constant", "linear", "cosine", "cosine_restarts"]
RampShape = Literal["linear", "cosine", "exponential"]


def factor(
    step: int,
    num_steps: int,
    *,
    num_warmup_steps: int = 0,
    shape: Shape = "constant",
    num_cycles: int = 1,
    floor: float = 0.0,
    num_decay_steps: int = 0,
) -> float:
    """Share of the peak value at ``step`` (from 0) of ``num_steps``."""
    rise = (step + 1) / num_warmup_steps if num_warmup_steps else 1.0
    fall = (num_steps - step) / num_decay_steps if num_decay_steps else 1.0
    done = max(0, step - num_warmup_steps + 1) / max(1, num_steps - num_warmup_steps)  # 1 would be past the last step
    done = min(done, 1.0)
    if shape == "constant":
        level = 1.0
    elif shape == "linear":
        level = floor + (1 - floor) * (1 - done)
    else:
        turn = done * (num_cycles if shape == "cosine_restarts" else 1)
        turn = turn % 1.0 if done < 1 else 1.0
        level = floor + (1 - floor) * (1 + math.cos(math.pi * turn)) / 2
    return max(0.0, min(1.0, rise, fall, level))


def ramp(progress: float, start: float, end: float, share: float, shape: RampShape = "linear") -> float:
    """From ``start`` to ``end`` over the first ``share`` of a run (``progress`` in [0, 1]), then ``end``."""
    if progress >= share:
        return end
    done = progress / share
    if shape == "exponential":
        return start * (end / start) ** done
    return end + (start - end) * ((1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done)


def check_shape(shape: str, num_cycles: int, floor: float) -> None:
    """ValueError for a schedule that does not exist."""
    if shape not in get_args(Shape):
        raise ValueError(f"a schedule is one of {', '.join(get_args(Shape))}, not {shape!r}")
    if num_cycles < 1 or not 0 <= floor <= 1:
        raise ValueError(f"num_cycles must be at least 1 and the floor in [0, 1], got {num_cycles} and {floor}")
