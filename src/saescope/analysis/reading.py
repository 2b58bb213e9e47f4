"""What an analysis reads: whole windows of text in order, with the activations of their tokens.

The activations come from the model, or from a cache on disk; either way a block holds some windows and one row per token
that is counted (neither special nor padding) or special. Special tokens are read where they can be, so that it can be said
how many of a feature's firings fall on them; no other number includes them.

B  windows in a block, T  tokens in a window, n  tokens that are counted or special, d_in  width of the dictionary's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations import CachedActivations, TokenWindows, WindowBatch
from saescope.analysis.statistics import TokenBlock

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True)
class Block:
    """Some windows."""

    tokens: TokenBlock
    positions: np.ndarray  # int64, [B, T]: places in the corpus's flat array; -1 for opening and padding tokens
    x: Tensor  # [n, d_in], row by row of the windows

    @property
    def read(self) -> np.ndarray:
        """Tokens that have a row, bool, ``[B, T]``."""
        return self.tokens.counted | self.tokens.special

    @property
    def places(self) -> np.ndarray:
        """A number for each of the n tokens that no other token of the text has, int64."""
        window, column = self.read.nonzero()
        return self.tokens.windows[window] * self.read.shape[1] + column


class Text(ABC):
    """Windows of text whose activations can be read, in order and as often as one likes."""

    windows: TokenWindows
    reads_special_tokens: bool

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    @property
    def num_tokens(self) -> int:
        """Counted tokens."""
        return self.windows.num_tokens

    @abstractmethod
    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Block]:
        """The windows ``first`` to ``last`` (left out: to the end), block by block."""

    def _block(self, rows: range, batch: WindowBatch, x: Tensor) -> Block:
        counted = batch.keep.numpy()
        special = batch.attention.numpy() & ~counted if self.reads_special_tokens else np.zeros_like(counted)
        numbers = np.arange(rows.start, rows.stop, dtype=np.int64)
        block = TokenBlock(ids=batch.ids.numpy(), windows=numbers, counted=counted, special=special)
        return Block(block, batch.positions.numpy(), x)


class LiveText(Text):
    """Text that the model reads."""

    reads_special_tokens = True

    def __init__(
        self,
        model: LanguageModel,
        windows: TokenWindows,
        hook_points: Sequence[str],
        *,
        num_tokens: int | None = None,
        batch_size_windows: int = 32,
    ) -> None:
        """
        Args:
            num_tokens: read at most so many, spread evenly over the text; None: all.
        """
        self.model, self.windows = model, windows.evenly(num_tokens)
        self.hook_points, self.batch_size_windows = list(hook_points), batch_size_windows

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Block]:
        end = len(self) if last is None else last
        for start in range(first, end, self.batch_size_windows):
            rows = range(start, min(start + self.batch_size_windows, end))
            batch = self.windows.batch(rows)
            values = self.model.read(batch.ids, self.hook_points, attention_mask=batch.attention)
            read = batch.attention
            parts = [values[name][read.to(values[name].device)].float() for name in self.hook_points]
            yield self._block(rows, batch, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))


class CachedText(Text):
    """Text whose activations were written to disk; no model is there."""

    def __init__(
        self,
        cache: CachedActivations,
        hook_points: Sequence[str],
        *,
        num_tokens: int | None = None,
        batch_size_windows: int = 32,
        device: str | torch.device = "cpu",
    ) -> None:
        """As :class:`LiveText`.

        Raises:
            ValueError: the cache lacks a hook point.
        """
        for name in hook_points:
            cache.hook_point(name)
        self.cache, self.hook_points, self.batch_size_windows = cache, list(hook_points), batch_size_windows
        self.reads_special_tokens = not cache.manifest.settings["stream"]["exclude_special_tokens"]
        self.windows = cache.windows.evenly(num_tokens)
        # numbers in the cache of the windows that are read: each begins at a place of its own
        self._rows = np.searchsorted(cache.windows.starts, self.windows.starts)
        self._device = torch.device(device)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Block]:
        end = len(self) if last is None else last
        for start in range(first, end, self.batch_size_windows):
            rows = range(start, min(start + self.batch_size_windows, end))
            values: Any = self.cache.read(self._rows[rows.start : rows.stop], self.hook_points).values
            x = torch.cat([values[name] for name in self.hook_points], dim=-1).to(self._device)
            yield self._block(rows, self.windows.batch(rows), x)
