"""Pages drawn by other processes are the same pages; and where those can not, the server draws them itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import Store
from saescope.web.app import create_app
from saescope.web.spread import Readers

NAME = "tiny%20%3Cb%3Etopk%3C%2Fb%3E"
PATHS = [
    f"/d/{NAME}/f/3",
    f"/d/{NAME}/f/3?context=whole&breaks=1",
    f"/d/{NAME}/f/5?embed=1",
    f"/d/{NAME}/f/4095",
    f"/d/{NAME}/f/99999999",
    f"/d/{NAME}/f/3?context=no",
    f"/d/{NAME}?sort=max_activation",
    f"/d/{NAME}?search=self",
    f"/d/{NAME}?min_density=nan",
    f"/api/d/{NAME}/f/9",
    f"/api/d/{NAME}/features?sort=lift&dir=asc",
    f"/api/d/{NAME}/rows?index=3&index=5",
    "/d/nobody/f/3",
    "/d/nobody",
]


def waited_for(readers: Readers) -> Readers:
    deadline = time.monotonic() + 60
    while not readers.are_there:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return readers


@pytest.fixture
def readers(store: Store, tmp_path: Path) -> Iterator[Readers]:
    made = Readers(str(tmp_path / "features.db"), 1)
    yield waited_for(made)
    made.close()


def processes(readers: Readers) -> list[int]:
    assert readers._pool is not None
    return list(readers._pool._processes)


def alike(answer: Any) -> tuple[Any, ...]:
    return answer.status_code, sorted(answer.headers.multi_items()), answer.text


def test_every_answer_is_what_it_was(
    store: Store, readers: Readers, fake_live: Any, client_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, int]] = []
    ask = Readers.answer

    async def noted(self: Readers, path: str, *rest: Any) -> Any:
        answer = await ask(self, path, *rest)
        asked.append((path, answer[0]))
        return answer

    monkeypatch.setattr(Readers, "answer", noted)
    alone = client_of(create_app(store, live=fake_live))
    beside = client_of(create_app(store, live=fake_live, readers=readers))
    for path in PATHS:
        assert alike(beside.get(path)) == alike(alone.get(path)), path
        assert alike(beside.head(path)) == alike(alone.head(path)), path
    beside_it = [path for path, _ in asked]
    assert len([path for path in beside_it if "/f/" in path and not path.startswith("/api")]) == 14  # HEAD as well
    assert len([path for path in beside_it if path.startswith("/api")]) == 6
    assert {status for _, status in asked} == {200, 404, 422}


def test_which_pages_are_drawn_beside_the_server(store: Store, readers: Readers):
    from saescope.web.site import Site
    from saescope.web.spread import Spread

    spread = Spread(lambda *_: None, readers=readers, site=Site(store=store))  # type: ignore[arg-type, return-value]

    def name(path: str, method: str = "GET") -> str | None:
        return spread._name({"type": "http", "method": method, "path": path})

    assert name("/d/demo") == "demo"
    assert name("/d/a/b/f/12") == "a/b"
    assert name("/api/d/demo/features") == "demo"
    others = ("/", "/d/demo/try", "/d/demo/map", "/d/demo/random", "/api/d/demo", "/api/d/demo/order", "/d/demo/f/x")
    assert [name(path) for path in others] == [None] * len(others)
    assert name("/d/demo/f/3", "POST") is None
    spread._site.embed = len  # only the server's process can search by meaning
    assert name("/d/demo") is None
    assert name("/d/demo/f/3") == "demo"


def test_what_was_added_is_there_at_once(store: Store, readers: Readers, client_of: Callable[..., Any]):
    client = client_of(create_app(store, readers=readers))
    assert client.post(f"/api/d/{NAME}/f/7/tags", json={"tag": "odd one"}).status_code < 300
    assert "odd one" in client.get(f"/d/{NAME}/f/7").text


def test_readers_say_of_models_what_the_server_says(
    store: Store, readers: Readers, fake_live: Any, client_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    client = client_of(create_app(store, live=fake_live, readers=readers))
    assert "<sae-try" in client.get(f"/d/{NAME}/f/3").text
    monkeypatch.setattr(fake_live, "absent", lambda name, **_: "The weights are on the moon.")
    shown = client.get(f"/d/{NAME}/f/3").text
    assert "The weights are on the moon." in shown
    assert "<sae-try" not in shown


def test_the_server_goes_on_without_them(
    store: Store, readers: Readers, client_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
):
    client = client_of(create_app(store, readers=readers))
    before = client.get(f"/d/{NAME}/f/3").text
    for process in processes(readers):
        os.kill(process, signal.SIGKILL)
    for _ in range(3):
        assert client.get(f"/d/{NAME}/f/3").text == before
    assert not readers.are_there
    assert "has died" in caplog.text


def test_a_store_that_can_not_be_opened_there_is_read_here(store: Store, tmp_path: Path, client_of: Callable[..., Any]):
    readers = Readers(str(tmp_path / "elsewhere.db"), 1)
    client = client_of(create_app(store, readers=readers))
    assert client.get(f"/d/{NAME}/f/3").status_code == 200
    readers.close()
