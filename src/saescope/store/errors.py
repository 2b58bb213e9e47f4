"""What goes wrong with a store, in kinds that a page answers differently. All are `ValueError`s, as they always were."""

from __future__ import annotations


class NotInStoreError(ValueError):
    """There is nothing of this name or number; the message names the nearest."""


class StoreFailedError(ValueError):
    """The database is away, or busy for too long: the same question may be answered later."""
