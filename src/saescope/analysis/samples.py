"""Bounded lists, one per group, that end up the same whatever the order in which their members come.

A *group* is a feature, or a bin of a feature's histogram. A list keeps the members of its group that come first by a key
that hangs on nothing but the member itself: a hash gives a sample, a value gives the top. Members with equal keys are
copies of each other: one of them is kept (that of the smallest window) and they are counted. Counts are exact, because a
member of the final list was never pushed out on the way; for the same reason two lists of parts of the text give the list
of the whole.

Whatever could not be kept is turned away by the bound of a full list, which makes nearly all of a long text cheap. Numpy
alone can not put single members into their places: its lists have a little more room than they keep, new members are
written behind the old ones, and a list is sorted and cut when it is full. The compiled loops of ``compiled.py`` can, and
cut only long lists that way.

G  groups, k  members kept, R  room.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)

CONTEXT_TYPES = {"lengths": np.uint16, "positions": np.uint16, "values": np.float32}


@cache
def kernels() -> Any:
    """The compiled twins of the loops here, or None where Numba can not be had; they are then done by numpy, slower."""
    try:
        return import_module("saescope.analysis.compiled")
    except ImportError:
        return None


def stable_order(numbers: np.ndarray, limit: int) -> np.ndarray:
    """Places of integers from 0 to ``limit - 1`` in rising order, equal ones as they came.

    In linear time: numpy sorts integers of 16 bits by counting.
    """
    order = np.argsort((numbers & 0xFFFF).astype(np.uint16), kind="stable")
    if limit > 1 << 16:
        order = order[np.argsort((numbers >> 16)[order].astype(np.uint16), kind="stable")]
    return order


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers ``starts[i]``, ``starts[i] + 1``, ... (``lengths[i]`` of them), one range behind the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def run_starts(*columns: np.ndarray) -> np.ndarray:
    """Whether each row differs from the one before it in any column, bool."""
    new = np.ones(len(columns[0]), dtype=bool)
    if len(new):
        new[1:] = False
        for column in columns:
            new[1:] |= column[1:] != column[:-1]
    return new


def places_in_runs(new: np.ndarray) -> np.ndarray:
    """The place of each row in its run, from 0; ``new`` says where runs begin (see `run_starts`)."""
    starts = np.flatnonzero(new)
    return np.arange(len(new)) - np.repeat(starts, np.diff(np.append(starts, len(new))))


class BottomK:
    """The k members of smallest key in each group, by ``(order, key)`` where there is an order.

    Lists with a column "copies" fold: members of one key are one, which has the smallest order among them, of those the
    smallest "window", and in "copies" the number of members with that order. Others must never see a key twice.

    Args:
        columns: what is known of a member beside its key, 32 bits each: names, and types as numpy has them.
        ordered: members have an order (uint32) that comes before the key. Only for lists that fold.
    """

    def __init__(self, k: int, num_groups: int, columns: Mapping[str, Any], *, ordered: bool = False):
        types = {"order": np.uint32, **columns} if ordered else dict(columns)
        self.k = k
        self.ordered = ordered
        self.folds = "copies" in types
        self._compiled = kernels()
        # compiled code keeps folding lists in order, member by member
        self.room = k if self._compiled and self.folds else k + max(3, k // 4)
        self.types = {name: np.dtype(kind) for name, kind in types.items()}
        self._column = {name: number for number, name in enumerate(types)}
        self.fill = np.zeros(num_groups, dtype=np.int32)  # [G]
        self.keys = np.zeros((num_groups, self.room), dtype=np.uint64)  # [G, R]
        self.data = np.zeros((num_groups, self.room, len(types)), dtype=np.uint32)  # [G, R, columns]: their bits
        self.bounds = np.full(num_groups, _LAST)  # [G]: the last key of a full list; nothing behind it can be kept
        self.order_bounds = np.full(num_groups if ordered else 0, 0xFFFFFFFF, dtype=np.uint32)

    @property
    def num_groups(self) -> int:
        return len(self.fill)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.fill, self.keys, self.data, self.bounds, self.order_bounds))

    def grow(self, num_groups: int) -> None:
        """Make room for groups up to ``num_groups``."""
        self.fill = _longer(self.fill, num_groups, 0)
        self.keys = _longer(self.keys, num_groups, 0)
        self.data = _longer(self.data, num_groups, 0)
        self.bounds = _longer(self.bounds, num_groups, _LAST)
        if self.ordered:
            self.order_bounds = _longer(self.order_bounds, num_groups, 0xFFFFFFFF)

    def admits(self, groups: np.ndarray, keys: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Whether members would find a place as their lists are now, bool. Cheap: one look per member."""
        if order is None:
            return keys <= self.bounds[groups]
        bounds = self.order_bounds[groups]
        admitted = order < bounds
        admitted |= (order == bounds) & (keys <= self.bounds[groups])
        return admitted

    def add(self, groups: np.ndarray, keys: np.ndarray, **columns: np.ndarray) -> None:
        """Members, in any order; one value for each column (and "order") per member."""
        if not len(keys):
            return
        data = np.empty((len(keys), len(self.types)), dtype=np.uint32)
        for name, kind in self.types.items():
            data[:, self._column[name]] = np.ascontiguousarray(columns[name], dtype=kind).view(np.uint32)
        if self._compiled:
            lists = (self.fill, self.keys, self.data, self.bounds)
            if self.folds:
                how = (self.k, self.ordered, self._column["window"])
                self._compiled.add_folding(groups, keys, data, *how, *lists, self.order_bounds)
            else:
                self._compiled.add(groups, keys, data, self.k, *lists)
            return
        order = columns["order"] if self.ordered else None
        by_group = np.flatnonzero(self.admits(groups, keys, order))
        by_group = by_group[stable_order(groups[by_group], self.num_groups)]
        while len(by_group):
            group = groups[by_group]
            new = run_starts(group)
            place = self.fill[group] + places_in_runs(new)
            fits = place < self.room
            taken = by_group[fits]
            self.keys[group[fits], place[fits]] = keys[taken]
            self.data[group[fits], place[fits]] = data[taken]
            last = np.append(new[1:], True)
            self.fill[group[last]] = np.minimum(place[last] + 1, self.room)
            if fits.all():
                return
            rest = ~fits
            self._settle(np.unique(group[rest]))
            by_group, group = by_group[rest], group[rest]
            order = columns["order"][by_group] if self.ordered else None
            by_group = by_group[self.admits(group, keys[by_group], order)]

    def settle(self) -> None:
        """Bring every list into its final form: no copies, at most k, sorted (unless nothing can be folded)."""
        if self._compiled:
            if not self.folds:
                self._compiled.cut(self.k, self.fill, self.keys, self.data, self.bounds)
            return
        for first in range(0, self.num_groups, 4096):
            self._settle(np.arange(first, min(first + 4096, self.num_groups)))

    def _settle(self, groups: np.ndarray) -> None:
        keys, data, fill = self.keys[groups], self.data[groups], self.fill[groups]
        empty = np.arange(self.room) >= fill[:, None]
        keys[empty] = _LAST
        if self.folds:
            # stable: a member whose key is the last one stays before what is empty
            keys, data = _taken(np.argsort(keys, axis=1, kind="stable"), keys, data)
            same = (keys[:, 1:] == keys[:, :-1]) & ~empty[:, 1:]
            if same.any():
                self._fold(np.flatnonzero(same.any(1)), keys, data, fill)
            if self.ordered:
                column = self._column["order"]
                data[:, :, column][np.arange(self.room) >= fill[:, None]] = 0xFFFFFFFF
                keys, data = _taken(np.argsort(data[:, :, column], axis=1, kind="stable"), keys, data)
        elif (fill > self.k).any():
            keys, data = _taken(np.argpartition(keys, self.k - 1, axis=1), keys, data)
        fill = np.minimum(fill, self.k)
        self.fill[groups], self.keys[groups], self.data[groups] = fill, keys, data
        full = fill == self.k
        self.bounds[groups[full]] = keys[full, self.k - 1] if self.folds else keys[full, : self.k].max(1, initial=0)
        if self.ordered:
            self.order_bounds[groups[full]] = data[full, self.k - 1, self._column["order"]]

    def _fold(self, rows: np.ndarray, keys: np.ndarray, data: np.ndarray, fill: np.ndarray) -> None:
        """Make one member of those with one key, in these rows of the arrays."""
        lengths = fill[rows]
        row, place = np.repeat(rows, lengths), ranges(np.zeros_like(lengths), lengths)
        key, window, copies = keys[row, place], *(data[row, place, self._column[c]] for c in ("window", "copies"))
        order = data[row, place, self._column["order"]] if self.ordered else np.zeros(len(row), dtype=np.uint32)
        by = np.lexsort((window, order, key, row))
        row, place, key, order = row[by], place[by], key[by], order[by]
        new = run_starts(row, key)
        level = np.flatnonzero(run_starts(row, key, order))
        copies = np.add.reduceat(copies[by], level)[new[level]]
        row, place = row[new], place[new]
        target = places_in_runs(run_starts(row))
        lengths = np.bincount(row, minlength=len(keys))[rows]
        keys[row, target], data[row, target] = keys[row, place], data[row, place]
        data[row, target, self._column["copies"]] = copies
        fill[rows] = lengths
        keys[rows] = np.where(np.arange(self.room) < lengths[:, None], keys[rows], _LAST)

    def mark(self, column: str, marked: np.ndarray) -> None:
        """Set ``marked`` at every number that a member has in a column."""
        marked[self.data[:, :, self._column[column]][self._present]] = True

    def renumber(self, column: str, numbers: np.ndarray) -> None:
        """Replace every number i in a column by ``numbers[i]``."""
        values = self.data[:, :, self._column[column]]  # a view
        values[self._present] = numbers[values[self._present]]

    @property
    def _present(self) -> np.ndarray:
        return np.arange(self.room) < self.fill[:, None]

    def members(self, groups: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """All members of some groups (None: of all), group by group: "group", "key" and the columns.

        Call `settle` before: until then there are members that will not stay.
        """
        groups = np.arange(self.num_groups) if groups is None else groups
        fill = self.fill[groups]
        group, place = np.repeat(groups, fill), ranges(np.zeros_like(fill), fill)
        data = self.data[group, place]
        columns = {name: data[:, i].copy().view(kind) for i, (name, kind) in enumerate(self.types.items())}
        return {"group": group, "key": self.keys[group, place]} | columns


class Contexts:
    """Firings of (feature, window) pairs: where in the window, and how strongly.

    Pairs are numbered as they come, and their firings lie one behind the other. What is no longer needed goes when `keep` is
    called, which numbers the rest anew.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, np.ndarray]] = []
        self.num_pairs = self.num_firings = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for part in self._parts for array in part.values())

    def add(self, *, lengths: np.ndarray, positions: np.ndarray, values: np.ndarray) -> int:
        """Pairs with so many firings each, and those firings; returns the number of the first pair."""
        first = self.num_pairs
        if len(lengths):
            part = {"lengths": lengths, "positions": positions, "values": values}
            self._parts.append({name: part[name].astype(kind) for name, kind in CONTEXT_TYPES.items()})
            self.num_pairs += len(lengths)
            self.num_firings += len(values)
        return first

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, each kind in one array: "lengths" of the pairs, "positions" and "values" of the firings."""
        if len(self._parts) != 1:
            joined = {
                name: np.concatenate([np.empty(0, dtype=kind), *(part.pop(name) for part in self._parts)])
                for name, kind in CONTEXT_TYPES.items()
            }
            self._parts = [joined]
        return self._parts[0]

    def keep(self, wanted: np.ndarray) -> np.ndarray:
        """Forget the pairs that are not wanted (bool); returns the new numbers, by the old ones."""
        arrays = self.arrays()
        lengths = arrays["lengths"]
        arrays["lengths"] = lengths[wanted]
        compiled = kernels()
        if compiled:
            found = compiled.compact(lengths, wanted, arrays["positions"], arrays["values"])
            arrays["positions"], arrays["values"] = (array.copy() for array in found)
        else:
            firings = np.repeat(wanted, lengths)
            arrays["positions"], arrays["values"] = arrays["positions"][firings], arrays["values"][firings]
        self.num_pairs, self.num_firings = len(arrays["lengths"]), len(arrays["values"])
        return (np.cumsum(wanted) - 1).astype(np.uint32)


def _taken(index: np.ndarray, keys: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(index))[:, None]
    return keys[rows, index], data[rows, index]


def _longer(array: np.ndarray, length: int, filling: Any) -> np.ndarray:
    """The array with more rows; zeros cost no memory until they are written."""
    shape = (length, *array.shape[1:])
    longer = np.full(shape, filling, dtype=array.dtype) if filling else np.zeros(shape, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
