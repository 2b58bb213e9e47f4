"""Results that are kept under a hash of everything that they depend on: weights, data, settings and code.

A name says nothing about what stands behind it, so a result is never found by name: another checkpoint, other text, another
seed or a change of the code gives another key, and the same ones give the result at once. Each result is a file of its own,
written whole or not at all, so that what was finished before a kill is not made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saescope
from saescope.activations import TokenWindows
from saescope.evaluation.results import StudyResult

_ROOMS = ("activations", "dictionaries", "evaluation", "kernels", "models", "metrics.py")  # what a number can depend on


def default_folder() -> Path:
    """Where results are kept: ``SAESCOPE_CACHE``, else ``~/.cache/saescope``."""
    return Path(os.environ.get("SAESCOPE_CACHE") or Path.home() / ".cache" / "saescope") / "evaluations"


class KeptResults:
    """Study results in a folder, found by key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> StudyResult | None:
        """A result that was kept; None where there is none, or its file is damaged."""
        try:
            return StudyResult.from_dict(json.loads(self._path(key).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # made anew, and written over

    def keep(self, key: str, result: StudyResult) -> None:
        """Write a result, whole or not at all.

        Raises:
            ValueError: a failure, which is not kept: the next try may succeed.
        """
        if result.failure:
            raise ValueError(f"{result.study} failed; a failure is not kept")
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with beside.open("w") as file:
            json.dump(result.as_dict(), file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def key_of(*parts: Any) -> str:
    """A key from digests and settings (plain values; order of keys plays no part)."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash of names, shapes, dtypes and every value."""
    found = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        found.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return found.hexdigest()


def digest_of_windows(windows: TokenWindows) -> str:
    """A hash of the tokens in windows, and of how they are cut and grouped into documents."""
    found = hashlib.sha256(repr((windows.config, windows.bos_id, windows.separator_id)).encode())
    for array in (windows.tokens, windows.document_starts, windows.starts, windows.lengths):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@cache
def digest_of_code() -> str:
    """A hash of the source of the rooms that numbers come from, and of the version of torch."""
    root = Path(saescope.__file__).parent
    found = hashlib.sha256(torch.__version__.encode())
    for room in _ROOMS:
        place = root / room
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()


def source_of(cls: type) -> str | None:
    """The source of a class and of those it comes from, as far as they are not saescope's or a library's that has a version.

    None where a source can not be had (a class typed into a prompt): results of such a class are not to be kept.
    """
    own = [
        kind
        for kind in cls.__mro__
        if kind.__module__.partition(".")[0] not in ("saescope", "torch", "builtins", "abc")
    ]
    try:
        return "".join(inspect.getsource(kind) for kind in own)
    except (OSError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {"of": type(value).__qualname__, **vars(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no plain form for a key")
