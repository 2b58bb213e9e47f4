"""Change what a network does, in terms of its features; and find out which features did what.

:class:`Site` puts a dictionary into a model, :class:`Intervention` applies changes (:class:`Add`, :class:`Clamp`,
:class:`Scale`, :class:`Ablate`, :class:`ProjectOut`, :class:`Splice`) while the model runs.
"""

from __future__ import annotations

from saescope.interventions.changes import Ablate, Add, Change, Clamp, ProjectOut, Scale, Splice
from saescope.interventions.intervention import Intervention
from saescope.interventions.positions import Where
from saescope.interventions.reading import Reading, read_features
from saescope.interventions.site import Site

__all__ = [
    "Ablate",
    "Add",
    "Change",
    "Clamp",
    "Intervention",
    "ProjectOut",
    "Reading",
    "Scale",
    "Site",
    "Splice",
    "Where",
    "read_features",
]
