"""The data of three studies on penalties, and the ReLU dictionary that two of them compare with.

64 random unit atoms in 32 dimensions, each on with probability 0.05 and a magnitude of about 1: |N(1, 0.3)|.
"""

from __future__ import annotations

import torch

from reproductions.study import Values
from reproductions.toy import NUM_HELD_OUT, held_out_scores, toy_config, trained, truth
from saescope.activations.synthetic import (
    Bernoulli,
    FoldedNormal,
    SyntheticData,
    constant_probabilities,
    matched_cosine,
    random_atoms,
    random_baseline,
    shrinkage,
)
from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU
from saescope.training.losses import L1Config, L1Loss, Loss

D, N = 32, 64
COEFFICIENTS = (0.05, 0.1, 0.2, 0.35, 0.5)


def sparse_data(data_seed: int) -> SyntheticData:
    """The data of a seed; their true L0 is 3.2."""
    firing = Bernoulli(constant_probabilities(N, 0.05))
    return SyntheticData(random_atoms(N, D, truth(data_seed)), firing, FoldedNormal(mean=1.0, sd=0.3))


def learned(
    dictionary: Dictionary,
    loss: Loss,
    data_seed: int,
    seed: int,
    num_steps: int,
    lr_factors: dict[str, float] | None = None,
) -> Values:
    """Train on fresh tokens and score."""
    data = sparse_data(data_seed)
    config = toy_config(num_steps, 512, 1e-3, lr_factors=lr_factors or {})
    trained(dictionary, data, config, loss, seed=1000 * data_seed + seed)
    x = data.held_out(NUM_HELD_OUT).x
    with torch.no_grad():
        gamma = shrinkage(x, dictionary(x))
    truth_cosine = matched_cosine(dictionary.W_dec, data.atoms).mean
    return {**held_out_scores(dictionary, x), "gamma": gamma, "truth": truth_cosine}


def learned_relu(data_seed: int, seed: int, coefficient: float, p_end: float | None = None) -> Values:
    """A ReLU dictionary with an L1 penalty, or one that is annealed to p_end."""
    relu = ReLU(DictionaryConfig(d_in=D, d_sae=N), seed=seed)
    penalty = L1Config(l1_coefficient=coefficient, decoder_norm=False, warmup_share=0.1, p_end=p_end)
    return learned(relu, L1Loss(penalty), data_seed, seed, 3000)


def random_scores(data_seed: int) -> Values:
    """The cosine of random dictionaries with the truth."""
    atoms = sparse_data(data_seed).atoms
    return {"truth": random_baseline(lambda rows: matched_cosine(rows, atoms).mean, N, D).mean}
