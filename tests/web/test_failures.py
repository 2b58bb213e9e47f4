"""What went wrong, in one shape for programs and on a page for people."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Query
from fastapi.testclient import TestClient

from saescope.store.errors import NotInStoreError, StoreFailedError
from saescope.web import failures
from saescope.web.live import BusyError, NoModelError

ATTACK = "</script><script>alert(1)</script>\"'&"
ERRORS: list[tuple[Exception, int, str]] = [
    (NotInStoreError(f"no dictionary named {ATTACK}"), 404, f"no dictionary named {ATTACK}"),
    (NoModelError("no model; start the server with --model"), 404, "no model; start the server with --model"),
    (ValueError(f"{ATTACK} is too long"), 422, f"{ATTACK} is too long"),
    (PermissionError("the store can only be read here"), 403, "the store can only be read here"),
    (StoreFailedError("the database is away"), 503, "the database is away"),
    (BusyError("8 requests wait already"), 503, "8 requests wait already"),
    (HTTPException(418), 418, "I'm a Teapot"),
    (HTTPException(409, "it changed meanwhile"), 409, "it changed meanwhile"),
    (ValueError("half \ud800 a character \x00"), 422, "half \\ud800 a character \x00"),
    (ValueError("x" * 100_000), 422, "x" * 2000),
    (ValueError(), 422, ""),
]


@pytest.fixture
def failing(client_of: Callable[..., TestClient]) -> Callable[[str], Any]:
    """Asks for a route of an application that raises the error of this place in `ERRORS`."""
    app = FastAPI()
    failures.install(app)

    @app.get("/page/{place}")
    @app.get("/api/{place}")
    def fail(place: int) -> None:
        raise ERRORS[place][0]

    @app.get("/api/many/values")
    def values(one: int = Query(ge=0, le=5), other: float = Query(allow_inf_nan=False)) -> str:
        return "well"

    @app.get("/api/keep/it")
    def keep() -> str:
        return "\ud800".encode().decode()

    return client_of(app).get


@pytest.mark.parametrize("place", range(len(ERRORS)))
def test_programs_get_one_shape_and_people_a_page(failing: Callable[[str], Any], place: int):
    _, status, words = ERRORS[place]
    answer = failing(f"/api/{place}")
    assert answer.status_code == status
    assert answer.json() == {"error": {"status": status, "message": words}}
    assert answer.headers.get("retry-after") == ("2" if status == 503 else None)
    page = failing(f"/page/{place}")
    assert page.status_code == status
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers.get("retry-after") == ("2" if status == 503 else None)
    assert f'<p class="lede">{words}' in unescape(page.text).replace("\r", "")
    assert "<script>alert" not in page.text
    assert page.text.count("<h1>") == 1


def test_values_that_are_not_understood_are_named(failing: Callable[[str], Any]):
    said = failing("/api/many/values?one=7&other=nan").json()["error"]
    assert said["status"] == 422
    assert said["message"].startswith(
        "one: Input should be less than or equal to 5; other: Input should be a finite number"
    )
    assert failing("/api/many/values?one=x").json()["error"]["message"].endswith("other: Field required")
    assert failing("/api/many/values?one=5&other=1e308").status_code == 200


def test_half_a_character_is_said_to_be_one(failing: Callable[[str], Any]):
    answer = failing("/api/keep/it")
    assert answer.status_code == 422
    assert "half of a character" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "BREW"])
def test_what_is_not_there_is_told_in_the_same_way(client: Any, method: str):
    answer = client.request(method, "/api/nothing")
    assert answer.status_code == 404
    if method != "HEAD":
        assert answer.json() == {"error": {"status": 404, "message": "there is no page /api/nothing"}}
    answer = client.request(method, "/no<i>thing")
    assert answer.status_code == 404
    if method != "HEAD":
        assert "there is no page /no&lt;i&gt;thing" in answer.text


def answer_allows(client: Any) -> str:
    return client.delete("/api/openapi.json").headers["allow"]


@pytest.mark.parametrize("method", ["OPTIONS", "POST", "DELETE", "BREW"])
def test_a_method_that_a_page_does_not_have_is_refused_and_the_right_one_named(client: Any, method: str):
    for path in ("/api/openapi.json", "/static/x/look.css"):
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]
    said = client.request(method, "/api/openapi.json").json()["error"]
    assert said == {"status": 405, "message": f"this address takes {answer_allows(client)}, not {method}"}


def test_addresses_that_only_look_like_the_api_are_pages(client: Any):
    assert client.get("/apiary").headers["content-type"].startswith("text/html")
    assert client.get("/api").headers["content-type"] == "application/json"


def test_every_refusal_is_described(client: Any):
    described = client.get("/api/openapi.json").json()
    assert described["components"]["schemas"]["ErrorShape"]["required"] == ["error"]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert set(operation["responses"]) >= {
                "400",
                "401",
                "403",
                "404",
                "405",
                "408",
                "413",
                "421",
                "422",
                "503",
            }, (
                path,
                method,
            )
            shape = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert shape == {"$ref": "#/components/schemas/ErrorShape"}
