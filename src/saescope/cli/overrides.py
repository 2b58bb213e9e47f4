"""What the user says of a dictionary where its files do not: ``-o KEY=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_TAKEN = ("format", "lenient", "dtype", "device", "mmap", "to", "overwrite")  # said by options of their own


def overrides_of(given: Sequence[str] | None) -> dict[str, Any]:
    """``k=32``, ``already_folded=true``, ``layer=7``: values as JSON has them, other words as they are.

    Raises:
        ValueError: no ``KEY=VALUE``, or a key twice.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name.isidentifier() or name in _TAKEN:
            raise ValueError(f"-o takes KEY=VALUE, such as k=32; got {text!r}")
        if name in found:
            raise ValueError(f"-o {name}=... is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
