"""Whether two dictionaries compute the same: compared on random inputs of several sizes.

Equal means: the same features fire on every token, and no activation and no entry of a reconstruction differs by more than
1e-5 of the largest. Where millions of pre-activations are compared with thresholds, rounding lets one of them fall on the
other side now and then; such a draw is repeated, and a difference in the rule shows in every draw.

B  tokens, d_in  width of the input.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary

_TOLERANCE = 1e-5
_SIZES = (0.1, 1.0, 10.0, 100.0)  # of inputs, in units of b_dec where there is one: thresholds may be anywhere
_MOST_PRE_ACTIVATIONS = 1 << 22  # of a draw
_MOST_NUMBERS_IN_DOUBLE = 1 << 27
_DRAWS = 3


def require_same_function(one: Dictionary, other: Dictionary, what: str) -> str:
    """What was compared, in words.

    Args:
        what: of ``other``, for the error: "written as saelens".

    Raises:
        ValueError: they differ.
    """
    if (one.d_in, one.d_out, one.d_sae) != (other.d_in, other.d_out, other.d_sae):
        raise ValueError(
            f"{what}, the dictionary has d_in, d_out, d_sae = {other.d_in}, {other.d_out}, {other.d_sae} in the place of "
            f"{one.d_in}, {one.d_out}, {one.d_sae}"
        )
    dtype = torch.float64 if one.W_dec.numel() <= _MOST_NUMBERS_IN_DOUBLE else torch.float32
    one, other = (copy.deepcopy(each).to("cpu", dtype) for each in (one, other))
    tokens = max(2, min(256, _MOST_PRE_ACTIVATIONS // one.d_sae))
    for draw in range(_DRAWS):
        x = _inputs(one, tokens, torch.Generator().manual_seed(draw))
        if one.reads_sequences:
            x = x.unflatten(0, (len(_SIZES), -1))  # inputs of a size are a sequence
        with torch.no_grad():
            f, f_other, x_hat, x_hat_other = one.encode(x), other.encode(x), one(x), other(x)
        others = int(((f != 0) != (f_other != 0)).sum())
        if not others:
            break
    fired = int((f != 0).sum())
    if others:
        raise ValueError(
            f"{what}, the dictionary computes something else: on random inputs {others:,} of {fired:,} firings are not "
            "the same"
        )
    worst = max(_difference(f, f_other), _difference(x_hat, x_hat_other))
    if not worst <= _TOLERANCE:
        raise ValueError(
            f"{what}, the dictionary computes something else: on random inputs activations or reconstructions differ by "
            f"{worst:.2g} of the largest; if weights are rounded to a short type, convert with --dtype float32"
        )
    number = f.shape[:-1].numel()
    return (
        f"encode and decode compared on {number} random inputs with {fired:,} firings: the same features fire, and values "
        f"differ by at most {worst:.1g} of the largest"
    )


def _inputs(dictionary: Dictionary, tokens: int, generator: torch.Generator) -> Tensor:
    """Random inputs ``[B, d_in]``: noise of several sizes, around the mean that the dictionary itself takes off."""
    b_dec = dictionary.b_dec.detach()
    unit = float(b_dec.square().mean().sqrt()) or 1.0
    sizes = torch.tensor(_SIZES, dtype=torch.float64).repeat_interleave(-(-tokens // len(_SIZES)))[:, None] * unit
    x = torch.randn(len(sizes), dictionary.d_in, generator=generator, dtype=torch.float64) * sizes
    x = x.to(b_dec.dtype)
    return x + b_dec if dictionary.config.apply_b_dec_to_input else x


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference as a share of the largest entry among inputs of its size."""
    by_size = (len(_SIZES), -1)
    largest = one.abs().reshape(by_size).amax(-1).clamp_min(torch.finfo(one.dtype).tiny)
    return float(((one - other).abs().reshape(by_size).amax(-1) / largest).max())
