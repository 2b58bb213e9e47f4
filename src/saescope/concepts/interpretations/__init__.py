"""What concepts mean: the texts that activate them most, and labels that a language model gives them.

The names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.concepts.interpretations.clients import LLMInterface, OpenAILLM, Role
    from saescope.concepts.interpretations.llm_labels import LLMLabels
    from saescope.concepts.interpretations.sampling import SamplingMethod
    from saescope.concepts.interpretations.scoring import LabelScore
    from saescope.concepts.interpretations.top_inputs import Hit, TopKInputs

_HOMES = {
    "Hit": "saescope.concepts.interpretations.top_inputs",
    "LLMInterface": "saescope.concepts.interpretations.clients",
    "LLMLabels": "saescope.concepts.interpretations.llm_labels",
    "LabelScore": "saescope.concepts.interpretations.scoring",
    "OpenAILLM": "saescope.concepts.interpretations.clients",
    "Role": "saescope.concepts.interpretations.clients",
    "SamplingMethod": "saescope.concepts.interpretations.sampling",
    "TopKInputs": "saescope.concepts.interpretations.top_inputs",
}

__all__ = ["Hit", "LLMInterface", "LLMLabels", "LabelScore", "OpenAILLM", "Role", "SamplingMethod", "TopKInputs"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"saescope.concepts.interpretations has no {name!r}; its public names are {', '.join(__all__)}"
        )
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
