"""A small world in which the truth is known: tokens in documents, their true features, and two dictionaries.

The oracle has the true atoms and finds the true activations; the random one has as many random rows and about the same
number of firings. A study that cannot tell the two apart says nothing about dictionaries of which nobody knows the truth.

Features come in runs, as in text: each has a liking for some documents, and what fires on a token tends to fire on the
next. They are correlated, and children fire only with their parents, so that a wrong dictionary has something to get wrong.

T  tokens, n  features, d  width of the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saescope.activations.synthetic import (
    RectifiedNormal,
    SyntheticData,
    orthonormal_atoms,
    random_correlation,
)
from saescope.activations.synthetic.firing import Firing
from saescope.dictionaries import Dictionary, JumpReLU
from saescope.dictionaries.jumprelu import JumpReLUConfig
from saescope.evaluation.sample import TokenLabels, TokenSample

NUM_PARENTS = 8
CHILDREN = 2  # of each parent
NUM_LOOSE = 24  # features that are neither
NUM_CONCEPTS = 6  # labels that several loose features share
D = 64
TOKENS_PER_DOCUMENT = 200
NUM_DOCUMENTS = 100
_PARENTS_FIRE, _LOOSE_FIRE, _CHILD_FIRES = 0.12, 0.06, 0.4  # the last: where its parent does
_OF_DOCUMENT, _OF_RUN = 0.2, 0.6  # shares of the variance behind a firing; the rest is the token's own
_RUN = 0.9  # correlation of a token's part of a run with the next one's
_NOISE = 0.02


class Runs(Firing):
    """Firings in runs within documents: hidden Gaussians above a level, children masked by their parents.

    Unlike other rules it draws tokens that are not independent: documents of ``TOKENS_PER_DOCUMENT``, one after another.

    Args:
        correlation: between the hidden Gaussians, ``[n, n]``.
        levels: what each of them has to exceed, ``[n]``.
        parent: of every feature, -1 for none; a parent has no parent.
    """

    probabilities = None
    true_l0 = None

    def __init__(self, correlation: Tensor, levels: Tensor, parent: Tensor) -> None:
        self.num_features = len(levels)
        self.levels, self.parent = levels, parent
        values, vectors = torch.linalg.eigh(correlation)
        self._root = ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()

    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        documents = -(-num_tokens // TOKENS_PER_DOCUMENT)
        shape = (documents, TOKENS_PER_DOCUMENT, self.num_features)
        own, steps = (torch.randn(shape, generator=generator) @ self._root for _ in range(2))
        liking = torch.randn(documents, 1, self.num_features, generator=generator) @ self._root
        run = steps[:, 0]
        runs = [run]
        for step in range(1, TOKENS_PER_DOCUMENT):
            run = _RUN * run + (1 - _RUN**2) ** 0.5 * steps[:, step]
            runs.append(run)
        hidden = _OF_DOCUMENT**0.5 * liking + _OF_RUN**0.5 * torch.stack(runs, dim=1)
        hidden = hidden + (1 - _OF_DOCUMENT - _OF_RUN) ** 0.5 * own
        fired = hidden.reshape(-1, self.num_features)[:num_tokens] > self.levels
        child = self.parent >= 0
        fired[:, child] &= fired[:, self.parent[child]]
        return fired


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Tokens and the truth about them, with a dictionary that knows it and one that knows nothing."""

    sample: TokenSample
    labels: (
        TokenLabels  # "feature 3", "parent 0", "parent 0 > child 1", and "concept 2" for what several features share
    )
    oracle: Dictionary
    random: Dictionary
    atoms: Tensor  # unit rows, [n, d]
    codes: Tensor  # true activations, [T, n]
    data: SyntheticData  # for more tokens of the same kind
    children: Mapping[str, tuple[str, ...]]  # labels of each parent's children

    @property
    def concepts(self) -> TokenLabels:
        """The labels that are frequent and not each other's part: parents and shared concepts."""
        names = tuple(n for n in self.labels.names if n.startswith("concept") or n in self.children)
        return TokenLabels(names=names, values=np.stack([self.labels.column(n) for n in names], axis=-1))


def world(seed: int = 0, *, num_documents: int = NUM_DOCUMENTS) -> World:
    """Draw a world: 64 dimensions, 48 orthonormal features, 100 documents of 200 tokens.

    Raises:
        ValueError: no documents.
    """
    if num_documents < 1:
        raise ValueError(f"a world needs at least one document, got {num_documents}")
    generator = torch.Generator().manual_seed(seed)
    num_children = NUM_PARENTS * CHILDREN
    n = NUM_PARENTS + num_children + NUM_LOOSE
    parent = torch.full((n,), -1)
    parent[NUM_PARENTS : NUM_PARENTS + num_children] = torch.arange(NUM_PARENTS).repeat_interleave(CHILDREN)
    fires = torch.full((n,), _LOOSE_FIRE)
    fires[:NUM_PARENTS] = _PARENTS_FIRE
    fires[parent >= 0] = _CHILD_FIRES
    correlation = random_correlation(n, generator, share=0.3)
    atoms = orthonormal_atoms(n, D, generator)
    data = SyntheticData(
        atoms,
        Runs(correlation, -torch.special.ndtri(fires), parent),
        RectifiedNormal(mean=1.0, sd=0.15),
        bias=0.3 * torch.randn(D, generator=generator),
        noise=_NOISE,
    )
    drawn = data.held_out(num_documents * TOKENS_PER_DOCUMENT, seed)
    sample = TokenSample.of_activations(drawn.x, document=np.repeat(np.arange(num_documents), TOKENS_PER_DOCUMENT))
    labels, children = _labels((drawn.codes > 0).numpy())
    oracle = _dictionary(atoms, data.bias, 0.25)
    rows = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=-1)
    unknowing = _dictionary(rows, drawn.x.mean(0), 0.0)
    l0 = float((drawn.codes > 0).sum(-1).float().mean())
    with torch.no_grad():  # the level that lets as many firings through
        pre = unknowing.pre_activations(drawn.x).flatten()
        unknowing.threshold.fill_(float(pre.kthvalue(max(1, round(len(pre) * (1 - l0 / n)))).values))
    return World(
        sample=sample,
        labels=labels,
        oracle=oracle,
        random=unknowing,
        atoms=atoms,
        codes=drawn.codes,
        data=data,
        children=children,
    )


def _labels(fired: np.ndarray) -> tuple[TokenLabels, dict[str, tuple[str, ...]]]:
    names = [f"parent {p}" for p in range(NUM_PARENTS)]
    children: dict[str, tuple[str, ...]] = {}
    for p in range(NUM_PARENTS):
        children[names[p]] = tuple(f"parent {p} > child {c}" for c in range(CHILDREN))
    for family in children.values():
        names.extend(family)
    first = len(names)
    names += [f"feature {number}" for number in range(first, first + NUM_LOOSE)]
    groups = np.array_split(np.arange(first, first + NUM_LOOSE), NUM_CONCEPTS)
    shared = np.stack([fired[:, group].any(-1) for group in groups], axis=-1)
    names += [f"concept {number}" for number in range(NUM_CONCEPTS)]
    return TokenLabels(names=tuple(names), values=np.concatenate([fired, shared], axis=-1)), children


def _dictionary(rows: Tensor, b_dec: Tensor, threshold: float) -> JumpReLU:
    """Tied rows and one threshold."""
    dictionary = JumpReLU(JumpReLUConfig(d_in=rows.shape[1], d_sae=len(rows)))
    with torch.no_grad():
        for parameter, value in (("encoder_rows", rows), ("W_dec", rows), ("b_dec", b_dec)):
            getattr(dictionary, parameter).copy_(value)
        dictionary.threshold.fill_(threshold)
    return dictionary.requires_grad_(False)
