"""Activations: text to tokens to a stream of activation batches."""

from saescope.activations.documents import DatasetConfig, DatasetError, Document, read_documents
from saescope.activations.stream import ActivationBatch, ActivationStream, StreamConfig
from saescope.activations.windows import TokenWindows, WindowBatch, WindowConfig

__all__ = [
    "ActivationBatch",
    "ActivationStream",
    "DatasetConfig",
    "DatasetError",
    "Document",
    "StreamConfig",
    "TokenWindows",
    "WindowBatch",
    "WindowConfig",
    "read_documents",
]
