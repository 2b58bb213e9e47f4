"""Analysis: what every feature does, into the store."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AnalysisConfig": "saescope.analysis.config",
    "CachedText": "saescope.analysis.reading",
    "Collected": "saescope.analysis.collecting",
    "FeatureStatistics": "saescope.analysis.statistics",
    "LiveText": "saescope.analysis.reading",
    "StatisticsConfig": "saescope.analysis.statistics",
    "Text": "saescope.analysis.reading",
    "TokenBlock": "saescope.analysis.statistics",
    "analyze": "saescope.analysis.features",
    "collect": "saescope.analysis.collecting",
    "refresh_logits": "saescope.analysis.features",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope.analysis has no {name!r}")
    return getattr(import_module(_HOMES[name]), name)
