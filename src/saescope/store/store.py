"""`Store`: open an address, write an analysed dictionary in one transaction, read it back as records.

This module imports no database library; `Store.open` does. Commands that only mention a store stay quick to start.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saescope.store.address import resolve_address
from saescope.store.records import DictionaryRecord, Example, FeaturePage, FeatureRecord, Window

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Store:
    """Features of analysed dictionaries, in an SQLite file or a PostgreSQL database. Made by `Store.open`.

    Any number of processes may read while one writes: a reader sees the state before or after a write, nothing between.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, address: str | Path | None = None, *, must_exist: bool = False) -> Self:
        """Open the store at `address`: a path, a `sqlite:///` or a `postgresql://` URL.

        `None` means `$SAESCOPE_STORE`, else `./features.db`. A file that is missing is created, or with `must_exist`
        refused with `FileNotFoundError`. Raises `PermissionError` where nothing can be created, and `ValueError` for an
        address that is no store. Close it with `close()`, or use it in a `with` statement.
        """
        place = resolve_address(address)
        from saescope.store.engines import open_engine

        return cls(open_engine(place, must_exist=must_exist))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(
        self,
        record: DictionaryRecord,
        features: Iterable[FeatureRecord],
        windows: Iterable[Window],
        examples: Iterable[Example],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write one analysed dictionary, all of it or nothing.

        The iterables are read once, in this order and in batches, so they may be generators. Until the last one has
        ended readers see the old content; if one of them raises, or the process dies, the old content stays. A name
        that is already there is refused with `ValueError` unless `overwrite` is set, which replaces it whole.
        """
        from saescope.store.engines import write_transaction
        from saescope.store.writing import write_dictionary

        with write_transaction(self._engine) as connection:
            write_dictionary(connection, record, features, windows, examples, overwrite=overwrite)

    def dictionaries(self) -> list[DictionaryRecord]:
        """All dictionaries in the store, by name."""
        from saescope.store import reading
        from saescope.store.engines import read_transaction

        with read_transaction(self._engine) as connection:
            return reading.read_dictionaries(connection)

    def dictionary(self, name: str | None = None) -> DictionaryRecord:
        """The dictionary called `name`; `None` will do if there is exactly one."""
        from saescope.store import reading
        from saescope.store.engines import read_transaction

        with read_transaction(self._engine) as connection:
            return reading.find_dictionary(connection, name)[1]

    def features(
        self,
        name: str | None,
        *,
        sort: str = "density",
        descending: bool = True,
        limit: int = 20,
        offset: int = 0,
        min_density: float | None = None,
        max_density: float | None = None,
        search: str | None = None,
    ) -> list[FeatureRecord]:
        """Features of one dictionary, sorted and filtered; ties go by index, features without the sort key come last.

        `sort` is index, num_firings, density, max_activation, mean_activation, precision or lift. `search` is looked
        for in the labels as it stands, in upper or lower case.
        """
        from saescope.store import reading
        from saescope.store.engines import read_transaction

        with read_transaction(self._engine) as connection:
            identity, _ = reading.find_dictionary(connection, name)
            return reading.read_features(
                connection,
                identity,
                sort=sort,
                descending=descending,
                limit=limit,
                offset=offset,
                min_density=min_density,
                max_density=max_density,
                search=search,
            )

    def page(self, name: str | None, index: int) -> FeaturePage:
        """One feature with its examples in order of rank. `ValueError` if the dictionary has no feature `index`."""
        from saescope.store import reading
        from saescope.store.engines import read_transaction

        with read_transaction(self._engine) as connection:
            identity, record = reading.find_dictionary(connection, name)
            return reading.read_page(connection, identity, record, index)
