"""What comes into the statistics: blocks of whole windows with the codes of their tokens, checked and sorted.

B  windows in a batch, T  tokens in a window, n  firings in a batch, P  (feature, window) pairs in which a feature fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from saescope.analysis.samples import kernels, run_starts, stable_order
from saescope.dictionaries.codes import SparseCodes
from saescope.kernels.codes import FlatCodes

_MOST_TOKENS, _MOST_WINDOWS = 1 << 16, 1 << 32  # positions are kept in 16 bits, numbers of windows in 32


@dataclass(frozen=True)
class TokenBlock:
    """Some whole windows of the text; tensors or arrays.

    Codes are given for the tokens that are counted or special, row by row. Tokens that are neither (padding) have none.
    """

    ids: Any  # int, [B, T]
    windows: Any  # int, [B]: the number of each window in the text
    counted: Any  # bool, [B, T]: analysed
    special: Any = (
        None  # bool, [B, T]: special tokens, whose firings are only counted, as a share; None: there are none
    )


@dataclass(frozen=True)
class Block:
    """A `TokenBlock`, checked, as arrays."""

    ids: np.ndarray  # int64, [B, T]
    windows: np.ndarray  # int64, [B]
    counted: np.ndarray  # bool, [B, T]
    special: np.ndarray  # bool, [B, T]

    @cached_property
    def rows(self) -> np.ndarray:
        """The place in the block of each token that has codes."""
        return np.flatnonzero(self.counted | self.special)


@dataclass(frozen=True)
class Firings:
    """The firings of a batch on analysed tokens, by feature and in the order of the text."""

    feature: np.ndarray  # int64, [n]
    row: np.ndarray  # int64, [n]: window, as a row of the batch
    position: np.ndarray  # int64, [n]: in the window
    value: np.ndarray  # float32, [n]
    special_features: np.ndarray  # int64: the feature of each firing on a special token

    @cached_property
    def size(self) -> np.ndarray:
        return np.abs(self.value)

    @cached_property
    def runs(self) -> np.ndarray:
        """Where each feature's firings begin."""
        return np.flatnonzero(run_starts(self.feature))


@dataclass(frozen=True)
class Pairs:
    """A feature and a window in which it fires, by feature; its firings are a run."""

    start: np.ndarray  # int64, [P]
    length: np.ndarray  # int64, [P]
    feature: np.ndarray  # int64, [P]
    row: np.ndarray  # int64, [P]
    size: np.ndarray  # float32, [P]: of the highest firing
    peak: np.ndarray  # int64, [P]: its position, the first of equal ones
    num_rows: int

    @classmethod
    def of(cls, firings: Firings, num_rows: int) -> Pairs:
        compiled = kernels()
        if compiled:
            start, size, peak = compiled.pairs(firings.feature, firings.row, firings.position, firings.size)
        else:
            start = np.flatnonzero(run_starts(firings.feature, firings.row))
            size, peak = firings.size[start], firings.position[start]
        length = np.diff(np.append(start, len(firings.feature)))
        if not compiled and len(start):
            size = np.maximum.reduceat(firings.size, start)
            place = np.where(firings.size == np.repeat(size, length), firings.position, _MOST_TOKENS)
            peak = np.minimum.reduceat(place, start)
        return cls(start, length, firings.feature[start], firings.row[start], size, peak, num_rows)

    @cached_property
    def _keys(self) -> np.ndarray:
        return self.feature * self.num_rows + self.row

    def hold(self, feature: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Whether features fire in windows (rows of the batch), bool."""
        if not len(self._keys):
            return np.zeros(len(feature), dtype=bool)
        wanted = feature * self.num_rows + row
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return self._keys[found] == wanted


def read_block(tokens: Any, context_size: int | None, next_window: int) -> Block:
    """A block as arrays.

    Args:
        context_size: tokens that a window must have; None: any number.
        next_window: from where windows are numbered if only token ids are given.

    Raises:
        ValueError: shapes, types or numbers do not fit.
    """
    if not isinstance(tokens, TokenBlock):
        ids = as_array(tokens)
        tokens = TokenBlock(ids, np.arange(next_window, next_window + len(ids)), np.ones(ids.shape, dtype=bool))
    ids, windows, counted = as_array(tokens.ids), as_array(tokens.windows), as_array(tokens.counted)
    special = np.zeros(counted.shape, dtype=bool) if tokens.special is None else as_array(tokens.special)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids must be whole numbers, [windows, tokens], got {ids.dtype} {list(ids.shape)}")
    if windows.shape != ids.shape[:1] or windows.dtype.kind not in "iu":
        raise ValueError(f"{len(ids)} windows need {len(ids)} whole numbers, got {windows.dtype} {list(windows.shape)}")
    for name, mask in (("counted", counted), ("special", special)):
        if mask.shape != ids.shape or mask.dtype != bool:
            raise ValueError(f"{name} must be bool, {list(ids.shape)}, got {mask.dtype} {list(mask.shape)}")
    if (counted & special).any():
        row = int((counted & special).any(1).argmax())
        raise ValueError(f"window {windows[row]} has tokens that are both counted and special; choose one for each")
    if ids.shape[1] > _MOST_TOKENS:
        raise ValueError(f"windows may have {_MOST_TOKENS} tokens at most, got {ids.shape[1]}")
    if context_size not in (None, ids.shape[1]):
        raise ValueError(f"all windows must have {context_size} tokens as the first had, got {ids.shape[1]}")
    if windows.min() < 0 or windows.max() >= _MOST_WINDOWS:
        raise ValueError(f"windows are numbered from 0 to 2**32 - 1, got {windows.min()} to {windows.max()}")
    return Block(ids.astype(np.int64), windows.astype(np.int64), counted, special)


def read_firings(block: Block, codes: SparseCodes | FlatCodes, d_sae: int) -> Firings:
    """The firings of a block's tokens, by feature.

    Raises:
        ValueError: codes do not fit the block, hold a value that is no number, or a feature twice for one token.
    """
    token, feature, value, num_tokens = _flat(codes)
    if codes.d_sae != d_sae:
        raise ValueError(f"codes of {codes.d_sae} features were given to statistics of {d_sae}")
    if num_tokens != len(block.rows):
        raise ValueError(
            f"there are {len(block.rows)} tokens that are counted or special, but codes of {num_tokens}; give one row "
            "of codes for each of them, in the order of the text"
        )
    if len(feature) and (feature.min() < 0 or feature.max() >= d_sae):
        raise ValueError(f"features go from 0 to {d_sae - 1}, got {feature.min()} to {feature.max()}")
    length = block.ids.shape[1]
    place = block.rows[token]
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        row, position = divmod(int(place[bad[0]]), length)
        raise ValueError(
            f"feature {feature[bad[0]]} has the value {value[bad[0]]} in window {block.windows[row]} at position "
            f"{position}, expected a finite number; did the model overflow? Its windows are not counted"
        )
    by = stable_order(feature, d_sae)
    special_features = feature[:0]
    if block.special.any():
        special = block.special.reshape(-1)[place]
        special_features, by = feature[special], by[~special[by]]
    feature, place = feature[by], place[by]
    twice = np.flatnonzero((feature[1:] == feature[:-1]) & (place[1:] == place[:-1]))
    if len(twice):
        row, position = divmod(int(place[twice[0]]), length)
        raise ValueError(
            f"feature {feature[twice[0]]} stands twice in the codes of one token (window {block.windows[row]}, "
            f"position {position}); add its values up first"
        )
    row = place // length
    return Firings(feature, row, place - row * length, value[by], special_features)


def joined(seen: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Runs of window numbers (first, and the one behind the last), old and new in one list.

    Raises:
        ValueError: a window is in both.
    """
    runs = np.concatenate([seen, new])
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    twice = np.flatnonzero(runs[1:, 0] < runs[:-1, 1])
    if len(twice):
        raise ValueError(f"window {runs[twice[0] + 1, 0]} was given before; every window counts once")
    apart = np.append(True, runs[1:, 0] > runs[:-1, 1])
    ends = np.append(np.flatnonzero(apart)[1:], len(runs)) - 1
    return np.stack([runs[apart, 0], runs[ends, 1]], axis=1) if len(runs) else runs


def as_array(numbers: Any) -> np.ndarray:
    """A tensor or anything that numpy takes, as an array."""
    return numbers.detach().cpu().numpy() if isinstance(numbers, torch.Tensor) else np.asarray(numbers)


def _flat(codes: SparseCodes | FlatCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Token, feature and value of every firing, token by token, and the number of tokens."""
    values = as_array(codes.values.detach().float())
    if isinstance(codes, FlatCodes):
        fires = np.flatnonzero(values)
        token = np.repeat(np.arange(codes.num_tokens), np.diff(as_array(codes.starts)))[fires]
        return token, as_array(codes.features).astype(np.int64)[fires], values[fires], codes.num_tokens
    fires = np.flatnonzero(values)
    token = fires // values.shape[1]
    return token, as_array(codes.indices).reshape(-1)[fires], values.reshape(-1)[fires], len(values)


def runs_of(numbers: np.ndarray) -> np.ndarray:
    """Numbers as runs: first, and the one behind the last; int64, ``[runs, 2]``."""
    numbers = np.sort(numbers)
    starts = np.flatnonzero(np.append(True, np.diff(numbers) != 1))
    ends = np.append(starts[1:], len(numbers)) - 1
    return np.stack([numbers[starts], numbers[ends] + 1], axis=1)
