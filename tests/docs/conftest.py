"""What the pages' journeys need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def peer_python(missing: Callable[[str, str], None]) -> Path:
    """The interpreter of the environment with the libraries whose files are read and written."""
    python = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
    if not python.exists():
        missing("peers", "needs the other libraries: make peers")
    return python
