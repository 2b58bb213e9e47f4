"""Two models, or two checkpoints of one, seen through one dictionary: which features changed on the same text.

Both models read the same tokens, and the dictionary reads both at the same place. It was trained on one of them: what the
other does outside its directions is not seen in features, so that the reconstruction error of each is given beside them,
as the fraction of variance that is not explained::

    FVU = sum |y - y_hat|^2 / sum |y - mean(y)|^2        over kept tokens, the mean of each model's own

For each feature: mean activation and density in each model, Pearson's correlation of its activations over tokens, and
whether the mean activation of a text went up or down, paired over texts (``paired.py``) and corrected for the number of
features that fire in either (Benjamini and Hochberg 1995).

N  kept tokens, D  texts, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from saescope.analysis.contrast.paired import paired_effect, paired_p
from saescope.analysis.contrast.reading import Progress, read_tokens, windows_of
from saescope.analysis.contrast.separation import adjusted
from saescope.interventions.site import Site

Order = Literal["written", "effect_size", "density"]


@dataclass(frozen=True, kw_only=True)
class ChangedFeature:
    """A feature in two models, on the same tokens."""

    feature: int
    mean: float
    other_mean: float
    """Mean activation over all kept tokens, zeros included."""
    difference: float
    """Of means: the other model less the first."""
    written: float
    """Size of that difference times the decoder row's norm: how much more, or less, of its direction there is."""
    density: float
    other_density: float
    correlation: float | None
    """Of its activations in the two models, over tokens; None where it does not vary in one of them."""
    effect_size: float | None
    """Mean difference over texts in standard deviations of it, with Hedges' factor; None where all texts differ alike."""
    p: float
    q: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelDifference:
    """Features by how much they changed: those with q at or below the rate first."""

    features: tuple[ChangedFeature, ...]
    order_by: str
    num_texts: int
    num_tokens: int
    num_tested: int
    """Features that fire in either model."""
    num_significant: int
    false_discovery_rate: float
    fvu: float
    other_fvu: float
    """Fraction of variance that the dictionary leaves unexplained in each."""
    l0: float
    other_l0: float
    """Features that fire on a token, on average."""
    only: int
    other_only: int
    """Features that fire in one model and never in the other."""
    notes: tuple[str, ...] = ()

    def labelled(self, labels: Mapping[int, str]) -> Self:
        """With labels by feature, e.g. those of :meth:`saescope.store.Store.labels`."""
        return replace(self, features=tuple(replace(each, label=labels.get(each.feature)) for each in self.features))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff_models(
    site: Site,
    other: Site,
    texts: Sequence[str],
    *,
    order_by: Order = "written",
    top: int = 20,
    false_discovery_rate: float = 0.05,
    context_size: int | None = None,
    batch_size_windows: int = 16,
    on_progress: Progress | None = None,
) -> ModelDifference:
    """Features of one dictionary that two models use differently on the same texts.

    Args:
        site, other: the same dictionary in each of them.
        order_by: what is most changed: ``"written"`` (see :class:`ChangedFeature`), ``"effect_size"``, or ``"density"``.
        context_size: tokens in a window; longer texts are read in several.

    Raises:
        ValueError: fewer than two texts, different dictionaries, models whose tokenizers cut the texts differently, or a
            dictionary that does not fit a model.
    """
    if site.dictionary is not other.dictionary and not _same(site.dictionary, other.dictionary):
        raise ValueError("the two sites hold different dictionaries; features can only be compared in one")
    if order_by not in get_args(Order):
        raise ValueError(f"order_by is one of {', '.join(get_args(Order))}, not {order_by!r}")
    if len(texts) < 2:
        raise ValueError(f"a comparison paired over texts takes two texts or more, and there is {len(texts)}")
    windows = windows_of(site, texts, context_size=context_size)
    theirs = windows_of(other, texts, context_size=windows.config.context_size)
    if windows.bos_id != theirs.bos_id or not np.array_equal(windows.tokens, theirs.tokens):
        raise ValueError(
            f"the tokenizers of {site.model.name} and {other.model.name} cut these texts into different tokens; only models "
            "with one tokenizer read the same text"
        )
    sums = _Sums(site.dictionary.d_sae, len(texts))
    for first, second in zip(
        read_tokens(site, windows, batch_size_windows=batch_size_windows, on_progress=on_progress),
        read_tokens(other, windows, batch_size_windows=batch_size_windows),
        strict=True,
    ):
        sums.add(first.text, [first.codes, second.codes])
        for place, read in enumerate((first, second)):
            sums.errors[place].add(read.reading.error, read.reading.reconstruction)
    rows, num_significant = sums.rows(
        site.dictionary.decoder_norms.detach().double().cpu().numpy(), false_discovery_rate
    )
    rows.sort(key=lambda row: (row.q > false_discovery_rate, -_size(row, order_by), row.feature))
    notes = []
    if not sums.differ:
        notes.append(
            "both models give the same activations on every token: as far as this dictionary sees, they are one"
        )
    elif not num_significant:
        notes.append(
            f"no feature changed: of {len(rows):,} that fire, none has q <= {false_discovery_rate:g}; those listed are the "
            "largest differences, and may be chance"
        )
    fired = [sums.count[place] > 0 for place in (0, 1)]
    return ModelDifference(
        features=tuple(rows[:top]),
        order_by=order_by,
        num_texts=len(texts),
        num_tokens=sums.num_tokens,
        num_tested=len(rows),
        num_significant=num_significant,
        false_discovery_rate=false_discovery_rate,
        fvu=sums.errors[0].fvu,
        other_fvu=sums.errors[1].fvu,
        l0=float(sums.count[0].sum() / sums.num_tokens),
        other_l0=float(sums.count[1].sum() / sums.num_tokens),
        only=int((fired[0] & ~fired[1]).sum()),
        other_only=int((fired[1] & ~fired[0]).sum()),
        notes=tuple(notes),
    )


def _size(row: ChangedFeature, order_by: Order) -> float:
    if order_by == "written":
        return row.written
    if order_by == "density":
        return abs(row.other_density - row.density)
    return float("inf") if row.effect_size is None else abs(row.effect_size)


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours)


class _Error:
    """Squared error and variance of what is rebuilt, in float64, around the first batch's mean so that digits stay."""

    def __init__(self) -> None:
        self._centre: Tensor | None = None
        self._error = self._squares = 0.0
        self._sum: Tensor = torch.zeros(())
        self._num = 0

    def add(self, error: Tensor, reconstruction: Tensor) -> None:
        if not len(error):
            return
        y = (error.double() + reconstruction.double()).cpu()
        if self._centre is None:
            self._centre = y.mean(0)
            self._sum = torch.zeros_like(self._centre)
        y = y - self._centre
        self._error += float(error.double().square().sum())
        self._squares += float(y.square().sum())
        self._sum += y.sum(0)
        self._num += len(y)

    @property
    def fvu(self) -> float:
        variance = self._squares - float(self._sum.square().sum()) / self._num
        return self._error / variance if variance > 0 else float(self._error > 0)


class _Sums:
    """What is added up over batches: arrays ``[d_sae]`` for each model, and differences by text."""

    def __init__(self, d_sae: int, num_texts: int) -> None:
        self.num_tokens = 0
        self.differ = False
        self.total = np.zeros((2, d_sae))
        self.squares = np.zeros((2, d_sae))
        self.count = np.zeros((2, d_sae))
        self.product = np.zeros(d_sae)
        self.errors = (_Error(), _Error())
        self._changes: list[sparse.coo_array] = []
        self._tokens_of = np.zeros(num_texts)

    def add(self, text: np.ndarray, codes: list[sparse.csr_array]) -> None:
        self.num_tokens += len(text)
        for place, values in enumerate(codes):
            self.total[place] += np.asarray(values.sum(0)).ravel()
            self.squares[place] += np.asarray(values.multiply(values).sum(0)).ravel()
            self.count[place] += np.bincount(values.indices[values.data != 0], minlength=values.shape[1])
        self.product += np.asarray(codes[0].multiply(codes[1]).sum(0)).ravel()
        change = codes[1] - codes[0]
        self.differ |= bool((change.data != 0).any())
        num_texts = len(self._tokens_of)
        self._tokens_of += np.bincount(text, minlength=num_texts)
        of_text = sparse.csr_array((np.ones(len(text)), (text, np.arange(len(text)))), shape=(num_texts, len(text)))
        self._changes.append((of_text @ change).tocoo())

    def rows(self, norms: np.ndarray, rate: float) -> tuple[list[ChangedFeature], int]:
        """Every feature that fires in either model, and how many of them changed."""
        kept = self._tokens_of > 0  # texts of special tokens alone have none
        row, column, value = (
            np.concatenate([getattr(part, name) for part in self._changes]) for name in ("row", "col", "data")
        )
        shape = (len(kept), len(norms))
        means = sparse.csr_array((value / self._tokens_of[row], (row, column)), shape=shape)[kept]
        fired = np.flatnonzero(self.count.sum(0))
        p = paired_p(means, fired)
        q = adjusted(p)
        effect = paired_effect(means, fired)
        mean, density = self.total / self.num_tokens, self.count / self.num_tokens
        square = self.squares / self.num_tokens
        variance = square - mean**2
        variance[variance <= 1e-12 * square] = np.nan  # what rounding leaves of none
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = (self.product / self.num_tokens - mean[0] * mean[1]) / np.sqrt(variance[0] * variance[1])
        found = [
            ChangedFeature(
                feature=int(feature),
                mean=float(mean[0, feature]),
                other_mean=float(mean[1, feature]),
                difference=float(mean[1, feature] - mean[0, feature]),
                written=float(abs(mean[1, feature] - mean[0, feature]) * norms[feature]),
                density=float(density[0, feature]),
                other_density=float(density[1, feature]),
                correlation=float(correlation[feature]) if np.isfinite(correlation[feature]) else None,
                effect_size=float(effect[place]) if np.isfinite(effect[place]) else None,
                p=float(p[place]),
                q=float(q[place]),
            )
            for place, feature in enumerate(fired)
        ]
        return found, int((q <= rate).sum())
