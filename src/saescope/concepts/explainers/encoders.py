"""Encoders other than one linear layer: those that ``encoder_module`` names, and modules of a user's own.

An encoder gives pre-activations; the architecture's rule makes codes of them. By name there are multi-layer perceptrons,
``mlp_ln_3`` for layer norm and 3 layers in all: hidden layers keep the width and are added to their input, the last one goes
to the concepts and is normalised too::

    h <- h + ReLU(norm(W h + b))        pre = norm(W h + b)

Attention and convolutions look at several tokens or places at once. Rows ``[n, d]`` have no neighbours: those names are
refused. The names are those of overcomplete 0.3.0 (github.com/KempnerInstitute/overcomplete).

An encoder that is no linear map can not take up the scale of the activations that it was trained on, so it stays in front of
it: ``pre = encoder(s x) / s``.

n  rows, d  activation width, c  concepts.
"""

from __future__ import annotations

import copy
import difflib
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries import Dictionary, DictionaryConfig

NAMES = ("linear", "identity", "mlp_ln_1", "mlp_ln_3", "mlp_bn_1", "mlp_bn_3")
_OF_NEIGHBOURS = ("resnet_1b", "resnet_3b", "attention_1b", "attention_3b")
_NORMS: dict[str, type[nn.Module]] = {"ln": nn.LayerNorm, "bn": nn.BatchNorm1d}


class MLP(nn.Module):
    """Linear layers with a norm after each: ``[n, d]`` to ``[n, c]``."""

    def __init__(self, d: int, c: int, *, num_layers: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Sequential(nn.Linear(d, d), norm(d)) for _ in range(num_layers - 1))
        self.last = nn.Sequential(nn.Linear(d, c), norm(c))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = x + F.relu(layer(x))
        return self.last(x)


def check_encoder(given: nn.Module | str | None, d: int, c: int) -> nn.Module | str | None:
    """``encoder_module`` as it will be built from; None and "linear" are the architecture's own linear layer.

    Raises:
        ValueError: an unknown name, one for other activations, or an identity between different widths.
    """
    if given is None or isinstance(given, nn.Module):
        return given
    if given in _OF_NEIGHBOURS:
        raise ValueError(
            f"encoder_module = {given!r} mixes neighbouring tokens or places, and activations here are rows [n, d] without "
            f"neighbours; choose one of {', '.join(NAMES)}, or give a module from [n, d] to [n, c]"
        )
    if given not in NAMES:
        near = difflib.get_close_matches(str(given), NAMES, n=2, cutoff=0.4) or NAMES
        raise ValueError(f"unknown encoder_module {given!r}; did you mean {' or '.join(near)}?")
    if given == "identity" and d != c:
        raise ValueError(
            f"encoder_module = 'identity' gives one concept per dimension: nb_concepts must be {d}, not {c}"
        )
    return None if given == "linear" else given


def build_encoder(given: nn.Module | str, d: int, c: int) -> nn.Module:
    """A new module; one that was given is copied, so that the user's own is never trained."""
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if given == "identity":
        return nn.Identity()
    found = re.fullmatch(r"mlp_(ln|bn)_(\d)", given)
    assert found is not None
    return MLP(d, c, num_layers=int(found[2]), norm=_NORMS[found[1]])


class Encoded(Dictionary):
    """A dictionary that is encoded by a module (to be put before an architecture as a base class).

    Attributes:
        encoder: ``[n, d]`` to ``[n, c]``. input_scale: a scalar, s above.
    """

    encoder: nn.Module
    input_scale: Tensor

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        self.encoder_rows = self.b_enc = None
        self.register_buffer("input_scale", torch.ones(()))

    @property
    def W_enc(self) -> Tensor:
        raise ValueError("the encoder of this dictionary is a module, not one matrix")

    def pre_activations(self, x: Tensor) -> Tensor:
        made: Any = self.encoder(self.encoder_input(x) * self.input_scale)
        pre = made[0] if isinstance(made, tuple) else made  # modules of overcomplete give (pre, codes)
        wanted = (*x.shape[:-1], self.d_sae)
        if not isinstance(pre, Tensor) or pre.shape != wanted:
            shape = list(pre.shape) if isinstance(pre, Tensor) else type(pre).__name__
            raise ValueError(f"encoder_module should give pre-activations of shape {list(wanted)}, but gave {shape}")
        return pre / self.input_scale

    @torch.no_grad()
    def fold_scale(self, scale_in: float, scale_out: float | None = None) -> None:
        super().fold_scale(scale_in, scale_out)
        self.input_scale.mul_(scale_in)


def needs_several_rows(module: nn.Module) -> bool:
    """Whether a batch of one row can not be trained on."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
