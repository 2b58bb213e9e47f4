"""Lets the tests of this room import ``cases``, and the GPU's kernels run in Triton's interpreter without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))


def _interpret_what_is_imported() -> None:
    """Bring Triton's own library, where something has imported it for compiling, to where the variable would have."""
    from triton import language
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    interpreted: dict[int, InterpretedFunction] = {}  # one for each, as its modules share them
    for module in (language, language.core, language.standard, language.math, language.random):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, name, interpreted.setdefault(id(value), InterpretedFunction(value.fn)))


# Read when a kernel is decorated; Triton decorates some itself when it is imported, which transformers may have done.
if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    if "triton" in sys.modules:
        _interpret_what_is_imported()
