"""The application under attack, on a real server: slow and greedy clients, a database that goes away, what the log tells."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from html import escape as html_escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel

from saescope.store import Explanation, Note, Store
from saescope.web.app import create_app
from saescope.web.guard import Limits
from saescope.web.site import Links

pytestmark = pytest.mark.slow

NAME = "tiny%20%3Cb%3Etopk%3C%2Fb%3E"


class Sent(BaseModel):
    text: str


@pytest.fixture
def app(store: Store) -> Any:
    """The application, with one more route that takes a body."""
    made = create_app(store, limits=Limits(body_seconds=1.0))

    @made.post("/api/echo")
    def echo(sent: Sent) -> int:
        return len(sent.text)

    return made


def place(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("http://").partition(":")
    return host, int(port)


def ask(address: str, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(*place(address), timeout=30)
    try:
        connection.request(method, path, body, **options)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_large_bodies_are_refused_however_they_are_sent(app: Any, served: Callable[..., str]):
    address = served(app)
    kind = {"Content-Type": "application/json"}
    fits = json.dumps({"text": "a" * (256 * 1024 - 12)}).encode()
    assert len(fits) == 256 * 1024
    for body, status in [(fits, 200), (fits + b" ", 413), (fits * 40, 413)]:
        for form, chunked in ((body, False), (iter([body[:100_000], body[100_000:]]), True)):
            got, content, _ = ask(address, "POST", "/api/echo", form, headers=kind, encode_chunked=chunked)
            assert got == status
            if status == 413:
                said = "the request is larger than 262,144 bytes, the most that is read"
                assert json.loads(content)["error"] == {"status": 413, "message": said}


def test_what_only_claims_to_be_large_is_not_waited_for(app: Any, served: Callable[..., str]):
    with socket.create_connection(place(served(app)), timeout=10) as client:
        client.sendall(b"POST /api/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_comes_too_slowly_is_refused_and_the_line_closed(app: Any, served: Callable[..., str]):
    with socket.create_connection(place(served(app)), timeout=10) as client:
        head = b"POST /api/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        client.sendall(head)
        answer = b""
        while part := client.recv(10_000):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"not complete after 1 s" in answer


def test_clients_that_stall_keep_nobody_from_an_answer(app: Any, served: Callable[..., str]):
    address = served(app)
    with contextlib.ExitStack() as stack:
        for number in range(60):
            client = stack.enter_context(socket.create_connection(place(address), timeout=10))
            if number % 3 == 0:  # never ends its headers
                client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
            elif number % 3 == 1:  # never ends its body
                client.sendall(b"POST /api/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
            else:  # asks for much and never reads
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                client.sendall(b"GET /api/openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50)
        for path in ("/api/openapi.json", "/", f"/d/{NAME}", f"/d/{NAME}/f/3"):
            assert ask(address, "GET", path)[0] == 200


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_events_arrive_one_by_one(app: Any, served: Callable[..., str], encoding: str):
    go_on = threading.Semaphore(0)

    @app.get("/api/events")
    def events() -> StreamingResponse:
        def one_by_one() -> Iterator[str]:
            for number in range(5):
                yield f"data: {number} {'x' * 5000}\n\n"  # larger than what is compressed at all
                assert go_on.acquire(timeout=10)

        return StreamingResponse(one_by_one(), media_type="text/event-stream")

    connection = http.client.HTTPConnection(*place(served(app)), timeout=10)
    connection.request("GET", "/api/events", headers={"Accept-Encoding": encoding})
    answer = connection.getresponse()
    assert answer.headers["content-encoding"] is None
    for number in range(5):  # the next one is not made before this one has been read
        assert answer.readline().startswith(f"data: {number} ".encode())
        assert answer.readline() == b"\n"
        go_on.release()
    assert answer.read() == b""
    connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "../site.py", "%2e%2e/site.py", "..%2fsite.py", "%2e%2e%2fsite.py", "..%5csite.py", "app/../../site.py",
        "app/..%2f..%2fsite.py", "/etc/passwd", "%2fetc%2fpasswd", "....//site.py", "app", "app/", "",
        "look.css%00", "look.css/",
        "..", ".", "app/%2e/main.js", "C:%5cwindows", "file:///etc/passwd", "%c0%ae%c0%ae/site.py",
    ],
)  # fmt: skip
def test_files_elsewhere_are_out_of_reach(app: Any, served: Callable[..., str], path: str):
    address = served(app)
    for start in ("/static/x/", "/static/", "/"):
        status, content, headers = ask(address, "GET", start + path)
        if status == 307:  # from "x" to "x/", which is not there either
            moved = headers["location"].removeprefix(address)
            status, content, _ = ask(address, "GET", moved)
        assert status == 404 or (start == "/" and path in ("", ".")), (start, content)
        assert b"root:" not in content
        assert b"import annotations" not in content


def test_the_log_of_requests_does_not_tell_the_token(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import uvicorn

    log = tmp_path / "log"
    written = {"class": "logging.FileHandler", "filename": str(log), "formatter": "plain"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(message)s"}},
        "handlers": {"file": written},
        "loggers": {name: {"handlers": ["file"], "level": "INFO"} for name in ("uvicorn.error", "uvicorn.access")},
    }
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(8)
        server = uvicorn.Server(uvicorn.Config(create_app(store, token="s3cret"), log_config=config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            for path in (
                "/?a=1&token=s3cret",
                "/static/x/none?token=s3cret&a=2",
                "/?token=s3cretx",
                "/?%74oken=s3cret",
            ):
                ask(address, "GET", path)
            ask(address, "GET", "/static/x/none", headers={"Authorization": "Bearer s3cret"})
        finally:
            server.should_exit = True
            thread.join(10)
            for name in ("uvicorn.error", "uvicorn.access"):
                for handler in list(logging.getLogger(name).handlers):
                    logging.getLogger(name).removeHandler(handler)
                    handler.close()
    lines = log.read_text().splitlines()
    assert [line.split('"')[1] for line in lines if " - " in line] == [
        "GET /?a=1 HTTP/1.1", "GET /static/x/none?a=2 HTTP/1.1", "GET / HTTP/1.1", "GET / HTTP/1.1",
        "GET /static/x/none HTTP/1.1",
    ]  # fmt: skip
    assert "s3cret" not in log.read_text() + caplog.text


@pytest.mark.parametrize("host", ["[", "a b", "[::1", "x" * 5000, "a/../b", "a:99999", "?"])
def test_strange_names_of_the_server_break_nothing(store: Store, client_of: Callable[..., Any], host: str):
    client = client_of(create_app(store, token="t"))
    for path in ("/runs/", "/nothing", "/api/nothing/", "/api/dictionaries/"):
        answer = client.get(path, params={"token": "t"}, headers={"host": host}, follow_redirects=False)
        assert answer.status_code in (200, 303, 307, 404)
        answer = client.get(path, headers={"host": host, "authorization": "Bearer t"}, follow_redirects=False)
        assert answer.status_code in (200, 307, 404)


# Databases


class Postgres:
    """A server of our own on a unix socket, that can be stopped and started again."""

    def __init__(self, initdb: Path, base: Path) -> None:
        self._bin, self.base = initdb.parent, base
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(base, account.pw_uid, account.pw_gid)
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        made = [
            initdb,
            "-D",
            base / "data",
            "-U",
            "test",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=base, **self._user)
        self.address = f"postgresql://test@/postgres?host={base}"

    def start(self) -> None:
        import psycopg

        settings = ["listen_addresses=", "fsync=off", "shared_buffers=16MB"]
        command = [self._bin / "postgres", "-D", self.base / "data", "-k", self.base]
        with open(self.base / "log", "ab") as log:
            self._server = subprocess.Popen(
                [*command, *(part for one in settings for part in ("-c", one))],
                stdout=log, stderr=subprocess.STDOUT, cwd=self.base, start_new_session=True, **self._user,
            )  # fmt: skip
        while True:
            assert self._server.poll() is None, (self.base / "log").read_text()
            try:
                psycopg.connect(f"host={self.base} dbname=postgres user=test").close()
                return
            except psycopg.OperationalError:
                time.sleep(0.02)

    def stop(self) -> None:
        """At once, as a machine that goes down: clients find a closed line."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)


@pytest.fixture
def postgres(missing: Callable[[str, str], None]) -> Iterator[Postgres]:
    initdb = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]), default=None)
    if initdb is None:
        missing("postgres", "PostgreSQL not found: apt-get install postgresql enables this test")
        return
    base = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket path must stay under 108 bytes
    server = Postgres(initdb, base)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(base)


def test_a_database_that_goes_away_is_said_to_be_and_found_again(
    postgres: Postgres, store: Store, tmp_path: Path, client_of: Callable[..., Any]
):
    store.export(tmp_path / "copy.db")
    paths = ["/", "/api/dictionaries", f"/d/{NAME}", f"/api/d/{NAME}", f"/d/{NAME}/f/3", f"/api/d/{NAME}/f/3"]
    paths += [f"/api/d/{NAME}/features"]
    with Store.open(postgres.address) as copy:
        copy.take(tmp_path / "copy.db")
        client = client_of(create_app(copy))
        before = {path: client.get(path) for path in paths}
        assert {answer.status_code for answer in before.values()} == {200}
        for _ in range(2):
            postgres.stop()
            for path in paths:
                answer = client.get(path)
                assert answer.status_code == 503, path
                assert int(answer.headers["retry-after"]) > 0
                assert "Traceback" not in answer.text
                if path.startswith("/api"):
                    assert answer.json()["error"]["status"] == 503
                else:
                    assert "<h1>Not now</h1>" in answer.text
            assert client.get(Links().asset("look.css")).status_code == 200
            postgres.start()
            for path in paths:
                answer = client.get(path)
                assert answer.status_code == 200, path
                assert answer.content == before[path].content, path


def test_texts_that_no_database_keeps_are_refused_in_the_same_way_by_both(
    postgres: Postgres, store: Store, tmp_path: Path, client_of: Callable[..., Any]
):
    store.export(tmp_path / "copy.db")
    with Store.open(postgres.address) as copy:
        copy.take(tmp_path / "copy.db")
        for opened in (store, copy):
            client = client_of(create_app(opened))
            for path in ("/api/d/a%00b", "/d/a%00b/f/3", f"/api/d/{NAME}/f/3?analysis=%00",
                         f"/api/d/{NAME}/features?tag=%00",
                         f"/api/d/{NAME}/f/99999999999999999999", f"/api/d/{NAME}/features?search=%00"):  # fmt: skip
                assert client.get(path).status_code in (200, 404, 422), (opened, path)


@pytest.fixture
def locked(store: Store, tmp_path: Path) -> Iterator[None]:
    """Another connection is in the middle of a write, as a long analysis is."""
    other = sqlite3.connect(tmp_path / "features.db", isolation_level=None)
    other.execute("begin immediate")
    other.execute("create table something (x)")
    yield
    other.execute("rollback")
    other.close()


@pytest.mark.usefixtures("locked")
def test_while_another_process_writes_pages_are_read(app: Any, served: Callable[..., str]):
    address = served(app)
    for path in ("/", f"/d/{NAME}", f"/d/{NAME}/f/3", f"/api/d/{NAME}/f/3"):
        assert ask(address, "GET", path)[0] == 200


@pytest.mark.usefixtures("locked")
def test_those_who_wait_to_write_keep_nobody_from_reading(
    store: Store, served: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    from saescope.store import engines

    monkeypatch.setattr(engines, "_BUSY_SECONDS", 1.5)
    address = served(create_app(store))
    written: list[tuple[int, Any]] = []
    told = {"Content-Type": "application/json"}

    def write() -> None:
        status, _, headers = ask(address, "PUT", f"/api/d/{NAME}/f/5/bookmark", b'{"on": true}', headers=told)
        written.append((status, headers["retry-after"]))

    writers = [threading.Thread(target=write) for _ in range(10)]  # more than there are threads for the store
    for writer in writers:
        writer.start()
    time.sleep(1)
    for path in (f"/d/{NAME}", f"/d/{NAME}/f/3"):
        assert ask(address, "GET", path)[0] == 200
    assert len(written) < 8  # most of them still wait
    for writer in writers:
        writer.join(60)
    assert written == [(503, "2")] * 10


# In a browser

ATTACK = quote("<img src=x onerror=alert(1)><script>alert(1)</script>", safe="")


@pytest.mark.parametrize(
    "path",
    ["/", f"/d/{NAME}", f"/d/{NAME}?search=script", f"/d/{NAME}/f/5", f"/d/{NAME}/f/5?context=whole&breaks=1&embed=1",
     f"/d/{NAME}/f/3", f"/d/{NAME}/map", f"/d/{NAME}/try?text={ATTACK}", f"/d/{NAME}/steer?prompt={ATTACK}&f=5",
     f"/d/{NAME}/training", "/compare", f"/compare?a={NAME}:5&b={NAME}:3", "/runs", f"/d/{ATTACK}", f"/{ATTACK}",
     f"/d/{NAME}/f/5?analysis={ATTACK}", f"/d/{NAME}?sort={ATTACK}", f"/d/{NAME}?tag={ATTACK}&search={ATTACK}",
     f"/compare?a={ATTACK}&b={ATTACK}#{ATTACK}"],
)  # fmt: skip
def test_texts_that_attack_are_texts_on_every_page(
    store: Store, fake_live: Any, served: Callable[..., str], visit: Callable[..., Any], path: str
):
    store.explain(
        "tiny <b>topk</b>", 5, Explanation(text="<script>alert(3)</script>", author="<img src=x onerror=alert(4)>")
    )
    store.tag("tiny <b>topk</b>", 5, "<img src=x onerror=alert(5)>")
    store.add_note("tiny <b>topk</b>", 5, Note(text="</p><script>alert(6)</script>", author="<svg onload=alert(7)>"))
    page = visit(f"{served(create_app(store, live=fake_live))}{path}")
    page.wait_for_load_state("networkidle")
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.mouse.move(300, 300)  # a tooltip, or what the pointer brings up
    assert page.locator("main h1").count() == 1
    assert (
        page.locator("img[src=x], main script:not([type='application/json']), svg[onload], b:text-is('topk')").count()
        == 0
    )
    assert (
        page.evaluate(
            "[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes]).filter((a) => /^on/.test(a.name)).length"
        )
        == 0
    )
    is_error = [line for line in visit.said if "the server responded with a status of 4" in line]
    visit.said[:] = [line for line in visit.said if line not in is_error]  # the browser tells that of every such page
    assert len(is_error) <= 1


def test_what_gets_into_a_page_all_the_same_does_not_run(
    app: Any, served: Callable[..., str], visit: Callable[..., Any]
):
    html = """<!doctype html><title>x</title><base href="http://elsewhere.invalid/"><link rel="icon" href="data:,">
        <script>window.ran = 1</script><script src="data:text/javascript,window.ran=2"></script>
        <script type="module">window.ran = 3</script><img src="data:," onerror="window.ran = 4">
        <svg onload="window.ran = 5"></svg>
        <style>p { color: rgb(1, 2, 3) }</style><p>words</p><iframe srcdoc="<script>parent.ran = 6</script>"></iframe>
        <object data="data:text/html,<script>parent.ran=7</script>"></object><a href="javascript:window.ran=8">go</a>
        <form action="http://elsewhere.invalid/"><button>send</button></form>"""

    @app.get("/injected")
    def injected() -> HTMLResponse:
        return HTMLResponse(html)

    address = served(app)
    page = visit(f"{address}/injected")
    page.click("a")
    found = page.evaluate("""async () => {
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 9" }));
        const words = document.querySelector("p");
        words.setAttribute("onclick", "window.ran = 10");
        words.click();
        const tried = await Promise.allSettled([fetch("http://127.0.0.1:9/"), import("data:text/javascript,window.ran=11")]);
        let evaluated = null;
        try { evaluated = new Function("return 12")(); } catch (error) { evaluated = error.name; }
        const color = getComputedStyle(words).color;
        document.querySelector("form").requestSubmit();
        await new Promise((done) => setTimeout(done, 200));
        return [window.ran ?? null, tried.map((one) => one.status), evaluated, document.baseURI, color, location.pathname];
    }""")
    assert found == [None, ["rejected"] * 2, "EvalError", f"{address}/injected", "rgb(0, 0, 0)", "/injected"]
    assert len(visit.said) >= 10
    assert all("Content Security Policy" in line for line in visit.said), visit.said
    visit.said.clear()


def test_a_feature_can_stand_in_a_page_elsewhere_and_nothing_else_can(
    app: Any, served: Callable[..., str], browser: Any
):
    address = served(app)
    paths = [f"/d/{NAME}/f/3?embed=1", f"/d/{NAME}/f/3", f"/d/{NAME}?embed=1", f"/d/{NAME}/steer?embed=1", "/",
             f"/d/{NAME}/f/3?embed=1&embed=0"]  # fmt: skip
    outer = FastAPI()

    @outer.get("/")
    def frames() -> HTMLResponse:
        boxes = "".join(f'<iframe src="{address}{html_escape(path)}"></iframe>' for path in paths)
        return HTMLResponse(f"<!doctype html><title>x</title>{boxes}")

    page = browser.new_page()
    page.goto(served(outer).replace("127.0.0.1", "localhost"))  # another site
    page.wait_for_load_state("networkidle")
    shown = [frame.locator("main#main").count() for frame in page.frames[1:]]
    assert shown == [1, 0, 0, 0, 0, 0]
    framed = page.frames[1]
    assert (
        framed.locator("form, textarea, button[data-bookmark], sae-remarks button").count() == 0
    )  # nothing to be tricked into
    page.close()


def test_a_page_elsewhere_can_link_here_and_neither_read_nor_change_anything(
    store: Store, fake_live: Any, served: Callable[..., str], browser: Any
):
    address = served(create_app(store, live=fake_live, token="s3cret"))
    outer = FastAPI()

    @outer.get("/")
    def elsewhere() -> HTMLResponse:
        return HTMLResponse(f"""<!doctype html><title>x</title>
            <a href="{address}/?token=s3cret">with</a> <a id="again" href="{address}/d/{NAME}/f/3">again</a>
            <form method="post" action="{address}/api/d/{NAME}/f/3/tags"><button>send</button></form>""")

    context = browser.new_context()
    page = context.new_page()
    start = served(outer).replace("127.0.0.1", "localhost")
    page.goto(start)
    page.click("a")
    assert page.locator("h1").count() == 1
    assert page.url == f"{address}/"
    assert "Nothing" not in page.title()
    assert page.evaluate("document.cookie") == ""
    page.goto(start)
    page.click("#again")  # the cookie goes along with a link
    assert page.locator("article.feature").count() == 1
    assert page.evaluate("document.referrer").rstrip("/") == start
    page.goto(start)
    read = page.evaluate(
        """async (address) => {
            const asked = [
                fetch(address, { credentials: "include" }), fetch(address, { credentials: "include", mode: "no-cors" }),
                fetch(address, { credentials: "include", mode: "no-cors", method: "POST", body: '{"tag": "evil"}' }),
                fetch(address, { credentials: "include", method: "PUT", body: '{"on": true}' }),
                new Promise((yes, no) => {
                    const script = document.createElement("script");
                    document.body.append(Object.assign(script, { src: address, onload: yes, onerror: no }));
                })];
            return (await Promise.allSettled(asked)).map((one) => one.status);
        }""",
        f"{address}/api/d/{NAME}/f/3/tags",
    )
    assert read == ["rejected"] * 5
    page.click("button")
    assert page.locator("h1").count() + page.locator("pre").count() == 1
    assert set(store.tags("tiny <b>topk</b>")) == {"syntax <u>"}
    context.close()
