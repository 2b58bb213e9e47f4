"""Two sets of texts: the features whose activations tell one from the other.

Texts are split in two by a seed. One half chooses features, by effect size and after correction for how many were looked
at; the other half says how well each of them tells new texts apart. Choosing and measuring on the same texts would flatter:
of thousands of features some separate any few texts by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal, get_args

import numpy as np
from scipy import sparse

from saescope.analysis.contrast.area import auroc as area
from saescope.analysis.contrast.area import auroc_intervals
from saescope.analysis.contrast.pooling import Pooling, pool_texts
from saescope.analysis.contrast.reading import Progress
from saescope.analysis.contrast.records import Contrast, SeparatingFeature
from saescope.analysis.contrast.separation import Separation, separation
from saescope.interventions.site import Site

Order = Literal["effect_size", "auroc"]
_ROUGH = 8  # texts in a set, below which the normal approximation is poor
_UNEQUAL = 2.0  # ratio of median lengths


def contrast(
    site: Site,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    test: tuple[Sequence[str], Sequence[str]] | None = None,
    test_share: float = 0.5,
    pooling: Pooling = "max",
    order_by: Order = "effect_size",
    top: int = 20,
    side: Literal["both", "positive", "negative"] = "both",
    false_discovery_rate: float = 0.05,
    context_size: int | None = None,
    batch_size_windows: int = 16,
    num_draws: int = 1000,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Contrast:
    """Features that separate two sets of texts, with their AUROC on texts that did not choose them.

    Args:
        positive, negative: the sets. A text that is in a set twice counts once.
        test: positive and negative texts to measure on; all others then choose. None: a share of the texts, by ``seed``.
        test_share: that share, of each set.
        pooling: a text's activation of a feature: ``"max"`` over its tokens, ``"mean"``, or that of the ``"last"`` token.
        order_by: what is best: ``"effect_size"`` (Hedges' g) or ``"auroc"``, both on the half that chooses.
        top: features to give at most.
        side: give only features that are higher in one of the sets.
        false_discovery_rate: q at or below it counts as a finding.
        context_size: tokens in a window; None for the dictionary's own. Longer texts are read in several windows.
        num_draws: of texts, for the intervals.

    Raises:
        ValueError: a set with too few texts to be split, a text in both sets or on both halves, an empty text, an unknown
            option, or a dictionary that does not fit the model.
    """
    if order_by not in get_args(Order):
        raise ValueError(f"order_by is {' or '.join(map(repr, get_args(Order)))}, not {order_by!r}")
    if side not in ("both", "positive", "negative"):
        raise ValueError(f'side is "both", "positive" or "negative", not {side!r}')
    if top < 1:
        raise ValueError(f"top is a number of features, at least 1, not {top}")
    if not 0 < false_discovery_rate < 1:
        raise ValueError(f"false_discovery_rate lies between 0 and 1, not at {false_discovery_rate}")
    (chosen_by, measured_on), notes = split_sets(positive, negative, test, test_share, seed)
    groups = [*chosen_by, *measured_on]
    pooled = pool_texts(
        site,
        [text for group in groups for text in group],
        pooling=pooling,
        context_size=context_size,
        batch_size_windows=batch_size_windows,
        on_progress=on_progress,
    )
    sizes = [len(group) for group in groups]
    num_train = sizes[0] + sizes[1]
    on_train = np.arange(num_train) < sizes[0]
    on_test = np.arange(sizes[2] + sizes[3]) < sizes[2]
    found = separation(pooled.values[:num_train], on_train)
    features = ranked(found, order_by, top, side, false_discovery_rate)
    num_significant = int((found.q <= false_discovery_rate).sum())

    lengths = [median(pooled.num_tokens[:num_train][group].tolist()) for group in (on_train, ~on_train)]
    if pooling == "max" and max(lengths) > _UNEQUAL * min(lengths):
        notes.append(
            f"half of the positive texts have {lengths[0]:g} tokens or more, half of the negative ones {lengths[1]:g}: a "
            'longer text has a larger maximum by chance alone; compare with pooling="mean"'
        )
    if min(sizes[:2]) < _ROUGH:
        notes.append(
            f"{sizes[0]} positive and {sizes[1]} negative texts chose: with fewer than {_ROUGH} in a set p is rough"
        )
    if pooled.num_cut:
        read = "only the end of each was read" if pooling == "last" else "they were read window by window"
        notes.append(f"{pooled.num_cut} of {sum(sizes)} texts are longer than a window: {read}")
    if not len(found.feature):
        notes.append("no feature fires on the texts that chose")
    elif not num_significant:
        notes.append(
            f"nothing separates the sets: of {len(found.feature):,} features that fire, none has q <= "
            f"{false_discovery_rate:g}; those listed are the largest differences, and may be chance"
        )
    return Contrast(
        features=measured(
            found, features, pooled.values[num_train:], on_test, np.arange(len(on_test)), num_draws=num_draws, seed=seed
        ),
        unit="text",
        pooling=pooling,
        order_by=order_by,
        num_positive=sizes[0],
        num_negative=sizes[1],
        num_test_positive=sizes[2],
        num_test_negative=sizes[3],
        num_tested=len(found.feature),
        num_significant=num_significant,
        false_discovery_rate=false_discovery_rate,
        notes=tuple(notes),
    )


Sets = tuple[list[str], list[str]]


def split_sets(
    positive: Sequence[str],
    negative: Sequence[str],
    test: tuple[Sequence[str], Sequence[str]] | None,
    test_share: float,
    seed: int,
) -> tuple[tuple[Sets, Sets], list[str]]:
    """Texts that choose and texts that measure, (positive, negative) each, and what is to be said of them.

    Raises:
        ValueError: as :func:`contrast`.
    """
    notes: list[str] = []
    given = {"positive": positive, "negative": negative}
    if test is not None:
        given |= {"positive test": test[0], "negative test": test[1]}
    sets: dict[str, list[str]] = {}
    for name, texts in given.items():
        if isinstance(texts, str):
            raise ValueError(f"the {name} set is a list of texts, not one text")
        if not texts:
            raise ValueError(f"the {name} set is empty; it needs texts")
        sets[name] = list(dict.fromkeys(texts))
        if len(sets[name]) < len(texts):
            notes.append(f"the {name} set has {len(texts) - len(sets[name])} texts more than once; each counts once")
    names = list(sets)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            common = [text for text in sets[name] if text in set(sets[other])]
            if common:
                raise ValueError(
                    f"{len(common)} texts are both in the {name} and in the {other} set, the first is {common[0][:60]!r}: "
                    "nothing can be learned from them; take them out of one"
                )
    if test is not None:
        for name in ("positive", "negative"):
            if len(sets[name]) < 2:
                raise ValueError(f"the {name} set has one text; to know how far texts of a set differ, it takes two")
        return ((sets["positive"], sets["negative"]), (sets["positive test"], sets["negative test"])), notes
    generator = np.random.default_rng(seed)
    halves: list[list[str]] = []
    for name in ("positive", "negative"):
        texts = sets[name]
        if len(texts) < 4:
            raise ValueError(
                f"the {name} set has {len(texts)} different text{'s' * (len(texts) > 1)}; it takes four, two to choose "
                "features and two to measure them on, and many more to be sure (or give test texts of their own)"
            )
        shuffled = [texts[place] for place in generator.permutation(len(texts))]
        num_test = num_measured(len(texts), test_share)
        halves += [shuffled[num_test:], shuffled[:num_test]]
    return ((halves[0], halves[2]), (halves[1], halves[3])), notes


def num_measured(number: int, share: float) -> int:
    """How many of four texts or more measure, about ``share`` of them; two at least, and two are left to choose.

    Raises:
        ValueError: a share that is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"test_share lies between 0 and 1, not at {share}")
    return min(max(2, round(share * number)), number - 2)


def ranked(found: Separation, order_by: Order, top: int, side: str, rate: float) -> np.ndarray:
    """Places among the features that fire: findings first, each part by size, equal ones by number."""
    size = np.abs(found.effect_size if order_by == "effect_size" else found.auroc - 0.5)
    order = np.lexsort((found.feature, -size, found.q > rate))
    if side != "both":
        order = order[is_positive(found)[order] == (side == "positive")]
    return order[:top]


def is_positive(found: Separation) -> np.ndarray:
    """Whether a feature is higher in the positive set: by its mean, and where means are equal by its AUROC."""
    difference = found.mean_positive - found.mean_negative
    return np.where(difference == 0, found.auroc >= 0.5, difference > 0)


def measured(
    found: Separation,
    places: np.ndarray,
    values: sparse.csr_array,
    positive: np.ndarray,
    text: np.ndarray,
    *,
    num_draws: int,
    seed: int,
) -> tuple[SeparatingFeature, ...]:
    """The chosen features with their AUROC on other rows: ``values [n, d_sae]``, ``positive`` and ``text`` ``[n]``."""
    if not len(places):
        return ()
    columns = sparse.csc_array(values)[:, found.feature[places]].toarray()
    up = is_positive(found)[places]
    intervals = [(0.0, 0.0)] * len(places)
    for upward, group in ((True, positive), (False, ~positive)):  # its own side is to be the higher one
        some = np.flatnonzero(up == upward)
        if len(some):
            ends = auroc_intervals(columns[:, some], group, text, num_draws=num_draws, seed=seed)
            for place, pair in zip(some, ends, strict=True):
                intervals[place] = pair
    rows = []
    for place, column, upward, (low, high) in zip(places, columns.T, up, intervals, strict=True):
        own, effect = found.auroc[place], found.effect_size[place]
        rows.append(
            SeparatingFeature(
                feature=int(found.feature[place]),
                side="positive" if upward else "negative",
                effect_size=float(effect) if np.isfinite(effect) else None,
                delta=float(found.delta[place]),
                p=float(found.p[place]),
                q=float(found.q[place]),
                auroc_train=float(own if upward else 1 - own),
                auroc=float(area(column, positive if upward else ~positive)[0]),
                auroc_low=low,
                auroc_high=high,
                mean_positive=float(found.mean_positive[place]),
                mean_negative=float(found.mean_negative[place]),
                share_positive=float(found.share_positive[place]),
                share_negative=float(found.share_negative[place]),
            )
        )
    return tuple(rows)
