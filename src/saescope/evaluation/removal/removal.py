"""Activations without some features: what a feature writes, on tokens or on the means of documents.

Taking features S out of an activation leaves ``y' = y - (decode(f) - decode(f without S))``: what the dictionary does not
explain stays. Every decoder here is affine in f, so that the difference is ``sum over S of f_i d_i`` exactly, where d_i is
the decoder row, seen through what undoes a whitening; layer norm multiplies f by the token's own spread. A probe sees
``d_i`` through its weights alone, so that no activation is ever rebuilt: that is a product of a sparse matrix with a thin
one. A decoder that is none of these (one of a plugin) is asked twice instead.

A sample holds no special tokens and no padding, so that none of them adds what features write there to a mean.

T  tokens, U  units (tokens or documents), d_sae  features, d_out  width of what the dictionary writes, L  labels, W  probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from saescope.dictionaries import Dictionary, Transcoder
from saescope.dictionaries.normalization import NoNormalization, PerToken, Whitening
from saescope.evaluation.probes import Probe, fit_probe
from saescope.evaluation.sample import TokenLabels, TokenSample, encode_sample

Unit: TypeAlias = Literal["tokens", "documents"]
_BLOCK = 8192  # units whose activations are brought to float64 at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What features write on units."""

    codes: sparse.csr_array  # how much of its row each feature writes, float64, [U, d_sae]
    rows: np.ndarray  # float64, [d_sae, d_out]

    @cached_property
    def columns(self) -> sparse.csc_array:
        return self.codes.tocsc()

    def select(self, units: np.ndarray) -> Written:
        """The units at these places."""
        return replace(self, codes=self.codes[units])

    def removed(self, features: np.ndarray, sizes: Sequence[int], weights: np.ndarray) -> Iterator[np.ndarray]:
        """How far the logits of probes fall without the first ``size`` of the features, for every size, ``[U, W]``.

        Args:
            features: the one to go first comes first.
            sizes: rising.
            weights: of the probes, ``[d_out, W]``.
        """
        total = np.zeros((self.codes.shape[0], weights.shape[1]))
        done = 0
        for size in sizes:
            more = features[done:size]
            if len(more):
                total = total + self.columns[:, more] @ (self.rows[more] @ weights)
            done = size
            yield total


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded(Written):
    """The same for a decoder of which nothing is known: the difference of two decodings, token by token."""

    dictionary: Dictionary
    x: Tensor  # [T, d_in]
    of_tokens: sparse.csr_array  # feature activations, [T, d_sae]
    units: sparse.csr_array  # share of each token in each unit, [U, T]

    def select(self, units: np.ndarray) -> Decoded:
        return replace(self, codes=self.codes[units], units=self.units[units])

    @torch.no_grad()
    def removed(self, features: np.ndarray, sizes: Sequence[int], weights: np.ndarray) -> Iterator[np.ndarray]:
        for size in sizes:
            total = np.zeros((self.units.shape[0], weights.shape[1]))
            for first in range(0, len(self.x), _BLOCK // 8):
                part = slice(first, first + _BLOCK // 8)
                x = self.x[part].to(self.dictionary.W_dec)
                f = torch.from_numpy(self.of_tokens[part].toarray()).to(x)
                without = f.clone()
                without[:, torch.from_numpy(features[:size])] = 0
                fall = (self.dictionary.decode(f, x) - self.dictionary.decode(without, x)).double().cpu().numpy()
                total += self.units[:, part] @ (fall @ weights)
            yield total


@torch.no_grad()
def written(dictionary: Dictionary, x: Tensor, units: sparse.csr_array) -> Written:
    """What the features write on units made of the tokens of ``x``, ``[T, d_in]``.

    Raises:
        ValueError: the width does not fit, or weights or feature activations are not numbers.
    """
    rows = dictionary.W_dec.detach().double().cpu()
    if not bool(rows.isfinite().all()):
        raise ValueError("the decoder holds numbers that are not finite; the dictionary may have diverged")
    codes = encode_sample(dictionary, x)
    wide = codes.astype(np.float64)
    undoing = NoNormalization() if isinstance(dictionary, Transcoder) else dictionary.input_normalization
    known = type(dictionary).decode in (Dictionary.decode, Transcoder.decode)
    known &= type(dictionary).combine is Dictionary.combine
    if not known or not isinstance(undoing, NoNormalization | PerToken | Whitening):
        return Decoded(codes=units @ wide, rows=rows.numpy(), dictionary=dictionary, x=x, of_tokens=codes, units=units)
    if isinstance(undoing, PerToken):
        wide = sparse.diags_array(undoing.spread(x.double())[:, 0].cpu().numpy()) @ wide
    if isinstance(undoing, Whitening):
        rows = rows @ undoing.inverse.double().cpu()
    return Written(codes=sparse.csr_array(units @ wide), rows=rows.numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """What probes tell apart: tokens, or documents by the mean over their tokens."""

    y: np.ndarray  # activations, float32, [U, d_out]
    written: Written
    values: np.ndarray  # labels, bool, [U, L]
    document: np.ndarray  # int64, [U]

    @classmethod
    def of(cls, dictionary: Dictionary, sample: TokenSample, labels: TokenLabels, unit: Unit) -> Units:
        """Units of a sample. A document has a label that more than half of its tokens have."""
        labels.check(sample)
        y = sample.y.float().numpy()
        if unit == "tokens":
            shares = sparse.eye_array(len(sample), format="csr")
            return cls(
                y=y,
                written=written(dictionary, sample.x, shares),
                values=labels.values,
                document=sample.document,
            )
        documents, which, counts = np.unique(sample.document, return_inverse=True, return_counts=True)
        shares = sparse.csr_array(
            (1 / counts[which], (which, np.arange(len(which)))), shape=(len(documents), len(which))
        )
        return cls(
            y=np.asarray(shares @ y.astype(np.float64), dtype=np.float32),
            written=written(dictionary, sample.x, shares),
            values=np.asarray(shares @ labels.values.astype(np.float64)) > 0.5,
            document=documents,
        )

    def logits(self, units: np.ndarray, probes: Sequence[Probe]) -> np.ndarray:
        """Of the probes on the units at these places, float64, ``[len(units), W]``."""
        weights = np.stack([probe.weights for probe in probes], axis=-1)
        bias = np.array([probe.bias for probe in probes])
        blocks = [units[first : first + _BLOCK] for first in range(0, len(units), _BLOCK)]
        return np.concatenate([self.y[block].astype(np.float64) @ weights + bias for block in blocks])

    def probe(self, units: np.ndarray, truth: np.ndarray, *, c: float) -> Probe:
        """A probe on the units at these places, both classes weighed alike.

        Activations are centred and brought to a mean square of 1 per dimension first, by one factor, so that the penalty
        means the same for every model; the probe is for raw activations.
        """
        y = self.y[units].astype(np.float64)
        mean = y.mean(0)
        scale = float(np.sqrt(np.mean((y - mean) ** 2))) or 1.0
        probe = fit_probe((y - mean) / scale, truth, c=c, balanced=True)
        weights = probe.weights / scale
        return Probe(weights=weights, bias=probe.bias - float(mean @ weights), converged=probe.converged)

    def difference(self, positives: Sequence[np.ndarray], negatives: Sequence[np.ndarray]) -> np.ndarray:
        """Mean of what features write on some units less that on others, ``[d_sae]``; groups of units weigh alike."""
        return self._mean(positives) - self._mean(negatives)

    def _mean(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        codes = self.written.codes
        weights = np.zeros(codes.shape[0])
        for group in groups:
            weights[group] = 1 / (len(group) * len(groups))
        return np.asarray(weights @ codes)


def strongest(effects: np.ndarray, most: int) -> np.ndarray:
    """The features of the largest effects, largest first; none whose effect is 0."""
    order = np.argsort(-effects, kind="stable")
    return order[effects[order] != 0][:most]


def some_of(places: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """At most so many of the places, drawn without replacement, in rising order."""
    return places if len(places) <= most else np.sort(generator.choice(places, most, replace=False))


def seed_of(*numbers: int) -> int:
    """One seed from several: reseeds of one seed are not those of the next."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
