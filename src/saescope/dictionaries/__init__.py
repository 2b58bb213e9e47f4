"""Dictionaries: one file per architecture, the contract in ``base.py``, sparse codes, and the form on disk."""

from saescope.dictionaries.base import Dictionary, DictionaryConfig, architecture, architectures, register
from saescope.dictionaries.codes import Firings, SparseCodes
from saescope.dictionaries.relu import ReLU
from saescope.dictionaries.saving import load_dictionary, read_metadata, save_dictionary
from saescope.dictionaries.topk import TopK, TopKConfig

__all__ = [
    "Dictionary",
    "DictionaryConfig",
    "Firings",
    "ReLU",
    "SparseCodes",
    "TopK",
    "TopKConfig",
    "architecture",
    "architectures",
    "load_dictionary",
    "read_metadata",
    "register",
    "save_dictionary",
]
