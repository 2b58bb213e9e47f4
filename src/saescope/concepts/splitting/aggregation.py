"""From the vectors of a unit's tokens to one vector, and from one vector back to its tokens.

For a unit of tokens t_1 .. t_l with activations x_1 .. x_l, dimension by dimension::

    MEAN, MAX, MIN, SUM      as named
    FIRST, LAST              x_1, x_l
    SIGNED_MAX               the x_i of largest absolute value, with its sign (the first of them where several are)

The way back copies the vector to every token, and divides it by l for SUM, so that aggregating again gives the vector.

Half-precision values are aggregated, and returned, in float32.

Shapes: ``m`` tokens of all units, one unit after the other; ``ng`` units; ``l`` tokens of one unit; ``d`` width.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class GranularityAggregationStrategy(StrEnum):
    """How the tokens of a unit become one vector; the strings are accepted wherever a strategy is asked for."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    FIRST = "first"
    LAST = "last"
    SUM = "sum"
    SIGNED_MAX = "signed_max"

    @classmethod
    def _missing_(cls, value: object) -> GranularityAggregationStrategy:
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        raise ValueError(f"{value!r} is no aggregation strategy; there are {', '.join(cls.__members__)}")

    def aggregate(self, x: Tensor) -> Tensor:
        """One unit: ``[l, d]`` to ``[1, d]``.

        Raises:
            ValueError: not a matrix, or no token.
        """
        if x.dim() != 2 or not len(x):
            raise ValueError(
                f"one unit's activations are [tokens, width] with at least one token, not {tuple(x.shape)}"
            )
        return self.aggregate_units(x, torch.tensor([len(x)], device=x.device))

    def unfold(self, x: Tensor, new_dim_length: int) -> Tensor:
        """The way back for one unit: ``[1, d]`` to ``[new_dim_length, d]``.

        Raises:
            ValueError: not one row, or no token.
        """
        if x.dim() != 2 or len(x) != 1 or new_dim_length < 1:
            raise ValueError(
                f"unfold takes one row [1, width] and a number of tokens from 1 up, not {tuple(x.shape)} and "
                f"{new_dim_length}"
            )
        return self.unfold_units(x, torch.tensor([new_dim_length], device=x.device))

    def aggregate_units(self, values: Tensor, sizes: Tensor) -> Tensor:
        """All units at once: ``[m, d]`` to ``[ng, d]``.

        Args:
            values: the units' tokens, one unit after the other.
            sizes: ``[ng]``, tokens of each unit, at least 1; they sum to m.
        """
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        kind, ends = type(self), sizes.cumsum(0)
        if self is kind.FIRST:
            return values[ends - sizes]
        if self is kind.LAST:
            return values[ends - 1]
        unit_of = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)  # [m]
        if self in (kind.MAX, kind.MIN):
            return _extreme(values, unit_of, len(sizes), "amax" if self is kind.MAX else "amin")
        if self is kind.SIGNED_MAX:
            return values.gather(0, _first_largest(values.detach().abs(), unit_of, len(sizes)))
        total = values.new_zeros(len(sizes), values.shape[1]).index_add(0, unit_of, values)
        return total / sizes[:, None] if self is kind.MEAN else total

    def unfold_units(self, rows: Tensor, sizes: Tensor) -> Tensor:
        """The way back for all units: ``[ng, d]`` to ``[m, d]``."""
        if self is type(self).SUM:
            rows = rows / sizes[:, None]
        return rows.repeat_interleave(sizes, dim=0)


def _extreme(values: Tensor, unit_of: Tensor, num_units: int, reduce: str) -> Tensor:
    into = values.new_zeros(num_units, values.shape[1])  # [ng, d]
    return into.scatter_reduce(0, unit_of[:, None].expand_as(values), values, reduce, include_self=False)


def _first_largest(sizes_of: Tensor, unit_of: Tensor, num_units: int) -> Tensor:
    """Row of the first largest entry of each unit in each dimension: ``[m, d]`` to row numbers ``[ng, d]``."""
    largest = _extreme(sizes_of, unit_of, num_units, "amax")
    # NaN is the largest of a unit that has one, and equals nothing
    is_largest = (sizes_of == largest[unit_of]) | sizes_of.isnan()
    row = torch.arange(len(sizes_of), device=sizes_of.device)[:, None]
    return _extreme(torch.where(is_largest, row, len(sizes_of)), unit_of, num_units, "amin")
