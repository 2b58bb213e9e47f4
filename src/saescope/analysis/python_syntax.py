"""What Python itself says about each token of its source: comment, docstring, name of a defined function, ...

A feature of a model trained on code often has a plain name that the language's own tokenizer and parser know: it fires
inside comments, on keyword arguments, on the colon that opens a block. This module reads a source text with `tokenize`
and `ast` and gives the character spans of a fixed list of such classes (`CLASS_NAMES`), and then the classes of each
token of the model's tokenizer, which knows nothing about Python.

    source --tokenize, ast--> spans (start, end, class) --token offsets--> SyntaxTable [num_tokens, num_classes] of bits

A class is a *set of characters*; classes overlap freely. Position classes ("first token of ...", "opening quotes of
...") cover just the characters of that position. An f-string is one literal, whatever the Python version makes of it:
the code in its braces is "interpolated expression in an f-string" and nothing else, so that a label means the same on
Python 3.11 as on 3.13.

A token belongs to a class when it shares a character with one of its spans. Whitespace in front of a token's first
visible character is not counted: in byte-level BPE ``" return"`` carries the space before the word, and that space is
not what the token is about. A token of nothing but whitespace counts all its characters, so the line breaks inside a
docstring are inside the docstring.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import io
import re
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

# fmt: off
KEYWORDS = (
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
)
OPERATORS = (  # of the augmented assignments only the common ones: all together they are a class of their own
    "!=", "%", "&", "(", ")", "*", "**", "+", "+=", ",", "-", "-=", "->", ".", "...", "/", "//", ":", ":=", ";", "<",
    "<<", "<=", "=", "==", ">", ">=", ">>", "@", "[", "]", "^", "{", "|", "|=", "}", "~",
)
_CLASSES_OF_TOKENS = (
    # comments
    "comment", "comment on a line of its own", "comment after code", "first token of a comment",
    "first word of a comment", "last token of a comment",
    # strings and numbers
    "string", "docstring", "string other than a docstring", "f-string", "bytes literal", "raw string",
    "opening quotes of a string", "closing quotes of a string", "opening quotes of a docstring",
    "closing quotes of a docstring", "first word of a string", "first word of a docstring", "last word of a docstring",
    "first line of a docstring", "doctest line", "escape sequence in a string", "placeholder in a format string",
    "interpolated expression in an f-string",
    "number", "integer", "floating-point number", "hexadecimal number", "octal or binary number",
    # names
    "keyword", "name", "dunder name", "private name", "constant name (UPPER_CASE)", "CamelCase name", "`self`", "`cls`",
    "built-in name", "exception name", "last token of a name",
    "name of a defined function", "name of a defined class", "attribute name", "method being called",
    "function being called", "name before a `.`", "name of a keyword argument", "imported module", "imported name",
    "alias of an import",
    # punctuation
    "comparison operator", "arithmetic or bitwise operator", "augmented assignment operator",
    "parenthesis opening a call", "parenthesis closing a call", "parenthesis opening parameters",
    "parenthesis closing parameters", "bracket opening a subscript", "bracket closing a subscript",
    "bracket opening a list", "bracket closing a list",
    "parenthesis of a tuple or group", "comma between arguments", "comma between parameters", "comma between elements",
    "trailing comma", "`:` that opens a block", "`:` of an annotation", "`:` of a dict", "`:` of a slice",
    "`:` of a lambda", "`=` of an assignment", "`=` of a keyword argument", "`=` of a default value",
    "`*` or `**` that packs or unpacks",
    # lines and statements
    "indentation", "indentation that opens a block", "indentation after a block",
    "line break that ends a statement", "line break inside brackets", "line break after a comment", "blank line",
    "first token of a logical line", "last token of a logical line", "first token of a block",
    "first token after a block", "first token of a line inside brackets", "inside brackets",
    "decorator", "header of a function definition", "header of a class definition",
    "import statement", "raise statement", "assert statement",
)
_CLASSES_OF_THE_TREE = (
    # definitions
    "name of a defined method", "parameter", "`self` or `cls` parameter", "default value of a parameter", "annotation",
    "return annotation", "base class", "first token of a function body", "first token of a class body",
    "body of a function", "body of a method", "body of a class", "module-level statement",
    # statements
    "name being assigned", "attribute being assigned", "assigned value", "first token of an assigned value",
    "return value", "first token of a return value", "loop variable", "iterable of a loop or comprehension",
    "condition of an if or while", "first token of a condition", "body of an if", "body of an else", "body of a loop",
    "body of a try", "body of an except", "body of a with", "context of a with", "name bound by `as`",
    "exception being raised", "exception being caught", "message of a raised exception",
    # expressions
    "argument of a call", "first argument of a call", "first token of an argument", "value of a keyword argument",
    "string as an argument", "number as an argument", "comparison", "right side of a comparison",
    "string in a comparison", "boolean expression", "arithmetic expression", "left side of `%`", "conditional expression",
    "lambda", "comprehension", "condition of a comprehension", "subscript", "slice", "string as a subscript",
    "number as a subscript", "object being subscripted", "dictionary", "dictionary key", "dictionary value",
    "element of a list, tuple or set", "string in a list, tuple or set", "number in a list, tuple or set",
    # names that are read
    "parameter being used", "local variable being used", "imported name being used",
    "module-level function or class being used", "module-level variable being used",
)
# fmt: on

CLASS_NAMES: tuple[str, ...] = (
    *_CLASSES_OF_TOKENS,
    *_CLASSES_OF_THE_TREE,
    *(f"keyword `{word}`" for word in KEYWORDS),
    *(f"operator `{symbol}`" for symbol in OPERATORS),
)
"""Every class, in a fixed order: the place of a name in this tuple is its class id."""

_CLASS_IDS = {name: index for index, name in enumerate(CLASS_NAMES)}


class Span(NamedTuple):
    """Characters ``source[start:end]`` that belong to the class ``name``."""

    start: int
    end: int
    name: str


def class_id(name: str) -> int:
    """The place of a class in `CLASS_NAMES`.

    Raises:
        ValueError: for a name that is no class; the message lists the nearest ones.
    """
    if name not in _CLASS_IDS:
        near = difflib.get_close_matches(name, CLASS_NAMES) or difflib.get_close_matches(name, CLASS_NAMES, cutoff=0.3)
        hint = f"did you mean {', '.join(repr(other) for other in near)}?" if near else "see CLASS_NAMES for the list."
        raise ValueError(f"no syntax class is named {name!r}; {hint}")
    return _CLASS_IDS[name]


def syntax_classes(source: str) -> list[Span]:
    """All spans of all classes in ``source``, by start, then end, then class id; offsets count characters of ``source``.

    A text that Python cannot parse gives the classes known from its tokens, as far as the tokenizer came, and none of
    those that need the syntax tree (docstrings among them).
    """
    spans = [(start, end, index) for index, pairs in _spans(source).items() for start, end in pairs.tolist()]
    return [Span(start, end, CLASS_NAMES[index]) for start, end, index in sorted(set(spans))]


# --- From characters to the model's tokens ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntaxTable:
    """Which of the `CLASS_NAMES` each token of a text belongs to, one bit each."""

    bits: np.ndarray
    """uint8 ``[num_tokens, ceil(num_classes / 8)]``, as `numpy.packbits` packs the rows."""

    def __post_init__(self) -> None:
        width = (len(CLASS_NAMES) + 7) // 8
        if self.bits.dtype != np.uint8 or self.bits.ndim != 2 or self.bits.shape[1] != width:
            raise ValueError(
                f"a syntax table needs uint8 bits of shape [num_tokens, {width}], not {self.bits.dtype} "
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
    return np.zeros((num_tokens, (len(CLASS_NAMES) + 7) // 8), dtype=np.uint8)


def _next_visible(source: str) -> np.ndarray:
    """For each character the offset of the first visible one at or after it; ``len(source)`` where none follows."""
    blank = {character for character in set(source) if character.isspace()}
    offsets = np.arange(len(source) + 1)
    offsets[:-1][np.fromiter((character in blank for character in source), bool, len(source))] = len(source)
    return np.minimum.accumulate(offsets[::-1])[::-1]


# --- Spans of one text -----------------------------------------------------------------------------------------------


class _Text:
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


class _Spans:
    """Collects spans by class name."""

    def __init__(self) -> None:
        self._flat: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, name: str, start: int, end: int) -> None:
        if end > start:
            self._flat[name] += (start, end)

    def arrays(self) -> dict[int, np.ndarray]:
        return {_CLASS_IDS[name]: np.array(flat, dtype=np.int64).reshape(-1, 2) for name, flat in self._flat.items()}


def _spans(source: str) -> dict[int, np.ndarray]:
    """Class id -> int64 ``[num_spans, 2]``: starts and ends in characters of ``source``."""
    text, spans = _Text(source), _Spans()
    tree = _parse(text.text)
    docstrings = _TreeReader(text, spans).read(tree) if tree is not None else None
    _TokenReader(text, spans, docstrings).read()
    return {index: text.in_given_text(pairs) for index, pairs in spans.arrays().items()}


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences and the like: the text is not ours to judge
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes before Python 3.12
            return None


# --- What the tokenizer knows ----------------------------------------------------------------------------------------

_STRING_STARTS = {getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name)}
_STRING_ENDS = {getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name)}

_CONSTANTS = {"None", "True", "False"}
_BLOCK_KEYWORDS = {
    *("async", "class", "def", "elif", "else", "except", "finally", "for", "if", "try", "while", "with"),
    *("match", "case"),
}
_BUILTIN_NAMES = {name for name in dir(builtins) if not name.startswith("_")} - _CONSTANTS
_EXCEPTION_NAMES = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
_OPERATOR_GROUPS = {
    **dict.fromkeys(("==", "!=", "<", ">", "<=", ">="), "comparison operator"),
    **dict.fromkeys(
        ("+", "-", "*", "/", "//", "%", "**", "@", "&", "|", "^", "~", "<<", ">>"), "arithmetic or bitwise operator"
    ),
    **dict.fromkeys(
        ("+=", "-=", "*=", "/=", "//=", "%=", "**=", "@=", "&=", "|=", "^=", "<<=", ">>="),
        "augmented assignment operator",
    ),
}
_BRACKETS = {  # kind of a bracket -> classes of its opening and its closing character
    "call": ("parenthesis opening a call", "parenthesis closing a call"),
    "parameters": ("parenthesis opening parameters", "parenthesis closing parameters"),
    "subscript": ("bracket opening a subscript", "bracket closing a subscript"),
    "list": ("bracket opening a list", "bracket closing a list"),
    "group": ("parenthesis of a tuple or group", "parenthesis of a tuple or group"),
}
_STATEMENTS = {
    "import": "import statement",
    "from": "import statement",
    "raise": "raise statement",
    "assert": "assert statement",
    "@": "decorator",
}
_NAME_STYLES = (
    ("dunder name", re.compile(r"__\w+__")),
    ("private name", re.compile(r"_(?!_\w*__$)\w*[^\W_]\w*")),
    ("constant name (UPPER_CASE)", re.compile(r"_*[A-Z][A-Z0-9_]+")),
    ("CamelCase name", re.compile(r"_*[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")),
)
_EXCEPTION_STYLE = re.compile(r"_*[A-Z]\w*(?:Error|Exception|Warning)")
_ESCAPE = re.compile(
    r"\\(?:[\\'\"abfnrtv\n]|[0-7]{1,3}|x[0-9a-fA-F]{2}|N\{[^}]*\}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|\\."
)
_WORD = re.compile(r"\W*(\w+)")
_COMMENT_WORD = re.compile(r"#[#:!]*\s*(\w+)")
_TEXT_LINE = re.compile(r"\s*(\S(?:.*\S)?)")
_DOCTEST = re.compile(r"^[ \t]*((?:>>>|\.\.\.) .*\S)", re.MULTILINE)
_AS_NAME = re.compile(r"[\s)\\]*as\s+(\w+)")
_PRINTF = re.compile(r"%(?:\(\w*\))?[-#0 +]*(?:\d+|\*)?(?:\.(?:\d+|\*))?[diouxXeEfFgGcrsa%]")
_FIELD = re.compile(r"\{\{|\}\}|(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})")


@cache
def _name_classes(name: str) -> tuple[str, ...]:
    """Classes that a name has by its spelling alone."""
    classes = [style for style, pattern in _NAME_STYLES if pattern.fullmatch(name)]
    if name in ("self", "cls"):
        classes.append(f"`{name}`")
    if name in _EXCEPTION_NAMES or _EXCEPTION_STYLE.fullmatch(name):
        classes.append("exception name")
    return ("name", *classes)


class _Word(NamedTuple):
    """A token that stands for something: a name, a number, a literal, an operator; or the end of a logical line."""

    kind: int
    text: str
    start: int
    end: int


class _TokenReader:
    """Adds the classes that need no syntax tree.

    Two walks: over everything that `tokenize` gives, for comments and lines, and then over the words that are left,
    each seen with its neighbours, the brackets around it and the beginning of its statement.
    """

    def __init__(self, text: _Text, spans: _Spans, docstrings: dict[int, int] | None) -> None:
        self.text, self.spans, self.add = text, spans, spans.add
        self.docstrings = docstrings
        self._docstring_end = 0

    def read(self) -> None:
        words = self._read_lines()
        self._read_words(words)

    # lines, comments, whitespace

    def _read_lines(self) -> list[_Word]:
        words: list[_Word] = []
        depth = 0  # of brackets
        block = ""  # "that opens a block" or "after a block": what the next line's first token does
        last_line, after_comment = 0, False
        for kind, string, start, end in _merge_fstrings(_tokenize(self.text), _STRING_STARTS, _STRING_ENDS):
            if kind in (tokenize.ENDMARKER, tokenize.ENCODING, tokenize.ERRORTOKEN):
                continue
            begin, stop = self.text.at(*start), self.text.at(*end)
            if kind == tokenize.INDENT:
                block = "opens"
            elif kind == tokenize.DEDENT:
                block = "closes"
            elif kind in (tokenize.NEWLINE, tokenize.NL):
                self._add_line_break(kind, begin, start[0], depth, after_comment)
                if kind == tokenize.NEWLINE:
                    words.append(_Word(tokenize.NEWLINE, "", begin, begin))
                after_comment = False
            else:
                if start[0] > last_line:
                    self._add_indentation(start[0], begin, depth, block if kind != tokenize.COMMENT else "")
                last_line = end[0]
                if kind == tokenize.COMMENT:
                    self._add_comment(start[0], begin, stop)
                    after_comment = True
                    continue
                if depth == 0 and (not words or words[-1].kind == tokenize.NEWLINE):
                    self._add_first_of_line(begin, block)
                    block = ""
                words.append(_Word(kind, string, begin, stop))
                if kind == tokenize.OP:
                    depth += (string in "([{") - (string in ")]}")
        return words

    def _add_line_break(self, kind: int, begin: int, line: int, depth: int, after_comment: bool) -> None:
        stop = min(begin + 1, len(self.text.text))
        if kind == tokenize.NEWLINE:
            self.add("line break that ends a statement", begin, stop)
        elif not self.text.text[self.text.line_starts[line - 1] : begin].strip():
            self.add("blank line", self.text.line_starts[line - 1], stop)
        if kind == tokenize.NL and depth > 0:
            self.add("line break inside brackets", begin, stop)
        if after_comment:
            self.add("line break after a comment", begin, stop)

    def _add_indentation(self, line: int, begin: int, depth: int, block: str) -> None:
        line_start = self.text.line_starts[line - 1]
        self.add("indentation", line_start, begin)
        if depth > 0:
            self.add("first token of a line inside brackets", begin, begin + 1)
        elif block == "opens":
            self.add("indentation that opens a block", line_start, begin)
        elif block == "closes":
            self.add("indentation after a block", line_start, begin)

    def _add_first_of_line(self, begin: int, block: str) -> None:
        self.add("first token of a logical line", begin, begin + 1)
        if block == "opens":
            self.add("first token of a block", begin, begin + 1)
        elif block == "closes":
            self.add("first token after a block", begin, begin + 1)

    def _add_comment(self, line: int, begin: int, stop: int) -> None:
        stop = begin + len(self.text.text[begin:stop].rstrip())
        alone = not self.text.text[self.text.line_starts[line - 1] : begin].strip()
        self.add("comment", begin, stop)
        self.add("comment on a line of its own" if alone else "comment after code", begin, stop)
        self.add("first token of a comment", begin, begin + 1)
        self.add("last token of a comment", stop - 1, stop)
        self._add_word_after("first word of a comment", begin, stop, _COMMENT_WORD)

    def _add_word_after(self, name: str, begin: int, stop: int, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text.text, begin, stop)
        if match:
            self.add(name, *match.span(1))

    # words

    def _read_words(self, words: Sequence[_Word]) -> None:
        end = _Word(tokenize.NEWLINE, "", 0, 0)
        words = [end, *words, end]
        self._line = _Line()
        for previous, word, following in zip(words, words[1:], words[2:], strict=False):
            line = self._line
            if word.kind == tokenize.NEWLINE:
                if previous.kind != tokenize.NEWLINE:
                    self.add("last token of a logical line", previous.end - 1, previous.end)
                self._end_statement(previous)
                self._line = _Line()
                continue
            if line.statement is None:
                line.statement = word
                line.definition = ""
            if word.kind == tokenize.NAME:
                if word.text in KEYWORDS:
                    self._add_keyword(word)
                else:
                    self._add_name(previous, word, following)
            elif word.kind == tokenize.OP:
                self._add_operator(previous, word, following)
            elif word.kind == tokenize.NUMBER:
                self._add_number(word)
            elif word.kind == tokenize.STRING:
                self._add_string(word, self._format_style(following))

    def _end_statement(self, last: _Word) -> None:
        first = self._line.statement
        if first is not None and first.text in _STATEMENTS:
            self.add(_STATEMENTS[first.text], first.start, last.end)
        self._line.statement = None

    def _add_keyword(self, word: _Word) -> None:
        self.add("keyword", word.start, word.end)
        self.add(f"keyword `{word.text}`", word.start, word.end)
        line = self._line
        if word.text == "lambda":
            line.lambdas[-1] += 1
        elif word.text in ("def", "class"):
            line.definition = word.text
        elif word.text == "import":
            line.importing = True

    def _add_name(self, previous: _Word, word: _Word, following: _Word) -> None:
        start, end = word.start, word.end
        for name in _name_classes(word.text):
            self.add(name, start, end)
        self.add("last token of a name", end - 1, end)
        line, statement = self._line, self._line.statement
        if statement is not None and statement.text in ("import", "from"):
            if previous.text == "as":
                self.add("alias of an import", start, end)
            elif statement.text == "import" or not line.importing:
                self.add("imported module", start, end)
            else:
                self.add("imported name", start, end)
            return
        if previous.text == "def":
            self.add("name of a defined function", start, end)
            return
        if previous.text == "class":
            self.add("name of a defined class", start, end)
            return
        if previous.text == ".":
            self.add("attribute name", start, end)
        if following.text == "(":
            self.add("method being called" if previous.text == "." else "function being called", start, end)
        elif following.text == ".":
            self.add("name before a `.`", start, end)
        if following.text == "=" and line.brackets and line.brackets[-1] in ("call", "bases") and not line.lambdas[-1]:
            self.add("name of a keyword argument", start, end)
        elif word.text in _BUILTIN_NAMES and previous.text != ".":
            self.add("built-in name", start, end)

    def _add_operator(self, previous: _Word, word: _Word, following: _Word) -> None:
        symbol, start, end = word.text, word.start, word.end
        line = self._line
        if f"operator `{symbol}`" in _CLASS_IDS:  # not every operator has a class of its own
            self.add(f"operator `{symbol}`", start, end)
        packs = symbol in ("*", "**") and _opens_an_expression(previous)
        if packs:
            self.add("`*` or `**` that packs or unpacks", start, end)
        elif symbol in _OPERATOR_GROUPS and line.statement is not word:  # a first `@` is a decorator's
            self.add(_OPERATOR_GROUPS[symbol], start, end)
        if symbol in ("(", "[", "{"):
            self._open(previous, word)
        elif symbol in (")", "]", "}"):
            self._close(word)
        elif symbol == ",":
            self._add_comma(word, following)
        elif symbol == ":":
            self._add_colon(word)
        elif symbol == "=":
            self._add_equals(word)
        elif symbol == ";" and not line.brackets:
            self._end_statement(previous)

    def _open(self, previous: _Word, word: _Word) -> None:
        line = self._line
        operand = (previous.kind == tokenize.NAME and previous.text not in KEYWORDS) or previous.text in (")", "]")
        if line.definition and not line.brackets:
            kind = {"(def": "parameters", "(class": "bases"}.get(word.text + line.definition, "type parameters")
            if word.text == "(":
                line.definition += " opened"
        elif word.text == "(":
            kind = "call" if operand else "group"
        elif word.text == "[":
            kind = "subscript" if operand or previous.text == "}" or previous.kind == tokenize.STRING else "list"
        else:
            kind = "dict"
        if not line.brackets:
            line.inside = word.end
        line.brackets.append(kind)
        line.lambdas.append(0)
        if kind in _BRACKETS:
            self.add(_BRACKETS[kind][0], word.start, word.end)

    def _close(self, word: _Word) -> None:
        line = self._line
        if line.brackets:  # a broken text may close what it never opened
            kind = line.brackets.pop()
            line.lambdas.pop()
            if not line.brackets:
                self.add("inside brackets", line.inside, word.start)
            if kind in _BRACKETS:
                self.add(_BRACKETS[kind][1], word.start, word.end)

    def _add_comma(self, word: _Word, following: _Word) -> None:
        line = self._line
        kind = line.brackets[-1] if line.brackets else ""
        if following.text and following.text in ")]}":
            self.add("trailing comma", word.start, word.end)
        if line.lambdas[-1] or kind == "parameters":
            self.add("comma between parameters", word.start, word.end)
        elif kind in ("call", "bases"):
            self.add("comma between arguments", word.start, word.end)
        elif kind in ("list", "dict", "group"):
            self.add("comma between elements", word.start, word.end)

    def _add_colon(self, word: _Word) -> None:
        line, first = self._line, self._line.statement
        kind = line.brackets[-1] if line.brackets else ""
        if line.lambdas[-1]:
            line.lambdas[-1] -= 1
            self.add("`:` of a lambda", word.start, word.end)
        elif kind == "parameters":
            self.add("`:` of an annotation", word.start, word.end)
        elif kind == "dict":
            self.add("`:` of a dict", word.start, word.end)
        elif kind == "subscript":
            self.add("`:` of a slice", word.start, word.end)
        elif not kind and first is not None:
            # `case: int` annotates a variable named like a soft keyword
            if first.text in _BLOCK_KEYWORDS and not (first.text in ("match", "case") and first.end == word.start):
                self.add("`:` that opens a block", word.start, word.end)
                if line.definition:
                    kind = "function" if line.definition.startswith("def") else "class"
                    self.add(f"header of a {kind} definition", first.start, word.end)
                line.statement = None  # what follows on the same line is a statement of its own
            else:
                self.add("`:` of an annotation", word.start, word.end)

    def _add_equals(self, word: _Word) -> None:
        line = self._line
        kind = line.brackets[-1] if line.brackets else ""
        if line.lambdas[-1] or kind == "parameters":
            self.add("`=` of a default value", word.start, word.end)
        elif kind in ("call", "bases"):
            self.add("`=` of a keyword argument", word.start, word.end)
        elif not kind:
            self.add("`=` of an assignment", word.start, word.end)

    def _add_number(self, word: _Word) -> None:
        text = word.text.lower()
        if text.startswith("0x"):
            kind = "hexadecimal number"
        elif text.startswith(("0o", "0b")):
            kind = "octal or binary number"
        else:
            kind = "integer" if text.replace("_", "").isdigit() else "floating-point number"
        self.add("number", word.start, word.end)
        self.add(kind, word.start, word.end)

    # strings

    def _format_style(self, following: _Word) -> re.Pattern[str] | None:
        """How a string that ``following`` comes after is filled in, if it is."""
        if following.text == "%":
            return _PRINTF
        if following.text == "." and self.text.text.startswith(".format", following.start):
            return _FIELD
        return None

    def _add_string(self, word: _Word, format_style: re.Pattern[str] | None) -> None:
        text, start, end = self.text.text, word.start, word.end
        quote = start
        while text[quote] not in "'\"":
            quote += 1
        prefix = text[start:quote].lower()
        width = 3 if text[quote : quote + 3] in ('"""', "'''") and end - quote >= 6 else 1
        begin, stop = quote + width, end - width  # of the content
        raw = "r" in prefix

        self.add("string", start, end)
        for letter, name in (("f", "f-string"), ("b", "bytes literal"), ("r", "raw string")):
            if letter in prefix:
                self.add(name, start, end)
        self.add("opening quotes of a string", quote, begin)
        self.add("closing quotes of a string", stop, end)
        self._add_word_after("first word of a string", begin, stop, _WORD)
        if not raw:
            for match in _ESCAPE.finditer(text, begin, stop):
                if _is_escape(match[0], "b" in prefix):
                    self.add("escape sequence in a string", *match.span())
        if "f" in prefix or "t" in prefix:
            for hole in _holes(text, begin, stop, raw):
                self.add("interpolated expression in an f-string", *hole)
        elif format_style is not None:
            for match in format_style.finditer(text, begin, stop):
                if match.lastindex or format_style is _PRINTF:  # not the doubled braces
                    self.add("placeholder in a format string", *match.span())
        if self.docstrings is not None:
            self._docstring_end = max(self._docstring_end, self.docstrings.get(start, 0))
            if start < self._docstring_end:
                self._add_docstring(start, end, quote, begin, stop)
            else:
                self.add("string other than a docstring", start, end)

    def _add_docstring(self, start: int, end: int, quote: int, begin: int, stop: int) -> None:
        text = self.text.text
        self.add("docstring", start, end)
        self.add("opening quotes of a docstring", quote, begin)
        self.add("closing quotes of a docstring", stop, end)
        self._add_word_after("first word of a docstring", begin, stop, _WORD)
        self._add_word_after("first line of a docstring", begin, stop, _TEXT_LINE)
        content = text[begin:stop]
        last = _WORD.match(content[::-1])
        if last:
            self.add("last word of a docstring", stop - last.end(1), stop - last.start(1))
        for match in _DOCTEST.finditer(content):
            self.add("doctest line", begin + match.start(1), begin + match.end(1))


class _Line:
    """Where the reader stands within a logical line."""

    def __init__(self) -> None:
        self.brackets: list[str] = []
        """Kinds of the open brackets, the innermost last."""
        self.inside = 0
        """Where the content of the outermost open bracket begins."""
        self.lambdas = [0]
        """For each open bracket, and the line itself: how many lambdas wait for their colon."""
        self.statement: _Word | None = None
        """First word of the current statement."""
        self.definition = ""
        """``def`` or ``class`` once that keyword was read, and whether its parenthesis was."""
        self.importing = False
        """Whether the keyword ``import`` was read."""


class _RawToken(NamedTuple):
    kind: int
    text: str
    start: tuple[int, int]
    end: tuple[int, int]


def _tokenize(text: _Text) -> Iterator[_RawToken]:
    """Python's tokens as far as they go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for kind, string, start, end, _ in tokenize.generate_tokens(io.StringIO(text.text).readline):
                yield _RawToken(kind, string, start, end)
        except (tokenize.TokenError, SyntaxError, ValueError):  # the rest of the text is no Python
            return


def _merge_fstrings(tokens: Iterable[_RawToken], starts: set[int], ends: set[int]) -> Iterator[_RawToken]:
    """F-strings as one STRING token each, as before Python 3.12."""
    opened: list[_RawToken] = []
    for token in tokens:
        if token.kind in starts:
            opened.append(token)
        elif token.kind in ends and opened:
            first = opened.pop()
            if not opened:
                yield _RawToken(tokenize.STRING, first.text, first.start, token.end)
        elif not opened:
            yield token


def _opens_an_expression(previous: _Word) -> bool:
    """Whether an operator after ``previous`` stands before its only operand."""
    return (
        previous.kind == tokenize.NEWLINE
        or (previous.kind == tokenize.OP and previous.text not in (")", "]", "}", "..."))
        or (previous.kind == tokenize.NAME and previous.text in KEYWORDS and previous.text not in _CONSTANTS)
    )


def _is_escape(text: str, in_bytes: bool) -> bool:
    if len(text) == 2:
        return text[1] in "\\'\"abfnrtv\n01234567"
    return not (in_bytes and text[1] in "NuU")


def _holes(text: str, begin: int, stop: int, raw: bool) -> Iterator[tuple[int, int]]:
    """The ``{...}`` parts of an f-string's content, braces included."""
    offset = begin
    while offset < stop:
        if not raw and text.startswith("\\N{", offset):
            offset = max(text.find("}", offset, stop), offset) + 1
        elif text.startswith("{{", offset) or (not raw and text[offset] == "\\" and text[offset + 1] != "{"):
            offset += 2
        elif text[offset] == "{":
            end = _hole_end(text, offset, stop)
            yield offset, end
            offset = end
        else:
            offset += 1


def _hole_end(text: str, offset: int, stop: int) -> int:
    depth, in_format = 0, False  # after the colon of `{value:>10}` quotes and round brackets are plain characters
    while offset < stop:
        character = text[offset]
        if character in "'\"" and not in_format:
            offset = text.find(character, offset + 1, stop)
            if offset < 0:
                return stop
        elif character == "{" or (character in "([" and not in_format):
            depth += 1
        elif character == "}" or (character in ")]" and not in_format):
            depth -= 1
            if depth == 0:
                return offset + 1
        elif character == ":" and depth == 1:
            in_format = True
        offset += 1
    return stop


# --- What the parser knows -------------------------------------------------------------------------------------------

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Located = ast.expr | ast.stmt
_SKIPPED_FIELDS = {"ctx", "op", "ops", "type_ignores"}  # they hold no text of their own
_LEAVES = {"JoinedStr", "TemplateStr"}  # an f-string is one literal; before Python 3.12 places inside are unreliable


class _Scope:
    """Names that a function knows: its parameters and what it assigns."""

    def __init__(self, outer: _Scope | None, parameters: Iterable[str] = (), is_function: bool = True) -> None:
        self.outer = outer
        self.parameters = set(parameters)
        self.assigned: set[str] = set()
        self.foreign: set[str] = set()
        """Declared ``global`` or ``nonlocal`` here."""
        self.is_function = is_function


class _TreeReader:
    """Adds the classes that the syntax tree gives, one method per type of node that has something to say."""

    def __init__(self, text: _Text, spans: _Spans) -> None:
        self.text, self.add = text, spans.add
        self.reads: list[tuple[str, int, int, _Scope]] = []
        self.docstrings: dict[int, int] = {}
        self.module = _Scope(None, is_function=False)
        self.imported: set[str] = set()
        self.scope = self.module
        self._methods: dict[type, Callable[[ast.AST], None] | None] = {}

    def read(self, tree: ast.Module) -> dict[int, int]:
        """Adds the spans, and returns start and end of each docstring."""
        self._docstring(tree.body)
        for statement in tree.body:
            if not isinstance(statement, _Function | ast.ClassDef):
                self._span("module-level statement", statement)
        # A list instead of recursion: long `elif` chains and sums nest deeper than Python's stack
        waiting: list[tuple[ast.AST, _Scope]] = [(tree, self.module)]
        while waiting:
            node, scope = waiting.pop()
            self.scope = scope
            kind = type(node)
            if kind not in self._methods:
                self._methods[kind] = getattr(self, f"_{kind.__name__}", None)
            method = self._methods[kind]
            if method is not None:
                method(node)
            if isinstance(node, _Function | ast.Lambda):
                inner = _Scope(scope, (argument.arg for argument in _arguments(node.args)))
                body = node.body if isinstance(node.body, list) else [node.body]
                waiting += ((child, inner) for child in body)
                waiting += ((child, scope) for child in _children(node, but="body"))
            elif isinstance(node, ast.ClassDef):
                inner = _Scope(scope, is_function=False)
                waiting += ((child, inner) for child in node.body)
                waiting += ((child, scope) for child in _children(node, but="body"))
            else:
                waiting += ((child, scope) for child in _children(node))
        self._add_reads({node.name for node in tree.body if isinstance(node, _Function | ast.ClassDef)})
        return self.docstrings

    # places

    def _span(self, name: str, node: _Located) -> None:
        self.add(name, self._start(node), self._end(node))

    def _first(self, name: str, node: _Located) -> None:
        start = self._start(node)
        self.add(name, start, start + 1)

    def _start(self, node: _Located) -> int:
        return _start(self.text, node)

    def _end(self, node: _Located) -> int:
        return _end(self.text, node)

    def _block(self, name: str, body: Sequence[ast.stmt]) -> None:
        if body:
            self.add(name, self._statement_start(body[0]), self._end(body[-1]))

    def _statement_start(self, statement: ast.stmt) -> int:
        """Where a statement begins, its decorators counted."""
        decorators = getattr(statement, "decorator_list", [])
        return self.text.text.rfind("@", 0, self._start(decorators[0])) if decorators else self._start(statement)

    def _constant(self, role: str, node: ast.expr) -> None:
        kind = _constant_type(node)
        if kind in (str, bytes):
            self._span(f"string {role}", node)
        elif kind in (int, float, complex):
            self._span(f"number {role}", node)

    def _targets(self, name: str, node: ast.expr) -> None:
        if isinstance(node, ast.Name):
            self._span(name, node)
        elif isinstance(node, ast.Attribute):
            end = self._end(node)
            self.add("attribute being assigned", end - len(node.attr), end)
        elif isinstance(node, ast.Starred):
            self._targets(name, node.value)
        elif isinstance(node, ast.Tuple | ast.List):
            for element in node.elts:
                self._targets(name, element)

    # definitions

    def _docstring(self, body: Sequence[ast.stmt]) -> None:
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            self.docstrings[self._start(first)] = self._end(first)

    def _FunctionDef(self, node: _Function) -> None:
        self._docstring(node.body)
        self.scope.assigned.add(node.name)
        self._parameters(node.args)
        if node.returns is not None:
            self._span("annotation", node.returns)
            self._span("return annotation", node.returns)
        start = self._statement_start(node.body[0])
        self.add("first token of a function body", start, start + 1)
        self._block("body of a function", node.body)

    _AsyncFunctionDef = _FunctionDef

    def _Lambda(self, node: ast.Lambda) -> None:
        self._span("lambda", node)
        self._parameters(node.args)

    def _parameters(self, arguments: ast.arguments) -> None:
        for argument in _arguments(arguments):
            start = self.text.at_byte(argument.lineno, argument.col_offset)
            end = start + len(argument.arg)
            self.add("parameter", start, end)
            if argument.arg in ("self", "cls"):
                self.add("`self` or `cls` parameter", start, end)
            if argument.annotation is not None:
                self._span("annotation", argument.annotation)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self._span("default value of a parameter", default)

    def _ClassDef(self, node: ast.ClassDef) -> None:
        self._docstring(node.body)
        self.scope.assigned.add(node.name)
        for base in node.bases:
            self._span("base class", base)
        start = self._statement_start(node.body[0])
        self.add("first token of a class body", start, start + 1)
        self._block("body of a class", node.body)
        for statement in node.body:
            if isinstance(statement, _Function):
                self._block("body of a method", statement.body)
                begin = self.text.text.find("def", self._start(statement)) + len("def")
                name = _WORD.match(self.text.text, begin)
                if name:
                    self.add("name of a defined method", *name.span(1))

    # statements

    def _Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._targets("name being assigned", target)
        self._assigned(node.value)

    def _AugAssign(self, node: ast.AugAssign) -> None:
        self._targets("name being assigned", node.target)
        self._assigned(node.value)

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        self._targets("name being assigned", node.target)
        self._span("annotation", node.annotation)
        if node.value is not None:
            self._assigned(node.value)

    def _NamedExpr(self, node: ast.NamedExpr) -> None:
        self._targets("name being assigned", node.target)
        self._assigned(node.value)

    def _assigned(self, value: ast.expr) -> None:
        self._span("assigned value", value)
        self._first("first token of an assigned value", value)

    def _Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._span("return value", node.value)
            self._first("first token of a return value", node.value)

    def _For(self, node: ast.For | ast.AsyncFor) -> None:
        self._targets("loop variable", node.target)
        self._span("iterable of a loop or comprehension", node.iter)
        self._block("body of a loop", node.body)
        self._block("body of an else", node.orelse)

    _AsyncFor = _For

    def _While(self, node: ast.While) -> None:
        self._condition(node.test)
        self._block("body of a loop", node.body)
        self._block("body of an else", node.orelse)

    def _If(self, node: ast.If) -> None:
        self._condition(node.test)
        self._block("body of an if", node.body)
        chained = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
        if not chained or not self.text.text.startswith("elif", self._start(node.orelse[0])):
            self._block("body of an else", node.orelse)

    def _condition(self, test: ast.expr) -> None:
        self._span("condition of an if or while", test)
        self._first("first token of a condition", test)

    def _Try(self, node: ast.Try) -> None:
        self._block("body of a try", node.body)
        self._block("body of an else", node.orelse)

    _TryStar = _Try

    def _ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._block("body of an except", node.body)
        if node.type is not None:
            self._span("exception being caught", node.type)
        if node.type is not None and node.name is not None:
            self.scope.assigned.add(node.name)
            name = _AS_NAME.match(self.text.text, self._end(node.type))
            if name:
                self.add("name bound by `as`", *name.span(1))

    def _With(self, node: ast.With | ast.AsyncWith) -> None:
        self._block("body of a with", node.body)
        for item in node.items:
            self._span("context of a with", item.context_expr)
            if item.optional_vars is not None:
                self._targets("name bound by `as`", item.optional_vars)

    _AsyncWith = _With

    def _Raise(self, node: ast.Raise) -> None:
        raised = node.exc
        if raised is not None:
            self._span("exception being raised", raised.func if isinstance(raised, ast.Call) else raised)
        if isinstance(raised, ast.Call):
            for argument in raised.args:
                self._span("message of a raised exception", argument)

    def _Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imported.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)

    _ImportFrom = _Import

    def _Global(self, node: ast.Global | ast.Nonlocal) -> None:
        self.scope.foreign.update(node.names)

    _Nonlocal = _Global

    # expressions

    def _Call(self, node: ast.Call) -> None:
        for position, argument in enumerate(node.args):
            self._span("argument of a call", argument)
            self._first("first token of an argument", argument)
            if position == 0:
                self._span("first argument of a call", argument)
            self._constant("as an argument", argument)
        for word in node.keywords:
            self._span("value of a keyword argument", word.value)
            self._constant("as an argument", word.value)

    def _Compare(self, node: ast.Compare) -> None:
        self._span("comparison", node)
        for operand in (node.left, *node.comparators):
            if _constant_type(operand) in (str, bytes):
                self._span("string in a comparison", operand)
        for operand in node.comparators:
            self._span("right side of a comparison", operand)

    def _BoolOp(self, node: ast.BoolOp) -> None:
        self._span("boolean expression", node)

    def _BinOp(self, node: ast.BinOp) -> None:
        self._span("arithmetic expression", node)
        if isinstance(node.op, ast.Mod):
            self._span("left side of `%`", node.left)

    def _IfExp(self, node: ast.IfExp) -> None:
        self._span("conditional expression", node)

    def _ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self._span("comprehension", node)

    _SetComp = _DictComp = _GeneratorExp = _ListComp

    def _comprehension(self, node: ast.comprehension) -> None:
        self._targets("loop variable", node.target)
        self._span("iterable of a loop or comprehension", node.iter)
        for condition in node.ifs:
            self._span("condition of a comprehension", condition)

    def _Subscript(self, node: ast.Subscript) -> None:
        self._span("object being subscripted", node.value)
        self._span("subscript", node.slice)
        self._constant("as a subscript", node.slice)

    def _Slice(self, node: ast.Slice) -> None:
        self._span("slice", node)

    def _Dict(self, node: ast.Dict) -> None:
        self._span("dictionary", node)
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:  # None stands for `**other`
                self._span("dictionary key", key)
            self._span("dictionary value", value)

    def _List(self, node: ast.List | ast.Tuple | ast.Set) -> None:
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return
        for element in node.elts:
            self._span("element of a list, tuple or set", element)
            self._constant("in a list, tuple or set", element)

    _Tuple = _Set = _List

    # names that are read

    def _Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            start = self._start(node)
            self.reads.append((node.id, start, start + len(node.id), self.scope))
        else:
            self.scope.assigned.add(node.id)

    def _add_reads(self, defined: set[str]) -> None:
        # At the end, since a function may be read before the place where its names are assigned
        for name, start, end, scope in self.reads:
            kind = self._origin(name, scope, defined)
            if kind is not None:
                self.add(kind, start, end)

    def _origin(self, name: str, scope: _Scope, defined: set[str]) -> str | None:
        inner: _Scope | None = scope
        while inner is not None:
            if name in inner.parameters:
                return "parameter being used"
            if inner.is_function and name in inner.assigned and name not in inner.foreign:
                return "local variable being used"
            inner = inner.outer
        if name in self.imported:
            return "imported name being used"
        if name in defined:
            return "module-level function or class being used"
        return "module-level variable being used" if name in self.module.assigned else None


def _start(text: _Text, node: _Located) -> int:
    return text.at_byte(node.lineno, node.col_offset)


def _end(text: _Text, node: _Located) -> int:
    assert node.end_lineno is not None  # ast.parse gives every expression and statement an end
    assert node.end_col_offset is not None
    return text.at_byte(node.end_lineno, node.end_col_offset)


def _constant_type(node: ast.expr) -> type | None:
    """Type of a literal; an f-string counts as a string."""
    if isinstance(node, ast.JoinedStr):
        return str
    return type(node.value) if isinstance(node, ast.Constant) else None


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from arguments.posonlyargs
    yield from arguments.args
    if arguments.vararg is not None:
        yield arguments.vararg
    yield from arguments.kwonlyargs
    if arguments.kwarg is not None:
        yield arguments.kwarg


_FIELDS: dict[type, tuple[str, ...]] = {
    kind: () if name in _LEAVES else tuple(field for field in kind._fields if field not in _SKIPPED_FIELDS)
    for name, kind in vars(ast).items()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}


def _children(node: ast.AST, but: str = "") -> Iterator[ast.AST]:
    for field in _FIELDS[type(node)]:
        value = getattr(node, field, None)
        if field == but:
            continue
        if isinstance(value, list):
            for child in value:
                if isinstance(child, ast.AST):
                    yield child
        elif isinstance(value, ast.AST):
            yield value
