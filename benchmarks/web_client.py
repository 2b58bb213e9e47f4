"""Asks a server at a steady rate, whatever it answers: ``python web_client.py < PLAN > ANSWERS``, both one line of JSON.

An open loop: request i is due at i / rate, and its time runs from there to the last byte of its answer, so that a request
which has to wait for a connection, or for others before it, is slow. The connections stay open. Nothing is unpacked or kept
but the answers that the plan names. Only the standard library: what this process costs is taken from the server.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import sys
from typing import Any

_SECONDS = 30.0  # for an answer, before it counts as an error


class Connection(asyncio.Protocol):
    """One request after the other, HTTP/1.1."""

    def __init__(self, port: int) -> None:
        self._port, self._transport = port, None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = bytearray()
        self._start, self._end = 0, -1  # of the body

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body, as it came."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        self._answer, self._received, self._end = loop.create_future(), bytearray(), -1
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            "Accept-Encoding: gzip",
            "Cache-Control: no-store",
        )
        self._transport.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        return await asyncio.wait_for(self._answer, _SECONDS)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._end < 0:
            at = self._received.find(b"\r\n\r\n")
            if at < 0:
                return
            self._start = at + 4
            head = bytes(self._received[:at]).lower()
            length = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
            if not length.isdigit():
                self._finish(ValueError("an answer without a length"))
                return
            self._end = self._start + int(length)
        if len(self._received) >= self._end:
            self._finish((int(self._received[9:12]), bytes(self._received[self._start : self._end])))

    def _finish(self, answer: tuple[int, bytes] | Exception) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(answer, Exception):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)


async def drive(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers, in the order of the requests."""
    paths, kept = plan["paths"], set(plan["kept"])
    answers: list[dict[str, Any]] = [{} for _ in paths]
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def connection() -> None:
        asking = Connection(plan["port"])
        while (item := await due.get()) is not None:
            number, scheduled = item
            sent = loop.time()
            try:
                status, body = await asking.ask(paths[number])
            except (OSError, ValueError, TimeoutError) as error:
                asking.close()
                asking = Connection(plan["port"])
                answers[number] = {"error": f"{type(error).__name__}: {error}"}
            else:
                answers[number] = {"status": status, "bytes": len(body)}
                if number in kept or status != 200:
                    answers[number]["body"] = base64.b64encode(body).decode()
            ended = loop.time()
            answers[number] |= {"ms": (ended - scheduled) * 1e3, "ms_sent": (ended - sent) * 1e3}
        asking.close()

    asking = [asyncio.create_task(connection()) for _ in range(plan["connections"])]
    begin = loop.time() + 0.2
    for number in range(len(paths)):
        scheduled = begin + number / plan["rate"]
        if (wait := scheduled - loop.time()) > 0:
            await asyncio.sleep(wait)
        due.put_nowait((number, scheduled))
    for _ in asking:
        due.put_nowait(None)
    await asyncio.gather(*asking)
    return answers


if __name__ == "__main__":
    given = json.load(sys.stdin)
    gc.disable()
    json.dump(asyncio.run(drive(given)), sys.stdout)
