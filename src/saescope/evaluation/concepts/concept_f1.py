"""Concept alignment: for each known concept, the one feature that tells it best, and how well it does.

A feature above a share of its maximum says yes. Its precision is over tokens: how many of those it fires on have the
concept. Its recall is over spans (domains): a run of tokens with the concept is found if it fires on one of them, since a
feature that fires once on each string has found the strings. With 2,048 features and 5 thresholds there are 10,240 tries
for each concept, and the best of them owes something to luck. So maxima are taken on one part of the documents, feature and
threshold are chosen on a second, and what is reported comes from a third; the value on the second stands beside it.

A score means nothing alone: a concept on half of all tokens gives F1 0.67 to whoever always says yes. That floor, the best
single dimension of the activations (of either sign), and the same search for spans laid down at random are always reported.

Protocol after Simon and Zou 2024 (InterPLM, arXiv 2412.14545); coverage after Karvonen et al. 2024 (arXiv 2408.00113).

T  tokens, W  candidates (features, or signed dimensions), C  concepts, Q  thresholds, D  documents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from scipy import sparse

from saescope.dictionaries import Dictionary
from saescope.evaluation.concepts.counts import FiringLevels, f1_of_counts
from saescope.evaluation.concepts.report import Found, report
from saescope.evaluation.concepts.spans import LabelledPart
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample

_COLUMNS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """How features are held against concepts."""

    thresholds: tuple[float, ...] = (0.0, 0.15, 0.5, 0.6, 0.8)
    """Shares of a feature's maximum on the training documents; it says yes above them."""
    recall: Literal["spans", "tokens"] = "spans"
    """What recall counts: runs of tokens with the concept, of which one has to fire, or each token."""
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    """How documents are dealt out: for maxima, for the choice, for the report."""
    min_positives: int = 10
    """Spans (or tokens) of a concept that each part must have; with fewer it gets no score."""
    num_top_features: int = 50
    """Rows of the table of features."""
    seed: int = 0
    """Of the parts, the control and the intervals."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not self.thresholds or not rising or not 0 <= self.thresholds[0] <= self.thresholds[-1] < 1:
            raise ValueError(f"thresholds must rise, from 0 or more to less than 1, got {self.thresholds}")
        if self.recall not in ("spans", "tokens"):
            raise ValueError(f"recall must be 'spans' or 'tokens', got {self.recall!r}")
        if len(self.shares) != 3 or min(self.shares) <= 0:
            raise ValueError(f"shares must be three numbers above 0, got {self.shares}")
        if self.min_positives < 1:
            raise ValueError(f"min_positives must be at least 1, got {self.min_positives}")


def concept_f1(
    dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, config: ConceptConfig | None = None
) -> StudyResult:
    """F1 of single features against known concepts: chosen on validation documents, reported on test documents.

    Args:
        sample: tokens of at least three documents.
        labels: their concepts.

    Returns:
        The study "concepts". Numbers: ``coverage`` (mean over the concepts), its floor and controls, and how many concepts
        have a feature of F1 0.5 or more. Tables: "concepts", a row for each, and "features", a row for each of the best.

    Raises:
        ValueError: labels of other tokens, no labels, fewer than three documents, activations that are not numbers.
    """
    config, began = config or ConceptConfig(), time.perf_counter()
    labels.check(sample)
    if not labels.names:
        raise ValueError("there is no concept to look for: give labels with at least one name")
    if not torch.isfinite(sample.x).all():
        raise ValueError("the sample holds activations that are NaN or infinite; read it again")
    parts = tuple(
        LabelledPart.of(sample, labels, part, whole_spans=config.recall == "spans")
        for part in sample.parts(config.shares, seed=config.seed)
    )
    _, validation, test = parts
    reasons = [_too_few(concept, parts, config) for concept in range(len(labels.names))]
    scored = [concept for concept, reason in enumerate(reasons) if not reason]
    generator = np.random.default_rng([config.seed, 1])
    noise_validation, noise_test = validation.shuffled(generator), test.shuffled(generator)

    features = _Features(encode_sample(dictionary, sample.x), parts, config.thresholds)
    dimensions = _Dimensions(sample.x.numpy(), parts, config.thresholds)
    chosen = _search(features, validation, scored, len(config.thresholds))
    noise = _search(features, noise_validation, scored, len(config.thresholds))
    single = chosen.best_single_level()

    def found(candidates: _Candidates, part: LabelledPart, concept: int, choice: tuple[int, int, float]) -> Found:
        which, level, on_validation = choice
        fires = candidates.fires(which, level) if which >= 0 else np.zeros(len(part), dtype=bool)
        return Found(
            concept=labels.names[concept],
            index=which % candidates.width if which >= 0 else None,
            sign=1 if which < candidates.width else -1,
            threshold=config.thresholds[level] if which >= 0 else None,
            on_validation=on_validation,
            sums=part.sums(concept, fires),
            prevalence=float(part.labels[:, concept].mean()),
        )

    by_dimension = _search(dimensions, validation, scored, len(config.thresholds))
    return report(
        names=labels.names,
        reasons=reasons,
        features=[found(features, test, c, chosen.best(c)) for c in scored],
        one_threshold=[found(features, test, c, chosen.at(c, single)) for c in scored],
        dimensions=[found(dimensions, test, c, by_dimension.best(c)) for c in scored],
        noise=[found(features, noise_test, c, noise.best(c)) for c in scored],
        top=[
            found(features, test, int(chosen.concept[w]), (int(w), int(chosen.level[w]), float(chosen.own[w])))
            for w in chosen.strongest(config.num_top_features)
        ],
        notes=(
            f"recall counts {config.recall}; thresholds are shares of a feature's maximum on the training documents",
            f"{features.num_silent:,} of {dictionary.d_sae:,} features never fire on the training documents, so that "
            "they have no maximum and take no part",
        ),
        seed=config.seed,
        began=began,
    )


def _too_few(concept: int, parts: Sequence[LabelledPart], config: ConceptConfig) -> str:
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        count = part.num_spans(concept)
        if count < config.min_positives:
            what = "spans" if config.recall == "spans" else "tokens"
            return f"{count} {what} in the {name} documents, fewer than min_positives = {config.min_positives}"
    return ""


class _Candidates(Protocol):
    """What may say yes to a concept: W columns, of which those from ``width`` on are the first with the other sign."""

    width: int
    num_columns: int

    def blocks(self) -> Iterator[tuple[int, FiringLevels]]:
        """(number of the first column, its and its neighbours' firings) on the validation documents."""

    def fires(self, which: int, level: int) -> np.ndarray:
        """Where one column is above one threshold on the test documents, bool ``[T]``."""


class _Features:
    """The features of the dictionary; both signs of them where it gives negative activations."""

    def __init__(self, codes: sparse.csr_array, parts: Sequence[LabelledPart], thresholds: Sequence[float]) -> None:
        self.width = codes.shape[1]
        if codes.nnz and codes.data.min() < 0:
            codes = sparse.csr_array(sparse.hstack([codes.maximum(0), (-codes).maximum(0)], format="csr"))
        self.num_columns = codes.shape[1]
        train, validation, test = (codes[part.tokens] for part in parts)
        maximum = train.max(axis=0).toarray().reshape(-1).astype(np.float64)
        self.num_silent = int((maximum.reshape(-1, self.width) <= 0).all(0).sum())
        self._validation = FiringLevels.of_codes(validation, maximum, thresholds)
        self._test = FiringLevels.of_codes(test, maximum, thresholds)

    def blocks(self) -> Iterator[tuple[int, FiringLevels]]:
        yield 0, self._validation

    def fires(self, which: int, level: int) -> np.ndarray:
        return self._test.where(which, level)


class _Dimensions:
    """The dimensions of the activations less their mean on the training documents, in both signs."""

    def __init__(self, x: np.ndarray, parts: Sequence[LabelledPart], thresholds: Sequence[float]) -> None:
        self.width, self.num_columns = x.shape[1], 2 * x.shape[1]
        self._x, self._thresholds = x, thresholds
        self._train, self._validation, self._test = (part.tokens for part in parts)
        self._mean = x[self._train].mean(0, dtype=np.float64)

    def blocks(self) -> Iterator[tuple[int, FiringLevels]]:
        for first in range(0, self.num_columns, _COLUMNS_AT_ONCE):
            columns = np.arange(first, min(first + _COLUMNS_AT_ONCE, self.num_columns))
            maximum = self._values(self._train, columns).max(0)
            yield first, FiringLevels.of_values(self._values(self._validation, columns), maximum, self._thresholds)

    def fires(self, which: int, level: int) -> np.ndarray:
        column = np.array([which])
        maximum = self._values(self._train, column).max()
        return self._values(self._test, column)[:, 0] > self._thresholds[level] * maximum

    def _values(self, tokens: np.ndarray, columns: np.ndarray) -> np.ndarray:
        dimension = columns % self.width
        centred = self._x[np.ix_(tokens, dimension)].astype(np.float64) - self._mean[dimension]
        return centred * np.where(columns < self.width, 1.0, -1.0)


@dataclass
class _Choice:
    """The best F1 on the validation documents: for each concept and threshold, and for each candidate."""

    f1: np.ndarray  # [C, Q]; 0 for concepts that are not scored
    which: np.ndarray  # the candidate, int64, [C, Q]; -1 where none fires on the concept
    own: np.ndarray  # best F1 of each candidate, [W]
    concept: np.ndarray  # the concept that it is for, int64, [W]
    level: np.ndarray  # at which threshold, int64, [W]

    def offer(self, concept: int, f1: np.ndarray, first: int) -> None:
        """F1 of the candidates from ``first`` on, one row each, ``[., Q]``; of equals the first stays."""
        which = f1.argmax(0)
        best = f1[which, np.arange(f1.shape[1])]
        better = best > self.f1[concept]
        self.f1[concept][better] = best[better]
        self.which[concept][better] = which[better] + first
        here = slice(first, first + len(f1))
        level = f1.argmax(1)
        own = f1[np.arange(len(f1)), level]
        better = own > self.own[here]
        for kept, new in ((self.own, own), (self.concept, concept), (self.level, level)):
            kept[here] = np.where(better, new, kept[here])

    def at(self, concept: int, level: int) -> tuple[int, int, float]:
        """(candidate, threshold, F1) at one threshold."""
        return int(self.which[concept, level]), level, float(self.f1[concept, level])

    def best(self, concept: int) -> tuple[int, int, float]:
        return self.at(concept, int(self.f1[concept].argmax()))

    def best_single_level(self) -> int:
        """The threshold that is best for all concepts together."""
        return int(self.f1.sum(0).argmax())

    def strongest(self, count: int) -> np.ndarray:
        """Candidates in falling order of their best F1, those with none left out."""
        order = np.argsort(-self.own, kind="stable")[:count]
        return order[self.own[order] > 0]


def _search(candidates: _Candidates, part: LabelledPart, concepts: Sequence[int], num_thresholds: int) -> _Choice:
    """Try every candidate at every threshold on every concept; ``part`` is the validation part, shuffled or not."""
    shape, width = (part.labels.shape[1], num_thresholds), candidates.num_columns
    choice = _Choice(
        f1=np.zeros(shape),
        which=np.full(shape, -1),
        own=np.zeros(width),
        concept=np.full(width, -1),
        level=np.full(width, -1),
    )
    for first, firings in candidates.blocks():
        fired = firings.fired()
        for concept in concepts:
            tokens, span = part.spans(concept)
            hits, found = firings.hits(tokens, span)
            choice.offer(concept, f1_of_counts(fired, hits, found, part.num_spans(concept)), first)
    return choice
