"""From spans of characters to the classes of the model's tokens."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from saescope.activations.python_syntax.classes import CLASS_NAMES, Span, class_id
from saescope.activations.python_syntax.text import Spans, Text
from saescope.activations.python_syntax.tokens import TokenReader
from saescope.activations.python_syntax.tree import TreeReader

BYTES_PER_TOKEN = (len(CLASS_NAMES) + 7) // 8  # one bit per class


def syntax_classes(source: str) -> list[Span]:
    """All spans of all classes in ``source``, by start, then end, then class id; offsets count characters of ``source``.

    A text that Python cannot parse gives the classes known from its tokens, as far as the tokenizer came, and none of
    those that need the syntax tree (docstrings among them).
    """
    spans = [(start, end, index) for index, pairs in _spans(source).items() for start, end in pairs.tolist()]
    return [Span(start, end, CLASS_NAMES[index]) for start, end, index in sorted(set(spans))]


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntaxTable:
    """Which of the `CLASS_NAMES` each token of a text belongs to, one bit each."""

    bits: np.ndarray
    """uint8 ``[num_tokens, ceil(num_classes / 8)]``, as `numpy.packbits` packs the rows."""

    def __post_init__(self) -> None:
        if self.bits.dtype != np.uint8 or self.bits.ndim != 2 or self.bits.shape[1] != BYTES_PER_TOKEN:
            raise ValueError(
                f"a syntax table needs uint8 bits of shape [num_tokens, {BYTES_PER_TOKEN}], not {self.bits.dtype} "
                f"{list(self.bits.shape)}; build it with token_classes()."
            )

    @property
    def num_tokens(self) -> int:
        return len(self.bits)

    def members(self, name: str) -> np.ndarray:
        """bool ``[num_tokens]``: the tokens that belong to the class ``name``."""
        index = class_id(name)
        return ((self.bits[:, index >> 3] >> (7 - (index & 7))) & 1).astype(bool)

    def classes_of(self, position: int) -> tuple[str, ...]:
        """Names of the classes of one token."""
        row = np.unpackbits(self.bits[position], count=len(CLASS_NAMES))
        return tuple(CLASS_NAMES[index] for index in np.flatnonzero(row))

    def select(self, positions: np.ndarray) -> SyntaxTable:
        """The table of the tokens at ``positions`` (places, or one bool per token)."""
        return SyntaxTable(bits=self.bits[positions])

    def counts(self, positions: np.ndarray | None = None) -> np.ndarray:
        """int64 ``[num_classes]``: how many of the tokens at ``positions`` (all tokens when None) each class holds."""
        rows = self.bits if positions is None else self.bits[positions]
        # Count the 256 values of each byte, then the bits of the values: nothing is unpacked
        histograms = np.stack([np.bincount(column, minlength=256) for column in rows.T])
        return (histograms @ _BITS_OF_BYTE).reshape(-1)[: len(CLASS_NAMES)]

    @staticmethod
    def concatenate(tables: Iterable[SyntaxTable]) -> SyntaxTable:
        """The table of several texts one after the other, in the order given."""
        rows = [table.bits for table in tables]
        return SyntaxTable(bits=np.concatenate([_no_bits(0), *rows]))

    @staticmethod
    def empty(num_tokens: int) -> SyntaxTable:
        """Tokens that belong to no class, such as the separator between two documents."""
        return SyntaxTable(bits=_no_bits(num_tokens))


def token_classes(source: str, token_starts: np.ndarray, token_ends: np.ndarray) -> SyntaxTable:
    """The classes of the tokens of ``source`` (the rule of belonging is told at the top of this module).

    Args:
        source: the text that was tokenised.
        token_starts: first character of each token, never decreasing, ``[num_tokens]``.
        token_ends: one past the last character of each token, never decreasing. Tokens may share a character (the
            bytes of one character, in a byte-level tokenizer); a token without characters belongs to no class.

    Raises:
        ValueError: offsets of different lengths, out of order or outside of ``source``.
    """
    starts, ends = np.asarray(token_starts, dtype=np.int64), np.asarray(token_ends, dtype=np.int64)
    if starts.shape != ends.shape or starts.ndim != 1:
        raise ValueError(
            f"token starts and ends must be two lists of one length, not {list(starts.shape)}, {list(ends.shape)}."
        )
    if (ends < starts).any() or (starts < 0).any() or (ends > len(source)).any():
        raise ValueError(f"token offsets must be ranges of characters within the {len(source)} characters of the text.")
    kept = np.flatnonzero(ends > starts)
    starts, ends = starts[kept], ends[kept]
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        raise ValueError("token offsets must never decrease: give the tokens in the order of the text.")

    first_visible = _next_visible(source)[starts]
    starts = np.where(first_visible < ends, first_visible, starts)
    bits = _no_bits(len(kept))
    for index, pairs in _spans(source).items():
        first = np.searchsorted(ends, pairs[:, 0], side="right")
        stop = np.maximum(np.searchsorted(starts, pairs[:, 1], side="left"), first)
        # +1 where a span's tokens begin, -1 after they end: above zero means inside of at least one
        edges = np.bincount(first, minlength=len(kept) + 1) - np.bincount(stop, minlength=len(kept) + 1)
        inside = np.cumsum(edges[: len(kept)]) > 0
        bits[:, index >> 3] |= inside.astype(np.uint8) << np.uint8(7 - (index & 7))
    all_bits = _no_bits(len(token_starts))
    all_bits[kept] = bits
    return SyntaxTable(bits=all_bits)


_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int64)


def _no_bits(num_tokens: int) -> np.ndarray:
    return np.zeros((num_tokens, BYTES_PER_TOKEN), dtype=np.uint8)


def _next_visible(source: str) -> np.ndarray:
    """For each character the offset of the first visible one at or after it; ``len(source)`` where none follows."""
    blank = {character for character in set(source) if character.isspace()}
    offsets = np.arange(len(source) + 1)
    offsets[:-1][np.fromiter((character in blank for character in source), bool, len(source))] = len(source)
    return np.minimum.accumulate(offsets[::-1])[::-1]


def _spans(source: str) -> dict[int, np.ndarray]:
    """Class id -> int64 ``[num_spans, 2]``: starts and ends in characters of ``source``."""
    text, spans = Text(source), Spans()
    tree = _parse(text.text)
    docstrings = TreeReader(text, spans).read(tree) if tree is not None else None
    TokenReader(text, spans, docstrings).read()
    return {index: text.in_given_text(pairs) for index, pairs in spans.arrays().items()}


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences and the like: the text is not ours to judge
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes before Python 3.12
            return None
