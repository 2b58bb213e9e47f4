"""Opening: what is there, what is missing, what is something else; and writers that die."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import inspect, text

from saescope.store import Store, schema


@contextlib.contextmanager
def _without_root() -> Iterator[None]:
    """Root may write everywhere, so a test of permissions takes another identity for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_new_store_is_made_with_its_folders(tmp_path: Path, make: SimpleNamespace) -> None:
    file = tmp_path / "runs" / "a?b #1.db"
    with Store.open(file) as store:
        store.write(make.dictionary(), [], [], [])
    with Store.open(f"sqlite:///{file}", must_exist=True) as store:
        assert store.dictionary() == make.dictionary()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAESCOPE_STORE", str(tmp_path / "here.db"))
    Store.open().close()
    assert (tmp_path / "here.db").exists()


def test_a_store_that_must_exist(store_address: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="saescope analyze"):
        Store.open(store_address, must_exist=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(FileNotFoundError, match="is no store yet"):
        Store.open(tmp_path / "empty.db", must_exist=True)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("this is a text, and long enough to be asked for its header" * 10)
    with pytest.raises(ValueError, match="is not an SQLite database"):
        Store.open(tmp_path / "notes.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table recipes (name text)")
    with pytest.raises(ValueError, match="database of something else"):
        Store.open(tmp_path / "other.db")
    with pytest.raises(IsADirectoryError, match=r"give the file in it, such as .*features\.db"):
        Store.open(tmp_path)
    with pytest.raises(PermissionError, match=r"cannot be created .*SAESCOPE_STORE"):
        Store.open(tmp_path / "notes.db" / "inside.db")


def test_a_read_only_folder_can_be_read_but_not_written(public_folder: Path, make: SimpleNamespace) -> None:
    with Store.open(public_folder / "features.db") as store:
        store.write(make.dictionary(), [make.feature(1)], [], [])
    public_folder.chmod(0o555)
    with _without_root():
        with Store.open(public_folder / "features.db", must_exist=True) as store:
            assert store.features("tiny") == [make.feature(1)]
            with pytest.raises(PermissionError, match="can only be read here"):
                store.write(make.dictionary("second"), [], [], [])
        with pytest.raises(PermissionError, match="cannot be created"):
            Store.open(public_folder / "new.db")


def test_a_newer_schema_is_refused(store_address: str) -> None:
    with Store.open(store_address) as store, store._engine.begin() as connection:
        connection.execute(text("insert into migration (name) values ('9999_from_the_future')"))
    with pytest.raises(ValueError, match=r"newer saescope \(it knows 9999_from_the_future\); upgrade"):
        Store.open(store_address)


def test_the_tables_the_queries_name_are_the_tables_the_migrations_make(store: Store) -> None:
    found = inspect(store._engine)
    assert set(found.get_table_names()) == {table.name for table in schema.TABLES} | {"migration"}
    for table in schema.TABLES:
        columns = found.get_columns(table.name)
        assert [column["name"] for column in columns] == [column.name for column in table.columns]
        for column in columns:
            expected = table.columns[column["name"]].type.as_generic()
            assert column["type"].as_generic().python_type is expected.python_type, (table.name, column["name"])


def test_the_sqlite_shell_can_answer_questions(tmp_path: Path, make: SimpleNamespace) -> None:
    with Store.open(tmp_path / "features.db") as store:
        store.write(make.dictionary(), [make.feature(4, label=make.label("digits"))], [make.window(0)], [])
    with contextlib.closing(sqlite3.connect(tmp_path / "features.db")) as connection:
        question = "select feature_index, text, density from feature join label using (dictionary_id, feature_index)"
        assert connection.execute(question).fetchall() == [(4, "digits", 0.04)]
        second = "select json_extract(token_texts, '$[1]') from text_window"
        assert connection.execute(second).fetchone() == (" f",)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute("insert into feature select * from feature")


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"postgresql\+psycopg://me:\*\*\*@.* cannot be opened") as caught:
        Store.open(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'saescope\[postgres\]'"):
        Store.open("postgresql://host/db")


_DYING_WRITER = """
import os, sys, types
from saescope.store import DictionaryRecord, Store, Window

record = DictionaryRecord(name="tiny", model="m", hook_point="h", architecture="a", dataset="d",
                          d_in=1, d_sae=1, context_size=1, num_tokens=1)

def windows():
    for i in range(5000):
        yield Window(id=i, document="d", offset=0, token_ids=(0,), token_texts=("x" * 500,))
    os._exit(9)

Store.open(sys.argv[1]).write(record, [], windows(), [], overwrite=True)
"""


def test_a_killed_writer_leaves_the_old_content(store: Store, store_address: str, make: SimpleNamespace) -> None:
    store.write(make.dictionary(), [make.feature(1)], [make.window(0)], [make.example(1, 0, 0)])
    before = store.page("tiny", 1)
    killed = subprocess.run([sys.executable, "-c", _DYING_WRITER, store_address], check=False)
    assert killed.returncode == 9
    assert store.page("tiny", 1) == before
    store.write(make.dictionary(), [make.feature(2)], [], [], overwrite=True)  # and it left no lock behind
    assert store.features("tiny") == [make.feature(2)]


_OPENING = "import sys; from saescope.store import Store; Store.open(sys.argv[1]).close()"


def test_several_processes_make_one_store(store_address: str) -> None:
    several = [subprocess.Popen([sys.executable, "-c", _OPENING, store_address]) for _ in range(4)]
    assert [process.wait() for process in several] == [0, 0, 0, 0]
    with Store.open(store_address, must_exist=True) as store:
        assert store.dictionaries() == []
