"""The list of a dictionary's features: a page that is whole without scripts, and what its scripts ask for beyond it.

The page and its JSON twin give one stretch of the list, from a cursor on. A script that shows the whole list behind one
scrollbar asks for the order of all indices once (four bytes each), and for rows where they come into view.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    FeatureRecord,
    NotInStoreError,
    StoreFailedError,
)
from saescope.web import columns
from saescope.web.list_query import MOST_ROWS, FeaturesQuery, Name, OrderQuery, WhichFeatures
from saescope.web.list_rows import NO_MARKS, Row, row_as_html, row_as_json
from saescope.web.live import BusyError
from saescope.web.site import Links, Site
from saescope.web.summaries import Summaries

MOST_INDICES = 500  # of rows asked for by number
_MOST_COMPARED = 10_000  # of the nearest explanations are held against the other conditions
_ANYWHERE = 987_654_321  # stands for an index while an address with a gap is made


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A stretch of a list."""

    rows: tuple[Row, ...]
    total: int
    """Features in the whole list."""
    next: str | None = None


def feature_address(links: Links, name: str, analysis: str | None) -> str:
    """Where the page of a feature is, with `{index}` in the place of its number."""
    return links.feature(name, _ANYWHERE, analysis=analysis).replace(str(_ANYWHERE), "{index}")


def list_page(
    site: Site,
    dictionary: DictionaryRecord,
    analysis: AnalysisRecord,
    listed: Listed,
    query: FeaturesQuery | None = None,
    *,
    analyses: Sequence[AnalysisRecord] = (),
    tags: dict[str, int] | None = None,
    problem: str | None = None,
) -> str:
    """The page of a list, for a server or (with the `links` of an export) for a disk.

    Args:
        analyses: all that the dictionary has, the oldest first.
        tags: how many features have each.
        problem: why there are no rows.
    """
    asked = query or FeaturesQuery()
    shown = list(columns.SHOWN)
    if asked.by_meaning:
        shown.insert(0, columns.NEARNESS)
    elif asked.sort in columns.NUMBERS and asked.sort != "index" and columns.NUMBERS[asked.sort] not in shown:
        shown.insert(0, columns.NUMBERS[asked.sort])
    given, name = asked.given(after=None, add=None), dictionary.name
    bounds = dict.fromkeys((*columns.USUAL, *asked.where, *([asked.add] if asked.add in columns.BOUNDED else ())))
    links = site.links
    address = feature_address(links, name, asked.analysis)
    return site.render(
        "features.html",
        dictionary=dictionary,
        analysis=analysis,
        analysis_name=asked.analysis,
        analyses=analyses,
        tags=tags or {},
        listed=listed,
        query=asked,
        problem=problem,
        shown=shown,
        columns=columns,
        rows=[
            row_as_html(
                row,
                shown,
                href=address.replace("{index}", str(row.record.index)),
                sort=asked.sort,
                with_star=links.is_live,
            )
            for row in listed.rows
        ],
        bounds=[columns.BOUNDED[key] for key in bounds],
        with_meaning=site.embed is not None and site.embedder is not None,
        address=lambda **changes: "?" + urlencode(_without_defaults(given | changes)),
        data={
            "name": name,
            "api": links.api(links.features(name)) if links.is_live else None,
            "feature_url": address,
            "random_url": links.page(name, "random") if links.is_live else None,
            "home_url": links.home(),
            "analysis": asked.analysis,
            "numbers": {key: [column.words, column.kind] for key, column in columns.BOUNDED.items()},
            "shown": [column.key for column in columns.SHOWN],
            "total": listed.total,
            "num_features": None if asked.is_filtered else listed.total,
            "is_start": asked.after is None,
        },
    )


def _without_defaults(given: dict[str, Any]) -> dict[str, Any]:
    standard = {name: field.default for name, field in FeaturesQuery.model_fields.items()}
    return {key: value for key, value in given.items() if value is not None and value != standard.get(key)}


class Lists:
    """Questions about lists, put to the store and to what searches by meaning."""

    def __init__(self, site: Site) -> None:
        self._site, self._store = site, site.store

    def stretch(self, name: str, query: FeaturesQuery) -> Listed:
        """The rows that a page shows."""
        if query.by_meaning:
            near = self._near(name, query)
            records = self._store.records(name, near, analysis=query.analysis)
            return Listed(rows=self._rows(name, records, near), total=len(near))
        with self._store.one_state():
            found = self._store.features(
                name,
                **self._which(query),
                sort=query.sort,
                descending=query.dir == "desc",
                limit=query.limit,
                after=query.after,
                with_total=True,
            )
            return Listed(rows=self._rows(name, found.features), total=found.total or 0, next=found.next)

    def order(self, name: str, query: WhichFeatures) -> list[int]:
        """All indices of a list."""
        if query.by_meaning:
            return list(self._near(name, query))
        return self._store.order(name, **self._which(query), sort=query.sort, descending=query.dir == "desc")

    def rows(self, name: str, indices: Sequence[int], analysis: str | None) -> tuple[Row, ...]:
        """Some rows, in the order of the indices."""
        with self._store.one_state():
            return self._rows(name, self._store.records(name, indices, analysis=analysis))

    def draw(self, name: str, query: WhichFeatures) -> int:
        """One feature of a list by lot."""
        if not query.is_filtered:
            return self._store.draw(name, analysis=query.analysis)
        indices = self.order(name, query)
        if not indices:
            raise NotInStoreError("no feature matches, so that none can be drawn")
        return random.choice(indices)

    def _rows(
        self, name: str, records: Sequence[FeatureRecord], near: dict[int, float] | None = None
    ) -> tuple[Row, ...]:
        marks = self._store.marks(name, [record.index for record in records])
        return tuple(
            Row(
                record=record,
                marks=marks.get(record.index, NO_MARKS),
                similarity=None if near is None else near[record.index],
            )
            for record in records
        )

    @staticmethod
    def _which(query: WhichFeatures) -> dict[str, Any]:
        return {
            "analysis": query.analysis,
            "where": query.where,
            "search": query.search,
            "tag": query.tag,
            "bookmarked": bool(query.bookmarked),
        }

    def _near(self, name: str, query: WhichFeatures) -> dict[int, float]:
        """Features whose explanations are nearest to the search, the nearest first, and how near."""
        embed, embedder = self._site.embed, self._site.embedder
        if embed is None or embedder is None:
            raise ValueError("this server searches by words only: it was started without an embedder")
        try:
            vector = embed([query.search])[0]
        except ValueError:
            raise
        except Exception as error:  # an endpoint of somebody else: whatever it says, it may work later
            raise BusyError(f"the embedder {embedder!r} gave no answer: {error}") from error
        others = query.model_copy(update={"search": None})
        allowed = set(self._store.order(name, **self._which(others))) if others.is_filtered else None
        # a feature may have several explanations, and the other conditions leave some out
        most = 4 * MOST_ROWS if allowed is None else _MOST_COMPARED
        near: dict[int, float] = {}
        for record, _, cosine in self._store.similar(name, vector, embedder, most, analysis=query.analysis):
            if allowed is None or record.index in allowed:
                near.setdefault(record.index, cosine)
            if len(near) == MOST_ROWS:
                break
        return near


def routes(site: Site) -> APIRouter:
    """The list, its JSON twin, the order of the whole list, rows by index, and a feature by lot."""
    router = APIRouter()
    lists = Lists(site)
    summaries = Summaries.of(site.store)

    @router.get("/d/{name:path}/random", include_in_schema=False)
    def random_page(name: str, query: Annotated[OrderQuery, Query()]) -> Response:
        index = lists.draw(name, query)
        address = site.links.feature(name, index, analysis=query.analysis)
        return RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})

    @router.get("/d/{name:path}", include_in_schema=False)
    def features_page(name: str, query: Annotated[FeaturesQuery, Query()]) -> Response:
        with site.store.one_state():
            dictionary, analyses, tags = site.store.dictionary(name), site.store.analyses(name), site.store.tags(name)
            analysis = next((each for each in analyses if each.name == query.analysis), None)
            if analysis is None:
                analysis = site.store.analysis(name, query.analysis)
        problem = None
        try:
            listed = lists.stretch(name, query)
        except (NotInStoreError, StoreFailedError):
            raise
        except ValueError as error:  # the form that asked for it stays, to be mended
            listed, problem = Listed(rows=(), total=0), str(error)
        page = list_page(
            site,
            dictionary,
            analysis,
            listed,
            query,
            analyses=analyses,
            tags=tags,
            problem=problem,
        )
        return HTMLResponse(page, 200 if problem is None else 422)

    @router.get("/api/d/{name:path}/random", tags=["features"], summary="A feature by lot")
    def random_index(name: str, query: Annotated[OrderQuery, Query()]) -> JSONResponse:
        return JSONResponse({"index": lists.draw(name, query)}, headers={"Cache-Control": "no-store"})

    @router.get("/api/d/{name:path}/features", tags=["features"], summary="A stretch of the list of features")
    def features(name: str, query: Annotated[FeaturesQuery, Query()]) -> JSONResponse:
        listed = lists.stretch(name, query)
        return JSONResponse(
            {"total": listed.total, "next": listed.next, "features": [row_as_json(row) for row in listed.rows]}
        )

    @router.get(
        "/api/d/{name:path}/order",
        tags=["features"],
        summary="The indices of the whole list, in order",
        response_class=Response,
        responses={
            200: {
                "content": {"application/octet-stream": {}},
                "description": "Little-endian uint32, one after another.",
            }
        },
    )
    def order(name: str, query: Annotated[OrderQuery, Query()]) -> Response:
        indices = array("I", lists.order(name, query))
        if sys.byteorder == "big":
            indices.byteswap()
        return Response(indices.tobytes(), media_type="application/octet-stream")

    @router.get("/api/d/{name:path}/rows", tags=["features"], summary="Some rows of the list, by index")
    def rows(
        name: str,
        index: Annotated[list[Annotated[int, Query(ge=0, lt=2**31)]], Query(min_length=1, max_length=MOST_INDICES)],
        analysis: Annotated[Name, Query()] = None,
    ) -> JSONResponse:
        found = lists.rows(name, index, analysis)
        return JSONResponse({"features": [row_as_json(row) for row in found]})

    @router.get("/api/d/{name:path}", tags=["features"], summary="A dictionary at a glance")
    def summary(name: str, analysis: Annotated[Name, Query()] = None) -> JSONResponse:
        return JSONResponse(asdict(summaries.get(name, analysis)))

    return router
