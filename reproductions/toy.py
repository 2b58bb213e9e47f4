"""What the toy trainings have in common: plain Adam on data as it is, and a penalty that finds its own coefficient.

The data are small, known and nearly centred, and published coefficients are in their units. So nothing is normalised,
``b_dec`` starts at 0, gradients are not clipped, and the learning rate is constant until it falls to zero over the last
fifth of the steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from saescope.activations.synthetic import SyntheticData, SyntheticStream, fvu, mean_l0
from saescope.dictionaries import Dictionary
from saescope.training import LossTerms, TrainingConfig, train
from saescope.training.losses import L1, Batch, Loss, SquaredError, SumOfTerms

NUM_HELD_OUT = 20_000


def truth(data_seed: int) -> torch.Generator:
    """The generator that atoms are drawn from.

    Its seed is far from those of dictionaries: a dictionary begins with normalised Gaussian rows of its own seed, and
    with the same number it would begin at the atoms.
    """
    return torch.Generator().manual_seed(1_000_003 + data_seed)


def toy_config(num_steps: int, batch_size: int, lr: float, **more: Any) -> TrainingConfig:
    """The settings that all studies share."""
    return TrainingConfig(
        num_tokens=num_steps * batch_size,
        batch_size_tokens=batch_size,
        lr=lr,
        num_warmup_steps=0,
        decay_share=0.2,
        max_grad_norm=None,
        normalization="none",
        b_dec_init="zero",
        log_every_n_steps=num_steps,
        **more,
    )


def trained(
    dictionary: Dictionary,
    data: SyntheticData,
    config: TrainingConfig,
    loss: Loss,
    *,
    seed: int,
    fixed_tokens: int | None = None,
    fixed_seed: int = 0,
) -> Dictionary:
    """Train on fresh tokens, or on a fixed data set (the same for all ``seed``) in an order of its own."""
    if fixed_tokens is None:
        stream = SyntheticStream(data, config.batch_size_tokens, seed=seed)
    else:
        stream = SyntheticStream(
            data, config.batch_size_tokens, seed=fixed_seed, fixed_tokens=fixed_tokens, order_seed=seed
        )
    return train(dictionary, stream, config, loss=loss).dictionary


@torch.no_grad()
def held_out_scores(dictionary: Dictionary, x: Tensor) -> dict[str, float]:
    """L0, FVU and dead latents on tokens ``[B, d]`` that training has not seen."""
    f = dictionary.encode(x)
    return {
        "l0": mean_l0(f),
        "fvu": fvu(x, dictionary.decode(f, x)),
        "dead": float((f == 0).all(0).sum()),
    }


class SteeredL1(Loss):
    """Squared error plus an L1 penalty whose coefficient is steered until a given number of features fires.

    After each step the coefficient moves by a few per mille towards more or less sparsity; while the learning rate
    falls to zero it stands still.
    """

    def __init__(self, target_l0: float, coefficient: float = 0.1, *, rate: float = 0.005, until: float = 0.8) -> None:
        self.target_l0, self.coefficient, self.rate, self.until = target_l0, coefficient, rate, until
        self._sum = SumOfTerms(
            {"mse": (SquaredError(), 1.0), "l1": (L1(decoder_norm=False), lambda _: self.coefficient)}
        )
        self._l0: float | None = None

    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        terms = self._sum(dictionary, batch)
        assert terms.f is not None
        self._l0 = float(terms.f.count_nonzero()) / len(batch.x)
        return terms

    def after_step(self, batch: Batch) -> None:
        if self._l0 is not None and batch.progress < self.until:
            error = max(-1.0, min(1.0, self._l0 / self.target_l0 - 1))
            self.coefficient *= math.exp(self.rate * error)
