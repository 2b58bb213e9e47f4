"""Sparse probing: can a concept be read off one feature, or a handful of them?

For each concept the features are chosen that differ most between its positives and its negatives, and a logistic
regression is fitted to them (Gurnee et al., arXiv 2305.01610; SAEBench, arXiv 2503.09532). Beside it stand what it has to
beat: as many dimensions of the activations, chosen by the same rule, and a constant answer; and what bounds it: probes on
all activations and on all features.

Documents are dealt out to three parts. Training documents choose features and fit probes, validation documents choose
thresholds and the strength of regularisation, test documents give the numbers and nothing else.

n  rows: tokens or texts.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.probing.k_sparse import Task, balanced_rows
from saescope.evaluation.probing.labelled_text import PARTS, LabelledTexts, one_vs_rest
from saescope.evaluation.probing.pooled_texts import Pooling, pool_texts
from saescope.evaluation.probing.run import ProbingConfig, no_probes, run_probes
from saescope.evaluation.results import StudyResult
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample

if TYPE_CHECKING:
    from saescope.models import LanguageModel

__all__ = ["ProbingConfig", "TextProbingConfig", "probe_features", "probe_texts"]


_POOLED = {"mean": "the mean over its first tokens", "last": "its last token"}


@dataclass(frozen=True, kw_only=True)
class TextProbingConfig(ProbingConfig):
    """How classes of texts are probed for."""

    pooling: Pooling = "mean"
    """"mean" over the tokens of a text, as SAEBench; or its "last" token, as sae-probes."""
    context_size: int = 128
    """Tokens of a text at most: its first ones for "mean", its last ones for "last"."""
    prepend_bos: bool = True
    batch_size_texts: int = 32


def probe_features(
    dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, config: ProbingConfig | None = None
) -> StudyResult:
    """k-sparse probes for concepts of tokens.

    Gives F1, accuracy, balanced accuracy and AUC, as means over concepts and for each of them, of probes on the k best
    features (``f1_features_k1``), the k best dimensions of the activations (``f1_dimensions_k1``), all activations
    (``f1_dense``), all features (``f1_all_features``) and of a constant answer (``f1_constant``). Intervals are over test
    documents, the same draws for every concept. A concept that cannot be probed for is a row with nulls and the reason.

    Raises:
        ValueError: labels of other tokens, a dictionary of another width, one that never fires, or too few documents.
    """
    started = time.perf_counter()
    config = config or ProbingConfig()
    labels.check(sample)
    if sample.x.shape[1] != dictionary.d_in:
        raise ValueError(
            f"the dictionary reads width {dictionary.d_in}, but the sample was read at a width of {sample.x.shape[1]}; "
            "read the sample at the dictionary's hook point"
        )
    parts = [np.flatnonzero(part) for part in sample.parts(config.shares, seed=config.seed)]
    tasks, rows = [], []
    for name in labels.names:
        y = labels.column(name)
        reason = _too_few(y, parts, config.least_positives)
        rows.append({"concept": name, "reason": reason, **_counts(y, parts)})
        if not reason:
            seed = [config.seed, zlib.crc32(name.encode())]  # a concept's rows do not hang on which others there are
            fit = balanced_rows(y, parts[0], config.most_positives, seed=seed)
            tasks.append(Task(name=name, y=y, train=parts[0], fit=fit, validation=parts[1], test=parts[2]))
    codes = encode_sample(dictionary, sample.x)
    notes = (
        "a probe is fitted to as many negatives as positives, drawn at random from the training documents "
        f"(at most {config.most_positives:,} of each)",
    )
    return run_probes(
        "probing", dictionary, codes, sample.x.numpy(), sample.document, tasks, rows, config,
        notes=notes, unit="document", started=started,
    )  # fmt: skip


def probe_texts(
    dictionary: Dictionary,
    model: LanguageModel,
    texts: LabelledTexts,
    reads: Sequence[str],
    config: TextProbingConfig | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> StudyResult:
    """k-sparse probes for the class of a text, each class against all others; numbers as :func:`probe_features` has them.

    Each text is a document of its own; equal texts are in one part. Half of the rows of each part are of the class.

    Args:
        reads: hook points that the dictionary reads.
        on_progress: called with (texts read, texts in all).

    Raises:
        ValueError: as :func:`probe_features`; a text without tokens.
    """
    started = time.perf_counter()
    config = config or TextProbingConfig()
    share = [part / config.shares[0] for part in config.shares]
    drawn = one_vs_rest(
        texts,
        texts.parts(config.shares, seed=config.seed),
        most_positives=[max(config.least_positives, round(config.most_positives * part)) for part in share],
        least_positives=config.least_positives,
        seed=config.seed,
    )
    wanted = [row for task in drawn if task.rows for row in task.rows]
    used = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.int64)
    tasks, rows = [], []
    labels = np.asarray(texts.labels, dtype=object)[used]
    for task in drawn:
        y = labels == task.name
        parts = [np.searchsorted(used, part) for part in task.rows] if task.rows else [np.zeros(0, dtype=np.int64)] * 3
        rows.append({"concept": task.name, "reason": task.reason, **_counts(y, parts)})
        if task.rows:
            train, validation, test = parts
            tasks.append(Task(name=task.name, y=y, train=train, fit=train, validation=validation, test=test))
    notes = (f"data set: {texts.name}; a text is {_POOLED[config.pooling]}", *texts.notes)
    if not tasks:
        return no_probes("text_probing", rows, config, notes=notes, started=started)
    pooled = pool_texts(
        dictionary, model, [texts.texts[row] for row in used], reads, pooling=config.pooling,
        context_size=config.context_size, prepend_bos=config.prepend_bos, batch_size_texts=config.batch_size_texts,
        on_progress=on_progress,
    )  # fmt: skip
    _, document = np.unique(np.asarray(texts.texts, dtype=object)[used], return_inverse=True)
    return run_probes(
        "text_probing", dictionary, pooled.codes, pooled.x, document, tasks, rows, config,
        notes=notes, unit="text", started=started,
    )  # fmt: skip


def _too_few(y: np.ndarray, parts: Sequence[np.ndarray], least: int) -> str:
    """Why there is no probe; empty if there can be one."""
    for name, part in zip(PARTS, parts, strict=True):
        positives = int(y[part].sum())
        if min(positives, len(part) - positives) < least:
            return (
                f"the {name} documents have {positives} positives and {len(part) - positives} negatives; a probe needs "
                f"{least} of each"
            )
    return ""


def _counts(y: np.ndarray, parts: Sequence[np.ndarray]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, part in zip(PARTS, parts, strict=True):
        positives = int(y[part].sum())
        found |= {f"num_positives_{name}": positives, f"num_negatives_{name}": len(part) - positives}
    return found
