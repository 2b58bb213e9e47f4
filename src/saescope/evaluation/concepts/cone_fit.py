"""The point of a cone that is nearest to a direction, with all atoms allowed or only a few.

The cone of a dictionary is what its atoms can write with activations of 0 or more. Its point nearest to a unit direction w
is the answer of non-negative least squares (NNLS), and the share of w that it covers is the squared cosine of the angle
between w and the cone.

NNLS of a whole dictionary would hold all its atoms in float64 at once. It is enough to know those that matter: solve with
some atoms, look through all the others for any that still points along what is left, take the best of these in as well, and
stop when there is none. That is then the solution for all atoms (the conditions of Karush, Kuhn and Tucker hold).

n  atoms, d  width, c  directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 8192  # atoms looked at together
_ALONG = 1e-9  # cosine with what is left, beneath which an atom does not help
_LEFT = 1e-9  # length of what is left of a unit direction that counts as nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A non-negative combination of unit atoms that is as near to a unit direction as it can be."""

    atoms: np.ndarray  # numbers of those with a weight above 0, rising, int64
    weights: np.ndarray  # float64
    coverage: float  # squared cosine of the angle between the direction and the combination; 0 without atoms

    @property
    def participation(self) -> float | None:
        """(sum of the weights)^2 / sum of their squares: as many atoms as that, were they equal."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum()) if len(self.atoms) else None

    def dense(self, num_atoms: int) -> np.ndarray:
        """Weights of all atoms, ``[n]``."""
        found = np.zeros(num_atoms)
        found[self.atoms] = self.weights
        return found


class Cone:
    """All non-negative combinations of some atoms; atoms of length 0 are passed over."""

    def __init__(self, rows: np.ndarray) -> None:
        """``rows [n, d]``, of any length.

        Raises:
            ValueError: a row that is not a number.
        """
        if not np.isfinite(rows).all():
            raise ValueError("atoms must be finite; the decoder holds NaN or infinity")
        self.rows = rows
        self.norms = np.concatenate(
            [np.linalg.norm(block.astype(np.float64), axis=1) for _, block in self._blocks()] or [np.zeros(0)]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def unit(self, atoms: np.ndarray | slice) -> np.ndarray:
        """Some atoms at length 1 (0 where they have none), float64 ``[., d]``."""
        norms = self.norms[atoms]
        return self.rows[atoms].astype(np.float64) / np.where(norms > 0, norms, 1)[:, None]

    def products(self, vectors: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """(which atoms, their products with ``vectors [c, d]``, ``[c, .]``), block by block."""
        for where, _ in self._blocks():
            yield where, vectors @ self.unit(where).T

    def strongest(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The atoms with the largest products, in falling order: products and numbers, both ``[c, count]`` or fewer."""
        best, which = np.zeros((len(vectors), 0)), np.zeros((len(vectors), 0), dtype=np.int64)
        for where, products in self.products(vectors):
            numbers = np.broadcast_to(np.arange(where.start, where.start + products.shape[1]), products.shape)
            best, which = np.concatenate([best, products], 1), np.concatenate([which, numbers], 1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :count]
            best, which = np.take_along_axis(best, order, 1), np.take_along_axis(which, order, 1)
        return best, which

    def nearest(self, directions: np.ndarray) -> list[Fit]:
        """The nearest point of the whole cone for each unit direction, ``[c, d]``."""
        fits = [_none() for _ in directions]
        left, open_ = directions.copy(), np.arange(len(directions))
        at_once = max(16, directions.shape[1] // 2)
        while len(open_):
            products, atoms = self.strongest(left[open_], at_once)
            goes_on = []
            for number, along, new in zip(open_, products, atoms, strict=True):
                length = np.linalg.norm(left[number])
                new = new[along > _ALONG * length] if length > _LEFT else new[:0]
                new = np.setdiff1d(new, fits[number].atoms)  # within rounding, these do not help any more
                if len(new):
                    fit, rest = self._fit(directions[number], np.concatenate([fits[number].atoms, new]))
                    if np.linalg.norm(rest) < length * (1 - 1e-12):
                        fits[number], left[number] = fit, rest
                        goes_on.append(number)
            open_ = np.array(goes_on, dtype=np.int64)
        return fits

    def pursuit(self, directions: np.ndarray, num_atoms: Sequence[int]) -> dict[int, list[Fit]]:
        """Combinations of few atoms, by non-negative orthogonal matching pursuit (Bruckstein et al. 2008).

        The atom most along what is left joins, and all weights are fitted anew. One atom is the best one; several are a
        good choice, not always the best.

        Returns:
            For each number of atoms, a fit of each unit direction in ``[c, d]`` with that many at most.
        """
        fits, left, found = [_none() for _ in directions], directions.copy(), {}
        chosen: list[list[int]] = [[] for _ in directions]
        for step in range(1, max(num_atoms) + 1):
            products, atoms = self.strongest(left, 1)
            for number in range(len(directions) if products.shape[1] else 0):
                along, atom = products[number, 0], int(atoms[number, 0])
                if along > _ALONG * np.linalg.norm(left[number]) and atom not in chosen[number]:
                    chosen[number].append(atom)
                    fits[number], left[number] = self._fit(directions[number], np.array(chosen[number]))
            if step in num_atoms:
                found[step] = list(fits)
        return found

    def _fit(self, direction: np.ndarray, atoms: np.ndarray) -> tuple[Fit, np.ndarray]:
        """NNLS with these atoms, and what is left of the direction."""
        from scipy.optimize import nnls

        atoms = np.sort(atoms)
        unit = self.unit(atoms)
        weights, _ = nnls(unit.T, direction, maxiter=max(100, 30 * len(atoms)))
        rest = direction - weights @ unit
        used = weights > 0
        coverage = min(1.0, max(0.0, 1 - float(rest @ rest)))
        return Fit(atoms=atoms[used], weights=weights[used], coverage=coverage), rest

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, len(self.rows), _BLOCK):
            where = slice(first, first + _BLOCK)
            yield where, self.rows[where]


def _none() -> Fit:
    return Fit(atoms=np.zeros(0, dtype=np.int64), weights=np.zeros(0), coverage=0.0)
