"""A label without a language model: the rarest readable set of tokens that holds a feature's firings.

What a label is, and what precision and lift are, is said in ``label_sets.py``. The rule that finds one: **among
the sets that hold at least ``coverage`` of the training firings, the one of highest lift** (coverage is precision on
the training part; the rarest set, in other words, up to how far it exceeds ``coverage``). Kinds that read most easily,
tokens and syntax classes, come first: the compound kinds are looked at only when neither reaches the coverage with a
lift of ``enough_lift``. When no set at all reaches the coverage, the label is the set of highest phi coefficient (the
correlation between firing and membership over all training tokens), which punishes missed firings and false members
alike; its low precision is then reported as it is.

Memory does not grow with the text. What the whole text says about tokens and classes are exact counts (`TextCounts`); a
feature comes with a uniform sample of its firings and how many there are in all (`Firings`), and counts of its firings
are estimates from the sample: |F and S| is the sample's count times ``num_firings / num_sampled``, less what a set owes to
having been chosen by this sample (`_discount`). A sample of all firings gives the exact numbers.

Finding looks at training tokens only, and picks the best of many sets, so the numbers of a `Candidate` are optimistic,
and very much so for a feature of few firings. Judging (``judging.py``) is honest: the fixed set on tokens that were not
looked at, every one of them. `Measured.num_firings` says how much that judgement rests on; below some twenty firings it
says little. `measure` is the same judgement by the plain definitions, for a text that fits into memory.

    finder = LabelFinder(TextCounts.of(train_ids, vocab_size=4096, syntax=train_syntax))
    candidate = finder.find(Firings.at(positions, train_ids, syntax=train_syntax, num_firings=20_000))
    measured = measure(candidate.label, held_out_firings, held_out_ids, syntax=held_out_syntax)
    describe(candidate.label, token_texts)            # "`␣return`, `␣raise`"

n  sampled firings, N  firings in all, V  token ids, C  syntax classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable
from saescope.analysis.label_sets import (
    AfterTokens,
    LabelSet,
    Measured,
    SyntaxClass,
    TokenSet,
    TokensWithinClass,
    checked_ids,
    checked_positions,
    phi_of,
    previous_ids,
)

# share of the theoretical discount of sampled counts that is applied; chosen on the demo's dictionary by looking at
# held-out precision and lift with 0, 0.3, 0.5, 0.7 and 1: the whole one finds sets of high precision, but wide ones
_DISCOUNTED = 0.5


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A label with its numbers on the training tokens that it was chosen by."""

    label: LabelSet
    train: Measured
    """``num_both`` is an estimate, unless all firings were looked at."""
    reaches_coverage: bool
    """False: no set held enough of the firings, and this is the one of highest phi coefficient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextCounts:
    """What a whole text says about tokens and classes, exactly: how often each occurs."""

    num_tokens: int
    token_counts: np.ndarray
    """int64 ``[V]``"""
    class_counts: np.ndarray | None = None
    """int64 ``[C]``; None for text that is not Python."""
    previous_counts: np.ndarray | None = None
    """int64 ``[V]``: tokens that follow each id in their window; None leaves the kind "after tokens" out."""
    counts_within: Callable[[int], np.ndarray] | None = None
    """Class id -> int64 ``[V]``: occurrences of each token within the class; None leaves that kind out."""

    @classmethod
    def of(
        cls,
        token_ids: np.ndarray,
        vocab_size: int,
        syntax: SyntaxTable | None = None,
        window_starts: np.ndarray | None = None,
    ) -> TextCounts:
        """The counts of a text that fits into memory, for all kinds of sets that ``syntax`` allows.

        Args:
            token_ids: its tokens, ``[num_tokens]``.
            vocab_size: number of token ids.
            syntax: the syntax classes of the same tokens.
            window_starts: positions that have no predecessor: the first token of each window. Position 0 always is one.

        Raises:
            ValueError: ids outside of the vocabulary, a syntax table of another length.
        """
        token_ids = checked_ids(token_ids, syntax)
        if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
            raise ValueError(
                f"token ids must lie in 0 to {vocab_size - 1}, not {token_ids.min()} to {token_ids.max()}: "
                "give the vocab_size of the tokenizer that made them."
            )
        previous = previous_ids(token_ids, window_starts)

        def counts_within(index: int) -> np.ndarray:
            assert syntax is not None
            return np.bincount(token_ids[syntax.members(CLASS_NAMES[index])], minlength=vocab_size)

        return cls(
            num_tokens=len(token_ids),
            token_counts=np.bincount(token_ids, minlength=vocab_size),
            class_counts=syntax.counts() if syntax is not None else None,
            previous_counts=np.bincount(previous[previous >= 0], minlength=vocab_size),
            counts_within=counts_within if syntax is not None else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Firings:
    """A uniform sample of a feature's firings, or all of them: the tokens on which it fires, in any order."""

    num_firings: int
    """In the whole text."""
    token_ids: np.ndarray
    """integers ``[n]``"""
    class_counts: np.ndarray | None = None
    """int64 ``[C]``: how many of the n lie in each class."""
    previous_ids: np.ndarray | None = None
    """integers ``[n]``: the id before each in its window, -1 where there is none."""
    syntax: SyntaxTable | None = None
    """Classes of each of the n, for tokens within a class."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if n > self.num_firings:
            raise ValueError(
                f"{n} firings were sampled from {self.num_firings} in all; give the number in the whole text"
            )
        if n == 0 and self.num_firings:
            raise ValueError(f"no firing was sampled from {self.num_firings}; a label needs some")
        for name in ("previous_ids", "syntax"):
            other = getattr(self, name)
            length = n if other is None else other.num_tokens if isinstance(other, SyntaxTable) else len(other)
            if length != n:
                raise ValueError(
                    f"{name} speaks of {length} firings and token_ids of {n}; give those of the same firings"
                )

    @classmethod
    def at(
        cls,
        positions: np.ndarray,
        token_ids: np.ndarray,
        syntax: SyntaxTable | None = None,
        window_starts: np.ndarray | None = None,
        *,
        num_firings: int | None = None,
    ) -> Firings:
        """The firings at these positions of a text that fits into memory.

        Args:
            positions: tokens where the feature fires, each once.
            token_ids: the text, ``[num_tokens]``.
            syntax, window_starts: as for `TextCounts.of`.
            num_firings: firings in the whole text; None: these are all.

        Raises:
            ValueError: positions that repeat or lie outside of the text.
        """
        token_ids = checked_ids(token_ids, syntax)
        positions = checked_positions(positions, len(token_ids))
        here = syntax.select(positions) if syntax is not None else None
        return cls(
            num_firings=len(positions) if num_firings is None else num_firings,
            token_ids=token_ids[positions],
            class_counts=here.counts() if here is not None else None,
            previous_ids=previous_ids(token_ids, window_starts)[positions],
            syntax=here,
        )

    @property
    def num_sampled(self) -> int:
        return len(self.token_ids)

    @property
    def share(self) -> float:
        """Sampled firings as a share of all; 1 where nothing was left out."""
        return self.num_sampled / self.num_firings if self.num_firings else 1.0


class LabelFinder:
    """Finds labels for many features of one text.

    Token sets are built by the odds that a token fires, ``P(fire | token)``, shrunk towards the feature's own rate as
    if every token had been seen ``prior_count`` times more, and made of tokens that fire at least twice (by estimate,
    where firings were sampled): a token that fired once must not lead, and a set of such tokens never counts as
    reaching the coverage. Without a limit on the size, the sets of highest lift are the beginnings of that order. With
    one, they are those that maximise ``firings - price * tokens`` for some price, and the highest price that still
    reaches the coverage is found by bisection. A few repairs around that price (drop what is not needed, close the gap
    with one token) make up for the last token of the order, which may overshoot the coverage by far.

    Args:
        counts: of the whole training text; the kinds of sets that they leave out are not looked at.
        coverage: share of the training firings that a label must hold.
        max_set_size: most token ids in a set, so that a label can be read.
        enough_lift: lift at which tokens and syntax classes are good enough to leave compound kinds aside.
        compound: whether to look at tokens within a class and tokens after tokens at all.
        prior_count: strength of the shrinkage, in tokens.

    Raises:
        ValueError: settings out of range.
    """

    def __init__(
        self,
        counts: TextCounts,
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
        self.counts = counts
        self.coverage, self.max_set_size, self.enough_lift = coverage, max_set_size, enough_lift
        self.compound, self.prior_count = compound, prior_count
        self._counts_within: dict[int, np.ndarray] = {}

    def find(self, firings: Firings) -> Candidate:
        """The label of a feature with these firings.

        Raises:
            ValueError: without a single firing, or with more than there are tokens.
        """
        if firings.num_firings == 0:
            raise ValueError("a feature that never fires in the training part has no label; leave it out.")
        if firings.num_firings > self.counts.num_tokens:
            raise ValueError(
                f"{firings.num_firings} firings on {self.counts.num_tokens} tokens: count both on the same text."
            )
        simple = [*self._token_sets(firings), *self._classes(firings)]
        reached = [candidate for candidate in simple if candidate.reaches_coverage]
        best = max(reached, key=_lift, default=None)
        if self.compound and (best is None or best.train.lift < self.enough_lift):
            simple += [*self._after(firings), *self._within(firings)]
            reached = [candidate for candidate in simple if candidate.reaches_coverage]
            best = max(reached, key=_lift, default=None)
        return best if best is not None else max(simple, key=lambda candidate: candidate.train.phi)

    # one method per kind of set: the best that reaches the coverage, and the one of highest phi

    def _token_sets(self, firings: Firings) -> Iterator[Candidate]:
        for chosen in self._best_sets(firings.token_ids, self.counts.token_counts, firings):
            yield self._candidate(TokenSet(token_ids=chosen.ids), chosen, firings)

    def _after(self, firings: Firings) -> Iterator[Candidate]:
        if self.counts.previous_counts is None or firings.previous_ids is None:
            return
        fired = firings.previous_ids[firings.previous_ids >= 0]
        for chosen in self._best_sets(fired, self.counts.previous_counts, firings):
            yield self._candidate(AfterTokens(token_ids=chosen.ids), chosen, firings)

    def _classes(self, firings: Firings) -> Iterator[Candidate]:
        if self.counts.class_counts is None or firings.class_counts is None:
            return
        for index in self._leading_classes(firings, 1):
            fired, members = int(firings.class_counts[index]), int(self.counts.class_counts[index])
            chosen = _Chosen((index,), fired, members, fired >= self.coverage * firings.num_sampled)
            yield self._candidate(SyntaxClass(name=CLASS_NAMES[index]), chosen, firings)

    def _within(self, firings: Firings) -> Iterator[Candidate]:
        if self.counts.counts_within is None or self.counts.class_counts is None or firings.syntax is None:
            return
        for index in self._leading_classes(firings, 4):
            name = CLASS_NAMES[index]
            if index not in self._counts_within:
                self._counts_within[index] = self.counts.counts_within(index)
            fired = firings.token_ids[firings.syntax.members(name)]
            for chosen in self._best_sets(fired, self._counts_within[index], firings):
                yield self._candidate(TokensWithinClass(token_ids=chosen.ids, name=name), chosen, firings)

    def _leading_classes(self, firings: Firings, number: int) -> list[int]:
        """The ``number`` classes of highest lift that reach the coverage, and as many of highest phi."""
        fired, members = firings.class_counts, self.counts.class_counts
        assert fired is not None
        assert members is not None
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = np.where(fired >= self.coverage * firings.num_sampled, fired / members, -1.0)
        phi = self._phi(fired, members, firings)
        by_lift = [int(index) for index in np.argsort(-lift, kind="stable")[:number] if lift[index] > 0]
        by_phi = [int(index) for index in np.argsort(-phi, kind="stable")[:number]]
        return list(dict.fromkeys([*by_lift, *by_phi]))

    def _phi(self, fired: np.ndarray, members: np.ndarray, firings: Firings) -> np.ndarray:
        """Phi of sets that hold ``fired`` of the sampled firings, estimated for all."""
        both = np.minimum(fired / firings.share, members)
        return phi_of(both, members, firings.num_firings, self.counts.num_tokens)

    def _candidate(self, label: LabelSet, chosen: _Chosen, firings: Firings) -> Candidate:
        train = Measured(
            num_tokens=self.counts.num_tokens,
            num_firings=firings.num_firings,
            num_members=chosen.num_members,
            num_both=min(round(chosen.num_fired / firings.share), chosen.num_members),
        )
        return Candidate(label=label, train=train, reaches_coverage=chosen.reaches)

    def _best_sets(self, fired_ids: np.ndarray, all_counts: np.ndarray, firings: Firings) -> list[_Chosen]:
        """Sets of ids, those with the most firings first: of highest lift at coverage, if any, and of highest phi.

        Args:
            fired_ids: the ids at the sampled firings.
            all_counts: how often each id occurs in the whole text, ``[V]``.
        """
        ids, seen = np.unique(fired_ids, return_counts=True)
        counts = all_counts[ids]
        fired = seen - _discount(seen) * (1 - firings.share)
        repeats = np.minimum(fired / firings.share, counts) >= 2
        if repeats.any():
            ids, seen, fired, counts = ids[repeats], seen[repeats], fired[repeats], counts[repeats]
        if len(ids) == 0:  # else nothing repeats: a set by phi can be named all the same, one at coverage cannot
            return []
        search = _Search(
            seen=seen.astype(np.float64),
            fired=fired,
            counts=counts.astype(np.float64),
            share=firings.share,
            rate=firings.num_firings / self.counts.num_tokens,
            prior_count=self.prior_count,
            coverage=self.coverage * firings.num_sampled,
            max_size=self.max_set_size,
        )
        sets = [search.at_coverage()] if search.reaches else []
        tried = search.at_many_prices()
        if tried:
            both = np.array([fired[chosen].sum() for chosen in tried])
            members = np.array([counts[chosen].sum() for chosen in tried])
            sets.append(tried[int(np.argmax(self._phi(both, members, firings)))])
        chosen_sets = []
        for chosen in sets:
            chosen = chosen[np.argsort(-fired[chosen], kind="stable")]
            num_fired = float(fired[chosen].sum())
            # tokens that fire once each are no evidence: any few firings have them
            reaches = search.reaches and num_fired >= search.needed and bool(repeats.any())
            chosen_sets.append(_Chosen(tuple(ids[chosen].tolist()), num_fired, int(counts[chosen].sum()), reaches))
        return chosen_sets


@dataclass(frozen=True)
class _Chosen:
    """A set of ids: what the sample and the text say of it."""

    ids: tuple[int, ...]
    num_fired: float  # of the sampled firings
    num_members: int  # of all tokens
    reaches: bool  # the coverage


def _discount(seen: np.ndarray) -> float:
    """What the sampled firings on an id say too much of the firings that were not sampled, on average.

    A set that is chosen by a sample holds more of the sample than of the rest, where firings also fall on ids that the
    sample missed: by Good and Turing as large a share as the share of the sample on ids that it holds once. Absolute
    discounting (Ney, Essen and Kneser 1994) takes that from all ids alike, ``n1 / (n1 + 2 n2)`` from each, with n1 and
    n2 ids that were sampled once and twice.
    """
    once, twice = int((seen == 1).sum()), int((seen == 2).sum())
    return _DISCOUNTED * once / (once + 2 * twice) if once else 0.0


class _Search:
    """Sets of the m ids on which a feature fires; sets are arrays of places in 0 to m - 1."""

    def __init__(
        self,
        *,
        seen: np.ndarray,  # float64 [m]: sampled firings on each id
        fired: np.ndarray,  # float64 [m]: the same, discounted
        counts: np.ndarray,  # float64 [m]: occurrences of each id in the text
        share: float,
        rate: float,
        prior_count: float,
        coverage: float,  # sampled firings that a set must hold
        max_size: int,
    ) -> None:
        self.fired, self.counts, self.max_size = fired, counts, max_size
        # an id that occurs c times was seen to fire or not c * share times: a sample says less, and is shrunk more
        self.expected = (seen + prior_count * rate) / (counts * share + prior_count) * counts
        largest = self.at_price(0.0)
        self.reaches = bool(seen[largest].sum() >= coverage)
        # the discount asks for wider sets, not for those that are wider than can be; less a hair, for sums are rounded
        self.needed = min(coverage, fired[largest].sum() * (1 - 1e-12))

    def at_price(self, price: float) -> np.ndarray:
        """The set of greatest ``firings - price * tokens``."""
        gain = self.expected - price * self.counts
        chosen = np.argsort(-gain, kind="stable")[: self.max_size]
        return chosen[gain[chosen] > 0]

    def at_many_prices(self) -> list[np.ndarray]:
        """The sets at prices from 0 to nearly 1, without empty ones."""
        prices = np.array([0.0, *np.geomspace(1e-4, 0.9, 24)])
        gains = self.expected - prices[:, None] * self.counts  # [prices, m]
        order = np.argsort(-gains, axis=1, kind="stable")[:, : self.max_size]
        sets = [chosen[gain[chosen] > 0] for chosen, gain in zip(order, gains, strict=True)]
        return [chosen for chosen in sets if len(chosen)]

    def at_coverage(self) -> np.ndarray:
        """The set of highest lift among those tried that hold the needed firings."""
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fired[self.at_price(middle)].sum() >= self.needed else (low, middle)
        odds = self.expected / self.counts
        best, best_lift = None, -1.0
        for chosen in (
            self.at_price(low),
            self.at_price(low / 2),
            self.at_price(0.0),
            *_closed_by_one(self.at_price(high), self.fired, self.counts, odds, self.needed),
        ):
            for order in (odds, -self.counts):  # those of lowest odds first, or the most frequent first
                kept = _pruned(chosen, self.fired, order, self.needed)
                lift = self.fired[kept].sum() / self.counts[kept].sum()
                if lift > best_lift:
                    best, best_lift = kept, lift
        assert best is not None
        return best


def _lift(candidate: Candidate) -> float:
    return candidate.train.lift


def _closed_by_one(
    chosen: np.ndarray, fired: np.ndarray, counts: np.ndarray, odds: np.ndarray, needed: float
) -> Iterator[np.ndarray]:
    """The beginnings of ``chosen`` by odds, each with the rarest single id that lifts it over ``needed`` firings.

    The last id that the order by odds takes can be a frequent one that overshoots the coverage by far.
    """
    ordered = chosen[np.argsort(-odds[chosen], kind="stable")]
    sizes = np.arange(len(ordered))
    rank = np.full(len(fired), len(ordered))
    rank[ordered] = sizes
    missing = needed - (np.cumsum(fired[ordered]) - fired[ordered])  # after each beginning
    closes = (fired >= missing[:, None]) & (rank >= sizes[:, None])  # [beginnings, m]
    last = np.argmin(np.where(closes, counts, np.inf), axis=1) if len(ordered) else sizes
    for size in sizes[closes.any(axis=1)]:
        yield np.append(ordered[:size], last[size])


def _pruned(chosen: np.ndarray, fired: np.ndarray, order: np.ndarray, needed: float) -> np.ndarray:
    """``chosen`` without the ids that the coverage can do without, dropped in the order of ``order``."""
    chosen = chosen[np.argsort(order[chosen], kind="stable")]
    amounts = fired[chosen]
    total = amounts.sum()
    if total - amounts.min() < needed:
        return chosen
    kept = []
    for index, amount in zip(chosen.tolist(), amounts.tolist(), strict=True):
        if total - amount >= needed:
            total -= amount
        else:
            kept.append(index)
    return np.array(kept, dtype=np.int64)
