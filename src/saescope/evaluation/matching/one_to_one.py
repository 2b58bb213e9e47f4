"""One-to-one matching of two dictionaries of any size: the assignment of largest mean, or bounds on it.

Up to some thousand rows the Hungarian algorithm sees all pairs. Beyond that each row knows its m nearest alone, and a
sparse assignment is solved exactly in which a row may also stay without a partner, for the value of its nearest that is no
candidate. That is a relaxation: every true assignment is worth at most as much, so its value is an UPPER bound. Rows that
stayed alone are then matched with what is left over, in the same way, which gives an assignment and so a LOWER bound. Where
no row stays alone the two are equal, and the matching is the best there is.

N  rows, M  rows of the other dictionary, d  width, m  candidates of a row, K = min(N, M)  pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saescope.activations.synthetic.matching import matched_cosine
from saescope.evaluation.matching.nearest import BLOCK_BYTES, Neighbours, top_neighbours

EXACT_LIMIT = 4096  # the Hungarian algorithm takes seconds there, and eight times as long for twice as many
NUM_NEIGHBOURS = 32  # of a row; bounds on the mean then differ by some 1e-4 at 65,536 random rows
_ROUNDS = 16  # of matching what is left over; each leaves a small part of the one before
_ALONE = 1e-12  # what staying alone costs, so that a candidate of the same value is preferred


@dataclass(frozen=True, eq=False)
class OneToOne:
    """An assignment of rows to others, min(N, M) pairs, in the order of the rows."""

    rows: np.ndarray  # int64, [K], rising
    others: np.ndarray  # int64, [K]
    values: np.ndarray  # float64, [K]: cosines, or correlations
    upper: float
    """No assignment has a larger mean (to 1e-12 where the matching is not of all pairs)."""

    @property
    def mean(self) -> float:
        """Mean value over the pairs, which is a lower bound on the mean of the best assignment."""
        return float(self.values.mean())

    @property
    def is_exact(self) -> bool:
        """Whether it is the best assignment, to rounding."""
        return self.upper - self.mean <= 1e-9

    def other_of(self, num_rows: int) -> np.ndarray:
        """The partner of each of ``num_rows`` rows, -1 where it has none: int64 ``[N]``."""
        found = np.full(num_rows, -1, dtype=np.int64)
        found[self.rows] = self.others
        return found

    def turned(self) -> OneToOne:
        """The same assignment, of others to rows."""
        order = self.others.argsort()
        return OneToOne(self.others[order], self.rows[order], self.values[order], self.upper)


def one_to_one(
    rows: Tensor,
    others: Tensor,
    *,
    exact_limit: int = EXACT_LIMIT,
    num_neighbours: int = NUM_NEIGHBOURS,
    block_bytes: int = BLOCK_BYTES,
) -> OneToOne:
    """The one-to-one assignment of ``[N, d]`` to ``[M, d]`` with the largest mean signed cosine.

    Args:
        exact_limit: up to so many rows in the larger dictionary, all pairs are looked at.
        num_neighbours: candidates of each row beyond that.

    Raises:
        ValueError: no matrices of one width, or numbers that are not finite.
    """

    def best(left: np.ndarray | None, right: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        match = matched_cosine(_part(rows, left), _part(others, right))
        order = match.rows.argsort()
        return match.rows[order].numpy(), match.atoms[order].numpy(), match.cosines[order].numpy().clip(-1, 1)

    def near(left: np.ndarray | None, right: np.ndarray | None, num: int) -> Neighbours:
        return top_neighbours(_part(rows, left), _part(others, right), num, block_bytes=block_bytes)

    if len(rows) > len(others) and max(len(rows), len(others)) > exact_limit:  # the smaller one chooses
        turned = one_to_one(
            others, rows, exact_limit=exact_limit, num_neighbours=num_neighbours, block_bytes=block_bytes
        )
        return turned.turned()
    return assign(len(rows), len(others), best, near, exact_limit=exact_limit, num_neighbours=num_neighbours)


def hungarian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of the assignment of largest sum in a matrix ``[N, M]``."""
    rows, columns = linear_sum_assignment(values, maximize=True)
    return rows.astype(np.int64), columns.astype(np.int64), values[rows, columns]


Best = Callable[[np.ndarray | None, np.ndarray | None], tuple[np.ndarray, np.ndarray, np.ndarray]]
Near = Callable[[np.ndarray | None, np.ndarray | None, int], Neighbours]


def assign(
    num_rows: int,
    num_others: int,
    best: Best,
    near: Near,
    *,
    exact_limit: int = EXACT_LIMIT,
    num_neighbours: int = NUM_NEIGHBOURS,
) -> OneToOne:
    """The assignment by values that are known only through two functions; ``num_rows <= num_others`` beyond the limit.

    Args:
        best: from some rows and some others (None: all) to the assignment over all pairs of them, as
            :func:`hungarian` gives it, places counted within those given.
        near: from the same, and a number, to the neighbours of those rows.
    """
    if exact_limit < 1 or num_neighbours < 1:
        raise ValueError(f"exact_limit and num_neighbours must be at least 1, got {exact_limit} and {num_neighbours}")
    if max(num_rows, num_others) <= exact_limit:
        rows, others, values = best(None, None)
        return OneToOne(rows, others, values, float(values.mean()))
    partner = np.full(num_rows, -1, dtype=np.int64)
    value = np.zeros(num_rows)
    upper = 1.0
    left, right = np.arange(num_rows), np.arange(num_others)
    for step in range(_ROUNDS):
        if len(right) <= exact_limit:
            rows, others, values = best(left, right)
            partner[left[rows]], value[left[rows]] = right[others], values
            left = left[:0]
            break
        candidates = near(left, right, num_neighbours + 1)
        chosen, values, bound = _on_candidates(candidates, len(right))
        if step == 0:
            upper = bound
        matched = chosen >= 0
        partner[left[matched]], value[left[matched]] = right[chosen[matched]], values[matched]
        right = np.delete(right, chosen[matched])
        left = left[~matched]
        if not len(left):
            break
    if len(left):  # what so many rounds leave over is alike: any partner will do
        for some in np.array_split(left, -(-len(left) // exact_limit)):
            rows, others, values = best(some, right[: len(some)])
            partner[some[rows]], value[some[rows]] = right[others], values
            right = right[len(some) :]
    return OneToOne(np.arange(num_rows), partner, value, max(upper, float(value.mean())))


def _on_candidates(near: Neighbours, num_others: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Each row's candidate in the best assignment, -1 for none, its value, and the bound on the mean.

    The last neighbour is no candidate: it is what a row is worth that stays alone. Where all others are candidates nobody
    may stay alone.
    """
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    num_rows, num = near.indices.shape
    is_all = num == num_others
    num_candidates = num if is_all else num - 1
    rows = np.repeat(np.arange(num_rows), num_candidates)
    columns, gains = near.indices[:, :num_candidates].ravel(), near.cosines[:, :num_candidates].ravel()
    alone = near.cosines[:, -1]
    if not is_all:
        rows = np.concatenate([rows, np.arange(num_rows)])
        columns = np.concatenate([columns, num_others + np.arange(num_rows)])
        gains = np.concatenate([gains, alone - _ALONE])
    # an edge of cost 0 would count as no edge
    graph = sparse.csr_array((2.0 - gains, (rows, columns)), shape=(num_rows, num_others + num_rows * (not is_all)))
    found_rows, found = min_weight_full_bipartite_matching(graph)
    chosen = np.full(num_rows, -1, dtype=np.int64)
    chosen[found_rows] = np.where(found < num_others, found, -1)
    place = (near.indices[:, :num_candidates] == chosen[:, None]).argmax(-1)
    values = np.where(chosen >= 0, np.take_along_axis(near.cosines, place[:, None], 1)[:, 0], alone)
    return chosen, values, float(values.mean())


def _part(rows: Tensor, places: np.ndarray | None) -> Tensor:
    return rows if places is None else rows[places]
