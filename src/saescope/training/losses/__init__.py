"""What a dictionary is asked to minimise: terms, their sums, and which sum trains which architecture.

A loss never changes the dictionary's function. :func:`loss_for` gives the loss of an architecture; any other, or a
function, can be given to ``train``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saescope.dictionaries import (
    BatchTopK,
    Dictionary,
    Gated,
    JumpReLU,
    MatchingPursuit,
    Matryoshka,
    Ordered,
    ReLU,
    TopK,
)
from saescope.training.losses.auxiliary import (
    AuxK,
    AuxKConfig,
    AuxKLoss,
    GhostGradients,
    MultiTopK,
    PursuitConfig,
    PursuitLoss,
    Reanimation,
    ResidualRevival,
    named_term,
)
from saescope.training.losses.base import (
    Batch,
    Codes,
    Loss,
    LossConfig,
    LossTerms,
    NormalisedSquaredError,
    SquaredError,
    SumOfTerms,
    Term,
)
from saescope.training.losses.gated import GatedConfig, GatedLoss, GateReconstruction
from saescope.training.losses.jumprelu import L0, JumpReLULoss, JumpReLULossConfig, TanhL0
from saescope.training.losses.nested import MatryoshkaLoss, MatryoshkaLossConfig, OrderedConfig, OrderedLoss
from saescope.training.losses.output import FunctionLoss, FunctionTerm, OutputTerm
from saescope.training.losses.sparsity import L1, AnnealedLp, L1Config, L1Loss

# the first that is an ancestor of a class, along its line of inheritance, is its loss
_LOSSES: dict[type[Dictionary], tuple[type, type[Loss]]] = {
    ReLU: (L1Config, L1Loss),
    Gated: (GatedConfig, GatedLoss),
    JumpReLU: (JumpReLULossConfig, JumpReLULoss),
    TopK: (AuxKConfig, AuxKLoss),
    BatchTopK: (AuxKConfig, AuxKLoss),
    Matryoshka: (MatryoshkaLossConfig, MatryoshkaLoss),
    Ordered: (OrderedConfig, OrderedLoss),
    MatchingPursuit: (PursuitConfig, PursuitLoss),
}


def _loss_of(architecture: type[Dictionary]) -> tuple[type, type[Loss]]:
    for cls in architecture.__mro__:
        if cls in _LOSSES:
            return _LOSSES[cls]
    return L1Config, L1Loss


def loss_config_type(architecture: type[Dictionary]) -> type:
    """The config class of the loss that trains an architecture.

    An architecture of which nothing is known gets that of ReLU dictionaries, squared error and L1; with
    ``l1_coefficient = 0`` it is the squared error alone.
    """
    return _loss_of(architecture)[0]


def register_loss(architecture: type[Dictionary], config_type: type, loss_type: type[Loss]) -> None:
    """Make a loss the one that trains an architecture (and those derived from it), in recipes too.

    Args:
        config_type: a dataclass with the loss's settings. loss_type: is called with one such config.
    """
    _LOSSES[architecture] = (config_type, loss_type)


def loss_for(dictionary: Dictionary, settings: Mapping[str, Any] | None = None) -> Loss:
    """The loss that trains this dictionary, with its settings."""
    config_type, loss_type = _loss_of(type(dictionary))
    return loss_type(config_type(**(settings or {})))  # type: ignore[call-arg]


__all__ = [
    "L0",
    "L1",
    "AnnealedLp",
    "AuxK",
    "AuxKConfig",
    "AuxKLoss",
    "Batch",
    "Codes",
    "FunctionLoss",
    "FunctionTerm",
    "GateReconstruction",
    "GatedConfig",
    "GatedLoss",
    "GhostGradients",
    "JumpReLULoss",
    "JumpReLULossConfig",
    "L1Config",
    "L1Loss",
    "Loss",
    "LossConfig",
    "LossTerms",
    "MatryoshkaLoss",
    "MatryoshkaLossConfig",
    "MultiTopK",
    "NormalisedSquaredError",
    "OrderedConfig",
    "OrderedLoss",
    "OutputTerm",
    "PursuitConfig",
    "PursuitLoss",
    "Reanimation",
    "ResidualRevival",
    "SquaredError",
    "SumOfTerms",
    "TanhL0",
    "Term",
    "loss_config_type",
    "loss_for",
    "named_term",
    "register_loss",
]
