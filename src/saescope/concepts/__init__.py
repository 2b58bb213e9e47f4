"""Concepts of a split model, by the names of interpreto: split, fit, encode, decode, interpret, differentiate.

A thin layer over the other rooms for those who come with scripts in that style, and for classifiers. The reference of what
each name does, and of what differs from the original, is ``docs/concepts.md``. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.concepts.explainers import (
        BatchTopKSAE,
        BatchTopKSAEConcepts,
        JumpReLUSAE,
        JumpReLUSAEConcepts,
        MpSAE,
        MpSAEConcepts,
        SAEExplainer,
        SAELossClasses,
        TopKSAE,
        TopKSAEConcepts,
        VanillaSAE,
        VanillaSAEConcepts,
    )
    from saescope.concepts.gradients import concept_output_gradient
    from saescope.concepts.interpretations import LLMLabels, OpenAILLM, TopKInputs
    from saescope.concepts.splitting import (
        ActivationGranularity,
        GranularityAggregationStrategy,
        ModelWithSplitPoints,
    )

_ROOMS = {
    "saescope.concepts.splitting": ("ActivationGranularity", "GranularityAggregationStrategy", "ModelWithSplitPoints"),
    "saescope.concepts.explainers": (
        "BatchTopKSAE",
        "BatchTopKSAEConcepts",
        "JumpReLUSAE",
        "JumpReLUSAEConcepts",
        "MpSAE",
        "MpSAEConcepts",
        "SAEExplainer",
        "SAELossClasses",
        "TopKSAE",
        "TopKSAEConcepts",
        "VanillaSAE",
        "VanillaSAEConcepts",
    ),
    "saescope.concepts.gradients": ("concept_output_gradient",),
    "saescope.concepts.interpretations": ("LLMLabels", "OpenAILLM", "TopKInputs"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "ActivationGranularity",
    "BatchTopKSAE",
    "BatchTopKSAEConcepts",
    "GranularityAggregationStrategy",
    "JumpReLUSAE",
    "JumpReLUSAEConcepts",
    "LLMLabels",
    "ModelWithSplitPoints",
    "MpSAE",
    "MpSAEConcepts",
    "OpenAILLM",
    "SAEExplainer",
    "SAELossClasses",
    "TopKInputs",
    "TopKSAE",
    "TopKSAEConcepts",
    "VanillaSAE",
    "VanillaSAEConcepts",
    "concept_output_gradient",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope.concepts has no {name!r}; its public names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
