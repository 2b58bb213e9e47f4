"""A Hugging Face model split at named modules: activations per token, word, sentence or text, and their way back."""

from saescope.concepts.splitting.aggregation import GranularityAggregationStrategy
from saescope.concepts.splitting.differences import DIFFERENCES, Difference
from saescope.concepts.splitting.granularity import ActivationGranularity
from saescope.concepts.splitting.loading import InitializationError
from saescope.concepts.splitting.model import ModelWithSplitPoints
from saescope.concepts.splitting.selection import Selection

__all__ = [
    "DIFFERENCES",
    "ActivationGranularity",
    "Difference",
    "GranularityAggregationStrategy",
    "InitializationError",
    "ModelWithSplitPoints",
    "Selection",
]
