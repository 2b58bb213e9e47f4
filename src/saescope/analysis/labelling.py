"""Labels for all features of a dictionary: found on a sample of each feature's firings, judged on all of them elsewhere.

``label_sets.py`` says what a label is, ``labels.py`` how one is found, ``judging.py`` measures it. Here the statistics of an
analysed text and the tokens of its windows are brought into the form that these take, with the syntax of Python source
where all of the text is Python. Memory depends on the dictionary and the vocabulary, not on the length of a text: of the
firings there is a sample per feature, tokens are counted some windows at a time, and syntax is read document by document.

    labels = label_features(statistics, dictionary, text, held_out, tokenizer, vocabulary)     # both steps
    sets = find_labels(statistics, windows, tokenizer, d_sae=2048, vocab_size=4096)            # or one, and the other
    judge = judge_labels(sets, dictionary, held_out, tokenizer, vocab_size=4096)

B  windows, T  tokens in a window (context_size), n  firings in a sample, C  syntax classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from saescope.activations import TokenWindows
from saescope.activations.python_syntax import CLASS_NAMES, SyntaxTable
from saescope.activations.python_syntax.windows import WindowSyntax, is_python
from saescope.analysis.label_sets import AfterTokens, LabelSet, SyntaxClass, TokenSet, TokensWithinClass, describe
from saescope.analysis.labels import Firings, LabelFinder, TextCounts
from saescope.dictionaries import Dictionary, SparseCodes
from saescope.store import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saescope.analysis.judging import LabelJudge
    from saescope.analysis.reading import Text

MIN_FIRINGS = 10  # below this nothing is said of a feature
# tokens in a set; chosen on the demo's dictionary by looking at held-out precision with 24, 64, 128 and 256: smaller sets
# are easier to read, but hold too few of the firings of features as diffuse as those of k = 64 in 256 dimensions
MAX_SET_SIZE = 128
_KINDS = {
    TokenSet: "tokens",
    SyntaxClass: "syntax",
    AfterTokens: "after tokens",
    TokensWithinClass: "tokens within syntax",
}
_TOKENS_AT_ONCE = 1 << 14  # whose syntax is looked at together
_FIRINGS_AT_ONCE = 1 << 16


class LabelSample(Protocol):
    """A uniform sample of a feature's firings on the analysed tokens of a text (no special ones)."""

    @property
    def windows(self) -> np.ndarray:
        """Number of the window that holds each, integers ``[n]``."""

    @property
    def positions(self) -> np.ndarray:
        """Place in the window, its opening token counted, integers ``[n]``."""

    @property
    def values(self) -> np.ndarray:
        """Activations, ``[n]``."""

    @property
    def num_firings(self) -> int:
        """Firings in the whole text."""


class FiringSource(Protocol):
    """What is asked of the statistics of a text."""

    def label_sample(self, feature: int) -> LabelSample: ...


Progress = Callable[[str, int, int], None]


def label_features(
    statistics: FiringSource,
    dictionary: Dictionary,
    text: Text,
    held_out: Text | None,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Sequence[str],
    *,
    on_progress: Progress | None = None,
) -> list[Label | None]:
    """A label for every feature: chosen on its firings on ``text``, measured on those on ``held_out``.

    Features with fewer than ``MIN_FIRINGS`` firings get none; without held-out text labels carry no precision, recall and
    lift.

    Args:
        statistics: of the dictionary on ``text``.
        vocabulary: the text of each token id.
        on_progress: called with (what is being done, done, in all).
    """
    d_sae, vocab_size = dictionary.d_sae, len(vocabulary)
    sets = find_labels(statistics, text.windows, tokenizer, d_sae=d_sae, vocab_size=vocab_size, on_progress=on_progress)
    judge = None
    if held_out is not None:
        judge = judge_labels(sets, dictionary, held_out, tokenizer, vocab_size=vocab_size, on_progress=on_progress)
    return [label_record(found, vocabulary, judge, feature) for feature, found in enumerate(sets)]


def find_labels(
    statistics: FiringSource,
    windows: TokenWindows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    d_sae: int,
    vocab_size: int,
    on_progress: Progress | None = None,
) -> list[LabelSet | None]:
    """The set that describes the firings of each feature best, its telling tokens first; None for features that hardly fire.

    Tokens and syntax classes come first, the kinds that a reader can check at a glance; where neither holds enough of the
    firings and is rare, the tokens that follow certain tokens are looked at too.

    Args:
        statistics: of a dictionary on ``windows``.
        tokenizer: the one that ``windows`` was built with.

    Raises:
        ValueError: firings that are not on analysed tokens of ``windows``.
    """
    report = on_progress or (lambda what, done, total: None)
    sampled = _SampledText(statistics, windows, d_sae)
    counts, classes = _count(sampled, _syntax_of(windows, tokenizer), vocab_size, report)
    finder = LabelFinder(counts, max_set_size=MAX_SET_SIZE)
    sets: list[LabelSet | None] = []
    for feature in range(d_sae):
        sample = sampled.of(feature)
        if sample is None:
            sets.append(None)
        else:
            firings = Firings(
                num_firings=sample.num_firings,
                token_ids=sample.token_ids,
                class_counts=classes[feature] if classes is not None else None,
                previous_ids=sample.previous_ids,
            )
            sets.append(by_strength(finder.find(firings).label, sample))
        report("naming features", feature + 1, d_sae)
    return sets


@torch.no_grad()
def judge_labels(
    sets: Sequence[LabelSet | None],
    dictionary: Dictionary,
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    on_progress: Progress | None = None,
) -> LabelJudge:
    """Run the dictionary over a text and count how well each feature's set fits its firings there.

    Raises:
        ValueError: the sets speak of Python's syntax and the text is not all Python.
    """
    from saescope.analysis.judging import LabelJudge  # compiled code is loaded when it is needed

    judge = LabelJudge(sets, vocab_size)
    syntax = _syntax_of(text.windows, tokenizer) if judge.needs_classes else None
    if judge.needs_classes and syntax is None:
        raise ValueError(
            "the labels speak of Python's syntax, and the held-out text is not all Python; use a part of the same data set"
        )
    done, total = 0, text.num_tokens
    for block in text.blocks():
        tokens = block.tokens
        counted = np.asarray(tokens.counted)
        codes = dictionary.encode_sparse(block.x)
        rows = torch.from_numpy(counted[block.read]).to(codes.values.device)
        judge.update(
            tokens.ids[counted],
            SparseCodes(codes.indices[rows], codes.values[rows], codes.d_sae),
            class_bits=syntax.bits(tokens.windows)[counted] if syntax is not None else None,
            previous_ids=previous_in_windows(tokens.ids)[counted] if judge.needs_previous else None,
        )
        done += int(counted.sum())
        if on_progress:
            on_progress("reading held-out text", done, total)
    return judge


def label_record(
    found: LabelSet | None, vocabulary: Sequence[str], judge: LabelJudge | None = None, feature: int = 0
) -> Label | None:
    """A set in words, with what a judge measured of the feature; numbers that are not defined are None."""
    if found is None:
        return None
    label = Label(text=describe(found, vocabulary), kind=_KINDS[type(found)], precision=None, lift=None, num_firings=0)
    if judge is None or not judge.num_firings[feature]:
        return label
    measured = judge.measured(feature)
    return Label(
        text=label.text,
        kind=label.kind,
        precision=measured.precision,
        lift=measured.lift if measured.num_members else None,
        recall=measured.recall if measured.num_members else None,
        num_firings=measured.num_firings,
    )


def by_strength(label: LabelSet, sample: SampledTokens) -> LabelSet:
    """The same set with its tokens ordered by the activation that falls on them in all, so that the telling ones lead."""
    if isinstance(label, SyntaxClass):
        return label
    at = sample.previous_ids if isinstance(label, AfterTokens) else sample.token_ids
    strength = dict.fromkeys(label.token_ids, 0.0)
    for token, value in zip(at.tolist(), np.abs(sample.values).tolist(), strict=True):
        if token in strength:
            strength[token] += value
    ordered = tuple(sorted(label.token_ids, key=lambda token: -strength[token]))
    if isinstance(label, TokensWithinClass):
        return TokensWithinClass(token_ids=ordered, name=label.name)
    return type(label)(token_ids=ordered)


def previous_in_windows(ids: np.ndarray) -> np.ndarray:
    """The id before each token of its window, ``[B, T]``, -1 for the first; the opening token counts as one."""
    previous = np.full_like(ids, -1)
    previous[:, 1:] = ids[:, :-1]
    return previous


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledTokens:
    """The tokens at the sampled firings of a feature."""

    num_firings: int
    cells: np.ndarray  # int64 [n]: window * T + place in the window
    token_ids: np.ndarray  # int64 [n]
    previous_ids: np.ndarray  # int64 [n]
    values: np.ndarray  # [n]


class _SampledText:
    """The sampled firings of all features with the tokens that they fall on."""

    def __init__(self, statistics: FiringSource, windows: TokenWindows, d_sae: int) -> None:
        self.statistics, self.windows, self.d_sae = statistics, windows, d_sae

    def of(self, feature: int) -> SampledTokens | None:
        """One feature's; None if it has fewer than ``MIN_FIRINGS`` in the whole text."""
        sample, windows = self.statistics.label_sample(feature), self.windows
        if sample.num_firings < MIN_FIRINGS:
            return None
        rows, columns = sample.windows.astype(np.int64), sample.positions.astype(np.int64)
        opening = int(windows.bos_id is not None)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(windows):
            raise ValueError(f"feature {feature} fires in window {rows.max()}, and the text has {len(windows)} windows")
        if ((columns < opening) | (columns >= windows.lengths[rows] + opening)).any():
            raise ValueError(
                f"feature {feature} has firings on opening or padding tokens, which are not analysed: give statistics "
                "of these windows"
            )
        positions = windows.starts[rows] + columns - opening
        previous = windows.tokens[positions - 1].astype(np.int64)
        previous[columns == opening] = -1 if windows.bos_id is None else windows.bos_id
        return SampledTokens(
            num_firings=sample.num_firings,
            cells=rows * windows.config.context_size + columns,
            token_ids=windows.tokens[positions].astype(np.int64),
            previous_ids=previous,
            values=sample.values,
        )

    def keys(self) -> np.ndarray:
        """All sampled firings in the order of the text, each one number: ``cell * d_sae + feature``."""
        keys = [np.zeros(0, dtype=np.int64)]
        for feature in range(self.d_sae):
            sample = self.of(feature)
            if sample is not None:
                keys.append(sample.cells * self.d_sae + feature)
        flat = np.concatenate(keys)
        flat.sort()
        return flat


def _count(
    sampled: _SampledText, syntax: WindowSyntax | None, vocab_size: int, report: Progress
) -> tuple[TextCounts, np.ndarray | None]:
    """How often tokens and classes occur among all analysed tokens; and, for each feature, how many of its sampled firings
    lie in each class, ``[d_sae, C]``.
    """
    windows, d_sae = sampled.windows, sampled.d_sae
    token_counts, previous_counts = np.zeros((2, vocab_size), dtype=np.int64)
    class_counts, of_features, keys = np.zeros(len(CLASS_NAMES), dtype=np.int64), None, None
    if syntax is not None:
        of_features, keys = np.zeros((d_sae, len(CLASS_NAMES)), dtype=np.int32), sampled.keys()
    num_tokens, total = 0, windows.num_tokens
    width = windows.config.context_size
    at_once = max(1, _TOKENS_AT_ONCE // width)
    for first in range(0, len(windows), at_once):
        rows = np.arange(first, min(first + at_once, len(windows)))
        batch = windows.batch(rows)
        ids, keep = batch.ids.numpy(), batch.keep.numpy()
        if ids[keep].size and ids[keep].max() >= vocab_size:
            raise ValueError(f"the text has token id {ids[keep].max()}, and the vocabulary ends at {vocab_size - 1}")
        previous = previous_in_windows(ids)[keep]
        num_tokens += int(keep.sum())
        token_counts += np.bincount(ids[keep], minlength=vocab_size)
        previous_counts += np.bincount(previous[previous >= 0], minlength=vocab_size)
        if syntax is not None:
            assert keys is not None
            assert of_features is not None
            bits = syntax.bits(rows)
            class_counts += SyntaxTable(bits=bits[keep]).counts()
            here = slice(*np.searchsorted(keys, [first * width * d_sae, (int(rows[-1]) + 1) * width * d_sae]))
            cell, feature = np.divmod(keys[here], d_sae)
            _add_classes(of_features, feature, bits.reshape(-1, bits.shape[-1])[cell - first * width])
            report("reading syntax", num_tokens, total)
    counts = TextCounts(
        num_tokens=num_tokens,
        token_counts=token_counts,
        class_counts=class_counts if syntax is not None else None,
        previous_counts=previous_counts,
    )
    return counts, of_features


def _add_classes(of_features: np.ndarray, features: np.ndarray, bits: np.ndarray) -> None:
    """Count the classes of firings into the rows of their features."""
    order = np.argsort(features, kind="stable")
    for first in range(0, len(order), _FIRINGS_AT_ONCE):
        part = order[first : first + _FIRINGS_AT_ONCE]
        firing, starts = np.unique(features[part], return_index=True)
        inside = np.unpackbits(bits[part], axis=1, count=len(CLASS_NAMES))  # [firings, C]
        of_features[firing] += np.add.reduceat(inside, starts, axis=0, dtype=np.int32)


def _syntax_of(windows: TokenWindows, tokenizer: PreTrainedTokenizerBase) -> WindowSyntax | None:
    """Syntax classes of the tokens; None unless all documents are Python and it is known where their tokens stand."""
    if not is_python(windows) or not getattr(tokenizer, "is_fast", False):
        return None
    return WindowSyntax(windows, tokenizer)
