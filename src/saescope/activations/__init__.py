"""Activations: text to tokens to a stream of activation batches; ``synthetic`` makes some of known features."""

from saescope.activations.documents import DatasetConfig, DatasetError, Document, read_documents
from saescope.activations.end_to_end import EndToEndStream, output_cross_entropy, output_divergence
from saescope.activations.stream import ActivationBatch, ActivationStream, SideBySide, StreamConfig
from saescope.activations.windows import TokenWindows, WindowBatch, WindowConfig

__all__ = [
    "ActivationBatch",
    "ActivationStream",
    "DatasetConfig",
    "DatasetError",
    "Document",
    "EndToEndStream",
    "SideBySide",
    "StreamConfig",
    "TokenWindows",
    "WindowBatch",
    "WindowConfig",
    "output_cross_entropy",
    "output_divergence",
    "read_documents",
]
