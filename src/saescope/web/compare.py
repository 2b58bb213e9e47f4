"""Two features side by side, or two dictionaries, with the features that match by their decoder rows.

A side is named ``NAME`` or ``NAME:INDEX``. Names may hold colons: what follows the last one is a feature if it is a whole
number and no dictionary has the full text as its name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from saescope.store import DictionaryRecord, FeaturePage, NotInStoreError, Store, Summary
from saescope.web import comparison
from saescope.web.asking import Threads
from saescope.web.features import feature_address
from saescope.web.live import NoModelError
from saescope.web.page_json import page_as_json
from saescope.web.site import Site
from saescope.web.summaries import Summaries

_KEPT = 8  # pairs of dictionaries whose matching is in memory
_MOST_ROWS = 500
_EXAMPLES = 8


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("the text holds the character \\x00, which no name has")
    return value


_Name = Annotated[str, Field(max_length=1000), AfterValidator(_text)]
_Given = Annotated[_Name | None, BeforeValidator(lambda value: value or None)]  # a field left empty asks for nothing


class Asked(BaseModel):
    """What is to be compared, as it stands in the address."""

    a: _Given = Field(None, description="A dictionary, or NAME:INDEX for one of its features.")
    b: _Given = Field(None, description="What to compare it with, in the same form.")
    a_feature: _Given = Field(None, description="Index of the feature, where `a` is the name of a dictionary.")
    b_feature: _Given = Field(None, description="The same of `b`.")
    analysis_a: _Given = Field(None, description="Name of an analysis of `a`; by default the newest.")
    analysis_b: _Given = Field(None, description="The same of `b`.")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    dictionary: DictionaryRecord
    index: int | None
    """None where the whole dictionary is meant."""
    analysis: str | None

    @property
    def name(self) -> str:
        return self.dictionary.name


def read_side(store: Store, text: str, feature: str | None, analysis: str | None) -> Side:
    """Which dictionary or feature a text means. Raises `NotInStoreError` with the nearest; `ValueError` for no number."""
    known = {record.name: record for record in store.dictionaries()}
    head, colon, tail = text.rpartition(":")
    if text not in known and colon and head in known and _is_number(tail):
        if feature is not None:
            raise ValueError(f"{text!r} names a feature already, so that feature {feature!r} of it means nothing")
        text, feature = head, tail
    if text not in known:
        store.dictionary(head if colon and _is_number(tail) else text)  # it says what is nearest
        raise NotInStoreError(f"the store holds no dictionary named {text!r}")
    record = known[text]
    if feature is None:
        return Side(dictionary=record, index=None, analysis=analysis)
    if not _is_number(feature):
        raise ValueError(f"the number of a feature is a whole number, not {feature!r}")
    if int(feature) >= record.d_sae:
        raise NotInStoreError(f"{text!r} has features 0 to {record.d_sae - 1}, so there is no feature {feature}")
    return Side(dictionary=record, index=int(feature), analysis=analysis)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class Comparing:
    """Questions about pairs, put to the store and to what knows the weights."""

    def __init__(self, site: Site) -> None:
        self._site, self._store = site, site.store
        self._summaries = Summaries(site.store)
        self._matched: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def sides(self, asked: Asked) -> tuple[Side, Side] | None:
        """Both sides; None where one is still to be chosen."""
        if asked.a is None or asked.b is None:
            return None
        a = read_side(self._store, asked.a, asked.a_feature, asked.analysis_a)
        b = read_side(self._store, asked.b, asked.b_feature, asked.analysis_b)
        if (a.index is None) != (b.index is None):
            feature, whole = (a, b) if b.index is None else (b, a)
            raise ValueError(
                "compare two features or two dictionaries: "
                f"feature {feature.index} of {feature.name!r} and all of {whole.name!r} are not alike"
            )
        return a, b

    def pages(self, sides: tuple[Side, Side]) -> tuple[FeaturePage, FeaturePage]:
        """Two features."""
        with self._store.one_state():
            a, b = (self._store.page(s.name, s.index, analysis=s.analysis) for s in sides if s.index is not None)
        return a, b

    def summaries(self, sides: tuple[Side, Side]) -> tuple[Summary, Summary]:
        """Two dictionaries."""
        a, b = (self._summaries.get(side.name, side.analysis) for side in sides)
        return a, b

    def why_not(self, a: DictionaryRecord, b: DictionaryRecord) -> str | None:
        """Why features of the two can not be matched; None where they can."""
        if a.d_in != b.d_in:
            return (
                f"Features can not be matched by their rows, since those of {a.name!r} have width {a.d_in} "
                f"and those of {b.name!r} {b.d_in}."
            )
        return self._site.absent(a.name) or self._site.absent(b.name)

    def matched(self, a: DictionaryRecord, b: DictionaryRecord) -> dict[str, Any]:
        """See `saescope.web.matching`; asked of the network once, then kept.

        Raises:
            ValueError: the rows have different widths. NoModelError, BusyError.
        """
        reason = self.why_not(a, b)
        if reason is not None:
            raise ValueError(reason) if a.d_in != b.d_in else NoModelError(reason)
        key = (repr(a), repr(b))
        with self._lock:
            if key in self._matched:
                self._matched.move_to_end(key)
                return self._matched[key]
        assert self._site.live is not None
        found = self._site.live.match(a.name, b.name)
        with self._lock:
            self._matched[key] = found
            while len(self._matched) > _KEPT:
                self._matched.popitem(last=False)
        return found

    def known(self, name: str, indices: Iterable[int]) -> dict[str, dict[int, Any]]:
        """Labels and densities of those features that were analysed; others are left out."""
        wanted = sorted(set(indices))
        try:
            records = self._store.records(name, wanted)
        except NotInStoreError:
            try:
                analysed = set(self._store.order(name, sort="index"))
            except NotInStoreError:  # no analysis at all
                analysed = set()
            records = self._store.records(name, [i for i in wanted if i in analysed]) if analysed else []
        return {
            "labels": {record.index: record.label.text for record in records if record.label is not None},
            "densities": {record.index: record.density for record in records},
        }


def features_as_json(a: FeaturePage, b: FeaturePage) -> dict[str, Any]:
    """Two features as JSON values: all of both, and what follows from the two together."""
    tokens = comparison.shared_tokens(a, b)
    return {
        "kind": "features",
        "a": page_as_json(a),
        "b": page_as_json(b),
        "differences": {row.key: row.difference for row in comparison.feature_numbers(a, b)},
        "neighbours": [asdict(near) for near in comparison.nearness(a, b)],
        "shared_tokens": {kind: sorted(some, key=str) for kind, some in tokens.items()},
        "shared_windows": [
            {
                "document": window.document,
                "offset": window.offset,
                "activations": [window.a.activation, window.b.activation],
                "num_both": window.num_both,
            }
            for window in comparison.shared_windows(a, b)
        ],
    }


def dictionaries_as_json(a: Summary, b: Summary, why_not: str | None) -> dict[str, Any]:
    """Two summaries as JSON values, and the evaluations that both have."""
    return {
        "kind": "dictionaries",
        "a": asdict(a),
        "b": asdict(b),
        "evaluations": [
            {**asdict(row), "difference": row.difference, "are_apart": row.are_apart}
            for row in comparison.shared_evaluations(a.evaluations, b.evaluations)
        ],
        "can_match": why_not is None,
        "why_not": why_not,
    }


def routes(site: Site) -> APIRouter:
    """The page, its JSON twin, and matched features."""
    router = APIRouter(tags=["compare"])
    comparing, threads = Comparing(site), Threads()

    def form(asked: Asked, problem: str | None = None) -> HTMLResponse:
        chosen: list[tuple[str | None, Any]] = []
        for text, feature in ((asked.a, asked.a_feature), (asked.b, asked.b_feature)):
            try:
                side = None if text is None else read_side(site.store, text, feature, None)
            except ValueError:
                if problem is None:
                    raise
                side = None
            chosen.append((text, feature) if side is None else (side.name, side.index))
        names = [record.name for record in site.store.dictionaries()]
        page = site.render("compare.html", names=names, chosen=chosen, problem=problem)
        return HTMLResponse(page, 200 if problem is None else 422)

    @router.get("/compare", response_class=HTMLResponse, include_in_schema=False)
    def page(asked: Annotated[Asked, Query()]) -> HTMLResponse:
        try:
            sides = comparing.sides(asked)
        except NotInStoreError:
            raise
        except ValueError as error:  # the form stays, to be mended
            return form(asked, str(error))
        if sides is None:
            return form(asked)
        a, b = sides
        if a.index is None:
            summaries = comparing.summaries(sides)
            made, numbers = comparison.facts(*summaries)
            return HTMLResponse(
                site.render(
                    "compare_dictionaries.html",
                    summaries=summaries,
                    analyses=(a.analysis, b.analysis),
                    made=made,
                    numbers=numbers,
                    evaluations=comparison.shared_evaluations(*(each.evaluations for each in summaries)),
                    charts=comparison.charts_on_one_axis([each.log_density for each in summaries]),
                    why_not=comparing.why_not(a.dictionary, b.dictionary),
                    addresses=[feature_address(site.links, side.name, side.analysis) for side in sides],
                )
            )
        pages = comparing.pages(sides)
        return HTMLResponse(
            site.render(
                "compare_features.html",
                pages=pages,
                analyses=(a.analysis, b.analysis),
                numbers=comparison.feature_numbers(*pages),
                nearness=comparison.nearness(*pages),
                kinds=comparison.NEIGHBOUR_KINDS,
                tokens=comparison.shared_tokens(*pages),
                token_key=comparison.token_key(*pages),
                windows=comparison.shared_windows(*pages),
                charts=comparison.charts_on_one_axis([each.detail.histogram for each in pages]),
                num_examples=_EXAMPLES,
                num_logits=comparison.NUM_LOGITS,
            )
        )

    @router.get("/api/compare", summary="Two features, or two dictionaries, side by side")
    def twin(asked: Annotated[Asked, Query()]) -> JSONResponse:
        sides = comparing.sides(asked)
        if sides is None:
            return JSONResponse({"kind": "choice", "dictionaries": [d.name for d in site.store.dictionaries()]})
        if sides[0].index is None:
            reason = comparing.why_not(sides[0].dictionary, sides[1].dictionary)
            return JSONResponse(dictionaries_as_json(*comparing.summaries(sides), reason))
        return JSONResponse(features_as_json(*comparing.pages(sides)))

    @router.get(
        "/api/compare/match",
        summary="Features of two dictionaries matched by their decoder rows",
        description="`pairs` are [a, b, cosine] of features that are each other's nearest above the cosine `bar`, the best "
        "first; `only_in_a` and `only_in_b` are [feature, nearest in the other, cosine], the least alike first. `offset` "
        "and `limit` hold for each of the three lists, whose whole lengths are in `counts`.",
    )
    async def match(
        a: Annotated[_Name, Query(description="Name of a dictionary.")],
        b: Annotated[_Name, Query(description="Name of another.")],
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_ROWS)] = 50,
    ) -> JSONResponse:
        return await threads.ask(matched, a, b, offset, limit)

    def matched(a: str, b: str, offset: int, limit: int) -> JSONResponse:
        both = [read_side(site.store, text, None, None) for text in (a, b)]
        for side in both:
            if side.index is not None:
                raise ValueError(
                    f"dictionaries are matched, not features: leave out the {side.index} after {side.name!r}"
                )
        found = comparing.matched(both[0].dictionary, both[1].dictionary)
        lists = {key: found[key][offset : offset + limit] for key in ("pairs", "only_in_a", "only_in_b")}
        ours = {row[0] for key in ("pairs", "only_in_a") for row in lists[key]} | {row[1] for row in lists["only_in_b"]}
        theirs = {row[1] for key in ("pairs", "only_in_a") for row in lists[key]} | {
            row[0] for row in lists["only_in_b"]
        }
        return JSONResponse(
            {
                **found,
                **lists,
                "a": comparing.known(both[0].name, ours),
                "b": comparing.known(both[1].name, theirs),
            }
        )

    return router
