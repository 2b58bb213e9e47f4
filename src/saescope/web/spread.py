"""Pages drawn by other processes, since one process of Python computes on one core at a time and a page is mostly computing.

`Spread` stands around the application of the server's process. The pages that are asked for most (features and lists, and
their JSON twins) go to one of a few `Readers`, which have the store and the same routes, and no model. Everything else, and
whatever a reader can not do, is answered here as if there were none.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.web.site import Site

_LOG = logging.getLogger("saescope.web")
_FEATURE = re.compile(r"(?:/api)?/d/(?P<name>.+)/f/\d+")
_LIST = re.compile(r"/d/(?P<name>[^/]+)|/api/d/(?P<other>.+)/(?:features|rows)")

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class Readers:
    """Processes that read the store and draw pages."""

    def __init__(self, address: str | None, number: int) -> None:
        """Starts them, without waiting until they have come.

        Args:
            address: of the store, as `Store.open` takes it.
        """
        # never a fork: other threads may hold locks that the child would wait for
        self._pool: ProcessPoolExecutor | None = ProcessPoolExecutor(
            number, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(address,)
        )
        self._coming: list[Future[None]] = [self._pool.submit(_wait_for_the_others) for _ in range(number)]

    @property
    def are_there(self) -> bool:
        """Whether they can be asked."""
        return self._pool is not None and all(each.done() and not each.exception() for each in self._coming)

    async def answer(self, path: str, query: bytes, headers: list[tuple[bytes, bytes]], absent: str | None) -> Answer:
        """What the application answers.

        Raises:
            BrokenProcessPool: one of them has died; none is asked again.
        """
        if self._pool is None:
            raise BrokenProcessPool("closed")
        try:
            return await asyncio.wrap_future(self._pool.submit(_answer, path, query, headers, absent))
        except BrokenProcessPool:
            self.close()
            raise

    def close(self) -> None:
        """Ends them, without waiting."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class Spread:
    """An application of which readers answer the most frequent questions."""

    def __init__(self, app: ASGIApp, *, readers: Readers, site: Site) -> None:
        self._app, self._readers, self._site = app, readers, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = self._name(scope)
        answer = None if name is None else await self._answer(name, scope)
        if answer is None:
            await self._app(scope, receive, send)
            return
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, name: str, scope: Scope) -> Answer | None:
        """A reader's answer; None where it has none, so that the application here says what is wrong."""
        try:
            if self._site.live is None:
                absent = self._site.absent(name)
            else:  # may ask the store
                absent = await anyio.to_thread.run_sync(self._site.absent, name)
            kept = [pair for pair in scope["headers"] if pair[0] in (b"host", b"accept-encoding")]
            return await self._readers.answer(scope["path"], scope.get("query_string", b""), kept, absent)
        except (NotInStoreError, StoreFailedError):
            return None
        except BrokenProcessPool:
            _LOG.warning("a process that draws pages has died; the server goes on without")
            return None
        except Exception as error:
            _LOG.warning("a page could not be drawn beside the server", exc_info=error)
            return None

    def _name(self, scope: Scope) -> str | None:
        """The dictionary whose page is asked for, if it is one that readers draw."""
        if scope["type"] != "http" or scope["method"] != "GET" or not self._readers.are_there:
            return None
        found = _FEATURE.fullmatch(scope["path"])
        if found is None and self._site.embed is None:  # readers can not search by meaning
            found = _LIST.fullmatch(scope["path"])
        return None if found is None else next(filter(None, found.groups()), None)


# Inside a reader


class _NoNetworks:
    """Says what the server's process says of models; it is told with every question."""

    words: str | None = None

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        return self.words


_networks = _NoNetworks()
_app: Any = None
_loop: asyncio.AbstractEventLoop | None = None


def _begin(address: str | None) -> None:
    """Open the store, once per process."""
    global _app, _loop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from saescope.store import Store
    from saescope.web.app import application

    _app = application(Site(store=Store.open(address, must_exist=True), live=_networks))  # type: ignore[arg-type]
    _loop = asyncio.new_event_loop()
    gc.freeze()  # what is loaded stays; to look through all of it again and again takes longer than a page


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # also when it was killed
        os._exit(0)


def _wait_for_the_others() -> None:
    import time

    time.sleep(0.5)  # so that each process takes one of these


def _answer(path: str, query: bytes, headers: list[tuple[bytes, bytes]], absent: str | None) -> Answer:
    assert _loop is not None
    _networks.words = absent
    return _loop.run_until_complete(_asked(path, query, headers))


async def _asked(path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> Answer:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": query,
        "headers": headers,
    }
    await _app(scope, receive, send)
    start = messages[0]
    return start["status"], list(start["headers"]), b"".join(message.get("body", b"") for message in messages[1:])
