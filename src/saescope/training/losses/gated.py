"""The loss of Gated dictionaries (Rajamanoharan et al. 2024, arXiv 2404.16014).

    |x - x_hat|^2 + lambda sum ReLU(u + b_gate) + |x - (ReLU(u + b_gate) stop(W_dec) + stop(b_dec))|^2

The auxiliary term teaches the gate to know what matters. It passes through a frozen copy of the decoder: no gradient of
it reaches ``W_dec``, nor ``b_dec`` as the decoder's bias (``b_dec`` as what is taken off the encoder's input gets its
share, as in the paper). With ``p_end`` the penalty is annealed, as in Karvonen et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saescope.dictionaries import Dictionary, Gated
from saescope.training.losses.base import (
    Batch,
    Codes,
    SumOfTerms,
    Term,
    merged,
    reconstruction_term,
    require,
    squared_error,
)
from saescope.training.losses.sparsity import AnnealedConfig


@dataclass(frozen=True, kw_only=True)
class GatedConfig(AnnealedConfig):
    """Settings of the Gated loss; ``l1_coefficient`` is that of the gate."""


class GateReconstruction(Term):
    """Squared error of the reconstruction from the gate's activations through a frozen decoder."""

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        frozen = gate_activations(dictionary, codes) @ dictionary.W_dec.detach() + dictionary.offset(batch.x).detach()
        return squared_error(frozen, batch.target)


class GatedLoss(SumOfTerms):
    """Reconstruction, penalty on the gate, and the auxiliary reconstruction from it."""

    def __init__(self, config: GatedConfig) -> None:
        self.config = config
        error = {config.reconstruction: (reconstruction_term(config.reconstruction), 1.0)}
        gate = {"gate": (GateReconstruction(), 1.0)}
        super().__init__(merged(error, config.penalty(gate_activations), gate, config.extras()))


def gate_activations(dictionary: Dictionary, codes: Codes) -> Tensor:
    require(isinstance(dictionary, Gated), dictionary, "a loss on the gate", ["gated"])
    assert isinstance(dictionary, Gated)
    assert codes.pre is not None
    return dictionary.gate_activations(codes.pre)
