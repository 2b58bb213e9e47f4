"""Atoms held against directions one by one: by cosine, and by how feature and projection rise and fall together.

n  atoms, d  width of what the dictionary rebuilds, c  directions, T  tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from saescope.dictionaries import Dictionary
from saescope.evaluation.concepts.cone_fit import Cone, Fit
from saescope.evaluation.sample import TokenSample, encode_sample


def axes(cone: Cone, unit: np.ndarray) -> dict[str, list[Any]]:
    """The largest cosine of each direction with one atom, and the same if no atom may serve two directions."""
    from scipy.optimize import linear_sum_assignment

    there = np.flatnonzero(cone.norms > 0)  # an atom of length 0 has no cosine
    if not len(there):
        return {key: [None] * len(unit) for key in ("axis", "axis_feature", "axis_one_to_one")}
    cosines = np.concatenate([products for _, products in cone.products(unit)], axis=1)[:, there]  # [c, n]
    which = cosines.argmax(1)
    own, atoms = linear_sum_assignment(cosines, maximize=True)
    matched: list[float | None] = [None] * len(unit)
    for direction, atom in zip(own, atoms, strict=True):
        matched[direction] = float(cosines[direction, atom])
    return {
        "axis": cosines[np.arange(len(unit)), which].tolist(),
        "axis_feature": there[which].tolist(),
        "axis_one_to_one": matched,
    }


def correlations(
    dictionary: Dictionary, cone: Cone, unit: np.ndarray, sample: TokenSample, fits_of: Mapping[str, list[Fit]]
) -> tuple[dict[str, list[Any]], bool]:
    """Pearson of the projection on each direction with the best feature, and with each combination of atoms."""
    codes = encode_sample(dictionary, sample.x).astype(np.float64)
    projection = sample.y.numpy().astype(np.float64) @ unit.T  # [T, c]
    projection -= projection.mean(0)
    norms = np.linalg.norm(projection, axis=0)
    mean, square = codes.sum(0) / len(sample), (codes**2).sum(0)
    spread = np.sqrt(np.maximum(square - len(sample) * mean**2, 0))
    varies = spread > 1e-7 * np.sqrt(square)  # else it is the rounding of a constant
    scale = np.where(varies[None], spread[None] * norms[:, None], 0)
    products = sparse.csr_array(codes.T) @ projection  # [n, c]
    pearson = np.divide(products.T, scale, out=np.full(scale.shape, -np.inf), where=scale > 0)
    which = pearson.argmax(1)
    best = pearson[np.arange(len(unit)), which]
    there = np.isfinite(best)
    columns: dict[str, list[Any]] = {
        "activation_correlation": [float(b) if ok else None for b, ok in zip(best, there, strict=True)],
        "activation_feature": [int(w) if ok else None for w, ok in zip(which, there, strict=True)],
    }
    for size, fits in fits_of.items():
        weights = np.stack([fit.dense(len(cone)) for fit in fits], axis=1) if fits else np.zeros((len(cone), 0))
        sums = codes @ (weights * cone.norms[:, None])  # [T, c]; activations as if atoms had length 1
        sums -= sums.mean(0)
        scale = np.linalg.norm(sums, axis=0) * norms
        columns[f"sum_correlation{size}"] = [
            float(a / b) if b > 0 else None for a, b in zip((sums * projection).sum(0), scale, strict=True)
        ]
    return columns, bool(codes.nnz) and float(codes.data.min()) < 0
