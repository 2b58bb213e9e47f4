"""A small analysed dictionary with everything that a page can have, in a store; and the modules beside the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the writer of dumps, the schema


@pytest.fixture(scope="session")
def planted() -> SimpleNamespace:
    """The records of the small dictionary."""
    from planted_features import planted_records

    return planted_records()


@pytest.fixture
def filled(planted: SimpleNamespace, tmp_path: Path) -> Iterator[object]:
    """A store with it."""
    from saescope.store import Store

    with Store.open(tmp_path / "features.db") as store:
        store.write(planted.dictionary, planted.analysis, planted.features, planted.windows, planted.examples)
        for index, explanation in planted.explanations:
            store.explain("small", index, explanation)
        yield store


@pytest.fixture
def fast_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts what is synced instead of waiting for the disk."""
    import os

    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    return lambda: len(synced)


@pytest.fixture(scope="session")
def peer_python(missing: Callable[[str, str], None]) -> Path:
    """The interpreter of the environment with the libraries whose files are read and written."""
    python = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
    if not python.exists():
        missing("peers", "needs the other libraries: make peers")
    return python
