"""Questions to the networks, asked from handlers: in threads of their own, so that whoever waits for the model never takes a
thread from those who only ask the store; and what comes bit by bit, as events that a page reads while they come.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.web.live import BusyError, Live, NoModelError
from saescope.web.site import Site

T = TypeVar("T")

_LOG = logging.getLogger("saescope.web")
_THREADS = 64  # more than any queue lets wait, so that it is the queue that refuses
_STATUS: dict[type[Exception], int] = {
    NotInStoreError: 404,
    NoModelError: 404,
    StoreFailedError: 503,
    BusyError: 503,
    PermissionError: 403,
    ValueError: 422,
}  # the first that fits, as in failures.py


class Threads:
    """Where blocking questions to a `Live` are asked from."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def ask(self, question: Callable[..., T], *given: Any, **more: Any) -> T:
        """The answer of a call that may block for long."""
        return await anyio.to_thread.run_sync(partial(question, *given, **more), limiter=self._limiter)

    async def events(self, items: Iterator[Mapping[str, Any]]) -> Events:
        """An answer of events. What goes wrong before the first one is raised, and so gets a status of its own."""
        try:
            first = await self.ask(next, items, None)
        except BaseException:
            _close(items)
            raise
        return Events(self, items, first)


class Events(StreamingResponse):
    """Items as ``data: {json}``, one by one. When the reader leaves they are closed, started or not."""

    def __init__(self, threads: Threads, items: Iterator[Mapping[str, Any]], first: Mapping[str, Any] | None) -> None:
        self._threads, self._items = threads, items
        super().__init__(
            self._written(first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _close(self._items)

    async def _written(self, item: Mapping[str, Any] | None) -> AsyncIterator[str]:
        while item is not None:
            yield f"data: {json.dumps(item, allow_nan=False, separators=(',', ':'))}\n\n"
            try:
                item = await self._threads.ask(next, self._items, None)
            except Exception as error:  # the status is sent already; the page hears of it as one more event
                item = None
                yield f"data: {json.dumps(_in_words(error))}\n\n"


def _close(items: Iterator[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()


def _in_words(error: Exception) -> dict[str, Any]:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        _LOG.error("a stream failed", exc_info=error)
    words = str(error) if status != 500 else "the server made a mistake; its log says more"
    return {"error": {"status": status, "message": words}}


def live_of(site: Site, name: str) -> Live:
    """The networks.

    Raises:
        NoModelError: there are none.
    """
    if site.live is None:
        raise NoModelError(site.absent(name) or "")
    return site.live


def state_of(site: Site, name: str, *, steering: bool = False) -> dict[str, Any]:
    """Whether the model of a dictionary can be asked: ``absent`` (a sentence, or None), and the words of `Live.state`."""
    site.store.dictionary(name)
    if site.live is None:
        return {"absent": site.absent(name), "state": "absent", "words": "", "num_waiting": 0}
    absent = site.live.absent(name, steering=steering)
    if absent is not None:
        return {"absent": absent, "state": "absent", "words": "", "num_waiting": 0}
    return {"absent": None, **site.live.state(name)}
