"""One feature: what it fires on, what it does, what is said of it. The page, its JSON twin, and Markdown of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse, Response
from pydantic import AfterValidator

from saescope.store import FeaturePage
from saescope.web.example_html import REACHES, is_cut
from saescope.web.feature_charts import bars, position_bars
from saescope.web.feature_groups import BAND_WORDS, band_kinds, groups_of
from saescope.web.feature_lists import logit_items, neighbour_items
from saescope.web.markdown_card import feature_markdown
from saescope.web.page_json import page_as_json
from saescope.web.site import Site

LARGEST = 2**53
"""Numbers below it are the same in JavaScript; databases hold some more."""


def holdable(text: str) -> str:
    """A text that a database can be asked for, or hold.

    Raises:
        ValueError: it holds NUL.
    """
    if "\0" in text:
        raise ValueError("the text holds the character \\x00, which no database keeps")
    return text


Name = Annotated[str, Path(max_length=1000, description="of the dictionary"), AfterValidator(holdable)]
Index = Annotated[int, Path(ge=0, lt=LARGEST, description="of the feature")]
Analysis = Annotated[
    str, Query(max_length=1000, description="name of an analysis; the newest without it"), AfterValidator(holdable)
]
Context = Literal["5", "16", "48", "whole"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page's switches are set to. They act in the browser; the address keeps them from feature to feature."""

    context: Context = "16"
    """Tokens on either side of the peak."""
    breaks: bool = False
    """Line ends break lines."""
    bands: Literal["quantile", "width"] = "quantile"
    scale: Literal["log", "linear"] = "log"

    def query(self) -> dict[str, Any]:
        """For an address: what differs from the standard."""
        said = {name: value for name, value in vars(self).items() if value != getattr(_STANDARD, name)}
        return {name: int(value) if value is True else value for name, value in said.items()}


_STANDARD = View()


def routes(site: Site) -> APIRouter:
    """The routes of this part."""
    router = APIRouter()

    def read(name: str, index: int, analysis: str | None) -> tuple[FeaturePage, dict[int, str]]:
        with site.store.one_state():
            found = site.store.page(name, index, analysis=analysis)
            return found, site.store.labels(name, neighbours_of(found), analysis=analysis)

    @router.get("/d/{name:path}/f/{index:int}", include_in_schema=False)
    def page(
        name: Name,
        index: Index,
        analysis: Analysis = "",
        embed: Annotated[int, Query(ge=0, le=1)] = 0,
        context: Context = "16",
        breaks: bool = False,
        bands: Literal["quantile", "width"] = "quantile",
        scale: Literal["log", "linear"] = "log",
    ) -> HTMLResponse:
        found, labels = read(name, index, analysis or None)
        html = render_feature(
            site,
            found,
            labels,
            embed=bool(embed),
            analysis_name=analysis or None,
            previous=found.previous,
            following=found.following,
            view=View(context=context, breaks=breaks, bands=bands, scale=scale),
        )
        return HTMLResponse(html)

    @router.get(
        "/api/d/{name:path}/f/{index:int}",
        response_class=Response,
        responses={200: {"content": {"application/json": {}, "text/markdown": {}}}},
        summary="One feature with everything that its page shows",
        tags=["features"],
    )
    def twin(
        name: Name, index: Index, analysis: Analysis = "", format: Literal["json", "markdown"] = "json"
    ) -> Response:
        if format == "markdown":
            return Response(
                feature_markdown(*read(name, index, analysis or None)), media_type="text/markdown; charset=utf-8"
            )
        found = site.store.page(name, index, analysis=analysis or None)
        return Response(_as_json(page_as_json(found)), media_type="application/json")

    return router


def render_feature(
    site: Site,
    page: FeaturePage,
    labels: dict[int, str],
    *,
    embed: bool = False,
    analysis_name: str | None = None,
    previous: int | None = None,
    following: int | None = None,
    view: View = _STANDARD,
    whole_windows: bool = False,
) -> str:
    """The page of a feature, on a server or for a file.

    Args:
        labels: words for the features that `neighbours_of` names, by index.
        embed: the card alone, to stand in a frame.
        analysis_name: the analysis that links keep; None for the newest.
        previous, following: the features that the page leads to.
        whole_windows: send windows of any length to their ends, as ``context=whole`` does.
    """
    whole_windows = whole_windows or view.context == "whole"
    feature, detail = page.feature, page.detail
    return site.render(
        "feature.html",
        dictionary=page.dictionary,
        page=page,
        feature=feature,
        detail=detail,
        labels=labels,
        embed=embed,
        analysis_name=analysis_name,
        previous=previous,
        following=following,
        view=view,
        query={"analysis": analysis_name, **view.query()},
        logit_items=logit_items,
        neighbour_items=neighbour_items,
        groups=groups_of(page, whole_windows=whole_windows, only_top=embed),
        band_kinds=[(kind, BAND_WORDS[kind]) for kind in band_kinds(page)],
        reaches=[str(reach) for reach in REACHES],
        is_cut=not whole_windows and any(map(is_cut, page.all_examples)),
        activations=bars(detail.histogram, "the activations"),
        effects=bars(detail.logit_histogram, "the effects on all logits"),
        positions=position_bars(detail.positions, page.analysis.context_size),
        markdown=None if site.links.is_live else feature_markdown(page, labels),
    )


def neighbours_of(page: FeaturePage) -> list[int]:
    """The features that the page names, whose labels it shows."""
    return sorted({neighbour.feature for near in page.detail.neighbours.values() for neighbour in near})


def _as_json(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
