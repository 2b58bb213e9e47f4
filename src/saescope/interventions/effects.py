"""What happens to a metric when features are removed: one by one, or one after another.

The effect of feature i on prompt p is exact, a forward pass of its own and no estimate::

    effect[i, p] = metric(p with i removed) - metric(p)

so that a feature which speaks for a token has a negative effect on its logit. Many of these passes run as one batch
(``removal.py`` says what removing means). Where a feature does not fire and its baseline is 0 nothing is removed: the
effect is 0 and no pass is spent on it.

Features removed together do not act as the sum of what they do alone: one can take over another's part. Hence
:func:`greedy_ablation`, which measures each next one with those before it gone.

Shapes: ``F`` features, ``P`` prompts, ``T`` tokens, ``N`` pairs of a feature and a prompt that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from saescope.interventions.metrics import Metric
from saescope.interventions.removal import Baseline, Experiment, Named, Node, Removed
from saescope.interventions.site import Site

Direction: TypeAlias = Literal["either", "down", "up"]
_STEPS = 10


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """Effects of single features, sparse: those of pairs that are not listed are 0.

    Attributes:
        nodes: the features, ``F`` of them.
        row, prompt: which feature (its place in ``nodes``) and which prompt, ``[N]``.
        change: metric with the feature removed less metric before, float64 ``[N]``.
        before: the metric with nothing removed, float64 ``[P]``.
        metric: its name. conditions: what a removed feature was set to, and whether the error term was kept.
    """

    nodes: tuple[Node, ...]
    row: Tensor
    prompt: Tensor
    change: Tensor
    before: Tensor
    metric: str
    conditions: str

    @property
    def effects(self) -> Tensor:
        """Of every feature on every prompt, ``[F, P]``."""
        dense = torch.zeros(len(self.nodes), len(self.before), dtype=torch.float64)
        return dense.index_put((self.row, self.prompt), self.change)

    @property
    def after(self) -> Tensor:
        """The metric with each feature removed, ``[F, P]``."""
        return self.before + self.effects

    @property
    def mean(self) -> Tensor:
        """Mean effect over the prompts, ``[F]``."""
        total = torch.zeros(len(self.nodes), dtype=torch.float64)
        return total.index_add(0, self.row, self.change) / max(1, len(self.before))

    def ranked(self) -> tuple[Node, ...]:
        """The features by the size of their mean effect, largest first; equal ones in the order of ``nodes``."""
        order = self.mean.abs().argsort(descending=True, stable=True)
        return tuple(self.nodes[row] for row in order.tolist())


@dataclass(frozen=True, eq=False)
class AblationPath:
    """Features removed one after another.

    Attributes:
        nodes: in the order in which they were removed, ``n`` of them.
        values: the metric after each removal, that before the first one included, float64 ``[n + 1, P]``.
        all_removed: the metric when all that could be chosen are removed, float64 ``[P]``.
        share: how much of the effect of that is there after each removal, in means over the prompts, ``[n + 1]``. From
            0; it can go beyond 1, where some features hold others back. None where removing all has no effect.
        metric, conditions: as for :class:`AblationEffects`.
    """

    nodes: tuple[Node, ...]
    values: Tensor
    all_removed: Tensor
    share: Tensor | None
    metric: str
    conditions: str

    @property
    def mean(self) -> Tensor:
        """Mean metric over the prompts, ``[n + 1]``."""
        return self.values.mean(1)


def ablation_effects(
    sites: Site | Sequence[Site],
    ids: Tensor,
    metric: Metric,
    *,
    features: Named | None = None,
    attention_mask: Tensor | None = None,
    positions: Tensor | None = None,
    special_tokens: bool = False,
    baseline: Baseline = "zero",
    error_term: bool = True,
    batch_size: int = 32,
) -> AblationEffects:
    """The exact effect of each feature by itself.

    Args:
        sites: one dictionary in its place, or several of one model.
        ids: prompts ``[P, T]``. metric: what is measured, e.g. ``logit_difference(a, b)``.
        features: those to be removed; numbers for one site, :class:`Node` for several; all that fire by default.
        attention_mask: ``[P, T]``, 1 for tokens, 0 for padding on either side.
        positions: bool ``[T]`` or ``[P, T]``: where features are removed and looked for; everywhere by default.
        special_tokens: whether they are counted in.
        baseline: ``"zero"``; ``"mean"``, the feature's mean over the tokens in question of these prompts; or values
            ``[d_sae]``, one tensor for each site.
        error_term: False lets the model go on from reconstructions, in the pass with nothing removed as well.
        batch_size: rows of one pass. It holds a few arrays of ``batch_size * T * d_sae`` numbers.

    Returns:
        The effects; of no feature when none fires.

    Raises:
        ValueError: a feature out of range or named twice, a metric, masks or baselines that do not fit, prompts longer
            than the context, a model that does not predict the next token, or a metric that is no finite number.
    """
    run = Experiment(
        sites, ids, metric, attention_mask=attention_mask, positions=positions, special_tokens=special_tokens,
        error_term=error_term, baseline=baseline, batch_size=batch_size,
    )  # fmt: skip
    return single_effects(run, run.nodes(features))


def single_effects(run: Experiment, nodes: Sequence[tuple[int, int]]) -> AblationEffects:
    """Of an experiment that is set up already; ``nodes`` are (number of the site, feature)."""
    rows, prompts, changes = [], [], []
    for number in range(len(run.sites)):  # one site in a pass: at the others nothing is done
        pairs = _worth_running(run, nodes, number)
        after = run.measure((prompt, Removed({number: [nodes[row][1]]})) for row, prompt in pairs)
        found = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        rows.append(found[:, 0])
        prompts.append(found[:, 1])
        changes.append(after - run.before[found[:, 1]])
    return AblationEffects(
        nodes=tuple(map(run.node, nodes)),
        row=torch.cat(rows),
        prompt=torch.cat(prompts),
        change=torch.cat(changes),
        before=run.before,
        metric=str(run.metric),
        conditions=run.conditions,
    )


def greedy_ablation(
    sites: Site | Sequence[Site],
    ids: Tensor,
    metric: Metric,
    *,
    steps: int | None = None,
    order: Named | None = None,
    features: Named | None = None,
    direction: Direction = "either",
    attention_mask: Tensor | None = None,
    positions: Tensor | None = None,
    special_tokens: bool = False,
    baseline: Baseline = "zero",
    error_term: bool = True,
    batch_size: int = 32,
) -> AblationPath:
    """Removes features one after another, each time that which moves the mean metric most with the others gone.

    Exact, and dear: ``steps * F * P`` rows, fewer at one site, where features that do not fire cost nothing. Name the
    likely ``features`` where there are many.

    Args:
        steps: how many are removed, fewer when there are no more; 10 by default, and all of an ``order``.
        order: removed in this order, without a search; ``direction`` and ``features`` say nothing then.
        features: those that can be chosen; all that fire by default.
        direction: ``"down"`` and ``"up"`` choose what lowers or raises the metric most, ``"either"`` what changes it
            most, which can be back to where it was.

    Others and errors as :func:`ablation_effects`. Equal features are taken in their order.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ValueError(f"steps is how many features are removed, 0 or more, not {steps!r}")
    if direction not in ("either", "down", "up"):
        raise ValueError(f'direction is "either", "down" or "up", not {direction!r}')
    run = Experiment(
        sites, ids, metric, attention_mask=attention_mask, positions=positions, special_tokens=special_tokens,
        error_term=error_term, baseline=baseline, batch_size=batch_size,
    )  # fmt: skip
    nodes = run.nodes(features if order is None else order)
    if steps is None:
        steps = _STEPS if order is None else len(nodes)
    # at one site, removing some features does not change what others there do; at a later one they can begin to fire
    worth = set(_worth_running(run, nodes, 0)) if len(run.sites) == 1 else None
    left, gone, values = list(range(len(nodes))), list[int](), [run.before]
    while left and len(gone) < steps:
        tried = left[:1] if order is not None else left
        found = _with_one_more(run, nodes, gone, tried, values[-1], worth)  # [len(tried), P]
        moved = (found - values[-1]).mean(1)
        size = {"either": moved.abs(), "up": moved, "down": -moved}[direction]
        best = int(size.argmax())
        gone.append(tried[best])
        left.remove(tried[best])
        values.append(found[best])
    everything = Removed.of(nodes)
    all_removed = run.measure((prompt, everything) for prompt in range(run.num_prompts))
    path = torch.stack(values)
    effect = all_removed.mean() - run.before.mean()
    return AblationPath(
        nodes=tuple(run.node(nodes[row]) for row in gone),
        values=path,
        all_removed=all_removed,
        share=None if run.same(run.before, all_removed) else (path.mean(1) - run.before.mean()) / effect,
        metric=str(metric),
        conditions=run.conditions,
    )


def _worth_running(run: Experiment, nodes: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Pairs (place in ``nodes``, prompt) of one site whose removal can change something, prompt by prompt."""
    active, baseline = run.active[number], run.baseline_of(number).tolist()
    firing = set(zip(active.prompt.tolist(), active.feature.tolist(), strict=True))
    here = [(row, feature) for row, (site, feature) in enumerate(nodes) if site == number]
    return [
        (row, prompt)
        for prompt in range(run.num_prompts)
        for row, feature in here
        if baseline[feature] != 0 or (prompt, feature) in firing
    ]


def _with_one_more(
    run: Experiment,
    nodes: Sequence[tuple[int, int]],
    gone: Sequence[int],
    tried: Sequence[int],
    now: Tensor,
    worth: set[tuple[int, int]] | None,
) -> Tensor:
    """The metric when each of ``tried`` is removed beside ``gone``, ``[len(tried), P]``.

    Args:
        now: the metric with ``gone`` alone removed. worth: pairs that have to be run, where others keep that.
    """
    pairs = [
        (row, prompt) for row in tried for prompt in range(run.num_prompts) if worth is None or (row, prompt) in worth
    ]
    removed = {row: Removed.of(nodes[each] for each in (*gone, row)) for row in tried}
    after = run.measure((prompt, removed[row]) for row, prompt in pairs)
    found = now.expand(len(tried), -1).clone()
    place = {row: number for number, row in enumerate(tried)}
    for (row, prompt), value in zip(pairs, after.tolist(), strict=True):
        found[place[row], prompt] = value
    return found
