from __future__ import annotations

from pathlib import Path

import pytest

from saescope.store.address import resolve_address


def test_paths_and_urls_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/someone")
    assert resolve_address("runs/a.db") == Path("runs/a.db")
    assert resolve_address(Path("~/a.db")) == Path("/people/someone/a.db")
    assert resolve_address("sqlite:///a.db") == Path("a.db")
    assert resolve_address("sqlite+pysqlite:////data/a.db") == Path("/data/a.db")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_every_spelling_of_postgresql_means_psycopg(scheme: str) -> None:
    assert resolve_address(f"{scheme}://me:pw@host/db?a=b") == "postgresql+psycopg://me:pw@host/db?a=b"


def test_no_address_means_the_environment_then_a_file_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_STORE", "postgresql://host/db")
    assert resolve_address(None) == "postgresql+psycopg://host/db"
    monkeypatch.delenv("SAESCOPE_STORE")
    assert resolve_address(None) == Path("features.db")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mongodb://localhost:27017/mechinterp", "saescope store import --from lm-saes DUMP"),
        ("mongodb+srv://cluster/db", "not in MongoDB"),
        ("mysql://host/db", "mysql://"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("  ", "empty"),
    ],
)
def test_other_addresses_are_refused_with_what_to_do(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_address(address)
