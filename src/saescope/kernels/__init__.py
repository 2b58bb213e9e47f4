"""The sparse arithmetic of training behind one signature, in three implementations.

``reference.py`` is plain torch and says what is computed; ``cpu.py`` (Numba) and ``gpu.py`` (Triton) compute the same
without a ``[B, d_sae]`` tensor. :func:`kernels_for` gives the one for a tensor, and None on machines that lack what it
needs; training is dense there.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saescope.kernels.codes import FlatCodes
from saescope.kernels.signature import AdamStep, Gradients

_LIBRARIES = {"cpu": "numba", "cuda": "triton"}
_MODULES = {"cpu": "saescope.kernels.cpu", "cuda": "saescope.kernels.gpu"}


def kernels_for(tensor: Tensor) -> Any:
    """The kernels for a tensor's device and dtype: a module with the functions of ``reference.py``, or None.

    A missing library is named in one warning per process.
    """
    kind = tensor.device.type
    wide = tensor.dtype == torch.float32 or (kind == "cpu" and tensor.dtype == torch.float64)
    return _load(kind) if kind in _MODULES and wide else None


@cache
def _load(kind: str) -> ModuleType | None:
    try:
        return importlib.import_module(_MODULES[kind])
    except ImportError as error:
        warnings.warn(
            f"the fast kernels for {kind} need {_LIBRARIES[kind]} ({error}); training goes on with dense products, "
            f"several times slower: pip install {_LIBRARIES[kind]}",
            stacklevel=3,
        )
        return None


__all__ = ["AdamStep", "FlatCodes", "Gradients", "kernels_for"]
