"""Activations: text to tokens to a stream of activation batches; ``synthetic`` makes some of known features."""

from saescope.activations.cache import CachedActivations, CachedStream
from saescope.activations.cache_writing import DiskTooSmall, cache_settings, check_cache_folder, write_cache
from saescope.activations.documents import DatasetConfig, DatasetError, Document, read_documents
from saescope.activations.end_to_end import EndToEndStream, output_cross_entropy, output_divergence
from saescope.activations.of_dictionary import of
from saescope.activations.stream import ActivationBatch, ActivationStream, ShuffledStream, SideBySide, StreamConfig
from saescope.activations.windows import TokenWindows, WindowBatch, WindowConfig

__all__ = [
    "ActivationBatch",
    "ActivationStream",
    "CachedActivations",
    "CachedStream",
    "DatasetConfig",
    "DatasetError",
    "DiskTooSmall",
    "Document",
    "EndToEndStream",
    "ShuffledStream",
    "SideBySide",
    "StreamConfig",
    "TokenWindows",
    "WindowBatch",
    "WindowConfig",
    "cache_settings",
    "check_cache_folder",
    "of",
    "output_cross_entropy",
    "output_divergence",
    "read_documents",
    "write_cache",
]
