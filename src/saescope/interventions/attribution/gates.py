"""The model with a gate on every feature at every token: what gradients of attributions are taken in.

A gate g in [0, 1] decides how much of a feature's activation there is, between a baseline c (0, or a mean) and what it
is::

    f' = c + g (f - c)            x' = x + (f' - f) @ W_dec

All gates at 1: the model as it is. All at 0: every feature at its baseline, the error kept, as ``Ablate`` does it.
Moving x by the difference is ``Splice`` with the error term, so that what lies between the hook points runs as it
always does.

Shapes: ``B`` prompts, ``T`` tokens, ``d_sae`` features, ``S`` sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from saescope.interventions.changes import Splice
from saescope.interventions.intervention import Intervention
from saescope.interventions.metrics import Metric
from saescope.interventions.site import Site
from saescope.models import LanguageModel

ErrorTerm = Literal[True, "frozen"]
Baselines = Mapping[Site, Tensor]


class Gate:
    """The gates of one dictionary."""

    def __init__(
        self, site: Site, baseline: Tensor | None, *, error_term: ErrorTerm = True, special_tokens: bool = False
    ) -> None:
        self.site, self._baseline = site, baseline
        self.splice = Splice(site, codes=self._gated, error_term=error_term, special_tokens=special_tokens)
        self.level = 1.0
        self.gates: Tensor | None = None  # [B, T, d_sae], a leaf
        self.activations: Tensor | None = None  # [B, T, d_sae], as they came

    def begin(self, level: float) -> None:
        """Before a pass: all gates will be at ``level``."""
        self.level, self.gates, self.activations = level, None, None

    def away_from_baseline(self) -> Tensor:
        """Which activations are not the baseline's, bool ``[B, T, d_sae]``."""
        assert self.activations is not None
        return self.activations != (0 if self._baseline is None else self._baseline.to(self.activations))

    def _gated(self, f: Tensor) -> Tensor:
        self.gates = torch.full_like(f, self.level, requires_grad=torch.is_grad_enabled())
        self.activations = f.detach()
        base = 0 if self._baseline is None else self._baseline.to(f)
        return base + self.gates * (f - base)


def gates_of(
    sites: Site | Sequence[Site],
    baselines: Baselines | Tensor | None,
    *,
    error_term: ErrorTerm = True,
    special_tokens: bool = False,
) -> list[Gate]:
    """A gate for each site.

    Raises:
        ValueError: no site, one twice, sites of different models, or a baseline of the wrong shape.
    """
    listed = [sites] if isinstance(sites, Site) else list(sites)
    wrong = [each for each in listed if not isinstance(each, Site)]
    if wrong or not listed:
        shown = type(wrong[0]).__name__ if wrong else "nothing"
        raise ValueError(f"attribution needs sites, dictionaries at their places in a model, not {shown}")
    if len(set(listed)) < len(listed):
        raise ValueError("a site is named twice")
    if any(each.model is not listed[0].model for each in listed):
        raise ValueError("these sites are of different models; attribute within one model at a time")
    if isinstance(baselines, Tensor):
        if len(listed) > 1:
            raise ValueError("with several sites, baselines are given by site: {site: mean activations [d_sae]}")
        baselines = {listed[0]: baselines}
    baselines = baselines or {}
    stray = [each for each in baselines if each not in listed]
    if stray:
        raise ValueError(f"a baseline is given for {stray[0]}, which is not among the sites")
    for each, baseline in baselines.items():
        wanted = (each.dictionary.d_sae,)
        if tuple(baseline.shape) != wanted or not bool(torch.isfinite(baseline).all()):
            raise ValueError(
                f"a baseline is one finite activation for each feature, of shape {wanted} for {each}, not "
                f"{tuple(baseline.shape)}"
            )
    return [Gate(each, baselines.get(each), error_term=error_term, special_tokens=special_tokens) for each in listed]


def metric_at(
    model: LanguageModel,
    gates: Sequence[Gate],
    level: float,
    ids: Tensor,
    metric: Metric,
    attention_mask: Tensor | None,
    tokens: Tensor,
) -> Tensor:
    """The metric ``[B]`` with all gates at ``level``; differentiable with respect to the gates.

    Raises:
        ValueError: the metric is not finite, or the model never came to one of the sites.
    """
    for gate in gates:
        gate.begin(level)
    with Intervention([gate.splice for gate in gates]):
        logits = model.logits(ids, attention_mask=attention_mask)
    silent = [gate for gate in gates if gate.activations is None]
    if silent:
        raise ValueError(f"the forward pass never came to {silent[0].site}")
    value = metric(logits, tokens)
    if value.shape != (len(ids),):
        raise ValueError(f"a metric gives one number for each of {len(ids)} prompts, not shape {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"the metric ({metric}) is not finite on this prompt; there is nothing to attribute")
    return value


def slopes(value: Tensor, gates: Sequence[Gate]) -> list[Tensor]:
    """How each prompt's metric changes with its gates, ``[B, T, d_sae]`` for each site. Prompts do not see each other."""
    leaves = [gate.gates for gate in gates]
    if not value.requires_grad:  # nothing that was gated reaches the metric
        return [torch.zeros_like(leaf) for leaf in leaves if leaf is not None]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return list(found)
