"""A label for every feature, without a language model: the rarest set of tokens that still holds its firings.

A label is a set of places in the text: the places of certain vocabulary tokens (``return``, ``yield``), the places after
certain tokens, or a class of Python's own syntax (a comment, the name of a defined function). Two numbers judge it:

* *precision*: the share of the feature's firings that lie inside the set;
* *lift*: precision divided by the set's share of all tokens, its base rate.

The set is chosen on one text: of all sets that hold at least ``COVERAGE`` of the firings there, the one with the highest
lift, that is, the rarest. If no set does, the one with the highest phi coefficient is taken, and its low precision shows. The two
numbers are then measured on held-out text, where nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from saescope.activations import TokenWindows
from saescope.analysis.firings import FiringTable
from saescope.analysis.python_syntax import CLASS_NAMES, SyntaxTable, token_classes
from saescope.store import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COVERAGE = 0.9  # of the firings that a set must hold on the text where it is chosen
MAX_SET_SIZE = 24  # tokens in a set: more cannot be read
MIN_FIRINGS = 10  # below this nothing is said of a feature
_SHRINKAGE = 2.0  # tokens seen once or twice do not lead the order
_GOOD_LIFT = 10.0
_FEATURES_AT_ONCE = 128
_TOKENS_SHOWN = 8
_TOKENS_UNPACKED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class TokenFacts:
    """What is known of every token of a text, row by row."""

    ids: np.ndarray  # [num_tokens]
    previous_ids: np.ndarray  # [num_tokens]: the token before it, -1 at the start of a window
    classes: sp.csr_matrix | None  # 0/1, [num_tokens, num_classes]; None where the text is not Python

    def column(self, kind: str) -> np.ndarray:
        return self.ids if kind == "tokens" else self.previous_ids


@dataclass(frozen=True)
class Candidate:
    """A set of places: token ids (kinds ``tokens`` and ``after``) or the name of a syntax class (kind ``syntax``)."""

    kind: str
    token_ids: tuple[int, ...] = ()
    name: str = ""

    def holds(self, facts: TokenFacts) -> np.ndarray:
        """Bool ``[num_tokens]``: which tokens of a text are inside."""
        if self.kind != "syntax":
            return np.isin(facts.column(self.kind), self.token_ids)
        inside = np.zeros(len(facts.ids), dtype=bool)
        if facts.classes is not None:
            inside[facts.classes[:, [CLASS_NAMES.index(self.name)]].nonzero()[0]] = True
        return inside

    def describe(self, vocabulary: Sequence[str]) -> str:
        """The label as text; blanks in tokens are made visible."""
        if self.kind == "syntax":
            return self.name
        shown = [f"`{_visible(vocabulary[i])}`" for i in self.token_ids[:_TOKENS_SHOWN]]
        more = len(self.token_ids) - len(shown)
        text = " ".join(shown) + (f" and {more} more" if more else "")
        return text if self.kind == "tokens" else f"after {text}"


@dataclass(frozen=True)
class _Scored:
    candidate: Candidate
    coverage: float  # share of the firings inside
    base_rate: float  # share of all tokens inside

    @property
    def lift(self) -> float:
        return self.coverage / self.base_rate

    def phi(self, density: float) -> float:
        """Correlation of being inside with firing."""
        spread = self.base_rate * (1 - self.base_rate) * density * (1 - density)
        return density * (self.coverage - self.base_rate) / spread**0.5 if spread > 0 else 0.0


def choose(
    places: np.ndarray, facts: TokenFacts, counts: dict[str, np.ndarray], inside_classes: np.ndarray | None
) -> Candidate | None:
    """The label's set for a feature that fires at ``places``.

    Args:
        counts: how often each id occurs, for the kinds ``tokens`` and ``after``, and each class, for ``syntax``.
        inside_classes: the feature's firings inside each syntax class.
    """
    num_tokens, num_firings = len(facts.ids), len(places)
    if num_firings < MIN_FIRINGS:
        return None
    scored = []
    for kind in ("tokens", "after"):
        scored.append(_best_token_set(kind, facts.column(kind)[places], counts[kind], num_tokens))
    if facts.classes is not None and inside_classes is not None:
        sizes = counts["syntax"]
        scored += [
            _Scored(Candidate("syntax", name=name), inside / num_firings, size / num_tokens)
            for name, inside, size in zip(CLASS_NAMES, inside_classes.tolist(), sizes.tolist(), strict=True)
            if inside
        ]
    own = [s for s in scored if s.candidate.kind != "after" and s.coverage >= COVERAGE and s.lift >= _GOOD_LIFT]
    enough = own or [s for s in scored if s.coverage >= COVERAGE and s.lift >= _GOOD_LIFT]
    if enough:
        return max(enough, key=lambda s: s.lift).candidate
    return max(scored, key=lambda s: s.phi(num_firings / num_tokens)).candidate


def measure(candidate: Candidate, places: np.ndarray, facts: TokenFacts) -> tuple[float | None, float | None]:
    """Precision and lift of a set for a feature that fires at ``places``; None where they are undefined."""
    if not len(places):
        return None, None
    inside = candidate.holds(facts)
    precision = float(inside[places].mean())
    base_rate = float(inside.mean())
    return precision, precision / base_rate if base_rate else None


def label_features(
    table: FiringTable,
    windows: TokenWindows,
    held_out_table: FiringTable | None,
    held_out: TokenWindows | None,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Sequence[str],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[Label | None]:
    """A label for every feature: chosen on the firings of ``table``, measured on those of ``held_out_table``.

    Features with fewer than ``MIN_FIRINGS`` firings get none.
    """
    facts = token_facts(table, windows, tokenizer)
    held_out_facts = token_facts(held_out_table, held_out, tokenizer) if held_out_table and held_out else None
    counts = {kind: _count(facts.column(kind), len(vocabulary)) for kind in ("tokens", "after")}
    if facts.classes is not None:
        counts["syntax"] = np.asarray(facts.classes.sum(0)).ravel()
    labels: list[Label | None] = []
    for feature, inside_classes in enumerate(_firings_in_classes(table, facts.classes)):
        candidate = choose(table.of(feature)[0], facts, counts, inside_classes)
        if candidate is None:
            labels.append(None)
            continue
        precision = lift = None
        places = np.zeros(0, dtype=np.int32)
        if held_out_table is not None and held_out_facts is not None:
            places = held_out_table.of(feature)[0]
            precision, lift = measure(candidate, places, held_out_facts)
        labels.append(
            Label(
                text=candidate.describe(vocabulary),
                kind=candidate.kind,
                precision=precision,
                lift=lift,
                num_firings=len(places),
            )
        )
        if on_progress:
            on_progress(feature + 1)
    return labels


def token_facts(table: FiringTable, windows: TokenWindows, tokenizer: PreTrainedTokenizerBase) -> TokenFacts:
    """The facts of every analysed token of a text."""
    positions = table.positions
    before = np.maximum(positions - 1, 0)
    opens = np.diff(table.window, prepend=-1) != 0  # first token of its window
    opens |= np.isin(windows.tokens[before], list(windows.special_ids))
    return TokenFacts(
        ids=windows.tokens[positions],
        previous_ids=np.where(opens, -1, windows.tokens[before]),
        classes=_sparse(_syntax(windows, tokenizer).bits[positions]) if _is_python(windows) else None,
    )


def _best_token_set(kind: str, fired_ids: np.ndarray, counts: np.ndarray, num_tokens: int) -> _Scored:
    """The rarest set of tokens that holds ``COVERAGE`` of the firings, or the largest allowed one if none does."""
    fired = _count(fired_ids, len(counts))
    ids = np.flatnonzero(fired)
    ids = ids[np.argsort(-fired[ids] / (counts[ids] + _SHRINKAGE), kind="stable")]
    coverage = np.cumsum(fired[ids]) / max(len(fired_ids), 1)
    size = int(np.searchsorted(coverage, COVERAGE)) + 1
    if size > MAX_SET_SIZE:  # then the commonest ones: they hold the most firings
        ids = np.argsort(-fired, kind="stable")[:MAX_SET_SIZE]
        size = MAX_SET_SIZE
    chosen = ids[:size]
    order = np.argsort(-fired[chosen], kind="stable")
    return _Scored(
        Candidate(kind, tuple(chosen[order].tolist())),
        float(fired[chosen].sum() / max(len(fired_ids), 1)),
        max(float(counts[chosen].sum() / num_tokens), 1e-12),
    )


def _count(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.bincount(ids[ids >= 0], minlength=vocab_size)


def _firings_in_classes(table: FiringTable, classes: sp.csr_matrix | None) -> Iterator[np.ndarray | None]:
    """For every feature, its firings inside each class (by products of sparse 0/1 matrices, some features at once)."""
    for first in range(0, table.d_sae, _FEATURES_AT_ONCE):
        last = min(first + _FEATURES_AT_ONCE, table.d_sae)
        if classes is None:
            yield from (None for _ in range(first, last))
            continue
        bounds = table.bounds[first : last + 1]
        places = table.places[bounds[0] : bounds[-1]]
        ones = np.ones(len(places), dtype=np.int32)
        fired = sp.csr_matrix((ones, places, bounds - bounds[0]), shape=(last - first, table.num_tokens))
        yield from np.asarray((fired @ classes).todense())


def _is_python(windows: TokenWindows) -> bool:
    return all(document.is_python for document in windows.documents)


def _syntax(windows: TokenWindows, tokenizer: PreTrainedTokenizerBase) -> SyntaxTable:
    """Syntax classes of every token of the flat array."""
    tables = []
    opening = int(windows.separator_id is not None)
    for document, (first, last) in zip(windows.documents, pairwise(windows.document_starts), strict=True):
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        table = token_classes(document.text, offsets[:, 0], offsets[:, 1])
        # text that was cut off at max_tokens has fewer tokens here than its document
        tables += [SyntaxTable.empty(opening), SyntaxTable(bits=table.bits[: last - first - opening])]
    return SyntaxTable.concatenate(tables)


def _sparse(bits: np.ndarray) -> sp.csr_matrix:
    """Packed class bits as a sparse 0/1 matrix, ``[num_tokens, num_classes]``."""
    blocks = [
        sp.csr_matrix(np.unpackbits(block, axis=1, count=len(CLASS_NAMES)), dtype=np.int32)
        for block in np.array_split(bits, len(bits) // _TOKENS_UNPACKED_AT_ONCE + 1)
    ]
    return sp.vstack(blocks, format="csr")


def _visible(text: str) -> str:
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
