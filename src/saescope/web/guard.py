"""What stands between the network and the pages: who may ask, how much, and what a browser may do with the answer.

Written as plain ASGI, so that it also guards the body while it arrives and touches no streamed answer.

- Without a token only this machine is served: a request that names another host is refused, since a web page elsewhere
  could have let its own name point here.
- With a token nothing is served without it. It comes once in the address (``?token=``), as a header (``Authorization:
  Bearer``), or as the cookie that the first request sets; it is compared in constant time.
- What changes or computes something must come from a page of this server: a browser says where a request comes from.
- A body has a largest size and a time in which it must be there.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saescope.web.failures import refusal

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})
_COOKIE = "saescope_token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
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
    """From the first to the last byte of a body."""
    prompt_characters: int = 20_000
    new_tokens: int = 256
    """That steering may write."""


class Guard:
    """The checks, around an ASGI application."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: frozenset[str] | None, limits: Limits) -> None:
        """Args: hosts: names by which the server may be called; None for any."""
        self._app, self._token, self._hosts, self._limits = app, token, hosts, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        send = _with_headers(send, embeddable="embed=1" in scope.get("query_string", b"").decode("latin-1").split("&"))
        refused = self._refused(scope, headers)
        if refused is not None:
            await refusal(scope, *refused)(scope, receive, send)
            return
        if self._token is not None:
            given, rest = _token_in_query(scope)
            if given is not None and scope["method"] in _SAFE:  # keep it out of the address bar, history and links
                target = (scope["path"] or "/") if scope["path"].startswith("/") else "/"
                address = "/" + target.lstrip("/\\")  # never another host
                await _redirect(send, address + (f"?{rest}" if rest else ""), self._cookie(scope))
                return
        try:
            await self._app(scope, self._measured(receive, headers), send)
        except _TooMuchError as error:
            await refusal(scope, error.status, str(error))(scope, receive, send)

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _host_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            return 421, (
                f"this server answers to {', '.join(sorted(self._hosts))}, not to {host!r}; "
                "start it with --host and --token to serve others"
            )
        if self._token is not None and not self._knows_token(scope, headers):
            return 401, "this server wants its token: open the address with ?token=... that it printed when it started"
        if scope["method"] not in _SAFE and not _same_origin(headers):
            return (
                403,
                "only pages of this server may change or compute something; this request comes from another site",
            )
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return 400, "Content-Length is no number"
        if int(length) > self._limits.body_bytes:
            return 413, self._too_large
        return None

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self._limits.body_bytes:,} bytes, the most that is read"

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        assert self._token is not None
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        given = [_token_in_query(scope)[0], credential if scheme.lower() == "bearer" else None]
        wanted = self._token.encode()
        if any(hmac.compare_digest(each.encode(errors="replace"), wanted) for each in given if each is not None):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(
            morsel.value.encode(errors="replace"), _digest(self._token).encode()
        )

    def _cookie(self, scope: Scope) -> str:
        assert self._token is not None
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{_COOKIE}={_digest(self._token)}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _measured(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """The body as it arrives, refused when it becomes too large or takes too long."""
        read, ended, deadline = 0, False, None

        async def measured() -> Message:
            nonlocal read, ended, deadline
            if ended:
                return await receive()  # only to learn that the client has left
            loop = asyncio.get_running_loop()
            deadline = deadline or loop.time() + self._limits.body_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise _TooMuchError(
                    408, f"the request was not complete after {self._limits.body_seconds:g} s"
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                ended = not message.get("more_body", False)
                if read > self._limits.body_bytes:
                    raise _TooMuchError(413, self._too_large)
            return message

        return measured


class _TooMuchError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def _digest(token: str) -> str:
    """What the cookie holds: it proves the token and does not tell it."""
    return hashlib.sha256(b"saescope cookie " + token.encode()).hexdigest()


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _token_in_query(scope: Scope) -> tuple[str | None, str]:
    """The token in the address, and the query without it."""
    pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    token = next((value for key, value in pairs if key == "token"), None)
    return token, urlencode([pair for pair in pairs if pair[0] != "token"])


def _same_origin(headers: dict[str, str]) -> bool:
    """Whether a browser says that a page of this server asks; a program that says nothing is no browser."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.netloc.lower() == headers.get("host", "").lower() and bool(parts.netloc)


def _with_headers(send: Send, *, embeddable: bool) -> Send:
    policy = POLICY if embeddable else f"{POLICY}; frame-ancestors 'self'"
    added = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


async def _redirect(send: Send, target: str, cookie: str) -> None:
    from urllib.parse import quote

    headers = [
        (b"location", quote(target, safe="/?&=%+:,;@!$'()*~").encode()),
        (b"set-cookie", cookie.encode()),
        (b"content-length", b"0"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
