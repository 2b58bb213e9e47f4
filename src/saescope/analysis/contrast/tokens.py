"""Tokens of two kinds within texts: the features that fire on one kind and not on the other.

As for sets of texts, texts are split in two: those of one half choose, those of the other measure. Tokens of a text
resemble each other, so that p does not come from tokens as if each had been drawn by itself: for each text the mean
activation on its tokens of the one kind is compared with that on the other, and the differences are tested over the texts
that have both (``paired.py``). Intervals draw whole texts again. The effect size is Hedges' g over tokens.

n  tokens, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from saescope.analysis.contrast.area import auroc
from saescope.analysis.contrast.paired import paired_p
from saescope.analysis.contrast.reading import Progress, read_tokens, windows_of
from saescope.analysis.contrast.records import Contrast
from saescope.analysis.contrast.separation import Separation, adjusted, firing_features, small_sample_factor
from saescope.analysis.contrast.texts import measured, num_measured, ranked
from saescope.interventions.site import Site


def contrast_tokens(
    site: Site,
    texts: Sequence[str],
    labels: Sequence[Sequence[bool]],
    *,
    test_share: float = 0.5,
    top: int = 20,
    side: Literal["both", "positive", "negative"] = "both",
    false_discovery_rate: float = 0.05,
    context_size: int | None = None,
    batch_size_windows: int = 16,
    num_draws: int = 200,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Contrast:
    """Features that separate marked tokens from the others.

    Args:
        texts: as strings; each is read by itself.
        labels: for each text a mark for each of its tokens, as the model's tokenizer cuts it without special tokens added.
            To find what fires *before* a kind of token, mark the tokens before it.
        others: as :func:`contrast`.

    Raises:
        ValueError: as :func:`contrast`; marks that do not go with the tokens; or a half without tokens of both kinds.
    """
    if len(labels) != len(texts):
        raise ValueError(f"there are {len(texts)} texts and marks for {len(labels)}; give marks for each text")
    if side not in ("both", "positive", "negative"):
        raise ValueError(f'side is "both", "positive" or "negative", not {side!r}')
    if len(texts) < 4:
        raise ValueError(f"{len(texts)} texts are too few: it takes two to choose features and two to measure them on")
    num_test = num_measured(len(texts), test_share)
    windows = windows_of(site, texts, context_size=context_size)
    lengths = np.diff(windows.document_starts)
    wrong = [number for number, (marks, length) in enumerate(zip(labels, lengths, strict=True)) if len(marks) != length]
    if wrong:
        raise ValueError(
            f"text {wrong[0]} (counted from 0) has {lengths[wrong[0]]} tokens and marks for {len(labels[wrong[0]])}"
        )
    marks = np.concatenate([np.asarray(each, dtype=bool) for each in labels])
    parts, texts_of, marked = [], [], []
    for read in read_tokens(site, windows, batch_size_windows=batch_size_windows, on_progress=on_progress):
        parts.append(read.codes)
        texts_of.append(read.text)
        marked.append(marks[windows.document_starts[read.text] + read.place])
    values = sparse.csr_array(sparse.vstack(parts))
    text, positive = np.concatenate(texts_of), np.concatenate(marked)

    order = np.random.default_rng(seed).permutation(len(texts))
    on_test = np.isin(text, order[:num_test])
    halves = {"chooses features": ~on_test, "measures them": on_test}
    for what, half in halves.items():
        counts = int(positive[half].sum()), int((~positive[half]).sum())
        if min(counts) < 2:
            raise ValueError(f"the half of the texts that {what} has {counts[0]} marked tokens and {counts[1]} others")
    found = token_separation(values[~on_test], positive[~on_test], text[~on_test])
    places = ranked(found, "effect_size", top, side, false_discovery_rate)
    train = sparse.csc_array(values[~on_test])
    for place in places:  # ranks cost a sort of all tokens: only of what is shown
        column = train[:, [int(found.feature[place])]].toarray().ravel()
        found.auroc[place] = auroc(column, positive[~on_test])[0]
    num_significant = int((found.q <= false_discovery_rate).sum())
    notes = ["p compares texts, not tokens: mean activations on marked and on other tokens of a text"]
    if not num_significant:
        notes.append(
            f"nothing separates the tokens: of {len(found.feature):,} features that fire, none has q <= "
            f"{false_discovery_rate:g}; those listed are the largest differences, and may be chance"
        )
    return Contrast(
        features=measured(
            found, places, values[on_test], positive[on_test], text[on_test], num_draws=num_draws, seed=seed
        ),
        unit="token",
        pooling="none",
        order_by="effect_size",
        num_positive=int(positive[~on_test].sum()),
        num_negative=int((~positive[~on_test]).sum()),
        num_test_positive=int(positive[on_test].sum()),
        num_test_negative=int((~positive[on_test]).sum()),
        num_tested=len(found.feature),
        num_significant=num_significant,
        false_discovery_rate=false_discovery_rate,
        notes=tuple(notes),
    )


def token_separation(values: sparse.csr_array, positive: np.ndarray, text: np.ndarray) -> Separation:
    """As ``separation``, from sums alone: AUROC is left at 0.5, and p is over texts."""
    groups = [values[positive], values[~positive]]
    sizes = [group.shape[0] for group in groups]
    fired = firing_features(values)
    means = [np.asarray(group.sum(0)).ravel()[fired] / size for group, size in zip(groups, sizes, strict=True)]
    squares = sum(_squared_deviations(group, fired, mean) for group, mean in zip(groups, means, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (means[0] - means[1]) / np.sqrt(squares / (sum(sizes) - 2)) * small_sample_factor(sum(sizes) - 2)
    effect = np.where(means[0] == means[1], 0.0, effect)
    p = paired_p(_differences(values, positive, text), fired)
    shares = [_share(group)[fired] for group in groups]
    return Separation(
        feature=fired,
        effect_size=effect,
        auroc=np.full(len(fired), 0.5),
        p=p,
        q=adjusted(p),
        mean_positive=means[0],
        mean_negative=means[1],
        share_positive=shares[0],
        share_negative=shares[1],
    )


def _squared_deviations(group: sparse.csr_array, fired: np.ndarray, mean: np.ndarray) -> np.ndarray:
    columns = sparse.csc_array(group)[:, fired]
    stored = np.diff(columns.indptr)
    deviations = (columns.data - np.repeat(mean, stored)) ** 2
    which = np.repeat(np.arange(len(fired)), stored)
    return np.bincount(which, weights=deviations, minlength=len(fired)) + (group.shape[0] - stored) * mean**2


def _differences(values: sparse.csr_array, positive: np.ndarray, text: np.ndarray) -> sparse.csr_array:
    """Mean activation on marked tokens less that on others, of texts that have both: ``[texts, d_sae]``."""
    _, text = np.unique(text, return_inverse=True)
    num_texts = int(text.max()) + 1
    counts = [np.bincount(text[group], minlength=num_texts) for group in (positive, ~positive)]
    both = (counts[0] > 0) & (counts[1] > 0)
    weight = np.where(positive, 1 / np.maximum(counts[0], 1)[text], -1 / np.maximum(counts[1], 1)[text])
    mixing = sparse.csr_array((weight, (text, np.arange(len(text)))), shape=(num_texts, len(text)))
    return sparse.csr_array(mixing @ values)[both]


def _share(group: sparse.csr_array) -> np.ndarray:
    return np.bincount(group.indices[group.data != 0], minlength=group.shape[1]) / group.shape[0]
