"""The guard as an attacker meets it: names, tokens, origins, bodies; and the headers that bind the browser."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from saescope.store import Store
from saescope.web import failures
from saescope.web.access import Secret, without_token
from saescope.web.app import create_app
from saescope.web.guard import LOOPBACK, Guard, Limits

TOKEN = "s3cret/+ token"
IN_ADDRESS = "token=s3cret%2F%2B+token"


class Sent(BaseModel):
    text: str


def guarded(token: str | None = None, hosts: frozenset[str] | None = LOOPBACK, **limits: Any) -> FastAPI:
    """An application of a few routes behind the guard; `app.state.seen` is what reached it."""
    app = FastAPI()
    app.state.seen = []
    failures.install(app)

    @app.get("/api/things")
    def things(q: str = "") -> dict[str, str]:
        app.state.seen.append(q)
        return {"q": q}

    @app.get("/d/{name:path}/f/{index}")
    @app.get("/d/{name:path}")
    def page(name: str) -> dict[str, str]:
        app.state.seen.append(name)
        return {"name": name}

    @app.post("/api/things")
    def make(sent: Sent) -> int:
        app.state.seen.append(sent.text)
        return len(sent.text)

    @app.post("/api/raw")
    async def raw() -> str:
        return "the body was not read"

    @app.get("/api/broken")
    def broken() -> None:
        raise RuntimeError("secret detail")

    @app.get("/api/breaks-off")
    def breaks_off() -> StreamingResponse:
        def parts() -> Iterator[str]:
            yield "first"
            raise RuntimeError("half-way")

        return StreamingResponse(parts(), media_type="text/event-stream")

    app.add_middleware(Guard, token=token, hosts=hosts, limits=Limits(**limits))
    return app


def asked(
    app: Any,
    path: str = "/api/things",
    *,
    method: str = "GET",
    query: bytes = b"",
    headers: list[tuple[str, str]] | None = None,
    body: list[bytes] | None = None,
    raw_path: bytes | None = None,
    pause: float = 0.0,
    kind: str = "http",
) -> tuple[int, dict[str, str], bytes, dict[str, Any]]:
    """One request as a server would hand it over, with nothing put right by a client: status, headers, content, scope."""
    given = [("host", "127.0.0.1:24576")] if headers is None or all(n != "host" for n, _ in headers) else []
    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": raw_path or path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in [*given, *(headers or [])]],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 24576),
        "state": {},
    }
    parts = list(body or [b""])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if pause and len(parts) < len(body or []):
            await asyncio.sleep(pause)
        if not parts:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if kind == "websocket":
        return 0, {}, str(sent[0]["type"]).encode(), scope
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    received = {name.decode().lower(): value.decode("latin-1") for name, value in starts[0]["headers"]}
    return starts[0]["status"], received, b"".join(message.get("body", b"") for message in sent[1:]), scope


# Names


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:24576", "[::1]:24576", "[::1]"])
def test_this_machine_is_served(host: str):
    assert asked(guarded(), headers=[("host", host)])[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example#localhost", "localhost@evil.example", "evil@localhost",
     "localhost.", "0.0.0.0", "127.0.0.2", "", "[", "localhost, evil.example", "::1"],
)  # fmt: skip
def test_other_names_are_not_answered(host: str):
    app = guarded()
    status, headers, content, _ = asked(app, headers=[("host", host)])
    assert status == 421
    assert b"this server answers to" in content
    assert "content-security-policy" in headers
    assert app.state.seen == []


def test_two_names_are_not_answered():
    assert asked(guarded(), headers=[("host", "localhost"), ("host", "evil.example")])[0] == 421
    assert asked(guarded(), headers=[("host", "evil.example"), ("host", "localhost")])[0] == 421


def test_no_websocket_is_opened():
    assert asked(guarded(), kind="websocket")[2] == b"websocket.close"


# The token


def test_nothing_is_served_without_the_token_and_all_with_it():
    app = guarded(TOKEN, None)
    for attempt in [
        {},
        {"query": b"token=wrong"},
        {"query": b"token="},
        {"query": b"Token=" + IN_ADDRESS.encode()[6:]},
        {"headers": [("authorization", "Bearer wrong")]},
        {"headers": [("authorization", f"Basic {TOKEN}")]},
        {"headers": [("authorization", "Bearer")]},
        {"headers": [("cookie", f"saescope_token={TOKEN}")]},
        {"headers": [("cookie", f"{Secret(TOKEN).cookie_name}={TOKEN}")]},
        {"headers": [("cookie", f"{Secret(TOKEN).cookie_name}=")]},
    ]:
        status, headers, content, _ = asked(app, **attempt)
        assert status == 401, attempt
        assert headers["www-authenticate"].startswith("Bearer")
        assert b"wants its token" in content
        assert "set-cookie" not in headers
    assert app.state.seen == []
    assert asked(app, headers=[("authorization", f"Bearer {TOKEN}")])[0] == 200
    assert asked(app, headers=[("authorization", f"bearer  {TOKEN}")])[0] == 200
    assert asked(app, query=IN_ADDRESS.encode())[0] == 200
    made = Secret(TOKEN).cookie(secure=False).split(";")[0]
    assert asked(app, headers=[("cookie", made)])[0] == 200
    # cookies of other programs on this host, among them some that no parser likes
    assert asked(app, headers=[("cookie", f'a[b]="x; _xsrf=2|1; {made}; =; z')])[0] == 200
    assert asked(app, headers=[("cookie", "other=1"), ("cookie", made)])[0] == 200
    other = Secret("another").cookie(secure=False).split(";")[0]
    assert asked(app, headers=[("cookie", f"{made}; {other}")])[0] == 200  # two servers on one host
    assert asked(app, headers=[("cookie", other)])[0] == 401


def test_the_token_leaves_the_address_at_once():
    app = guarded(TOKEN, None)
    query = f"a=1&{IN_ADDRESS}&b=%F0%28&token=wrong&c".encode()
    status, headers, content, scope = asked(
        app, "/d/100%/x?y", raw_path=b"/d/100%25%2Fx%3Fy", query=query, headers=[("host", "example.org")]
    )
    assert status == 303
    assert headers["location"] == "/d/100%25%2Fx%3Fy?a=1&b=%F0%28&c"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert content == b""
    assert b"token" not in scope["query_string"]
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert app.state.seen == []
    status, _, content, _ = asked(app, "/d/x", query=b"a=1", headers=[("cookie", cookie.split(";")[0])])
    assert (status, content) == (200, b'{"name":"x"}')


@pytest.mark.parametrize(
    "raw",
    [b"//evil.example/x", b"/\\evil.example", b"\\\\evil.example", b"/%0d%0aset-cookie:x", b"http://evil.example/"],
)
def test_the_way_back_stays_on_this_host(raw: bytes):
    _, headers, _, _ = asked(guarded(TOKEN, None), raw.decode(), raw_path=raw, query=IN_ADDRESS.encode())
    assert headers["location"].startswith("/")
    assert not headers["location"].startswith(("//", "/\\"))
    assert "\r" not in headers["location"]


def test_programs_get_their_answer_without_a_detour_and_the_token_does_not_reach_it():
    app = guarded(TOKEN, None)
    status, headers, content, scope = asked(app, query=f"{IN_ADDRESS}&q=token".encode())
    assert (status, content) == (200, b'{"q":"token"}')
    assert scope["query_string"] == b"q=token"
    assert "set-cookie" not in headers
    status, _, content, scope = asked(
        app,
        method="POST",
        query=IN_ADDRESS.encode(),
        body=[b'{"text":"abc"}'],
        headers=[("content-type", "application/json")],
    )
    assert (status, content) == (200, b"3")
    assert scope["query_string"] == b""


def test_a_wrong_token_is_kept_out_of_the_log_too():
    assert asked(guarded(TOKEN, None), query=b"token=almost")[3]["query_string"] == b""


def test_the_files_for_the_browser_need_no_token_so_that_the_page_that_asks_for_it_has_its_style(
    store: Store, client_of: Callable[..., Any]
):
    from saescope.web.site import Links

    client = client_of(create_app(store, token=TOKEN))
    asking = client.get("/")
    assert asking.status_code == 401
    assert "<h1>A token is needed</h1>" in asking.text
    assert "tiny" not in asking.text
    assert client.get(Links().asset("look.css")).status_code == 200
    assert client.get("/static/../api/openapi.json").status_code == 401
    assert client.get("/api/openapi.json").status_code == 401
    assert client.post("/static/x/look.css").status_code == 401
    first = client.get("/", params={"token": TOKEN}, headers={"host": "example.org"}, follow_redirects=False)
    assert first.status_code == 303
    assert first.headers["location"] == "/"
    client.cookies.clear()
    assert client.get("/api/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_an_empty_token_is_refused():
    for token in ("", "  "):
        with pytest.raises(ValueError, match="an empty token keeps nobody out"):
            Secret(token)


def test_the_query_is_otherwise_left_as_it_was():
    assert without_token(b"") == ([], b"")
    assert without_token(b"a=%zz&&%74oken=1&b&token&token=x%20y+z&c=%C3") == (["1", "", "x y z"], b"a=%zz&&b&c=%C3")


# Where a request comes from

POST = {"method": "POST", "body": [b'{"text":"abc"}']}
JSON = ("content-type", "application/json")


@pytest.mark.parametrize(
    "said",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:24576"},
        {"sec-fetch-site": "none", "origin": "http://evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://127.0.0.1"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": "http://evil.example/127.0.0.1:24576"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_other_sites_change_and_compute_nothing(said: dict[str, str], method: str):
    app = guarded()
    status, _, content, _ = asked(app, method=method, body=POST["body"], headers=[JSON, *said.items()])
    assert status == 403
    assert b"another site" in content
    assert app.state.seen == []


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"origin": "http://127.0.0.1:24576"},
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:24576"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"},
        {"sec-fetch-site": "none"},
    ],
)
def test_pages_of_this_server_and_programs_do(said: dict[str, str]):
    assert asked(guarded(), headers=[JSON, *said.items()], **POST)[0] == 200


def test_other_sites_may_link_to_pages_and_load_nothing():
    for site in ("cross-site", "same-site"):
        assert asked(guarded(), headers=[("sec-fetch-site", site), ("sec-fetch-mode", "navigate")])[0] == 200
        for mode in ("no-cors", "cors", "same-origin", "websocket"):
            assert asked(guarded(), headers=[("sec-fetch-site", site), ("sec-fetch-mode", mode)])[0] == 403
    assert asked(guarded(), headers=[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors")])[0] == 200


# Bodies


def test_a_body_may_be_as_large_as_the_limit_and_no_larger():
    fits = b'{"text":"' + b"a" * (100 - 11) + b'"}'
    assert len(fits) == 100
    for body, status in [(fits, 200), (fits + b" ", 413)]:
        told = [JSON, ("content-length", str(len(body)))]
        assert asked(guarded(body_bytes=100), method="POST", body=[body], headers=told)[0] == status
        # in pieces of which nobody said how many there are
        for size in (1, 7, 99, 100):
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            app = guarded(body_bytes=100)
            got, _, content, _ = asked(app, method="POST", body=pieces, headers=[JSON])
            assert got == status
            assert (b"larger than 100 bytes" in content) == (status == 413)
            assert len(app.state.seen) == (status == 200)


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "5, 5", "", "0x10", "1" * 5000])
def test_a_length_that_is_no_number_is_refused(length: str):
    status = asked(guarded(), method="POST", body=[b"{}"], headers=[JSON, ("content-length", length)])[0]
    assert status == (413 if len(length) > 100 else 400)


def test_a_body_that_does_not_come_is_not_waited_for():
    app = guarded(body_seconds=0.2)
    slow = [b"{", b'"text"', b":", b'"', b"a", b'"', b"}", b" ", b" "]
    status, headers, content, _ = asked(app, method="POST", body=slow, headers=[JSON], pause=0.05)
    assert status == 408
    assert b"not complete after 0.2 s" in content
    assert headers["connection"] == "close"
    assert app.state.seen == []
    assert asked(guarded(body_seconds=5), method="POST", body=slow, headers=[JSON], pause=0.01)[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "statuses"),
    [
        (b"{", "application/json", {422}),
        (b"", "application/json", {422}),
        (b"null", "application/json", {422}),
        (b'{"text": 5}', "application/json", {422}),
        (b'{"\\ud800": 1}', "application/json", {422}),
        (b'{"text": "\xff"}', "application/json", {400}),
        (b"\x00\xff\xfe", "application/json", {400}),
        (b'{"text": "a"}', None, {422}),
        (b'{"text": "a"}', "text/plain", {422}),
        (b"text=a", "application/x-www-form-urlencoded", {422}),
        (b'{"text": "a"}', ";;=\x7f", {422}),
        (b"[" * 100_000, "application/json", {400}),
        (b'{"text": ' + b"9" * 5000 + b"}", "application/json", {400, 422}),
        (b'{"text": NaN}', "application/json", {422}),
    ],
)
def test_a_body_that_can_not_be_understood_is_refused_in_words(body: bytes, kind: str | None, statuses: set[int]):
    headers = [] if kind is None else [("content-type", kind)]
    status, _, content, _ = asked(guarded(), method="POST", body=[body], headers=headers)
    assert status in statuses
    said = json.loads(content)["error"]
    assert said["status"] == status
    assert said["message"]


# Answers

BINDING = {
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "cache-control",
}


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"path": "/api/nothing"},
        {"path": "/nothing"},
        {"path": "/api/broken"},
        {"method": "DELETE"},
        {"method": "OPTIONS"},
        {"method": "HEAD"},
        {"method": "POST"},
        {"headers": [("host", "evil.example")]},
        {"method": "POST", "headers": [("origin", "http://evil.example")]},
        {"method": "POST", "headers": [("content-length", "999999999")]},
    ],
    ids=str,
)
def test_every_answer_binds_the_browser(request_: dict[str, Any]):
    _, headers, _, _ = asked(guarded(), **request_)
    assert set(headers) >= BINDING
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert policy.endswith("frame-ancestors 'self'")


def test_a_mistake_is_logged_and_told_to_nobody(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, "saescope.web"):
        status, _, content, _ = asked(guarded(), "/api/broken")
    assert status == 500
    assert b"secret detail" not in content
    assert "secret detail" in caplog.text


def test_an_answer_that_breaks_off_is_not_finished_as_if_it_were_whole():
    with pytest.raises(RuntimeError, match="half-way"):
        asked(guarded(), "/api/breaks-off")


def test_only_the_feature_page_can_stand_in_a_frame_and_only_when_it_was_made_for_one():
    def is_bound(path: str, query: bytes) -> bool:
        return "frame-ancestors" in asked(guarded(), path, query=query)[1]["content-security-policy"]

    assert not is_bound("/d/a/b/f/3", b"embed=1")
    assert not is_bound("/d/a\nb/f/3", b"x=2&embed=1")
    assert is_bound("/d/a/f/3", b"")
    assert is_bound("/d/a/f/3", b"embed=0")
    assert is_bound("/d/a/f/3", b"embed=1&embed=0")
    assert is_bound("/d/a/f/3", b"embed=0&embed=1")
    assert is_bound("/d/a/f/3", b"%65mbed=0&embed=1")
    assert is_bound("/d/a", b"embed=1")
    assert is_bound("/d/a/steer", b"embed=1")
    assert is_bound("/api/d/a/f/3", b"embed=1")


def test_a_head_is_the_answer_without_its_content():
    whole, head = asked(guarded()), asked(guarded(), method="HEAD")
    assert head[0] == 200
    assert head[1] == whole[1]
    assert (head[2], head[3]["method"]) == (b"", "HEAD")
    assert asked(guarded(), "/api/nothing", method="HEAD")[0] == 404
