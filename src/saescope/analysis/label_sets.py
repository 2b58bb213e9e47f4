"""What a label is: a readable set of tokens; and how it is measured and said.

A label is a *set of token positions* that can be read: tokens of the vocabulary ("fires on `␣return`, `␣yield`"), a class
of Python's grammar ("comment"), tokens within a class, or the tokens that follow certain tokens. Two numbers judge it. With
F the positions where the feature fires and S the set, both among the T tokens of a text,

    precision = |F and S| / |F|      share of the firings that the label explains
    base rate = |S| / T              what a feature that fires anywhere would reach
    lift      = precision / base rate

A set of everything has precision 1 and lift 1, so neither number means much alone. `measure` takes them by these
definitions from a text that fits into memory; ``judging.py`` counts the same in a text of any length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from saescope.activations.python_syntax import SyntaxTable


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """The tokens with one of these ids, those that hold the most training firings first."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SyntaxClass:
    """The tokens of one class of `saescope.activations.python_syntax`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class TokensWithinClass:
    """The tokens with one of these ids that also belong to a syntax class."""

    token_ids: tuple[int, ...]
    name: str


@dataclass(frozen=True, kw_only=True)
class AfterTokens:
    """The tokens whose predecessor in the same window has one of these ids."""

    token_ids: tuple[int, ...]


LabelSet = TokenSet | SyntaxClass | TokensWithinClass | AfterTokens


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well a set of tokens fits a feature's firings, on one text."""

    num_tokens: int
    num_firings: int
    """Firings that the numbers rest on."""
    num_members: int
    """Tokens in the set."""
    num_both: int
    """Firings in the set."""

    @property
    def precision(self) -> float:
        """Share of the firings that lie in the set; nan without firings."""
        return self.num_both / self.num_firings if self.num_firings else nan

    @property
    def base_rate(self) -> float:
        """Share of all tokens that lie in the set."""
        return self.num_members / self.num_tokens if self.num_tokens else nan

    @property
    def lift(self) -> float:
        """Precision over base rate: how much more often than by chance; nan without firings or members."""
        return self.precision / self.base_rate if self.num_members else nan

    @property
    def recall(self) -> float:
        """Share of the set on which the feature fires; nan for an empty set."""
        return self.num_both / self.num_members if self.num_members else nan

    @property
    def phi(self) -> float:
        """Correlation of firing and membership over all tokens, -1 to 1; 0 when one of the two never varies."""
        return float(phi_of(self.num_both, self.num_members, self.num_firings, self.num_tokens))


def previous_ids(token_ids: np.ndarray, window_starts: np.ndarray | None = None) -> np.ndarray:
    """The id before each token of a flat text, int64, -1 where there is none before it in its window."""
    previous = np.empty(len(token_ids), dtype=np.int64)
    previous[1:] = token_ids[:-1]
    previous[:1] = -1
    if window_starts is not None:
        previous[window_starts] = -1
    return previous


def members(
    label: LabelSet,
    token_ids: np.ndarray,
    syntax: SyntaxTable | None = None,
    window_starts: np.ndarray | None = None,
) -> np.ndarray:
    """bool ``[num_tokens]``: which tokens of a text lie in the set that ``label`` names.

    Raises:
        ValueError: the label speaks of a syntax class and no ``syntax`` is given, or it is of another length.
    """
    token_ids = checked_ids(token_ids, syntax)
    inside = np.ones(len(token_ids), dtype=bool)
    if isinstance(label, SyntaxClass | TokensWithinClass):
        if syntax is None:
            raise ValueError(f"the label speaks of the class {label.name!r}: give the syntax table of these tokens.")
        inside &= syntax.members(label.name)
    if isinstance(label, TokenSet | TokensWithinClass):
        inside &= np.isin(token_ids, label.token_ids)
    if isinstance(label, AfterTokens):
        inside &= np.isin(previous_ids(token_ids, window_starts), label.token_ids)
    return inside


def measure(
    label: LabelSet,
    firing_positions: np.ndarray,
    token_ids: np.ndarray,
    syntax: SyntaxTable | None = None,
    window_starts: np.ndarray | None = None,
) -> Measured:
    """How well a label that was fixed elsewhere fits the firings on this text, by the plain definitions.

    Args:
        label: the set, usually the ``label`` of a `Candidate`.
        firing_positions: tokens where the feature fires, each once; there may be none.
        token_ids: the tokens, ``[num_tokens]``.
        syntax: their syntax classes.
        window_starts: positions that have no predecessor: the first token of each window. Position 0 always is one.

    Raises:
        ValueError: as `members`, and for positions that repeat or lie outside of the text.
    """
    firings = checked_positions(firing_positions, len(token_ids))
    inside = members(label, token_ids, syntax, window_starts)
    return Measured(
        num_tokens=len(inside),
        num_firings=len(firings),
        num_members=int(inside.sum()),
        num_both=int(inside[firings].sum()),
    )


def describe(label: LabelSet, token_texts: Sequence[str], num_shown: int = 6) -> str:
    """A short text for the label: "`␣return`, `␣raise` and 7 more", "comment", "after `def`", "`␣in` within: comment".

    Args:
        label: the set.
        token_texts: the text of each token id.
        num_shown: tokens that are spelled out.
    """
    if isinstance(label, SyntaxClass):
        return label.name
    shown = [_visible(token_texts[index]) for index in label.token_ids[:num_shown]]
    more = len(label.token_ids) - len(shown)
    text = ", ".join(shown) + (f" and {more} more" if more else "")
    if isinstance(label, AfterTokens):
        return f"after {text}"
    return f"{text} within: {label.name}" if isinstance(label, TokensWithinClass) else text


def _visible(token_text: str) -> str:
    """A token in backticks, its whitespace drawn; a long run of one sign is written with its length."""
    drawn = token_text.translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍", ord("\f"): "␌"})
    drawn = re.sub(r"([␣↵⇥])\1{3,}", lambda run: f"{run[1]}×{len(run[0])}", drawn)
    return f"`` {drawn} ``" if "`" in drawn else f"`{drawn}`"


def phi_of(both: np.ndarray | float, members: np.ndarray | int, num_firings: int, num_tokens: int) -> np.ndarray:
    """Phi coefficient of two sets of tokens from their sizes, 0 where one of them is empty or everything."""
    both, members = np.asarray(both, dtype=np.float64), np.asarray(members, dtype=np.float64)
    spread = np.sqrt(members * (num_tokens - members)) * sqrt(num_firings * (num_tokens - num_firings))
    return np.divide(both * num_tokens - members * num_firings, spread, out=np.zeros_like(both), where=spread > 0)


def checked_ids(token_ids: np.ndarray, syntax: SyntaxTable | None) -> np.ndarray:
    token_ids = np.asarray(token_ids)
    if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(f"token ids must be a flat list of integers, not {token_ids.dtype} {list(token_ids.shape)}.")
    if syntax is not None and syntax.num_tokens != len(token_ids):
        raise ValueError(
            f"the syntax table has {syntax.num_tokens} tokens and the text {len(token_ids)}: build both from one text."
        )
    return token_ids


def checked_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    positions = np.sort(np.asarray(positions, dtype=np.int64))
    if len(positions) and not 0 <= positions[0] <= positions[-1] < num_tokens:
        raise ValueError(f"firing positions must lie in 0 to {num_tokens - 1}, not {positions[0]} to {positions[-1]}.")
    if (np.diff(positions) == 0).any():
        raise ValueError("firing positions repeat: give each token at which the feature fires once.")
    return positions
