"""The server process around the application: it says where it listens once it does, and stops within seconds when asked to.

A connection that sends half a request, or takes no more of its answer, is given some seconds and then closed; where there
are too many, the one that has waited longest goes first. What reads or writes slowly is so kept from using up the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long is waited, in seconds, and for how many."""

    head: float = 10.0
    """For the head of a request, from the connection or from its first byte."""
    between: float = 15.0
    """For the next request of a connection."""
    taking: float = 30.0
    """For a client that takes nothing more of its answer."""
    stopping: float = 2.0
    """For answers under way when the server stops."""
    computing: float = 5.0
    """After that, for what can not be interrupted."""
    connections: int = 512


def serve(
    app: Any,
    place: socket.socket,
    *,
    ready: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] = lambda: None,
    patience: Patience | None = None,
) -> None:
    """Serve an application until SIGINT or SIGTERM.

    Args:
        place: a socket that is bound, see `bound`.
        ready: called when requests are answered.
        stopping: called in a thread of its own when the server begins to stop: what requests wait for is to end.
    """
    patience = patience or Patience()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_protocol(patience),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(patience.between),
        timeout_graceful_shutdown=int(patience.stopping),
        h11_max_incomplete_event_size=32 * 1024,
    )
    server = _Server(config, ready, stopping, patience)
    log = logging.getLogger("uvicorn.error")
    log.addFilter(server.is_worth_telling)
    try:
        server.run(sockets=[place])
    finally:
        log.removeFilter(server.is_worth_telling)
        place.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket at a place that nobody else has; port 0 takes any that is free.

    Raises:
        ValueError: the place is taken, or is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"there is no host {host!r} to serve at ({_reason(error)}); choose another --host") from None
    family, kind, protocol, _, address = found[0]
    place = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a server that has just stopped leaves its port behind for a while
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
        place.listen(128)  # two servers may bind one port as long as none listens
    except OSError as error:
        place.close()
        raise ValueError(
            f"port {port} of {host} can not be had ({_reason(error)}); choose another --port, or 0 for any that is free"
        ) from None
    return place


def address_of(place: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = place.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # all of this machine's addresses
        host = socket.gethostname() or host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(place: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    host = place.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class _Server(uvicorn.Server):
    """Uvicorn's server, which ends as it was asked to: without an error."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: Callable[[], None], patience: Patience
    ) -> None:
        super().__init__(config)
        self._ready, self._stopping, self._patience = ready, stopping, patience

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        gc.freeze()  # what is loaded stays; to look through all of it again and again holds up answers
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        threading.Thread(target=self._stopping, daemon=True).start()
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # asked twice
            os._exit(130 if sig == signal.SIGINT else 143)
        self.should_exit = True
        # a thread inside a model, or in a database that is away, can not be interrupted; nothing of it is half-written
        last = threading.Timer(self._patience.stopping + self._patience.computing, os._exit, (0,))
        last.daemon = True
        last.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def is_worth_telling(self, record: logging.LogRecord) -> bool:
        """Not what is cut off because the server stops, and not what clients send that is no HTTP."""
        return record.levelno >= logging.ERROR and not self.should_exit


class _Patient(H11Protocol):
    """A connection that is not waited for without end."""

    patience: Patience
    waiting: dict[_Patient, None]  # connections without a request, in the order in which they began to wait
    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.patience.connections:
            next(iter(self.waiting)).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._head is None:  # the first bytes of a further request
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering():
            self.waiting[self] = None  # for as long as uvicorn keeps it

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def send_400_response(self, msg: str) -> None:
        super().send_400_response("This is no HTTP request that can be read, or its head is too long.")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self.waiting[self] = None
        self._head = self.loop.call_later(self.patience.head, self.transport.abort)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _await_taking(self, before: int | None = None) -> None:
        """Until nothing is taken for a while: a slow line is none that stands still."""
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()
        else:
            self._taking = self.loop.call_later(self.patience.taking, self._await_taking, left)


def _protocol(patience: Patience) -> type[H11Protocol]:
    """A class for one server, whose connections know of each other."""
    return type("_PatientHere", (_Patient,), {"patience": patience, "waiting": {}})
