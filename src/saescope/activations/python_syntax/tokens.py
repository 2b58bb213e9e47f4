"""What Python's tokenizer knows: comments, strings, names, punctuation, lines."""

from __future__ import annotations

import builtins
import io
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from saescope.activations.python_syntax.classes import CLASS_IDS, KEYWORDS
from saescope.activations.python_syntax.text import Spans, Text

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


class TokenReader:
    """Adds the classes that need no syntax tree.

    Two walks: over everything that `tokenize` gives, for comments and lines, and then over the words that are left,
    each seen with its neighbours, the brackets around it and the beginning of its statement.
    """

    def __init__(self, text: Text, spans: Spans, docstrings: dict[int, int] | None) -> None:
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
        if f"operator `{symbol}`" in CLASS_IDS:  # not every operator has a class of its own
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


def _tokenize(text: Text) -> Iterator[_RawToken]:
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
