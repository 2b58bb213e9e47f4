"""Steering: what the model writes while features are changed, beside what it writes otherwise, as it is written.

A link fills the form and runs nothing: what computes is a POST from a page of this server.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from saescope.web.asking import Threads, live_of, state_of
from saescope.web.live import Change, Live
from saescope.web.site import Site
from saescope.web.try_text import LARGEST, NAME_LENGTH, briefly, check_length

MOST_FEATURES = 8
LARGEST_STRENGTH = 100.0
_STRENGTH, _NUM_TOKENS, _TEMPERATURE = 2.0, 40, 1.0  # what a form without a link begins with
_HOTTEST = 5.0

Feature = Annotated[int, Field(ge=0, le=LARGEST)]
Strength = Annotated[float, Field(ge=-LARGEST_STRENGTH, le=LARGEST_STRENGTH, allow_inf_nan=False)]
Kind = Literal["add", "clamp"]


class FeatureChange(BaseModel):
    """A feature turned up, or held at a value."""

    model_config = ConfigDict(extra="forbid")

    feature: Feature
    strength: Strength = Field(description="In units of the feature's largest activation in the analysis.")
    kind: Kind = "add"


class Steering(BaseModel):
    """What is to be written."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    changes: list[FeatureChange] = Field(min_length=1, max_length=MOST_FEATURES)
    max_new_tokens: int | None = Field(default=None, ge=1, le=LARGEST, description="As many as a new form has.")
    temperature: float = Field(default=_TEMPERATURE, ge=0, le=_HOTTEST, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=LARGEST)
    analysis: str | None = Field(default=None, max_length=NAME_LENGTH, pattern=r"^[^\x00]*$")


class SteeringLink(BaseModel):
    """What a link to the page says of the form."""

    f: list[Feature] = Field(default=[], max_length=MOST_FEATURES, description="Features.")
    s: list[Strength] = Field(
        default=[], max_length=MOST_FEATURES, description="Strengths, in the order of the features."
    )
    kind: list[Kind] = Field(default=[], max_length=MOST_FEATURES, description="What is done with each.")
    prompt: str = ""
    tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    temperature: float = Field(default=_TEMPERATURE, ge=0, le=_HOTTEST, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=LARGEST)
    analysis: str | None = Field(default=None, max_length=NAME_LENGTH, pattern=r"^[^\x00]*$")


def routes(site: Site) -> APIRouter:
    """The page, its twin, and the stream."""
    router = APIRouter(tags=["steer"])
    threads = Threads()

    @router.get("/d/{name:path}/steer", response_class=HTMLResponse, include_in_schema=False)
    def page(name: str, link: Annotated[SteeringLink, Query()]) -> str:
        record = site.store.dictionary(name)
        return site.render(
            "steer.html", dictionary=record, analysis_name=link.analysis, about=form_of(site, name, link)
        )

    @router.get(
        "/api/d/{name:path}/steer", summary="What a link to the steering page holds, with the features' numbers"
    )
    def twin(name: str, link: Annotated[SteeringLink, Query()]) -> dict[str, Any]:
        return form_of(site, name, link)

    @router.post(
        "/api/d/{name:path}/steer",
        summary="Write under changes, and without them, as events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Lines `data: {json}`: `state` while it waits, `plain` and `steered` token by token, "
                "`done` with the numbers, or `error`.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            }
        },
    )
    async def steer(name: str, asked: Steering) -> StreamingResponse:
        check_length(site, asked.prompt, "the prompt")
        tokens = number_of_tokens(site, asked.max_new_tokens)
        features = [change.feature for change in asked.changes]
        if len(set(features)) < len(features):
            raise ValueError("a feature is named twice; give each its whole strength at once")
        networks = await run_in_threadpool(prepared, name, features, asked.analysis)
        items = await threads.ask(
            networks.steer,
            name,
            asked.prompt,
            [Change(feature=each.feature, strength=each.strength, kind=each.kind) for each in asked.changes],
            max_new_tokens=tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            analysis=asked.analysis,
        )
        return await threads.events(items)

    def prepared(name: str, features: list[int], analysis: str | None) -> Live:
        """The networks, when the store has the features."""
        site.store.records(name, features, analysis=analysis)
        return live_of(site, name)

    return router


def form_of(site: Site, name: str, link: SteeringLink) -> dict[str, Any]:
    """The form that a link fills, what it may hold, and whether there is a model to ask."""
    check_length(site, link.prompt, "the prompt")
    tokens = number_of_tokens(site, link.tokens)
    if max(len(link.s), len(link.kind)) > len(link.f):
        raise ValueError(
            f"{len(link.f)} features (f), {len(link.s)} strengths (s), {len(link.kind)} kinds: give one each at most"
        )
    found = site.store.analysis(name, link.analysis)
    features = briefly(site.store, name, site.store.records(name, link.f, analysis=link.analysis))
    return {
        "dictionary": name,
        "analysis": found.name,
        "limits": {
            "characters": site.limits.prompt_characters,
            "new_tokens": site.limits.new_tokens,
            "features": MOST_FEATURES,
            "strength": LARGEST_STRENGTH,
            "temperature": _HOTTEST,
            "seed": LARGEST,
        },
        "live": state_of(site, name, steering=True),
        "features": [
            {**feature, "strength": _STRENGTH if strength is None else strength, "kind": kind or "add"}
            for feature, strength, kind in zip_longest(features, link.s, link.kind)
        ],
        "prompt": link.prompt,
        "tokens": tokens,
        "temperature": link.temperature,
        "seed": link.seed,
    }


def number_of_tokens(site: Site, wanted: int | None) -> int:
    """How many are to be written.

    Raises:
        ValueError: more than the server writes.
    """
    most = site.limits.new_tokens
    if wanted is not None and wanted > most:
        raise ValueError(f"{wanted:,} tokens are asked for, and at most {most:,} are written")
    return min(_NUM_TOKENS, most) if wanted is None else wanted
