"""How far an attribution can be trusted: against exact ablation of every feature, prompt by prompt.

Attribution estimates what a forward pass with the feature removed would show. Here these passes are run, for every
feature that fires on the prompt (``effects.py``: at all its positions, set to 0, the error kept), and two numbers are
taken:

- the **rank correlation** (Spearman) over the prompt's features between contribution, summed over positions, and the
  exact effect; the mean over prompts;
- the **share removed**: the n features that contribute most are ablated together, and what the metric loses is set
  against what it loses when all features are ablated; the sum over prompts of the one by the sum of the other. It can
  exceed 1, because among all features there are many that hold the metric down. Beside it stands the share of n
  features drawn at random from those that fire, and of the n whose exact effects are largest.

Intervals: prompts are drawn again with replacement (percentile bootstrap, 95 %).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saescope.interventions.attribution.contributions import Contributions, real_tokens
from saescope.interventions.attribution.gates import gates_of, metric_at
from saescope.interventions.attribution.patching import gradient_attribution
from saescope.interventions.changes import Ablate
from saescope.interventions.effects import ablation_effects
from saescope.interventions.intervention import Intervention
from saescope.interventions.metrics import Metric
from saescope.interventions.site import Site

NUM_DRAWS = 1000

Method = Callable[[Sequence[Site], Tensor, Metric], Sequence[Contributions]]
"""An attribution: contributions of each site, for ids ``[1, T]``."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number over prompts and its interval, which is None where there are fewer than two prompts."""

    value: float | None  # None where it is undefined: a share of an effect that is 0
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PromptAgreement:
    """One prompt. Effects are what the metric loses, in its units."""

    num_features: int  # that fire
    rank_correlation: float | None  # None with fewer than three features, or where all are equal
    value: float  # the metric of the model as it is
    effect_of_all: float
    effect_of_top: float
    effect_of_random: float
    effect_of_exact_top: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Attribution against exact ablation."""

    num_top: int
    rank_correlation: Estimate  # mean over prompts
    share_removed: Estimate  # by the n features that contribute most
    share_removed_at_random: Estimate  # by n drawn from those that fire
    share_removed_by_exact: Estimate  # by the n with the largest exact effects
    prompts: tuple[PromptAgreement, ...]


def by_gradient(sites: Sequence[Site], ids: Tensor, metric: Metric) -> Sequence[Contributions]:
    """Attribution patching."""
    return gradient_attribution(sites, ids, metric).contributions


def compare_with_ablation(
    sites: Site | Sequence[Site],
    prompts: Sequence[Tensor | Sequence[int]],
    metric_of: Metric | Callable[[Tensor], Metric],
    *,
    method: Method = by_gradient,
    num_top: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compares an attribution with exact ablation.

    Args:
        prompts: token ids of each. metric_of: what is attributed, or which metric for ids ``[1, T]``.
        method: gives contributions; gradient x activation by default.
        num_top: features that are ablated together.
        batch_size: rows of one pass with exact ablations.
        seed: of the random features and the intervals.
        on_progress: called with prompts done and their number.

    Raises:
        ValueError: no prompt, a number below 1, or as :func:`gradient_attribution` and ``ablation_effects``; no
            feature fires on any prompt.
    """
    if not len(prompts):
        raise ValueError("a comparison with ablation needs prompts")
    if num_top < 1:
        raise ValueError(f"num_top is a number of features, at least 1, not {num_top}")
    listed = [sites] if isinstance(sites, Site) else list(sites)
    generator = np.random.default_rng(seed)
    found = []
    for number, prompt in enumerate(prompts):
        ids = torch.as_tensor(prompt).reshape(1, -1)
        metric = metric_of if isinstance(metric_of, Metric) else metric_of(ids)
        found.append(_one_prompt(listed, ids, metric, method, num_top, batch_size, generator))
        if on_progress:
            on_progress(number + 1, len(prompts))
    correlations = [each.rank_correlation for each in found if each.rank_correlation is not None]
    if not correlations:
        raise ValueError("on no prompt do three features or more differ in what they do: there is nothing to rank")

    def share(name: str) -> Estimate:
        sums = np.array([[getattr(each, name), each.effect_of_all] for each in found])
        return _estimate(sums, lambda rows: rows[..., 0].sum(-1) / rows[..., 1].sum(-1), seed)

    return Agreement(
        num_top=num_top,
        rank_correlation=_estimate(np.array(correlations)[:, None], lambda rows: rows[..., 0].mean(-1), seed),
        share_removed=share("effect_of_top"),
        share_removed_at_random=share("effect_of_random"),
        share_removed_by_exact=share("effect_of_exact_top"),
        prompts=tuple(found),
    )


def _one_prompt(
    sites: list[Site],
    ids: Tensor,
    metric: Metric,
    method: Method,
    num_top: int,
    batch_size: int,
    generator: np.random.Generator,
) -> PromptAgreement:
    estimated = [each.of_features()[0] for each in method(sites, ids, metric)]  # [d_sae] of each site
    exact = ablation_effects(sites, ids, metric, batch_size=batch_size)
    place = {site: number for number, site in enumerate(sites)}
    nodes = [(place[node.site], node.feature) for node in exact.nodes]
    lost = -exact.effects[:, 0].numpy()  # what the metric loses by each
    guessed = np.array([float(estimated[site][feature]) for site, feature in nodes])
    model = sites[0].model
    tokens = real_tokens(model, ids, None)
    value = float(exact.before[0])
    with torch.no_grad():
        all_gone = float(metric_at(model, gates_of(sites, None), 0.0, ids, metric, None, tokens)[0])

    def effect(which: np.ndarray) -> float:
        chosen: dict[int, list[int]] = {}
        for index in which.tolist():
            chosen.setdefault(nodes[index][0], []).append(nodes[index][1])
        if not chosen:
            return 0.0
        with torch.no_grad(), Intervention([Ablate(sites[site], each) for site, each in chosen.items()]):
            return value - float(metric(model.logits(ids), tokens)[0])

    return PromptAgreement(
        num_features=len(nodes),
        rank_correlation=_spearman(guessed, lost),
        value=value,
        effect_of_all=value - all_gone,
        effect_of_top=effect(np.argsort(-guessed, kind="stable")[:num_top]),
        effect_of_random=effect(generator.permutation(len(nodes))[:num_top]),
        effect_of_exact_top=effect(np.argsort(-lost, kind="stable")[:num_top]),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def _estimate(rows: np.ndarray, number: Callable[[np.ndarray], np.ndarray], seed: int) -> Estimate:
    """A number of rows ``[prompts, ...]``, and its interval from rows drawn again."""
    with np.errstate(all="ignore"):
        value = float(number(rows))
        if len(rows) < 2 or not np.isfinite(value):
            return Estimate(value=value if np.isfinite(value) else None, low=None, high=None)
        drawn = np.random.default_rng(seed).integers(len(rows), size=(NUM_DRAWS, len(rows)))
        draws = number(rows[drawn])
    low, high = np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))
