"""Feature splitting: a concept that needs several features, each for a part of its tokens.

How many features a concept needs is counted with k-sparse probes (``main_latents.py``). A second
feature that speaks for the concept may be of three kinds, which the tokens found by each one alone tell apart: a part of a
split concept finds tokens that the first one misses; a copy finds the same ones again; and one that sharpens finds nothing
new but helps to tell false alarms. Chanin et al. 2024, arXiv 2409.14507, for the count.

T  tokens, n  test tokens of a concept, k  features that a probe sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.absorption.concept_absorption import in_units
from saescope.evaluation.absorption.ground_truth import Units, too_few, training_tokens
from saescope.evaluation.absorption.main_latents import MainLatents, SearchConfig, main_latents
from saescope.evaluation.absorption.written import Written
from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.probes import fit_probe, scores
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

KINDS = ("one feature", "split", "redundant", "sharper together", "not found")


@dataclass(frozen=True, kw_only=True)
class SplittingConfig(SearchConfig):
    """How splitting is measured."""

    least_only_second: float = 0.05
    """Share of a concept's tokens that the second feature alone finds, from which on the two split the concept."""
    least_overlap: float = 0.5
    """Of the concept's tokens that one of the first two features finds, the share that both find, from which on the second
    is a copy; its F1 must also be at least this share of the first one's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("least_only_second", "least_overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")


def splitting(
    dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, config: SplittingConfig | None = None
) -> StudyResult:
    """How many features each concept needs, and what the second one does. Table: ``concepts``; curves: F1 by k of each.

    Args:
        sample: tokens at the dictionary's hook point.
        labels: the concepts.

    Raises:
        ValueError: labels that do not fit the sample, too few documents, a dictionary of another width, or numbers that are
            not finite.
    """
    begin, config = time.perf_counter(), config or SplittingConfig()
    labels.check(sample)
    if not labels.names:
        raise ValueError("splitting needs at least one label")
    parts = dict(zip(("train", "validation", "test"), sample.parts(config.shares, seed=config.seed), strict=True))
    written = Written.of(dictionary, sample)
    units = Units.of(written.targets(np.flatnonzero(parts["train"])))
    found = [
        _concept(written, labels.column(name), parts, units, config, name, (config.seed, number))
        for number, name in enumerate(labels.names)
    ]
    return StudyResult(
        study="splitting",
        numbers=tuple(_numbers(found, sample.document, parts["test"], config)),
        tables={"concepts": [concept.row() for concept in found]},
        curves={
            f"f1 of {concept.name}": {"k": [float(k + 1) for k in range(len(f1))], "f1": list(f1)}
            for concept in found
            if concept.latents is not None and (f1 := concept.latents.f1)
        },
        notes=(
            "curves of F1 are on validation tokens, on which the number of features is chosen; all else is on test tokens",
        ),
        seconds=time.perf_counter() - begin,
    )


@dataclass(kw_only=True, eq=False)
class _Concept:
    name: str
    reason: str = ""
    kind: str = ""
    latents: MainLatents | None = None
    f1: float | None = None  # with all features that it needs
    f1_first: float | None = None  # with the first alone
    f1_second: float | None = None
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # test tokens of the concept, [n]
    by_first: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # found by the first alone, [n]
    by_second: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def only_second(self) -> float | None:
        return float((self.by_second & ~self.by_first).mean()) if len(self.by_second) else None

    @property
    def overlap(self) -> float | None:
        """Of the concept's tokens that one of the two finds, the share that both find."""
        either = int(np.count_nonzero(self.by_first | self.by_second)) if len(self.by_second) else 0
        return int(np.count_nonzero(self.by_first & self.by_second)) / either if either else None

    def row(self) -> dict[str, Any]:
        order = np.zeros(0, dtype=int) if self.latents is None else self.latents.order
        both = self.by_first & self.by_second if len(self.by_second) else self.by_second
        return {
            "concept": self.name,
            "kind": self.kind or None,
            "num_features": self.latents.count if self.latents and self.latents.count else None,
            "features": [] if self.latents is None else self.latents.features.tolist(),
            "first": int(order[0]) if len(order) else None,
            "second": int(order[1]) if len(order) > 1 else None,
            "f1_first": self.f1_first,
            "f1_second": self.f1_second,
            "f1": self.f1,
            "num_positives": len(self.tokens),
            "found_by_first": float(self.by_first.mean()) if len(self.by_first) else None,
            "found_by_both": float(both.mean()) if len(both) else None,
            "found_only_by_second": self.only_second,
            "overlap": self.overlap,
            "reason": self.reason,
        }


def _concept(
    written: Written,
    truth: np.ndarray,
    parts: dict[str, np.ndarray],
    units: Units,
    config: SplittingConfig,
    name: str,
    seed: Sequence[int],
) -> _Concept:
    found = _Concept(name=name, reason=too_few(truth, parts, config.least_positives, f"of {name!r}"))
    if found.reason:
        return found
    fitted = training_tokens(truth, parts["train"], config.num_train_tokens, np.random.default_rng(seed))
    held_out, tested = np.flatnonzero(parts["validation"]), np.flatnonzero(parts["test"])
    train, validation, test = (in_units(written, places, units) for places in (fitted, held_out, tested))
    found.latents = main_latents(
        train, truth[fitted], validation, truth[held_out], config.latents, whole_curve=True, seed=config.seed
    )
    found.tokens = tested[truth[tested]]
    order, count = found.latents.order, found.latents.count
    if not count:
        found.kind, found.reason = "not found", "no feature fires more strongly on its tokens than elsewhere"
        return found

    def says(features: np.ndarray) -> np.ndarray:
        probe = fit_probe(train[:, features].toarray(), truth[fitted], balanced=True, max_iter=500)
        return probe.predict(test[:, features].toarray())

    single = [says(order[place : place + 1]) for place in range(min(2, len(order)))]
    found.f1_first, found.f1 = scores(single[0], truth[tested]).f1, scores(says(order[:count]), truth[tested]).f1
    found.by_first = single[0][truth[tested]]
    if len(order) > 1:
        found.by_second, found.f1_second = single[1][truth[tested]], scores(single[1], truth[tested]).f1
    found.kind = _kind(found, count, config)
    return found


def _kind(found: _Concept, count: int, config: SplittingConfig) -> str:
    if count > 1:
        return "split" if (found.only_second or 0.0) >= config.least_only_second else "sharper together"
    # a feature that fires anywhere overlaps too, but tells little
    tells = (found.f1_second or 0.0) >= config.least_overlap * (found.f1_first or 0.0)
    return "redundant" if tells and (found.overlap or 0.0) >= config.least_overlap else "one feature"


def _numbers(
    found: Sequence[_Concept], document: np.ndarray, test: np.ndarray, config: SplittingConfig
) -> Iterator[Number]:
    good = [concept for concept in found if concept.latents is not None and concept.latents.count]
    nothing = "no concept could be studied; the table of concepts says why"
    variant = f"mean over concepts; {config.latents.words}"
    counts = [concept.latents.count for concept in good if concept.latents is not None]
    yield Number.of("num_features", _mean(counts), variant=f"{variant}; chosen on validation tokens", reason=nothing)
    for name, kind in (("share_split", "split"), ("share_redundant", "redundant")):
        share = _mean([float(concept.kind == kind) for concept in good])
        yield Number.of(name, share, variant=f"share of concepts; {config.latents.words}", reason=nothing)
    second = [concept for concept in good if len(concept.by_second)]
    low, high = _interval(second, document, test, config.seed)
    yield Number.of(
        "found_only_by_second", _mean([concept.only_second for concept in second]), low=low, high=high,
        variant=f"share of a concept's tokens, {variant}", reason="no concept has a second feature",
    )  # fmt: skip
    for name, values in (
        ("f1_first", [concept.f1_first for concept in good]),
        ("f1", [concept.f1 for concept in good]),
    ):
        yield Number.of(name, _mean(values), better="higher", variant=variant, reason=nothing)
    yield Number(name="num_concepts", value=len(found))
    yield Number(name="num_concepts_studied", value=len(good))


def _interval(
    concepts: Sequence[_Concept], document: np.ndarray, test: np.ndarray, seed: int
) -> tuple[float | None, float | None]:
    """Of the mean share that only second features find, over test documents."""
    if not concepts:
        return None, None
    documents = np.unique(document[test])
    columns = []
    for concept in concepts:
        which = np.searchsorted(documents, document[concept.tokens])
        for weights in (concept.by_second & ~concept.by_first, np.ones(len(which))):
            columns.append(np.bincount(which, weights=weights, minlength=len(documents)))

    def mean(totals: np.ndarray) -> np.ndarray:
        return (totals[:, 0::2] / totals[:, 1::2]).mean(-1)

    (between,) = bootstrap(np.stack(columns, axis=-1), mean, seed=seed)
    return between or (None, None)


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None
