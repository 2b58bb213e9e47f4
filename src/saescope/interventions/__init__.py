"""Change what a network does, in terms of its features; and find out which features did what.

:class:`Site` puts a dictionary into a model, :class:`Intervention` applies changes (:class:`Add`, :class:`Clamp`,
:class:`Scale`, :class:`Ablate`, :class:`ProjectOut`, :class:`Splice`) while the model runs, :func:`generate` and
:func:`side_by_side` write text under them. What a feature does to a metric is measured by :func:`ablation_effects`, and
estimated in ``saescope.interventions.attribution``.
"""

from __future__ import annotations

from saescope.interventions.changes import Ablate, Add, Change, Clamp, ProjectOut, Scale, Splice
from saescope.interventions.effects import AblationEffects, AblationPath, ablation_effects, greedy_ablation
from saescope.interventions.faithfulness import FaithfulnessCurve, faithfulness_curve
from saescope.interventions.generation import Continuations, generate, stream
from saescope.interventions.intervention import Intervention
from saescope.interventions.metrics import (
    Metric,
    PerPrompt,
    cross_entropy,
    log_probability,
    logit,
    logit_difference,
    token_id,
)
from saescope.interventions.positions import Where
from saescope.interventions.reading import Reading, read_features
from saescope.interventions.removal import Node
from saescope.interventions.side_by_side import SideBySide, side_by_side, stream_side_by_side
from saescope.interventions.site import Site
from saescope.interventions.strength import FoundStrength, strength_for_kl

__all__ = [
    "Ablate",
    "AblationEffects",
    "AblationPath",
    "Add",
    "Change",
    "Clamp",
    "Continuations",
    "FaithfulnessCurve",
    "FoundStrength",
    "Intervention",
    "Metric",
    "Node",
    "PerPrompt",
    "ProjectOut",
    "Reading",
    "Scale",
    "SideBySide",
    "Site",
    "Splice",
    "Where",
    "ablation_effects",
    "cross_entropy",
    "faithfulness_curve",
    "generate",
    "greedy_ablation",
    "log_probability",
    "logit",
    "logit_difference",
    "read_features",
    "side_by_side",
    "stream",
    "stream_side_by_side",
    "strength_for_kl",
    "token_id",
]
