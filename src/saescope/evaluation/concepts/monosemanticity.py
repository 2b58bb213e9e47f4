"""Monosemanticity: how alike the things are on which a latent fires, in the eyes of another encoder.

Each sample (an image, a document) has an activation of each latent and a unit embedding e from an encoder that the
dictionary knows nothing of. With a latent's activations scaled to a = (activation - min) / (max - min) over the samples,

    MS = sum over pairs n < m of a_n a_m cos(e_n, e_m)  /  sum over pairs n < m of a_n a_m.

A loop over pairs is not needed: with V = sum of a e, S1 = sum of a, S2 = sum of a^2 it is (|V|^2 - S2) / (S1^2 - S2). The
range cancels, so that only the minimum has to be known. It is followed while samples stream by: sums are always of
activations less the least one so far, and are moved when a lesser one comes. Every term of S1 and S2 stays positive, and
one pass is exact for any minimum; where most activations are 0 it costs as much as there are firings.

A latent that fires alike on everything scores the mean similarity of all pairs: that floor depends on the encoder and is
always reported.

Pach et al. 2025, "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models" (arXiv 2504.02821).

N  samples, B  samples of a batch, n  latents, e  width of the embeddings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.results import Number, StudyResult

Activations: TypeAlias = "np.ndarray | sparse.sparray | sparse.spmatrix"

BATCH_SIZE_SAMPLES = 4096
_MOST_LOST = 1e9  # S1^2 / (S1^2 - S2) above which float64 leaves fewer than about six digits
_CURVE = 512  # points of the curve at most

CONSTANT = "its activation is the same on all samples"
SINGLE = "only one sample is above its least activation: there is no pair"
LOST = "one sample outweighs all others so far that float64 can not tell the pairs"
FEW = "there are fewer than two samples"


@dataclass(frozen=True, kw_only=True, eq=False)
class Monosemanticity:
    """Scores of the latents over all samples so far."""

    score: np.ndarray  # float64, [n]; NaN where there is none
    reason: np.ndarray  # why not, str, [n]; "" where there is one
    num_positive: np.ndarray  # samples above the latent's least activation, int64, [n]
    floor: float | None  # mean similarity of all pairs of samples
    num_samples: int


class MonosemanticityMeter:
    """Sums over samples, batch by batch; ``result()`` at any time."""

    def __init__(self, num_latents: int) -> None:
        """Memory for ``num_latents`` embeddings in float64 is taken at the first update."""
        self.num_latents = num_latents
        self.num_samples = 0
        self._least = np.zeros(num_latents)  # of each latent so far
        self._num_least = np.zeros(num_latents, dtype=np.int64)  # samples that have it
        self._s1, self._s2 = np.zeros(num_latents), np.zeros(num_latents)
        self._v: np.ndarray | None = None  # [n, e]
        self._e: np.ndarray | None = None  # sum of the embeddings, [e]

    def update(self, embeddings: np.ndarray, activations: Activations) -> None:
        """Add samples.

        Args:
            embeddings: ``[B, e]``, of any length.
            activations: ``[B, n]``, dense or sparse.

        Raises:
            ValueError: shapes that do not go together, what is not a number, an embedding of length 0.
        """
        embeddings = np.asarray(embeddings, dtype=np.float64)
        shape = (len(embeddings), self.num_latents)
        if embeddings.ndim != 2 or activations.shape != shape:
            raise ValueError(
                "embeddings must be [samples, e] and activations [samples, latents] of the same samples, got "
                f"{list(embeddings.shape)} and {list(activations.shape)} for {self.num_latents} latents"
            )
        if self._e is not None and embeddings.shape[1] != len(self._e):
            raise ValueError(f"embeddings were {len(self._e)} wide so far, got {embeddings.shape[1]}")
        values: Any = sparse.csc_array(activations) if sparse.issparse(activations) else np.asarray(activations)
        values = values.astype(np.float64)
        if (
            not np.isfinite(embeddings).all()
            or not np.isfinite(values.data if sparse.issparse(values) else values).all()
        ):
            raise ValueError("embeddings and activations must be finite, got NaN or infinity")
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not lengths.all():
            raise ValueError(f"sample {int(lengths.argmin())} of this batch has an embedding of length 0: no direction")
        if len(embeddings):
            self._add(embeddings / lengths, values)

    def _add(self, unit: np.ndarray, values: Any) -> None:
        if self._v is None or self._e is None:
            self._v, self._e = np.zeros((self.num_latents, unit.shape[1])), np.zeros(unit.shape[1])
        self._lower(_minimum(values))
        least = self._least
        if sparse.issparse(values):
            # where the least activation is 0, what is not stored adds nothing; the other columns are few
            zero = np.flatnonzero(least == 0)
            self._sum(zero, values[:, zero], unit, num_least=len(unit) - _num_stored(values)[zero])
            others = np.flatnonzero(least != 0)
            above = values[:, others].toarray() - least[others]
        else:
            others, above = np.arange(self.num_latents), values - least
        self._sum(others, above, unit, num_least=(above == 0).sum(0))
        self._e += unit.sum(0)
        self.num_samples += len(unit)

    def _sum(self, latents: np.ndarray, above: Any, unit: np.ndarray, *, num_least: np.ndarray) -> None:
        """Add ``above [B, latents]``, activations less the least."""
        assert self._v is not None
        self._s1[latents] += above.sum(0)
        self._s2[latents] += (above**2).sum(0)
        self._v[latents] += above.T @ unit
        self._num_least[latents] += num_least

    def _lower(self, minimum: np.ndarray) -> None:
        """Move the sums to the least activations, with those of a new batch in view."""
        assert self._v is not None
        if not self.num_samples:
            self._least = minimum
            return
        moved = np.flatnonzero(minimum < self._least)
        by = self._least[moved] - minimum[moved]  # every sample so far is that much further above
        self._s2[moved] += 2 * by * self._s1[moved] + by**2 * self.num_samples
        self._s1[moved] += by * self.num_samples
        self._v[moved] += by[:, None] * self._e
        self._num_least[moved] = 0
        self._least[moved] = minimum[moved]

    def result(self) -> Monosemanticity:
        """Scores of all latents, ``[n]``."""
        count = self.num_samples
        length = np.zeros(self.num_latents) if self._v is None else np.einsum("ne,ne->n", self._v, self._v)
        pairs = self._s1**2 - self._s2
        num_positive = count - self._num_least
        reason = np.full(self.num_latents, "", dtype=object)
        reason[pairs * _MOST_LOST < self._s1**2] = LOST
        reason[num_positive == 1] = SINGLE
        reason[num_positive == 0] = CONSTANT
        if count < 2:
            reason[:] = FEW
        score = np.full(self.num_latents, np.nan)
        good = reason == ""
        score[good] = (length[good] - self._s2[good]) / pairs[good]
        floor = None if count < 2 or self._e is None else float((self._e @ self._e - count) / (count * (count - 1)))
        return Monosemanticity(score=score, reason=reason, num_positive=num_positive, floor=floor, num_samples=count)


def monosemanticity(
    activations: Activations, embeddings: np.ndarray, *, batch_size_samples: int = BATCH_SIZE_SAMPLES, seed: int = 0
) -> StudyResult:
    """The monosemanticity score of every latent.

    Args:
        activations: one of each latent for each sample, ``[N, n]``, dense or sparse: of an image's class token, or the mean
            or maximum over the tokens of a document.
        embeddings: of the same samples, by an encoder other than the model under study, ``[N, e]``.
        seed: of the interval over latents.

    Returns:
        The study "monosemanticity": numbers, the curve of sorted scores, and a row for every latent.

    Raises:
        ValueError: other numbers of samples, what is not a number, an embedding of length 0.
    """
    began = time.perf_counter()
    if activations.ndim != 2 or np.ndim(embeddings) != 2 or activations.shape[0] != len(embeddings):
        raise ValueError(
            f"activations {list(activations.shape)} and embeddings {list(np.shape(embeddings))} must both have one row a "
            "sample"
        )
    rows: Any = sparse.csr_array(activations) if sparse.issparse(activations) else activations
    meter = MonosemanticityMeter(activations.shape[1])
    for first in range(0, len(embeddings), batch_size_samples):
        batch = slice(first, first + batch_size_samples)
        meter.update(embeddings[batch], rows[batch])
    return monosemanticity_report(meter.result(), seed=seed, seconds=time.perf_counter() - began)


def monosemanticity_report(found: Monosemanticity, *, seed: int = 0, seconds: float = 0.0) -> StudyResult:
    """What :func:`monosemanticity` gives, from a meter that was filled batch by batch."""
    good = np.flatnonzero(found.reason == "")
    scores = found.score[good]
    why = "no latent has a score" if len(found.reason) else "there are no latents"
    low = high = None
    if len(scores):
        (ends,) = bootstrap(np.stack([scores, np.ones_like(scores)], 1), lambda t: t[:, 0] / t[:, 1], seed=seed)
        low, high = ends or (None, None)
    best = int(good[scores.argmax()]) if len(scores) else None
    floor = found.floor

    def number(name: str, value: float | None, **more: Any) -> Number:
        return Number.of(name, value, reason=why, **more)

    counts = {reason: int((found.reason == reason).sum()) for reason in (CONSTANT, SINGLE, LOST, FEW)}
    numbers = (
        number(
            "ms_mean", scores.mean() if len(scores) else None, low=low, high=high, better="higher",
            variant="over the latents that have a score; interval over latents",
        ),
        number("ms_sd", scores.std() if len(scores) else None, variant="over latents"),
        number("ms_best", scores.max() if len(scores) else None, better="higher", variant=f"latent {best}"),
        Number.of(
            "ms_floor", floor, reason=FEW,
            variant="mean similarity of all pairs of samples: the score of a latent that fires alike on everything",
        ),
        number(
            "share_above_floor", float((scores > floor).mean()) if len(scores) and floor is not None else None,
            better="higher", variant="of the latents that have a score",
        ),
        Number(
            name="num_without_score", value=float(len(found.reason) - len(good)), better="lower",
            variant="dead latents, as published: constant, or above the least activation on one sample alone",
        ),
        Number(name="num_constant", value=float(counts[CONSTANT]), better="lower"),
        Number(name="num_samples", value=float(found.num_samples)),
    )  # fmt: skip
    ranked = np.sort(scores)[::-1]
    places = np.unique(np.linspace(0, max(len(ranked) - 1, 0), min(len(ranked), _CURVE)).round().astype(int))
    return StudyResult(
        study="monosemanticity",
        numbers=numbers,
        tables={
            "latents": [
                {"latent": k, "score": None if why_not else float(score), "num_positive": int(count), "reason": why_not}
                for k, (score, count, why_not) in enumerate(
                    zip(found.score, found.num_positive, found.reason, strict=True)
                )
            ]
        },
        curves={
            "sorted_scores": {
                "normalised_rank": (places / max(len(ranked) - 1, 1)).tolist(),
                "score": ranked[places].tolist() if len(ranked) else [],
            }
        },
        notes=(
            "the score knows only the similarity that the embeddings see; few samples can reach 1",
            *(f"{count:,} latents have no score: {reason}" for reason, count in counts.items() if count),
        ),
        seconds=seconds,
    )


def _minimum(values: Any) -> np.ndarray:
    """Least value of each column, ``[n]``."""
    if sparse.issparse(values):
        return values.min(axis=0).toarray().reshape(-1)
    return values.min(0)


def _num_stored(values: Any) -> np.ndarray:
    """Values other than 0 in each column, ``[n]``."""
    return np.asarray((values != 0).sum(0)).reshape(-1)
