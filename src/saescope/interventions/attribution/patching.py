"""Gradient x activation, also called attribution patching: all ablations at once, to first order, from one backward
pass.

Removing feature i at a token changes the metric m by about ``-(f_i - c_i) dm/df_i``, with c the baseline (0, or a
mean); so it contributed

    (f_i - c_i) dm/df_i

Nanda 2023 ("Attribution Patching: Activation Patching At Industrial Scale"); Syed, Rager & Conmy 2023, arXiv
2310.10348; for features with the error kept, Marks et al. 2024, arXiv 2403.19647.

**Which gradient, with several sites.** By default the total effect: the derivative of the whole model as it is, so that
a feature's contribution holds all that its change brings about, through later sites too, in what their dictionaries
explain and in what they do not. That is what ablating it does with the error kept, for each site by itself;
contributions of several sites overlap and do not add up. ``error_term="frozen"`` holds the dictionaries' errors fixed:
then a change reaches what comes after a site by its features alone (and around the site, where the model has a way). At
one site both are the same.

A gradient sees only where it stands. Where a norm or attention has saturated it says far too little, and
``integrated.py`` says more; for ranking what single features do on real prompts it was the better of the two.
``agreement.py`` measures that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.interventions.attribution.contributions import Contributions, entries, looked_at, real_tokens
from saescope.interventions.attribution.gates import Baselines, ErrorTerm, gates_of, metric_at, slopes
from saescope.interventions.metrics import Metric
from saescope.interventions.site import Site


@dataclass(frozen=True, eq=False)
class GradientAttribution:
    """First-order contributions to a metric."""

    metric: Metric
    value: Tensor  # the metric of the model as it is, [B], float64
    contributions: tuple[Contributions, ...]  # one for each site, in their order


def gradient_attribution(
    sites: Site | Sequence[Site],
    ids: Tensor,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
    baselines: Baselines | Tensor | None = None,
    error_term: ErrorTerm = True,
    special_tokens: bool = False,
) -> GradientAttribution:
    """What each feature contributed to a metric, to first order.

    Args:
        sites: one or several dictionaries of any kind, of one model.
        ids: ``[B, T]``. attention_mask: ``[B, T]``, 1 for tokens, 0 for padding, on either side.
        baselines: what features are compared with: activations ``[d_sae]``, by site where there are several; 0 by default.
        error_term: True for the total effect, "frozen" for what goes through features alone.
        special_tokens: whether features of special tokens count.

    Raises:
        ValueError: sites or baselines that do not fit, a metric that does not fit the model, or a prompt longer than the
            context.
    """
    if error_term not in (True, "frozen"):
        raise ValueError(f'error_term is True or "frozen" here, not {error_term!r}: without errors it is another model')
    gates = gates_of(sites, baselines, error_term=error_term, special_tokens=special_tokens)
    model = gates[0].site.model
    metric.require_fit(model, len(ids))
    with torch.enable_grad():
        tokens = real_tokens(model, ids, attention_mask)
        value = metric_at(model, gates, 1.0, ids, metric, attention_mask, tokens)
        found = slopes(value, gates)
    looked = looked_at(model, ids, attention_mask, special_tokens)
    contributions = []
    for gate, slope in zip(gates, found, strict=True):
        assert gate.activations is not None
        contributions.append(entries(gate.site, looked, gate.activations, slope, gate.away_from_baseline()))
    return GradientAttribution(metric, value.detach().cpu().double(), tuple(contributions))
