"""A study of probes: every concept by every method, on the same documents, with intervals for all of it.

C  concepts, M  methods, D  documents of the test part, R  draws of the bootstrap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy import sparse

from saescope.dictionaries import Dictionary
from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.probes import Inputs
from saescope.evaluation.probing.k_sparse import (
    METRICS,
    NUM_SUMS,
    Fitted,
    Selection,
    Task,
    class_differences,
    largest,
    metrics,
)
from saescope.evaluation.probing.labelled_text import PARTS
from saescope.evaluation.results import Better, Number, StudyResult

_MOST_GROUPS = 2000  # of documents in the bootstrap
_RULES = {
    "mean_difference": "by the difference of class means, as SAEBench",
    "normalised": "by the difference of class means over the mean where it fires, as sae-probes",
}
_METRIC_WORDS = {
    "f1": "all test rows, threshold from validation",
    "accuracy": "all test rows, threshold from validation",
    "balanced_accuracy": "both classes weigh the same, as in SAEBench's balanced test sets; logit above 0",
    "auc": "interval to first order (Obuchowski 1997)",
}


@dataclass(frozen=True, kw_only=True)
class ProbingConfig:
    """How concepts are probed for."""

    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Features in a probe."""
    selection: Selection = "mean_difference"
    """How features are chosen; "normalised" divides by the feature's mean where it fires."""
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of the documents, for training, validation and test."""
    most_positives: int = 2000
    """Rows that a probe is fitted to, and as many negatives, drawn at random; all training rows choose the features."""
    least_positives: int = 10
    """A concept with fewer positives, or negatives, in one of the parts is not probed for."""
    c: float = 1.0
    """Inverse strength of the L2 penalty of k-sparse probes."""
    regularisations: tuple[float, ...] = (0.1, 1.0)
    """The same for probes on all activations and all features; the best on validation documents is taken."""
    full_width: bool = True
    """Also probe all features together."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks must be different numbers of features, at least 1, got {list(self.ks)}")
        if self.selection not in get_args(Selection):
            raise ValueError(f"selection must be {' or '.join(get_args(Selection))}, got {self.selection!r}")
        if len(self.shares) != len(PARTS) or min(self.shares) <= 0:
            raise ValueError(f"shares must be three numbers above 0 ({', '.join(PARTS)}), got {list(self.shares)}")
        if not self.regularisations or min(*self.regularisations, self.c) <= 0:
            raise ValueError("c and regularisations must be numbers above 0")
        if self.least_positives < 1 or self.most_positives < self.least_positives:
            raise ValueError("least_positives must be at least 1, and most_positives no less than that")


def run_probes(
    study: str,
    dictionary: Dictionary,
    codes: sparse.csr_array,
    x: np.ndarray,
    document: np.ndarray,
    tasks: Sequence[Task],
    rows: Sequence[dict[str, Any]],
    config: ProbingConfig,
    *,
    notes: Sequence[str],
    unit: str,
    started: float,
) -> StudyResult:
    """Fit and test all probes of all tasks.

    Args:
        codes: feature activations, ``[n, d_sae]``.
        x: activations, ``[n, d_in]``.
        document: number of each row's document, ``[n]``.
        rows: one row of the table for each concept, "concept" and "reason" among its columns; tasks are found by name.
        unit: what is split and drawn, in words.
        started: ``time.perf_counter()`` when the study began.

    Raises:
        ValueError: no feature fires, or an activation is not a number.
    """
    if not codes.nnz:
        raise ValueError("no feature of the dictionary fires here; is it trained, and was it at this hook point?")
    if not np.isfinite(x).all():
        raise ValueError("the activations hold NaN or infinity; there is nothing to probe")
    methods, table = _methods(config), {row["concept"]: dict(row) for row in rows}
    shares = ", ".join(f"{name} {share:g}" for name, share in zip(PARTS, config.shares, strict=True))
    found = [
        f"shares of the {unit}s: {shares}",
        "features are scaled by their decoder norms; all inputs of probes are in units of the spread of x",
        *notes,
    ]
    if len(tasks) < len(rows):
        found.append(f"{len(rows) - len(tasks)} of {len(rows)} concepts have too few examples; the table says which")
    if not tasks:
        return no_probes(study, rows, config, notes=found, started=started)

    x, scale = _scaled(x, tasks)
    norms = dictionary.decoder_norms.detach().double().cpu().numpy() / scale
    values = (codes.data * norms[codes.indices]).astype(np.float32)
    codes = sparse.csr_array((values, codes.indices, codes.indptr), shape=codes.shape)
    columns = codes.tocsc()
    by_feature = class_differences(codes, tasks, config.selection)  # [C, d_sae]
    by_dimension = class_differences(x, tasks, "mean_difference")  # [C, d_in]
    document, num_documents = _grouped(document, tasks)
    sums = np.zeros((len(tasks), len(methods), num_documents, NUM_SUMS))
    unconverged = 0
    for task, of_features, of_dimensions, cells in zip(tasks, by_feature, by_dimension, sums, strict=True):
        features, dimensions = largest(of_features, max(config.ks)), largest(of_dimensions, max(config.ks))
        table[task.name] |= {"features": features.tolist(), "dimensions": dimensions.tolist()}
        chosen = columns[:, features].toarray(), x[:, dimensions]
        for (probe, inputs), cell in zip(_fit(task, *chosen, codes, x, config), cells, strict=True):
            unconverged += not probe.probe.converged
            cell[:] = probe.sums(inputs, task, document, num_documents)
    if unconverged:
        found.append(f"{unconverged} of {len(tasks) * len(methods)} probes had not converged after 1000 steps")

    numbers, ends = _with_intervals(sums, len(config.ks), config.seed)
    for task, here, low_high in zip(tasks, numbers, ends, strict=False):  # the means stand behind the concepts
        table[task.name] |= _cells(methods, here, low_high)
    return StudyResult(
        study=study,
        numbers=_numbers(numbers[-1], ends[-1], config, len(tasks), unit),
        tables={study: [{**_cells(methods), **row} for row in table.values()]},
        curves={study: _curve(numbers[-1], methods, config)},
        notes=tuple(found),
        seconds=time.perf_counter() - started,
    )


def no_probes(
    study: str, rows: Sequence[dict[str, Any]], config: ProbingConfig, *, notes: Sequence[str], started: float
) -> StudyResult:
    """The study where no concept has enough examples: every number is missing, and the table says why."""
    methods = _methods(config)
    names = [f"{metric}_{method}" for method in [*methods, *_gains(config)] for metric in METRICS]
    why = "no concept has enough positives and negatives in every part; the table says what each lacks"
    return StudyResult(
        study=study,
        numbers=(Number(name="num_concepts", value=0), *(Number(name=name, value=None, reason=why) for name in names)),
        tables={study: [{**_cells(methods), **row} for row in rows]},
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _methods(config: ProbingConfig) -> dict[str, str]:
    """Names of all kinds of probe, with words for each; features and dimensions first, in the order of ``ks``."""
    methods = {f"features_k{k}": f"{k} features {_RULES[config.selection]}" for k in config.ks}
    methods |= {f"dimensions_k{k}": f"{k} dimensions of x {_RULES['mean_difference']}" for k in config.ks}
    methods["dense"] = "all dimensions of x"
    if config.full_width:
        methods["all_features"] = "all features"
    return methods | {"constant": "one answer for all rows"}


def _gains(config: ProbingConfig) -> dict[str, str]:
    return {f"gain_k{k}": f"{k} features less {k} dimensions of x" for k in config.ks}


def _fit(
    task: Task,
    features: np.ndarray,
    dimensions: np.ndarray,
    codes: sparse.csr_array,
    x: np.ndarray,
    config: ProbingConfig,
) -> Iterator[tuple[Fitted, Inputs]]:
    """A probe of each method, in their order, with what it reads."""
    for inputs in (features, dimensions):
        for k in config.ks:
            yield Fitted.of(inputs[:, :k], task, c=config.c), inputs[:, :k]
    yield Fitted.best(x, task, config.regularisations), x
    if config.full_width:
        yield Fitted.best(codes, task, config.regularisations), codes
    yield Fitted.of(x[:, :0], task, c=config.c), x[:, :0]


def _scaled(x: np.ndarray, tasks: Sequence[Task]) -> tuple[np.ndarray, float]:
    """Activations less their mean, in units of their root mean square, both over training rows; and that unit.

    So that a penalty means the same whatever the scale of a model's activations.
    """
    rows = x[np.unique(np.concatenate([task.train for task in tasks]))]
    mean = rows.mean(0, dtype=np.float64)
    scale = float(np.sqrt(np.square(rows - mean).mean())) or 1.0
    return ((x - mean) / scale).astype(np.float32), scale


def _grouped(document: np.ndarray, tasks: Sequence[Task]) -> tuple[np.ndarray, int]:
    """Numbers of test documents from 0 on, and how many there are; other rows get 0.

    Where there are very many documents, as where each activation is one of its own, they are drawn in groups.
    """
    tested = np.unique(np.concatenate([task.test for task in tasks]))
    _, which = np.unique(document[tested], return_inverse=True)
    grouped = np.zeros(len(document), dtype=np.int64)
    grouped[tested] = which % _MOST_GROUPS
    return grouped, int(grouped.max()) + 1


def _with_intervals(sums: np.ndarray, num_ks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """From sums ``[C, M, D, S]`` to values ``[C + 1, M + gains, 4]`` and ends of their intervals ``[..., 2]``.

    The last row is the mean over concepts, in a draw over those that have positives and negatives there. The gains of
    features over dimensions stand behind the methods.
    """
    num_concepts, num_methods, num_documents, _ = sums.shape
    totals = sums.sum(2)
    auc = totals[..., 7] / totals[..., 0]

    def numbers(drawn: np.ndarray) -> np.ndarray:  # [R, C * M * S]
        found = metrics(drawn.reshape(-1, num_concepts, num_methods, NUM_SUMS), auc)
        good = np.isfinite(found)
        with np.errstate(all="ignore"):
            mean = np.where(good, found, 0).sum(1, keepdims=True) / good.sum(1, keepdims=True)
        found = np.concatenate([found, mean], axis=1)
        gains = found[:, :, :num_ks] - found[:, :, num_ks : 2 * num_ks]
        return np.concatenate([found, gains], axis=2).reshape(len(found), -1)

    by_document = sums.transpose(2, 0, 1, 3).reshape(num_documents, -1)
    shape = (num_concepts + 1, num_methods + num_ks, len(METRICS))
    found = [(np.nan, np.nan) if ends is None else ends for ends in bootstrap(by_document, numbers, seed=seed)]
    return numbers(by_document.sum(0, keepdims=True)).reshape(shape), np.asarray(found).reshape(*shape, 2)


def _cells(
    methods: Mapping[str, str], values: np.ndarray | None = None, ends: np.ndarray | None = None
) -> dict[str, Any]:
    """Cells of one row of the table; None throughout for a concept without probes."""
    cells: dict[str, Any] = {}
    for place, method in enumerate(methods):
        for column, metric in enumerate(METRICS):
            cells[f"{metric}_{method}"] = None if values is None else _plain(values[place, column])
        low, high = (np.nan, np.nan) if ends is None else ends[place, METRICS.index("f1")]
        cells |= {f"f1_{method}_low": _plain(low), f"f1_{method}_high": _plain(high)}
    return cells


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(
    values: np.ndarray, ends: np.ndarray, config: ProbingConfig, num_concepts: int, unit: str
) -> tuple[Number, ...]:
    """Means over concepts; values ``[M + gains, 4]``."""
    numbers = [Number(name="num_concepts", value=num_concepts)]
    for place, (method, words) in enumerate((_methods(config) | _gains(config)).items()):
        for column, metric in enumerate(METRICS):
            low, high = map(_plain, ends[place, column])
            variant = f"{words}; mean over concepts; {_METRIC_WORDS[metric]}; interval over test {unit}s"
            # activations and their dimensions are the model's: they are no better or worse in one dictionary than another
            better: Better = "higher" if method.startswith(("features", "all_features", "gain")) else ""
            numbers.append(
                Number.of(
                    f"{metric}_{method}", values[place, column], low=low, high=high, better=better, variant=variant
                )
            )
    return tuple(numbers)


def _curve(values: np.ndarray, methods: Mapping[str, str], config: ProbingConfig) -> dict[str, list[float | None]]:
    """Means over concepts against k; dense probes and the constant answer are level lines."""
    order = np.argsort(config.ks)
    curve: dict[str, list[float | None]] = {"k": [config.ks[place] for place in order]}
    names = list(methods)
    for column, metric in enumerate(METRICS):
        for kind in ("features", "dimensions"):
            places = [names.index(f"{kind}_k{config.ks[place]}") for place in order]
            curve[f"{metric}_{kind}"] = [_plain(values[place, column]) for place in places]
        for method in names[2 * len(config.ks) :]:
            curve[f"{metric}_{method}"] = [_plain(values[names.index(method), column])] * len(order)
    return curve
