"""How much of a model's behaviour a few features carry.

Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647. M is the model with all its features, C a circuit (some
features, at one place or several), m(.) the mean metric over the prompts when all features outside are removed::

    faithfulness(C) = (m(C) - m(empty)) / (m(M) - m(empty))
    completeness(C) = faithfulness(M without C)

A circuit that does by itself what the model does has faithfulness 1; one that leaves nothing to the others has a
**completeness of 0**, as the paper counts it. Both can lie outside of [0, 1]. Outside means every feature of the
dictionaries, also those that fire only once others are gone.

What no dictionary explains, the error term, is left in all passes by default, ``m(empty)`` included, so that it earns the
circuit nothing. With ``error_term=False`` it is missing in all of them, and ``m(M)`` is that of the reconstructions. In the
paper error terms are nodes like features, in the circuit or out of it, and what is out is set to its mean: that is
``baseline="mean"`` here, where the default is 0.

Shapes: ``n`` circuits, ``P`` prompts, ``T`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from saescope.interventions.effects import single_effects
from saescope.interventions.metrics import Metric
from saescope.interventions.removal import Baseline, Experiment, Named, Node, Removed
from saescope.interventions.site import Site

_NO_EFFECT = (
    "the mean {} is {:.6g} with all features and {:.6g} with none: a circuit can have no share of such an effect"
)


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve:
    """Faithfulness and completeness of the first features of a ranking, for several sizes.

    Attributes:
        order: the ranking. sizes: how many of its first features each circuit has, ``n`` of them.
        circuit: the metric with the circuit alone, float64 ``[n, P]``. rest: with all others, ``[n, P]``.
        full: with all features, ``[P]``. empty: with none, ``[P]``.
        reason: why there are no shares, where the metric is the same with all features and with none.
        metric, conditions: what was measured, and what a removed feature was set to.
    """

    order: tuple[Node, ...]
    sizes: tuple[int, ...]
    circuit: Tensor
    rest: Tensor
    full: Tensor
    empty: Tensor
    reason: str | None
    metric: str
    conditions: str

    @property
    def faithfulness(self) -> tuple[float | None, ...]:
        """Of each circuit; None, for the ``reason``, where it has no meaning."""
        return self._shares(self.circuit)

    @property
    def completeness(self) -> tuple[float | None, ...]:
        """The faithfulness of what each circuit leaves out: 0 if it is complete."""
        return self._shares(self.rest)

    def _shares(self, values: Tensor) -> tuple[float | None, ...]:
        if self.reason is not None:
            return (None,) * len(self.sizes)
        empty = self.empty.mean()
        return tuple(((values.mean(1) - empty) / (self.full.mean() - empty) + 0.0).tolist())  # no -0


def faithfulness_curve(
    sites: Site | Sequence[Site],
    ids: Tensor,
    metric: Metric,
    *,
    order: Named | None = None,
    sizes: Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    positions: Tensor | None = None,
    special_tokens: bool = False,
    baseline: Baseline = "zero",
    error_term: bool = True,
    batch_size: int = 32,
) -> FaithfulnessCurve:
    """Faithfulness and completeness of the first 0, 1, 2, 4, ... features of a ranking.

    Args:
        order: features, the most important one first; by the size of their exact effects, one by one, if not given.
        sizes: numbers of features to keep; by default 0, powers of two, and all of ``order``.

    Others and errors as :func:`saescope.interventions.ablation_effects`; also ValueError for sizes beyond the ranking.
    """
    run = Experiment(
        sites, ids, metric, attention_mask=attention_mask, positions=positions, special_tokens=special_tokens,
        error_term=error_term, baseline=baseline, batch_size=batch_size,
    )  # fmt: skip
    nodes = run.nodes(single_effects(run, run.nodes(None)).ranked() if order is None else order)
    chosen = _sizes(sizes, len(nodes))
    removed = [Removed.of(nodes[:size], all_but=outside) for outside in (True, False) for size in chosen]
    removed.append(Removed({}, all_but=True))
    jobs = [(prompt, each) for each in removed for prompt in range(run.num_prompts)]
    values = run.measure(jobs).reshape(len(removed), run.num_prompts)
    full, empty = run.before, values[-1]
    meaningless = run.same(full, empty)
    return FaithfulnessCurve(
        order=tuple(map(run.node, nodes)),
        sizes=chosen,
        circuit=values[: len(chosen)],
        rest=values[len(chosen) : -1],
        full=full,
        empty=empty,
        reason=_NO_EFFECT.format(metric, float(full.mean()), float(empty.mean())) if meaningless else None,
        metric=str(metric),
        conditions=run.conditions,
    )


def _sizes(sizes: Sequence[int] | None, largest: int) -> tuple[int, ...]:
    if sizes is None:
        powers = takewhile(lambda size: size < largest, (2**exponent for exponent in range(64)))
        return tuple(sorted({0, largest, *powers}))
    found = tuple(sizes)
    wrong = [size for size in found if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= largest]
    if wrong or not found:
        shown = f"not {wrong[0]!r}" if wrong else "and at least one is needed"
        raise ValueError(f"sizes are numbers of features to keep, of the {largest} that are ranked, {shown}")
    return found
