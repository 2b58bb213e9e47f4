"""The map of a dictionary: all its features as points, sent once as bytes; the browser draws, searches and chooses.

The bytes are little-endian columns of N numbers each, one after the other:

    uint32   index of the feature, rising
    float32  x
    float32  y
    float32  log10 of the density, NaN for features that never fire
    int32    cluster, -1 for none
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response

from saescope.store import Store
from saescope.web.features import feature_address
from saescope.web.site import Site

if TYPE_CHECKING:
    import numpy as np

    from saescope.store.map_points import MapPoints

_KEPT = 8  # maps in memory; one of 100,000 features takes 2 MB
_NAMED = 3  # features that say what a cluster is about


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A map as the page and its JSON need it.

    Attributes:
        content: the columns as bytes, in the form said above.
        summary: numbers and bounds, JSON values.
        clusters: of each cluster its number, its number of features, and the features nearest its middle.
    """

    content: bytes
    summary: dict[str, Any]
    clusters: tuple[tuple[int, int, tuple[int, ...]], ...]


class Maps:
    """Maps that were asked for lately. A map is made anew where its analysis was written again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[str, str, str], FeatureMap] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, analysis: str | None) -> FeatureMap:
        """The map of an analysis. Raises `NotInStoreError`."""
        found = self._store.analysis(name, analysis)
        key = (name, found.name, found.created_at)
        with self._lock:  # whoever asks for the same meanwhile waits for it
            made = self._kept.get(key)
            if made is None:
                points = self._store.map_points(name, analysis=found.name)
                key = (name, points.analysis.name, points.analysis.created_at)  # it may be written at this moment
                made = self._kept[key] = feature_map(points)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return made


def feature_map(points: MapPoints) -> FeatureMap:
    """What the browser is sent, of columns of the store."""
    import numpy as np

    fires = points.density > 0
    log_density = np.full(len(points), np.nan)
    np.log10(points.density, where=fires, out=log_density)
    most = np.finfo(np.float32).max  # a place beyond it, in a set made by others, would be no number
    columns = (
        points.index.astype("<u4"),
        points.x.clip(-most, most).astype("<f4"),
        points.y.clip(-most, most).astype("<f4"),
        log_density.astype("<f4"),
        points.cluster.astype("<i4"),
    )
    numbers, sizes = np.unique(points.cluster[points.cluster >= 0], return_counts=True)
    return FeatureMap(
        content=b"".join(column.tobytes() for column in columns),
        summary={
            "dictionary": points.dictionary.name,
            "analysis": points.analysis.name,
            "method": points.analysis.details.get("map"),
            "num_features": points.num_features,
            "num_points": len(points),
            "num_dead": int((~fires).sum()),
            "num_clusters": len(numbers),
            "bounds": {"x": _ends(points.x), "y": _ends(points.y), "log_density": _ends(log_density[fires])},
        },
        clusters=tuple(
            (number, size, _in_the_middle(points, number))
            for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True)
        ),
    )


def _ends(values: np.ndarray) -> list[float] | None:
    return [float(values.min()), float(values.max())] if len(values) else None


def _in_the_middle(points: MapPoints, cluster: int) -> tuple[int, ...]:
    """Its features nearest to its median place, since its mean may lie where nothing is."""
    import numpy as np

    here = np.flatnonzero(points.cluster == cluster)
    x, y = points.x[here], points.y[here]
    distance = np.hypot(x - np.median(x), y - np.median(y))
    return tuple(points.index[here[np.argsort(distance, kind="stable")[:_NAMED]]].tolist())


def routes(site: Site) -> APIRouter:
    """The page, its numbers, and the points."""
    router = APIRouter(tags=["map"])
    maps = Maps(site.store)
    chosen = Query(default=None, max_length=1000, description="An analysis by name; by default the newest.")

    @router.get("/d/{name:path}/map", response_class=HTMLResponse, include_in_schema=False)
    def page(name: str, analysis: str | None = chosen) -> str:
        found = maps.get(name, analysis)
        shown = {index for _, _, indices in found.clusters for index in indices}
        settings = site.store.analysis(name, analysis).details.get("settings")
        return site.render(
            "map.html",
            dictionary=site.store.dictionary(name),
            analysis_name=analysis,
            map=found.summary,
            clusters=found.clusters,
            feature_url=feature_address(site.links, name, analysis),
            labels=site.store.labels(name, shown, analysis=found.summary["analysis"]),
            was_refused=isinstance(settings, dict) and settings.get("map") == "none",
        )

    @router.get("/api/d/{name:path}/map", summary="How many points the map has, and where it ends")
    def summary(name: str, analysis: str | None = chosen) -> dict[str, Any]:
        return maps.get(name, analysis).summary

    @router.get(
        "/api/d/{name:path}/map/points",
        response_class=Response,
        summary="All points of the map",
        description="Little-endian columns of as many numbers as there are points, one after the other: uint32 index, "
        "float32 x, float32 y, float32 log10 of the density (NaN for those that never fire), int32 cluster (-1 for none).",
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def points(name: str, analysis: str | None = chosen) -> Response:
        return Response(maps.get(name, analysis).content, media_type="application/octet-stream")

    return router
