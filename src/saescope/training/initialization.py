"""Where a new dictionary begins, judged on a sample of normalised activations.

* ``b_dec``: the sample's mean, its geometric median (Bricken et al. 2023; Gao et al. 2024), or zero;
* decoder rows: random directions, or data points less ``b_dec``; the encoder starts equal to them;
* their norm, where it is free: ``decoder_init_norm``;
* the size of the encoder (of both matrices where decoder norms are free): as it is, or searched for on a grid so that
  the first reconstruction is as good as it can be. Unit rows in both overshoot where many features fire at once.

N  activations in the sample, d  width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Archetypal, Dictionary, Transcoder

if TYPE_CHECKING:
    from saescope.training.config import TrainingConfig

B_DEC_INITS = ("mean", "geometric_median", "zero")
DECODER_INITS = ("random", "data")
_NUM_SEARCHED = 4096  # activations that the size is searched on


@torch.no_grad()
def initialize(dictionary: Dictionary, x: Tensor, target: Tensor, config: TrainingConfig, *, unit_norm: bool) -> None:
    """Set up a new dictionary on a sample, ``[N, d_in]`` and ``[N, d_out]``, both normalised.

    Raises:
        ValueError: fewer activations than rows or points to be drawn from them.
    """
    generator = torch.Generator().manual_seed(config.init_seed)
    drawn = dictionary.config.num_points if isinstance(dictionary, Archetypal) else dictionary.d_sae
    draws = isinstance(dictionary, Archetypal) or config.decoder_init == "data"
    if draws and len(target) < drawn:  # before anything is written
        raise ValueError(
            f"{drawn} {'points' if isinstance(dictionary, Archetypal) else 'rows'} can not be drawn from {len(target)} "
            "activations; raise num_normalization_tokens, or draw fewer"
        )
    if config.b_dec_init == "mean":
        dictionary.b_dec.copy_(target.double().mean(0))
    elif config.b_dec_init == "geometric_median":
        dictionary.b_dec.copy_(geometric_median(target))
    if isinstance(dictionary, Archetypal):
        dictionary.take_points(target, generator)
    elif config.decoder_init == "data":
        chosen = torch.randperm(len(target), generator=generator)[: dictionary.d_sae].to(target.device)
        dictionary.W_dec.copy_(F.normalize(target[chosen] - dictionary.b_dec, dim=-1))
        if unit_norm:
            dictionary.normalise_decoder()
        _encode_as_decoded(dictionary)
    if config.decoder_init_norm is not None:
        dictionary.normalise_decoder()
        dictionary.W_dec.mul_(config.decoder_init_norm)
        _encode_as_decoded(dictionary)
    if config.search_init_norm:
        search_norm(dictionary, x[:_NUM_SEARCHED], target[:_NUM_SEARCHED], unit_norm=unit_norm)


def _encode_as_decoded(dictionary: Dictionary) -> None:
    """Set the encoder to the decoder; a transcoder's lies in another space and stays."""
    if dictionary.encoder_rows is not None and not isinstance(dictionary, Transcoder):
        dictionary.encoder_rows.copy_(dictionary.W_dec)


def geometric_median(x: Tensor, *, tolerance: float = 1e-7, max_iterations: int = 200) -> Tensor:
    """The point with the smallest sum of distances to the rows of ``x``, ``[N, d]``; float64, by Weiszfeld's
    iteration."""
    x = x.double()
    point = x.mean(0)
    for _ in range(max_iterations):
        distances = (x - point).norm(dim=-1).clamp_min(1e-12)
        moved = (x / distances[:, None]).sum(0) / (1 / distances).sum()
        if (moved - point).norm() <= tolerance * moved.norm().clamp_min(1e-12):
            return moved
        point = moved
    return point


@torch.no_grad()
def search_norm(dictionary: Dictionary, x: Tensor, target: Tensor, *, unit_norm: bool) -> float:
    """Scale the encoder by the factor that reconstructs a sample best, and give it back.

    With free decoder norms the decoder is scaled too. 50 factors between 0.01 and 10 are tried, then 20 around the
    best.
    """
    if dictionary.encoder_rows is None:
        return 1.0  # matching pursuit has nothing to scale
    encoder, decoder = dictionary.encoder_rows.clone(), dictionary.W_dec.clone()
    free = not unit_norm and not isinstance(dictionary, Archetypal)

    def error_at(factor: float) -> float:
        assert dictionary.encoder_rows is not None
        dictionary.encoder_rows.copy_(encoder * factor)
        if free:
            dictionary.W_dec.copy_(decoder * factor)
        _, f = dictionary.encode_in_training(x)
        return float((dictionary.decode(f, x) - target).square().sum(-1).double().mean())

    coarse = torch.logspace(-2, 1, 50, dtype=torch.float64).tolist()
    errors = [error_at(factor) for factor in coarse]
    best = min(range(50), key=errors.__getitem__)
    low, high = coarse[max(0, best - 1)], coarse[min(49, best + 1)]
    fine = torch.linspace(low, high, 20, dtype=torch.float64).tolist()
    found = min([coarse[best], *fine], key=error_at)
    error_at(found)
    return found
