"""The nearest rows of another dictionary, by blocks: all pairs are looked at, and no matrix of all pairs is ever held.

Products are made in float32, a block of rows against all others at a time. What float32 can not settle is settled in
float64: every value that is given back is a float64 cosine, and no row that belongs into the list is missing from it,
because the error of a float32 product of unit rows is bounded (Higham 2002, Accuracy and Stability, section 3.1) and
whatever lies within that bound of the last one taken is computed again. Equal cosines go by index.

Cosines are signed. A row of zeros has cosine 0 with everything.

N  rows, M  rows of the other dictionary, d  width, m  neighbours of a row, P  pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 1 << 26  # of float32 products held at a time
MOST_PAIRS = 1 << 27  # of one-to-many matches, 3 GB
_SPARE = 16  # candidates beyond those asked for: few rows then need a second look
_GROUP = 64  # columns whose maximum is looked at before they are
_PAIR_BYTES = 1 << 23  # of float64 rows multiplied at a time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For every row the m others of highest value, highest first."""

    indices: np.ndarray  # int64, [N, m]
    cosines: np.ndarray  # float64, [N, m]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows and their matches, any number for a row; by row, then from the highest cosine down."""

    rows: np.ndarray  # int64, [P]
    others: np.ndarray  # int64, [P]
    cosines: np.ndarray  # float64, [P]

    def __len__(self) -> int:
        return len(self.rows)


@torch.no_grad()
def top_neighbours(rows: Tensor, others: Tensor, num: int, *, block_bytes: int = BLOCK_BYTES) -> Neighbours:
    """For each of ``rows`` ``[N, d]`` the ``num`` rows of ``others`` ``[M, d]`` of highest signed cosine.

    Products are made where ``rows`` are. Beside the two matrices and their copies of norm 1 it takes twice ``block_bytes``.

    Args:
        num: neighbours per row; no more than M are given.
        block_bytes: room for products; at least one row is done at a time.

    Raises:
        ValueError: no matrices of one width, numbers that are not finite, a ``num`` or ``block_bytes`` below 1.
    """
    if num < 1:
        raise ValueError(f"each row needs at least one neighbour, got num = {num}")
    search = _Search(rows, others)
    num = min(num, search.num_others)
    take = min(num + _SPARE, search.num_others)
    indices = np.zeros((search.num_rows, num), dtype=np.int64)
    cosines = np.zeros((search.num_rows, num))
    for first, products in search.products(block_bytes):
        values, columns = _largest(products, take)
        found = columns.cpu().numpy()
        here = np.arange(first, first + len(found))
        exact = search.cosines(np.repeat(here, take), found.ravel()).reshape(found.shape)
        order = np.lexsort((found, -exact))[:, :num]
        indices[here] = np.take_along_axis(found, order, 1)
        cosines[here] = np.take_along_axis(exact, order, 1)
        if take == search.num_others:
            continue
        last = cosines[here, -1]
        # what was left out is at most the last value taken, in float32: is it surely below the last one kept?
        unsure = np.flatnonzero(values[:, -1].double().cpu().numpy() + search.error >= last)
        for row in unsure:
            if search.norms[first + row] == 0:  # equally far from everything
                indices[first + row], cosines[first + row] = np.arange(num), 0.0
                continue
            near = (products[row, : search.num_others] >= last[row] - 2 * search.error).nonzero()[:, 0].cpu().numpy()
            exact_row = search.cosines(np.full(len(near), first + row), near)
            chosen = np.lexsort((near, -exact_row))[:num]
            indices[first + row], cosines[first + row] = near[chosen], exact_row[chosen]
    return Neighbours(indices, cosines)


@torch.no_grad()
def neighbours_above(rows: Tensor, others: Tensor, cosine: float, *, block_bytes: int = BLOCK_BYTES) -> Pairs:
    """One-to-many matching: for each of ``rows`` all of ``others`` whose signed cosine is at least ``cosine``.

    Raises:
        ValueError: as :func:`top_neighbours`; more than 2**27 pairs, which would fill the memory.
    """
    search = _Search(rows, others)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    total = 0
    for first, products in search.products(block_bytes):
        near = (products[:, : search.num_others] >= cosine - 2 * search.error).nonzero().cpu().numpy()
        left, right = near[:, 0] + first, near[:, 1]
        exact = search.cosines(left, right)
        good = exact >= cosine
        left, right, exact = left[good], right[good], exact[good]
        order = np.lexsort((right, -exact, left))
        kept.append((left[order], right[order], exact[order]))
        total += len(order)
        if total > MOST_PAIRS:
            raise ValueError(
                f"more than {MOST_PAIRS:,} pairs have a cosine of {cosine} or more; ask for a higher one, or for the "
                "nearest few of each row"
            )
    columns = [np.concatenate(parts) for parts in zip(*kept, strict=True)]
    return Pairs(*columns)


def pair_cosines(rows: Tensor, others: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Signed cosines of ``rows[left]`` with ``others[right]``, pair by pair, in float64: ``[P]``."""
    return _Search(rows, others).cosines(left, right)


def checked_rows(rows: Tensor, name: str = "rows") -> Tensor:
    """Rows detached, in float32 or float64.

    Raises:
        ValueError: no matrix, or NaN or infinity in it.
    """
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"expected {name} as a matrix with one direction in each row, got shape {list(rows.shape)}")
    rows = rows.detach()
    rows = (rows if rows.dtype == torch.float64 else rows.float()).contiguous()
    for first, part in zip(range(0, len(rows), 4096), rows.split(4096), strict=True):
        bad = (~part.isfinite().all(-1)).nonzero()
        if len(bad):
            raise ValueError(
                f"row {first + int(bad[0])} of {name} holds NaN or infinity, so it has no direction; the dictionary may "
                "have diverged"
            )
    return rows


class _Search:
    """Two checked matrices, their float32 copies of norm 1, and the float64 cosine of any pairs of their rows."""

    def __init__(self, rows: Tensor, others: Tensor) -> None:
        rows, others = checked_rows(rows), checked_rows(others, "the other rows")
        if rows.shape[1] != others.shape[1]:
            raise ValueError(
                f"rows have width {rows.shape[1]}, the others {others.shape[1]}: dictionaries of different widths can not "
                "be compared"
            )
        self.num_rows, self.num_others = len(rows), len(others)
        self.norms, unit = _unit(rows)
        self.other_norms, other_unit = _unit(others)
        self._unit, self._wide = unit, rows.cpu().numpy()
        padded = -(-self.num_others // _GROUP) * _GROUP
        self._others = torch.nn.functional.pad(other_unit.to(unit.device), (0, 0, 0, padded - self.num_others))
        self._other_wide = others.cpu().numpy()
        # rounding of the products' terms and sums, and of the two unit rows; coarser where products may be rounded more
        rounding = 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8
        self.error = 1.05 * (rows.shape[1] + 3) * rounding

    def products(self, block_bytes: int) -> Iterator[tuple[int, Tensor]]:
        """The first row of each block, and its float32 cosines with all others (and -inf in columns beyond them)."""
        if block_bytes < 1:
            raise ValueError(f"block_bytes must be at least 1, got {block_bytes}")
        size = max(1, min(self.num_rows, block_bytes // (4 * len(self._others))))
        room = self._unit.new_empty(size, len(self._others))
        for first in range(0, self.num_rows, size):
            block = self._unit[first : first + size]
            products = torch.mm(block, self._others.T, out=room[: len(block)])
            products[:, self.num_others :] = -torch.inf
            yield first, products

    def cosines(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64, ``[P]``; each is computed in the same order of operations, so that equal rows give equal cosines."""
        size = max(1, _PAIR_BYTES // (8 * self._wide.shape[1]))
        found = np.zeros(len(left))
        for first in range(0, len(left), size):
            here = slice(first, first + size)
            a, b = left[here], right[here]
            along = (self._wide[a].astype(np.float64) * self._other_wide[b]).sum(-1)
            norms = self.norms[a] * self.other_norms[b]
            found[here] = np.divide(along, norms, out=np.zeros_like(along), where=norms > 0)
        return found.clip(-1, 1)


def _unit(rows: Tensor) -> tuple[np.ndarray, Tensor]:
    """Norms in float64, and float32 rows of norm 1 (or 0)."""
    norms = torch.cat([part.double().norm(dim=-1) for part in rows.split(4096)])
    parts = [
        (part.double() / size.where(size > 0, 1)[:, None]).float()
        for part, size in zip(rows.split(4096), norms.split(4096), strict=True)
    ]
    return norms.cpu().numpy(), torch.cat(parts)


def _largest(products: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The ``num`` largest of each row and their columns, ``[R, num]``, largest first.

    They lie in the ``num`` groups of columns of largest maximum; those are found in a single pass.
    """
    groups = products.view(len(products), -1, _GROUP)
    if groups.shape[1] <= 2 * num:
        return products.topk(num)
    chosen = groups.amax(-1).topk(num).indices  # [R, num]
    values = groups.gather(1, chosen[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    found, place = values.topk(num)
    return found, chosen.gather(1, place // _GROUP) * _GROUP + place % _GROUP
