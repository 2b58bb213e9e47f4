"""The application as a whole: its files, its errors, its description."""

from __future__ import annotations

from typing import Any


def test_files_for_the_browser_are_there_and_are_kept(client: Any):
    from saescope.web.bundle import app_script
    from saescope.web.site import Links

    answer = client.get(Links().asset("app.js"))
    assert answer.status_code == 200
    assert answer.text == app_script()
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    assert client.get("/static/x/../site.py").status_code == 404
    assert client.get("/static/x/%2e%2e/site.py").status_code == 404


def test_what_is_not_there_is_said_in_words(client: Any):
    answer = client.get("/nothing/here")
    assert answer.status_code == 404
    assert "there is no page /nothing/here" in answer.text
    answer = client.get("/api/nothing")
    assert answer.json() == {"error": {"status": 404, "message": "there is no page /api/nothing"}}


def test_the_api_describes_itself(client: Any):
    assert client.get("/api/openapi.json").json()["info"]["title"] == "saescope"
