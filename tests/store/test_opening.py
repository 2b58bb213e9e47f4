"""Opening: what is there, what is missing, what is something else; and what the schema promises."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from saescope.store import FeatureDetail, Store, schema, tables
from saescope.store.records import NUMBERS
from saescope.store.rows import DETAIL_COLUMNS, DETAILS


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
        store.write(make.dictionary(), make.analysis(), [], [], [])
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
        store.write(make.dictionary(), make.analysis(), [make.feature(1)], [], [])
    public_folder.chmod(0o555)
    with _without_root():
        with Store.open(public_folder / "features.db", must_exist=True) as store:
            assert store.features("tiny").features == (make.record(1),)
            assert store.page("tiny", 1).feature == make.record(1)
            with pytest.raises(PermissionError, match="can only be read here"):
                store.write(make.dictionary("second"), make.analysis(), [], [], [])
            with pytest.raises(PermissionError, match="can only be read here"):
                store.tag("tiny", 1, "seen")
        with pytest.raises(PermissionError, match="cannot be created"):
            Store.open(public_folder / "new.db")


def test_a_newer_schema_is_refused(store_address: str) -> None:
    with Store.open(store_address) as store, store._engine.begin() as connection:
        connection.execute(text("insert into migration (name) values ('9999_from_the_future')"))
    with pytest.raises(ValueError, match=r"newer saescope \(it knows 9999_from_the_future\); upgrade"):
        Store.open(store_address)


def test_a_store_of_an_early_saescope_is_refused(store_address: str) -> None:
    with Store.open(store_address) as store, store._engine.begin() as connection:
        connection.execute(text("update migration set name = '0001_initial'"))
    with pytest.raises(ValueError, match=r"written by an early saescope, .* analyse again"):
        Store.open(store_address)


def test_a_migration_is_applied_once(store_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(store_address).close()
    script = {"any": "create table later (\n    a integer -- first; second\n);\ninsert into later values (1);"}
    monkeypatch.setitem(schema.MIGRATIONS, "0002_later", script)
    for _ in range(2):
        with Store.open(store_address) as store, store._engine.begin() as connection:
            assert connection.execute(text("select a from later")).scalars().all() == [1]
            assert schema.applied_migrations(connection) == ["0001_store", "0002_later"]


def test_the_tables_the_queries_name_are_the_tables_the_migrations_make(store: Store) -> None:
    found = inspect(store._engine)
    names = {name for name in found.get_table_names() if not name.startswith("feature_search")}
    assert names == {table.name for table in tables.TABLES} | {"migration"}
    for table in tables.TABLES:
        columns = [column for column in found.get_columns(table.name) if column["name"] != "search"]
        assert [column["name"] for column in columns] == [column.name for column in table.columns]
        for column in columns:
            expected = table.columns[column["name"]].type.as_generic()
            assert column["type"].as_generic().python_type is expected.python_type, (table.name, column["name"])


def test_columns_of_features_are_the_fields_of_the_record() -> None:
    columns = [column.name for column in tables.feature.columns]
    label = ["label_precision", "label_recall", "label_lift", "label_num_firings", "label_kind", "label"]
    assert columns == ["analysis_id", "feature_index", *NUMBERS, *label]
    assert [column.name for column in tables.feature_detail.columns][2:] == list(DETAIL_COLUMNS)
    assert {field.name for field in fields(FeatureDetail)} == set(DETAILS)


def test_the_database_itself_keeps_rows_together(store: Store, fill: Callable[..., object]) -> None:
    fill(store)
    for statement in (
        "insert into example select analysis_id, feature_index, number + 9, peak, 77, activation, num_copies, top_rank, "
        "quantile_band, width_band, negative, positions, activations from example",
        "update example set feature_index = 15",
        "delete from text_window",
        "delete from feature",
        "delete from dictionary",
        "insert into note (dictionary_id, feature_index, text, author, created_at) values (9, 1, '', '', '')",
        "insert into feature select * from feature",
    ):
        with store._engine.connect() as connection, pytest.raises(IntegrityError):
            connection.exec_driver_sql(statement)


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"postgresql\+psycopg://me:\*\*\*@.* cannot be opened") as caught:
        Store.open(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'saescope\[postgres\]'"):
        Store.open("postgresql://host/db")


_OPENING = "import sys; from saescope.store import Store; Store.open(sys.argv[1]).close()"


def test_several_processes_make_one_store(store_address: str) -> None:
    several = [subprocess.Popen([sys.executable, "-c", _OPENING, store_address]) for _ in range(4)]
    assert [process.wait() for process in several] == [0, 0, 0, 0]
    with Store.open(store_address, must_exist=True) as store:
        assert store.dictionaries() == []


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    import socket

    from saescope.store import engines

    monkeypatch.setattr(engines, "_CONNECT_SECONDS", 2)  # the least that the driver knows
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(ValueError, match=r"cannot be opened.*time"):
            Store.open(f"postgresql+psycopg://me@127.0.0.1:{port}/features")
