"""Labels: planted features are found, chance is not, and every number agrees with a loop over tokens."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from saescope.analysis.labels import (
    AfterTokens,
    LabelFinder,
    LabelSet,
    Measured,
    SyntaxClass,
    TokenSet,
    TokensWithinClass,
    describe,
    measure,
    members,
)
from saescope.analysis.python_syntax import SyntaxTable, token_classes

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


@pytest.fixture(scope="module")
def finder() -> LabelFinder:
    return LabelFinder(TRAIN.ids, len(TEXTS), TRAIN.syntax)


def is_one_of(corpus: Corpus, *texts: str) -> np.ndarray:
    return np.isin(corpus.ids, [VOCABULARY[text] for text in texts])


def held_out(label: LabelSet, positions: np.ndarray) -> Measured:
    return measure(label, positions, HELD_OUT.ids, HELD_OUT.syntax)


# --- planted features --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comment", "docstring", "name of a defined function", "name of a keyword argument"])
@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_a_feature_of_a_class_is_named_by_it(finder: LabelFinder, name: str, noise: float) -> None:
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
def test_a_feature_of_tokens_is_named_by_them(finder: LabelFinder, noise: float) -> None:
    rng, texts = np.random.default_rng(3), (" return", " raise")
    candidate = finder.find(TRAIN.positions(is_one_of(TRAIN, *texts), rng, 0.2, noise))
    assert isinstance(candidate.label, TokenSet)
    assert {TEXTS[index] for index in candidate.label.token_ids} == set(texts)
    measured = held_out(candidate.label, HELD_OUT.positions(is_one_of(HELD_OUT, *texts), rng, 0.2, noise))
    assert measured.precision == pytest.approx(1 - noise, abs=0.01)
    assert measured.lift == pytest.approx(measured.precision / is_one_of(HELD_OUT, *texts).mean())


def test_tokens_within_a_class() -> None:
    texts = (" alpha", " beta")
    finder = LabelFinder(TRAIN.ids, len(TEXTS), TRAIN.syntax, enough_lift=100)
    candidate = finder.find(np.flatnonzero(is_one_of(TRAIN, *texts) & TRAIN.syntax.members("comment")))
    assert isinstance(candidate.label, TokensWithinClass)
    assert {TEXTS[index] for index in candidate.label.token_ids} == set(texts)
    here = is_one_of(HELD_OUT, *texts) & HELD_OUT.syntax.members("comment")
    measured = held_out(candidate.label, np.flatnonzero(here))
    assert (measured.precision, measured.recall) == (1, 1)


def test_tokens_after_tokens() -> None:
    # without syntax, so that nothing else can name the word after `return`
    train, after = is_one_of(TRAIN, " return"), is_one_of(HELD_OUT, " return")
    plain = LabelFinder(TRAIN.ids, len(TEXTS), enough_lift=30)
    candidate = plain.find(np.flatnonzero(train[:-1]) + 1)
    assert candidate.label == AfterTokens(token_ids=(VOCABULARY[" return"],))
    measured = measure(candidate.label, np.flatnonzero(after[:-1]) + 1, HELD_OUT.ids)
    assert (measured.precision, measured.recall) == (1, 1)
    simple = LabelFinder(TRAIN.ids, len(TEXTS), compound=False).find(np.flatnonzero(train[:-1]) + 1)
    assert isinstance(simple.label, TokenSet)


def test_simple_kinds_come_first_when_their_lift_is_enough() -> None:
    within = np.flatnonzero(is_one_of(TRAIN, " alpha") & TRAIN.syntax.members("comment"))
    kinds = {}
    for enough_lift in (1.0, 1000.0):
        finder = LabelFinder(TRAIN.ids, len(TEXTS), TRAIN.syntax, enough_lift=enough_lift)
        kinds[enough_lift] = type(finder.find(within).label)
    assert kinds[1.0] in (TokenSet, SyntaxClass)
    assert kinds[1000.0] is TokensWithinClass


def test_chance_gets_no_label_on_held_out_tokens(finder: LabelFinder) -> None:
    rng = np.random.default_rng(4)
    for num_firings in (1, 2, 3, 5, 8, 12, 20, 50, 200, 1000):
        for _ in range(5):
            candidate = finder.find(rng.choice(len(TRAIN.ids), num_firings, replace=False))
            measured = held_out(candidate.label, rng.choice(len(HELD_OUT.ids), 500, replace=False))
            assert not (measured.precision >= 0.8 and measured.lift >= 10)
            assert math.isnan(measured.lift) or measured.lift < 5 or measured.num_both < 10


def test_firings_that_never_repeat_a_token_are_no_coverage() -> None:
    finder = LabelFinder(np.arange(1000), 1000)
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
        finder = LabelFinder(ids, 9, compound=False, prior_count=0)
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
    candidate = LabelFinder(ids, 105, compound=False).find(firings)
    assert candidate.reaches_coverage
    assert set(range(100, 104)) <= set(candidate.label.token_ids)
    assert len(candidate.label.token_ids) <= 24


def test_a_set_stays_readable_and_says_when_it_does_not_reach() -> None:
    ids = np.tile(np.arange(200), 50)
    firings = np.flatnonzero((ids < 60) & (np.arange(len(ids)) % 3 > 0))
    candidate = LabelFinder(ids, 200, compound=False).find(firings)
    assert not candidate.reaches_coverage
    assert len(candidate.label.token_ids) == 24
    assert set(candidate.label.token_ids) <= set(range(60))
    assert candidate.train.precision == pytest.approx(24 / 60, abs=0.02)
    wider = LabelFinder(ids, 200, compound=False, max_set_size=60).find(firings)
    assert wider.reaches_coverage
    assert set(wider.label.token_ids) <= set(range(60))


def test_tokens_are_listed_by_their_firings() -> None:
    ids = np.repeat([0, 1, 2, 3], [10, 40, 20, 1000])
    candidate = LabelFinder(ids, 4, compound=False, coverage=1.0).find(np.flatnonzero(ids < 3))
    assert candidate.label == TokenSet(token_ids=(1, 2, 0))


def test_train_numbers_are_those_of_measure(finder: LabelFinder) -> None:
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
    finder = LabelFinder(ids, 2, window_starts=starts)
    assert finder._previous_counts.tolist() == [400, 0]
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


def test_errors_say_what_to_do(finder: LabelFinder) -> None:
    with pytest.raises(ValueError, match="never fires"):
        finder.find(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="firing positions"):
        finder.find(np.array([len(TRAIN.ids)]))
    with pytest.raises(ValueError, match="repeat"):
        finder.find(np.array([3, 3]))
    with pytest.raises(ValueError, match="vocab_size"):
        LabelFinder(np.array([0, 7]), 7)
    with pytest.raises(ValueError, match="coverage"):
        LabelFinder(np.array([0]), 1, coverage=0)
    with pytest.raises(ValueError, match="one text"):
        LabelFinder(np.array([0]), 1, SyntaxTable.empty(2))
    with pytest.raises(ValueError, match="integers"):
        LabelFinder(np.array([0.5]), 1)
    with pytest.raises(ValueError, match="give the syntax table"):
        members(SyntaxClass(name="comment"), np.array([0]))
    with pytest.raises(ValueError, match="did you mean 'comment'"):
        members(SyntaxClass(name="coment"), np.array([0]), SyntaxTable.empty(1))
