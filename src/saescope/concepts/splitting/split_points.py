"""Names of the modules at whose output a model is split."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from torch import nn

_NUM_SHOWN = 30


def resolved(module: nn.Module, split_points: Any) -> list[str]:
    """Module paths for names and layer numbers, each once, in the order given.

    Args:
        module: the model.
        split_points: a dotted module path, or a number n for the one module whose path ends in ``.n``; or several.

    Raises:
        ValueError: no split point, a path that does not exist, or a number that means no module or several.
        TypeError: neither a path nor a number.
    """
    single = isinstance(split_points, str) or not isinstance(split_points, Iterable)
    given = [split_points] if single else list(split_points)
    if not given:
        raise ValueError(f"no split point was given; this model has the submodules {_shown(_paths(module))}")
    return list(dict.fromkeys(_path(module, each) for each in given))


def _paths(module: nn.Module) -> list[str]:
    return [path for path, _ in module.named_modules() if path]


def _path(module: nn.Module, split_point: Any) -> str:
    paths = _paths(module)
    if isinstance(split_point, str):
        if split_point in paths:
            return split_point
        near = get_close_matches(split_point, paths, n=_NUM_SHOWN, cutoff=0.6) or paths
        raise ValueError(f"{split_point!r} is no submodule of {type(module).__name__}; available: {_shown(near)}")
    try:
        if isinstance(split_point, bool):
            raise TypeError
        number = operator.index(split_point)
    except TypeError:
        raise TypeError(f"a split point is a module path or a layer number, not {type(split_point).__name__}") from None
    found = [path for path in paths if path.rpartition(".")[2] == str(number)]
    if len(found) != 1:
        numbered = [path for path in paths if path.rpartition(".")[2].isdecimal()]
        reason = f"{len(found)} submodules end in .{number}" + (f": {_shown(found)}" if found else "")
        raise ValueError(f"{reason}; give the path of one as a string, available: {_shown(numbered or paths)}")
    return found[0]


def _shown(paths: list[str]) -> str:
    more = len(paths) - _NUM_SHOWN
    return ", ".join(paths[:_NUM_SHOWN]) + (f" and {more} more (see model.named_modules())" if more > 0 else "")
