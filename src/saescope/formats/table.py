"""The table of formats in ``docs/formats.md``, from the formats themselves: ``python -m saescope.formats.table PAGE``."""

from __future__ import annotations

import sys
from pathlib import Path

from saescope.formats.dictionaries import FORMATS

BEGIN = "<!-- written by `python -m saescope.formats.table docs/formats.md` -->"
END = "<!-- end -->"
_HEAD = ("format", "recognised by", "reader", "writer", "what files leave open (`-o`)", "checked against")


def formats_table() -> str:
    """A row for each format, in Markdown."""
    rows = [
        (
            f"`{each.name}`: {each.title}",
            each.layout,
            each.reads or "yes",
            (each.writes or "yes") if each.write else "no",
            "; ".join(f"`{name}`: {words}" for name, words in each.overrides.items()) or "nothing",
            each.checked_against or "itself",
        )
        for each in FORMATS
    ]
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def with_table(page: str) -> str:
    """The page with today's table between its two marks.

    Raises:
        ValueError: the page has not the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page should have the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{formats_table()}{END}{after}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
