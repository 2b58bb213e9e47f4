"""One activation of every feature for a text: the largest of its tokens, the mean, or that of the last token.

Of a feature with activations a_1 ... a_T on the T kept tokens of a text (neither padding nor special; a token on which it
is silent has 0):

- ``max``: the largest; of dictionaries with negative activations the one that is farthest from 0, with its sign. A longer
  text has more chances, so that sets of very different lengths differ in this number for that reason alone;
- ``mean``: over all T;
- ``last``: a_T, read with as much of the text before it as a window holds.

n  texts, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy import sparse

from saescope.analysis.contrast.reading import Progress, read_tokens, windows_of
from saescope.interventions.site import Site

Pooling: TypeAlias = Literal["max", "mean", "last"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts:
    """What a dictionary makes of texts."""

    values: sparse.csr_array
    """float64, ``[n, d_sae]``: the pooled activations."""
    firings: sparse.csr_array
    """float64, ``[n, d_sae]``: on how many kept tokens a feature fires; with ``last``, on the last alone."""
    num_tokens: np.ndarray
    """int64, ``[n]``: kept tokens; with ``last``, 1."""
    num_cut: int
    """Texts longer than a window, which were read in several; with ``last``, whose beginning was not read."""


def pool_texts(
    site: Site,
    texts: Sequence[str],
    *,
    pooling: Pooling = "max",
    context_size: int | None = None,
    batch_size_windows: int = 16,
    on_progress: Progress | None = None,
) -> PooledTexts:
    """Read texts and pool each one's activations; those of single tokens are never all held.

    Args:
        context_size: tokens in a window; None for the dictionary's own.
        on_progress: called with (windows done, windows in all).

    Raises:
        ValueError: an unknown pooling, no texts, or a text without a token that is not special.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {', '.join(map(repr, get_args(Pooling)))}, not {pooling!r}")
    last = pooling == "last"
    windows = windows_of(site, texts, context_size=context_size, last_only=last)
    long = np.diff(windows.document_starts) > windows.config.context_size - windows.config.prepend_bos
    parts, num_tokens = [], np.zeros(len(texts), dtype=np.int64)
    for read in read_tokens(site, windows, batch_size_windows=batch_size_windows, on_progress=on_progress):
        found = read.codes.tocoo()
        texts_of, features, values = read.text[found.row], found.col.astype(np.int64), found.data
        if last:  # tokens are in order, and a text is in one window
            ends = np.flatnonzero(np.diff(read.text, append=-1))
            chosen = np.isin(found.row, ends)
            texts_of, features, values = texts_of[chosen], features[chosen], values[chosen]
            num_tokens[read.text[ends]] = 1
        else:
            num_tokens += np.bincount(read.text, minlength=len(texts))
        parts.append(_reduced(texts_of * site.dictionary.d_sae + features, values, np.ones(len(values)), pooling))
    empty = np.flatnonzero(num_tokens == 0)
    if len(empty):
        raise ValueError(f"text {empty[0]} of {len(texts)} (counted from 0) has only special tokens; leave it out")
    keys, values, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    key, value, count = _reduced(keys, values, counts, pooling)
    row, column = np.divmod(key, site.dictionary.d_sae)
    if pooling == "mean":
        value = value / num_tokens[row]
    shape = (len(texts), site.dictionary.d_sae)
    return PooledTexts(
        values=sparse.csr_array((value, (row, column)), shape=shape),
        firings=sparse.csr_array((count, (row, column)), shape=shape),
        num_tokens=num_tokens,
        num_cut=int(long.sum()),
    )


def _reduced(
    key: np.ndarray, value: np.ndarray, count: np.ndarray, pooling: Pooling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal keys in one: their values summed for ``mean``, the farthest from 0 otherwise, and their counts summed."""
    if not len(key):
        return key, value, count
    order = np.argsort(key, kind="stable")
    key, value, count = key[order], value[order], count[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    if pooling == "mean":
        pooled = np.add.reduceat(value, first)
    else:
        high, low = np.maximum.reduceat(value, first), np.minimum.reduceat(value, first)
        pooled = np.where(-low > high, low, high)
    return key[first], pooled, np.add.reduceat(count, first)
