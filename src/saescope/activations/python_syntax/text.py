"""A source text with places in lines and columns, and the spans that are collected on it."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from saescope.activations.python_syntax.classes import CLASS_IDS


class Text:
    """A source text with ``\\n`` line ends only, as Python's parser sees it, and the way back to the given text."""

    def __init__(self, source: str) -> None:
        self.source = source.removeprefix("\ufeff")
        self._mark = len(source) - len(self.source)
        self._carriage_returns = "\r" in self.source
        self.text = re.sub(r"\r\n?", "\n", self.source) if self._carriage_returns else self.source
        self.lines = self.text.split("\n")
        self.line_starts = [0]
        for line in self.lines:
            self.line_starts.append(self.line_starts[-1] + len(line) + 1)
        self._ascii = self.text.isascii()

    def at(self, line: int, column: int) -> int:
        """Offset of a place that `tokenize` names: lines from 1, columns in characters."""
        return self.line_starts[line - 1] + column

    def at_byte(self, line: int, column: int) -> int:
        """Offset of a place that `ast` names: lines from 1, columns in bytes of UTF-8."""
        if not self._ascii and not self.lines[line - 1].isascii():
            column = len(self.lines[line - 1].encode()[:column].decode())
        return self.line_starts[line - 1] + column

    def in_given_text(self, pairs: np.ndarray) -> np.ndarray:
        """The same spans in the text as it was given: carriage returns and byte order mark counted."""
        if self._carriage_returns:
            line_ends = np.array([match.end() - 1 for match in re.finditer(r"\r\n?|[^\r]", self.source, re.DOTALL)])
            pairs = np.append(-1, line_ends)[pairs] + 1
        return pairs + self._mark


class Spans:
    """Collects spans by class name."""

    def __init__(self) -> None:
        self._flat: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, name: str, start: int, end: int) -> None:
        if end > start:
            self._flat[name] += (start, end)

    def arrays(self) -> dict[int, np.ndarray]:
        return {CLASS_IDS[name]: np.array(flat, dtype=np.int64).reshape(-1, 2) for name, flat in self._flat.items()}
