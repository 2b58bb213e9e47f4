"""Reading a text over HTTP: what is given is what the network says and the store knows; what is wrong is said."""

from __future__ import annotations

import asyncio
import html
import json
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from saescope.store import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label, Store
from saescope.web.app import create_app
from saescope.web.guard import Limits
from saescope.web.live import BusyError, NoModelError, Piece, Reading
from saescope.web.try_text import dense_features

NAME = "tiny <b>topk</b>"
PATH = "/api/d/tiny%20%3Cb%3Etopk%3C%2Fb%3E"


def test_a_reading_comes_with_what_the_store_knows_of_its_features(client: Any, fake_live: Any, store: Store):
    answer = client.post(f"{PATH}/activations", json={"text": "call self now", "num_per_token": 2})
    assert answer.status_code == 200
    found = answer.json()
    assert fake_live.asked == [(NAME, "call self now")]
    assert (found["dictionary"], found["analysis"], found["num_tokens"], found["feature"]) == (NAME, "default", 3, None)
    assert found["pieces"][0] == {
        "text": "call", "token_ids": [0], "features": [[5, 4.0], [3, 0.25]], "activation": 0.0, "is_special": False
    }  # fmt: skip
    assert found["pieces"][1]["features"] == [[3, 2.5]]
    assert found["features"] == [
        {"index": 5, "activation": 4.0, "num_tokens": 2},
        {"index": 3, "activation": 2.5, "num_tokens": 3},
    ]
    assert set(found["named"]) == {"3", "5"}
    for key, named in found["named"].items():
        record = store.page(NAME, int(key)).feature
        assert named == {
            "index": record.index,
            "label": record.label.text if record.label else None,
            "density": record.density,
            "is_dense": False,
            "max_activation": record.max_activation,
        }


def test_one_feature(client: Any):
    found = client.post(f"{PATH}/activations", json={"text": "call self", "feature": 3}).json()
    assert [piece["activation"] for piece in found["pieces"]] == [0.25, 2.5]
    assert found["feature"] == 3
    assert found["named"]["3"]["max_activation"] == 10.0
    twin = client.get(f"{PATH}/try", params={"feature": 3}).json()
    assert twin["feature"] == found["named"]["3"]
    assert twin["limits"] == {"characters": 20_000}
    assert twin["live"] == {"absent": None, "state": "ready", "words": "The model is loaded.", "num_waiting": 0}


def test_a_feature_without_a_label_is_named_by_its_best_explanation(client: Any, store: Store):
    from saescope.store import Explanation

    store.explain(NAME, 5, Explanation(text="weaker", method="detection", score=0.25))
    store.explain(NAME, 5, Explanation(text="an <attack>", method="detection", score=0.75))
    found = client.post(f"{PATH}/activations", json={"text": "x"}).json()
    assert found["named"]["5"]["label"] == "an <attack>"


@pytest.fixture
def dense_store(tmp_path: Any) -> Any:
    """Features 0 to 9 with densities around the border of what is dense; of features 10 to 19 nothing is known."""
    densities = [0.0, 0.05, math.nextafter(0.1, 0), 0.1, math.nextafter(0.1, 1), 0.2, 0.5, 0.9, 1.0, 0.001]
    with Store.open(tmp_path / "dense.db") as store:
        store.write(
            DictionaryRecord(name="d", model="m", hook_point="h", architecture="topk", d_in=4, d_sae=20),
            AnalysisRecord(dataset="x", context_size=4, num_tokens=1000),
            [
                Feature(
                    record=FeatureRecord(
                        index=index, num_firings=round(1000 * density), density=density, max_activation=1.0 + index,
                        label=Label(text="l", kind="tokens", precision=1.0, lift=1.0, num_firings=1) if index % 2 else None,
                    )
                )
                for index, density in enumerate(densities)
            ],
            [],
            [],
        )  # fmt: skip
        yield store


class Says:
    """A network that says what it is told to, and remembers what it was asked."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.how = reading, dict[str, Any]()

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        return "Only <reading>." if steering else None

    def state(self, name: str) -> dict[str, Any]:
        return {"state": "cold", "words": "It is cold.", "num_waiting": 0}

    def read_text(self, name: str, text: str, **how: Any) -> Reading:
        self.how = how
        return self.reading


def test_dense_features_are_told_apart(dense_store: Store, client_of: Callable[..., Any]):
    dense = [record.index for record in dense_store.features("d").features if record.is_dense]
    assert sorted(dense_features(dense_store, "d", None)) == sorted(dense) == [4, 5, 6, 7, 8]
    network: Any = Says(
        Reading(pieces=(Piece(text="a", token_ids=(1,), features=((8, 2.0), (3, 1.0), (15, 0.5))),), num_tokens=1)
    )
    client = client_of(create_app(dense_store, live=network))
    found = client.post("/api/d/d/activations", json={"text": "a"}).json()
    assert network.how["apart"] == frozenset(dense)
    assert network.how["num_per_token"] == 5
    assert [found["named"][key]["is_dense"] for key in ("3", "8")] == [False, True]
    assert "15" not in found["named"]  # of which the store knows nothing


def test_whether_there_is_a_model(client: Any, store: Store, dense_store: Store, client_of: Callable[..., Any]):
    assert client.get(f"{PATH}/live").json()["state"] == "ready"
    network: Any = Says(Reading(pieces=()))
    other = client_of(create_app(dense_store, live=network))
    assert other.get("/api/d/d/live").json() == {
        "absent": None,
        "state": "cold",
        "words": "It is cold.",
        "num_waiting": 0,
    }
    assert other.get("/api/d/d/live?steering=true").json()["absent"] == "Only <reading>."
    assert other.get("/api/d/nothing/live").status_code == 404
    without = client_of(create_app(store))
    assert "saescope serve --model" in without.get(f"{PATH}/live").json()["absent"]
    answer = without.post(f"{PATH}/activations", json={"text": "a"})
    assert answer.status_code == 404
    assert "saescope serve --model" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "x" * 20_001}, 413, "the text has 20,001 characters, and at most 20,000 are read"),
        ({"text": "a", "feature": 4000}, 404, "feature 4000 is not in the analysis"),
        ({"text": "a", "feature": -1}, 422, "feature"),
        ({"text": "a", "feature": 2**53}, 422, "feature"),
        ({"text": "a", "feature": 2**53 - 1}, 404, "not in the analysis"),
        ({"text": "a", "num_per_token": 0}, 422, "num_per_token"),
        ({"text": "a", "num_per_token": 33}, 422, "num_per_token"),
        ({"text": "a", "analysis": "other"}, 404, "no analysis named 'other'"),
        ({"text": "a", "analysis": "a\x00"}, 422, "analysis"),
        ({"text": 3}, 422, "text"),
        ({}, 422, "text"),
        ({"text": "a", "more": 1}, 422, "more"),
    ],
)
def test_what_is_refused(client: Any, fake_live: Any, body: dict[str, Any], status: int, words: str):
    answer = client.post(f"{PATH}/activations", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["status"] == status
    assert words in answer.json()["error"]["message"]
    assert fake_live.asked == []


def test_texts_of_any_characters(client: Any):
    for text in ("\x00", "\u202e<script>", "😀", "a\r\nb"):
        assert client.post(f"{PATH}/activations", json={"text": text}).status_code in (200, 422)
    raw = client.post(
        f"{PATH}/activations", content=b'{"text": "\\ud800"}', headers={"content-type": "application/json"}
    )
    assert raw.status_code == 422
    assert (
        client.post(
            f"{PATH}/activations", content=b'{"text": ', headers={"content-type": "application/json"}
        ).status_code
        == 422
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [(BusyError("full"), 503), (NoModelError("gone"), 404), (ValueError("too long: 32 tokens"), 422)],
)
def test_what_the_network_refuses(client: Any, fake_live: Any, error: Exception, status: int):
    fake_live.refuses = error
    answer = client.post(f"{PATH}/activations", json={"text": "a"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, str(error))
    assert ("retry-after" in answer.headers) == (status == 503)


def test_another_site_can_not_have_a_text_read(client: Any, fake_live: Any):
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(f"{PATH}/activations", json={"text": "a"}, headers=headers).status_code == 403
    assert fake_live.asked == []


def test_the_page(client: Any, store: Store, dense_store: Store, client_of: Callable[..., Any]):
    text = "\n</textarea><script>alert(1)</script>\n"
    page = client.get(f"{PATH[4:]}/try", params={"text": text})
    assert page.status_code == 200
    area = re.search(r"<textarea[^>]*>(.*?)</textarea>", page.text, re.DOTALL)
    assert area is not None
    assert html.unescape(area[1]) == "\n" + text  # of which a browser leaves the first line end out
    assert "<script>alert" not in page.text
    assert 'aria-current="page">Try a text' in page.text
    data = json.loads(re.search(r'id="try">(.*?)</script>', page.text)[1])  # type: ignore[index]
    assert data == {"name": NAME, "analysis": None}
    assert client.get(f"{PATH[4:]}/try?analysis=none").status_code == 404
    assert client.get("/d/nothing/try").status_code == 404
    assert "It is cold." in client_of(create_app(dense_store, live=Says(Reading(pieces=())))).get("/d/d/try").text  # type: ignore[arg-type]
    without = client_of(create_app(store)).get(f"{PATH[4:]}/try").text
    assert "saescope serve --model" in without
    assert "<form" not in without
    assert "<sae-try-text" not in without


def test_limits_are_those_of_the_server(store: Store, fake_live: Any, client_of: Callable[..., Any]):
    client = client_of(create_app(store, live=fake_live, limits=Limits(prompt_characters=3)))
    assert client.post(f"{PATH}/activations", json={"text": "abc"}).status_code == 200
    assert client.post(f"{PATH}/activations", json={"text": "abcd"}).status_code == 413
    assert client.get(f"{PATH}/try").json()["limits"] == {"characters": 3}


def test_those_who_wait_for_the_model_are_in_nobodys_way(store: Store):
    """More requests wait than the server has threads for the store, and pages still come."""
    from httpx2 import ASGITransport, AsyncClient

    gate, begun = threading.Event(), threading.Semaphore(0)

    class Slow(Says):
        def read_text(self, name: str, text: str, **how: Any) -> Reading:
            begun.release()
            assert gate.wait(30)
            return self.reading

    app = create_app(store, live=Slow(Reading(pieces=())))  # type: ignore[arg-type]

    async def scene() -> None:
        async with (
            app.router.lifespan_context(app),
            AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client,
        ):
            asking = [asyncio.ensure_future(client.post(f"{PATH}/activations", json={"text": "a"})) for _ in range(20)]
            for _ in asking:
                assert await asyncio.to_thread(begun.acquire, timeout=30)
            answer = await asyncio.wait_for(client.get(f"{PATH}/try"), 30)
            assert answer.status_code == 200
            gate.set()
            assert [one.status_code for one in await asyncio.gather(*asking)] == [200] * 20

    try:
        asyncio.run(scene())
    finally:
        gate.set()
