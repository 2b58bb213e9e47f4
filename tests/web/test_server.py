"""Connections that stall are given up, and do not cost others theirs."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saescope.web.server import Patience, _protocol, _Server, bound

pytestmark = pytest.mark.slow  # real processes and sockets, and clients that let them wait


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with many bytes, or few; ``/read`` reads its body first."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    size = 20_000_000 if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture
def patient() -> Iterator[Callable[..., Any]]:
    """Serves with little patience; gives the port."""
    import uvicorn

    running = []

    def serve(**patience: Any) -> int:
        place = bound("127.0.0.1", 0)
        chosen = Patience(**{"head": 0.5, "taking": 0.5, **patience})
        config = uvicorn.Config(
            app, loop="asyncio", http=_protocol(chosen), ws="none", lifespan="on", log_config=None,
            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=32 * 1024,
        )  # fmt: skip
        server = _Server(config, lambda: None, lambda: None, chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return place.getsockname()[1]

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1 << 16) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def asked(connection: socket.socket, path: str = "/") -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\nxx"):
        piece = connection.recv(1 << 16)
        assert piece, answer
        answer += piece
    return answer


def all_of(connection: socket.socket) -> bytes:
    """Until the server closes it, in whichever way."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_half_a_head_is_given_up(patient: Any, sent: bytes):
    with connected(patient()) as connection:
        connection.sendall(sent)
        assert is_closed_within(connection, 15)


def test_bytes_that_trickle_in_buy_no_time(patient: Any):
    with connected(patient(head=1.0)) as connection:
        for _ in range(150):
            try:
                connection.sendall(b"G")
            except ConnectionError:
                return
            time.sleep(0.1)
    pytest.fail("it went on for 15 s")


def test_a_second_head_has_its_time_as_well(patient: Any):
    with connected(patient(head=0.7)) as connection:
        for piece in (b"GET", b" / HTTP/1.1\r\n", b"Host: x\r\n\r\n"):
            connection.sendall(piece)
            time.sleep(0.05)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        time.sleep(0.2)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.recv(1 << 16)
        connection.settimeout(20)
        for _ in range(3):
            assert asked(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # between requests: no head is awaited
        connection.sendall(b"GET /")
        assert is_closed_within(connection, 3)


def test_a_client_that_takes_nothing_is_given_up(patient: Any):
    port = patient()
    connection = socket.socket()
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2.5)
        connection.settimeout(15)
        assert len(all_of(connection)) < 20_000_000


def test_a_client_that_takes_slowly_gets_all(patient: Any):
    with connected(patient(taking=0.4)) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        taken = 0
        while taken < 20_000_000:
            piece = connection.recv(1 << 20)
            assert piece
            taken += len(piece)
            time.sleep(0.05)


def test_where_there_are_too_many_the_one_that_has_waited_longest_goes(patient: Any):
    port = patient(connections=3, head=60.0)
    first = connected(port)
    time.sleep(0.1)
    others = [connected(port) for _ in range(2)]
    time.sleep(0.1)
    with first, others[0], others[1], connected(port) as newest:
        assert asked(newest).startswith(b"HTTP/1.1 200")
        assert is_closed_within(first, 5)
        assert asked(others[0]).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_told_so(patient: Any):
    port = patient()
    with connected(port) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"no HTTP request" in answer
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000)
        assert all_of(connection).startswith(b"HTTP/1.1 400")


_PROGRAM = """
import sys, time
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
from saescope.web.server import Patience, address_of, bound, serve

def endless():
    yield "begun"
    time.sleep(float(sys.argv[1]))  # in a thread: nobody can interrupt it
    while True:
        yield "."
        time.sleep(0.05)

place = bound("127.0.0.1", 0)
app = Starlette(routes=[Route("/", lambda request: StreamingResponse(endless()))])
serve(app, place, ready=lambda: print(address_of(place), flush=True), stopping=lambda: print("stopping", flush=True),
      patience=Patience(stopping=1.0, computing=1.0))
print("over", flush=True)
"""


@pytest.mark.parametrize("stuck", [0, 1000])
def test_an_open_stream_does_not_keep_it_from_stopping(stuck: int):
    arguments = [sys.executable, "-c", _PROGRAM, str(stuck)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2].strip("/\n"))
            with connected(port) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                said = b""
                while b"begun" not in said:
                    said += connection.recv(1 << 16)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=60)
                assert time.monotonic() - began < 20
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert err == ""
    assert out.split() == ["stopping", "over"]
