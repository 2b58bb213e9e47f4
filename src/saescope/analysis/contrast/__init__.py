"""Finding features: that separate two sets of texts, that one set has more of, or that two models differ in.

===================  ====================================================================================
``contrast``         two sets of texts, a number for each text and feature
``contrast_tokens``  tokens of two kinds within texts
``against_store``    one set of texts, against the text that an analysis in a store has read
``diff_models``      the same texts through two models, or two checkpoints of one, and the same dictionary
===================  ====================================================================================

All choose features on one half of the texts and measure them on the other, where something is measured of chosen features.
"""

from __future__ import annotations

from saescope.analysis.contrast.background import Enriched, Enrichment, against_store
from saescope.analysis.contrast.models import ChangedFeature, ModelDifference, diff_models
from saescope.analysis.contrast.pooling import PooledTexts, Pooling, pool_texts
from saescope.analysis.contrast.texts import Contrast, SeparatingFeature, contrast
from saescope.analysis.contrast.tokens import contrast_tokens

__all__ = [
    "ChangedFeature",
    "Contrast",
    "Enriched",
    "Enrichment",
    "ModelDifference",
    "PooledTexts",
    "Pooling",
    "SeparatingFeature",
    "against_store",
    "contrast",
    "contrast_tokens",
    "diff_models",
    "pool_texts",
]
