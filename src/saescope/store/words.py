"""Words for full-text search, cut by saescope itself, so that every database finds the same.

A word is a run of letters, digits and underscores of any script, in lower case. Every word of a query is a prefix, and all
of them must be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, islice

_WORD = re.compile(r"\w+")
LONGEST = 64  # characters of a word that count
MOST = 3000  # different words of one feature; a tsvector must stay under 1 MiB


def cut(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word[:LONGEST] for word in _WORD.findall(text.lower())]


def searchable(texts: Iterable[str]) -> str:
    """The different words of some texts with blanks between: what the index is made of."""
    return " ".join(islice(dict.fromkeys(chain.from_iterable(map(cut, texts))), MOST))


def wanted(query: str) -> list[str]:
    """The words of a query.

    Raises:
        ValueError: it has none.
    """
    words = list(dict.fromkeys(cut(query)))
    if not words:
        raise ValueError(f"the search {query!r} has no word in it; words are made of letters, digits and underscores")
    return words


def fts5_query(words: list[str]) -> str:
    """As SQLite's FTS5 wants it said."""
    return " AND ".join(f'"{word}"*' for word in words)


def tsquery(words: list[str]) -> str:
    """As PostgreSQL's `tsquery` wants it said."""
    return " & ".join(f"'{word}':*" for word in words)
