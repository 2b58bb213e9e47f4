"""Summaries of analyses, kept for a few seconds: each is made of all features of its analysis.

A summary is asked for again when it is `SECONDS` old, or at once when the analysis was written anew. What changes in between
(a label, an evaluation, an explanation) is seen after that time at the latest. One thread makes a summary, others that want
the same wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary, ref

from saescope.store import Store, Summary

SECONDS = 10.0
_MOST = 256  # kept at a time
_MAKING = threading.Lock()


class Summaries:
    """The summaries of one store, which they do not keep alive."""

    _all: ClassVar[WeakKeyDictionary[Store, Summaries]] = WeakKeyDictionary()

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = ref(store), clock
        self._kept: dict[tuple[str, str, str], tuple[float, Summary]] = {}
        self._locks: dict[tuple[str, str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, store: Store) -> Summaries:
        """Those that all pages over a store share."""
        with _MAKING:
            if store not in cls._all:
                cls._all[store] = cls(store)
            return cls._all[store]

    def get(self, name: str, analysis: str | None = None) -> Summary:
        """See `Store.summary`; at most `SECONDS` old."""
        store = self._store()
        assert store is not None, "whoever asks holds the store"
        found = store.analysis(name, analysis)
        key = (name, found.name, found.created_at)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            made, summary = self._kept.get(key, (None, None))
            if made is None or summary is None or self._clock() - made > SECONDS:
                summary = store.summary(name, analysis=found.name)
                self._keep(key, summary)
            return summary

    def _keep(self, key: tuple[str, str, str], summary: Summary) -> None:
        with self._lock:
            now = self._clock()
            for old in [each for each, (made, _) in self._kept.items() if now - made > SECONDS]:
                del self._kept[old]
                if old != key:
                    self._locks.pop(old, None)
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[key] = (now, summary)
