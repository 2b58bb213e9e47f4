"""What stands between the network and the pages: who may ask, how much, and what a browser may do with the answer.

Written as plain ASGI, so that it also guards the body while it arrives and touches no streamed answer.

- Without a token only this machine is served: a request that names another host is refused, since a web page elsewhere
  could have let its own name point here.
- With a token nothing but the files for the browser is served without it (see `saescope.web.access`).
- What changes or computes something must come from a page of this server, and so must what a page loads: a browser says
  where a request comes from. Pages elsewhere may link to here.
- A body has a largest size and a time in which it must be there.
- Every answer, errors included, carries the headers that bind the browser.
"""

from __future__ import annotations

import asyncio
import re
import string
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saescope.web.access import Secret, without_token
from saescope.web.failures import is_api, mistake, refusal

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FOR_BROWSERS = (
    "/static/",
    "/favicon.ico",
)  # parts of the package and no secret; the page that asks for a token has them
_FRAMED = re.compile(
    r"/d/.+/f/\d+", re.DOTALL
)  # the one page made to stand in others, without anything to press that changes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src-elem 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'"
)
"""Scripts and style sheets are this server's files; `style` attributes are numbers for drawing and run nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask for."""

    body_bytes: int = 256 * 1024
    body_seconds: float = 20.0
    """In which all of a body must be there, from when it is asked for."""
    prompt_characters: int = 20_000
    new_tokens: int = 256
    """That steering may write."""


class Guard:
    """The checks, around an ASGI application."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: frozenset[str] | None, limits: Limits) -> None:
        """Args: hosts: names by which the server may be called; None for any."""
        self._app, self._hosts, self._limits = app, hosts, limits
        self._secret = None if token is None else Secret(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there is nothing of that kind here
            return
        tokens: list[str] = []
        if (
            self._secret is not None
        ):  # taken out of the scope itself, which the server's log of requests is written from
            tokens, scope["query_string"] = without_token(scope.get("query_string", b""))
        headers = _headers(scope)
        answer = _Answer(send, scope)
        refused = self._refused(scope, headers, tokens)
        if refused is not None:
            await refusal(scope, *refused)(scope, receive, answer)
        elif self._secret is not None and tokens and scope["method"] in ("GET", "HEAD") and not is_api(scope["path"]):
            # keep it out of the address bar, the history and links
            await _redirect(answer, _same_address(scope), self._secret.cookie(secure=scope.get("scheme") == "https"))
        else:
            await self._answer(scope, receive, answer)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        body = _Body(receive, self._limits)

        async def send(message: Message) -> None:
            if body.refused is None or answer.has_started:  # else what the application makes of half a body is not sent
                await answer(message)

        as_get = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(as_get, body, send)
        except Exception as error:
            if answer.has_started:
                raise
            if body.refused is None:
                await mistake(scope, error)(scope, receive, answer)
        if body.refused is not None and not answer.has_started:
            await refusal(scope, *body.refused)(scope, receive, answer)

    def _refused(
        self, scope: Scope, headers: dict[str, str], tokens: list[str]
    ) -> tuple[int, str, dict[str, str]] | None:
        host = _host_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return _refusal(
                421,
                f"this server answers to {', '.join(sorted(self._hosts))}, not to {host!r}; "
                "start it with --host and --token to serve others",
            )
        is_open = scope["method"] in _SAFE and scope["path"].startswith(_FOR_BROWSERS)
        if self._secret is not None and not is_open and not self._secret.is_known(headers, tokens):
            return _refusal(
                401,
                "this server wants its token: open the address with ?token=... that it printed when it started",
                {"WWW-Authenticate": 'Bearer realm="saescope"'},
            )
        if not _may_come(scope["method"], headers):
            return _refusal(
                403,
                "only pages of this server may load, change or compute something; this request comes from another site",
            )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return _refusal(400, "Content-Length is no number")
        if len(length) > 18 or int(length) > self._limits.body_bytes:
            return _refusal(*_too_large(self._limits))
        return None


class _Body:
    """The body as it arrives, refused when it becomes too large or takes too long."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._read, self._ended = 0, False
        self._deadline: float | None = None
        self.refused: tuple[int, str, dict[str, str]] | None = None

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()  # only to learn that the client has left
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            words = f"the request was not complete after {self._limits.body_seconds:g} s"
            self.refused = _refusal(408, words, {"Connection": "close"})
            raise _BodyRefusedError from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._read > self._limits.body_bytes:
                self.refused = _refusal(*_too_large(self._limits))
                raise _BodyRefusedError
        return message


class _BodyRefusedError(Exception):
    """Ends the reading of a body; what is answered does not depend on who catches it."""


class _Answer:
    """The way out: adds the headers, and leaves out the content where only the head was asked for."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._is_head = send, scope["method"] == "HEAD"
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        can_be_framed = bool(_FRAMED.fullmatch(scope["path"])) and [v for k, v in query if k == "embed"] == ["1"]
        self._added = [
            (b"content-security-policy", f"{POLICY}{'' if can_be_framed else '; frame-ancestors ' + _SELF}".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = [*message.get("headers", []), *self._added]
            if all(name.lower() != b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"private, no-cache"))  # no proxy keeps what only some may see
            message = {**message, "headers": headers}
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)


_SELF = "'self'"


def _refusal(status: int, words: str, headers: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
    return status, words, headers or {}


def _too_large(limits: Limits) -> tuple[int, str]:
    return 413, f"the request is larger than {limits.body_bytes:,} bytes, the most that is read"


def _headers(scope: Scope) -> dict[str, str]:
    """By name in small letters. One that came twice is both in one text, and so is no known host, origin or number."""
    together: dict[str, str] = {}
    for raw, content in scope["headers"]:
        name, value = raw.decode("latin-1").lower(), content.decode("latin-1")
        between = "; " if name == "cookie" else ", "
        together[name] = f"{together[name]}{between}{value}" if name in together else value
    return together


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower() if "@" not in header else ""
    except ValueError:
        return ""


def _may_come(method: str, headers: dict[str, str]) -> bool:
    """Whether a browser says that a page of this server asks, or a person who follows a link; a program that says nothing
    is no browser."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site == "same-origin":
        return True
    if method in _SAFE:
        return site in (None, "none") or headers.get("sec-fetch-mode") in (None, "navigate")
    if site not in (None, "none"):
        return False
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.netloc.lower() == headers.get("host", "").lower() and bool(parts.netloc)


def _same_address(scope: Scope) -> str:
    """The address that was asked for, on this host whatever it holds."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    path = "/" + raw.partition(b"?")[0].decode("latin-1").lstrip("/\\")
    query = scope["query_string"].decode("latin-1")
    printable = "".join(sign for sign in string.punctuation if sign not in '"<>\\^`{|}')
    return quote(path + (f"?{query}" if query else ""), safe=printable, encoding="latin-1")


async def _redirect(send: Send, target: str, cookie: str) -> None:
    headers = [
        (b"location", target.encode()),
        (b"set-cookie", cookie.encode()),
        (b"content-length", b"0"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
