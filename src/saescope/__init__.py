"""saescope: train sparse autoencoders, measure them, see what each feature means.

The names below are the public surface. They are imported on first use, so that ``import saescope`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from saescope.activations import (
        ActivationStream,
        CachedActivations,
        TokenWindows,
        WindowConfig,
        read_documents,
        write_cache,
    )
    from saescope.analysis import analyze
    from saescope.dictionaries import (
        AbsTopK,
        BatchTopK,
        Dictionary,
        DictionaryConfig,
        Gated,
        JumpReLU,
        MatchingPursuit,
        Matryoshka,
        Ordered,
        ReLU,
        TopK,
        archetypal,
        architecture,
        architectures,
        crosscoder,
        load_dictionary,
        register,
        save_dictionary,
        transcoder,
    )
    from saescope.evaluation import evaluate
    from saescope.formats.loading import convert, load
    from saescope.formats.sae_alias import SAE
    from saescope.interventions import (
        Ablate,
        Add,
        Clamp,
        Intervention,
        ProjectOut,
        Scale,
        Site,
        Splice,
        Where,
        read_features,
    )
    from saescope.models import LanguageModel
    from saescope.store import Store
    from saescope.training import Run, TrainingBatch, TrainingConfig, register_loss, train, train_many
    from saescope.web import write_report

_HOMES = {
    "AbsTopK": "saescope.dictionaries",
    "BatchTopK": "saescope.dictionaries",
    "Dictionary": "saescope.dictionaries",
    "DictionaryConfig": "saescope.dictionaries",
    "Gated": "saescope.dictionaries",
    "JumpReLU": "saescope.dictionaries",
    "MatchingPursuit": "saescope.dictionaries",
    "Matryoshka": "saescope.dictionaries",
    "Ordered": "saescope.dictionaries",
    "ReLU": "saescope.dictionaries",
    "TopK": "saescope.dictionaries",
    "archetypal": "saescope.dictionaries",
    "architecture": "saescope.dictionaries",
    "architectures": "saescope.dictionaries",
    "crosscoder": "saescope.dictionaries",
    "load_dictionary": "saescope.dictionaries",
    "register": "saescope.dictionaries",
    "save_dictionary": "saescope.dictionaries",
    "transcoder": "saescope.dictionaries",
    "Run": "saescope.training",
    "TrainingBatch": "saescope.training",
    "TrainingConfig": "saescope.training",
    "register_loss": "saescope.training",
    "train": "saescope.training",
    "train_many": "saescope.training",
    "LanguageModel": "saescope.models",
    "WindowConfig": "saescope.activations",
    "TokenWindows": "saescope.activations",
    "ActivationStream": "saescope.activations",
    "CachedActivations": "saescope.activations",
    "write_cache": "saescope.activations",
    "read_documents": "saescope.activations",
    "evaluate": "saescope.evaluation",
    "SAE": "saescope.formats.sae_alias",
    "convert": "saescope.formats.loading",
    "load": "saescope.formats.loading",
    "Ablate": "saescope.interventions",
    "Add": "saescope.interventions",
    "Clamp": "saescope.interventions",
    "Intervention": "saescope.interventions",
    "ProjectOut": "saescope.interventions",
    "Scale": "saescope.interventions",
    "Site": "saescope.interventions",
    "Splice": "saescope.interventions",
    "Where": "saescope.interventions",
    "read_features": "saescope.interventions",
    "analyze": "saescope.analysis",
    "Store": "saescope.store",
    "write_report": "saescope.web",
}

__all__ = [
    "SAE",
    "Ablate",
    "AbsTopK",
    "ActivationStream",
    "Add",
    "BatchTopK",
    "CachedActivations",
    "Clamp",
    "Dictionary",
    "DictionaryConfig",
    "Gated",
    "Intervention",
    "JumpReLU",
    "LanguageModel",
    "MatchingPursuit",
    "Matryoshka",
    "Ordered",
    "ProjectOut",
    "ReLU",
    "Run",
    "Scale",
    "Site",
    "Splice",
    "Store",
    "TokenWindows",
    "TopK",
    "TrainingBatch",
    "TrainingConfig",
    "Where",
    "WindowConfig",
    "__version__",
    "analyze",
    "archetypal",
    "architecture",
    "architectures",
    "convert",
    "crosscoder",
    "evaluate",
    "load",
    "load_dictionary",
    "read_documents",
    "read_features",
    "register",
    "register_loss",
    "save_dictionary",
    "train",
    "train_many",
    "transcoder",
    "write_cache",
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
