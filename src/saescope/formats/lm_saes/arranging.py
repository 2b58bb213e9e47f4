"""From the samplings of a feature to its examples: each row once, with every role that it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from saescope.formats.lm_saes.samples import Sample
from saescope.formats.lm_saes.texts import SamplePoint
from saescope.store.records import Band

TOP, SILENT = "top_activations", "non_activating"  # what the workflow calls two of its samplings
NUM_BANDS = 5


@dataclass(frozen=True)
class ArrangedExample:
    """A row in which the feature was sampled, and why it was kept."""

    point: SamplePoint
    positions: tuple[int, ...]
    values: tuple[float, ...]
    peak: int
    activation: float
    rank: int | None
    """Among the strongest."""
    band: int | None
    is_silent: bool


@dataclass(frozen=True)
class Arrangement:
    """The examples of one feature: the strongest by rank, then the drawn ones by strength, then the silent ones."""

    examples: tuple[ArrangedExample, ...]
    edges: tuple[float, ...]
    """Of the bands, `NUM_BANDS + 1` of them; none if no example was drawn for a band."""
    num_active_silent: int
    """Rows sampled as non-activating in which the feature fires; they are examples of weak firing."""
    num_empty: int
    """Rows sampled as activating in which it does not fire; they are left out."""


def arrange(samples: Sequence[Sample], maximum: float) -> Arrangement:
    """Give the samples of one feature their roles. `maximum` is its largest activation."""
    by_point = groupby(sorted(samples, key=lambda sample: sample.point), key=lambda sample: sample.point)
    active: list[tuple[Sample, set[str]]] = []
    silent: list[SamplePoint] = []
    num_active_silent = num_empty = 0
    for point, group in by_point:
        found = list(group)
        names = {sample.sampling for sample in found}
        firing = next((sample for sample in found if sample.positions), None)
        if firing is not None:
            num_active_silent += SILENT in names
            active.append((firing, names))
        elif SILENT in names:
            silent.append(point)
        else:
            num_empty += 1
    active.sort(key=lambda entry: (-max(entry[0].values), entry[0].point))
    in_bands = [max(sample.values) for sample, names in active if names != {TOP}]
    edges = band_edges(max(maximum, *in_bands)) if in_bands else ()

    examples, rank = [], 0
    for sample, names in active:
        strongest = max(sample.values)
        examples.append(
            ArrangedExample(
                point=sample.point,
                positions=sample.positions,
                values=sample.values,
                peak=sample.positions[sample.values.index(strongest)],
                activation=strongest,
                rank=rank if TOP in names else None,
                band=None if names == {TOP} else band_of(strongest, edges),
                is_silent=False,
            )
        )
        rank += TOP in names
    examples += [ArrangedExample(point, (), (), 0, 0.0, None, None, True) for point in silent]
    return Arrangement(tuple(examples), edges, num_active_silent, num_empty)


def band_edges(maximum: float) -> tuple[float, ...]:
    """Edges of bands of equal width from 0 to beyond the maximum."""
    return (*(maximum * number / NUM_BANDS for number in range(NUM_BANDS)), math.nextafter(maximum, math.inf))


def band_of(value: float, edges: Sequence[float]) -> int:
    """The band that holds `value`; what lies below all of them (a negative activation) is in the weakest."""
    return max((number for number, (low, _) in enumerate(pairwise(edges)) if value >= low), default=0)


def bands(edges: Sequence[float]) -> tuple[Band, ...]:
    """The bands as records. How many firings lie in each is not in a dump."""
    return tuple(
        Band(kind="width", number=number, low=low, high=high, num_windows=None, num_tokens=None, share=None)
        for number, (low, high) in enumerate(pairwise(edges))
    )
