"""A label without a language model: the rarest readable set of tokens that holds a feature's firings.

A label here is a *set of token positions* that can be read: tokens of the vocabulary ("fires on `␣return`, `␣yield`"),
a class of Python's grammar ("comment"), tokens within a class, or the tokens that follow certain tokens. Two numbers
judge it. With F the positions where the feature fires and S the set, both among the T tokens of a text,

    precision = |F and S| / |F|      share of the firings that the label explains
    base rate = |S| / T              what a feature that fires anywhere would reach
    lift      = precision / base rate

A set of everything has precision 1 and lift 1, so neither number means much alone. The rule that finds a label: **among
the sets that hold at least ``coverage`` of the training firings, the one of highest lift** (coverage is precision on
the training part; the rarest set, in other words, up to how far it exceeds ``coverage``). Kinds that read most easily,
tokens and syntax classes, come first: the compound kinds are looked at only when neither reaches the coverage with a
lift of ``enough_lift``. When no set at all reaches the coverage, the label is the set of highest phi coefficient (the
correlation between firing and membership over all training tokens), which punishes missed firings and false members
alike; its low precision is then reported as it is.

Finding looks at training tokens only, and picks the best of many sets, so the numbers of a `Candidate` are optimistic,
and very much so for a feature of few firings. `measure` is the honest judgement: the fixed set on tokens that were not
looked at. `Measured.num_firings` says how much that judgement rests on; below some twenty firings it says little.

    finder = LabelFinder(train_ids, vocab_size=4096, syntax=train_syntax)
    candidate = finder.find(train_firings)
    measured = measure(candidate.label, held_out_firings, held_out_ids, syntax=held_out_syntax)
    describe(candidate.label, token_texts)            # "`␣return`, `␣raise`"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from saescope.analysis.python_syntax import CLASS_NAMES, SyntaxTable


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """The tokens with one of these ids, those that hold the most training firings first."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SyntaxClass:
    """The tokens of one class of `saescope.analysis.python_syntax`."""

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
        return float(_phi(self.num_both, self.num_members, self.num_firings, self.num_tokens))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A label with its numbers on the training tokens that it was chosen by."""

    label: LabelSet
    train: Measured
    reaches_coverage: bool
    """False: no set held enough of the firings, and this is the one of highest phi coefficient."""


class LabelFinder:
    """Finds labels for many features of one text; what does not depend on the feature is counted once.

    Token sets are built by the odds that a token fires, ``P(fire | token)``, shrunk towards the feature's own rate as
    if every token had been seen ``prior_count`` times more, and made of tokens that fire at least twice: a token that
    fired once must not lead, and a set of such tokens never counts as reaching the coverage. Without a limit on the
    size, the sets of highest lift are the beginnings of that order. With one, they are those that maximise
    ``firings - price * tokens`` for some price, and the highest price that still reaches the coverage is found by
    bisection. A few repairs around that price (drop what is not needed, close the gap with one token) make up for the
    last token of the order, which may overshoot the coverage by far.

    Args:
        token_ids: the training tokens, ``[num_tokens]``.
        vocab_size: number of token ids.
        syntax: the syntax classes of the same tokens; None for text that is not Python.
        window_starts: positions that have no predecessor: the first token of each window or document. Position 0
            always counts as one.
        coverage: share of the training firings that a label must hold.
        max_set_size: most token ids in a set, so that a label can be read.
        enough_lift: lift at which tokens and syntax classes are good enough to leave compound kinds aside.
        compound: whether to look at tokens within a class and tokens after tokens at all.
        prior_count: strength of the shrinkage, in tokens.

    Raises:
        ValueError: ids outside of the vocabulary, a syntax table of another length, settings out of range.
    """

    def __init__(
        self,
        token_ids: np.ndarray,
        vocab_size: int,
        syntax: SyntaxTable | None = None,
        window_starts: np.ndarray | None = None,
        *,
        coverage: float = 0.9,
        max_set_size: int = 24,
        enough_lift: float = 10.0,
        compound: bool = True,
        prior_count: float = 10.0,
    ) -> None:
        if not 0 < coverage <= 1 or max_set_size < 1 or prior_count < 0:
            raise ValueError(
                f"coverage must lie in (0, 1], max_set_size be 1 or more and prior_count 0 or more, not {coverage}, "
                f"{max_set_size} and {prior_count}."
            )
        self.token_ids = _checked_ids(token_ids, syntax)
        if len(self.token_ids) and not 0 <= self.token_ids.min() <= self.token_ids.max() < vocab_size:
            raise ValueError(
                f"token ids must lie in 0 to {vocab_size - 1}, not {self.token_ids.min()} to {self.token_ids.max()}: "
                "give the vocab_size of the tokenizer that made them."
            )
        self.syntax = syntax
        self.coverage, self.max_set_size, self.enough_lift = coverage, max_set_size, enough_lift
        self.compound, self.prior_count = compound, prior_count
        self._vocab_size = vocab_size
        self._token_counts = np.bincount(self.token_ids, minlength=vocab_size)
        self._class_counts = syntax.counts() if syntax is not None else None
        self._counts_within: dict[int, np.ndarray] = {}
        if compound:
            self._previous_ids = _previous_ids(self.token_ids, window_starts, vocab_size)
            self._previous_counts = np.bincount(self._previous_ids, minlength=vocab_size + 1)[:vocab_size]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def find(self, firing_positions: np.ndarray) -> Candidate:
        """The label of a feature that fires at ``firing_positions`` of the training tokens.

        Raises:
            ValueError: without a single firing, or with positions that repeat or lie outside of the text.
        """
        firings = _checked_positions(firing_positions, self.num_tokens)
        if len(firings) == 0:
            raise ValueError("a feature that never fires in the training part has no label; leave it out.")
        simple = [*self._token_sets(firings), *self._classes(firings)]
        reached = [candidate for candidate in simple if candidate.reaches_coverage]
        best = max(reached, key=_lift, default=None)
        if self.compound and (best is None or best.train.lift < self.enough_lift):
            simple += [*self._after(firings), *self._within(firings)]
            reached = [candidate for candidate in simple if candidate.reaches_coverage]
            best = max(reached, key=_lift, default=None)
        return best if best is not None else max(simple, key=lambda candidate: candidate.train.phi)

    # one method per kind of set: the best that reaches the coverage, and the one of highest phi

    def _token_sets(self, firings: np.ndarray) -> Iterator[Candidate]:
        fired = np.bincount(self.token_ids[firings], minlength=self._vocab_size)
        for chosen in self._best_sets(fired, self._token_counts, len(firings)):
            yield self._candidate(TokenSet(token_ids=_ids(chosen)), fired, self._token_counts, chosen, len(firings))

    def _after(self, firings: np.ndarray) -> Iterator[Candidate]:
        fired = np.bincount(self._previous_ids[firings], minlength=self._vocab_size + 1)[: self._vocab_size]
        for chosen in self._best_sets(fired, self._previous_counts, len(firings)):
            label = AfterTokens(token_ids=_ids(chosen))
            yield self._candidate(label, fired, self._previous_counts, chosen, len(firings))

    def _classes(self, firings: np.ndarray) -> Iterator[Candidate]:
        if self.syntax is None or self._class_counts is None:
            return
        fired = self.syntax.counts(firings)
        for index in self._leading_classes(fired, len(firings), 1):
            label = SyntaxClass(name=CLASS_NAMES[index])
            yield self._candidate(label, fired, self._class_counts, np.array([index]), len(firings))

    def _within(self, firings: np.ndarray) -> Iterator[Candidate]:
        if self.syntax is None:
            return
        for index in self._leading_classes(self.syntax.counts(firings), len(firings), 4):
            name = CLASS_NAMES[index]
            if index not in self._counts_within:
                inside = self.syntax.members(name)
                self._counts_within[index] = np.bincount(self.token_ids[inside], minlength=self._vocab_size)
            counts = self._counts_within[index]
            inside_firings = firings[self.syntax.select(firings).members(name)]
            fired = np.bincount(self.token_ids[inside_firings], minlength=self._vocab_size)
            for chosen in self._best_sets(fired, counts, len(firings)):
                label = TokensWithinClass(token_ids=_ids(chosen), name=name)
                yield self._candidate(label, fired, counts, chosen, len(firings))

    def _leading_classes(self, fired: np.ndarray, num_firings: int, number: int) -> list[int]:
        """The ``number`` classes of highest lift that reach the coverage, and as many of highest phi."""
        assert self._class_counts is not None
        members = self._class_counts
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = np.where(fired >= self.coverage * num_firings, fired / members, -1.0)
        phi = _phi(fired, members, num_firings, self.num_tokens)
        by_lift = [int(index) for index in np.argsort(-lift, kind="stable")[:number] if lift[index] > 0]
        by_phi = [int(index) for index in np.argsort(-phi, kind="stable")[:number]]
        return list(dict.fromkeys([*by_lift, *by_phi]))

    def _candidate(
        self, label: LabelSet, fired: np.ndarray, counts: np.ndarray, chosen: np.ndarray, num_firings: int
    ) -> Candidate:
        """The set of the ids (or class ids) ``chosen``, given how often each of them fires and occurs."""
        train = Measured(
            num_tokens=self.num_tokens,
            num_firings=num_firings,
            num_members=int(counts[chosen].sum()),
            num_both=int(fired[chosen].sum()),
        )
        reaches = train.num_both >= self.coverage * num_firings
        if not isinstance(label, SyntaxClass):  # tokens that fire once each are no evidence: any few firings have them
            reaches = reaches and bool((fired[chosen] >= 2).all())
        return Candidate(label=label, train=train, reaches_coverage=reaches)

    def _best_sets(self, fired: np.ndarray, counts: np.ndarray, num_firings: int) -> list[np.ndarray]:
        """Sets of ids, those with the most firings first: of highest lift at coverage, if any, and of highest phi."""
        ids = np.flatnonzero(fired >= 2)
        if len(ids) == 0:  # nothing repeats: a set by phi can be named all the same, one at coverage cannot
            ids = np.flatnonzero(fired)
        if len(ids) == 0:
            return []
        some_fired, some_counts = fired[ids].astype(np.float64), counts[ids].astype(np.float64)
        rate = num_firings / self.num_tokens
        expected = (some_fired + self.prior_count * rate) / (some_counts + self.prior_count) * some_counts
        needed = self.coverage * num_firings

        def at_price(price: float) -> np.ndarray:
            gain = expected - price * some_counts
            chosen = np.argsort(-gain, kind="stable")[: self.max_set_size]
            return chosen[gain[chosen] > 0]

        sets = []
        low, high = 0.0, 1.0
        if some_fired[at_price(low)].sum() >= needed:
            for _ in range(24):
                middle = (low + high) / 2
                low, high = (middle, high) if some_fired[at_price(middle)].sum() >= needed else (low, middle)
            odds = expected / some_counts
            closed = _closed_by_one(at_price(high), some_fired, some_counts, odds, needed)
            reaching = [
                _pruned(chosen, some_fired, order, needed)
                for chosen in (at_price(low), at_price(low / 2), at_price(0.0), *closed)
                for order in (odds, -some_counts)  # those of lowest odds first, or the most frequent first
            ]
            sets.append(max(reaching, key=lambda chosen: some_fired[chosen].sum() / some_counts[chosen].sum()))

        tried = [at_price(price) for price in (0.0, *np.geomspace(1e-4, 0.9, 24))]
        tried = [chosen for chosen in tried if len(chosen)]
        if tried:
            both = np.array([some_fired[chosen].sum() for chosen in tried])
            members = np.array([some_counts[chosen].sum() for chosen in tried])
            sets.append(tried[int(np.argmax(_phi(both, members, num_firings, self.num_tokens)))])
        return [ids[chosen[np.argsort(-some_fired[chosen], kind="stable")]] for chosen in sets]


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
    token_ids = _checked_ids(token_ids, syntax)
    inside = np.ones(len(token_ids), dtype=bool)
    if isinstance(label, SyntaxClass | TokensWithinClass):
        if syntax is None:
            raise ValueError(f"the label speaks of the class {label.name!r}: give the syntax table of these tokens.")
        inside &= syntax.members(label.name)
    if isinstance(label, TokenSet | TokensWithinClass):
        inside &= np.isin(token_ids, label.token_ids)
    if isinstance(label, AfterTokens):
        inside &= np.isin(_previous_ids(token_ids, window_starts, -1), label.token_ids)
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
        window_starts: positions without a predecessor, as for `LabelFinder`.

    Raises:
        ValueError: as `members`, and for positions that repeat or lie outside of the text.
    """
    firings = _checked_positions(firing_positions, len(token_ids))
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


def _lift(candidate: Candidate) -> float:
    return candidate.train.lift


def _ids(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(int(index) for index in chosen)


def _closed_by_one(
    chosen: np.ndarray, fired: np.ndarray, counts: np.ndarray, odds: np.ndarray, needed: float
) -> Iterator[np.ndarray]:
    """The beginnings of ``chosen`` by odds, each with the rarest single id that lifts it over ``needed`` firings.

    The last id that the order by odds takes can be a frequent one that overshoots the coverage by far.
    """
    ordered = chosen[np.argsort(-odds[chosen], kind="stable")]
    for size in range(len(ordered) + 1):
        closing = np.where(fired >= needed - fired[ordered[:size]].sum(), counts, np.inf)
        closing[ordered[:size]] = np.inf
        last = int(np.argmin(closing))
        if np.isfinite(closing[last]) and size < len(chosen):
            yield np.append(ordered[:size], last)


def _pruned(chosen: np.ndarray, fired: np.ndarray, order: np.ndarray, needed: float) -> np.ndarray:
    """``chosen`` without the ids that the coverage can do without, dropped in the order of ``order``."""
    total = fired[chosen].sum()
    kept = []
    for index in chosen[np.argsort(order[chosen], kind="stable")]:
        if total - fired[index] >= needed:
            total -= fired[index]
        else:
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def _phi(both: np.ndarray | int, members: np.ndarray | int, num_firings: int, num_tokens: int) -> np.ndarray:
    """Phi coefficient of two sets of tokens from their sizes, 0 where one of them is empty or everything."""
    both, members = np.asarray(both, dtype=np.float64), np.asarray(members, dtype=np.float64)
    spread = np.sqrt(members * (num_tokens - members)) * sqrt(num_firings * (num_tokens - num_firings))
    return np.divide(both * num_tokens - members * num_firings, spread, out=np.zeros_like(both), where=spread > 0)


def _previous_ids(token_ids: np.ndarray, window_starts: np.ndarray | None, none: int) -> np.ndarray:
    """The id before each token, ``none`` where there is no token before it."""
    previous = np.empty(len(token_ids), dtype=np.int64)
    previous[1:] = token_ids[:-1]
    previous[:1] = none
    if window_starts is not None:
        previous[window_starts] = none
    return previous


def _checked_ids(token_ids: np.ndarray, syntax: SyntaxTable | None) -> np.ndarray:
    token_ids = np.asarray(token_ids)
    if token_ids.ndim != 1 or not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(f"token ids must be a flat list of integers, not {token_ids.dtype} {list(token_ids.shape)}.")
    if syntax is not None and syntax.num_tokens != len(token_ids):
        raise ValueError(
            f"the syntax table has {syntax.num_tokens} tokens and the text {len(token_ids)}: build both from one text."
        )
    return token_ids


def _checked_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    positions = np.sort(np.asarray(positions, dtype=np.int64))
    if len(positions) and not 0 <= positions[0] <= positions[-1] < num_tokens:
        raise ValueError(f"firing positions must lie in 0 to {num_tokens - 1}, not {positions[0]} to {positions[-1]}.")
    if (np.diff(positions) == 0).any():
        raise ValueError("firing positions repeat: give each token at which the feature fires once.")
    return positions
