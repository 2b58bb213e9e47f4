"""Labels for all features of a dictionary: found on the firings of one text, judged on those of another.

``labels.py`` says what a label is and how one is found and measured; here the tokens of two analysed texts are brought into
the form that it takes, with the syntax of Python source where the text is Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from saescope.activations import TokenWindows
from saescope.analysis.firings import FiringTable
from saescope.analysis.labels import LabelFinder, LabelSet, SyntaxClass, TokenSet, describe, measure
from saescope.analysis.python_syntax import SyntaxTable, token_classes
from saescope.store import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_FIRINGS = 10  # below this nothing is said of a feature
# tokens in a set; chosen on the demo's dictionary by looking at held-out precision with 24, 64, 128 and 256: smaller sets
# are easier to read, but hold too few of the firings of features as diffuse as those of k = 64 in 256 dimensions
MAX_SET_SIZE = 128
_KINDS = {TokenSet: "tokens", SyntaxClass: "syntax"}


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

    Features with fewer than ``MIN_FIRINGS`` firings get none; without held-out text labels carry no precision and no lift.
    """
    finder = LabelFinder(
        windows.tokens[table.positions],
        len(vocabulary),
        _syntax_of(table, windows, tokenizer),
        max_set_size=MAX_SET_SIZE,
        compound=False,  # sets of tokens and syntax classes alone: the kinds that a reader can check at a glance
    )
    judge = None
    if held_out_table is not None and held_out is not None:
        judge = _Judge(held_out_table, held_out, _syntax_of(held_out_table, held_out, tokenizer))
    labels: list[Label | None] = []
    for feature in range(table.d_sae):
        places, values = table.of(feature)
        if len(places) < MIN_FIRINGS:
            labels.append(None)
        else:
            found = by_strength(finder.find(places).label, finder.token_ids[places], values)
            precision, lift, num_firings = judge(feature, found) if judge else (None, None, 0)
            labels.append(
                Label(
                    text=describe(found, vocabulary),
                    kind=_KINDS[type(found)],
                    precision=precision,
                    lift=lift,
                    num_firings=num_firings,
                )
            )
        if on_progress:
            on_progress(feature + 1)
    return labels


def by_strength(label: LabelSet, fired_ids: np.ndarray, values: np.ndarray) -> LabelSet:
    """The same set with its tokens ordered by the activation that falls on them in all, so that the telling ones lead."""
    if not isinstance(label, TokenSet):
        return label
    strength = np.bincount(fired_ids, weights=values, minlength=max(label.token_ids) + 1)
    return TokenSet(token_ids=tuple(sorted(label.token_ids, key=lambda i: -strength[i])))


class _Judge:
    """Precision and lift on held-out text."""

    def __init__(self, table: FiringTable, windows: TokenWindows, syntax: SyntaxTable | None) -> None:
        self.table, self.syntax = table, syntax
        self.token_ids = windows.tokens[table.positions]

    def __call__(self, feature: int, label: LabelSet) -> tuple[float | None, float | None, int]:
        places, _ = self.table.of(feature)
        measured = measure(label, places, self.token_ids, self.syntax)
        if not measured.num_firings:
            return None, None, 0
        lift = measured.lift if measured.num_members else None
        return measured.precision, lift, measured.num_firings


def _syntax_of(table: FiringTable, windows: TokenWindows, tokenizer: PreTrainedTokenizerBase) -> SyntaxTable | None:
    """Syntax classes of every analysed token; None unless all documents are Python."""
    if not all(document.is_python for document in windows.documents):
        return None
    tables = []
    opening = int(windows.separator_id is not None)
    for document, (first, last) in zip(windows.documents, pairwise(windows.document_starts), strict=True):
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        classes = token_classes(document.text, offsets[:, 0], offsets[:, 1])
        # text that was cut off at max_tokens has fewer tokens here than its document
        tables += [SyntaxTable.empty(opening), SyntaxTable(bits=classes.bits[: last - first - opening])]
    return SyntaxTable(bits=SyntaxTable.concatenate(tables).bits[table.positions])
