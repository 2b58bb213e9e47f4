"""From the lists that a pass leaves to the examples of a feature's page.

Bands are known when the pass is over, and each is a run of the histogram's bins. Every bin kept the windows of smallest
priority among those that peak in it, so that the windows of smallest priority in the band are among those of its bins:
drawing for a band is merging. The work is done for some hundred features at a time, without a loop over features.

F  features of a block, S  their occupied (feature, bin) pairs, n  bands of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from saescope.analysis.bins import EDGES, BinCounts, band_numbers
from saescope.analysis.samples import run_starts
from saescope.store.records import BAND_KINDS, Band, Example

_ROLES = ("top_rank", "quantile_band", "width_band")
_NEGATIVES = ("near_miss", "silent")


@dataclass(frozen=True)
class Bands:
    """The bands of one kind of a block of features, and what lies in each."""

    kind: str
    edges: np.ndarray  # int64, [F, n + 1]: numbers of EDGES
    numbers: np.ndarray  # int64, [S]: the band of each occupied bin
    num_windows: np.ndarray  # int64, [F, n]
    num_tokens: np.ndarray  # int64, [F, n]

    @classmethod
    def of(cls, kind: str, edges: np.ndarray, counts: BinCounts, num_windows: np.ndarray) -> Bands:
        owner = counts.owner
        numbers = band_numbers(edges, owner, counts.bins)
        sums = np.zeros((2, *edges[:, 1:].shape), dtype=np.int64)
        np.add.at(sums[0], (owner, numbers), num_windows)
        np.add.at(sums[1], (owner, numbers), counts.counts)
        return cls(kind, edges, numbers, *sums)

    def records(self, feature: int) -> list[Band]:
        """The bands of one feature (its number in the block), the weakest first."""
        edges = np.unique(self.edges[feature])
        total = int(self.num_tokens[feature].sum())
        return [
            Band(
                kind=self.kind,
                number=number,
                low=float(EDGES[edges[number]]),
                high=float(EDGES[edges[number + 1]]),
                num_windows=int(self.num_windows[feature, number]),
                num_tokens=int(self.num_tokens[feature, number]),
                share=int(self.num_tokens[feature, number]) / total,
            )
            for number in range(len(edges) - 1)
        ]


def draw(members: dict[str, np.ndarray], bands: np.ndarray, num_bands: int, k: int) -> dict[str, np.ndarray]:
    """The k windows of smallest priority in each (feature, band), copies folded; "group" is the feature.

    Args:
        members: of the samples of the bins: "group", "key", "window", "copies".
        bands: the band of each member.
    """
    group = members["group"].astype(np.int64) * num_bands + bands
    by = np.lexsort((members["window"], members["key"], group))
    group, key = group[by], members["key"][by]
    starts = np.flatnonzero(run_starts(group, key))
    copies = np.add.reduceat(members["copies"][by], starts) if len(starts) else members["copies"]
    group, window = group[starts], members["window"][by][starts]
    first = np.flatnonzero(run_starts(group))
    rank = np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))
    kept = rank < k
    return {
        "group": group[kept] // num_bands, "band": group[kept] % num_bands, "window": window[kept],
        "copies": copies[kept],
    }  # fmt: skip


def ranks(members: dict[str, np.ndarray]) -> np.ndarray:
    """The place of each member of the top lists among those of its feature: the highest peak first, then the first window."""
    by = np.lexsort((members["window"], members["order"], members["group"]))
    group = members["group"][by]
    first = np.flatnonzero(run_starts(group))
    found = np.empty(len(by), dtype=np.int64)
    found[by] = np.arange(len(by)) - np.repeat(first, np.diff(np.append(first, len(by))))
    return found


@dataclass(frozen=True)
class Chosen:
    """The windows that a block of features is shown in: a row per feature and window, in the order of the page."""

    feature: np.ndarray  # int64
    window: np.ndarray  # int64
    peak: np.ndarray  # int64; -1 where the activations say it
    copies: np.ndarray  # int64
    roles: np.ndarray  # int64, [rows, 3]: the numbers of _ROLES, -1 for none
    negative: np.ndarray  # int64: which of _NEGATIVES, -1 for a window in which the feature fires

    def rows(self, feature: int) -> slice:
        return slice(*np.searchsorted(self.feature, [feature, feature + 1]).tolist())


def choose(
    top: dict[str, np.ndarray],
    drawn: dict[str, dict[str, np.ndarray]],
    negatives: dict[str, dict[str, np.ndarray]],
    num_negatives: int,
    activation_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Chosen:
    """One row for each window that has a role.

    Args:
        top: members of the top lists; drawn: of the bands of each kind (see `draw`).
        negatives: members of the lists of near misses and of silent windows.
        activation_of: the size of the peak of pairs (features, windows).
    """
    parts = [(top["group"], top["window"], top["copies"], 0, ranks(top))]
    parts += [
        (drawn[kind]["group"], drawn[kind]["window"], drawn[kind]["copies"], 1 + role, drawn[kind]["band"])
        for role, kind in enumerate(BAND_KINDS)
    ]
    feature, window, copies = (
        np.concatenate([part[i] for part in parts]).astype(np.int64) for i in range(3)
    )  # fmt: skip
    roles = np.full((len(feature), len(_ROLES)), -1, dtype=np.int64)
    roles[np.arange(len(feature)), np.repeat([part[3] for part in parts], [len(part[0]) for part in parts])] = (
        np.concatenate([part[4] for part in parts])
    )
    by = np.lexsort((window, feature))
    starts = np.flatnonzero(run_starts(feature[by], window[by]))
    if len(starts):
        roles, copies = np.maximum.reduceat(roles[by], starts), np.maximum.reduceat(copies[by], starts)
    feature, window = feature[by][starts], window[by][starts]
    activation = activation_of(feature, window)

    rows = [(feature, window, np.full(len(feature), -1), copies, roles, np.full(len(feature), -1))]
    taken = np.empty(0, dtype=np.uint64)
    for number, kind in enumerate(_NEGATIVES):
        found = _first_of(negatives[kind], taken, num_negatives)
        taken = _pairs(found["group"], found["window"])
        none = np.full((len(found["group"]), len(_ROLES)), -1)
        columns = (found[name].astype(np.int64) for name in ("group", "window", "peak", "copies"))
        rows.append((*columns, none, np.full(len(none), number)))
        activation = np.concatenate([activation, np.zeros(len(none))])
    chosen = Chosen(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))
    rank = np.where(chosen.roles[:, 0] < 0, np.iinfo(np.int64).max, chosen.roles[:, 0])
    by = np.lexsort((chosen.window, -activation, rank, chosen.negative, chosen.feature))
    return Chosen(*(getattr(chosen, name)[by] for name in Chosen.__dataclass_fields__))


def _first_of(members: dict[str, np.ndarray], taken: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The first k members of each feature that are not taken yet."""
    free = ~np.isin(_pairs(members["group"], members["window"]), taken)
    members = {name: column[free] for name, column in members.items()}
    first = np.flatnonzero(run_starts(members["group"]))
    rank = np.arange(len(members["group"])) - np.repeat(first, np.diff(np.append(first, len(members["group"]))))
    return {name: column[rank < k] for name, column in members.items()}


def _pairs(features: np.ndarray, windows: np.ndarray) -> np.ndarray:
    return features.astype(np.uint64) << np.uint64(32) | windows.astype(np.uint64)


def records(
    chosen: Chosen, rows: slice, context: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
) -> Iterator[Example]:
    """Examples of some rows.

    Args:
        context: positions and values of a feature's firings in a window.
    """
    columns = (chosen.feature, chosen.window, chosen.peak, chosen.copies, chosen.roles, chosen.negative)
    for feature, window, peak, copies, roles, negative in zip(*(c[rows].tolist() for c in columns), strict=True):
        shown = {name: None if role < 0 else role for name, role in zip(_ROLES, roles, strict=True)}
        positions: tuple[int, ...] = ()
        values: tuple[float, ...] = ()
        activation = 0.0
        if negative < 0:
            here, strength = context(feature, window)
            strongest = int(np.abs(strength).argmax())
            positions, values = tuple(here.tolist()), tuple(strength.tolist())
            peak, activation = positions[strongest], values[strongest]
        yield Example(
            feature=feature,
            window_id=window,
            peak=peak,
            activation=activation,
            positions=positions,
            values=values,
            num_copies=copies,
            negative=None if negative < 0 else _NEGATIVES[negative],  # type: ignore[arg-type]
            **shown,
        )
