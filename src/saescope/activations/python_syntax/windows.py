"""Syntax classes of the tokens in windows, read document by document as windows are asked for.

A table of a whole corpus would grow with it (28 bytes per token). Here a document is tokenised and parsed when the first
of its tokens is wanted, and kept only until others have taken its place. Windows that are asked for in order have each
document read once.

B  windows asked for, T  tokens in a window (context_size), W  bytes of a token's class bits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope.activations.python_syntax.table import BYTES_PER_TOKEN, token_classes
from saescope.activations.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def is_python(windows: TokenWindows) -> bool:
    """Whether all documents are Python: classes of a part of the text would be counted as if the rest had none."""
    return all(document.is_python for document in windows.documents)


class WindowSyntax:
    """The `CLASS_NAMES` that each token in a window belongs to, as bits.

    Args:
        windows: the text.
        tokenizer: the one that ``windows`` was built with.
        max_cached_tokens: documents are kept until they have more tokens than this between them; the one read last is
            always kept.

    Raises:
        ValueError: a document that is not Python.
    """

    def __init__(
        self, windows: TokenWindows, tokenizer: PreTrainedTokenizerBase, *, max_cached_tokens: int = 1 << 17
    ) -> None:
        for document in windows.documents:
            if not document.is_python:
                raise ValueError(f"{document.name} is not Python, so its tokens have no syntax classes")
        self.windows, self.tokenizer, self.max_cached_tokens = windows, tokenizer, max_cached_tokens
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()  # by document number; the one used last at the end

    def bits(self, rows: Any) -> np.ndarray:
        """Class bits of the windows of the given numbers, uint8 ``[B, T, W]``, as `SyntaxTable` packs them.

        Opening, separator and padding tokens belong to no class.
        """
        windows = self.windows
        rows = np.asarray(rows, dtype=np.int64)
        bits = np.zeros((len(rows), windows.config.context_size, BYTES_PER_TOKEN), dtype=np.uint8)
        opening = int(windows.bos_id is not None)
        for row, start, length in zip(bits, windows.starts[rows], windows.lengths[rows], strict=True):
            end = start + length
            number = int(np.searchsorted(windows.document_starts, start, side="right")) - 1
            while number < len(windows.documents) and windows.document_starts[number] < end:
                first, last = windows.document_starts[number : number + 2]
                low, high = max(first, start), min(last, end)
                row[opening + low - start : opening + high - start] = self._document(number)[low - first : high - first]
                number += 1
        return bits

    def _document(self, number: int) -> np.ndarray:
        """Class bits of a document's positions, its separator included, ``[num_positions, W]``."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        self._cache[number] = bits = self._read(number)
        held = sum(map(len, self._cache.values()))
        while held > self.max_cached_tokens and len(self._cache) > 1:
            held -= len(self._cache.popitem(last=False)[1])
        return bits

    def _read(self, number: int) -> np.ndarray:
        windows, document = self.windows, self.windows.documents[number]
        first, last = windows.document_starts[number : number + 2].tolist()
        separators = int(windows.separator_id is not None)
        encoded = self.tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)[: last - first - separators]
        # text that was cut off at max_tokens has fewer tokens here than its document
        if not np.array_equal(ids, windows.tokens[first + separators : last]):
            raise ValueError(
                f"{document.name} has other tokens than its windows: give the tokenizer they were built with"
            )
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        classes = token_classes(document.text, offsets[:, 0], offsets[:, 1])
        bits = np.zeros((last - first, BYTES_PER_TOKEN), dtype=np.uint8)
        bits[separators:] = classes.bits[: len(ids)]
        return bits
