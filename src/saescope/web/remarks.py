"""What people write on a feature: notes, tags, a bookmark, explanations. Only JSON; the page shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from saescope.store import Explanation, Note
from saescope.web.feature import LARGEST, Index, Name, holdable
from saescope.web.site import Site

_Holdable = AfterValidator(holdable)
Text = Annotated[str, Field(min_length=1, max_length=10_000), _Holdable]
Author = Annotated[str, Field(max_length=200), _Holdable]
Tag = Annotated[str, Field(min_length=1, max_length=100), _Holdable]
Identity = Annotated[int, Path(ge=1, lt=LARGEST)]

_WRITERS = 2  # at once: while another process writes for long they wait, and must leave threads to those who read


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Words(_Body):
    """A note, or an explanation by a person."""

    text: Text
    author: Author = ""


class Edited(_Body):
    """The new text of a note."""

    text: Text


class Tagged(_Body):
    """A tag for a feature."""

    tag: Tag


class Bookmarked(_Body):
    """Whether a feature has a bookmark."""

    on: bool


class Made(BaseModel):
    """The number under which something was kept."""

    id: int


def routes(site: Site) -> APIRouter:
    """The routes of this part."""
    turns = asyncio.Semaphore(_WRITERS)

    async def in_turn(request: Request) -> AsyncIterator[None]:
        if request.method == "GET":
            yield
            return
        async with turns:
            yield

    router = APIRouter(prefix="/api", tags=["remarks"], dependencies=[Depends(in_turn)])
    store = site.store

    @router.post("/d/{name:path}/f/{index:int}/notes", status_code=201, summary="Write a note on a feature")
    def add_note(name: Name, index: Index, body: Words) -> Made:
        return Made(id=store.add_note(name, index, Note(text=body.text, author=body.author)))

    @router.put("/notes/{identity:int}", status_code=204, summary="Change the text of a note")
    def edit_note(identity: Identity, body: Edited) -> Response:
        store.edit_note(identity, body.text)
        return Response(status_code=204)

    @router.delete("/notes/{identity:int}", status_code=204, summary="Remove a note")
    def delete_note(identity: Identity) -> Response:
        store.delete_note(identity)
        return Response(status_code=204)

    @router.post("/d/{name:path}/f/{index:int}/tags", status_code=204, summary="Give a feature a tag")
    def add_tag(name: Name, index: Index, body: Tagged) -> Response:
        store.tag(name, index, body.tag)
        return Response(status_code=204)

    @router.delete("/d/{name:path}/f/{index:int}/tags", status_code=204, summary="Take a tag away")
    def remove_tag(name: Name, index: Index, tag: Annotated[Tag, Query()]) -> Response:
        store.untag(name, index, tag)
        return Response(status_code=204)

    @router.get("/d/{name:path}/tags", summary="All tags of a dictionary, and how many features have each")
    def tags(name: Name) -> dict[str, int]:
        return store.tags(name)

    @router.put("/d/{name:path}/f/{index:int}/bookmark", status_code=204, summary="Set or remove a bookmark")
    def bookmark(name: Name, index: Index, body: Bookmarked) -> Response:
        store.bookmark(name, index, body.on)
        return Response(status_code=204)

    @router.post("/d/{name:path}/f/{index:int}/explanations", status_code=201, summary="Say what a feature means")
    def explain(name: Name, index: Index, body: Words) -> Made:
        return Made(id=store.explain(name, index, Explanation(text=body.text, author=body.author)))

    @router.delete("/explanations/{identity:int}", status_code=204, summary="Remove an explanation")
    def forget(identity: Identity) -> Response:
        store.forget_explanation(identity)
        return Response(status_code=204)

    return router
