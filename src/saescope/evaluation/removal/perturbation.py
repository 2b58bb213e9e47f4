"""Targeted probe perturbation: taking a concept's features away should hurt its own probe, and no other.

Karvonen et al. 2025, SAEBench, arXiv 2503.09532. For every label a linear probe on activations, one against the rest. A
feature's effect on the probe w of label i is ``max(0, E_pos[f] - E_neg[f]) * (w . d)``, d its decoder row. Without the top
n features of label i, probe j loses accuracy D_ij; good is a large D_ii with small D_ij::

    total = mean over i of (D_ii - mean over j != i of D_ij)

Probes are fitted and features are ranked on some documents, accuracies are of the others. Everything is done several times
with other splits and other draws, and how far the results scatter is a number of its own: this study is known to be noisy.

U  units (tokens or documents), L  labels with enough samples, D  documents, N  numbers of features, S  reseeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from saescope.dictionaries import Dictionary
from saescope.evaluation.controls import coefficient_of_variation
from saescope.evaluation.intervals import interval
from saescope.evaluation.removal.removal import Units, seed_of, some_of, strongest
from saescope.evaluation.removal.settings import RemovalConfig
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample

UNRELIABLE = (
    "TPP is known to be unreliable at its usual settings (arXiv 2605.18229: results scatter by 39 % between reseeds at the "
    "top 10 features and by 23 % at the top 50, and do not follow the known truth of synthetic data); do not rank "
    "dictionaries by it alone"
)
MASK = "only tokens that are neither special nor padding are in the sample, so that none adds to a mean"
_PARTS = 8  # sums of a label: of positives and negatives, (all, right, right without own, right without others')


def tpp(
    dictionary: Dictionary,
    sample: TokenSample,
    labels: TokenLabels,
    *,
    config: RemovalConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StudyResult:
    """Targeted probe perturbation on labels of one's own, each of them a class against the rest.

    Accuracy is balanced (mean over positives and negatives), since labels of tokens are rare. Intervals are over documents,
    with the probes as they are. Of a transcoder, probes read what it writes.

    Args:
        on_progress: called with (reseeds done, reseeds in all).

    Returns:
        For every n of ``config.num_features``: ``tpp_threshold_{n}_total_metric``, ``..._intended_diff_only``,
        ``..._unintended_diff_only`` and ``..._reseed_cv``; ``mean_probe_accuracy``. Tables ``labels`` (every label given,
        with the reason if it was left out) and ``perturbations`` (label and n).

    Raises:
        ValueError: labels do not go with the tokens, too few documents, or weights that are not numbers.
    """
    start = time.perf_counter()
    config = config or RemovalConfig()
    units = Units.of(dictionary, sample, labels, config.unit)
    splits = [split(sample, units, config.train_share, config.seed, reseed) for reseed in range(config.num_seeds)]
    reasons = [_shortage(column, splits, config) for column in units.values.T]
    usable = np.array([place for place, reason in enumerate(reasons) if not reason], dtype=np.int64)
    missing = ""
    if not units.written.codes.nnz:
        missing = "no feature fires on these tokens"
    elif not len(usable):
        missing = f"no label has {config.least} positives and {config.least} negatives on both sides of every split"
    rounds = []
    for reseed, (train, test) in enumerate([] if missing else splits):
        rounds.append(_Round.of(units, usable, train, test, reseed, config))
        if on_progress:
            on_progress(reseed + 1, config.num_seeds)
    notes = [UNRELIABLE, MASK]
    if rounds:
        notes += _notes(rounds, units.values[:, usable], [labels.names[place] for place in usable], config)
    return StudyResult(
        study="tpp",
        numbers=tuple(_numbers(rounds, missing, config)),
        tables=_tables(rounds, labels.names, usable, reasons, missing, config),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


def split(
    sample: TokenSample, units: Units, train_share: float, seed: int, reseed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the units whose documents are for training, and of the others."""
    train = sample.parts([train_share, 1 - train_share], seed=seed_of(seed, reseed))[0]
    is_train = np.isin(units.document, np.unique(sample.document[train]))
    return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def _shortage(column: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], config: RemovalConfig) -> str:
    for units in splits:
        for side, places in zip(("training", "test"), units, strict=True):
            positives = int(column[places].sum())
            negatives = len(places) - positives
            if min(positives, negatives) < config.least:
                return (
                    f"{positives} positive and {negatives} negative {config.unit} in the {side} documents of a split; "
                    f"{config.least} of both are needed"
                )
    return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Round:
    """One split, its probes and what they lost."""

    sums: np.ndarray  # [N, D, L, _PARTS]
    drops: np.ndarray  # D_ij of label i's features and probe j, [N, L, L]
    accuracy: np.ndarray  # of the untouched probes, [L]
    num_removed: np.ndarray  # features that were there to be taken away, [N, L]
    num_unconverged: int

    @classmethod
    def of(
        cls,
        units: Units,
        usable: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
        reseed: int,
        config: RemovalConfig,
    ) -> _Round:
        probes, orders = [], []
        for label in usable:
            truth = units.values[:, label]
            generator = np.random.default_rng([config.seed, reseed, int(label)])
            both = [train[truth[train]], train[~truth[train]]]
            chosen = np.concatenate([some_of(places, config.num_train // 2, generator) for places in both])
            probe = units.probe(chosen, truth[chosen], c=config.c)
            difference = units.difference([both[0]], [both[1]])
            effects = difference.clip(min=0) * (units.written.rows @ probe.weights)
            probes.append(probe)
            orders.append(strongest(effects, config.num_features[-1]))
        weights = np.stack([probe.weights for probe in probes], axis=-1)  # [d_out, L]
        clean = units.logits(test, probes)  # [U, L]
        truth = units.values[np.ix_(test, usable)]
        documents, which = np.unique(units.document, return_inverse=True)
        gather = sparse.csr_array(
            (np.ones(len(test)), (which[test], np.arange(len(test)))), shape=(len(documents), len(test))
        )
        num_sizes, num_labels = len(config.num_features), len(usable)
        sums = np.zeros((num_sizes, len(documents), num_labels, _PARTS))
        drops = np.zeros((num_sizes, num_labels, num_labels))
        whole, right = _sides(np.ones_like(truth), truth, gather), _sides((clean > 0) == truth, truth, gather)
        sums[..., 0:2], sums[..., 2:4] = whole, right
        accuracy = (right.sum(0) / whole.sum(0)).mean(-1)
        there = units.written.select(test)
        for i, order in enumerate(orders):
            for n, fall in enumerate(there.removed(order, config.num_features, weights)):
                left = _sides((clean - fall > 0) == truth, truth, gather)  # [D, L, 2]
                drops[n, i] = accuracy - (left.sum(0) / whole.sum(0)).mean(-1)
                sums[n, :, i, 4:6] += left[:, i]
                sums[n, :, :, 6:8] += left
                sums[n, :, i, 6:8] -= left[:, i]
        removed = np.array([[min(n, len(order)) for order in orders] for n in config.num_features])
        return cls(
            sums=sums,
            drops=drops,
            accuracy=accuracy,
            num_removed=removed,
            num_unconverged=sum(not probe.converged for probe in probes),
        )


def _sides(right: np.ndarray, truth: np.ndarray, gather: sparse.csr_array) -> np.ndarray:
    """How many positives, and how many negatives, of each document are right: ``[D, L, 2]``."""
    both = [(right & truth).astype(np.float64), (right & ~truth).astype(np.float64)]
    return np.stack([gather @ side for side in both], axis=-1)


def _of_totals(totals: np.ndarray, num_seeds: int, num_labels: int) -> dict[str, np.ndarray]:
    """Draws of totals ``[R, S * L * _PARTS]`` to the metrics, averaged over reseeds, ``[R]``."""
    parts = totals.reshape(len(totals), num_seeds, num_labels, 4, 2)
    with np.errstate(all="ignore"):  # a draw without a positive has no value
        shares = (parts[..., 1:, :] / parts[..., :1, :]).mean(-1)  # [R, S, L, 3]
        intended = (shares[..., 0] - shares[..., 1]).mean((1, 2))
        unintended = shares[..., 0].mean((1, 2)) - shares[..., 2].mean((1, 2)) / (num_labels - 1)
    return {"total_metric": intended - unintended, "intended_diff_only": intended, "unintended_diff_only": unintended}


def _numbers(rounds: list[_Round], missing: str, config: RemovalConfig) -> list[Number]:
    variant = (
        f"balanced accuracy of {config.unit} in documents that neither probes nor effects saw; mean of {config.num_seeds} "
        "reseeds"
    )
    if not rounds:
        names = [f"tpp_threshold_{n}_{part}" for n in config.num_features for part in (*_BETTER, "reseed_cv")]
        return [Number(name=name, value=None, reason=missing) for name in ("mean_probe_accuracy", *names)]
    num_seeds, num_labels = len(rounds), len(rounds[0].accuracy)
    found = [Number(name="mean_probe_accuracy", value=float(np.mean([r.accuracy for r in rounds])), variant=variant)]
    alone = "unintended drops need a second label with enough samples"
    for place, n in enumerate(config.num_features):
        sums = np.stack([r.sums[place] for r in rounds], axis=1)  # [D, S, L, _PARTS]
        flat = sums.reshape(len(sums), -1)
        values = _of_totals(flat.sum(0, keepdims=True), num_seeds, num_labels)
        for part, better in _BETTER.items():
            name = f"tpp_threshold_{n}_{part}"
            if num_labels < 2 and part != "intended_diff_only":
                found.append(Number(name=name, value=None, reason=alone))
                continue
            ends = interval(flat, lambda t, part=part: _of_totals(t, num_seeds, num_labels)[part], seed=config.seed)  # type: ignore[misc]
            found.append(
                Number.of(
                    name, float(values[part][0]), better=better, variant=variant, low=ends["low"], high=ends["high"]
                )
            )
        name = f"tpp_threshold_{n}_reseed_cv"
        if num_labels < 2:
            found.append(Number(name=name, value=None, reason=alone))
        else:
            each = [float(np.trace(d) / num_labels - _off_diagonal(d).mean()) for d in (r.drops[place] for r in rounds)]
            found.append(
                Number.of(
                    name,
                    coefficient_of_variation(each),
                    variant=f"standard deviation of the total over {num_seeds} reseeds, divided by its mean",
                    reason="one reseed has no scatter" if num_seeds < 2 else "the mean over reseeds is 0",
                )
            )
    return found


_BETTER: dict[str, Any] = {"total_metric": "higher", "intended_diff_only": "higher", "unintended_diff_only": "lower"}


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Mean of each row without its diagonal, ``[L]``."""
    return (matrix.sum(1) - np.diag(matrix)) / (len(matrix) - 1)


def _tables(
    rounds: list[_Round],
    names: Sequence[str],
    usable: np.ndarray,
    reasons: list[str],
    missing: str,
    config: RemovalConfig,
) -> dict[str, list[dict[str, Any]]]:
    accuracy: dict[int, float] = {}
    if rounds:
        means = np.mean([r.accuracy for r in rounds], axis=0)
        accuracy = dict(zip(usable.tolist(), means.tolist(), strict=True))
    listed: list[dict[str, Any]] = []
    for place, (name, reason) in enumerate(zip(names, reasons, strict=True)):
        row = {"label": name, "probe_accuracy": accuracy.get(place)}
        listed.append(row if place in accuracy else {**row, "reason": reason or missing})
    perturbed: list[dict[str, Any]] = []
    if rounds:
        drops = np.mean([r.drops for r in rounds], axis=0)  # [N, L, L]
        removed = np.mean([r.num_removed for r in rounds], axis=0)
        for n, matrix, counts in zip(config.num_features, drops, removed, strict=True):
            for i, place in enumerate(usable):
                others = np.delete(np.arange(len(usable)), i)
                row = {"label": names[place], "n": n, "num_removed": float(counts[i]), "intended": float(matrix[i, i])}
                if len(others):
                    worst = others[matrix[i, others].argmax()]
                    row |= {
                        "unintended": float(matrix[i, others].mean()),
                        "hurt_most": names[usable[worst]],
                        "its_drop": float(matrix[i, worst]),
                    }
                perturbed.append(row)
    return {"labels": listed, "perturbations": perturbed}


def _notes(rounds: list[_Round], values: np.ndarray, names: list[str], config: RemovalConfig) -> list[str]:
    notes = []
    unconverged = sum(r.num_unconverged for r in rounds)
    if unconverged:
        notes.append(f"{unconverged} of {len(rounds) * len(names)} probes did not converge")
    short = [n for n, counts in zip(config.num_features, rounds[0].num_removed, strict=True) if counts.min() < n]
    if short:
        notes.append(f"some labels have fewer than {short[0]} features with an effect; all there are were taken away")
    both = values.T.astype(np.float64) @ values  # [L, L]
    inside = both / np.diag(both)[:, None].clip(min=1)
    pairs = [f"{names[i]} in {names[j]}" for i, j in np.argwhere(inside > 0.9) if i != j]
    if pairs:
        notes.append(f"labels that lie in one another make unintended drops right: {', '.join(pairs[:10])}")
    return notes
