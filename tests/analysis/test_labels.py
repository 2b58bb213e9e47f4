"""Labels: planted features are found, chance is not, and every number agrees with a loop over tokens.

A feature of which all firings are known gets the label that the plain search of `PlainFinder` finds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable, token_classes
from saescope.analysis import labels
from saescope.analysis.label_sets import (
    AfterTokens,
    LabelSet,
    Measured,
    SyntaxClass,
    TokenSet,
    TokensWithinClass,
    describe,
    measure,
    members,
    previous_ids,
)
from saescope.analysis.labels import Candidate, Firings, LabelFinder, TextCounts

NAMES = ["alpha", "beta", "gamma", "delta", "omega", "node", "value", "path"]


class Corpus:
    """Random functions in Python, cut into words; one word is one token."""

    def __init__(self, seed: int, vocabulary: dict[str, int], num_functions: int = 700) -> None:
        rng = np.random.default_rng(seed)
        name = lambda: str(rng.choice(NAMES))  # noqa: E731
        parts = []
        for _ in range(num_functions):
            parts.append(f"def {name()}({name()}, {name()}=1):\n")
            if rng.random() < 0.5:
                parts.append(f'    """The {name()} in {name()}."""\n')
            for _ in range(rng.integers(1, 4)):
                comment = f"  # {name()} {name()}" if rng.random() < 0.4 else ""
                parts.append(f"    {name()} = {name()}({name()}, {name()}={rng.integers(9)}){comment}\n")
            if rng.random() < 0.3:
                parts.append(f"    {name()}('{name()} {name()}')\n")
            parts.append(f"    {rng.choice(['return', 'yield', 'raise'])} {name()}\n")
        source = "".join(parts)
        spans = np.array([match.span() for match in re.finditer(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+", source)])
        texts = [source[start:end] for start, end in spans]
        for text in texts:
            vocabulary.setdefault(text, len(vocabulary))
        self.ids = np.array([vocabulary[text] for text in texts])
        self.syntax = token_classes(source, spans[:, 0], spans[:, 1])

    def positions(self, inside: np.ndarray, rng: np.random.Generator, miss: float, noise: float) -> np.ndarray:
        """Firings in ``inside`` but for a share ``miss``, and elsewhere a share ``noise`` of all firings."""
        hits = np.flatnonzero(inside & (rng.random(len(inside)) >= miss))
        wrong = rng.choice(np.flatnonzero(~inside), int(len(hits) * noise / (1 - noise)), replace=False)
        return np.concatenate([hits, wrong])


VOCABULARY: dict[str, int] = {}
TRAIN, HELD_OUT = Corpus(0, VOCABULARY), Corpus(1, VOCABULARY, num_functions=300)
TEXTS = list(VOCABULARY)


class Finder:
    """A label finder for a text in memory, and the features that fire on it."""

    def __init__(
        self, ids: np.ndarray, vocab_size: int, syntax: SyntaxTable | None = None, starts: Any = None, **settings: Any
    ) -> None:
        self.text = (ids, syntax, starts)
        self.finder = LabelFinder(TextCounts.of(ids, vocab_size, syntax, starts), **settings)

    def find(self, positions: np.ndarray, num_firings: int | None = None) -> Candidate:
        return self.finder.find(Firings.at(positions, *self.text, num_firings=num_firings))


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder(TRAIN.ids, len(TEXTS), TRAIN.syntax)


def is_one_of(corpus: Corpus, *texts: str) -> np.ndarray:
    return np.isin(corpus.ids, [VOCABULARY[text] for text in texts])


def held_out(label: LabelSet, positions: np.ndarray) -> Measured:
    return measure(label, positions, HELD_OUT.ids, HELD_OUT.syntax)


# --- planted features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comment", "docstring", "name of a defined function", "name of a keyword argument"])
@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_a_feature_of_a_class_is_named_by_it(finder: Finder, name: str, noise: float) -> None:
    rng = np.random.default_rng(2)
    candidate = finder.find(TRAIN.positions(TRAIN.syntax.members(name), rng, 5 * noise, noise))
    assert candidate.label == SyntaxClass(name=name)
    assert candidate.reaches_coverage
    inside = HELD_OUT.syntax.members(name)
    measured = held_out(candidate.label, HELD_OUT.positions(inside, rng, 5 * noise, noise))
    assert measured.precision == pytest.approx(1 - noise, abs=0.01)
    assert measured.lift == pytest.approx(measured.precision / inside.mean())
    assert measured.recall == pytest.approx(1 - 5 * noise, abs=0.07)


@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_a_feature_of_tokens_is_named_by_them(finder: Finder, noise: float) -> None:
    rng, texts = np.random.default_rng(3), (" return", " raise")
    candidate = finder.find(TRAIN.positions(is_one_of(TRAIN, *texts), rng, 0.2, noise))
    assert isinstance(candidate.label, TokenSet)
    assert {TEXTS[index] for index in candidate.label.token_ids} == set(texts)
    measured = held_out(candidate.label, HELD_OUT.positions(is_one_of(HELD_OUT, *texts), rng, 0.2, noise))
    assert measured.precision == pytest.approx(1 - noise, abs=0.01)
    assert measured.lift == pytest.approx(measured.precision / is_one_of(HELD_OUT, *texts).mean())


def test_tokens_within_a_class() -> None:
    texts = (" alpha", " beta")
    finder = Finder(TRAIN.ids, len(TEXTS), TRAIN.syntax, enough_lift=100)
    candidate = finder.find(np.flatnonzero(is_one_of(TRAIN, *texts) & TRAIN.syntax.members("comment")))
    assert isinstance(candidate.label, TokensWithinClass)
    assert {TEXTS[index] for index in candidate.label.token_ids} == set(texts)
    here = is_one_of(HELD_OUT, *texts) & HELD_OUT.syntax.members("comment")
    measured = held_out(candidate.label, np.flatnonzero(here))
    assert (measured.precision, measured.recall) == (1, 1)


def test_tokens_after_tokens() -> None:
    # without syntax, so that nothing else can name the word after `return`
    train, after = is_one_of(TRAIN, " return"), is_one_of(HELD_OUT, " return")
    plain = Finder(TRAIN.ids, len(TEXTS), enough_lift=30)
    candidate = plain.find(np.flatnonzero(train[:-1]) + 1)
    assert candidate.label == AfterTokens(token_ids=(VOCABULARY[" return"],))
    measured = measure(candidate.label, np.flatnonzero(after[:-1]) + 1, HELD_OUT.ids)
    assert (measured.precision, measured.recall) == (1, 1)
    simple = Finder(TRAIN.ids, len(TEXTS), compound=False).find(np.flatnonzero(train[:-1]) + 1)
    assert isinstance(simple.label, TokenSet)


def test_simple_kinds_come_first_when_their_lift_is_enough() -> None:
    within = np.flatnonzero(is_one_of(TRAIN, " alpha") & TRAIN.syntax.members("comment"))
    kinds = {}
    for enough_lift in (1.0, 1000.0):
        finder = Finder(TRAIN.ids, len(TEXTS), TRAIN.syntax, enough_lift=enough_lift)
        kinds[enough_lift] = type(finder.find(within).label)
    assert kinds[1.0] in (TokenSet, SyntaxClass)
    assert kinds[1000.0] is TokensWithinClass


def test_chance_gets_no_label_on_held_out_tokens(finder: Finder) -> None:
    rng = np.random.default_rng(4)
    for num_firings in (1, 2, 3, 5, 8, 12, 20, 50, 200, 1000):
        for _ in range(5):
            candidate = finder.find(rng.choice(len(TRAIN.ids), num_firings, replace=False))
            measured = held_out(candidate.label, rng.choice(len(HELD_OUT.ids), 500, replace=False))
            assert not (measured.precision >= 0.8 and measured.lift >= 10)
            assert math.isnan(measured.lift) or measured.lift < 5 or measured.num_both < 10


def test_firings_that_never_repeat_a_token_are_no_coverage() -> None:
    finder = Finder(np.arange(1000), 1000)
    candidate = finder.find(np.array([5, 500, 900]))
    assert candidate.train.precision == 1
    assert not candidate.reaches_coverage


# --- the rule ----------------------------------------------------------------------------------------------------------


def test_the_chosen_token_set_is_close_to_the_best_of_all_that_reach_the_coverage() -> None:
    rng = np.random.default_rng(5)
    for trial in range(20):
        ids = rng.choice(9, 4000, p=rng.dirichlet(np.ones(9)))
        odds = rng.choice([0.02, 0.1, 0.5, 0.9], 9)
        firings = np.flatnonzero(rng.random(4000) < odds[ids])
        finder = Finder(ids, 9, compound=False, prior_count=0)
        counts, fired = np.bincount(ids, minlength=9), np.bincount(ids[firings], minlength=9)
        sets = [[token for token in range(9) if chosen >> token & 1] for chosen in range(1, 512)]
        reach = [chosen for chosen in sets if fired[chosen].sum() >= 0.9 * len(firings)]
        best = max(fired[chosen].sum() / counts[chosen].sum() for chosen in reach)
        candidate = finder.find(firings)
        assert candidate.reaches_coverage
        found = candidate.train.num_both / candidate.train.num_members
        assert found >= 0.93 * best, trial  # the search is not over all 512 sets


def test_many_rare_tokens_do_not_crowd_out_the_few_that_matter() -> None:
    # 100 tokens that always fire but seldom occur, and 4 that hold the coverage with odds of one half
    rng = np.random.default_rng(6)
    rare, common = np.repeat(np.arange(100), 3), np.repeat(np.arange(100, 104), 2000)
    ids = rng.permutation(np.concatenate([rare, common, np.full(60_000, 104)]))
    firings = np.flatnonzero((ids < 100) | ((ids < 104) & (rng.random(len(ids)) < 0.5)))
    candidate = Finder(ids, 105, compound=False).find(firings)
    assert candidate.reaches_coverage
    assert set(range(100, 104)) <= set(candidate.label.token_ids)
    assert len(candidate.label.token_ids) <= 24


def test_a_set_stays_readable_and_says_when_it_does_not_reach() -> None:
    ids = np.tile(np.arange(200), 50)
    firings = np.flatnonzero((ids < 60) & (np.arange(len(ids)) % 3 > 0))
    candidate = Finder(ids, 200, compound=False).find(firings)
    assert not candidate.reaches_coverage
    assert len(candidate.label.token_ids) == 24
    assert set(candidate.label.token_ids) <= set(range(60))
    assert candidate.train.precision == pytest.approx(24 / 60, abs=0.02)
    wider = Finder(ids, 200, compound=False, max_set_size=60).find(firings)
    assert wider.reaches_coverage
    assert set(wider.label.token_ids) <= set(range(60))


def test_tokens_are_listed_by_their_firings() -> None:
    ids = np.repeat([0, 1, 2, 3], [10, 40, 20, 1000])
    candidate = Finder(ids, 4, compound=False, coverage=1.0).find(np.flatnonzero(ids < 3))
    assert candidate.label == TokenSet(token_ids=(1, 2, 0))


def test_train_numbers_are_those_of_measure(finder: Finder) -> None:
    rng = np.random.default_rng(7)
    kinds = set()
    for texts in (["="], [" return", " alpha"], [" alpha", "beta", " #"], [","], ["\n"]):
        for inside in (is_one_of(TRAIN, *[t for t in texts if t in VOCABULARY]), TRAIN.syntax.members("comment")):
            for shift in (0, 1):
                firings = TRAIN.positions(np.roll(inside, shift), rng, 0.5, 0.05) if inside.any() else np.array([3, 4])
                candidate = finder.find(firings)
                kinds.add(type(candidate.label))
                assert candidate.train == measure(candidate.label, firings, TRAIN.ids, TRAIN.syntax)
    assert len(kinds) >= 3


# --- all firings, and samples of them ----------------------------------------------------------------------------------


class PlainFinder:
    """The search by its definition: all firings, one count per id of the vocabulary, one set at a time."""

    def __init__(
        self,
        ids: np.ndarray,
        vocab_size: int,
        syntax: SyntaxTable,
        starts: np.ndarray,
        *,
        coverage: float = 0.9,
        max_set_size: int = 24,
        enough_lift: float = 10.0,
        compound: bool = True,
        prior_count: float = 10.0,
    ) -> None:
        self.ids, self.vocab_size, self.syntax, self.starts = ids, vocab_size, syntax, starts
        self.coverage, self.max_set_size, self.prior_count = coverage, max_set_size, prior_count
        self.enough_lift, self.compound = enough_lift, compound
        self.previous = np.array([-1, *ids[:-1]])
        self.previous[starts] = -1

    def find(self, positions: np.ndarray) -> Candidate:
        fires = np.zeros(len(self.ids), dtype=bool)
        fires[positions] = True
        candidates = [*self.tokens(fires), *self.classes(fires, 1)]
        best = self.best(candidates)
        if self.compound and (best is None or best.train.lift < self.enough_lift):
            candidates += [*self.after(fires), *self.within(fires)]
            best = self.best(candidates)
        return best or max(candidates, key=lambda candidate: candidate.train.phi)

    def best(self, candidates: list[Candidate]) -> Candidate | None:
        reaching = [candidate for candidate in candidates if candidate.reaches_coverage]
        return max(reaching, key=lambda candidate: candidate.train.lift, default=None)

    def tokens(self, fires: np.ndarray) -> Iterator[Candidate]:
        for chosen, repeats in self.sets(self.ids, fires, np.ones_like(fires)):
            yield self.candidate(TokenSet(token_ids=chosen), fires, repeats)

    def after(self, fires: np.ndarray) -> Iterator[Candidate]:
        for chosen, repeats in self.sets(self.previous, fires, self.previous >= 0):
            yield self.candidate(AfterTokens(token_ids=chosen), fires, repeats)

    def classes(self, fires: np.ndarray, number: int) -> Iterator[Candidate]:
        ranked = [self.candidate(SyntaxClass(name=name), fires, True) for name in CLASS_NAMES]
        by_lift = sorted((c for c in ranked if c.reaches_coverage and c.train.num_members), key=lambda c: -c.train.lift)
        by_phi = sorted(ranked, key=lambda c: -c.train.phi)
        for index, candidate in enumerate(chosen := by_lift[:number] + by_phi[:number]):
            if candidate not in chosen[:index]:
                yield candidate

    def within(self, fires: np.ndarray) -> Iterator[Candidate]:
        for candidate in self.classes(fires, 4):
            name = candidate.label.name  # type: ignore[union-attr]
            for chosen, repeats in self.sets(self.ids, fires, self.syntax.members(name)):
                yield self.candidate(TokensWithinClass(token_ids=chosen, name=name), fires, repeats)

    def candidate(self, label: LabelSet, fires: np.ndarray, repeats: bool) -> Candidate:
        train: Measured = measure(label, np.flatnonzero(fires), self.ids, self.syntax, self.starts)
        reaches = repeats and train.num_both >= self.coverage * train.num_firings
        return Candidate(label=label, train=train, reaches_coverage=reaches)

    def sets(self, ids: np.ndarray, fires: np.ndarray, inside: np.ndarray) -> Iterator[tuple[tuple[int, ...], bool]]:
        """The set of highest lift at coverage, if any, and the one of highest phi; and whether their ids repeat."""
        num_firings, num_tokens = int(fires.sum()), len(ids)
        all_fired = np.bincount(ids[fires & inside], minlength=self.vocab_size)
        all_counts = np.bincount(ids[inside], minlength=self.vocab_size)
        names = [i for i in range(self.vocab_size) if all_fired[i] >= 2]
        repeats = bool(names)
        names = names or [i for i in range(self.vocab_size) if all_fired[i]]
        if not names:
            return
        fired, counts = all_fired[names].astype(float), all_counts[names].astype(float)
        expected = (fired + self.prior_count * num_firings / num_tokens) / (counts + self.prior_count) * counts
        odds, needed = expected / counts, self.coverage * num_firings

        def at_price(price: float) -> list[int]:
            gain = expected - price * counts
            return [i for i in sorted(range(len(names)), key=lambda i: -gain[i])[: self.max_set_size] if gain[i] > 0]

        def total(of: np.ndarray, chosen: list[int]) -> float:
            return sum(of[i] for i in chosen)

        def named(chosen: list[int]) -> tuple[int, ...]:
            return tuple(names[i] for i in sorted(chosen, key=lambda i: -fired[i]))

        if total(fired, at_price(0.0)) >= needed:
            low, high = 0.0, 1.0
            for _ in range(24):
                middle = (low + high) / 2
                if total(fired, at_price(middle)) >= needed:
                    low = middle
                else:
                    high = middle
            tried = [at_price(low), at_price(low / 2), at_price(0.0)]
            beginning = sorted(at_price(high), key=lambda i: -odds[i])
            for size in range(len(beginning)):
                start = beginning[:size]
                closing = [i for i in range(len(names)) if i not in start and fired[i] >= needed - total(fired, start)]
                if closing:
                    tried.append([*start, min(closing, key=lambda i: counts[i])])
            pruned = [self.pruned(chosen, fired, order, needed) for chosen in tried for order in (odds, -counts)]
            yield named(max(pruned, key=lambda chosen: total(fired, chosen) / total(counts, chosen))), repeats

        def phi(chosen: list[int]) -> Any:
            both, size = total(fired, chosen), total(counts, chosen)
            spread = np.sqrt(size * (num_tokens - size)) * np.sqrt(num_firings * (num_tokens - num_firings))
            return (both * num_tokens - size * num_firings) / spread if spread else 0.0

        by_price = [chosen for price in (0.0, *np.geomspace(1e-4, 0.9, 24)) if (chosen := at_price(price))]
        if by_price:
            yield named(max(by_price, key=phi)), repeats

    def pruned(self, chosen: list[int], fired: np.ndarray, order: np.ndarray, needed: float) -> list[int]:
        kept = sorted(chosen, key=lambda i: order[i])
        left = sum(fired[i] for i in kept)
        for i in list(kept):
            if left - fired[i] >= needed:
                kept.remove(i)
                left -= fired[i]
        return kept


def features_of_all_sorts(rng: np.random.Generator) -> list[np.ndarray]:
    """Positions at which features fire: by tokens, classes, what stands before, chance, and mixtures of them."""
    found = []
    for _ in range(12):
        odds = rng.choice([0.0, 0.02, 0.3, 0.9], len(TEXTS), p=[0.6, 0.2, 0.1, 0.1])[TRAIN.ids]
        if rng.random() < 0.5:
            odds = np.roll(odds, 1)
        if rng.random() < 0.5:
            odds = odds * TRAIN.syntax.members(str(rng.choice(["comment", "name", "string", "inside brackets"])))
        if rng.random() < 0.3:
            odds = np.maximum(odds, 0.7 * TRAIN.syntax.members("name of a defined function"))
        found.append(np.flatnonzero(rng.random(len(odds)) < odds))
    found += [rng.choice(len(TRAIN.ids), n, replace=False) for n in (1, 2, 7, 40, 400)]
    return [positions for positions in found if len(positions)]


@pytest.mark.parametrize(
    "settings",
    [
        {"compound": False, "max_set_size": 128},
        {"compound": False, "max_set_size": 5, "coverage": 0.5},
        {"enough_lift": 1e9, "max_set_size": 24},
        {"enough_lift": 20.0, "prior_count": 0.0},
    ],
    ids=["simple", "small", "compound", "no prior"],
)
def test_all_firings_give_the_label_of_the_plain_search(settings: dict[str, Any]) -> None:
    starts = np.arange(0, len(TRAIN.ids), 50)
    finder = Finder(TRAIN.ids, len(TEXTS), TRAIN.syntax, starts, **settings)
    plain = PlainFinder(TRAIN.ids, len(TEXTS), TRAIN.syntax, starts, **settings)
    kinds, reached = set(), 0
    for positions in features_of_all_sorts(np.random.default_rng(9)):
        candidate = finder.find(positions)
        assert candidate == plain.find(positions)
        kinds.add(type(candidate.label))
        reached += candidate.reaches_coverage
    assert len(kinds) >= 2 + ("enough_lift" in settings)
    assert reached >= 3


def test_numbers_from_a_sample_are_exact_in_the_text_and_near_in_the_firings() -> None:
    rng = np.random.default_rng(10)
    inside = is_one_of(TRAIN, "=", ",", ")", " alpha") | TRAIN.syntax.members("docstring")
    firings = TRAIN.positions(inside, rng, 0.3, 0.05)
    assert len(firings) > 1500
    finder = Finder(TRAIN.ids, len(TEXTS), TRAIN.syntax, compound=False)
    estimates = []
    for _ in range(30):
        sample = rng.choice(firings, 300, replace=False)
        candidate = finder.find(sample, len(firings))
        exact = measure(candidate.label, firings, TRAIN.ids, TRAIN.syntax)
        assert candidate.train.num_firings == len(firings)
        assert candidate.train.num_tokens == len(TRAIN.ids)
        assert candidate.train.num_members == exact.num_members
        assert candidate.train.num_both <= exact.num_members
        estimates.append(candidate.train.precision - exact.precision)
    assert np.mean(estimates) == pytest.approx(0, abs=0.01)
    assert np.std(estimates) < 0.03


def test_a_sample_finds_a_planted_class_and_planted_tokens(finder: Finder) -> None:
    rng = np.random.default_rng(11)
    firings = TRAIN.positions(TRAIN.syntax.members("comment"), rng, 0.1, 0.03)
    assert len(firings) > 5 * 150
    candidate = finder.find(rng.choice(firings, 150, replace=False), len(firings))
    assert candidate.label == SyntaxClass(name="comment")
    texts = ("(", " return", " alpha")
    firings = TRAIN.positions(is_one_of(TRAIN, *texts), rng, 0.2, 0.03)
    assert len(firings) > 5 * 150
    candidate = finder.find(rng.choice(firings, 150, replace=False), len(firings))
    assert isinstance(candidate.label, TokenSet)
    assert {TEXTS[index] for index in candidate.label.token_ids} == set(texts)


def test_labels_of_samples_hold_on_held_out_text_nearly_as_well_as_those_of_all_firings() -> None:
    # 600 ids of which a feature fires on some sixty, seldom or often: wide features, as dictionaries have them
    rng = np.random.default_rng(12)
    frequency = rng.dirichlet(np.full(600, 0.5))
    train, other = rng.choice(600, 80_000, p=frequency), rng.choice(600, 80_000, p=frequency)
    finder = Finder(train, 600, compound=False, max_set_size=128)
    losses, lifts = [], []
    for _ in range(12):
        odds = np.where(rng.random(600) < 0.1, rng.beta(0.5, 0.5, 600), 0.002)
        firings = np.flatnonzero(rng.random(len(train)) < odds[train])
        elsewhere = np.flatnonzero(rng.random(len(other)) < odds[other])
        assert len(firings) > 5 * 200
        full = measure(finder.find(firings).label, elsewhere, other)
        part = measure(finder.find(rng.choice(firings, 200, replace=False), len(firings)).label, elsewhere, other)
        losses.append(full.precision - part.precision)
        lifts.append(part.lift / full.lift)
    assert np.mean(losses) < 0.03
    assert min(lifts) > 0.4


def test_an_estimate_of_two_firings_counts_as_two_only_where_the_text_has_two() -> None:
    once = Finder(np.arange(1000), 1000)
    assert not once.find(np.array([5, 500, 900]), 300).reaches_coverage
    often = Finder(np.tile(np.arange(100), 10), 100)
    seen_once = np.array([0, 1, 2])
    assert often.find(seen_once, 30).reaches_coverage  # 10 firings on each by estimate
    assert not often.find(seen_once, 4).reaches_coverage
    assert not often.find(seen_once).reaches_coverage


def test_a_sample_is_shrunk_more_than_all_firings() -> None:
    # Of 100 + 1000 tokens all fire, and one in ten firings is looked at: 10 chances for id 0, 100 for id 1
    ids = np.repeat([0, 1, 2], [100, 1000, 8900])
    firings = Firings(num_firings=1100, token_ids=np.repeat([0, 1], [10, 100]))
    finder = LabelFinder(TextCounts.of(ids, 3), max_set_size=1, coverage=0.05, prior_count=10)
    # phi takes the larger set; by odds, shrunk to 0.11 as if by 10 tokens each, id 1 leads although id 0 is as pure
    assert finder.find(firings).label == TokenSet(token_ids=(1,))
    search = labels._Search(
        seen=np.array([10.0, 100.0]), fired=np.array([10.0, 100.0]), counts=np.array([100.0, 1000.0]),
        share=0.1, rate=0.11, prior_count=10, coverage=1.0, max_size=2,
    )  # fmt: skip
    odds = search.expected / search.counts
    assert odds.tolist() == pytest.approx([(10 + 1.1) / (10 + 10), (100 + 1.1) / (100 + 10)])


def test_the_discount_is_half_of_what_ids_sampled_once_and_twice_say() -> None:
    # ids 0 and 1 are sampled once, 2 and 3 twice, 4 eight times: n1 / (n1 + 2 n2) = 1/3
    ids = np.repeat(np.arange(5), 200)
    firings = Firings(num_firings=140, token_ids=np.array([0, 1, 2, 2, 3, 3, *[4] * 8]))
    candidate = LabelFinder(TextCounts.of(ids, 5), coverage=0.1).find(firings)
    assert candidate.label == TokenSet(token_ids=(4,))
    assert candidate.train.num_both == round((8 - 0.5 / 3 * (1 - 0.1)) / 0.1)
    everything = Firings(num_firings=14, token_ids=firings.token_ids)
    assert LabelFinder(TextCounts.of(ids, 5), coverage=0.1).find(everything).train.num_both == 8


# --- the plain definitions ---------------------------------------------------------------------------------------------


def loop(label: LabelSet, ids: np.ndarray, syntax: SyntaxTable, starts: set[int]) -> list[bool]:
    inside = []
    for position in range(len(ids)):
        if isinstance(label, TokenSet):
            inside.append(ids[position] in label.token_ids)
        elif isinstance(label, SyntaxClass):
            inside.append(label.name in syntax.classes_of(position))
        elif isinstance(label, TokensWithinClass):
            inside.append(ids[position] in label.token_ids and label.name in syntax.classes_of(position))
        else:
            inside.append(position > 0 and position not in starts and ids[position - 1] in label.token_ids)
    return inside


@pytest.mark.parametrize(
    "label",
    [
        TokenSet(token_ids=(1, 4, 7)),
        SyntaxClass(name="comment"),
        TokensWithinClass(token_ids=(1, 4, 7, 9), name="name"),
        AfterTokens(token_ids=(1, 4)),
    ],
    ids=lambda label: type(label).__name__,
)
def test_measure_against_a_loop(label: LabelSet) -> None:
    rng = np.random.default_rng(8)
    ids, syntax = TRAIN.ids[:600], TRAIN.syntax.select(np.arange(600))
    starts = np.array([0, 100, 101, 350])
    inside = loop(label, ids, syntax, set(starts.tolist()))
    firings = np.union1d(rng.choice(600, 80, replace=False), np.flatnonzero(inside)[::3])
    both = sum(inside[position] for position in firings)
    assert 0 < sum(inside) < 600
    assert 0 < both < len(firings)
    np.testing.assert_array_equal(members(label, ids, syntax, starts), inside)
    measured = measure(label, firings, ids, syntax, starts)
    assert measured == Measured(num_tokens=600, num_firings=len(firings), num_members=sum(inside), num_both=both)
    assert measured.precision == both / len(firings)
    assert measured.base_rate == sum(inside) / 600
    assert measured.lift == pytest.approx((both / len(firings)) / (sum(inside) / 600))
    assert measured.recall == both / sum(inside)
    fires = np.isin(np.arange(600), firings)
    assert measured.phi == pytest.approx(np.corrcoef(fires, inside)[0, 1])


def test_window_starts_have_no_token_before_them() -> None:
    ids = np.array([0, 1] * 400)
    starts = np.arange(0, 800, 2)
    assert TextCounts.of(ids, 2, window_starts=starts).previous_counts.tolist() == [400, 0]
    assert previous_ids(ids[:4], starts[:2]).tolist() == [-1, 0, -1, 0]
    assert members(AfterTokens(token_ids=(1,)), ids, window_starts=starts).sum() == 0
    assert members(AfterTokens(token_ids=(1,)), ids).sum() == 399


def test_numbers_without_firings_or_members() -> None:
    nothing = measure(TokenSet(token_ids=(0,)), np.array([], dtype=np.int64), np.array([0, 1]))
    assert nothing.num_firings == 0
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.lift)
    assert nothing.phi == 0
    absent = measure(TokenSet(token_ids=(5,)), np.array([1]), np.array([0, 1]))
    assert absent.precision == 0
    assert math.isnan(absent.lift)
    assert math.isnan(absent.recall)


# --- text and errors ---------------------------------------------------------------------------------------------------


def test_describe() -> None:
    texts = [" return", "\n" + " " * 8, "\t", "a`b", *"abcdefghi"]
    assert describe(TokenSet(token_ids=(0, 1, 2)), texts) == "`␣return`, `↵␣×8`, `⇥`"
    assert describe(TokenSet(token_ids=(3,)), texts) == "`` a`b ``"
    assert describe(TokenSet(token_ids=tuple(range(13))), texts).endswith("`a`, `b` and 7 more")
    assert describe(TokenSet(token_ids=(4, 5, 6)), texts, num_shown=1) == "`a` and 2 more"
    assert describe(SyntaxClass(name="comment"), texts) == "comment"
    assert describe(AfterTokens(token_ids=(0,)), texts) == "after `␣return`"
    assert describe(TokensWithinClass(token_ids=(0,), name="docstring"), texts) == "`␣return` within: docstring"


def test_errors_say_what_to_do(finder: Finder) -> None:
    with pytest.raises(ValueError, match="never fires"):
        finder.find(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="firing positions"):
        finder.find(np.array([len(TRAIN.ids)]))
    with pytest.raises(ValueError, match="repeat"):
        finder.find(np.array([3, 3]))
    with pytest.raises(ValueError, match="vocab_size"):
        TextCounts.of(np.array([0, 7]), 7)
    with pytest.raises(ValueError, match="coverage"):
        Finder(np.array([0]), 1, coverage=0)
    with pytest.raises(ValueError, match="one text"):
        TextCounts.of(np.array([0]), 1, SyntaxTable.empty(2))
    with pytest.raises(ValueError, match="integers"):
        TextCounts.of(np.array([0.5]), 1)
    with pytest.raises(ValueError, match="3 firings were sampled from 2"):
        Firings(num_firings=2, token_ids=np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="no firing was sampled"):
        Firings(num_firings=2, token_ids=np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="previous_ids speaks of 1 firings and token_ids of 2"):
        Firings(num_firings=2, token_ids=np.array([0, 1]), previous_ids=np.array([0]))
    with pytest.raises(ValueError, match="5 firings on 1 tokens"):
        LabelFinder(TextCounts.of(np.array([0]), 1)).find(Firings(num_firings=5, token_ids=np.array([0])))
    with pytest.raises(ValueError, match="give the syntax table"):
        members(SyntaxClass(name="comment"), np.array([0]))
    with pytest.raises(ValueError, match="did you mean 'comment'"):
        members(SyntaxClass(name="coment"), np.array([0]), SyntaxTable.empty(1))
