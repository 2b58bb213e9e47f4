"""One address names a store: a path or `sqlite:///` URL for a file, a `postgresql://` URL for a server."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEFAULT_FILE = "features.db"

_POSTGRESQL = re.compile(r"postgres(ql)?(\+\w+)?://")
_SQLITE = re.compile(r"sqlite(\+\w+)?://(?P<rest>.*)", re.DOTALL)
_MONGODB = re.compile(r"mongodb(\+\w+)?://")


def resolve_address(address: str | Path | None) -> Path | str:
    """The file of an SQLite store (`Path`), or the `postgresql+psycopg://` URL of a server (`str`).

    `None` means `$SAESCOPE_STORE`, else `./features.db`. Raises `ValueError` for an address of any other database.
    """
    if address is None:
        address = os.environ.get("SAESCOPE_STORE") or DEFAULT_FILE
    if isinstance(address, Path):
        return address.expanduser()
    if not address.strip():
        raise ValueError("the address of the store is empty; give a file such as features.db, or a postgresql:// URL")
    if _POSTGRESQL.match(address):
        return _POSTGRESQL.sub("postgresql+psycopg://", address, count=1)
    if sqlite := _SQLITE.fullmatch(address):
        # SQLAlchemy's convention: sqlite:///relative.db and sqlite:////absolute.db
        file = sqlite["rest"].removeprefix("/")
        if not sqlite["rest"].startswith("/") or not file or file == ":memory:":
            raise ValueError(
                f"{address!r} names no file; write sqlite:///features.db for a file here, "
                "sqlite:////tmp/features.db for one elsewhere"
            )
        return Path(file).expanduser()
    if _MONGODB.match(address):
        raise ValueError(
            "saescope keeps features in SQLite or PostgreSQL, not in MongoDB: it has one schema, tested on both. "
            "Give a file or a postgresql:// URL; a dump of a Language-Model-SAEs database is read by "
            "`saescope store import --from lm-saes DUMP`"
        )
    if "://" in address:
        raise ValueError(
            f"saescope cannot keep features in {address.split('://')[0]}://; give a file such as features.db, "
            "a sqlite:/// URL or a postgresql:// URL"
        )
    return Path(address).expanduser()
