"""Which features did it: what each contributed to a logit, or to any other metric, on a prompt.

====================  =============================================================================================
``direct.py``         straight to the logit through the final norm with its scale frozen; an exact sum
``patching.py``       gradient x activation through the whole model, at one hook point or several; one backward pass
``integrated.py``     the gradient averaged along a path, so that contributions add up to what removing all does
``agreement.py``      how well any of them ranks features, against exact ablation
====================  =============================================================================================
"""

from __future__ import annotations

from saescope.interventions.attribution.agreement import Agreement, compare_with_ablation
from saescope.interventions.attribution.contributions import Contributions
from saescope.interventions.attribution.direct import DirectAttribution, direct_attribution
from saescope.interventions.attribution.integrated import IntegratedAttribution, integrated_attribution
from saescope.interventions.attribution.patching import GradientAttribution, gradient_attribution

__all__ = [
    "Agreement",
    "Contributions",
    "DirectAttribution",
    "GradientAttribution",
    "IntegratedAttribution",
    "compare_with_ablation",
    "direct_attribution",
    "gradient_attribution",
    "integrated_attribution",
]
