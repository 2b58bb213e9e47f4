"""The k texts that activate each concept most, found in one pass over any number of units.

A text that occurs often counts once, with its largest activation: the first place where that occurs is kept. Only entries
that could still matter are looked at: those above the k-th best text of their concept so far. (A text that is among the best
already has a value of at least that.) What is held is k texts for each concept.

With ``signed`` the size of a value decides and its sign is kept; otherwise only positive values count.

Shapes: ``r`` rows at a time, ``m`` concepts looked at, ``e`` entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saescope.concepts.interpretations.units import Unit


class Best(NamedTuple):
    """A text's largest activation and the unit that has it."""

    value: float
    unit: Unit


class BestTexts:
    """The best texts of ``m`` concepts so far."""

    def __init__(self, num_concepts: int, k: int, *, signed: bool = False) -> None:
        self.k, self.signed = k, signed
        self._floor = torch.zeros(num_concepts, dtype=torch.float64)  # what a new text must exceed
        self._concept = np.zeros(0, dtype=np.int64)
        self._value = np.zeros(0)
        self._row = np.zeros(0, dtype=np.int64)  # among all units read
        self._units: dict[int, Unit] = {}  # of the rows that are kept
        self._num_rows = 0

    def update(self, units: Sequence[Unit], codes: Tensor) -> None:
        """Look at more units, with activations ``[r, m]``."""
        codes = codes.double()
        rows, concepts = ((codes.abs() if self.signed else codes) > self._floor).nonzero(as_tuple=True)
        first, self._num_rows = self._num_rows, self._num_rows + len(units)
        if not len(rows):
            return
        for row in rows.unique().tolist():
            self._units[first + row] = units[row]
        self._keep_best(
            np.concatenate([self._concept, concepts.numpy()]),
            np.concatenate([self._value, codes[rows, concepts].numpy()]),
            np.concatenate([self._row, rows.numpy() + first]),
        )

    def best(self) -> list[list[Best]]:
        """For each concept its best texts, strongest first; among equals the one that came first."""
        found: list[list[Best]] = [[] for _ in range(len(self._floor))]
        for concept, value, row in zip(self._concept.tolist(), self._value.tolist(), self._row.tolist(), strict=True):
            found[concept].append(Best(value, self._units[row]))
        return found

    def _keep_best(self, concept: np.ndarray, value: np.ndarray, row: np.ndarray) -> None:
        numbers: dict[str, int] = {}
        rows, places = np.unique(row, return_inverse=True)
        texts = [numbers.setdefault(self._units[each].text, len(numbers)) for each in rows.tolist()]
        text = np.array(texts, dtype=np.int64)[places]
        strength = np.abs(value)

        order = np.lexsort((row, -strength, text, concept))
        leads = _begins(concept[order]) | _begins(text[order])  # the best entry of each text
        order = order[leads]
        order = order[np.lexsort((row[order], -strength[order], concept[order]))]
        begins = _begins(concept[order])
        places = np.arange(len(order))
        rank = places - np.maximum.accumulate(np.where(begins, places, 0))
        order, rank = order[rank < self.k], rank[rank < self.k]

        self._concept, self._value, self._row = concept[order], value[order], row[order]
        full = rank == self.k - 1
        self._floor[torch.from_numpy(self._concept[full])] = torch.from_numpy(np.abs(self._value[full]))
        self._units = {each: self._units[each] for each in np.unique(self._row).tolist()}


def _begins(sorted_numbers: np.ndarray) -> np.ndarray:
    """Where a number differs from the one before, bool ``[e]``."""
    return np.diff(sorted_numbers, prepend=-1) != 0
