"""The network under study: load it, name a place in it, read there, write there.

The names are imported on first use: ``saescope.models.bundled`` can be used without paying for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "LanguageModel": "saescope.models.language_model",
    "ModelLoadError": "saescope.models.loading",
    "Unembedding": "saescope.models.language_model",
    "HookPoint": "saescope.models.hook_points",
    "HookPointError": "saescope.models.hook_points",
}

__all__ = ["HookPoint", "HookPointError", "LanguageModel", "ModelLoadError", "Unembedding"]

if TYPE_CHECKING:
    from saescope.models.hook_points import HookPoint, HookPointError
    from saescope.models.language_model import LanguageModel, Unembedding
    from saescope.models.loading import ModelLoadError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope.models has no {name!r}; its public names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
