"""A map of a dictionary: decoder rows as points of a plane, those of like direction near each other, and their clusters.

Two ways to make one. **UMAP** (McInnes, Healy & Melville 2018, arXiv 1802.03426; ``pip install saescope[map]``) keeps
neighbours together: islands mean something, distances between them do not. It is given the exact nearest rows by cosine,
which saves it most of its time. **PCA** shows the two directions in which rows of norm 1 differ most: distances are true,
but two dimensions of hundreds tell little.

Clusters do not come from the map: they are those of k-means on rows of norm 1, in all dimensions, and the same whichever way
the map is made. k-means puts every row somewhere; that a cluster exists does not say that its rows are close.

N  rows (features), d  width.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saescope.analysis.neighbours import NearestRows, nearest_rows

MOST_FOR_UMAP = 1 << 16  # rows; beyond them "auto" means PCA
LEAST_FOR_UMAP = 10  # rows; fewer have nothing to unfold
MOST_CLUSTERS = 100
LEAST_IN_CLUSTER = 3  # rows; fewer are no cluster

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class FeatureMap:
    """Where each row lies on the map. A row of zeros has no direction, so it has no place (nan) and no cluster."""

    x: np.ndarray  # float64, [N]
    y: np.ndarray  # float64, [N]
    cluster: np.ndarray  # int64, [N]: 0 is the largest; -1 for rows in none
    method: Literal["umap", "pca"]
    """How it was made in the end."""


@torch.no_grad()
def feature_map(
    rows: Tensor,
    *,
    method: Literal["auto", "umap", "pca"] = "auto",
    seed: int = 0,
    num_neighbours: int = 15,
    num_clusters: int | None = None,
    nearest: NearestRows | None = None,
) -> FeatureMap:
    """A map of decoder rows, ``[N, d]``, in two dimensions, with clusters. The same seed gives the same map.

    "auto" is UMAP where it is installed, PCA where it is not and for more than 65,536 rows, with which UMAP would take more
    than about a minute on two cores (24 s at 65,536 rows and 6 s at 16,384, beside some 15 s of compiling once per process
    and the search for neighbours). UMAP runs on one core, as it must to give the same map twice. Fewer than 10 rows, and
    rows that lie on one line, are drawn by PCA whatever was asked for: ``method`` of the result says how it was made.

    Args:
        rows: decoder rows; only their directions count.
        method: "auto", "umap" or "pca".
        seed: of UMAP and k-means; PCA needs none.
        num_neighbours: of each row, itself included, that UMAP keeps together.
        num_clusters: of k-means; by default the root of half the number of rows, at most 100. Clusters of fewer than three
            rows are dissolved.
        nearest: the nearest rows of ``rows``, if they are known already: at least ``num_neighbours - 1`` of them, or they
            are computed again.

    Raises:
        ValueError: "umap" was asked for and is not installed, an unknown method, NaN or infinity, ``num_neighbours`` below
            2, ``num_clusters`` below 1, ``nearest`` of other rows.
    """
    if method not in ("auto", "umap", "pca"):
        raise ValueError(f"a map is made by 'umap', 'pca' or 'auto', not by {method!r}")
    if num_neighbours < 2 or (num_clusters is not None and num_clusters < 1):
        raise ValueError(
            f"num_neighbours must be at least 2 and num_clusters at least 1, got {num_neighbours} and {num_clusters}"
        )
    if method == "umap" and find_spec("umap") is None:
        raise ValueError("a map by UMAP needs umap-learn: pip install 'saescope[map]', or choose the method 'pca'")
    if nearest is not None and len(nearest.indices) != len(rows):
        raise ValueError(f"nearest rows of {len(nearest.indices)} rows do not fit {len(rows)} rows")

    norms = _norms(rows)
    there = np.flatnonzero(norms > 0)
    unit = _unit(rows, norms, there)  # [n, d], without rows of zeros
    places = _principal_plane(unit)  # [n, 2]
    used: Literal["umap", "pca"] = "pca"
    wanted = method == "umap" or (method == "auto" and len(unit) <= MOST_FOR_UMAP and find_spec("umap") is not None)
    if wanted and len(unit) >= LEAST_FOR_UMAP and _is_plane(places):
        num_near = min(num_neighbours, len(unit)) - 1
        if nearest is None or nearest.indices.shape[1] < num_near:
            nearest = nearest_rows(rows, num_near)
        number = np.cumsum(norms > 0) - 1  # among the rows that are there
        near, cosines = number[nearest.indices[there, :num_near]], nearest.cosines[there, :num_near]
        places, used = _unfolded(unit, places, near, cosines, seed), "umap"

    x, y = np.full((2, len(norms)), np.nan)
    cluster = np.full(len(norms), -1, dtype=np.int64)
    x[there], y[there] = places.T
    cluster[there] = _clusters(unit, num_clusters, seed)
    return FeatureMap(x, y, cluster, used)


def _norms(rows: Tensor) -> np.ndarray:
    if rows.ndim != 2:
        raise ValueError(f"expected a matrix of rows [N, d], got the shape {list(rows.shape)}")
    norms = [chunk.double().norm(dim=-1).cpu().numpy() for chunk in rows.detach().split(_CHUNK_ROWS)]
    joined = np.concatenate(norms) if len(rows) else np.empty(0)
    if not np.isfinite(joined).all():
        bad = int(np.flatnonzero(~np.isfinite(joined))[0])
        raise ValueError(f"row {bad} holds NaN or infinity, so it has no direction; check the dictionary")
    return joined


def _unit(rows: Tensor, norms: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float32, those of zeros left out."""
    unit = np.empty((len(there), rows.shape[1]), dtype=np.float32)
    for begin in range(0, len(there), _CHUNK_ROWS):
        chunk = there[begin : begin + _CHUNK_ROWS]
        picked = rows.detach()[torch.from_numpy(chunk).to(rows.device)].double().cpu().numpy()
        unit[begin : begin + len(chunk)] = picked / norms[chunk, None]
    return unit


def _principal_plane(unit: np.ndarray) -> np.ndarray:
    """The coordinates of rows along the two directions of largest variance, ``[n, 2]``, centred.

    Each axis points to where its farthest row lies (the first of equally far ones, with room for rounding).
    """
    from scipy.linalg import eigh

    num_rows, width = unit.shape
    if num_rows < 2:
        return np.zeros((num_rows, 2))
    mean = unit.mean(0, dtype=np.float64)
    if num_rows <= width:
        centred = unit - mean
        products = centred @ centred.T
    else:
        products = np.zeros((width, width))
        for begin in range(0, num_rows, _CHUNK_ROWS):
            centred = unit[begin : begin + _CHUNK_ROWS] - mean
            products += centred.T @ centred
    size = len(products)
    values, vectors = eigh(products, subset_by_index=[max(0, size - 2), size - 1])
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # one row per direction where rows are few: the vectors are the coordinates already, but for their scale
    plane = vectors * np.sqrt(values) if num_rows <= width else unit @ vectors - mean @ vectors
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    far = np.abs(plane)
    farthest = (far >= far.max(0) * (1 - 1e-6)).argmax(0)
    return plane * np.where(plane[farthest, [0, 1]] < 0, -1.0, 1.0)


def _is_plane(places: np.ndarray) -> bool:
    """Whether rows differ in more than one direction."""
    wide, high = np.ptp(places, axis=0)
    return bool(high > 1e-6 * wide)


def _unfolded(unit: np.ndarray, start: np.ndarray, near: np.ndarray, cosines: np.ndarray, seed: int) -> np.ndarray:
    """UMAP of the rows, from their places in the principal plane, by the exact nearest rows and their cosines."""
    itself = np.arange(len(unit))[:, None]
    indices = np.concatenate([itself, near], axis=1).astype(np.int32)
    distances = np.concatenate([np.zeros(itself.shape), 1 - cosines], axis=1).astype(np.float32)
    with warnings.catch_warnings():
        # of TensorFlow that is not there, and of new points that could not be placed
        warnings.simplefilter("ignore")
        umap: Any = import_module("umap")
        reducer = umap.UMAP(
            n_neighbors=indices.shape[1],
            metric="cosine",
            init=start.astype(np.float32),
            precomputed_knn=(indices, distances),
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(reducer.fit_transform(unit), dtype=np.float64)


def _clusters(unit: np.ndarray, num_clusters: int | None, seed: int) -> np.ndarray:
    """Numbers of k-means clusters, the largest first, those of one size by their first row; -1 for rows in small ones."""
    from sklearn.cluster import KMeans

    threadpool_limits = import_module("threadpoolctl").threadpool_limits  # comes with scikit-learn
    num_rows = len(unit)
    if num_rows < LEAST_IN_CLUSTER:
        return np.full(num_rows, -1)
    if num_clusters is None:
        num_clusters = min(MOST_CLUSTERS, max(1, round((num_rows / 2) ** 0.5)))
    means = KMeans(min(num_clusters, num_rows), n_init=1, max_iter=100, random_state=seed)
    # threads would add up a cluster in the order in which they happen to finish
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer distinct rows than clusters
        found = means.fit_predict(unit)
    _, first, found, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return np.where(sizes[found] >= LEAST_IN_CLUSTER, rank[found], -1)
