"""Concept cones: can the dictionary write the directions of known concepts, and with how few of its atoms?

Features fire with activations of 0 or more, so that a dictionary writes the directions in the cone of its decoder rows. A
concept's coverage is the squared cosine of the angle between its direction and that cone. A cone of more than about 2 d
atoms in d dimensions is everything, even if the atoms are random (Wendel 1962), and then coverage by all atoms says
nothing: what counts is coverage by 1, 2, 4, 8 atoms, beside that by as many of a random dictionary, of the principal
components with both signs, and beside directions of concepts whose labels were shuffled.

After Rocchi--Henry, Fel and Franchi 2025 (arXiv 2512.07355), who ask whether the concepts of a bottleneck model lie in the
cone of a dictionary. The formulas here are our own choice; theirs are not published.

n  atoms, d  width of what the dictionary rebuilds, c  directions, T  tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from saescope.dictionaries import Dictionary
from saescope.dictionaries.normalization import Whitening
from saescope.evaluation.concepts.cone_correlations import axes, correlations
from saescope.evaluation.concepts.cone_fit import Cone, Fit
from saescope.evaluation.concepts.directions import ConceptDirections, concept_directions
from saescope.evaluation.intervals import Interval, bootstrap
from saescope.evaluation.results import Better, Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

_USED = 1e-6  # weight on a unit atom that counts, in the coverage by all


@dataclass(frozen=True, kw_only=True)
class ConeConfig:
    """How directions are held against the cone of a dictionary."""

    num_atoms: tuple[int, ...] = (1, 2, 4, 8)
    """Sizes of the small combinations."""
    num_random: int = 3
    """Random dictionaries of the same size, each with its own seed."""
    direction: Literal["probe", "difference"] = "probe"
    """In :func:`concept_cones`: weights of a linear probe, or difference of means."""
    seed: int = 0
    """Of random dictionaries, shuffled labels and intervals."""

    def __post_init__(self) -> None:
        if not self.num_atoms or min(self.num_atoms) < 1 or sorted(set(self.num_atoms)) != list(self.num_atoms):
            raise ValueError(f"num_atoms must rise from 1 or more, got {self.num_atoms}")
        if self.num_random < 1:
            raise ValueError(f"num_random must be at least 1, got {self.num_random}: coverage means nothing alone")
        if self.direction not in ("probe", "difference"):
            raise ValueError(f"direction must be 'probe' or 'difference', got {self.direction!r}")


@dataclass(frozen=True, eq=False)
class _Coverage:
    """Combinations for directions in one cone: of few atoms, by their number, and of all."""

    few: dict[int, list[Fit]]
    all: list[Fit]

    @classmethod
    def of(cls, cone: Cone, directions: np.ndarray, config: ConeConfig) -> _Coverage:
        return cls(cone.pursuit(directions, config.num_atoms), cone.nearest(directions))

    def values(self) -> np.ndarray:
        """``[sizes + 1, c]``, all atoms last."""
        return np.array([[fit.coverage for fit in fits] for fits in (*self.few.values(), self.all)])


def cone_containment(
    directions: np.ndarray,
    dictionary: Dictionary,
    config: ConeConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    sample: TokenSample | None = None,
    shuffled: np.ndarray | None = None,
) -> StudyResult:
    """How far directions lie in the cone of the decoder rows.

    Args:
        directions: ``[c, d_out]``, of any length, in the space of what the dictionary rebuilds.
        names: of the directions; else "0", "1", ...
        sample: tokens on which projections on the directions are held against feature activations, and whose principal
            components are another baseline.
        shuffled: directions got in the same way from labels that mean nothing, ``[c', d_out]``.

    Returns:
        The study "cones", with a row for every direction in the table "concepts".

    Raises:
        ValueError: directions of another width, or that are not numbers; a decoder with NaN.
    """
    config, began = config or ConeConfig(), time.perf_counter()
    names = [str(number) for number in range(len(directions))] if names is None else list(names)
    cone = Cone(decoder_directions(dictionary))
    lengths = _checked(directions, cone.rows.shape[1], "directions")
    if len(names) != len(directions):
        raise ValueError(f"there are {len(directions)} directions and {len(names)} names")
    there = np.flatnonzero(lengths > 0)
    unit = directions[there].astype(np.float64) / lengths[there, None]
    generator = np.random.default_rng(config.seed)
    coverage = _Coverage.of(cone, unit, config)
    others = (Cone(generator.standard_normal(cone.rows.shape, dtype=np.float32)) for _ in range(config.num_random))
    random = [_Coverage.of(other, unit, config).values() for other in others]
    values = {"": coverage.values(), "random_": np.mean(random, axis=0)}
    if sample is not None:
        main = _principal_axes(sample)
        values["pca_"] = _few(Cone(np.concatenate([main, -main])), unit, config)
    if shuffled is not None:
        shuffled_lengths = _checked(shuffled, cone.rows.shape[1], "shuffled directions")
        kept = shuffled_lengths > 0
        other = shuffled[kept].astype(np.float64) / shuffled_lengths[kept, None]
        values["shuffled_"] = _Coverage.of(cone, other, config).values()

    columns: dict[str, list[Any]] = {}
    for kind, of_kind in values.items():
        for size, row in zip(_sizes(config), of_kind, strict=False):
            if kind != "shuffled_":  # its rows are other directions
                columns[f"{kind}coverage{size}"] = row.tolist()
    columns["num_atoms"] = [int((fit.weights > _USED).sum()) for fit in coverage.all]
    columns["participation"] = [fit.participation for fit in coverage.all]
    columns |= axes(cone, unit)
    notes = [
        f"a cone of more than about 2 d = {2 * unit.shape[1]:,} atoms is the whole space even if they are random: of "
        f"{len(cone):,} atoms, look at coverage by few of them, and at the random dictionary beside it",
        "combinations of 2 or more atoms are found greedily: their coverage is a lower bound",
        "where all atoms cover a direction whole, many combinations do: num_atoms, participation and sum_correlation are "
        "then those of the one that was found",
    ]
    if sample is not None:
        fits_of = dict(zip(_sizes(config), (*coverage.few.values(), coverage.all), strict=True))
        of_sample, signed = correlations(dictionary, cone, unit, sample, fits_of)
        columns |= of_sample
        if signed:
            notes.append("this dictionary gives negative activations as well, which a cone does not allow for")
    table = _rows(names, there, columns)
    notes += [f"{row['concept']} is left out: {row['reason']}" for row in table if row["reason"]]
    return StudyResult(
        study="cones",
        numbers=_numbers(values, columns, config),
        tables={"concepts": table},
        curves={
            "coverage": {
                "num_atoms": [float(size) for size in config.num_atoms],
                **{f"{kind}coverage": _means(of_kind[: len(config.num_atoms)]) for kind, of_kind in values.items()},
            }
        },
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


def concept_cones(
    dictionary: Dictionary,
    sample: TokenSample,
    labels: TokenLabels,
    config: ConeConfig | None = None,
    *,
    directions: tuple[ConceptDirections, ConceptDirections] | None = None,
) -> StudyResult:
    """:func:`cone_containment` of the directions of known concepts, with shuffled labels as a control.

    Concepts that have no direction are listed, with the reason.

    Args:
        directions: what :func:`concept_directions` gives for this sample, without and with a ``shuffle_seed``: made once,
            they serve every dictionary. Fitting the probes takes longer than all else.

    Raises:
        ValueError: labels of other tokens; a sample and a dictionary that do not fit.
    """
    config, began = config or ConeConfig(), time.perf_counter()
    labels.check(sample)
    found, noise = directions or (
        concept_directions(sample, labels),
        concept_directions(sample, labels, shuffle_seed=config.seed),
    )
    result = cone_containment(
        getattr(found, config.direction),
        dictionary,
        config,
        names=found.names,
        sample=sample,
        shuffled=getattr(noise, config.direction),
    )
    columns = list(result.tables["concepts"][0]) if result.tables["concepts"] else ["concept", "reason"]
    missing = [{**dict.fromkeys(columns), "concept": n, "reason": why} for n, why in found.skipped.items()]
    notes = [f"{name} is left out: {why}" for name, why in found.skipped.items()]
    if config.direction == "probe":
        notes.append("directions are the weights of linear probes, along which a concept is read")
        notes += [f"the probe of {name} was stopped before it converged" for name in found.unconverged]
    else:
        notes.append("directions are differences of means")
    return replace(
        result.with_notes(notes),
        tables={"concepts": result.tables["concepts"] + missing},
        seconds=time.perf_counter() - began,
    )


def _few(cone: Cone, unit: np.ndarray, config: ConeConfig) -> np.ndarray:
    """Coverage by few atoms alone, ``[sizes, c]``: all principal components with both signs cover everything."""
    return np.array([[fit.coverage for fit in fits] for fits in cone.pursuit(unit, config.num_atoms).values()])


@torch.no_grad()
def decoder_directions(dictionary: Dictionary) -> np.ndarray:
    """What each feature writes into the activations, ``[n, d_out]``; their own space where they are whitened first."""
    rows = dictionary.W_dec.detach()
    normalization = dictionary.input_normalization
    if isinstance(normalization, Whitening):
        rows = rows @ normalization.inverse
    return rows.float().cpu().numpy()


def _checked(directions: np.ndarray, width: int, what: str) -> np.ndarray:
    """Lengths of the directions."""
    if directions.ndim != 2 or directions.shape[1] != width:
        raise ValueError(f"{what} must be [concepts, {width}], as wide as the decoder, got {list(directions.shape)}")
    if not np.isfinite(directions).all():
        raise ValueError(f"{what} must be finite, got NaN or infinity")
    return np.linalg.norm(directions.astype(np.float64), axis=1)


def _principal_axes(sample: TokenSample) -> np.ndarray:
    y = sample.y.numpy().astype(np.float64)
    y -= y.mean(0)
    return np.linalg.eigh(y.T @ y)[1].T


def _sizes(config: ConeConfig) -> list[str]:
    return [*(f"_{size}" for size in config.num_atoms), ""]


def _rows(names: Sequence[str], there: np.ndarray, columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    place = {int(number): k for k, number in enumerate(there)}
    return [
        {
            "concept": name,
            **{key: column[place[number]] if number in place else None for key, column in columns.items()},
            "reason": "" if number in place else "its direction has length 0",
        }
        for number, name in enumerate(names)
    ]


def _means(values: np.ndarray) -> list[float | None]:
    """Over directions, ``[sizes + 1, c]`` to one each."""
    return values.mean(1).tolist() if values.shape[1] else [None] * len(values)


def _numbers(values: dict[str, np.ndarray], columns: dict[str, list[Any]], config: ConeConfig) -> tuple[Number, ...]:
    def number(name: str, data: Sequence[float | None], better: Better, variant: str) -> Number:
        known = np.array([value for value in data if value is not None], dtype=np.float64)
        low, high = _interval(known, config.seed) or (None, None)
        value = float(known.mean()) if len(known) else None
        why = "it is not defined for any direction" if len(data) else "there is no direction"
        variant = f"{variant}; interval over directions"
        return Number.of(name, value, reason=why, low=low, high=high, better=better, variant=variant)

    of = {
        "": "decoder rows",
        "random_": f"mean of {config.num_random} random dictionaries of the same size",
        "pca_": "principal components with both signs",
        "shuffled_": "decoder rows, directions of shuffled labels",
    }
    numbers = []
    better: Better
    for kind, of_kind in values.items():
        for size, row in zip(_sizes(config), of_kind, strict=False):
            atoms = f"{size[1:]} at most" if size else "all atoms, saturates"
            better = "higher" if size and not kind else ""
            numbers.append(number(f"{kind}coverage{size}", row.tolist(), better, f"{of[kind]}, {atoms}"))
    variants: dict[str, tuple[Better, str]] = {
        "num_atoms": ("", f"weights above {_USED:g} in the nearest point of the whole cone"),
        "participation": ("", "(sum of weights)^2 / sum of squares, whole cone"),
        "axis": ("higher", "largest cosine with one decoder row"),
        "axis_one_to_one": ("higher", "each row for one direction at most, Hungarian matching"),
        "activation_correlation": ("higher", "largest Pearson of a feature with the projection"),
    }
    for size in _sizes(config):
        atoms = f"{size[1:]} at most" if size else "all atoms"
        variants[f"sum_correlation{size}"] = (
            "higher",
            f"Pearson of the combined features with the projection, {atoms}",
        )
    numbers += [number(key, columns[key], *variant) for key, variant in variants.items() if key in columns]
    return tuple(numbers)


def _interval(values: np.ndarray, seed: int) -> Interval:
    if not len(values):
        return None
    (found,) = bootstrap(
        np.stack([values, np.ones_like(values)], axis=1), lambda totals: totals[:, 0] / totals[:, 1], seed=seed
    )
    return found
