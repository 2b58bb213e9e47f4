"""What all views share: colours, token text on one line, bars of characters, the plain table.

Token text is data: it is never read as markup, and what could move the cursor or reorder the line is shown as a code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from math import log1p

from rich import box
from rich.table import Table

# read alike on light and on dark terminals: a background brings its own foreground, and the weakest has none
STRONG = "#ffffff on #c2410c"
MEDIUM = "#000000 on #f59e42"
WEAK = "#c2630a"
STRONG_NEGATIVE = "#ffffff on #1d4ed8"
MEDIUM_NEGATIVE = "#000000 on #7fb4f5"
WEAK_NEGATIVE = "#2f76c8"
PEAK = "bold underline"
MUTED = "dim"
BAR = "dark_orange"

_BARS = " ▁▂▃▄▅▆▇█"


def strength(activation: float, strongest: float) -> str:
    """The style of a token: one of three strengths of a colour, by its share of the strongest firing anywhere."""
    if activation == 0 or strongest <= 0:
        return ""
    share = abs(activation) / strongest
    three = (STRONG, MEDIUM, WEAK) if activation > 0 else (STRONG_NEGATIVE, MEDIUM_NEGATIVE, WEAK_NEGATIVE)
    return three[0] if share > 2 / 3 else three[1] if share > 1 / 3 else three[2]


def sparkline(counts: Sequence[int], max_columns: int, *, logarithmic: bool) -> tuple[str, int]:
    """Counts as bars of characters, and the count of the highest one.

    Neighbouring counts share a column where there are more than `max_columns`. A count of one is never drawn as nothing.
    """
    merged = max(1, -(-len(counts) // max_columns))
    columns = [sum(counts[i : i + merged]) for i in range(0, len(counts), merged)]
    highest = max(columns, default=0)
    scale = log1p if logarithmic else float
    heights = [max(1, round(8 * scale(n) / scale(highest))) if n else 0 for n in columns]
    return "".join(_BARS[height] for height in heights), highest


def visible(text: str, *, spaces: bool = False) -> str:
    """Token text on one line: line ends as ↵, tabs as ⇥, what has no shape as a code, and spaces as · if asked."""
    return "".join(_shown(character, spaces) for character in text.replace("\r\n", "\n"))


def plain_table() -> Table:
    """A table with a rule under its head and nothing else."""
    return Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)


def _shown(character: str, spaces: bool) -> str:
    if character == " ":
        return "·" if spaces else " "
    if character in "\n\t":
        return "↵" if character == "\n" else "⇥"
    # control and format characters (escape sequences, direction marks), surrogates, separators of lines and paragraphs
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return character
