"""Labels judged on text that they were not chosen on: every firing of every feature, batch by batch.

The labels are fixed before the first batch, so two numbers per feature are enough to go on with: its firings, and those
of them that lie in its set. How many tokens of the text lie in a set follows from counts of tokens and classes. Memory
depends on the labels and the vocabulary, never on the text; judges of two parts of a text can be merged.

    judge = LabelJudge(labels, vocab_size=4096)       # one set per feature, None where there is none
    for token_ids, codes, class_bits, previous in batches:
        judge.update(token_ids, codes, class_bits=class_bits, previous_ids=previous)
    judge.measured(17).precision

The tokens of a batch are taken in the order of their ids. The features whose set holds an id are marked once, and then
each firing on a token with this id costs one look at a mark.

n  tokens of a batch, K  slots per token, V  token ids, C  syntax classes, W  bytes of a token's class bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable, class_id
from saescope.activations.python_syntax.table import BYTES_PER_TOKEN
from saescope.analysis.label_sets import AfterTokens, LabelSet, Measured, SyntaxClass, TokensWithinClass
from saescope.dictionaries import SparseCodes
from saescope.kernels.compiling import jit

# what decides about a firing: nothing (no label), the token's id, its class, both, or the id before it
_NOTHING, _ID, _CLASS, _ID_AND_CLASS, _PREVIOUS = range(5)


class LabelJudge:
    """Counts how well each feature's label fits its firings.

    Args:
        labels: the set of each feature, ``d_sae`` of them; None for features without.
        vocab_size: number of token ids.

    Raises:
        ValueError: a label with ids outside of the vocabulary, or of a class that does not exist.
    """

    def __init__(self, labels: Sequence[LabelSet | None], vocab_size: int) -> None:
        self.labels, self.vocab_size = list(labels), vocab_size
        self.num_tokens = 0
        self._results = np.zeros((len(self.labels), 2), dtype=np.int64)  # firings, and those in the feature's set
        self._rules = np.array([_rule_of(label) for label in self.labels], dtype=np.uint8)
        self._classes = np.array([_class_of(label) for label in self.labels], dtype=np.int16)  # -1: none
        self._by_id, self._after = self._lists()
        self._token_counts = np.zeros(vocab_size, dtype=np.int64)
        self._previous_counts = np.zeros(vocab_size, dtype=np.int64)
        self._class_counts = np.zeros(len(CLASS_NAMES), dtype=np.int64)
        within = sorted(set(self._classes[self._rules == _ID_AND_CLASS].tolist()))
        self._counts_within = {index: np.zeros(vocab_size, dtype=np.int64) for index in within}

    @property
    def needs_classes(self) -> bool:
        """Whether a label speaks of a syntax class."""
        return bool((self._classes >= 0).any())

    @property
    def needs_previous(self) -> bool:
        """Whether a label speaks of the token before."""
        return bool((self._rules == _PREVIOUS).any())

    def update(
        self,
        token_ids: np.ndarray,
        codes: SparseCodes,
        *,
        class_bits: np.ndarray | None = None,
        previous_ids: np.ndarray | None = None,
    ) -> None:
        """Count a batch of tokens.

        Args:
            token_ids: the tokens, integers ``[n]``.
            codes: the features that fire on them.
            class_bits: their syntax classes, uint8 ``[n, W]``; needed if a label speaks of a class.
            previous_ids: the id before each in its window, -1 where there is none, ``[n]``; needed if a label speaks of
                the token before.

        Raises:
            ValueError: codes of another number of tokens or features, ids outside of the vocabulary, or something that
                a label needs is missing.
        """
        ids = self._checked(token_ids, "token_ids", lowest=0)
        n = len(ids)
        if len(codes.values) != n or codes.d_sae != len(self.labels):
            raise ValueError(
                f"codes of {len(codes.values)} tokens and {codes.d_sae} features do not fit {n} tokens and "
                f"{len(self.labels)} labels"
            )
        bits = np.zeros((n, 0), dtype=np.uint8)
        if self.needs_classes:
            if class_bits is None:
                raise ValueError("there are labels of syntax classes: give class_bits with every batch")
            bits = np.ascontiguousarray(class_bits)
            if bits.dtype != np.uint8 or bits.shape != (n, BYTES_PER_TOKEN):
                raise ValueError(
                    f"class_bits must be uint8 of shape [{n}, {BYTES_PER_TOKEN}], not {bits.dtype} {list(bits.shape)}"
                )
        previous = np.full(n, -1)
        if self.needs_previous:
            if previous_ids is None:
                raise ValueError("there are labels of the token before: give previous_ids with every batch")
            previous = self._checked(previous_ids, "previous_ids", lowest=-1)
            if len(previous) != n:
                raise ValueError(f"{len(previous)} previous_ids do not fit {n} tokens")

        self.num_tokens += n
        self._count_members(ids, bits, previous)
        values = codes.values.detach()
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        fired = np.ascontiguousarray(codes.indices.cpu().numpy()), np.ascontiguousarray(values.cpu().numpy())
        order = np.argsort(ids, kind="stable")
        sets = self._rules, self._classes, *self._by_id, *self._after
        _count(order, ids, previous, bits, *fired, *sets, self._results)

    def merge(self, other: LabelJudge) -> None:
        """Add what a judge of the same labels counted on other tokens.

        Raises:
            ValueError: the other has other labels.
        """
        if other.labels != self.labels or other.vocab_size != self.vocab_size:
            raise ValueError("these judges have different labels; only those of the same labels can be merged")
        self.num_tokens += other.num_tokens
        for mine, others in zip(self._counts(), other._counts(), strict=True):
            mine += others

    @property
    def num_firings(self) -> np.ndarray:
        """Firings of each feature, int64 ``[d_sae]``."""
        return self._results[:, 0]

    @property
    def num_both(self) -> np.ndarray:
        """Firings of each feature that lie in its set, int64 ``[d_sae]``; 0 without a label."""
        return self._results[:, 1]

    @property
    def num_members(self) -> np.ndarray:
        """Tokens that lie in each feature's set, int64 ``[d_sae]``; 0 without a label."""
        return np.array([self._members_of(label) for label in self.labels], dtype=np.int64)

    def measured(self, feature: int) -> Measured:
        """How well a feature's label fits its firings."""
        return Measured(
            num_tokens=self.num_tokens,
            num_firings=int(self.num_firings[feature]),
            num_members=self._members_of(self.labels[feature]),
            num_both=int(self.num_both[feature]),
        )

    def _counts(self) -> list[np.ndarray]:
        text = [self._token_counts, self._previous_counts, self._class_counts]
        return [self._results, *text, *self._counts_within.values()]

    def _count_members(self, ids: np.ndarray, bits: np.ndarray, previous: np.ndarray) -> None:
        self._token_counts += np.bincount(ids, minlength=self.vocab_size)
        if self.needs_previous:
            self._previous_counts += np.bincount(previous[previous >= 0], minlength=self.vocab_size)
        if self.needs_classes:
            table = SyntaxTable(bits=bits)
            self._class_counts += table.counts()
            for index, counts in self._counts_within.items():
                np.add.at(counts, ids[table.members(CLASS_NAMES[index])], 1)

    def _members_of(self, label: LabelSet | None) -> int:
        if label is None:
            return 0
        if isinstance(label, SyntaxClass):
            return int(self._class_counts[class_id(label.name)])
        if isinstance(label, TokensWithinClass):
            counts = self._counts_within[class_id(label.name)]
        else:
            counts = self._previous_counts if isinstance(label, AfterTokens) else self._token_counts
        return int(counts[_ids_of(label)].sum())

    def _lists(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """The features whose set holds each id; and for each feature the ids that stand before its tokens, sorted.

        Both as (starts, list): what belongs to number i is ``list[starts[i]:starts[i + 1]]``.
        """
        after = self._rules == _PREVIOUS
        per_feature = [_ids_of(label) for label in self.labels]
        features = np.repeat(np.arange(len(per_feature), dtype=np.int32), [len(own) for own in per_feature])
        ids = np.concatenate([_NO_IDS, *per_feature])
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"labels have token ids from {ids.min()} to {ids.max()}, and the vocabulary goes from 0 to "
                f"{self.vocab_size - 1}"
            )
        of_after = after[features]
        holders, held = features[~of_after], ids[~of_after]
        by_id = _starts(held, self.vocab_size), holders[np.argsort(held, kind="stable")]
        return by_id, (_starts(features[of_after], len(per_feature)), ids[of_after])

    def _checked(self, ids: np.ndarray, name: str, *, lowest: int) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name} must be a flat list of integers, not {ids.dtype} {list(ids.shape)}")
        if len(ids) and not lowest <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"{name} must lie in {lowest} to {self.vocab_size - 1}, not {ids.min()} to {ids.max()}")
        return ids.astype(np.int64)


_NO_IDS = np.zeros(0, dtype=np.int64)


def _ids_of(label: LabelSet | None) -> np.ndarray:
    """Token ids of a set, each once."""
    return np.unique(np.array(getattr(label, "token_ids", ()), dtype=np.int64))


def _starts(numbers: np.ndarray, size: int) -> np.ndarray:
    """Where each number from 0 to ``size`` begins in a sorted list of ``numbers``, ``[size + 1]``."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=size))])


def _rule_of(label: LabelSet | None) -> int:
    if label is None:
        return _NOTHING
    kinds = {SyntaxClass: _CLASS, TokensWithinClass: _ID_AND_CLASS, AfterTokens: _PREVIOUS}
    return kinds.get(type(label), _ID)


def _class_of(label: LabelSet | None) -> int:
    return class_id(label.name) if isinstance(label, SyntaxClass | TokensWithinClass) else -1


@jit()
def _count(  # type: ignore[no-untyped-def]
    order, ids, previous, bits, indices, values, rules, classes, starts, features, after_starts, after_ids, results
):
    """Add to ``results`` [d_sae, 2] each feature's firings, and those of them that lie in its set.

    ``order`` sorts the tokens by ``ids``; the lists are those of `LabelJudge._lists`.
    """
    mark = np.zeros(len(rules), dtype=np.int32)
    stamp, last = 0, -1
    for token in order:
        if ids[token] != last:  # the next id: mark the features whose set holds it
            last = ids[token]
            stamp += 1
            for place in range(starts[last], starts[last + 1]):
                mark[features[place]] = stamp
        for slot in range(indices.shape[1]):
            if values[token, slot] == 0:
                continue
            feature = indices[token, slot]
            rule = rules[feature]
            inside = mark[feature] == stamp  # never of features whose set has no ids, or ids before
            if rule >= _CLASS:
                if rule == _CLASS or (rule == _ID_AND_CLASS and inside):
                    of = classes[feature]
                    inside = (bits[token, of >> 3] >> (7 - (of & 7))) & 1 == 1
                elif rule == _PREVIOUS:
                    low, high, wanted = after_starts[feature], after_starts[feature + 1], previous[token]
                    end = high
                    while low < high:
                        middle = (low + high) >> 1
                        if after_ids[middle] < wanted:
                            low = middle + 1
                        else:
                            high = middle
                    inside = low < end and after_ids[low] == wanted
            results[feature, 0] += 1
            results[feature, 1] += inside
