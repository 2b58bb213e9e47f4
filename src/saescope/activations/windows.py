"""Text to tokens: documents tokenised once and cut into windows, every token knowing where it stands.

All documents lie one behind the other in one flat array; a window is a stretch of it. In ``concatenate`` packing windows
run across documents, each of which is opened by a separator token; in ``separate`` packing a window never holds two
documents and the last one of each is padded. A window may open with a beginning-of-sequence token of its own. A token's
place in the flat array is its *position*; document and offset follow from it.

B  windows in a batch, T  tokens in a window (context_size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from saescope.activations.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Packing = Literal["concatenate", "separate"]
_DOCUMENTS_AT_ONCE = 64  # in one call of the tokenizer


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How text is cut into windows."""

    context_size: int = 128  # tokens in a window, its opening token included
    packing: Packing = "concatenate"
    prepend_bos: bool = True  # every window opens with the beginning-of-sequence token
    max_tokens: int | None = None  # stop reading text after so many tokens; None: all of it

    def __post_init__(self) -> None:
        if self.packing not in get_args(Packing):
            raise ValueError(f"packing must be {' or '.join(map(repr, get_args(Packing)))}, got {self.packing!r}")
        if self.context_size < 2 + self.prepend_bos:
            raise ValueError(f"context_size must be at least {2 + self.prepend_bos}, got {self.context_size}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True)
class WindowBatch:
    """Some windows as the model takes them, all ``[B, T]``."""

    ids: Tensor  # int64
    attention: Tensor  # bool: not padding
    keep: Tensor  # bool: neither special nor padding; what training, analysis and metrics look at
    positions: Tensor  # int64 place in the flat array; -1 for opening and padding tokens


@dataclass(frozen=True, kw_only=True)
class TokenWindows:
    """A tokenised corpus cut into windows. Token ids are held in memory: 4 bytes per token."""

    config: WindowConfig
    tokens: np.ndarray  # int32, [num_tokens]: the flat array
    document_starts: np.ndarray  # int64, [num_documents + 1]
    documents: list[Document]
    starts: np.ndarray  # int64, [num_windows]: first position of each window
    lengths: np.ndarray  # int32, [num_windows]: tokens that each takes from the flat array
    special_ids: frozenset[int]
    separator_id: int | None  # opens every document in concatenate packing
    bos_id: int | None  # opens every window, if asked for
    pad_id: int

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        tokenizer: PreTrainedTokenizerBase,
        config: WindowConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> TokenWindows:
        """Tokenise documents in batches until the text or ``max_tokens`` ends, and cut windows.

        Args:
            on_progress: called with the number of tokens so far.

        Raises:
            ValueError: the tokenizer lacks a token that the config asks for, or the text fills no window.
        """
        candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
        opening = next((token for token in candidates if token is not None), None)
        if config.prepend_bos and opening is None:
            raise ValueError(
                "prepend_bos is set, but the tokenizer has neither a BOS, a CLS nor an EOS token; set prepend_bos = false"
            )
        separator = opening if config.packing == "concatenate" else None
        pieces, starts, kept, total = [], [0], [], 0
        source = iter(documents)
        while chunk := list(islice(source, _DOCUMENTS_AT_ONCE)):
            encoded = tokenizer([document.text for document in chunk], add_special_tokens=False, verbose=False)
            for document, ids in zip(chunk, encoded["input_ids"], strict=True):
                piece = ([separator] if separator is not None else []) + list(ids)
                if config.max_tokens is not None:
                    piece = piece[: config.max_tokens - total]
                pieces.append(np.asarray(piece, dtype=np.int32))
                total += len(piece)
                starts.append(total)
                kept.append(document)
            if on_progress:
                on_progress(total)
            if config.max_tokens is not None and total >= config.max_tokens:
                break
        filled = [i for i in range(len(kept)) if starts[i + 1] > starts[i]]
        document_starts = np.asarray([*(starts[i] for i in filled), total], dtype=np.int64)
        width = config.context_size - config.prepend_bos
        window_starts, lengths = _cut(document_starts, width, config.packing)
        if not len(window_starts):
            raise ValueError(
                f"the data set is too small: its {total} tokens fill no window of context_size {config.context_size}"
            )
        return cls(
            config=config,
            tokens=np.concatenate(pieces),
            document_starts=document_starts,
            documents=[kept[i] for i in filled],
            starts=window_starts,
            lengths=lengths,
            special_ids=frozenset(tokenizer.all_special_ids),
            separator_id=separator,
            bos_id=opening if config.prepend_bos else None,
            pad_id=next((t for t in (tokenizer.pad_token_id, opening) if t is not None), 0),
        )

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens in all windows, special ones and padding not counted."""
        return int(self.tokens_per_window().sum())

    def tokens_per_window(self, *, exclude_special_tokens: bool = True) -> np.ndarray:
        """Tokens in each window, int64, ``[num_windows]``; padding is never counted."""
        if not exclude_special_tokens:
            return self.lengths.astype(np.int64) + (self.bos_id is not None)
        content = np.concatenate([[0], np.cumsum(self._content(self.tokens))])
        return content[self.starts + self.lengths] - content[self.starts]

    @property
    def num_attended(self) -> int:
        """Tokens in all windows, special ones counted and padding not."""
        return int(self.lengths.sum()) + (len(self) if self.bos_id is not None else 0)

    def _content(self, ids: np.ndarray) -> np.ndarray:
        return ~np.isin(ids, list(self.special_ids))

    def batch(self, rows: Any) -> WindowBatch:
        """The windows of the given numbers, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)
        places = np.arange(self.config.context_size - (self.bos_id is not None))
        positions = self.starts[rows, None] + places  # [B, width]
        positions = np.where(places < self.lengths[rows, None], positions, -1)
        ids = np.where(positions >= 0, self.tokens[positions], self.pad_id)
        keep = (positions >= 0) & self._content(ids)
        attention = positions >= 0
        if self.bos_id is not None:
            edge = ((0, 0), (1, 0))
            ids = np.pad(ids, edge, constant_values=self.bos_id)
            attention = np.pad(attention, edge, constant_values=True)
            keep = np.pad(keep, edge, constant_values=False)
            positions = np.pad(positions, edge, constant_values=-1)
        return WindowBatch(
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(attention),
            torch.from_numpy(keep),
            torch.from_numpy(positions),
        )

    def in_order(self, batch_size_windows: int) -> Iterator[WindowBatch]:
        """All windows in order, batch by batch."""
        for first in range(0, len(self), batch_size_windows):
            yield self.batch(range(first, min(first + batch_size_windows, len(self))))

    def evenly(self, num_tokens: int | None) -> TokenWindows:
        """Windows spread evenly over the corpus that hold at most ``num_tokens`` tokens (special ones not counted).

        A sample for measuring: the first windows of a corpus are its first documents, and nothing else.
        """
        if num_tokens is None or num_tokens >= self.num_tokens:
            return self
        wanted = num_tokens * len(self) // self.num_tokens
        while wanted > 0:
            chosen = np.unique(np.linspace(0, len(self) - 1, wanted).round().astype(np.int64))
            part = replace(self, starts=self.starts[chosen], lengths=self.lengths[chosen])
            if part.num_tokens <= num_tokens:
                return part
            wanted -= max(1, wanted // 100)
        raise ValueError(f"num_tokens = {num_tokens} is less than what one window holds ({self.config.context_size})")

    def document_of(self, position: int) -> tuple[Document, int]:
        """The document that holds a position, and the token's offset in it; its separator stands at offset -1.

        Raises:
            IndexError: no such position; opening and padding tokens (-1) belong to no document.
        """
        if not 0 <= position < len(self.tokens):
            raise IndexError(f"position {position} is not in the text, which has positions 0 to {len(self.tokens) - 1}")
        number = int(np.searchsorted(self.document_starts, position, side="right")) - 1
        return self.documents[number], position - int(self.document_starts[number]) - (self.separator_id is not None)


def _cut(document_starts: np.ndarray, width: int, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """First position and length of every window. Concatenated text leaves its last, unfilled window out."""
    if packing == "concatenate":
        starts = np.arange(0, document_starts[-1] - width + 1, width)
        return starts, np.full(len(starts), width, dtype=np.int32)
    pairs = [
        (start, min(width, end - start))
        for first, end in pairwise(document_starts.tolist())
        for start in range(first, end, width)
    ]
    return (
        np.asarray([start for start, _ in pairs], dtype=np.int64),
        np.asarray([length for _, length in pairs], dtype=np.int32),
    )
