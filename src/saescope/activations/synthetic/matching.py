"""Dictionary rows against the truth's atoms, or against another dictionary: scores of directions alone.

All rows are normalised here, so that their lengths play no part; a row of zeros has cosine 0 with everything. Cosines are
signed unless ``absolute`` is asked for: a latent that points the opposite way has not found the feature. In few dimensions a
random dictionary is far from 0 in every one of these scores; :func:`random_baseline` says how far.

h  rows of a dictionary (latents), n  atoms, d  width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matching:
    """The one-to-one assignment of rows to atoms with the largest mean cosine; min(h, n) pairs, in the order of atoms."""

    mean: float  # of the pairs' cosines, absolute ones if those were asked for
    rows: Tensor  # [min(h, n)], int64: row of each pair
    atoms: Tensor  # [min(h, n)], int64, ascending: atom of each pair
    cosines: Tensor  # [min(h, n)], float64, signed

    def row_of(self, atom: int) -> int | None:
        """The row that is matched to an atom, None where rows are too few for all atoms."""
        found = self.rows[self.atoms == atom]
        return int(found[0]) if len(found) else None


def matched_cosine(rows: Tensor, atoms: Tensor, *, absolute: bool = False) -> Matching:
    """Mean cosine of the best one-to-one assignment (Hungarian algorithm) of ``[h, d]`` to ``[n, d]``, and the assignment.

    The mean is over min(h, n) pairs. Against the truth this is GT-MCC of arXiv 2505.20254.

    Args:
        absolute: assign and average by |cos|.
    """
    cosines = _cosines(rows, atoms)
    score = cosines.abs() if absolute else cosines
    first, second = (torch.from_numpy(places) for places in linear_sum_assignment(score.numpy(), maximize=True))
    order = second.argsort()
    first, second = first[order], second[order]
    return Matching(float(score[first, second].mean()), first, second, cosines[first, second])


def mean_row_max(rows: Tensor, atoms: Tensor, *, absolute: bool = False) -> float:
    """Mean over ``rows`` of the largest cosine with any of ``atoms``. NOT one-to-one: several rows may take one atom.

    Never below :func:`matched_cosine` for h <= n. ``mean_row_max(atoms, rows)`` is MMCS, the mean over true atoms. Some
    papers call this number PW-MCC.
    """
    cosines = _cosines(rows, atoms)
    return float((cosines.abs() if absolute else cosines).amax(-1).mean())


def stability(rows: Tensor, other: Tensor, *, absolute: bool = False) -> float:
    """Matched cosine between two dictionaries, ``[h, d]`` and ``[h', d]``; the order of the two plays no part."""
    return matched_cosine(rows, other, absolute=absolute).mean


@dataclass(frozen=True)
class Spread:
    """A number that was taken several times."""

    mean: float
    min: float
    max: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(sum(values) / len(values), min(values), max(values), tuple(values))


def pairwise_consistency(dictionaries: Sequence[Tensor], *, absolute: bool = False) -> Spread:
    """PW-MCC (arXiv 2505.20254): :func:`stability` over all pairs of dictionaries, each ``[h, d]``, such as those of
    several seeds; pairs in the order (0, 1), (0, 2), ..., (1, 2), ...

    Raises:
        ValueError: fewer than two dictionaries.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"consistency needs at least two dictionaries to compare, got {len(dictionaries)}")
    return Spread.of([stability(a, b, absolute=absolute) for a, b in combinations(dictionaries, 2)])


def order(rows: Tensor, atoms: Tensor, *, absolute: bool = False) -> float:
    """Ord (arXiv 2512.02194): Spearman's correlation of the atoms' order with that of the rows matched to them.

    For K rows and K atoms it is 1 - 6 sum_j (j - row(j))^2 / (K (K^2 - 1)). With unequal numbers, only matched pairs count,
    by their ranks among themselves. 1: the dictionary is in the truth's order; 0: in no order.

    Raises:
        ValueError: fewer than two pairs, which have no order.
    """
    match = matched_cosine(rows, atoms, absolute=absolute)
    k = len(match.rows)
    if k < 2:
        raise ValueError(f"an order needs at least two matched pairs, got {k}")
    ranks = match.rows.argsort().argsort()  # the atoms' ranks are 0, 1, ...: they are in order
    distance = int((ranks - torch.arange(k)).square().sum())
    return 1 - 6 * distance / (k * (k * k - 1))


@dataclass(frozen=True)
class Uniqueness:
    """Whether rows have atoms to themselves; the nearest atom is the one of the largest cosine, rows of zeros have none."""

    alone: float  # share of rows whose nearest atom is no other row's nearest
    distinct: float  # number of atoms that are some row's nearest, over the number of rows; never below ``alone``


def uniqueness(rows: Tensor, atoms: Tensor, *, absolute: bool = False) -> Uniqueness:
    """How far rows ``[h, d]`` avoid to sit on one atom of ``[n, d]`` together: 1 and 1 where no two share one."""
    cosines = _cosines(rows, atoms)
    nearest = (cosines.abs() if absolute else cosines).argmax(-1)[rows.detach().cpu().any(dim=-1)]
    takers = nearest.bincount(minlength=len(atoms))
    return Uniqueness(int((takers == 1).sum()) / len(rows), int((takers > 0).sum()) / len(rows))


def child_parent_cosine(rows: Tensor, atoms: Tensor, children: Mapping[int, Sequence[int]], match: Matching) -> float:
    """Mean over children of the cosine of the row matched to the child with the atom of its PARENT.

    With orthogonal atoms 0 is right, and absorption shows as a child's row that contains its parent. Children without a
    matched row are left out; nan if none has one.
    """
    cosines = _cosines(rows, atoms)
    found = [
        float(cosines[row, parent])
        for parent, family in children.items()
        for child in family
        if (row := match.row_of(child)) is not None
    ]
    return sum(found) / len(found) if found else float("nan")


def random_baseline(
    score: Callable[..., float], num_rows: int, d: int, seeds: Sequence[int] = range(5), *, num_dictionaries: int = 1
) -> Spread:
    """What a score gives for dictionaries of random directions, to be printed beside it.

    Args:
        score: takes ``num_dictionaries`` tensors ``[num_rows, d]``, such as ``lambda rows: stability(rows, atoms)``, or
            :func:`stability` itself with ``num_dictionaries=2``.
        seeds: one draw for each.
    """
    if num_rows < 1 or d < 1 or num_dictionaries < 1 or not len(seeds):
        raise ValueError(
            "expected at least one row, dimension, seed and dictionary, got "
            f"{num_rows}, {d}, {len(seeds)} and {num_dictionaries}"
        )
    values = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(num_rows, d, generator=generator) for _ in range(num_dictionaries)]
        values.append(float(score(*(torch.nn.functional.normalize(rows, dim=-1) for rows in drawn))))
    return Spread.of(values)


def _cosines(rows: Tensor, atoms: Tensor) -> Tensor:
    """Signed cosines ``[h, n]``, float64, on the CPU."""
    for name, matrix in (("rows", rows), ("atoms", atoms)):
        if matrix.ndim != 2 or not matrix.numel():
            raise ValueError(f"expected {name} as a matrix with one direction in each row, got {list(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise ValueError(f"{name} hold numbers that are not finite; the dictionary may have diverged")
    if rows.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"rows have width {rows.shape[1]}, atoms {atoms.shape[1]}; both are matrices with one direction in each row"
        )
    return _unit(rows) @ _unit(atoms).T


def _unit(rows: Tensor) -> Tensor:
    rows = rows.detach().cpu().double()
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp_min(1e-300)  # squares of tiny numbers would vanish
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-300)
