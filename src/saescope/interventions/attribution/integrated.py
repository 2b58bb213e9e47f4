"""Integrated gradients: contributions that add up to what removing all features does.

The gradient is taken not only at the activations f but all along the straight path from the baseline c to them, and
averaged (Sundararajan, Taly & Yan 2017, arXiv 1703.01365; for features, Marks et al. 2024, arXiv 2403.19647)::

    contribution_i = (f_i - c_i) * integral over a in [0, 1] of dm/df_i at c + a (f - c)

Their sum is ``m(f) - m(c)``: completeness. The integral is a sum over Gauss-Legendre points (16 at first), and how far
the sum is from completeness is always measured, and reported. Where it is more than ``tolerance`` (1 % of the
difference) for some prompt, the points are doubled, up to ``max_steps``.

Most of the path runs where most features are weak, so that it shares out what all of them do together. What one feature
does by itself, with all others there, is another number, and the gradient at the end of the path is often nearer to it.

**With several sites** each has its own path by default, while all others run as they do in the model: contributions are
then total effects, each site's sum is what removing that site's features does, and sums of different sites overlap.
With ``together=True`` all sites walk at once, and the contributions of all add up to what removing all of them does
(``Ablate`` of all features at all sites). A later dictionary then encodes what an earlier one has left, and features of
an encoder that jumps (TopK, JumpReLU) come and go along the path. Jumps have no gradient: the sum can then miss the
difference by a few percent however many points there are, which ``is_complete`` says.

Shapes: ``B`` prompts, ``d_sae`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saescope.interventions.attribution.contributions import Contributions, entries, looked_at, real_tokens
from saescope.interventions.attribution.gates import Baselines, Gate, gates_of, metric_at, slopes
from saescope.interventions.metrics import Metric
from saescope.interventions.site import Site

_ROUNDING = 1e-4  # of the sum of sizes: a difference below this is noise of float32, and no share of it means anything


@dataclass(frozen=True, eq=False)
class Completeness:
    """How well the contributions of a path add up; ``[B]`` in float64."""

    sites: tuple[Site, ...]  # that walked it
    num_steps: int  # Gauss-Legendre points
    removed: Tensor  # the metric with all their features at the baseline
    difference: Tensor  # the metric of the model as it is, less that
    total: Tensor  # sum of the contributions, which should be the difference
    gap: Tensor  # |total - difference|, as a share of |difference|
    is_complete: bool  # whether every gap is within the tolerance


@dataclass(frozen=True, eq=False)
class IntegratedAttribution:
    """Contributions to a metric by integrated gradients."""

    metric: Metric
    value: Tensor  # the metric of the model as it is, [B], float64
    contributions: tuple[Contributions, ...]  # one for each site, in their order
    completeness: tuple[Completeness, ...]  # one for each path: for each site, or one for all together

    @property
    def is_complete(self) -> bool:
        """Whether all paths are."""
        return all(each.is_complete for each in self.completeness)


def integrated_attribution(
    sites: Site | Sequence[Site],
    ids: Tensor,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
    baselines: Baselines | Tensor | None = None,
    together: bool = False,
    num_steps: int = 16,
    max_steps: int = 256,
    tolerance: float = 0.01,
    special_tokens: bool = False,
) -> IntegratedAttribution:
    """What each feature contributed to a metric, by integrated gradients.

    Args:
        sites, ids, metric, attention_mask, baselines, special_tokens: as :func:`gradient_attribution`.
        together: whether several sites walk one path together.
        num_steps: Gauss-Legendre points to begin with; a forward and a backward pass each.
        max_steps: the largest number that is tried where completeness is not reached.
        tolerance: largest gap, as a share of the difference.

    Raises:
        ValueError: as :func:`gradient_attribution`; numbers of steps below 1 or a tolerance that is not positive.
    """
    if not 1 <= num_steps <= max_steps:
        raise ValueError(f"num_steps is at least 1 and at most max_steps, not {num_steps} with {max_steps}")
    if not tolerance > 0:
        raise ValueError(f"the tolerance is a positive share of the difference, not {tolerance}")
    gates = gates_of(sites, baselines, special_tokens=special_tokens)
    metric.require_fit(gates[0].site.model, len(ids))
    paths = [gates] if together else [[gate] for gate in gates]
    walked = [
        _walk(path, ids, metric, attention_mask, special_tokens, num_steps, max_steps, tolerance) for path in paths
    ]
    return IntegratedAttribution(
        metric,
        walked[0].value,
        tuple(each for path in walked for each in path.contributions),
        tuple(path.completeness for path in walked),
    )


@dataclass(frozen=True)
class _Walked:
    value: Tensor
    contributions: tuple[Contributions, ...]
    completeness: Completeness


def _walk(
    gates: list[Gate],
    ids: Tensor,
    metric: Metric,
    attention_mask: Tensor | None,
    special_tokens: bool,
    num_steps: int,
    max_steps: int,
    tolerance: float,
) -> _Walked:
    """One path from the baseline to the activations, with as many points as it takes."""
    model = gates[0].site.model
    tokens = real_tokens(model, ids, attention_mask)
    looked = looked_at(model, ids, attention_mask, special_tokens)

    def at(level: float) -> Tensor:
        return metric_at(model, gates, level, ids, metric, attention_mask, tokens)

    with torch.no_grad():
        removed = at(0.0).cpu().double()
        value = at(1.0).cpu().double()
    activations = [_require(gate.activations) for gate in gates]
    moved = [gate.away_from_baseline() for gate in gates]
    difference = value - removed
    while True:
        sums = [torch.zeros_like(each, dtype=torch.float64) for each in activations]
        fired = [each.clone() for each in moved]  # on a common path others may fire on the way
        for level, weight in zip(*_gauss_legendre(num_steps), strict=True):
            with torch.enable_grad():
                found = slopes(at(level), gates)
            for index, (gate, slope) in enumerate(zip(gates, found, strict=True)):
                sums[index] += weight * slope.double()
                fired[index] |= gate.away_from_baseline()
        contributions = tuple(
            entries(gate.site, looked, each, total, counted)
            for gate, each, total, counted in zip(gates, activations, sums, fired, strict=True)
        )
        total = torch.stack([each.totals() for each in contributions]).sum(0)
        size = torch.stack(
            [
                torch.zeros(len(ids)).double().index_add(0, each.prompt, each.contribution.abs())
                for each in contributions
            ]
        ).sum(0)
        missed = (total - difference).abs()
        whole = bool((missed <= tolerance * difference.abs().clamp_min(_ROUNDING * size)).all())
        if whole or 2 * num_steps > max_steps:
            break
        num_steps *= 2
    gap = torch.where(missed == 0, 0.0, missed / difference.abs())
    done = Completeness(tuple(gate.site for gate in gates), num_steps, removed, difference, total, gap, whole)
    return _Walked(value, contributions, done)


def _gauss_legendre(num_steps: int) -> tuple[list[float], list[float]]:
    """Points and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(num_steps)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def _require(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
