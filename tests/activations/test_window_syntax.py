"""Syntax of windows: the same bits as those of each whole document, whatever is asked for and in which order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.activations.python_syntax import token_classes
from saescope.activations.python_syntax.table import BYTES_PER_TOKEN
from saescope.activations.python_syntax.windows import WindowSyntax, is_python

CONFIGS = [
    WindowConfig(context_size=16),
    WindowConfig(context_size=16, prepend_bos=False),
    WindowConfig(context_size=13, packing="separate"),
    WindowConfig(context_size=150, packing="separate", prepend_bos=False),
    WindowConfig(context_size=100, max_tokens=777),  # a document is cut off, and windows hold several
]


def expected_bits(windows: TokenWindows, tokenizer: Any) -> np.ndarray:
    """Class bits of all windows, from a table of the whole corpus."""
    flat = np.zeros((len(windows.tokens), BYTES_PER_TOKEN), dtype=np.uint8)
    separators = int(windows.separator_id is not None)
    for document, (first, last) in zip(windows.documents, pairwise(windows.document_starts.tolist()), strict=True):
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.array(encoded["offset_mapping"])
        bits = token_classes(document.text, offsets[:, 0], offsets[:, 1]).bits
        flat[first + separators : last] = bits[: last - first - separators]
    positions = windows.batch(range(len(windows))).positions.numpy()
    return np.where((positions >= 0)[..., None], flat[positions], 0).astype(np.uint8)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bits_are_those_of_the_whole_documents(documents, tokenizer, config: WindowConfig) -> None:
    windows = TokenWindows.build(documents[:12], tokenizer, config)
    expected = expected_bits(windows, tokenizer)
    assert expected.any(axis=(1, 2)).all()
    syntax = WindowSyntax(windows, tokenizer, max_cached_tokens=100)
    np.testing.assert_array_equal(syntax.bits(range(len(windows))), expected)
    rows = np.random.default_rng(0).permutation(len(windows))
    np.testing.assert_array_equal(syntax.bits(rows), expected[rows])
    assert syntax.bits([]).shape == (0, *expected.shape[1:])
    part = windows.evenly(windows.num_tokens // 2)
    kept = np.searchsorted(windows.starts, part.starts)
    np.testing.assert_array_equal(WindowSyntax(part, tokenizer).bits(range(len(part))), expected[kept])


def test_windows_in_order_read_each_document_once(documents, tokenizer) -> None:
    windows = TokenWindows.build(documents, tokenizer, WindowConfig(context_size=16))
    read: list[str] = []

    class Counting(WindowSyntax):
        def _read(self, number: int) -> np.ndarray:
            read.append(self.windows.documents[number].name)
            return super()._read(number)

    syntax = Counting(windows, tokenizer, max_cached_tokens=0)
    most = 0
    for first in range(0, len(windows), 3):
        syntax.bits(range(first, min(first + 3, len(windows))))
        most = max(most, sum(map(len, syntax._cache.values())))
    last = windows.starts[-1] + windows.lengths[-1]
    assert read == [d.name for d, start in zip(documents, windows.document_starts, strict=False) if start < last]
    assert most == np.diff(windows.document_starts).max()
    kept = Counting(windows, tokenizer, max_cached_tokens=1000)
    read.clear()
    for _ in range(2):
        kept.bits([0, 5])
    assert len(read) == len(set(read))
    kept.bits(range(len(windows)))
    assert 500 < sum(map(len, kept._cache.values())) <= 1000


def test_other_tokens_and_other_languages_are_refused(documents, tokenizer) -> None:
    windows = TokenWindows.build(documents, tokenizer, WindowConfig(context_size=16))
    assert is_python(windows)
    mixed = replace(windows, documents=[*windows.documents[:-1], Document("notes.txt", "x")])
    assert not is_python(mixed)
    with pytest.raises(ValueError, match=r"notes\.txt is not Python"):
        WindowSyntax(mixed, tokenizer)
    changed = replace(windows, tokens=windows.tokens[::-1].copy())
    with pytest.raises(ValueError, match=r"doc0\.py has other tokens"):
        WindowSyntax(changed, tokenizer).bits([0])
