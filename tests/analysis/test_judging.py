"""The judge: every number is that of the plain definition on the whole text, however it is cut; memory stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable
from saescope.analysis.judging import LabelJudge
from saescope.analysis.label_sets import AfterTokens, LabelSet, SyntaxClass, TokenSet, TokensWithinClass, measure
from saescope.dictionaries import SparseCodes

V = 40
WINDOW = 25
NUM_TOKENS = 1000
LABELS: list[LabelSet | None] = [
    TokenSet(token_ids=(3, 1, 39)),
    TokenSet(token_ids=(0,)),
    SyntaxClass(name=CLASS_NAMES[0]),
    SyntaxClass(name=CLASS_NAMES[-1]),
    None,
    TokensWithinClass(token_ids=(5, 3, 20), name=CLASS_NAMES[9]),
    TokensWithinClass(token_ids=(3, 7), name=CLASS_NAMES[0]),
    AfterTokens(token_ids=(39, 0, 2)),
    AfterTokens(token_ids=(11,)),
    TokenSet(token_ids=(38,)),  # never fires
    AfterTokens(token_ids=tuple(range(12, V))),  # begins where the one before ends
]
D_SAE = len(LABELS)


class Text:
    """Random tokens in windows of equal length, their classes, and the features that fire on them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.ids = rng.choice(V, NUM_TOKENS, p=rng.dirichlet(np.full(V, 5.0)))
        self.starts = np.arange(0, NUM_TOKENS, WINDOW)
        self.previous = np.array([-1, *self.ids[:-1]])
        self.previous[self.starts] = -1
        self.syntax = SyntaxTable(bits=np.packbits(rng.random((NUM_TOKENS, len(CLASS_NAMES))) < 0.3, axis=1))
        # both signs, as in dictionaries that fire in two directions
        self.dense = rng.normal(size=(NUM_TOKENS, D_SAE)) * (rng.random((NUM_TOKENS, D_SAE)) < 0.4)
        self.dense[:, 9] = 0

    def give(self, judge: LabelJudge, here: slice, dtype: torch.dtype = torch.float32) -> None:
        codes = SparseCodes.from_dense(torch.from_numpy(self.dense[here]).to(dtype))
        bits, previous = self.syntax.bits[here], self.previous[here]
        judge.update(self.ids[here], codes, class_bits=bits, previous_ids=previous)


TEXT = Text(0)


def check(judge: LabelJudge, *texts: Text) -> None:
    for feature, label in enumerate(LABELS):
        firings = [np.flatnonzero(text.dense[:, feature]) for text in texts]
        measured = judge.measured(feature)
        assert measured.num_firings == judge.num_firings[feature] == sum(map(len, firings))
        assert measured.num_tokens == NUM_TOKENS * len(texts)
        assert measured.num_members == judge.num_members[feature]
        assert measured.num_both == judge.num_both[feature]
        if label is None:
            assert measured.num_members == measured.num_both == 0
            continue
        plain = [
            measure(label, here, text.ids, text.syntax, text.starts) for here, text in zip(firings, texts, strict=True)
        ]
        assert measured.num_members == sum(one.num_members for one in plain)
        assert measured.num_both == sum(one.num_both for one in plain)
        if len(texts) == 1:
            assert measured == plain[0]
            np.testing.assert_equal([measured.precision, measured.recall], [plain[0].precision, plain[0].recall])


@pytest.mark.parametrize("batch_size_tokens", [1, 7, 100, NUM_TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_number_is_that_of_the_whole_text(batch_size_tokens: int, dtype: torch.dtype) -> None:
    judge = LabelJudge(LABELS, V)
    for first in range(0, NUM_TOKENS, batch_size_tokens):
        TEXT.give(judge, slice(first, first + batch_size_tokens), dtype)
    assert (judge.num_both[[0, 1, 2, 3, 5, 6, 7, 8, 10]] > 0).all()
    assert (judge.num_both < judge.num_firings)[[0, 1, 2, 3, 5, 6, 7, 8]].all()
    check(judge, TEXT)


def test_slots_without_a_value_are_no_firings() -> None:
    judge = LabelJudge([TokenSet(token_ids=(0, 1)), None], 2)
    values = torch.tensor([[0.0, 2.0], [0.0, 0.0], [-1.0, 0.0]])
    judge.update(np.array([0, 1, 1]), SparseCodes(torch.tensor([[0, 1], [0, 0], [0, 0]]), values, 2))
    assert judge.num_firings.tolist() == [1, 1]
    assert judge.num_both.tolist() == [1, 0]
    assert judge.num_members.tolist() == [3, 0]


def test_judges_of_two_texts_merge_into_one() -> None:
    first, second, both = (LabelJudge(LABELS, V) for _ in range(3))
    other = Text(1)
    for judge, text in ((first, TEXT), (second, other), (both, TEXT), (both, other)):
        text.give(judge, slice(None))
    first.merge(second)
    check(both, TEXT, other)
    check(first, TEXT, other)
    check(second, other)


def test_nothing_grows_with_the_text() -> None:
    def num_bytes(of: Any) -> int:
        if isinstance(of, np.ndarray | torch.Tensor):
            return int(of.nbytes)
        if isinstance(of, dict):
            return sum(map(num_bytes, of.values()))
        return sum(map(num_bytes, of)) if isinstance(of, list | tuple) else 0

    judge = LabelJudge(LABELS, V)
    sizes = []
    for _ in range(4):
        for first in range(0, NUM_TOKENS, 100):
            TEXT.give(judge, slice(first, first + 100))
        sizes.append((set(vars(judge)), num_bytes(vars(judge))))
    assert sizes[0][1] < 50_000
    assert sizes == sizes[:1] * 4
    assert judge.num_tokens == 4 * NUM_TOKENS


def test_what_no_label_speaks_of_is_not_asked_for() -> None:
    tokens = LabelJudge([TokenSet(token_ids=(3,)), None], V)
    assert not tokens.needs_classes
    assert not tokens.needs_previous
    tokens.update(np.array([3, 4]), SparseCodes.from_dense(torch.eye(2)))
    assert tokens.measured(0).precision == 1
    assert LabelJudge([SyntaxClass(name="comment")], V).needs_classes
    assert LabelJudge([TokensWithinClass(token_ids=(1,), name="comment")], V).needs_classes
    assert LabelJudge([AfterTokens(token_ids=(1,))], V).needs_previous
    nothing = LabelJudge([], V)
    nothing.update(np.array([1]), SparseCodes(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), 0))
    assert nothing.num_tokens == 1


def test_a_batch_without_tokens() -> None:
    judge = LabelJudge(LABELS, V)
    TEXT.give(judge, slice(0, 0))
    TEXT.give(judge, slice(None))
    check(judge, TEXT)


def test_errors_say_what_is_wrong_and_count_nothing() -> None:
    judge, ids, codes = LabelJudge(LABELS, V), TEXT.ids, SparseCodes.from_dense(torch.from_numpy(TEXT.dense))
    bits, previous = TEXT.syntax.bits, TEXT.previous
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("give class_bits", (ids, codes), {"previous_ids": previous}),
        ("give previous_ids", (ids, codes), {"class_bits": bits}),
        ("class_bits must be uint8", (ids, codes), {"class_bits": bits[:, 1:], "previous_ids": previous}),
        ("999 previous_ids", (ids, codes), {"class_bits": bits, "previous_ids": previous[1:]}),
        ("codes of 1000 tokens", (ids[1:], codes), {}),
        ("token_ids must lie in 0 to 39", (ids + 1 + V, codes), {}),
        ("token_ids must be a flat list", (ids.reshape(2, -1), codes), {}),
        ("previous_ids must lie in -1 to 39", (ids, codes), {"class_bits": bits, "previous_ids": previous - 1}),
        ("11 labels", (ids, SparseCodes.from_dense(torch.zeros(NUM_TOKENS, 3))), {}),
    ]
    for message, arguments, more in wrong:
        with pytest.raises(ValueError, match=message):
            judge.update(*arguments, **more)
    assert judge.num_tokens == judge.num_firings.sum() == 0
    with pytest.raises(ValueError, match="token ids from 40 to 40"):
        LabelJudge([TokenSet(token_ids=(V,))], V)
    with pytest.raises(ValueError, match="no syntax class"):
        LabelJudge([SyntaxClass(name="coment")], V)
    with pytest.raises(ValueError, match="different labels"):
        judge.merge(LabelJudge(LABELS[:-1], V))
