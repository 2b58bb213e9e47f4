"""True labels of tokens of Python source: what Python's own tokenizer and parser say, and how deep a line is indented.

A study of concepts needs labels that nobody has to guess. For source text they come from the language itself: a token is
a keyword, inside a docstring, the name of a defined function. The classes are those of
`saescope.activations.python_syntax`, with its rule of belonging. Beside them stand four labels of the indentation depth:
how many blocks are open around the line that a token stands on, a number that the model has to keep count of.

A document is tokenised and parsed once, whole, however few of its tokens are in the sample.

T  tokens of the sample, N  tokens of a document, L  labels.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saescope.activations import Document, TokenWindows
from saescope.activations.python_syntax import class_id, token_classes
from saescope.evaluation.sample import TokenLabels, TokenSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEPTH_NAMES = ("indentation depth 0", "indentation depth 1", "indentation depth 2", "indentation depth 3 or more")

DEFAULT_NAMES: tuple[str, ...] = (
    "keyword", "comment", "docstring", "string other than a docstring", "f-string", "number", "decorator",
    "name of a defined function", "name of a defined class", "parameter", "argument of a call", "method being called",
    "attribute name", "built-in name", "exception name", "`self`", "operator `=`", "indentation", "inside brackets",
    "comparison", "import statement", "raise statement", *DEPTH_NAMES,
)  # fmt: skip
"""Concepts of a token and of its surroundings, from one token in three to one in some hundreds."""

HIERARCHIES: tuple[tuple[str, str], ...] = (
    ("keyword", "keyword `def`"),
    ("string", "docstring"),
    ("name", "built-in name"),
)
"""Pairs (parent, child) for studies of absorption: every token of the child is one of the parent."""


def python_labels(
    sample: TokenSample,
    windows: TokenWindows,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str] | None = None,
) -> TokenLabels:
    """Labels ``[T, L]`` of the tokens of a sample.

    Args:
        windows: the text that the sample was read from, or more windows of it.
        tokenizer: the one that ``windows`` was built with.
        names: any of ``python_syntax.CLASS_NAMES`` and ``DEPTH_NAMES``; ``DEFAULT_NAMES`` unless given.

    Raises:
        ValueError: an unknown name, a document that is not Python or that this Python cannot parse (its tokens would seem
            to belong to no class), or a sample that is not of these windows and this tokenizer.
    """
    names = DEFAULT_NAMES if names is None else tuple(names)
    for name in names:
        if name not in DEPTH_NAMES:
            class_id(name)  # raises, with the nearest names
    _require_same_text(sample, windows)
    values = np.zeros((len(sample), len(names)), dtype=bool)
    for number in np.unique(sample.document).tolist():
        rows = np.flatnonzero(sample.document == number)
        first = int(windows.document_starts[number]) + (windows.separator_id is not None)
        starts, ends = _offsets(windows, number, tokenizer)
        values[rows] = _document_labels(windows.documents[number], starts, ends, names)[sample.position[rows] - first]
    return TokenLabels(names=names, values=values)


def hierarchy_labels(
    sample: TokenSample,
    windows: TokenWindows,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]] = HIERARCHIES,
) -> TokenLabels:
    """Labels of all parents and children; a child holds on tokens of its parent only.

    A token of the model can share characters with a child's span and with none of its parent's, or a user can name a pair
    that does not nest: such tokens are no examples of the child here.

    Raises:
        ValueError: as :func:`python_labels`; or one child with two parents.
    """
    children = [child for _, child in pairs]
    if len(set(children)) != len(children) or any(child == parent for parent, child in pairs):
        raise ValueError("each child needs one parent, which is not itself; look at the pairs of the hierarchy")
    labels = python_labels(sample, windows, tokenizer, tuple(dict.fromkeys(name for pair in pairs for name in pair)))
    values = labels.values.copy()
    for _ in pairs:  # a child may be the parent of another; as often as a chain can be long
        for parent, child in pairs:
            values[:, labels.names.index(child)] &= values[:, labels.names.index(parent)]
    return TokenLabels(names=labels.names, values=values)


def line_depths(source: str) -> np.ndarray:
    """How many blocks are open on each line, int64 ``[num_lines]``; a file's lines end with LF, CR LF or CR.

    All lines of a statement have the depth of its first one, a docstring's lines too. A comment that stands alone belongs
    to the blocks that it is indented like; a blank line has the depth of the line before it.

    Raises:
        ValueError: Python's tokenizer does not accept the text.
    """
    lines = _line_starts(source)
    depths = np.full(len(lines), -1, dtype=np.int64)
    indents: list[int] = []  # columns at which the open blocks begin
    comments: list[tuple[int, int, list[int]]] = []  # (line, column, blocks open before it), of comments not yet placed
    first: int | None = None  # line on which the statement began
    try:
        reader = io.StringIO(source.removeprefix("\ufeff"), newline=None)
        for token in tokenize.generate_tokens(reader.readline):
            line, column = token.start[0] - 1, token.start[1]
            if token.type == tokenize.INDENT:
                indents = [*indents, len(token.string.expandtabs())]
            elif token.type == tokenize.DEDENT:
                indents = indents[:-1]
            elif token.type == tokenize.COMMENT and first is None:
                comments.append((line, len(token.line[:column].expandtabs()), indents))
            elif token.type == tokenize.NEWLINE:
                depths[line if first is None else first : token.end[0]] = len(indents)
                first = None
            elif token.type not in (tokenize.NL, tokenize.COMMENT):
                for place, width, before in comments:
                    open_blocks = max(before, indents, key=len)
                    depths[place] = sum(indent <= width for indent in open_blocks)
                comments = []
                first = line if first is None and token.type != tokenize.ENDMARKER else first
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"Python's tokenizer stops with: {error}") from None
    for line in range(len(depths)):
        if depths[line] < 0:
            depths[line] = depths[line - 1] if line else 0
    return depths


def _require_same_text(sample: TokenSample, windows: TokenWindows) -> None:
    positions, documents = sample.position, sample.document
    good = positions.min() >= 0 and positions.max() < len(windows.tokens)
    good = good and np.array_equal(windows.tokens[positions], sample.ids)
    if not good or not np.array_equal(np.searchsorted(windows.document_starts, positions, side="right") - 1, documents):
        raise ValueError("the sample has other tokens than these windows: give the windows that it was read from")


def _offsets(windows: TokenWindows, number: int, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """First character of each token of a document and one past its last, ``[N]`` each."""
    document = windows.documents[number]
    if not document.is_python:
        raise ValueError(f"{document.name} is not Python, so its tokens have no such labels; give text from .py files")
    first, last = windows.document_starts[number : number + 2].tolist()
    first += windows.separator_id is not None
    encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)[: last - first]  # fewer where max_tokens cut it off
    if not np.array_equal(ids, windows.tokens[first:last]):
        raise ValueError(
            f"{document.name} has other tokens than its windows: give the tokenizer that they were built with"
        )
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[: last - first]
    return offsets[:, 0], offsets[:, 1]


def _document_labels(document: Document, starts: np.ndarray, ends: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Labels of all tokens of a document, bool ``[N, L]``."""
    source = document.text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences and the like
            ast.parse(source.removeprefix("\ufeff"))
        depths = line_depths(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{document.name} is not Python that this interpreter can parse ({error}), so that its labels would be wrong; "
            "leave it out of the text"
        ) from None
    table = token_classes(source, starts, ends)
    depth = np.minimum(depths[_lines(source, starts, ends)], len(DEPTH_NAMES) - 1)  # [N]
    columns = [depth == DEPTH_NAMES.index(name) if name in DEPTH_NAMES else table.members(name) for name in names]
    return np.stack(columns, axis=-1) if columns else np.zeros((len(starts), 0), dtype=bool)


def _line_starts(source: str) -> np.ndarray:
    """First character of each line; the last line is empty where the text ends with a line break."""
    return np.asarray([0, *(match.end() for match in re.finditer(r"\r\n?|\n", source))], dtype=np.int64)


def _lines(source: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The line of each token: that of its first visible character; of white space alone, that of its last character.

    In byte-level BPE a line break and the indentation after it are one token: it is about the line that it opens.
    """
    anchors = np.empty(len(starts), dtype=np.int64)
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        piece = source[start:end]
        blank = len(piece) - len(piece.lstrip())
        anchors[place] = start + blank if blank < len(piece) else max(end - 1, start)
    return np.searchsorted(_line_starts(source), anchors, side="right") - 1
