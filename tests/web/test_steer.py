"""Steering over HTTP: the form that a link fills, the stream of events, and what is refused."""

from __future__ import annotations

import asyncio
import html
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saescope.store import Store
from saescope.web.app import create_app
from saescope.web.guard import Limits
from saescope.web.live import BusyError, Change, NoModelError

NAME = "tiny <b>topk</b>"
PATH = "/api/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E"
ASKED = {"prompt": "def", "changes": [{"feature": 3, "strength": 2.5}, {"feature": 5, "strength": -1, "kind": "clamp"}]}


def events_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part[6:]) for part in parts]


def test_events_are_those_of_the_network(client: Any, fake_live: Any):
    how = {"max_new_tokens": 3, "temperature": 0.5, "seed": 2**53 - 1}
    answer = client.post(f"{PATH}/steer", json=ASKED | how)
    events = events_of(answer)
    assert [event["steered"]["text"] for event in events[:-1]] == [" <b>", " <b> <b>", " <b> <b> <b>"]
    assert [event["plain"]["text"] for event in events[:-1]] == [" a", " a a", " a a a"]
    assert events[-1]["done"]["num_tokens"] == 3
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers  # what is packed comes late
    changes = (Change(feature=3, strength=2.5), Change(feature=5, strength=-1.0, kind="clamp"))
    assert fake_live.asked == [("def", (changes, {**how, "analysis": None}))]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"prompt": "x" * 20_001}, 413, "the prompt has 20,001 characters, and at most 20,000"),
        ({"changes": []}, 422, "changes"),
        ({"changes": [{"feature": 3, "strength": 1}] * 9}, 422, "changes"),
        ({"changes": [{"feature": 3, "strength": 1}] * 2}, 422, "a feature is named twice"),
        ({"changes": [{"feature": 4000, "strength": 1}]}, 404, "feature 4000 is not in the analysis"),
        ({"changes": [{"feature": 3, "strength": 100.5}]}, 422, "strength"),
        ({"changes": [{"feature": 3, "strength": -101}]}, 422, "strength"),
        ({"changes": [{"feature": 3, "strength": 1, "kind": "ablate"}]}, 422, "kind"),
        ({"changes": [{"feature": -3, "strength": 1}]}, 422, "feature"),
        ({"changes": [{"feature": 2**60, "strength": 1}]}, 422, "feature"),
        ({"max_new_tokens": 257}, 422, "257 tokens are asked for, and at most 256"),
        ({"max_new_tokens": 0}, 422, "max_new_tokens"),
        ({"temperature": 5.1}, 422, "temperature"),
        ({"temperature": -0.1}, 422, "temperature"),
        ({"seed": 2**53}, 422, "seed"),
        ({"seed": -1}, 422, "seed"),
        ({"analysis": "none"}, 404, "no analysis named 'none'"),
        ({"unknown": 1}, 422, "unknown"),
    ],
)
def test_what_is_refused(client: Any, fake_live: Any, change: dict[str, Any], status: int, words: str):
    answer = client.post(f"{PATH}/steer", json=ASKED | change)
    assert (answer.status_code, answer.json()["error"]["status"]) == (status, status)
    assert words in answer.json()["error"]["message"]
    assert fake_live.asked == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_is_refused(client: Any, number: str):
    for body in (
        f'{{"prompt": "a", "changes": [{{"feature": 3, "strength": {number}}}]}}',
        f'{{"prompt": "a", "changes": [{{"feature": 3, "strength": 1}}], "temperature": {number}}}',
    ):
        answer = client.post(f"{PATH}/steer", content=body.encode(), headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert client.get(f"{PATH}/steer?f=3&s={number}").status_code == 422


def test_another_site_can_not_steer(client: Any, fake_live: Any):
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(f"{PATH}/steer", json=ASKED, headers=headers).status_code == 403
    client.get(f"{PATH[4:]}/steer?f=3&s=4&prompt=def&run=1")
    client.get(f"{PATH}/steer?f=3&s=4&prompt=def&run=1")
    assert fake_live.asked == []


@pytest.mark.parametrize(
    ("error", "status"), [(BusyError("full"), 503), (NoModelError("gone"), 404), (ValueError("dead"), 422)]
)
def test_what_the_network_refuses_at_once(client: Any, fake_live: Any, error: Exception, status: int):
    fake_live.refuses = error
    answer = client.post(f"{PATH}/steer", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, str(error))
    assert ("retry-after" in answer.headers) == (status == 503)


class Streams:
    """A network that gives items, and raises where one is an error; notes whether it was closed."""

    def __init__(self, *items: Any) -> None:
        self.items, self.closed = items, threading.Event()

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        return None

    def state(self, name: str) -> dict[str, Any]:
        return {"state": "ready", "words": "", "num_waiting": 0}

    def steer(self, *_: Any, **__: Any) -> Any:
        return self.Items(self)

    class Items:
        def __init__(self, of: Streams) -> None:
            self.of, self.left = of, iter(of.items)

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            item = next(self.left)
            if isinstance(item, threading.Event):
                assert item.wait(30)
                item = {"plain": None, "steered": None}
            if isinstance(item, Exception):
                raise item
            return item

        def close(self) -> None:
            self.of.closed.set()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("no room"), 422, "no room"),
        (BusyError("late"), 503, "late"),
        (NoModelError("away"), 404, "away"),
        (ZeroDivisionError("secret"), 500, "the server made a mistake; its log says more"),
    ],
)
def test_what_goes_wrong_on_the_way(
    store: Store, client_of: Callable[..., Any], error: Exception, status: int, words: str
):
    """Before the first event it is the status of the answer; later it is an event."""
    network: Any = Streams({"state": {"words": "wait"}}, error)
    events = events_of(client_of(create_app(store, live=network)).post(f"{PATH}/steer", json=ASKED))
    assert events == [{"state": {"words": "wait"}}, {"error": {"status": status, "message": words}}]
    assert network.closed.is_set()
    network = Streams(error)
    answer = client_of(create_app(store, live=network)).post(f"{PATH}/steer", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, words)
    assert network.closed.is_set()


def test_nothing_is_an_answer_too(store: Store, client_of: Callable[..., Any]):
    network: Any = Streams()
    assert events_of(client_of(create_app(store, live=network)).post(f"{PATH}/steer", json=ASKED)) == []
    assert network.closed.is_set()


async def _asgi(app: Any, receive: Any, send: Any) -> None:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": f"/api/d/{NAME}/steer", "raw_path": f"{PATH}/steer".encode(), "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)


def test_a_reader_that_leaves_closes_the_stream(store: Store):
    """In the middle of a step; the model is told as soon as that step is over."""
    gate = threading.Event()
    network: Any = Streams({"plain": None, "steered": None}, gate, *[{"plain": None, "steered": None}] * 1000)
    app = create_app(store, live=network)

    async def scene() -> int:
        sent, got_one = [], asyncio.Event()
        given = [{"type": "http.request", "body": json.dumps(ASKED).encode(), "more_body": False}]

        async def receive() -> Any:
            if given:
                return given.pop()
            await got_one.wait()
            gate.set()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                got_one.set()

        await asyncio.wait_for(_asgi(app, receive, send), 30)
        return len(sent)

    assert asyncio.run(scene()) < 10
    assert network.closed.is_set()


def test_a_reader_that_never_reads_holds_no_thread(store: Store):
    """Its stream waits in the server's loop; others are answered meanwhile."""
    app = create_app(store, live=Streams(*[{"plain": None, "steered": None}] * 3))  # type: ignore[arg-type]

    def client(reads: bool) -> tuple[Any, asyncio.Event, asyncio.Event]:
        given = [{"type": "http.request", "body": json.dumps(ASKED).encode(), "more_body": False}]
        has_begun, has_ended, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            if not given:
                await never.wait()
            return given.pop()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                has_begun.set()
                if not reads:
                    await never.wait()
                if not message.get("more_body"):
                    has_ended.set()

        return asyncio.ensure_future(_asgi(app, receive, send)), has_begun, has_ended

    async def scene() -> None:
        stuck = []
        for _ in range(70):  # more than there are threads for the networks
            task, has_begun, _ = client(reads=False)
            await asyncio.wait_for(has_begun.wait(), 30)
            stuck.append(task)
        task, _, has_ended = client(reads=True)
        await asyncio.wait_for(has_ended.wait(), 30)
        for one in [*stuck, task]:
            one.cancel()
        await asyncio.gather(*stuck, task, return_exceptions=True)

    asyncio.run(scene())


def test_a_link_fills_the_form(client: Any, store: Store):
    query = "f=3&f=5&s=4&s=-1.5&kind=add&kind=clamp&prompt=%3Cscript%3E%0Adef&tokens=7&temperature=0.25&seed=9"
    found = client.get(f"{PATH}/steer?{query}").json()
    assert [(each["index"], each["strength"], each["kind"]) for each in found["features"]] == [
        (3, 4.0, "add"),
        (5, -1.5, "clamp"),
    ]
    for each in found["features"]:
        record = store.page(NAME, each["index"]).feature
        assert (each["max_activation"], each["density"]) == (record.max_activation, record.density)
    assert found["features"][0]["label"] == "the token “self”"
    form = {key: found[key] for key in ("prompt", "tokens", "temperature", "seed")}
    assert form == {"prompt": "<script>\ndef", "tokens": 7, "temperature": 0.25, "seed": 9}
    assert found["limits"] == {
        "characters": 20_000, "new_tokens": 256, "features": 8, "strength": 100.0, "temperature": 5.0, "seed": 2**53 - 1
    }  # fmt: skip
    page = client.get(f"{PATH[4:]}/steer?{query}")
    data = json.loads(re.search(r'id="steer">(.*?)</script>', page.text)[1])  # type: ignore[index]
    assert data == found
    area = re.search(r"<textarea[^>]*>(.*?)</textarea>", page.text, re.DOTALL)
    assert area is not None
    assert html.unescape(area[1]) == "\n<script>\ndef"
    assert 'name="temperature" min="0" max="5.0" step="any" required value="0.25"' in page.text
    assert "times its maximum activation, 10<" in page.text
    assert "<script>\ndef" not in page.text


def test_what_a_link_leaves_out(client: Any):
    found = client.get(f"{PATH}/steer?f=3").json()
    assert [(each["index"], each["strength"], each["kind"]) for each in found["features"]] == [(3, 2.0, "add")]
    assert (found["prompt"], found["tokens"], found["temperature"], found["seed"]) == ("", 40, 1.0, 0)
    assert client.get(f"{PATH}/steer").json()["features"] == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("f=3&s=1&s=2", 422),
        ("f=3&kind=add&kind=add", 422),
        ("f=3&s=101", 422),
        ("f=3&kind=no", 422),
        ("&".join(f"f={i}" for i in range(9)), 422),
        ("f=4000", 404),
        ("f=-1", 422),
        ("tokens=257", 422),
        ("tokens=0", 422),
        ("temperature=6", 422),
        ("seed=9007199254740992", 422),
        ("analysis=none", 404),
        ("prompt=" + "x" * 20_001, 413),
    ],
)
def test_links_that_are_refused(client: Any, query: str, status: int):
    assert client.get(f"{PATH}/steer?{query}").status_code == status
    assert client.get(f"{PATH[4:]}/steer?{query}").status_code == status


def test_without_a_model_the_page_says_why_and_offers_nothing(store: Store, client_of: Callable[..., Any]):
    client = client_of(create_app(store))
    page = client.get(f"{PATH[4:]}/steer?f=3")
    assert page.status_code == 200
    assert "saescope serve --model" in page.text
    assert "<form" not in page.text
    assert '<button type="submit"' not in page.text
    assert client.post(f"{PATH}/steer", json=ASKED).status_code == 404


def test_limits_are_those_of_the_server(store: Store, fake_live: Any, client_of: Callable[..., Any]):
    client = client_of(create_app(store, live=fake_live, limits=Limits(new_tokens=5)))
    assert client.get(f"{PATH}/steer").json()["tokens"] == 5
    assert len(events_of(client.post(f"{PATH}/steer", json=ASKED | {"max_new_tokens": 5}))) == 6
    assert client.post(f"{PATH}/steer", json=ASKED | {"max_new_tokens": 6}).status_code == 422
    assert len(events_of(client.post(f"{PATH}/steer", json=ASKED))) == 6


def test_the_description_names_the_stream(client: Any):
    paths = client.get("/api/openapi.json").json()["paths"]
    assert "text/event-stream" in paths["/api/d/{name}/steer"]["post"]["responses"]["200"]["content"]
    assert {"get", "post"} <= set(paths["/api/d/{name}/steer"])
    assert "post" in paths["/api/d/{name}/activations"]
