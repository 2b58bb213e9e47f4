"""How loops are compiled by Numba, here and in other rooms: kept from process to process, without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(*fastmath: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that compiles a function when it is first called.

    Numba notices a change of the file that a function stands in, and of no other: what calls each other stays in one file.

    Args:
        fastmath: liberties with floating-point numbers that the function's results can bear, by LLVM's names. "reassoc"
            lets sums be reordered, so that they use vector units.
    """
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(cache=True, **how)(function)
        except RuntimeError:  # neither beside the file nor in the user's folder can anything be written
            return numba.njit(**how)(function)

    return compiled
