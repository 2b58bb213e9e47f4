"""Trying a text: its tokens with the features that fire on them, on a page of its own and as a box on the feature's page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from saescope.store import FeatureRecord, Store
from saescope.store.errors import NotInStoreError
from saescope.store.records import DENSE
from saescope.web.asking import Threads, live_of, state_of
from saescope.web.live import Reading
from saescope.web.site import Site

LARGEST = 2**53 - 1
"""The largest number that JSON, JavaScript and every database hold exactly."""
NAME_LENGTH = 1000
Analysis = Annotated[
    str | None,
    Query(max_length=NAME_LENGTH, pattern=r"^[^\x00]*$", description="An analysis by name; by default the newest."),
]


class TextToRead(BaseModel):
    """What is to be read."""

    model_config = ConfigDict(extra="forbid")

    text: str
    feature: int | None = Field(default=None, ge=0, le=LARGEST, description="Ask for this one, not for the strongest.")
    num_per_token: int = Field(
        default=5, ge=1, le=32, description="Features that a token names, dense ones counted apart."
    )
    analysis: str | None = Field(default=None, max_length=NAME_LENGTH, pattern=r"^[^\x00]*$")


def routes(site: Site) -> APIRouter:
    """The page, its twin, and what answers it."""
    router = APIRouter(tags=["try"])
    threads = Threads()

    def shown(name: str, feature: int | None, analysis: str | None) -> dict[str, Any]:
        found = site.store.analysis(name, analysis)
        asked = []
        if feature is not None:
            asked = briefly(site.store, name, site.store.records(name, [feature], analysis=analysis))
        return {
            "dictionary": name,
            "analysis": found.name,
            "limits": {"characters": site.limits.prompt_characters},
            "live": state_of(site, name),
            "feature": asked[0] if asked else None,
        }

    @router.get("/d/{name:path}/try", response_class=HTMLResponse, include_in_schema=False)
    def page(name: str, text: str = "", analysis: Analysis = None) -> str:
        about = shown(name, None, analysis)
        return site.render(
            "try.html",
            dictionary=site.store.dictionary(name),
            analysis_name=analysis,
            about=about,
            text=text[: site.limits.prompt_characters],
        )

    @router.get("/api/d/{name:path}/try", summary="What can be tried on a dictionary, and the numbers of one feature")
    def twin(
        name: str,
        feature: Annotated[int | None, Query(ge=0, le=LARGEST)] = None,
        analysis: Analysis = None,
    ) -> dict[str, Any]:
        return shown(name, feature, analysis)

    @router.get("/api/d/{name:path}/live", summary="Whether the model of a dictionary is there, loading, or busy")
    def live(name: str, steering: bool = False) -> dict[str, Any]:
        return state_of(site, name, steering=steering)

    @router.post(
        "/api/d/{name:path}/activations", summary="Read a text: its pieces, and the features that fire on them"
    )
    async def activations(name: str, asked: TextToRead) -> dict[str, Any]:
        check_length(site, asked.text, "the text")
        networks, apart = await run_in_threadpool(prepared, name, asked)
        reading = await threads.ask(
            networks.read_text,
            name,
            asked.text,
            feature=asked.feature,
            num_per_token=asked.num_per_token,
            apart=apart,
            analysis=asked.analysis,
        )
        return await run_in_threadpool(reading_as_json, site.store, name, reading, asked)

    def prepared(name: str, asked: TextToRead) -> tuple[Any, frozenset[int]]:
        """What is known before the model is asked: it is there, and so is the feature; and the dense features."""
        networks = live_of(site, name)
        if asked.feature is not None:
            site.store.records(name, [asked.feature], analysis=asked.analysis)
            return networks, frozenset()
        return networks, frozenset(dense_features(site.store, name, asked.analysis))

    return router


def check_length(site: Site, text: str, what: str) -> None:
    """Refuses, with 413, a text that is longer than the server reads."""
    most = site.limits.prompt_characters
    if len(text) > most:
        raise HTTPException(413, f"{what} has {len(text):,} characters, and at most {most:,} are read")


def dense_features(store: Store, name: str, analysis: str | None) -> list[int]:
    """Features that fire on more than a tenth of the tokens; there can be few."""
    return store.order(name, analysis=analysis, where={"density": (math.nextafter(DENSE, 1), None)})


def reading_as_json(store: Store, name: str, reading: Reading, asked: TextToRead) -> dict[str, Any]:
    """A reading as JSON values, with labels and numbers of the features that it names."""
    named = {index for piece in reading.pieces for index, _ in piece.features}
    named |= {index for index, _, _ in reading.features}
    named |= set() if asked.feature is None else {asked.feature}
    return {
        "dictionary": name,
        "analysis": store.analysis(name, asked.analysis).name,
        "feature": asked.feature,
        "num_tokens": reading.num_tokens,
        "pieces": [asdict(piece) for piece in reading.pieces],
        "features": [
            {"index": index, "activation": activation, "num_tokens": number}
            for index, activation, number in reading.features
        ],
        "named": {
            str(each["index"]): each for each in briefly(store, name, _known(store, name, named, asked.analysis))
        },
        "details": reading.details,
    }


def _known(store: Store, name: str, indices: Iterable[int], analysis: str | None) -> list[FeatureRecord]:
    """Those of the features that were analysed; a set made by others may hold a few of a dictionary's."""
    wanted = sorted(indices)
    try:
        return store.records(name, wanted, analysis=analysis)
    except NotInStoreError:
        there = set(store.order(name, analysis=analysis, sort="index"))
        return store.records(name, [index for index in wanted if index in there], analysis=analysis)


def briefly(store: Store, name: str, records: Sequence[FeatureRecord]) -> list[dict[str, Any]]:
    """Features in a few words and numbers; one without a label is named by its best explanation."""
    marks = store.marks(name, [record.index for record in records if record.label is None])
    said = {index: mark.explanation.text for index, mark in marks.items() if mark.explanation is not None}
    return [
        {
            "index": record.index,
            "label": record.label.text if record.label is not None else said.get(record.index),
            "density": record.density,
            "is_dense": record.is_dense,
            "max_activation": record.max_activation,
        }
        for record in records
    ]
