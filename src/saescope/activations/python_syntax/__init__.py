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

from saescope.activations.python_syntax.classes import CLASS_NAMES, KEYWORDS, OPERATORS, Span, class_id
from saescope.activations.python_syntax.table import SyntaxTable, syntax_classes, token_classes

__all__ = [
    "CLASS_NAMES",
    "KEYWORDS",
    "OPERATORS",
    "Span",
    "SyntaxTable",
    "class_id",
    "syntax_classes",
    "token_classes",
]
