"""Absorption: a feature that should fire for a concept is silent where a narrower feature has taken over its work.

"Starts with S" is silent on "short", because the feature of "short" writes "starts with S" as well: sparsity rewards it.
Which features belong to the parent is found with probes, and whether others carry the parent is asked on each token that a
probe on the activations gets right. With labels for the children, absorption has a place where it should be seen: on the
children's tokens, and not on the parent's other ones. The difference of the two rates is the number to look at: what is
wrong with the parent's features everywhere is not absorption.

The parent's features are found on its tokens *without* any child: on all of them, the feature of a frequent child passes for
one of the parent's own. (The published rule has no labels of children; it is ``main_latents_from = "all"``, and the number
of features that it finds is reported in any case.)

Chanin et al. 2024, arXiv 2409.14507; the fraction is SAEBench's, arXiv 2503.09532. Other than there: lengths of decoder rows
count, b_dec is not the features' work and is taken off the projection, features are chosen on validation tokens, and parents
that cannot be scored are listed with the reason.

T  tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.absorption.concept_absorption import (
    DECEPTIVE,
    AbsorptionConfig,
    ConceptScores,
    mean_rates,
    score_concept,
)
from saescope.evaluation.absorption.ground_truth import Units
from saescope.evaluation.absorption.written import Written
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

__all__ = ["AbsorptionConfig", "Hierarchy", "absorption"]


@dataclass(frozen=True)
class Hierarchy:
    """A label whose tokens include those of narrower labels, all by their names."""

    parent: str
    children: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.children or self.parent in self.children or len(set(self.children)) < len(self.children):
            raise ValueError(
                f"the hierarchy of {self.parent!r} needs children, each of them once and none the parent itself; got "
                f"{list(self.children)}"
            )


def absorption(
    dictionary: Dictionary,
    sample: TokenSample,
    labels: TokenLabels,
    hierarchies: Sequence[Hierarchy],
    config: AbsorptionConfig | None = None,
) -> StudyResult:
    """Absorption fraction and full absorption on tokens of children, on the parents' other tokens, and their difference.

    A token counts where it is of the parent, the parent's probe says so, and its document is a test document. Rates are
    means over the parents that could be scored, with intervals over test documents. Tables: ``parents``, ``children``.

    Args:
        sample: tokens at the dictionary's hook point.
        labels: what is true of them.
        hierarchies: which labels are children of which; one for each parent.

    Raises:
        ValueError: labels that do not fit the sample, names that are no labels, too few documents, a dictionary of another
            width, or numbers that are not finite.
    """
    begin, config = time.perf_counter(), config or AbsorptionConfig()
    labels.check(sample)
    parents = [hierarchy.parent for hierarchy in hierarchies]
    if not parents or len(set(parents)) < len(parents):
        raise ValueError(
            f"absorption needs hierarchies, one for each parent, got {', '.join(parents) or 'none'}; put all children of "
            "a parent into one"
        )
    truths = {name: labels.column(name) for h in hierarchies for name in (h.parent, *h.children)}
    families = [np.any([truths[child] for child in h.children], axis=0) for h in hierarchies]  # bool [T] each
    parts = dict(zip(("train", "validation", "test"), sample.parts(config.shares, seed=config.seed), strict=True))
    written = Written.of(dictionary, sample)
    units = Units.of(written.targets(np.flatnonzero(parts["train"])))
    scored = [
        score_concept(
            written, truths[parent], family, parts, units, config, seed=(config.seed, number), what=repr(parent)
        )
        for number, (parent, family) in enumerate(zip(parents, families, strict=True))
    ]
    return StudyResult(
        study="absorption",
        numbers=tuple(_numbers(scored, families, sample.document, parts["test"], config)),
        tables={
            "parents": [_parent_row(*each) for each in zip(parents, scored, families, strict=True)],
            "children": [
                _child_row(hierarchy.parent, child, each, truths)
                for hierarchy, each in zip(hierarchies, scored, strict=True)
                for child in hierarchy.children
            ],
        },
        notes=(DECEPTIVE, *_strays(hierarchies, truths)),
        seconds=time.perf_counter() - begin,
    )


_WHERE = {
    "children": "on tokens of a child",
    "others": "on the parents' other tokens",
    "difference": "on tokens of a child, less that on the parents' other tokens",
    "all": "on all tokens of the parents",
}


def _numbers(
    scored: Sequence[ConceptScores],
    families: Sequence[np.ndarray],
    document: np.ndarray,
    test: np.ndarray,
    config: AbsorptionConfig,
) -> Iterator[Number]:
    general = config.main_latents_from == "without_children"
    variant = f"{config.latents.words}, on {'tokens without any child' if general else 'all tokens'}; b_dec taken off"
    nothing = "no parent could be scored; the table of parents says why"
    for value, name in (("fraction", "absorption_fraction"), ("full", "full_absorption")):
        rates = mean_rates(scored, families, value, document, test, seed=config.seed)
        for where, words in _WHERE.items():
            kept = rates[where]
            reason = nothing if rates["all"]["value"] is None else f"no parent has scored tokens {words}"
            if where == "difference":
                reason = nothing if rates["all"]["value"] is None else "no parent has scored tokens of both kinds"
            yield Number.of(
                name if where == "all" else f"{name}_{where}",
                kept["value"], low=kept["low"], high=kept["high"], better="lower",
                variant=f"{words}; {variant}",
                reason=reason,
            )  # fmt: skip
    split = [each.num_split_features for each in scored if each.values and each.num_split_features]
    yield Number.of(
        "num_split_features", _mean(split), variant="by the published rule, from all tokens of a parent", reason=nothing
    )
    f1s = [each.probe_f1 for each in scored if each.probe_f1 is not None]
    yield Number.of(
        "probe_f1", _mean(f1s),
        variant="of probes on activations, over all parents that have enough tokens; of the model, not of the dictionary",
        reason="no parent has enough tokens",
    )  # fmt: skip
    yield Number(name="num_parents", value=len(scored))
    yield Number(name="num_parents_scored", value=sum(bool(each.values) for each in scored))


def _parent_row(parent: str, found: ConceptScores, family: np.ndarray) -> dict[str, Any]:
    return {
        "parent": parent,
        **concept_row(found),
        "num_child_tokens": int(np.count_nonzero(family[found.tokens])),
        "absorption_fraction_children": found.mean("fraction", family),
        "absorption_fraction_others": found.mean("fraction", ~family),
        "full_absorption_children": found.mean("full", family),
        "full_absorption_others": found.mean("full", ~family),
        "reason": found.reason,
    }


def concept_row(found: ConceptScores) -> dict[str, Any]:
    """What is said of every concept, scored or not."""
    latents = found.latents
    return {
        "probe_f1": found.probe_f1,
        "probe_converged": found.probe_converged,
        "num_positives": found.num_positives,
        "num_true_positives": len(found.tokens),
        "main_latents": [] if latents is None else latents.features.tolist(),
        "sparse_probe_f1": latents.f1[latents.count - 1] if latents and latents.count else None,
        "num_split_features": found.num_split_features,
        "share_without_projection": found.mean("no_projection"),
    }


def _child_row(parent: str, child: str, found: ConceptScores, truths: Mapping[str, np.ndarray]) -> dict[str, Any]:
    among = truths[child]
    count = int(np.count_nonzero(among[found.tokens]))
    reason = found.reason or ("" if count else "no test token of it is among those that the parent's probe gets right")
    return {
        "parent": parent,
        "child": child,
        "num_tokens": count,
        "absorption_fraction": found.mean("fraction", among),
        "full_absorption": found.mean("full", among),
        "reason": reason,
    }


def _strays(hierarchies: Sequence[Hierarchy], truths: Mapping[str, np.ndarray]) -> Iterator[str]:
    for hierarchy in hierarchies:
        for child in hierarchy.children:
            count = int(np.count_nonzero(truths[child] & ~truths[hierarchy.parent]))
            if count:
                yield (
                    f"{count:,} tokens of {child!r} are not of {hierarchy.parent!r}: they count as tokens outside the parent"
                )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
