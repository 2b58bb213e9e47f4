"""saescope: train sparse autoencoders, measure them, see what each feature means.

The names below are the public surface. They are imported on first use, so that ``import saescope`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from saescope.activations import ActivationStream, TokenWindows, WindowConfig, read_documents
    from saescope.analysis import analyze
    from saescope.dictionaries import Dictionary, ReLU, TopK, load_dictionary
    from saescope.evaluation import evaluate
    from saescope.models import LanguageModel
    from saescope.store import Store
    from saescope.training import TrainingConfig, train
    from saescope.web import write_report

_HOMES = {
    "LanguageModel": "saescope.models",
    "Dictionary": "saescope.dictionaries",
    "ReLU": "saescope.dictionaries",
    "TopK": "saescope.dictionaries",
    "WindowConfig": "saescope.activations",
    "load_dictionary": "saescope.dictionaries",
    "TrainingConfig": "saescope.training",
    "train": "saescope.training",
    "TokenWindows": "saescope.activations",
    "ActivationStream": "saescope.activations",
    "read_documents": "saescope.activations",
    "evaluate": "saescope.evaluation",
    "analyze": "saescope.analysis",
    "Store": "saescope.store",
    "write_report": "saescope.web",
}

__all__ = [
    "ActivationStream",
    "Dictionary",
    "LanguageModel",
    "ReLU",
    "Store",
    "TokenWindows",
    "TopK",
    "TrainingConfig",
    "WindowConfig",
    "__version__",
    "analyze",
    "evaluate",
    "load_dictionary",
    "read_documents",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"saescope has no {name!r}; its public names are {', '.join(_HOMES)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
