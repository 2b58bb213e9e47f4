"""What ``fit`` is given, as epochs of batches: a tensor of rows, or anything that gives batches.

n  rows in a batch, N  rows in all, d  activation width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sized
from itertools import chain
from typing import Any

import torch
from torch import Tensor


class Rows(ABC):
    """Activations in batches ``[n, d]``, as often as there are epochs.

    Attributes:
        num_rows, num_batches: in one epoch; None where that is not known.
    """

    num_rows: int | None
    num_batches: int | None

    @abstractmethod
    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        """The batches of the next epoch; ``generator`` decides about their order where it is ours to choose."""

    @abstractmethod
    def sample(self, most: int, generator: torch.Generator) -> Tensor:
        """Up to ``most`` rows to measure on."""


class TensorRows(Rows):
    """Rows of one tensor, in a new order in every epoch; the last batch may be short."""

    def __init__(self, x: Tensor, batch_size: int, *, several: bool) -> None:
        """``several``: a single row that is left over joins the batch before it."""
        self.x, self.batch_size, self.several = x, batch_size, several
        self.num_rows = len(x)
        self.num_batches = len(self._starts())

    def _starts(self) -> list[int]:
        starts = list(range(0, len(self.x), self.batch_size))
        alone = self.several and len(starts) > 1 and len(self.x) - starts[-1] == 1
        return starts[:-1] if alone else starts

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        starts = self._starts()
        for start, stop in zip(starts, [*starts[1:], len(self.x)], strict=True):
            yield self.x[order[start:stop]]

    def sample(self, most: int, generator: torch.Generator) -> Tensor:
        if len(self.x) <= most:
            return self.x
        return self.x[torch.randperm(len(self.x), generator=generator)[:most].to(self.x.device)]


class BatchRows(Rows):
    """Batches from an iterable, in its own order; one that can be read only once has one epoch."""

    def __init__(self, batches: Iterable[Any], width: int, *, nb_epochs: int, take: Any) -> None:
        """``take``: gets the tensor out of a batch that is a dict."""
        self.batches, self.width, self.take = batches, width, take
        self.num_rows = None
        self.num_batches = len(batches) if isinstance(batches, Sized) else None
        self._once: Iterator[Tensor] | None = None
        iterator = iter(batches)
        if iterator is batches and nb_epochs > 1:
            raise ValueError(
                f"activations are an iterator that can be read once, and nb_epochs is {nb_epochs}; set nb_epochs=1, or "
                "give a list of batches, a DataLoader or one tensor"
            )
        first = next(iterator, None)
        if first is None:
            raise ValueError("activations give no batches: there is nothing to fit on")
        self.first = self._checked(first)
        if iterator is batches:
            self._once = chain([self.first], map(self._checked, iterator))

    def epoch(self, generator: torch.Generator) -> Iterator[Tensor]:
        return map(self._checked, self.batches) if self._once is None else self._once

    def sample(self, most: int, generator: torch.Generator) -> Tensor:
        return self.first[:most]

    def _checked(self, batch: Any) -> Tensor:
        if isinstance(batch, list | tuple) and len(batch) == 1:  # as a DataLoader of a TensorDataset gives it
            batch = batch[0]
        if isinstance(batch, dict):
            batch = self.take(batch)
        return checked_rows(batch, self.width)


def checked_rows(x: Any, width: int) -> Tensor:
    """Activations as they should be, ``[n, d]``, without a graph.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(x, Tensor):
        raise ValueError(
            f"activations are a 2-D tensor [rows, {width}], a dict that holds one for the split point, or an iterable "
            f"of such batches; got {type(x).__name__}. get_activations(...) gives the dict"
        )
    if x.ndim != 2 or x.shape[1] != width or not len(x):
        raise ValueError(
            f"activations should have shape [rows, {width}] with at least one row, got {list(x.shape)}; get_activations "
            "with flatten_activations=True gives rows"
        )
    if not x.is_floating_point():
        raise ValueError(f"activations should be floating-point numbers, got {x.dtype}")
    return x.detach()
