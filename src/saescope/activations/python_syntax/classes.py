"""The fixed list of syntax classes, and what a span is."""

from __future__ import annotations

import difflib
from typing import NamedTuple

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

CLASS_IDS = {name: index for index, name in enumerate(CLASS_NAMES)}


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
    if name not in CLASS_IDS:
        near = difflib.get_close_matches(name, CLASS_NAMES) or difflib.get_close_matches(name, CLASS_NAMES, cutoff=0.3)
        hint = f"did you mean {', '.join(repr(other) for other in near)}?" if near else "see CLASS_NAMES for the list."
        raise ValueError(f"no syntax class is named {name!r}; {hint}")
    return CLASS_IDS[name]
