"""Opening a database: what SQLite and PostgreSQL need said to them, and their failures in our words."""

from __future__ import annotations

import contextlib
import random
import selectors
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, DisconnectionError

from saescope.store import schema
from saescope.store.errors import StoreFailedError
from saescope.store.tables import TABLES

_BUSY_SECONDS = 30.0  # how long a writer waits for another writer to finish
_CONNECT_SECONDS = 10  # for a server to answer
_ASK_AGAIN_SECONDS = 0.002  # between two tries, on average
_PAGE_BYTES = 16384  # of a new file: rows of some 3 kB leave less of a page empty than in pages of 4096
_CACHE_KIB = (
    32768  # per connection, as far as it is needed; SQLite's own 2 MB do not hold the upper levels of the trees
)


def open_engine(address: Path | str, *, must_exist: bool) -> tuple[Engine, str]:
    """Connect, and bring the schema up to date; leaves no connection open when it fails.

    Returns the engine, and what to call the place: the file, or the address without its password.
    """
    if isinstance(address, str):
        engine, place = _postgresql(address)
    else:
        engine, place = _sqlite(address, must_exist=must_exist)
    try:
        _prepare(engine, place, must_exist=must_exist)
    except BaseException:
        engine.dispose()
        raise
    return engine, place


@contextlib.contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """All or nothing, one writer at a time; readers go on seeing what was there before."""
    with _in_words(), engine.connect().execution_options(saescope_write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            # held until the transaction ends; the number means nothing, but every saescope process uses the same
            connection.execute(text("select pg_advisory_xact_lock(1935762275)"))
        yield connection


def read_transaction(engine: Engine, inside: Connection | None = None) -> AbstractContextManager[Connection]:
    """One state of the store for all statements inside, even while someone overwrites what they read.

    Args:
        inside: a transaction that goes on; with it none is begun.
    """
    return _transaction(engine, inside, "REPEATABLE READ")


def single_statement(engine: Engine, inside: Connection | None = None) -> AbstractContextManager[Connection]:
    """For one statement that reads: it sees one state by itself, so a server is spared the begin and the end."""
    return _transaction(engine, inside, "AUTOCOMMIT")


def settle(engine: Engine, *, shrink: bool = False) -> None:
    """After much was written: statistics for the planner, the log folded into the file; `shrink` returns free space.

    All of it may fail (a reader is in the way, the disk is full, the tables are someone else's) without harm.
    """
    with contextlib.suppress(DBAPIError, sqlite3.Error):
        if engine.dialect.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                for table in TABLES:  # an index answers alone only where a vacuum has been
                    connection.exec_driver_sql(f"vacuum (analyze) {table.name}")
        else:
            with contextlib.closing(engine.raw_connection()) as raw:
                cursor = raw.cursor()
                cursor.execute("pragma busy_timeout = 200")  # milliseconds: a reader may go on for hours
                try:
                    if shrink:
                        cursor.execute("vacuum")
                    cursor.execute("pragma wal_checkpoint(truncate)")
                finally:
                    cursor.execute(f"pragma busy_timeout = {_BUSY_SECONDS * 1000:.0f}")


@contextlib.contextmanager
def _transaction(engine: Engine, inside: Connection | None, level: IsolationLevel) -> Iterator[Connection]:
    with _in_words():
        if inside is not None:
            yield inside
            return
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":  # SQLite's transactions see one state anyway
                connection = connection.execution_options(isolation_level=level)
            yield connection


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Turn what a database driver says into an error with a way out."""
    try:
        yield
    except DBAPIError as error:
        said = str(error.orig).strip()
        if isinstance(error, DataError):  # a text or a number in the question, not the database
            raise ValueError(f"the database can not take this value: {said}") from error
        if "readonly" in said or "read-only" in said:
            raise PermissionError("the store can only be read here: the file or its folder is not writable") from error
        if "locked" in said:
            raise StoreFailedError(
                f"the store was busy for {_BUSY_SECONDS:.0f} seconds: another process is writing; "
                "try again when it is done"
            ) from error
        raise StoreFailedError(f"the database behind the store failed: {said}") from error


def _prepare(engine: Engine, place: str, *, must_exist: bool) -> None:
    try:
        with engine.connect() as connection:
            applied = schema.applied_migrations(connection)
    except DBAPIError as error:
        said = str(error.orig).strip()
        if "not a database" in said:
            raise ValueError(
                f"{place} is not an SQLite database, so it cannot be a store; give another file"
            ) from error
        raise ValueError(f"the store {place} cannot be opened: {said}") from error
    if applied is None and engine.dialect.name == "sqlite":
        raise ValueError(f"{place} is a database of something else, not a saescope store; give another file")
    if not applied and must_exist:
        raise FileNotFoundError(f"{place} is no store yet; `saescope analyze DICTIONARY` writes one")
    if schema.EARLY in (applied or ()):
        raise ValueError(
            f"{place} was written by an early saescope, in a form that this one does not read; "
            "move it away and analyse again"
        )
    unknown = set(applied or ()) - set(schema.MIGRATIONS)
    if unknown:
        raise ValueError(
            f"{place} was written by a newer saescope (it knows {', '.join(sorted(unknown))}); "
            "upgrade this one to read it"
        )
    if set(applied or ()) != set(schema.MIGRATIONS):
        if engine.dialect.name == "sqlite":
            # readers and a writer side by side; a file system that cannot do it answers with the old mode
            with contextlib.suppress(sqlite3.Error), contextlib.closing(engine.raw_connection()) as connection:
                connection.cursor().execute(f"pragma page_size = {_PAGE_BYTES}")
                connection.cursor().execute("pragma journal_mode = wal")
        with write_transaction(engine) as connection:
            schema.migrate(connection)


def _sqlite(path: Path, *, must_exist: bool) -> tuple[Engine, str]:
    path = path.absolute()
    if path.is_dir():
        raise IsADirectoryError(f"the store {path} is a folder; give the file in it, such as {path / 'features.db'}")
    if not path.exists():
        if must_exist:
            raise FileNotFoundError(f"there is no store {path}; `saescope analyze DICTIONARY` writes one")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise PermissionError(
                f"the store {path} cannot be created ({error.strerror}); name a place you may write to "
                "with --store or SAESCOPE_STORE"
            ) from error
    address = f"{path.as_uri()}?mode=rw"
    try:
        _probe(address)
    except sqlite3.OperationalError as error:
        # SQLite reads a file in WAL mode only where it may put its index beside it, unless told that nobody writes:
        # true of a folder that cannot be written, as long as no writer left a log there
        frozen = f"{path.as_uri()}?immutable=1"
        log = path.with_name(f"{path.name}-wal")
        if "locked" not in str(error) and not (log.exists() and log.stat().st_size):
            with contextlib.suppress(sqlite3.Error):
                _probe(frozen)
                address = frozen
    except sqlite3.DatabaseError:
        pass  # said better by the first query

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"pragma cache_size = -{_CACHE_KIB}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a writer takes its place before it reads, or what it read may be stale when it writes
        if connection.get_execution_options().get("saescope_write"):
            _begin_writing(connection)
        else:
            connection.exec_driver_sql("begin")

    return engine, str(path)


def _begin_writing(connection: Connection) -> None:
    """Wait for the other writers, and begin.

    There is no queue: whoever asks in the right moment is next. SQLite's own waiting asks ten times a second, and would
    hardly ever hit the instant between two transactions of a process that writes one after another.
    """
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)
    deadline = time.monotonic() + _BUSY_SECONDS
    raw.execute("pragma busy_timeout = 0")
    try:
        while True:
            try:
                raw.execute("begin immediate")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    break
                time.sleep(random.uniform(0, 2 * _ASK_AGAIN_SECONDS))
            else:
                return
    finally:
        raw.execute(f"pragma busy_timeout = {_BUSY_SECONDS * 1000:.0f}")
    connection.exec_driver_sql("begin immediate")  # once more, to fail as any statement does


def _probe(address: str) -> None:
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        connection.execute("select count(*) from sqlite_master")


def _postgresql(address: str) -> tuple[Engine, str]:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise ValueError(
            f"{address!r} is not a PostgreSQL address; expected postgresql://USER@HOST/DATABASE"
        ) from error
    try:
        # a host that says nothing is given up after a while, unless the address itself says after how long
        given = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
        engine = create_engine(url, connect_args=given)
    except ModuleNotFoundError as error:
        raise ValueError(
            "a PostgreSQL store needs the driver psycopg, which is not installed: pip install 'saescope[postgres]'"
        ) from error

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, *_: object) -> None:
        # A server that went away has closed the socket, and that end is there to be read. To ask the server would be a
        # second round trip for every question.
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            if selector.select(0):
                raise DisconnectionError("the server has closed the connection")  # the pool makes another

    return engine, url.render_as_string(hide_password=True)
