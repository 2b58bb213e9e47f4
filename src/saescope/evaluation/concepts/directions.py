"""Directions of known concepts in the activations: the weights of a linear probe, and the difference of means.

T  tokens, d  width of the activations, c  concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saescope.evaluation.concepts.spans import follows, laid_down_anew
from saescope.evaluation.probes import fit_probe, require_both_classes
from saescope.evaluation.sample import TokenLabels, TokenSample


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptDirections:
    """One direction of each kind for every concept that has one."""

    names: tuple[str, ...]
    probe: np.ndarray  # float64, [c, d]: along these, the concept is read off
    difference: np.ndarray  # float64, [c, d]: mean of the tokens with the concept less mean of the others
    skipped: Mapping[str, str]  # the other concepts, and why
    unconverged: tuple[str, ...] = ()  # probes that were stopped early


def concept_directions(
    sample: TokenSample,
    labels: TokenLabels,
    *,
    num_tokens: int | None = 20_000,
    min_positives: int = 10,
    shuffle_seed: int | None = None,
) -> ConceptDirections:
    """Both directions of each concept in what the dictionary rebuilds, ``sample.y``.

    Args:
        num_tokens: probes are fitted on that many tokens, spread evenly; None for all. Means are over all tokens.
        min_positives: tokens with the concept, and without it, that a direction needs.
        shuffle_seed: lay the spans of every concept down at random first: directions that mean nothing.

    Raises:
        ValueError: labels of other tokens, activations that are not numbers.
    """
    labels.check(sample)
    y = sample.y.numpy().astype(np.float64)
    if not np.isfinite(y).all():
        raise ValueError("the sample holds activations that are NaN or infinite; read it again")
    mean = y.mean(0)
    y -= mean
    y /= np.sqrt((y**2).sum(1).mean()) or 1.0  # one factor for all: it does not turn a direction
    few = np.arange(len(y)) if num_tokens is None or num_tokens >= len(y) else _evenly(len(y), num_tokens)
    generator = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    after = follows(sample.document, sample.position)
    names, probes, differences, skipped, unconverged = [], [], [], {}, []
    for name, concept in zip(labels.names, labels.values.T, strict=True):
        truth = concept if generator is None else laid_down_anew(concept, after, generator)
        try:
            require_both_classes(truth[few], f"a direction of {name!r}", least=min_positives)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        probe = fit_probe(y[few], truth[few], balanced=True)
        names.append(name)
        probes.append(probe.weights)
        differences.append(y[truth].mean(0) - y[~truth].mean(0))
        if not probe.converged:
            unconverged.append(name)
    shape = (len(names), y.shape[1])
    return ConceptDirections(
        names=tuple(names),
        probe=np.reshape(probes, shape),
        difference=np.reshape(differences, shape),
        skipped=skipped,
        unconverged=tuple(unconverged),
    )


def _evenly(total: int, count: int) -> np.ndarray:
    return np.arange(count) * total // count
