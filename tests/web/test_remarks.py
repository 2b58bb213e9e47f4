"""What people write through the API is in the store afterwards, and what can not be kept is refused in words."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from saescope.store import Store

NAME = "tiny <b>topk</b>"
DICTIONARY = f"/api/d/{quote(NAME, safe='')}"
FEATURE = f"{DICTIONARY}/f/9"


def test_a_note_is_written_changed_and_deleted(client: Any, store: Store):
    answer = client.post(f"{FEATURE}/notes", json={"text": "first\nsecond", "author": "Bo"})
    assert answer.status_code == 201
    identity = answer.json()["id"]
    (note,) = store.page(NAME, 9).notes
    assert (note.id, note.text, note.author) == (identity, "first\nsecond", "Bo")
    assert client.put(f"/api/notes/{identity}", json={"text": "other"}).status_code == 204
    assert [note.text for note in store.page(NAME, 9).notes] == ["other"]
    assert client.delete(f"/api/notes/{identity}").status_code == 204
    assert store.page(NAME, 9).notes == ()
    for again in (client.delete(f"/api/notes/{identity}"), client.put(f"/api/notes/{identity}", json={"text": "x"})):
        assert again.status_code == 404
        assert "no note number" in again.json()["error"]["message"]
    assert len(store.page(NAME, 3).notes) == 1  # of another feature


def test_tags_are_given_and_taken(client: Any, store: Store):
    for tag in ("b / c?&", "a", "a"):
        assert client.post(f"{FEATURE}/tags", json={"tag": tag}).status_code == 204
    assert store.page(NAME, 9).tags == ("a", "b / c?&")
    assert client.get(f"{DICTIONARY}/tags").json() == {"a": 1, "b / c?&": 1, "syntax <u>": 1} == store.tags(NAME)
    assert client.delete(f"{FEATURE}/tags", params={"tag": "b / c?&"}).status_code == 204
    assert store.page(NAME, 9).tags == ("a",)
    gone = client.delete(f"{FEATURE}/tags", params={"tag": "b / c?&"})
    assert gone.status_code == 404
    assert "has no tag" in gone.json()["error"]["message"]


def test_a_bookmark_is_set_and_removed(client: Any, store: Store):
    for on in (True, True, False, False):
        assert client.put(f"{FEATURE}/bookmark", json={"on": on}).status_code == 204
        assert store.page(NAME, 9).is_bookmarked == on
    assert store.page(NAME, 3).is_bookmarked


def test_an_explanation_is_added_and_removed(client: Any, store: Store):
    answer = client.post(f"{FEATURE}/explanations", json={"text": "numbers", "author": "Bo"})
    assert answer.status_code == 201
    (explanation,) = store.page(NAME, 9).explanations
    assert (explanation.id, explanation.text, explanation.author) == (answer.json()["id"], "numbers", "Bo")
    assert explanation.method == "human"
    assert [feature.index for feature in store.features(NAME, search="numbers").features] == [9]
    assert client.delete(f"/api/explanations/{explanation.id}").status_code == 204
    assert store.page(NAME, 9).explanations == ()
    assert client.delete(f"/api/explanations/{explanation.id}").status_code == 404


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("notes", {"text": ""}),
        ("notes", {"text": " \n"}),
        ("notes", {"text": "x" * 10_001}),
        ("notes", {"text": "a\0b"}),
        ("notes", {"text": "a", "author": "b\0"}),
        ("notes", {"text": "a", "author": "x" * 201}),
        ("notes", {"text": 3}),
        ("notes", {"text": "a", "other": 1}),
        ("notes", {}),
        ("notes", []),
        ("explanations", {"text": ""}),
        ("explanations", {"text": "x" * 10_001}),
        ("explanations", {"text": "a\0"}),
        ("tags", {"tag": " "}),
        ("tags", {"tag": "x" * 101}),
        ("tags", {"tag": "\0"}),
        ("bookmark", {"on": "perhaps"}),
    ],
)
def test_what_can_not_be_kept_is_refused(client: Any, store: Store, kind: str, body: Any):
    before = store.page(NAME, 9)
    answer = client.request("PUT" if kind == "bookmark" else "POST", f"{FEATURE}/{kind}", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["status"] == 422
    assert answer.json()["error"]["message"]
    assert store.page(NAME, 9) == before


def test_the_longest_are_kept(client: Any, store: Store):
    assert client.post(f"{FEATURE}/notes", json={"text": "x" * 10_000, "author": "y" * 200}).status_code == 201
    assert client.post(f"{FEATURE}/tags", json={"tag": "z" * 100}).status_code == 204
    page = store.page(NAME, 9)
    assert (len(page.notes[0].text), len(page.notes[0].author), len(page.tags[0])) == (10_000, 200, 100)


def test_half_a_character_is_refused(client: Any):
    sent = {"content": b'{"text": "a\\ud83d"}', "headers": {"Content-Type": "application/json"}}
    assert client.post(f"{FEATURE}/notes", **sent).status_code == 422
    assert client.post(f"{FEATURE}/notes", content=b'{"text": ', headers=sent["headers"]).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"{DICTIONARY}/f/4096/notes", 404),
        ("POST", "/api/d/nothing/f/1/notes", 404),
        ("POST", f"{DICTIONARY}/f/{2**53}/notes", 422),
        ("POST", "/api/d/a%00b/f/1/notes", 422),
        ("PUT", f"/api/notes/{2**53}", 422),
        ("PUT", f"/api/notes/{2**64}", 422),
        ("PUT", f"/api/notes/{2**53 - 1}", 404),
        ("PUT", "/api/notes/0", 422),
        ("DELETE", f"/api/notes/{2**64}", 422),
        ("DELETE", f"/api/explanations/{2**64}", 422),
        ("DELETE", f"/api/explanations/{2**53 - 1}", 404),
        ("DELETE", f"{FEATURE}/tags", 422),
        ("DELETE", f"{FEATURE}/tags?tag=%00", 422),
        ("GET", "/api/d/nothing/tags", 404),
        ("GET", "/api/d/%00/tags", 422),
    ],
)
def test_what_is_not_there_is_said(client: Any, method: str, path: str, status: int):
    body = {"json": {"text": "a"}} if method in ("POST", "PUT") else {}
    answer = client.request(method, path, **body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["status"] == status


def test_another_site_can_not_write(client: Any, store: Store):
    answer = client.post(f"{FEATURE}/notes", json={"text": "a"}, headers={"Origin": "http://elsewhere.example"})
    assert answer.status_code == 403
    assert store.page(NAME, 9).notes == ()
