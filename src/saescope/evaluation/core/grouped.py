"""Sums over tokens by document, by place in the window and by how frequent the token is, in memory that does not grow with
the tokens.

T  tokens of a batch, G  groups, S  sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saescope.activations import TokenWindows
from saescope.activations.windows import WindowBatch

FREQUENCY_RANKS = (10, 100, 1000)
"""Bands of token ids by how often they stand in the text: the 10 most frequent, the 90 after them, ..."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """The groups that a token can be in."""

    document_starts: np.ndarray  # of the whole text
    band_of_id: np.ndarray  # band of frequency of every token id, int64
    num_places: int

    @classmethod
    def of(cls, windows: TokenWindows) -> Grouping:
        """The groups of the tokens in these windows."""
        count = np.zeros(int(windows.tokens.max(initial=0)) + 1, dtype=np.int64)
        for batch in windows.in_order(256):
            count += np.bincount(batch.ids[batch.keep].numpy(), minlength=len(count))
        rank = np.empty(len(count), dtype=np.int64)
        rank[np.argsort(-count, kind="stable")] = np.arange(len(count))
        bands = np.searchsorted(np.asarray(FREQUENCY_RANKS), rank, side="right")
        return cls(
            document_starts=windows.document_starts,
            band_of_id=bands,
            num_places=int(np.log2(windows.config.context_size)) + 1,
        )

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "document": len(self.document_starts) - 1,
            "position": self.num_places,
            "token frequency": len(FREQUENCY_RANKS) + 1,
        }

    def titles(self, name: str) -> list[str]:
        """What the groups are called."""
        if name == "position":
            return ["0", *(f"{2**i - 1} to {2 ** (i + 1) - 2}" for i in range(1, self.num_places))]
        ends = [0, *FREQUENCY_RANKS]
        return [
            *(f"tokens ranked {low + 1:,} to {high:,}" for low, high in pairwise(ends)),
            f"tokens ranked above {ends[-1]:,}",
        ]

    def groups(self, batch: WindowBatch) -> dict[str, np.ndarray]:
        """The groups of a batch's kept tokens, int64 ``[T]`` each."""
        keep = batch.keep.numpy()
        places = np.broadcast_to(np.arange(keep.shape[1]), keep.shape)[keep]
        positions = batch.positions.numpy()[keep]
        return {
            "document": np.searchsorted(self.document_starts, positions, side="right") - 1,
            "position": np.log2(places + 1).astype(np.int64),
            "token frequency": self.band_of_id[batch.ids.numpy()[keep]],
        }


class GroupedSums:
    """float64 sums of named columns, ``[G, S]`` for each grouping."""

    def __init__(self, sizes: Mapping[str, int], columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.tables = {name: np.zeros((size, len(self.columns))) for name, size in sizes.items()}

    def add(self, groups: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
        """Add values ``[T]`` of every column, for tokens in ``groups``."""
        stacked = np.stack([np.asarray(values[name], dtype=np.float64) for name in self.columns], axis=-1)
        for name, table in self.tables.items():
            np.add.at(table, groups[name], stacked)

    def column(self, grouping: str, name: str) -> np.ndarray:
        """``[G]``."""
        return self.tables[grouping][:, self.columns.index(name)]

    def total(self, name: str) -> float:
        """Over all tokens."""
        return float(self.column("document", name).sum())
