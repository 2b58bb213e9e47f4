"""Absorption on single tokens: does another feature carry the concept where its own features are silent or too weak?

A token is of a concept, and a probe's unit direction p says how strongly: a = p . (activation). The concept's own
features, the main latents, write M along p. Full absorption: they are silent, and one other feature writes a good share of
a. Absorption fraction: which part of what is written along p comes from (at most three) others. Chanin et al. 2024, arXiv
2409.14507, with SAEBench's extension (arXiv 2503.09532).

n  tokens, d_sae  features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True, kw_only=True)
class AbsorptionRule:
    """The bars of the two scores; the published ones by default."""

    num_absorbing: int = 3
    """Other features that are counted in the fraction, at most."""
    least_cosine: float = 0.1
    """Of an absorbing feature's direction with p, for the fraction."""
    least_cosine_full: float = 0.025
    """The same for full absorption."""
    least_share: float = 0.4
    """Part of the token's projection a that absorbing features must carry, for either score."""
    silent_below: float = 1e-8
    """What a feature writes is nothing below this, in units of the activations' spread per dimension."""

    def __post_init__(self) -> None:
        if self.num_absorbing < 1 or not 0 < self.least_share <= 1:
            raise ValueError(
                "num_absorbing must be at least 1 and least_share above 0 and at most 1, got "
                f"{self.num_absorbing} and {self.least_share}"
            )
        for name in ("least_cosine", "least_cosine_full", "silent_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenAbsorption:
    """Scores of tokens; both are 0 where nothing points along p at all (a <= 0)."""

    fraction: np.ndarray  # from 0 to 1, float64, [n]
    full: np.ndarray  # bool, [n]


def absorption_of_tokens(
    written: sparse.csr_array, cosines: np.ndarray, along: np.ndarray, main: np.ndarray, rule: AbsorptionRule
) -> TokenAbsorption:
    """Both scores of each token.

    Args:
        written: what features write on each token, along their unit directions, ``[n, d_sae]``.
        cosines: of those directions with the probe's, ``[d_sae]``.
        along: projection a of each token's activation on the probe's unit direction, ``[n]``.
        main: numbers of the concept's own features.
    """
    num_tokens, d_sae = written.shape
    token = np.repeat(np.arange(num_tokens), np.diff(written.indptr))
    feature = written.indices
    part = written.data * cosines[feature]  # of each firing, along p
    is_main = np.zeros(d_sae, dtype=bool)
    is_main[main] = True
    own = is_main[feature]
    main_part = np.bincount(token[own], weights=part[own], minlength=num_tokens)  # M

    # in signed architectures a feature writes against its direction: what counts is what is written
    agreement = np.abs(cosines)[feature]
    others = ~own & (agreement >= rule.least_cosine) & (part > 0)
    absorbed = _largest_sum(token[others], part[others], num_tokens, rule.num_absorbing)  # A
    positive = along > 0
    projection = np.where(positive, along, 1.0)
    enough = positive & (absorbed / projection >= rule.least_share) & (main_part < along)
    taken = np.minimum(absorbed, along - main_part)
    whole = np.where(enough & (main_part > 0), taken + main_part, 1.0)
    fraction = np.where(enough, np.where(main_part > 0, np.clip(taken / whole, 0, 1), 1.0), 0.0)

    loud = own & (np.abs(written.data) >= rule.silent_below)
    silent = np.bincount(token[loud], minlength=num_tokens) == 0
    top_part, top_agreement = _top(token, part, agreement, num_tokens)
    full = positive & silent & (top_agreement >= rule.least_cosine_full) & (top_part / projection >= rule.least_share)
    return TokenAbsorption(fraction=fraction, full=full)


def _largest_sum(token: np.ndarray, value: np.ndarray, num_tokens: int, count: int) -> np.ndarray:
    """Sum of the ``count`` largest values of each token, ``[n]``; tokens are in rising order."""
    order = np.lexsort((-value, token))
    token, value = token[order], value[order]
    starts = np.searchsorted(token, np.arange(num_tokens))
    rank = np.arange(len(token)) - starts[token]
    kept = rank < count
    return np.bincount(token[kept], weights=value[kept], minlength=num_tokens)


def _top(token: np.ndarray, part: np.ndarray, agreement: np.ndarray, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest part on each token and that feature's agreement; 0 and 0 where nothing fires."""
    order = np.lexsort((part, token))
    last = np.searchsorted(token[order], np.arange(num_tokens), side="right") - 1
    found = np.zeros(num_tokens), np.zeros(num_tokens)
    fires = np.bincount(token, minlength=num_tokens) > 0
    for values, source in zip(found, (part, agreement), strict=True):
        values[fires] = source[order][last[fires]]
    return found
