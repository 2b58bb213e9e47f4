"""JSON on standard output."""

from __future__ import annotations

import json
from typing import Any


def print_json(document: dict[str, Any]) -> None:
    """One document, its numbers as they are. Letters beyond ASCII are escaped: token texts may hold what no encoding has."""
    print(json.dumps(document, indent=1, allow_nan=False))
