"""Foreign formats of feature sets, one folder each: Neuronpedia's bulk layout, a dump of a Language-Model-SAEs database.

A reader gives a `FeatureSet`: records of the store, read lazily, with `write_to(store)`. A writer streams the pages of a
store into files. The names below are imported on first use: importing this room loads no numpy, no torch, no pymongo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.formats.feature_set import FeatureSet
    from saescope.formats.lm_saes.reading import read_lm_saes
    from saescope.formats.lm_saes.texts import DatasetTexts, SamplePoint, TextSource, TokenText
    from saescope.formats.neuronpedia.export import NeuronpediaExport, export_neuronpedia
    from saescope.formats.neuronpedia.layout import neuronpedia_url
    from saescope.formats.neuronpedia.reading import read_neuronpedia

_HOMES = {
    "FeatureSet": "saescope.formats.feature_set",
    "DatasetTexts": "saescope.formats.lm_saes.texts",
    "SamplePoint": "saescope.formats.lm_saes.texts",
    "TextSource": "saescope.formats.lm_saes.texts",
    "TokenText": "saescope.formats.lm_saes.texts",
    "read_lm_saes": "saescope.formats.lm_saes.reading",
    "NeuronpediaExport": "saescope.formats.neuronpedia.export",
    "export_neuronpedia": "saescope.formats.neuronpedia.export",
    "neuronpedia_url": "saescope.formats.neuronpedia.layout",
    "read_neuronpedia": "saescope.formats.neuronpedia.reading",
}

__all__ = [
    "DatasetTexts",
    "FeatureSet",
    "NeuronpediaExport",
    "SamplePoint",
    "TextSource",
    "TokenText",
    "export_neuronpedia",
    "neuronpedia_url",
    "read_lm_saes",
    "read_neuronpedia",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope.formats has no {name!r}; its public names are {', '.join(_HOMES)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
