"""Records as the terminal shows them: a feature, a list of features, a dictionary, a store, the verdicts of an evaluation.

Pure functions from records to Rich renderables, sensible in 80 columns and without colour.
"""

from __future__ import annotations

from saescope.cli.views.feature import feature_view, page_view
from saescope.cli.views.overview import dictionary_view, store_view
from saescope.cli.views.tables import evaluation_view, features_view
from saescope.cli.views.words import visible

__all__ = [
    "dictionary_view",
    "evaluation_view",
    "feature_view",
    "features_view",
    "page_view",
    "store_view",
    "visible",
]
