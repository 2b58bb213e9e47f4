"""Absorption where the truth is known: synthetic activations of a forest of features.

Which latent stands for a parent is then no matter of probes: it is the one matched to the parent's atom. The true rate is
the share of tokens with the parent and a child on which that latent is silent. The same samples can be turned into labelled
tokens, so that absorption measured by labels alone is held against the true rate.

T  tokens, n  true features, d_sae  latents, D  documents (here every token is one), P  parents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from saescope.activations import synthetic
from saescope.activations.synthetic import SyntheticData, child_parent_cosine, matched_cosine, random_baseline
from saescope.dictionaries import Dictionary
from saescope.evaluation.absorption.study import Hierarchy
from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.results import Better, Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample


@dataclass(frozen=True, kw_only=True)
class KnownAbsorptionConfig:
    """How the true rate is taken."""

    num_tokens: int = 20_000
    """Held-out samples, which no stream of training data gives."""
    seed: int = 0
    """Of the samples and of the intervals."""

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {self.num_tokens}")


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownSample:
    """Synthetic tokens with labels, as :func:`saescope.evaluation.absorption.study.absorption` takes them."""

    sample: TokenSample
    labels: TokenLabels  # "feature 0", "feature 1", ...: whether each true feature fires
    hierarchies: tuple[Hierarchy, ...]


def known_sample(data: SyntheticData, num_tokens: int, *, seed: int = 0) -> KnownSample:
    """Held-out samples of a forest with its truth as labels.

    Raises:
        ValueError: the features of ``data`` are no forest.
    """
    forest = forest_of(data)
    drawn = data.held_out(num_tokens, seed)
    names = tuple(f"feature {number}" for number in range(data.num_features))
    return KnownSample(
        sample=TokenSample.of_activations(drawn.x),
        labels=TokenLabels(names=names, values=(drawn.codes != 0).numpy()),
        hierarchies=tuple(
            Hierarchy(names[parent], tuple(names[child] for child in children))
            for parent, children in forest.children.items()
        ),
    )


def forest_of(data: SyntheticData) -> synthetic.Hierarchy:
    """The forest that the features of ``data`` are; ValueError where they are none."""
    if not isinstance(data.firing, synthetic.Hierarchy) or not data.firing.children:
        raise ValueError(
            "known absorption needs synthetic data of parents and children, made with "
            f"saescope.activations.synthetic.Hierarchy; the features fire by {type(data.firing).__name__}"
        )
    return data.firing


def known_absorption(
    dictionary: Dictionary, data: SyntheticData, config: KnownAbsorptionConfig | None = None
) -> StudyResult:
    """The true rate of absorption, and how much of their parents the children's rows contain.

    A latent that is never on cannot be taken over by another: its parent has no rate, with the reason. Intervals are over
    tokens, which are independent here. Table: ``parents``.

    Raises:
        ValueError: data that is no forest, or that the dictionary does not fit.
    """
    begin, config = time.perf_counter(), config or KnownAbsorptionConfig()
    forest = forest_of(data)
    if dictionary.d_out != data.d:
        raise ValueError(f"this dictionary rebuilds width {dictionary.d_out}, the synthetic activations have {data.d}")
    drawn = data.held_out(config.num_tokens, config.seed)
    fires = encode_sample(dictionary, drawn.x).tocsc()
    true = (drawn.codes != 0).numpy()
    rows = dictionary.W_dec.detach()
    match = matched_cosine(rows, data.atoms)
    scored = [
        _Parent.of(parent, family, match.row_of(parent), fires, true) for parent, family in forest.children.items()
    ]
    good = [parent for parent in scored if not parent.reason]
    return StudyResult(
        study="known_absorption",
        numbers=(
            *_rates(good, config.seed),
            Number.of(
                "child_parent_cosine", child_parent_cosine(rows, data.atoms, forest.children, match), better="lower",
                variant="of a child's matched row with its parent's atom, mean over children; 0 for orthogonal atoms",
                reason="no child has a matched latent",
            ),
            Number.of(
                "child_parent_cosine_random",
                random_baseline(
                    lambda drawn: child_parent_cosine(drawn, data.atoms, forest.children, matched_cosine(drawn, data.atoms)),
                    dictionary.d_sae, data.d,
                ).mean,
                variant="the same of random rows, mean of 5",
                reason="no child has a matched latent",
            ),
            Number(name="matched_cosine", value=match.mean, better="higher", variant="one-to-one with the true atoms"),
            Number(name="num_parents", value=len(scored)),
            Number(name="num_parents_scored", value=len(good)),
        ),
        tables={"parents": [parent.row() for parent in scored]},
        notes=("the latent of a parent is the one matched to its atom; a bad match makes the rate meaningless",),
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parent:
    number: int
    latent: int | None
    with_child: np.ndarray  # bool [T]: the parent and a child fire
    alone: np.ndarray  # bool [T]: the parent fires without any
    silent: np.ndarray  # bool [T]: its latent does not
    reason: str

    @classmethod
    def of(
        cls, parent: int, children: tuple[int, ...], latent: int | None, fires: sparse.csc_array, true: np.ndarray
    ) -> _Parent:
        family = true[:, list(children)].any(-1)
        silent = np.ones(len(true), dtype=bool)
        if latent is not None:
            start, end = fires.indptr[latent], fires.indptr[latent + 1]
            silent[fires.indices[start:end]] = False
        with_child = true[:, parent] & family
        reason = ""
        if latent is None:
            reason = "no latent is matched to it: there are fewer latents than features"
        elif silent.all():
            reason = "the latent matched to it never fires"
        elif not with_child.any():
            reason = "it fires with none of its children on these tokens"
        alone = true[:, parent] & ~family
        return cls(number=parent, latent=latent, with_child=with_child, alone=alone, silent=silent, reason=reason)

    def rate(self, among: np.ndarray) -> float | None:
        return float(self.silent[among].mean()) if among.any() and not self.reason else None

    def row(self) -> dict[str, Any]:
        return {
            "parent": self.number,
            "latent": self.latent,
            "num_tokens_with_child": int(self.with_child.sum()),
            "absorption": self.rate(self.with_child),
            "silent_without_child": self.rate(self.alone),
            "reason": self.reason,
        }


def _rates(parents: list[_Parent], seed: int) -> Iterator[Number]:
    """P(latent off | parent and a child), the same without any child; means over parents."""
    kinds: tuple[tuple[str, str, Better], ...] = (
        ("absorption", "with_child", "lower"),
        ("silent_without_child", "alone", ""),
    )
    for name, attribute, better in kinds:
        among = [getattr(parent, attribute) for parent in parents]
        kept = [(a, parent.silent) for a, parent in zip(among, parents, strict=True) if a.any()]
        words = "with a child" if attribute == "with_child" else "without any child"
        variant = (
            f"share of a parent's tokens {words} on which its latent is silent, mean over parents; interval over tokens"
        )
        if not kept:
            yield Number(
                name=name, value=None, better=better, variant=variant,
                reason="no parent could be scored; the table of parents says why" if not parents
                else f"no parent fires {words}",
            )  # fmt: skip
            continue
        sums = np.concatenate([np.stack([a & silent, a], axis=-1) for a, silent in kept], axis=-1).astype(np.float64)
        value = float(_mean_share(sums.sum(0, keepdims=True))[0])
        (between,) = bootstrap(sums, _mean_share, seed=seed)
        low, high = between or (None, None)
        yield Number(name=name, value=value, low=low, high=high, better=better, variant=variant)


def _mean_share(totals: np.ndarray) -> np.ndarray:
    """Totals ``[R, 2 P]`` (silent tokens and tokens of each parent) to the mean share, ``[R]``."""
    silent, count = totals[:, 0::2], totals[:, 1::2]
    return (silent / count).mean(-1)
