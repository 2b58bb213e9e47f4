"""Labels from samples of firings: all that is counted on the way, and the labels, equal what plain lists of tokens say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable, token_classes
from saescope.activations.python_syntax.table import BYTES_PER_TOKEN
from saescope.analysis import labelling
from saescope.analysis.judging import LabelJudge
from saescope.analysis.label_sets import AfterTokens, SyntaxClass, TokenSet, TokensWithinClass, describe, measure
from saescope.analysis.labelling import (
    find_labels,
    judge_labels,
    label_features,
    label_record,
    previous_in_windows,
)
from saescope.analysis.labels import Firings, LabelFinder, TextCounts
from saescope.dictionaries import SparseCodes
from saescope.models.token_text import vocabulary_texts

CONFIGS = [
    WindowConfig(context_size=16),
    WindowConfig(context_size=15, prepend_bos=False),
    WindowConfig(context_size=13, packing="separate"),
]
D_SAE = 8


@dataclass(frozen=True)
class Sample:
    windows: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    num_firings: int


class AnalyzedText:
    """Windows, the activations of features on them as one dense array, and both token by token in plain lists."""

    def __init__(
        self, documents: list[Document], tokenizer: Any, config: WindowConfig, like: AnalyzedText | None = None
    ) -> None:
        self.windows = TokenWindows.build(documents, tokenizer, config)
        self.tokenizer, self.vocab_size = tokenizer, len(tokenizer)
        self.batch = self.windows.batch(range(len(self.windows)))
        self.keep = self.batch.keep.numpy()
        self.ids = self.batch.ids.numpy()[self.keep]
        self.num_tokens = len(self.ids)
        self.previous = np.array(
            [row[column - 1] if column else -1 for row in self.batch.ids.tolist() for column in range(len(row))]
        ).reshape(self.keep.shape)[self.keep]
        self.syntax = self._syntax()
        # ids from the most frequent on; on another text the features fire on the same ids
        self.common = np.argsort(-np.bincount(self.ids, minlength=self.vocab_size)) if like is None else like.common
        self.dense = self._dense(np.random.default_rng(0 if like is None else 1))  # [num_tokens, D_SAE]

    def _syntax(self) -> SyntaxTable | None:
        if not all(document.is_python for document in self.windows.documents):
            return None
        rows = []
        for window, column in np.argwhere(self.keep).tolist():
            document, offset = self.windows.document_of(int(self.batch.positions[window, column]))
            rows.append(self._bits(document)[offset])
        return SyntaxTable(bits=np.array(rows))

    def _bits(self, document: Document, known: dict[str, np.ndarray] = {}) -> np.ndarray:  # noqa: B006
        if document.text not in known:
            encoded = self.tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = np.array(encoded["offset_mapping"])
            known[document.text] = token_classes(document.text, offsets[:, 0], offsets[:, 1]).bits
        return known[document.text]

    def _dense(self, rng: np.random.Generator) -> np.ndarray:
        common = self.common
        inside = rng.random((self.num_tokens, D_SAE)) < 0.01
        inside[:, 0] |= np.isin(self.ids, common[[3, 8, 20]])
        inside[:, 1] |= np.isin(self.previous, common[[5]])
        if self.syntax is not None:
            inside[:, 2] |= self.syntax.members("return value")
        inside[:, 3] = 0  # dead
        inside[:, 4] = np.arange(self.num_tokens) % (self.num_tokens // 9 + 1) == 0  # nine firings: too few
        inside[:, 5] |= np.isin(self.previous, [common[7], 0])  # the opening token among them
        inside[:, 6] |= np.isin(self.ids, common[10:60:2])
        return inside * (rng.normal(size=inside.shape) + 3 * rng.choice([-1, 1], inside.shape))

    def statistics(self, num_sampled: int | None, seed: int = 0) -> SimpleNamespace:
        """Something that gives samples of firings."""
        places = np.argwhere(self.keep)
        samples = []
        for feature in range(D_SAE):
            firings = np.flatnonzero(self.dense[:, feature])
            drawn = np.random.default_rng([seed, feature]).permutation(firings)[:num_sampled]
            samples.append(Sample(*places[drawn].T, self.dense[drawn, feature], len(firings)))
        return SimpleNamespace(label_sample=lambda feature: samples[feature], samples=samples)

    def rows_of(self, sample: Sample) -> np.ndarray:
        """The sampled firings as numbers of analysed tokens."""
        number = np.cumsum(self.keep).reshape(self.keep.shape) - 1
        return number[sample.windows, sample.positions]

    @property
    def text(self) -> Any:
        """What a dictionary reads: blocks of windows with one row for each token that is not padding."""

        def blocks() -> Iterator[Any]:
            attention = self.batch.attention.numpy()
            dense = np.full(
                (*self.keep.shape, D_SAE), 9.0
            )  # a feature also fires on opening tokens: none of our business
            dense[self.keep] = self.dense
            for first in range(0, len(self.windows), 7):
                rows = np.arange(first, min(first + 7, len(self.windows)))
                tokens = SimpleNamespace(ids=self.batch.ids.numpy()[rows], windows=rows, counted=self.keep[rows])
                x = torch.from_numpy(dense[rows][attention[rows]])
                yield SimpleNamespace(tokens=tokens, read=attention[rows], x=x)

        return SimpleNamespace(windows=self.windows, num_tokens=self.num_tokens, blocks=blocks)


DICTIONARY: Any = SimpleNamespace(d_sae=D_SAE, encode_sparse=SparseCodes.from_dense)


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def analyzed(request, documents, tokenizer) -> AnalyzedText:
    return AnalyzedText(documents[:30], tokenizer, request.param)


@pytest.fixture(scope="module")
def held_out(analyzed, documents, tokenizer) -> AnalyzedText:
    return AnalyzedText(documents[30:], tokenizer, analyzed.windows.config, like=analyzed)


def test_whole_text_counts_are_exact(analyzed, monkeypatch) -> None:
    monkeypatch.setattr(labelling, "_TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(labelling, "_FIRINGS_AT_ONCE", 5)
    statistics = analyzed.statistics(60)
    sampled = labelling._SampledText(statistics, analyzed.windows, D_SAE)
    syntax = labelling._syntax_of(analyzed.windows, analyzed.tokenizer)
    seen = []
    counts, classes = labelling._count(sampled, syntax, analyzed.vocab_size, lambda *progress: seen.append(progress))
    assert counts.num_tokens == analyzed.num_tokens
    np.testing.assert_array_equal(counts.token_counts, np.bincount(analyzed.ids, minlength=analyzed.vocab_size))
    previous = analyzed.previous[analyzed.previous >= 0]
    np.testing.assert_array_equal(counts.previous_counts, np.bincount(previous, minlength=analyzed.vocab_size))
    np.testing.assert_array_equal(counts.class_counts, analyzed.syntax.counts())
    for feature, sample in enumerate(statistics.samples):
        rows = analyzed.rows_of(sample)
        expected = analyzed.syntax.counts(rows) if sample.num_firings >= labelling.MIN_FIRINGS else 0
        np.testing.assert_array_equal(classes[feature], np.zeros(len(CLASS_NAMES)) + expected)
    assert classes[2].any()
    assert seen[-1] == ("reading syntax", analyzed.num_tokens, analyzed.num_tokens)
    without, nothing = labelling._count(sampled, None, analyzed.vocab_size, lambda *progress: None)
    assert nothing is None
    assert without.class_counts is None
    np.testing.assert_array_equal(without.token_counts, counts.token_counts)


def test_samples_come_with_the_tokens_they_fall_on(analyzed) -> None:
    statistics = analyzed.statistics(60)
    sampled = labelling._SampledText(statistics, analyzed.windows, D_SAE)
    for feature, sample in enumerate(statistics.samples):
        tokens = sampled.of(feature)
        if sample.num_firings < labelling.MIN_FIRINGS:
            assert tokens is None
            continue
        rows = analyzed.rows_of(sample)
        np.testing.assert_array_equal(tokens.token_ids, analyzed.ids[rows])
        np.testing.assert_array_equal(tokens.previous_ids, analyzed.previous[rows])
        assert (tokens.num_firings, len(tokens.values)) == (sample.num_firings, min(60, sample.num_firings))
    assert {0, 1, 2, 5, 6, 7} == {feature for feature in range(D_SAE) if sampled.of(feature)}


@pytest.mark.parametrize("num_sampled", [None, 40])
def test_labels_are_those_of_the_finder(analyzed, num_sampled: int | None) -> None:
    statistics = analyzed.statistics(num_sampled)
    seen = []
    sets = find_labels(
        statistics, analyzed.windows, analyzed.tokenizer,
        d_sae=D_SAE, vocab_size=analyzed.vocab_size, on_progress=lambda *progress: seen.append(progress),
    )  # fmt: skip
    previous = analyzed.previous[analyzed.previous >= 0]
    counts = TextCounts(
        num_tokens=analyzed.num_tokens,
        token_counts=np.bincount(analyzed.ids, minlength=analyzed.vocab_size),
        class_counts=analyzed.syntax.counts(),
        previous_counts=np.bincount(previous, minlength=analyzed.vocab_size),
    )
    finder = LabelFinder(counts, max_set_size=labelling.MAX_SET_SIZE)
    for feature, (found, sample) in enumerate(zip(sets, statistics.samples, strict=True)):
        if sample.num_firings < labelling.MIN_FIRINGS:
            assert found is None
            continue
        rows = analyzed.rows_of(sample)
        firings = Firings(
            num_firings=sample.num_firings,
            token_ids=analyzed.ids[rows],
            class_counts=analyzed.syntax.counts(rows),
            previous_ids=analyzed.previous[rows],
        )
        expected = finder.find(firings).label
        assert type(found) is type(expected)
        assert getattr(found, "name", None) == getattr(expected, "name", None)
        ids = getattr(found, "token_ids", ())
        assert sorted(ids) == sorted(getattr(expected, "token_ids", ()))
        at = analyzed.previous if isinstance(found, AfterTokens) else analyzed.ids
        strength = [np.abs(sample.values)[at[rows] == token].sum() for token in ids]
        assert strength == sorted(strength, reverse=True), feature
    assert isinstance(sets[0], TokenSet)
    assert [p for p in seen if p[0] == "naming features"] == [("naming features", i + 1, D_SAE) for i in range(D_SAE)]


def test_features_after_a_token_are_named_by_it(documents, tokenizer) -> None:
    # in text that is no Python nothing else names them
    texts = [Document(f"{document.name}.txt", document.text) for document in documents]
    analyzed = AnalyzedText(texts, tokenizer, CONFIGS[0])
    statistics = analyzed.statistics(100)
    sets = find_labels(statistics, analyzed.windows, tokenizer, d_sae=D_SAE, vocab_size=analyzed.vocab_size)
    assert isinstance(sets[1], AfterTokens)
    assert sets[1].token_ids[0] == analyzed.common[5]
    assert isinstance(sets[5], AfterTokens)
    assert set(sets[5].token_ids[:2]) == {0, analyzed.common[7]}
    assert sets[3] is sets[4] is None


def test_records_carry_what_the_whole_held_out_text_says(analyzed, held_out) -> None:
    vocabulary = vocabulary_texts(analyzed.tokenizer, analyzed.vocab_size)
    statistics = analyzed.statistics(50)
    seen = []
    labels = label_features(
        statistics, DICTIONARY, analyzed.text, held_out.text, analyzed.tokenizer, vocabulary,
        on_progress=lambda *progress: seen.append(progress),
    )  # fmt: skip
    sets = find_labels(statistics, analyzed.windows, analyzed.tokenizer, d_sae=D_SAE, vocab_size=analyzed.vocab_size)
    starts = np.flatnonzero(held_out.previous < 0)
    held_out_previous = held_out.previous
    for feature, (label, found) in enumerate(zip(labels, sets, strict=True)):
        if found is None:
            assert label is None
            continue
        firings = np.flatnonzero(held_out.dense[:, feature])
        if isinstance(found, AfterTokens):  # what stands before may be an opening token, which is not among ours
            inside = np.isin(held_out_previous, found.token_ids)
            num_members, num_both = int(inside.sum()), int(inside[firings].sum())
        else:
            plain = measure(found, firings, held_out.ids, held_out.syntax, starts)
            num_members, num_both = plain.num_members, plain.num_both
        assert label.text == describe(found, vocabulary)
        assert label.num_firings == len(firings)
        assert label.precision == num_both / len(firings)
        assert label.recall == num_both / num_members
        assert label.lift == pytest.approx(label.precision / (num_members / held_out.num_tokens))
    assert [labels[feature].kind for feature in (0, 2)] == ["tokens", "syntax"]
    assert labels[0].precision > 0.8
    assert seen[-1] == ("reading held-out text", held_out.num_tokens, held_out.num_tokens)


def test_without_held_out_text_or_firings_there_are_no_numbers(analyzed) -> None:
    vocabulary = vocabulary_texts(analyzed.tokenizer, analyzed.vocab_size)
    labels = label_features(analyzed.statistics(50), DICTIONARY, analyzed.text, None, analyzed.tokenizer, vocabulary)
    assert labels[3] is None
    assert (labels[0].precision, labels[0].recall, labels[0].lift, labels[0].num_firings) == (None, None, None, 0)
    sets = [TokenSet(token_ids=(5,)), TokenSet(token_ids=(6,)), TokensWithinClass(token_ids=(5,), name="comment")]
    judge = LabelJudge(sets, 10)
    judge.update(
        np.array([5, 5, 1]),
        SparseCodes.from_dense(torch.tensor([[0.0, 1.0, 0.0]] * 3)),
        class_bits=np.zeros((3, BYTES_PER_TOKEN), dtype=np.uint8),
    )
    silent, absent, _ = (label_record(found, list("abcdefghij"), judge, i) for i, found in enumerate(sets))
    assert (silent.precision, silent.recall, silent.lift, silent.num_firings) == (None, None, None, 0)
    assert (absent.precision, absent.recall, absent.lift, absent.num_firings) == (0.0, None, None, 3)
    assert label_record(sets[2], list("abcdefghij")).kind == "tokens within syntax"
    assert label_record(None, []) is None


def test_a_label_can_be_judged_on_the_analyzed_text_itself(analyzed) -> None:
    sets = find_labels(
        analyzed.statistics(None), analyzed.windows, analyzed.tokenizer, d_sae=D_SAE, vocab_size=analyzed.vocab_size
    )
    judge = judge_labels(sets, DICTIONARY, analyzed.text, analyzed.tokenizer, vocab_size=analyzed.vocab_size)
    assert judge.num_tokens == analyzed.num_tokens
    np.testing.assert_array_equal(judge.num_firings, (analyzed.dense != 0).sum(axis=0))
    assert judge.measured(0) == measure(sets[0], np.flatnonzero(analyzed.dense[:, 0]), analyzed.ids)


def test_previous_ids_stay_in_their_window() -> None:
    assert previous_in_windows(np.array([[7, 8, 9], [1, 2, 3]])).tolist() == [[-1, 7, 8], [-1, 1, 2]]


def test_firings_elsewhere_and_other_texts_are_refused(analyzed, held_out) -> None:
    opening = int(analyzed.windows.bos_id is not None)
    width = int(analyzed.windows.lengths[0]) + opening

    def source(windows: list[int], positions: list[int]) -> Any:
        sample = Sample(np.array(windows), np.array(positions), np.ones(len(windows)), 50)
        return SimpleNamespace(label_sample=lambda feature: sample)

    settings = {"d_sae": 1, "vocab_size": analyzed.vocab_size}
    for positions in ([width], [-1] if not opening else [0]):
        with pytest.raises(ValueError, match="opening or padding tokens"):
            find_labels(source([0], positions), analyzed.windows, analyzed.tokenizer, **settings)
    with pytest.raises(ValueError, match="fires in window"):
        find_labels(source([len(analyzed.windows)], [opening]), analyzed.windows, analyzed.tokenizer, **settings)
    with pytest.raises(ValueError, match="the vocabulary ends at 9"):
        find_labels(source([0], [opening]), analyzed.windows, analyzed.tokenizer, d_sae=1, vocab_size=10)
    prose = [replace(document, name="notes.txt") for document in held_out.windows.documents]
    text = held_out.text
    text.windows = replace(held_out.windows, documents=prose)
    with pytest.raises(ValueError, match="not all Python"):
        judge_labels(
            [SyntaxClass(name="comment")] * D_SAE, DICTIONARY, text, analyzed.tokenizer, vocab_size=analyzed.vocab_size
        )
