"""Where the sentences of a text begin: a rule on its characters, the same in every language that writes ``. ? !``.

A sentence ends at one or more of ``. ? !``, with any closing quotes and brackets, where white space follows and more
text after it. A full stop after one of ``ABBREVIATIONS`` ends none. White space between two sentences belongs to the
first, so that sentences leave no character out. Line ends alone end no sentence.
"""

from __future__ import annotations

import re

ABBREVIATIONS = frozenset(
    {
        "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "rev", "hon", "gen", "col", "capt", "lt", "sgt", "gov", "sen",
        "rep", "vs", "e.g", "i.e", "cf", "al", "fig", "figs", "eq", "approx", "inc", "ltd", "co", "corp", "dept", "est",
        "a.m", "p.m", "u.s", "u.k",
    }
)  # fmt: skip
"""Words, in small letters and without their last full stop, after which a full stop ends no sentence."""

_END = re.compile(r"([.?!]+)[\"'”’»)\]}]*\s+(?=\S)")
_LONGEST = max(map(len, ABBREVIATIONS))


def sentence_starts(text: str) -> list[int]:
    """The character at which each sentence begins; the first begins at 0."""
    starts = [0]
    for match in _END.finditer(text):
        if match[1] != "." or not _is_abbreviation(text, match.start()):
            starts.append(match.end())
    return starts


def _is_abbreviation(text: str, stop: int) -> bool:
    """Whether the word that ends before the full stop at ``stop`` is in the list."""
    words = text[max(0, stop - _LONGEST - 2) : stop].split()  # room for a bracket, and for one character too many
    return bool(words) and not text[stop - 1].isspace() and words[-1].lstrip("(['\"“‘«{").lower() in ABBREVIATIONS
