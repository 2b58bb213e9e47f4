"""Features on the command line: ``1,2,5-9``, ``all``, or a file that lists them."""

from __future__ import annotations

import re
from pathlib import Path

_BETWEEN = re.compile(r"[\s,;\[\]]+")
_ONE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")
_LARGEST_FILE = 64 * 1024 * 1024


def parse_indices(written: str, d_sae: int) -> list[int] | None:
    """The features that are meant, in the order in which they are written; None for all.

    In a file, numbers and stretches stand with blanks, commas or line ends between (so a JSON list is one too), and what
    follows a ``#`` is a remark.

    Raises:
        ValueError: it can not be read, or names what a dictionary of `d_sae` features does not have.
        FileNotFoundError: it looks like a file, and there is none.
    """
    if written.strip() == "all":
        return None
    what = f"--features {written}"
    if not re.fullmatch(r"[\d\s,;-]*", written):
        path = Path(written)
        if not path.is_file():
            raise FileNotFoundError(
                f"--features takes 1,2,5-9, all, or a file that lists them; {written!r} is none of these"
            )
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{written} is larger than any list of features; it can not be one")
        what = written
        written = re.sub(r"#.*", "", path.read_text(encoding="utf-8-sig", errors="replace"))
    found: list[int] = []
    for part in filter(None, _BETWEEN.split(written)):
        stretch = _ONE.fullmatch(part)
        if stretch is None:
            raise ValueError(f"{what}: {part[:80]!r} is no feature; write numbers and stretches such as 1,2,5-9")
        first = int(stretch[1])
        last = first if stretch[2] is None else int(stretch[2])
        if last < first:
            raise ValueError(f"{what}: the stretch {part} ends before it begins")
        if last >= d_sae:
            raise ValueError(f"{what}: there is no feature {last}; the dictionary has {d_sae:,}, from 0 to {d_sae - 1}")
        found += range(first, last + 1)
    if not found:
        raise ValueError(f"{what} names no feature; write numbers and stretches such as 1,2,5-9, or all")
    return found
