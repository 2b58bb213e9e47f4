"""Which L0 is right? Read from a sweep of dictionaries that differ in their L0 (arXiv 2508.16560).

c_dec and s_n (see :mod:`saescope.evaluation.l0.measures`) are lowest where as many features fire as the data have. On
known data both have a clean minimum there. On language models they are flat at high L0 and jump at low L0; the advice is
then the elbow, just above the jump. :mod:`saescope.evaluation.l0.curves` reads each of the two; where both have a range, the
advice is what these have in common, or both where that holds no setting. Dictionaries that are not trained to the end are
not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from saescope.dictionaries import Dictionary
from saescope.evaluation.intervals import interval, sums_by_document
from saescope.evaluation.l0.curves import CurveVerdict, Kind, L0AdviceConfig, L0Measures, SweepPoint, read_curve
from saescope.evaluation.l0.measures import BATCH_SIZE_TOKENS, ProjectionMeter, decoder_overlap
from saescope.evaluation.results import Number, StudyResult
from saescope.evaluation.sample import TokenSample


@torch.no_grad()
def measure_l0(
    dictionary: Dictionary, sample: TokenSample, ns: Sequence[float], *, batch_size_tokens: int = BATCH_SIZE_TOKENS
) -> L0Measures:
    """L0, c_dec and s_n of a dictionary on a sample; s_n over batches of ``batch_size_tokens``.

    Raises:
        ValueError: the dictionary does not fit the sample, or holds NaN; an n out of range.
    """
    overlap = decoder_overlap(dictionary.W_dec)
    s = _projected(dictionary, sample, ns, batch_size_tokens).result() if ns else {}
    firings = _firings(dictionary, sample)
    return L0Measures(l0=float(firings.mean()), c_dec=overlap.c_dec, s=s, num_left_out=overlap.num_left_out)


@dataclass(frozen=True, kw_only=True)
class L0Advice:
    """What a sweep says about the L0 to choose. ``low`` and ``high`` are None where it says nothing, for the reason in
    ``sentences``."""

    low: float | None
    high: float | None
    kind: Kind
    """That of the curve that decided; or why there is no advice."""
    sentences: tuple[str, ...]
    verdicts: tuple[CurveVerdict, ...]
    ns: tuple[float, ...] = ()

    def place(self, l0: float) -> Literal["too low", "too high", "right", "unknown"]:
        """Where an L0 lies to the recommended range."""
        if self.low is None or self.high is None:
            return "unknown"
        return "too low" if l0 < self.low else "too high" if l0 > self.high else "right"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        verdicts = [dict(vars(verdict)) for verdict in self.verdicts]
        return {**vars(self), "sentences": list(self.sentences), "verdicts": verdicts, "ns": list(self.ns)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> L0Advice:
        """What :meth:`as_dict` gave."""
        verdicts = tuple(CurveVerdict(**verdict) for verdict in data["verdicts"])
        return cls(**{**data, "sentences": tuple(data["sentences"]), "verdicts": verdicts, "ns": tuple(data["ns"])})


def advise(points: Iterable[SweepPoint], config: L0AdviceConfig | None = None) -> L0Advice:
    """The L0 that a sweep recommends, by c_dec and by one s_n.

    Raises:
        ValueError: fewer than three settings, points that were measured with different n, or none with the n to judge by.
    """
    config, points = config or L0AdviceConfig(), list(points)
    settings = sorted({point.setting for point in points})
    if len(settings) < 3:
        raise ValueError(f"advice on L0 needs dictionaries of at least three L0, got {len(settings)}")
    ns = {tuple(sorted(point.final.s)) for point in points}
    if len(ns) > 1:
        raise ValueError(
            f"s_n of different n can not be compared: {' and '.join(map(str, sorted(ns)))}; measure all alike"
        )
    (known,) = ns
    if config.n is not None and config.n not in known:
        raise ValueError(f"s_{config.n:g} was not measured; there are {', '.join(f's_{n:g}' for n in known) or 'none'}")
    # the middle one: the least n may lie below the true L0, and near half the features every s_n is about 0
    chosen = [config.n] if config.n is not None else [known[len(known) // 2]] if known else []
    measures = ["c_dec", *(f"s_{n:g}" for n in chosen)]
    verdicts = tuple(read_curve(measure, points, config) for measure in measures)
    sentences = [f"{verdict.measure}: {verdict.words}." for verdict in verdicts]
    if not known:
        sentences.append("No n lies between the largest L0 and half the features: c_dec alone is judged.")
    if any(point.early is None for point in points):
        sentences.append(
            "Not every dictionary has a snapshot from before the end of its training: whether they are trained to the end "
            "is not known."
        )
    ranges = [v for v in verdicts if v.low is not None]
    undertrained = [v for v in verdicts if v.kind == "undertrained"]
    if undertrained or not ranges:
        kind = (undertrained or verdicts)[0].kind
        if undertrained:
            end = "No L0 is recommended: the dictionaries are not trained to the end. Train longer."
        else:
            end = "No L0 is recommended from this sweep."
        return L0Advice(
            low=None, high=None, kind=kind, sentences=(*sentences, end), verdicts=verdicts, ns=known
        )  # fmt: skip
    low, high = max(v.low or 0.0 for v in ranges), min(v.high or 0.0 for v in ranges)
    if not any(low <= l0 <= high for l0 in _mean_l0s(points)):
        sentences.append("The two measures are lowest at different L0: the range covers both.")
        low, high = min(v.low or 0.0 for v in ranges), max(v.high or 0.0 for v in ranges)
    sentences.append(f"Recommended L0: {low:.3g} to {high:.3g}.")
    return L0Advice(low=low, high=high, kind=ranges[0].kind, sentences=tuple(sentences), verdicts=verdicts, ns=known)


def judge_l0(
    dictionary: Dictionary,
    sample: TokenSample,
    *,
    advice: L0Advice | None = None,
    ns: Sequence[float] | None = None,
    batch_size_tokens: int = BATCH_SIZE_TOKENS,
) -> StudyResult:
    """The two measures of a single dictionary, and, with the advice of a sweep at the same place, whether its L0 is right.

    Args:
        advice: what :func:`advise` said of a sweep of dictionaries at this hook point, of about this width.
        ns: the n of s_n; those of the advice, or else a sixteenth, an eighth and a quarter of the features, as far as they
            are above the dictionary's own L0: the same for all dictionaries of one size, so that they can be compared.

    Raises:
        ValueError: as :func:`measure_l0`.
    """
    firings = _firings(dictionary, sample)
    l0 = float(firings.mean())
    if ns is None:
        shares = [dictionary.d_sae // part for part in (16, 8, 4)]
        ns = advice.ns if advice is not None and advice.ns else sorted({n for n in shares if n > l0})
    overlap = decoder_overlap(dictionary.W_dec)
    ends = _ends_of_mean(sums_by_document(sample.document, np.stack([firings, np.ones(len(firings))], 1)))
    numbers = [
        Number.of("l0", l0, **ends),
        Number.of(
            "c_dec",
            overlap.c_dec,
            better="lower",
            variant="mean |cos| over pairs of decoder rows; of the weights, so without an interval",
            reason="fewer than two decoder rows have a direction",
        ),
        Number.of("c_dec_random", random_overlap(dictionary.d_out), variant="expected of random directions"),
    ]
    notes = []
    if overlap.num_left_out:
        notes.append(f"{overlap.num_left_out} decoder rows of norm 0 have no direction and are left out")
    if ns:
        meter = _projected(dictionary, sample, ns, batch_size_tokens)
        variant = (
            f"place n * {min(batch_size_tokens, meter.num_tokens)} of a batch's projections; interval over batches"
        )
        found = meter.result()
        per_batch = np.stack(meter.batches)  # [batches, n]
        for column, (n, value) in enumerate(found.items()):
            sums = np.stack([per_batch[:, column], np.ones(len(per_batch))], 1)
            numbers.append(Number.of(f"s_{n:g}", value, better="lower", variant=variant, **_ends_of_mean(sums)))
    else:
        notes.append(f"s_n is left out: the L0 of {l0:.3g} is a quarter of the {dictionary.d_sae} features or more")
    row: dict[str, Any] = {"l0": l0, "low": None, "high": None, "verdict": "unknown"}
    if advice is None:
        row["reason"] = "c_dec and s_n of one dictionary alone do not tell; `saescope advise-l0` trains a sweep"
        notes.append(row["reason"])
    else:
        row |= {"low": advice.low, "high": advice.high, "verdict": advice.place(l0)}
        notes.append(warning(l0, advice))
        if row["verdict"] == "unknown":
            row["reason"] = " ".join(advice.sentences)
    return StudyResult(study="l0", numbers=tuple(numbers), tables={"advice": [row]}, notes=tuple(notes))


def warning(l0: float, advice: L0Advice) -> str:
    """What to say about a dictionary of this L0."""
    place = advice.place(l0)
    if place == "unknown":
        return f"whether an L0 of {l0:.3g} is right is not known: {advice.sentences[-1]}"
    span = f"recommended is {advice.low:.3g} to {advice.high:.3g}"
    if place == "right":
        return f"an L0 of {l0:.3g} is in the recommended range of {advice.low:.3g} to {advice.high:.3g}"
    why = (
        "features that go together are likely mixed into one row, however well it rebuilds"
        if place == "too low"
        else "rows are likely mixtures that the data do not have"
    )
    return f"an L0 of {l0:.3g} looks {place} ({span}): {why}"


def random_overlap(d: int) -> float:
    """Expected |cos| of two random directions in ``d`` dimensions; near sqrt(2 / (pi d))."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def _mean_l0s(points: Sequence[SweepPoint]) -> list[float]:
    """The L0 of each setting, mean over seeds."""
    by_setting: dict[float, list[float]] = {}
    for point in points:
        by_setting.setdefault(point.setting, []).append(point.final.l0)
    return [sum(found) / len(found) for found in by_setting.values()]


def _ends_of_mean(sums: np.ndarray) -> dict[str, Any]:
    """The interval of first column over second, as keywords for :class:`Number`."""
    return interval(sums, lambda totals: totals[:, 0] / totals[:, 1])


def _projected(
    dictionary: Dictionary, sample: TokenSample, ns: Sequence[float], batch_size_tokens: int
) -> ProjectionMeter:
    meter = ProjectionMeter(dictionary, ns, batch_size_tokens=batch_size_tokens)
    for _, x, y in sample.batches(batch_size_tokens):
        meter.update(x, y)
    meter.result()  # a sample of less than one batch is one
    return meter


def _firings(dictionary: Dictionary, sample: TokenSample) -> np.ndarray:
    """Features that fire on each token, ``[T]``."""
    counts = []
    for _, x, _ in sample.batches():
        firings = dictionary.encode_sparse(x.to(dictionary.W_dec)).firings()
        if firings.value.isnan().any():
            raise ValueError(
                "the dictionary gives NaN for feature activations; its weights, or the activations, hold NaN"
            )
        counts.append(np.bincount(firings.token.cpu().numpy(), minlength=len(x)))
    return np.concatenate(counts).astype(np.float64)
