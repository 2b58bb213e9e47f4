"""Codes from the kernels: which features fire on a token, without a dense ``[B, d_sae]`` tensor.

Known are the rules of TopK (the k largest) and of ReLU, JumpReLU and BatchTopK (all above a threshold). A class has one of
these rules if nothing between it and that class defines its encoder anew: transcoders, crosscoders and archetypal
dictionaries have their host's, AbsTopK and a class of a user's own do not have TopK's.

B  tokens, d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries.base import Dictionary
from saescope.dictionaries.batch_topk import BatchTopK
from saescope.dictionaries.jumprelu import JumpReLU
from saescope.dictionaries.relu import ReLU
from saescope.dictionaries.topk import TopK
from saescope.kernels import FlatCodes, kernels_for

WORTH_IT = 1 << 26  # tokens x width x features below which calling kernels costs more than they save
MANY = 1 / 6  # share of the features; a k above it is found faster in dense rows
_MOST_FIRINGS = 1 / 16  # share of the features beyond which dense products are faster
_ENCODER = ("encoder_input", "pre_activations", "activate", "strongest", "encode")  # what a rule is defined by

Rule = Callable[[Any, Any, Tensor, Tensor, Tensor], FlatCodes | None]


def _largest(kernels: Any, dictionary: TopK, x: Tensor, rows: Tensor, bias: Tensor) -> FlatCodes:
    return kernels.topk(x, rows, bias, dictionary.config.k)


def _above_zero(kernels: Any, dictionary: ReLU, x: Tensor, rows: Tensor, bias: Tensor) -> FlatCodes | None:
    return kernels.above(x, rows, bias, torch.zeros_like(bias), most_firings(dictionary, x))


def _above_threshold(
    kernels: Any, dictionary: JumpReLU | BatchTopK, x: Tensor, rows: Tensor, bias: Tensor
) -> FlatCodes | None:
    floor = dictionary.threshold.detach().expand_as(bias)
    return None if floor.isnan().any() else kernels.above(x, rows, bias, floor, most_firings(dictionary, x))


_RULES: dict[type[Dictionary], Rule] = {
    TopK: _largest,
    ReLU: _above_zero,
    JumpReLU: _above_threshold,
    BatchTopK: _above_threshold,
}


def most_firings(dictionary: Dictionary, x: Tensor) -> int:
    """Firings on all of ``x`` beyond which dense products are faster."""
    return max(1, int(_MOST_FIRINGS * dictionary.d_sae * len(x)))


def rule_of(dictionary: Dictionary) -> Rule | None:
    """The rule that the kernels know for a dictionary, or None."""
    kind = type(dictionary)
    for known, rule in _RULES.items():
        if isinstance(dictionary, known):
            same = all(getattr(kind, name, None) is getattr(known, name, None) for name in _ENCODER)
            return rule if same else None
    return None


@torch.no_grad()
def encode_with(kernels: Any, dictionary: Dictionary, x: Tensor) -> FlatCodes | None:
    """Codes of ``x``, ``[B, d_in]``, as at inference; None where the kernels have no rule or too many features fire."""
    rule, rows, bias = rule_of(dictionary), dictionary.encoder_rows, dictionary.b_enc
    if rule is None or rows is None or bias is None:
        return None
    return rule(kernels, dictionary, dictionary.encoder_input(x), rows.detach(), bias.detach())


def encode_fast(dictionary: Dictionary, x: Tensor) -> FlatCodes | None:
    """Codes of ``x``, ``[B, d_in]``, from the kernels where that pays; None where a dense pass is to be made.

    Nothing is differentiable here: with gradients asked for, the dense pass is the one.
    """
    k = getattr(dictionary.config, "k", 0)
    pays = len(x) * dictionary.d_in * dictionary.d_sae >= WORTH_IT and k <= MANY * dictionary.d_sae
    differentiable = torch.is_grad_enabled() and (x.requires_grad or dictionary.W_dec.requires_grad)
    if not pays or differentiable or x.dtype != dictionary.W_dec.dtype or rule_of(dictionary) is None:
        return None
    kernels = kernels_for(x)
    return None if kernels is None else encode_with(kernels, dictionary, x)
