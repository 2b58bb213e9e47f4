"""Dictionaries: one file per architecture, the contract in ``base.py``, sparse codes, and the form on disk."""

from saescope.dictionaries.abs_topk import AbsTopK
from saescope.dictionaries.archetypal import Archetypal, archetypal
from saescope.dictionaries.base import Dictionary, DictionaryConfig, architecture, architectures, register
from saescope.dictionaries.batch_topk import BatchTopK, BatchTopKConfig
from saescope.dictionaries.codes import Firings, SparseCodes
from saescope.dictionaries.crosscoder import Crosscoder, LatentScaling, crosscoder, latent_scaling
from saescope.dictionaries.gated import Gated
from saescope.dictionaries.group_max import GroupMax
from saescope.dictionaries.jumprelu import JumpReLU, JumpReLUConfig
from saescope.dictionaries.matching_pursuit import MatchingPursuit, MatchingPursuitConfig, Pursuit
from saescope.dictionaries.matryoshka import Matryoshka, MatryoshkaConfig
from saescope.dictionaries.ordered import Ordered
from saescope.dictionaries.relu import ReLU
from saescope.dictionaries.saving import load_dictionary, read_metadata, save_dictionary
from saescope.dictionaries.temporal import Temporal, TemporalConfig
from saescope.dictionaries.topk import TopK, TopKConfig
from saescope.dictionaries.transcoder import Transcoder, transcoder

for _host in (ReLU, Gated, JumpReLU, TopK, AbsTopK, BatchTopK, Matryoshka, Ordered, GroupMax):
    archetypal(_host)
    transcoder(_host)
    transcoder(_host, skip=True)
    crosscoder(_host)

__all__ = [
    "AbsTopK",
    "Archetypal",
    "BatchTopK",
    "BatchTopKConfig",
    "Crosscoder",
    "Dictionary",
    "DictionaryConfig",
    "Firings",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "JumpReLUConfig",
    "LatentScaling",
    "MatchingPursuit",
    "MatchingPursuitConfig",
    "Matryoshka",
    "MatryoshkaConfig",
    "Ordered",
    "Pursuit",
    "ReLU",
    "SparseCodes",
    "Temporal",
    "TemporalConfig",
    "TopK",
    "TopKConfig",
    "Transcoder",
    "archetypal",
    "architecture",
    "architectures",
    "crosscoder",
    "latent_scaling",
    "load_dictionary",
    "read_metadata",
    "register",
    "save_dictionary",
    "transcoder",
]
