"""Analysis: what every feature does, into the store."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"AnalysisConfig": "saescope.analysis.features", "analyze": "saescope.analysis.features"}
__all__ = ["AnalysisConfig", "analyze"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope.analysis has no {name!r}")
    return getattr(import_module(_HOMES[name]), name)
