"""Spurious correlation removal (SCR): can a cue that a probe should not use be taken out by its features?

Karvonen et al. 2025, SAEBench, arXiv 2503.09532, after SHIFT. Two labels c and a, and three linear probes on activations:
the biased one tells "c and a" from "neither", so that it can go by either; the clean ones tell c with a balanced, and a
with c balanced. Direction 1 takes away the top features of the clean probe of a and asks the biased probe about c;
direction 2 the other way round::

    score = (accuracy without the features - biased accuracy) / (clean accuracy - biased accuracy)

1 is a probe that is as good as the clean one, 0 no gain. ``scr_metric`` is the direction in which the biased probe starts
lower. A feature's effect is ``|E_pos[f] - E_neg[f]| * |w . d|``, E over balanced units, d the decoder row.

U  units (tokens or documents), D  documents, N  numbers of features, S  reseeds, P  pairs of labels.
Quadrants of a pair, in this order: both labels, c alone, a alone, neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.controls import coefficient_of_variation
from saescope.evaluation.intervals import interval
from saescope.evaluation.removal.perturbation import MASK, split
from saescope.evaluation.removal.removal import Units, some_of, strongest
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

UNRELIABLE = (
    "SCR is known to be unreliable at its usual settings (arXiv 2605.18229: a perfect dictionary ranks below 11 of 35 "
    "trained ones at the top 10 features, and the correlation with known truth is -0.31 at the top 50, -0.64 at the top "
    "500); do not rank dictionaries by it alone"
)
LEAST_GAP = 1e-3  # between clean and biased accuracy, as published: below it there is nothing to remove
LEAST_IN_QUADRANT = 200  # tokens of both labels, of either alone and of neither, of a pair that is worth removing
_DIRECTIONS = ("scr_dir1", "scr_dir2")


def pairs_with_quadrants(labels: TokenLabels, least: int = LEAST_IN_QUADRANT) -> list[tuple[str, str]]:
    """Pairs of labels with at least so many tokens of both, of either alone and of neither; the fullest pairs first."""
    values = labels.values.astype(np.float64)
    both = values.T @ values  # [L, L]
    alone, total = np.diag(both), len(values)
    found = []
    for i, j in combinations(range(len(labels.names)), 2):
        quadrants = (both[i, j], alone[i] - both[i, j], alone[j] - both[i, j], total - alone[i] - alone[j] + both[i, j])
        if min(quadrants) >= least:
            found.append((-min(quadrants), i, j))
    return [(labels.names[i], labels.names[j]) for _, i, j in sorted(found)]


def scr(
    dictionary: Dictionary,
    sample: TokenSample,
    labels: TokenLabels,
    pairs: Sequence[tuple[str, str]],
    *,
    config: RemovalConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StudyResult:
    """Spurious correlation removal on pairs of labels of one's own (target, spurious).

    Accuracies are means over the four quadrants, each of which weighs alike. Where the biased probe is no worse than the
    clean one in any split, a pair has no score, and the reason is in the table; ``..._legacy`` counts it as 0, as
    published. Numbers are means over the pairs that have a score. Intervals are over documents, with the probes as they
    are.

    Args:
        pairs: see :func:`pairs_with_quadrants`.
        on_progress: called with (pairs done, pairs in all).

    Returns:
        For every n of ``config.num_features``: ``scr_dir1_threshold_{n}``, ``scr_dir2_threshold_{n}``,
        ``scr_metric_threshold_{n}``, the last also with ``_legacy`` and ``_reseed_cv``. Tables ``pairs`` and ``removals``
        (pair and n).

    Raises:
        ValueError: no pairs, a name that is no label, labels that do not go with the tokens, too few documents, or weights
            that are not numbers.
    """
    start = time.perf_counter()
    config = config or RemovalConfig()
    if not pairs:
        raise ValueError("name at least one pair of labels; pairs_with_quadrants(labels) lists those that can be used")
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"a pair is two different labels, got {pair}")
        for name in pair:
            labels.column(name)
    units = Units.of(dictionary, sample, labels, config.unit)
    splits = [split(sample, units, config.train_share, config.seed, reseed) for reseed in range(config.num_seeds)]
    found = []
    for done, (target, spurious) in enumerate(pairs, start=1):
        c, a = (units.values[:, labels.names.index(name)] for name in (target, spurious))
        quadrant = np.where(c, 0, 2) + np.where(a, 0, 1)
        missing = _shortage(quadrant, splits, config)
        if not units.written.codes.nnz:
            missing = "no feature fires on these tokens"
        if missing:
            found.append(_Pair(target=target, spurious=spurious, missing=missing))
        else:
            rounds = [_round(units, quadrant, *sides, [config.seed, s], config) for s, sides in enumerate(splits)]
            found.append(
                _Pair(
                    target=target,
                    spurious=spurious,
                    sums=np.stack([sums for sums, _ in rounds], axis=2),
                    num_unconverged=sum(count for _, count in rounds),
                )
            )
        if on_progress:
            on_progress(done, len(pairs))
    notes = [UNRELIABLE, MASK]
    unconverged = sum(pair.num_unconverged for pair in found)
    if unconverged:
        notes.append(f"{unconverged} probes did not converge")
    return StudyResult(
        study="scr",
        numbers=tuple(_numbers(found, config)),
        tables=_tables(found, config),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


def _shortage(quadrant: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], config: RemovalConfig) -> str:
    words = ("both labels", "the target alone", "the spurious label alone", "neither label")
    for units in splits:
        for side, places in zip(("training", "test"), units, strict=True):
            counts = np.bincount(quadrant[places], minlength=4)
            if counts.min() < config.least:
                return (
                    f"{counts.min()} {config.unit} with {words[counts.argmin()]} in the {side} documents of a split; "
                    f"{config.least} are needed"
                )
    return ""


# axes of the sums of a split: numbers of features, documents, directions, (all, clean, biased, without), quadrants
_SHAPE = (2, 4, 4)


def _round(
    units: Units, quadrant: np.ndarray, train: np.ndarray, test: np.ndarray, seeds: list[int], config: RemovalConfig
) -> tuple[np.ndarray, int]:
    """One split: sums ``[N, D, *_SHAPE]``, and how many probes did not converge."""
    generator = np.random.default_rng(seeds)
    groups = [train[quadrant[train] == q] for q in range(4)]
    size = min(map(len, groups))
    even = [some_of(group, min(size, config.num_train // 4), generator) for group in groups]
    size = min(len(groups[0]), len(groups[3]))
    extremes = [some_of(groups[q], min(size, config.num_train // 2), generator) for q in (0, 3)]
    is_c, is_a = quadrant < 2, quadrant % 2 == 0
    clean, biased_on = np.concatenate(even), np.concatenate(extremes)
    probes = [
        units.probe(clean, is_c[clean], c=config.c),
        units.probe(clean, is_a[clean], c=config.c),
        units.probe(biased_on, is_c[biased_on], c=config.c),
    ]
    differences = [
        units.difference(groups[0:2], groups[2:4]),  # of c, a balanced
        units.difference(groups[0::2], groups[1::2]),  # of a, c balanced
    ]
    orders = [
        strongest(np.abs(difference * (units.written.rows @ probe.weights)), config.num_features[-1])
        for difference, probe in zip(differences, probes, strict=False)
    ]
    logits = units.logits(test, probes)
    documents, which = np.unique(units.document, return_inverse=True)
    cells = which[test] * 4 + quadrant[test]

    def counted(right: np.ndarray) -> np.ndarray:
        """Units of each document and quadrant where it holds, ``[D, 4]``."""
        return np.bincount(cells, weights=right, minlength=4 * len(documents)).reshape(-1, 4)

    sums = np.zeros((len(config.num_features), len(documents), *_SHAPE))
    there = units.written.select(test)
    for direction, truth in enumerate((is_c[test], is_a[test])):
        sums[:, :, direction, 0] = counted(np.ones(len(test)))
        sums[:, :, direction, 1] = counted((logits[:, direction] > 0) == truth)
        sums[:, :, direction, 2] = counted((logits[:, 2] > 0) == truth)
        falls = there.removed(orders[1 - direction], config.num_features, probes[2].weights[:, None])
        for n, fall in enumerate(falls):
            sums[n, :, direction, 3] = counted((logits[:, 2] - fall[:, 0] > 0) == truth)
    return sums, sum(not probe.converged for probe in probes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    target: str
    spurious: str
    missing: str = ""  # why there are no sums
    sums: np.ndarray | None = None  # [N, D, S, *_SHAPE]
    num_unconverged: int = 0

    @property
    def of_documents(self) -> np.ndarray:
        assert self.sums is not None
        return self.sums

    def accuracies(self, n: int) -> np.ndarray:
        """Of the clean probe, the biased one and that without the features, ``[S, 2, 3]``."""
        return _accuracies(self.of_documents[n].sum(0))

    def scores(self, n: int) -> np.ndarray:
        """``[S, 2]``; NaN where there is nothing to remove."""
        return _scores(self.accuracies(n))

    @property
    def harder(self) -> int:
        """The direction in which the biased probe starts lower, on the mean over splits."""
        return int(self.accuracies(0)[..., 1].mean(0).argmin())

    def without_score(self, direction: int) -> str:
        bad = int(np.isnan(self.scores(0)[:, direction]).sum())
        if not bad:
            return ""
        return (
            f"in {bad} of {len(self.accuracies(0))} splits the biased probe is less than {LEAST_GAP} below the clean one "
            "in accuracy: there is nothing to remove"
        )


def _accuracies(sums: np.ndarray) -> np.ndarray:
    """Sums ``[..., 4, 4]`` to accuracies ``[..., 3]``, means over quadrants."""
    with np.errstate(all="ignore"):  # a draw without a unit in a quadrant has no value
        return (sums[..., 1:, :] / sums[..., :1, :]).mean(-1)


def _scores(accuracies: np.ndarray) -> np.ndarray:
    clean, biased, without = np.moveaxis(accuracies, -1, 0)
    gap = np.where(clean - biased < LEAST_GAP, np.nan, clean - biased)
    return (without - biased) / gap


def _numbers(found: list[_Pair], config: RemovalConfig) -> list[Number]:
    done = [pair for pair in found if not pair.missing]
    numbers = []
    for place, n in enumerate(config.num_features):
        for kind in (*_DIRECTIONS, "scr_metric"):
            numbers.append(_number(f"{kind}_threshold_{n}", found, place, kind, config))
        name = f"scr_metric_threshold_{n}"
        nothing = found[0].missing
        legacy = [float(np.nan_to_num(pair.scores(place)[:, pair.harder]).mean()) for pair in done]
        numbers.append(
            Number.of(
                f"{name}_legacy",
                float(np.mean(legacy)) if legacy else None,
                better="higher",
                reason=nothing,
                variant="as published: 0 where the biased probe is not below the clean one",
            )
        )
        scored = [pair for pair in done if not pair.without_score(pair.harder)]
        each = np.mean([pair.scores(place)[:, pair.harder] for pair in scored], axis=0) if scored else np.zeros(0)
        reason = "one reseed has no scatter" if config.num_seeds < 2 else "the mean over reseeds is 0"
        numbers.append(
            Number.of(
                f"{name}_reseed_cv",
                coefficient_of_variation(each.tolist()),
                variant=f"standard deviation over {config.num_seeds} reseeds, divided by the mean",
                reason=reason if scored else _no_score(found, "scr_metric"),
            )
        )
    return numbers


def _number(name: str, found: list[_Pair], place: int, kind: str, config: RemovalConfig) -> Number:
    def direction(pair: _Pair) -> int:
        return pair.harder if kind == "scr_metric" else _DIRECTIONS.index(kind)

    scored = [pair for pair in found if not pair.missing and not pair.without_score(direction(pair))]
    if not scored:
        return Number(name=name, value=None, better="higher", reason=_no_score(found, kind))
    chosen = np.stack([pair.of_documents[place][:, :, direction(pair)] for pair in scored], axis=1)  # [D, P, S, 4, 4]

    def of_totals(totals: np.ndarray) -> np.ndarray:
        return _scores(_accuracies(totals.reshape(-1, *chosen.shape[1:]))).mean((1, 2))

    flat = chosen.reshape(len(chosen), -1)
    ends = interval(flat, of_totals, seed=config.seed)
    return Number.of(
        name,
        float(of_totals(flat.sum(0, keepdims=True))[0]),
        better="higher",
        variant=f"mean of {len(scored)} of {len(found)} pairs of labels and {config.num_seeds} reseeds, on test documents"
        + ("" if ends["low"] is not None else "; no interval: over too many draws of documents a pair has no score"),
        low=ends["low"],
        high=ends["high"],
    )


def _no_score(found: list[_Pair], kind: str) -> str:
    """Why no pair has a score: the first pair's reason."""
    pair = found[0]
    if pair.missing:
        return f"{pair.target} / {pair.spurious}: {pair.missing}"
    return f"{pair.target} / {pair.spurious}: " + pair.without_score(
        pair.harder if kind == "scr_metric" else _DIRECTIONS.index(kind)
    )


def _tables(found: list[_Pair], config: RemovalConfig) -> dict[str, list[dict[str, Any]]]:
    pairs: list[dict[str, Any]] = []
    removals: list[dict[str, Any]] = []
    for pair in found:
        names = {"target": pair.target, "spurious": pair.spurious}
        if pair.missing:
            empty = dict.fromkeys(("clean_target", "clean_spurious", "biased_target", "biased_spurious", "metric"))
            pairs.append({**names, **empty, "reason": pair.missing})
            continue
        means = pair.accuracies(0).mean(0)  # [2, 3]
        row: dict[str, Any] = {
            **names,
            "clean_target": float(means[0, 0]),
            "clean_spurious": float(means[1, 0]),
            "biased_target": float(means[0, 1]),
            "biased_spurious": float(means[1, 1]),
            "metric": _DIRECTIONS[pair.harder],
        }
        reasons = [f"{d}: {reason}" for i, d in enumerate(_DIRECTIONS) if (reason := pair.without_score(i))]
        pairs.append({**row, "reason": "; ".join(reasons)} if reasons else row)
        for place, n in enumerate(config.num_features):
            scores = pair.scores(place)
            values = [None if pair.without_score(i) else float(scores[:, i].mean()) for i in range(2)]
            removals.append({**names, "n": n, **dict(zip(_DIRECTIONS, values, strict=True))})
    return {"pairs": pairs, "removals": removals}
