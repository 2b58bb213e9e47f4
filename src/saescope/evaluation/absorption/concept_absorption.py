"""Absorption of one concept: its probe, its features, and the scores of its test tokens; and means over concepts.

This is what absorption on labelled tokens and first-letter absorption share.

T  tokens, n  test tokens of the concept that the probe gets right, P  concepts, D  documents, R  draws of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import sparse

from saescope.evaluation.absorption.absorbing import AbsorptionRule, absorption_of_tokens
from saescope.evaluation.absorption.ground_truth import GroundTruth, Units, too_few, training_tokens
from saescope.evaluation.absorption.main_latents import MainLatents, SearchConfig, main_latents
from saescope.evaluation.absorption.written import Written
from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.probes import scores

DECEPTIVE = "an undertrained dictionary, or one with very large L0, scores deceptively low on absorption"


@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig(SearchConfig):
    """How absorption is measured. The probe on activations is fitted on training and validation documents."""

    least_probe_f1: float = 0.6
    """On test tokens; a concept whose probe is below it is not scored."""
    probe_c: float = 1.0
    """Of the probe on activations: its penalty is |w|^2 / (2 c), in units of the activations' spread per dimension."""
    main_latents_from: Literal["without_children", "all"] = "without_children"
    """The concept's tokens on which its features are found."""
    rule: AbsorptionRule = field(default_factory=AbsorptionRule)
    """When a token counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least_probe_f1 < 1 or not self.probe_c > 0:
            raise ValueError(
                f"least_probe_f1 must be from 0 to 1 and probe_c above 0, got {self.least_probe_f1} and {self.probe_c}"
            )
        if self.main_latents_from not in ("without_children", "all"):
            raise ValueError(f'main_latents_from is "without_children" or "all", got {self.main_latents_from!r}')


@dataclass(kw_only=True, eq=False)
class ConceptScores:
    """What was found about one concept."""

    reason: str = ""
    """Why it has no scores, if it has none."""
    num_positives: int = 0
    """Its test tokens."""
    probe_f1: float | None = None
    probe_converged: bool | None = None
    latents: MainLatents | None = None
    num_split_features: int | None = None
    """By the published rule: from all tokens of the concept."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Places of its test tokens that the probe gets right, ``[n]``."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Of those tokens, float64 ``[n]``: "fraction" and "full"; "published_fraction" and "published_full" with features
    from all tokens and b_dec left in the projection; "no_projection", 1 where nothing points along the probe."""

    def mean(self, name: str, tokens: np.ndarray | None = None) -> float | None:
        """Mean of a value over the scored tokens, or over those that ``tokens`` (bool ``[T]``) names; None without any."""
        if name not in self.values:
            return None
        values = self.values[name] if tokens is None else self.values[name][tokens[self.tokens]]
        return float(values.mean()) if len(values) else None


def score_concept(
    written: Written,
    truth: np.ndarray,
    children: np.ndarray,
    parts: dict[str, np.ndarray],
    units: Units,
    config: AbsorptionConfig,
    *,
    seed: Sequence[int],
    what: str,
) -> ConceptScores:
    """Score one concept.

    Args:
        truth: whether each token is of the concept, bool ``[T]``.
        children: whether it is of one of the concept's children too, bool ``[T]``.
        parts: "train", "validation" and "test", bool ``[T]`` each.
        what: the concept, in words.
    """
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    found = ConceptScores(num_positives=int(np.count_nonzero(truth & test)))
    found.reason = too_few(truth, parts, config.least_positives, f"of {what}")
    if found.reason:
        return found
    generator = np.random.default_rng(seed)
    fitted = training_tokens(truth, train | validation, config.num_train_tokens, generator)
    ground_truth = GroundTruth.fit(written.targets(fitted), truth[fitted], units, c=config.probe_c)
    tested = np.flatnonzero(test)
    predicted = ground_truth.predict(written.targets(tested))
    found.probe_f1 = scores(predicted, truth[tested]).f1
    found.probe_converged = ground_truth.probe.converged
    if found.probe_f1 < config.least_probe_f1:
        found.reason = (
            f"the probe on activations has F1 {found.probe_f1:.2f}, below {config.least_probe_f1:g}: what a dictionary does "
            "with the concept means little"
        )
        return found
    tokens = tested[predicted & truth[tested]]
    if not len(tokens):
        found.reason = "the probe on activations gets none of its test tokens right"
        return found
    return _scored(found, written, ground_truth, tokens, truth, children, parts, units, config, generator, what)


def _scored(
    found: ConceptScores,
    written: Written,
    ground_truth: GroundTruth,
    tokens: np.ndarray,
    truth: np.ndarray,
    children: np.ndarray,
    parts: dict[str, np.ndarray],
    units: Units,
    config: AbsorptionConfig,
    generator: np.random.Generator,
    what: str,
) -> ConceptScores:
    """Find the concept's features and score the tokens."""

    def features(excluded: np.ndarray) -> MainLatents:
        fitted = training_tokens(truth, parts["train"] & ~excluded, config.num_train_tokens, generator)
        held_out = np.flatnonzero(parts["validation"] & ~excluded)
        return main_latents(
            in_units(written, fitted, units), truth[fitted], in_units(written, held_out, units), truth[held_out],
            config.latents,
            seed=config.seed,
        )  # fmt: skip

    everywhere = features(np.zeros_like(truth))
    found.num_split_features = everywhere.count or None
    own = everywhere
    family = truth & children
    if config.main_latents_from == "without_children" and family.any():
        some = {name: parts[name] & ~family for name in ("train", "validation")}
        found.reason = too_few(truth, some, config.least_positives, f"of {what} without any of its children")
        if found.reason:
            return found
        own = features(family)
    found.latents = own
    if not own.count:
        found.reason = f"no feature fires more strongly on tokens of {what} than elsewhere"
        return found
    direction = ground_truth.direction
    cosines = written.directions @ direction
    rows = in_units(written, tokens, units)
    whole = written.targets(tokens) @ direction / units.scale
    along = whole - written.offset(tokens) @ direction / units.scale
    ours = absorption_of_tokens(rows, cosines, along, own.features, config.rule)
    published = absorption_of_tokens(rows, cosines, whole, everywhere.features, config.rule)
    found.tokens = tokens
    found.values = {
        "fraction": ours.fraction,
        "full": ours.full.astype(np.float64),
        "published_fraction": published.fraction,
        "published_full": published.full.astype(np.float64),
        "no_projection": (along <= 0).astype(np.float64),
    }
    return found


def in_units(written: Written, tokens: np.ndarray, units: Units) -> sparse.csr_array:
    rows = written.rows(tokens)
    rows.data /= units.scale
    return rows


def mean_rates(
    scored: Sequence[ConceptScores],
    children: Sequence[np.ndarray],
    value: str,
    document: np.ndarray,
    test: np.ndarray,
    *,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Means over concepts of a value's rate, with intervals over test documents.

    Args:
        children: of each concept, which tokens are of a child, bool ``[T]``.
        value: one of :attr:`ConceptScores.values`.

    Returns:
        "all" tokens, those of "children", "others", and the "difference" of the last two over concepts that have both; each
        with value, low and high, for :class:`Number`.
    """
    documents = np.unique(document[test])
    columns = []
    for concept, family in zip(scored, children, strict=True):
        if not concept.values:
            continue
        which = np.searchsorted(documents, document[concept.tokens])
        for among in (family[concept.tokens], ~family[concept.tokens]):
            for weights in (concept.values[value] * among, among.astype(np.float64)):
                columns.append(np.bincount(which, weights=weights, minlength=len(documents)))
    names = ("all", "children", "others", "difference")
    if not columns:
        return {name: {"value": None, "low": None, "high": None} for name in names}
    sums = np.stack(columns, axis=-1)  # [D, 4 P]
    (exact,) = _rates(sums.sum(0, keepdims=True))
    found = {}
    for name, number, between in zip(names, exact, bootstrap(sums, _rates, seed=seed), strict=True):
        low, high = between or (None, None)
        found[name] = {"value": float(number) if np.isfinite(number) else None, "low": low, "high": high}
    return found


def _rates(totals: np.ndarray) -> np.ndarray:
    """Totals ``[R, 4 P]`` (sum and number of tokens with a child, then without) to four means over concepts, ``[R, 4]``."""
    cells = totals.reshape(len(totals), -1, 4)
    child_sum, num_child, other_sum, num_other = np.moveaxis(cells, -1, 0)  # [R, P] each
    child, other = _ratio(child_sum, num_child), _ratio(other_sum, num_other)
    both = _ratio(child_sum + other_sum, num_child + num_other)
    return np.stack([_mean_defined(rates) for rates in (both, child, other, child - other)], axis=-1)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all are."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))
