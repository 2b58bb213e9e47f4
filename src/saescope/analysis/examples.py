"""From the lists that a pass leaves to the examples of a feature's page.

Bands are known when the pass is over, and each is a run of the histogram's bins. Every bin kept the windows of smallest
priority among those that peak in it, so that the windows of smallest priority in the band are among those of its bins:
drawing for a band is merging. The work is done for some hundred features at a time, without a loop over features.

F  features of a block, S  their occupied (feature, bin) pairs, n  bands of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saescope.analysis.bins import EDGES, NUM_BINS, BinCounts, band_numbers, quantile_edges, width_edges
from saescope.analysis.samples import BottomK, places_in_runs, ranges, run_starts
from saescope.store.records import BAND_KINDS, Band, Example

_ROLES = ("top_rank", "quantile_band", "width_band")
_NEGATIVES = ("near_miss", "silent")
_BLOCK = 512  # features whose examples are drawn at once


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
        members: of the samples of the bins: "group", "key", "window", "copies", "context".
        bands: the band of each member.
    """
    group = members["group"].astype(np.int64) * num_bands + bands
    by = np.lexsort((members["window"], members["key"], group))
    group, key = group[by], members["key"][by]
    starts = np.flatnonzero(run_starts(group, key))
    copies = np.add.reduceat(members["copies"][by], starts) if len(starts) else members["copies"]
    group, window, context = group[starts], members["window"][by][starts], members["context"][by][starts]
    kept = places_in_runs(run_starts(group)) < k
    return {
        "group": group[kept] // num_bands, "band": group[kept] % num_bands, "window": window[kept],
        "copies": copies[kept], "context": context[kept],
    }  # fmt: skip


def ranks(members: dict[str, np.ndarray]) -> np.ndarray:
    """The place of each member of the top lists among those of its feature: the highest peak, then the first window."""
    by = np.lexsort((members["window"], members["order"], members["group"]))
    found = np.empty(len(by), dtype=np.int64)
    found[by] = places_in_runs(run_starts(members["group"][by]))
    return found


@dataclass(frozen=True)
class Chosen:
    """The windows that a block of features is shown in: a row per feature and window, in the order of the page."""

    feature: np.ndarray  # int64
    window: np.ndarray  # int64
    copies: np.ndarray  # int64
    context: np.ndarray  # int64: the number of the pair's activations; -1 for a window without any
    peak: np.ndarray  # int64, of windows without activations; -1 for others
    roles: np.ndarray  # int64, [rows, 3]: the numbers of _ROLES, -1 for none
    negative: np.ndarray  # int64: which of _NEGATIVES, -1 for a window in which the feature fires

    def rows(self, feature: int) -> slice:
        return slice(*np.searchsorted(self.feature, [feature, feature + 1]).tolist())


def choose(
    top: dict[str, np.ndarray],
    drawn: dict[str, dict[str, np.ndarray]],
    negatives: dict[str, dict[str, np.ndarray]],
    num_negatives: int,
    sizes: Callable[[np.ndarray], np.ndarray],
) -> Chosen:
    """One row for each window that has a role.

    Args:
        top: members of the top lists; drawn: of the bands of each kind (see `draw`).
        negatives: members of the lists of near misses and of silent windows.
        sizes: the size of the peak, by number of the activations.
    """
    parts = [top, *(drawn[kind] for kind in BAND_KINDS)]
    names = ("group", "window", "copies", "context")
    columns = [np.concatenate([part[name] for part in parts]).astype(np.int64) for name in names]
    roles = np.full((len(columns[0]), len(_ROLES)), -1, dtype=np.int64)
    numbers = [ranks(top), *(drawn[kind]["band"] for kind in BAND_KINDS)]
    roles[np.arange(len(roles)), np.repeat(np.arange(3), [len(own) for own in numbers])] = np.concatenate(numbers)
    by = np.lexsort((columns[1], columns[0]))
    starts = np.flatnonzero(run_starts(columns[0][by], columns[1][by]))
    if len(starts):
        # what a window is called in several roles is one number, but for the role and the number of copies
        columns = [np.maximum.reduceat(column[by], starts) for column in columns]
        roles = np.maximum.reduceat(roles[by], starts)
    none = np.full(len(starts), -1)
    rows: list[list[np.ndarray]] = [[*columns, none, roles, none]]
    activation = sizes(columns[3])

    taken = np.empty(0, dtype=np.uint64)
    for number, kind in enumerate(_NEGATIVES):
        found = _first_of(negatives[kind], taken, num_negatives)
        taken = _pairs(found["group"], found["window"])
        feature, window, copies, peak = (found[name].astype(np.int64) for name in (*names[:3], "peak"))
        none = np.full(len(feature), -1)
        rows.append([feature, window, copies, none, peak, np.full((len(none), len(_ROLES)), -1), none + 1 + number])
        activation = np.concatenate([activation, np.zeros(len(none))])
    chosen = Chosen(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))
    rank = np.where(chosen.roles[:, 0] < 0, np.iinfo(np.int64).max, chosen.roles[:, 0])
    by = np.lexsort((chosen.window, -activation, rank, chosen.negative, chosen.feature))
    return Chosen(*(getattr(chosen, name)[by] for name in Chosen.__dataclass_fields__))


def _first_of(members: dict[str, np.ndarray], taken: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The first k members of each feature that are not taken yet."""
    free = ~np.isin(_pairs(members["group"], members["window"]), taken)
    members = {name: column[free] for name, column in members.items()}
    kept = places_in_runs(run_starts(members["group"])) < k
    return {name: column[kept] for name, column in members.items()}


def _pairs(features: np.ndarray, windows: np.ndarray) -> np.ndarray:
    return features.astype(np.uint64) << np.uint64(32) | windows.astype(np.uint64)


def records(chosen: Chosen, rows: slice, context: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Iterator[Example]:
    """Examples of some rows.

    Args:
        context: positions and values of a feature's firings in a window, by their number.
    """
    columns = (getattr(chosen, name)[rows].tolist() for name in Chosen.__dataclass_fields__)
    for feature, window, copies, number, peak, roles, negative in zip(*columns, strict=True):
        shown = {name: None if role < 0 else role for name, role in zip(_ROLES, roles, strict=True)}
        positions: tuple[int, ...] = ()
        values: tuple[float, ...] = ()
        activation = 0.0
        if negative < 0:
            here, strength = context(number)
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


@dataclass(frozen=True)
class _Block:
    first: int
    bands: dict[str, Bands]
    chosen: Chosen


class Settled:
    """Statistics to which nothing is being added: sorted for answering."""

    def __init__(
        self,
        lists: dict[str, BottomK],
        contexts: dict[str, np.ndarray],
        slots: Sequence[np.ndarray],
        maxima: np.ndarray,
        *,
        num_bands: int,
        num_per_band: int,
        num_negatives: int,
    ):
        """
        Args:
            lists: "top", "bins", and those of negatives that there are; settled.
            contexts: see `Contexts.arrays`.
            slots: of every slot of the histogram: feature * NUM_BINS + bin, firings, windows.
            maxima: of every feature.
        """
        self.lists = lists
        keys, self._tokens, self._windows = slots
        self._by_key = np.argsort(keys)
        self._keys = keys[self._by_key]
        self._max = maxima
        self._starts = np.concatenate([[0], np.cumsum(contexts["lengths"], dtype=np.int64)])
        self._positions, self._values = contexts["positions"], contexts["values"]
        self._num_bands, self._num_per_band, self._num_negatives = num_bands, num_per_band, num_negatives
        self._block: _Block | None = None

    def slots(self, first: int, last: int) -> slice:
        """Which of the sorted slots belong to features."""
        return slice(*np.searchsorted(self._keys, [first * NUM_BINS, last * NUM_BINS]).tolist())

    def bin_counts(self, first: int, last: int) -> BinCounts:
        here = self.slots(first, last)
        starts = np.searchsorted(self._keys[here], np.arange(first, last + 1) * NUM_BINS)
        return BinCounts(starts, self._keys[here] % NUM_BINS, self._tokens[self._by_key[here]])

    def context(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and values of a pair's firings."""
        firings = slice(self._starts[number], self._starts[number + 1])
        return self._positions[firings], self._values[firings]

    def examples(self, feature: int) -> list[Example]:
        """The windows a feature is shown in, in the order of the page."""
        chosen = self._block_of(feature).chosen
        return list(records(chosen, chosen.rows(feature), self.context))

    def bands(self, feature: int) -> list[Band]:
        """The bands of both kinds."""
        block = self._block_of(feature)
        return [band for kind in BAND_KINDS for band in block.bands[kind].records(feature - block.first)]

    def windows(self) -> np.ndarray:
        """Numbers of all windows that an example of any feature uses, in rising order."""
        used = np.empty(0, dtype=np.int64)
        for first in range(0, len(self._max), _BLOCK):
            used = np.union1d(used, self._block_of(first).chosen.window)
        return used

    def _block_of(self, feature: int) -> _Block:
        """Bands and chosen windows of the block of features that holds this one; the last block is kept."""
        first = feature // _BLOCK * _BLOCK
        if self._block is None or self._block.first != first:
            self._block = self._draw(first, min(first + _BLOCK, len(self._max)))
        return self._block

    def _draw(self, first: int, last: int) -> _Block:
        counts = self.bin_counts(first, last)
        slots = self._by_key[self.slots(first, last)]
        edges = {
            "quantile": quantile_edges(counts, self._num_bands),
            "width": width_edges(counts, self._max[first:last], self._num_bands),
        }
        bands = {kind: Bands.of(kind, edges[kind], counts, self._windows[slots]) for kind in BAND_KINDS}
        members = self.lists["bins"].members(slots)
        bin_number = np.repeat(np.arange(len(slots)), self.lists["bins"].fill[slots])  # a row of `counts`
        members["group"] = first + counts.owner[bin_number]
        drawn = {
            kind: draw(members, bands[kind].numbers[bin_number], self._num_bands, self._num_per_band)
            for kind in BAND_KINDS
        }
        features = np.arange(first, last)
        nothing = {name: np.empty(0, dtype=np.int64) for name in ("group", "window", "peak", "copies")}
        negatives = {
            kind: self.lists[kind].members(features) if kind in self.lists else nothing
            for kind in ("near_miss", "silent")
        }
        top = self.lists["top"].members(features)
        return _Block(first, bands, choose(top, drawn, negatives, self._num_negatives, self._sizes))

    def _sizes(self, contexts: np.ndarray) -> np.ndarray:
        """The highest firing of each pair, by its size."""
        starts, lengths = self._starts[contexts], self._starts[contexts + 1] - self._starts[contexts]
        sizes = np.abs(self._values[ranges(starts, lengths)]).astype(np.float64)
        return np.maximum.reduceat(sizes, np.cumsum(lengths) - lengths) if len(contexts) else sizes
