"""The text of the bundled model: the source files of the running interpreter's standard library.

Every Python carries about ten megabytes of real, well kept source code, so a first run needs no download. The files are
those of the standard library itself; tests, ``idlelib`` and files generated when the interpreter was built are left out.
Each file belongs to the train or to the held-out half by a hash of its dotted module name, so that a module stays on
its side from one Python release to the next, and a dictionary trained here is never judged on text that it has seen.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

_FOLDERS_LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_HELD_OUT_ONE_IN = 10


class SourcesMissingError(FileNotFoundError):
    """This interpreter has no standard library source files (a zipped or stripped installation)."""


@dataclass(frozen=True)
class SourceFile:
    """One module of the standard library: its dotted name and the file that holds its source."""

    name: str
    path: Path

    @property
    def split(self) -> Split:
        return split_of(self.name)

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace")


def split_of(module_name: str) -> Split:
    """The half to which a dotted module name belongs: one name in ten is held out."""
    digest = hashlib.sha256(module_name.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0 else "train"


def source_files(split: Split | None = None, root: Path | None = None) -> list[SourceFile]:
    """The standard library's source files, sorted by module name.

    Args:
        split: ``"train"``, ``"held_out"`` or None for both.
        root: folder of the standard library; the running interpreter's when None.

    Raises:
        SourcesMissingError: when the folder holds no source files.
    """
    root = root if root is not None else Path(sysconfig.get_path("stdlib"))
    files = [SourceFile(name, path) for name, path in sorted(_modules(root))]
    if not files:
        raise SourcesMissingError(
            f"no standard library source files under {root}: this Python comes without them (zipped or stripped). "
            "Use a Python with its .py files, or name another dataset."
        )
    return files if split is None else [file for file in files if file.split == split]


def fingerprint(files: list[SourceFile]) -> str:
    """SHA-256 of the list of files: one line ``name sha256-of-content`` each, in the order given."""
    lines = (f"{file.name} {hashlib.sha256(file.path.read_bytes()).hexdigest()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*.py"):
        folders = path.relative_to(root).parts[:-1]
        parts = [*folders, path.stem]
        if _FOLDERS_LEFT_OUT.intersection(folders) or not all(part.isidentifier() for part in parts):
            continue
        if path.stem.startswith(
            "_sysconfigdata"
        ):  # generated: the paths and flags of the machine that built this Python
            continue
        yield ".".join(parts[:-1] if path.stem == "__init__" and folders else parts), path
