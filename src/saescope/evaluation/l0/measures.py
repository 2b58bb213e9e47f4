"""Two numbers that say whether a dictionary's L0 is right, without knowing the truth.

Chanin & Garriga-Alonso 2025, arXiv 2508.16560 ("Sparse but Wrong"). Where fewer features may fire than the data have, a
dictionary that rebuilds well mixes correlated features into each row; where more may fire, rows mix as well. Mixed rows
overlap, and every activation has a part along rows of features that are not there::

    c_dec = mean over pairs of rows of |cos(W_dec_i, W_dec_j)|
    Z     = (X - b_dec) @ unit rows.T            # [B, d_sae], projections: no encoder, no ReLU
    s_n   = Z sorted from large to small [n * B]  # mean over batches of B tokens

Lower is better in both. n has to be well above the true L0 (the n * B largest projections are then all that real features
cause, and s_n looks at what comes after) and below d_sae / 2. s_n is a property of batches: a larger B averages busy and
quiet tokens, and moves it slightly. So B is part of its definition here, and however activations arrive, they are put into
batches of exactly B tokens.

B  tokens of a batch, d  width of what is rebuilt, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, Transcoder

BATCH_SIZE_TOKENS = 4096  # B, as in the paper
_MOST_VALUES = 1 << 30  # projections of one batch, 4 GB
_BLOCK = 2048


@dataclass(frozen=True)
class DecoderOverlap:
    """Mean |cos| over pairs of decoder rows."""

    c_dec: float | None  # None where fewer than two rows have a direction
    num_left_out: int  # rows of norm 0, which have none


@torch.no_grad()
def decoder_overlap(rows: Tensor, *, block_size: int = _BLOCK) -> DecoderOverlap:
    """c_dec of decoder rows ``[d_sae, d]`` of any norm; in float64, by blocks: no ``[d_sae, d_sae]`` matrix is made.

    Raises:
        ValueError: not a matrix, or numbers in it that are not finite.
    """
    units, num_left_out = _unit_rows(rows)
    count = len(units)
    if count < 2:
        return DecoderOverlap(None, num_left_out)
    total = 0.0
    for first in range(0, count, block_size):
        part = units[first : first + block_size]
        # a block with itself has every pair twice and the diagonal, later blocks have theirs once
        total += float((part @ part.T).abs().fill_diagonal_(0).sum()) / 2
        for second in range(first + block_size, count, block_size):
            total += float((part @ units[second : second + block_size].T).abs().sum())
    return DecoderOverlap(total / (count * (count - 1) / 2), num_left_out)


class ProjectionMeter:
    """s_n of one dictionary for several n at once, from activations that arrive piece by piece.

    Pieces may be of any length. Tokens at the end that fill no batch are left out; where there are not enough for even one,
    they are one smaller batch. Rows of norm 0 have no direction, and no part in this.

    Raises:
        ValueError: an n that is not above 0 and below the number of rows; a batch too large to be held in memory.
    """

    def __init__(
        self, dictionary: Dictionary, ns: Sequence[float], *, batch_size_tokens: int = BATCH_SIZE_TOKENS
    ) -> None:
        self.dictionary, self.batch_size_tokens = dictionary, batch_size_tokens
        units, self.num_left_out = _unit_rows(dictionary.W_dec)
        self._units = units.T.contiguous()  # [d, d_sae], float64
        self.ns = tuple(sorted(set(ns)))
        d_sae = self._units.shape[1]
        wrong = [f"{n:g}" for n in self.ns if not 0 < n < d_sae]
        if wrong or not self.ns:
            raise ValueError(
                f"n of s_n must be above 0 and below the {d_sae} rows of the decoder, got {', '.join(wrong) or 'none'}; "
                "well above the L0 and below half the rows is where it tells something"
            )
        if batch_size_tokens < 1 or batch_size_tokens * d_sae > _MOST_VALUES:
            raise ValueError(
                f"batches of {batch_size_tokens:,} tokens with {d_sae:,} features each are not possible; take at least 1 "
                f"and at most {_MOST_VALUES // d_sae:,} tokens"
            )
        self._waiting: list[Tensor] = []  # less than a batch, [*, d], float64
        self.batches: list[np.ndarray] = []  # s_n of each batch, in the order of ns
        self.num_tokens = 0  # in those batches

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor | None = None) -> None:
        """See activations ``[*, d_in]``; ``y`` ``[*, d_out]`` is what a transcoder rebuilds."""
        self._waiting.append(centred(self.dictionary, x, y))
        size = self.batch_size_tokens
        if sum(map(len, self._waiting)) < size:
            return
        tokens = torch.cat(self._waiting)
        whole = len(tokens) // size * size
        for first in range(0, whole, size):
            self._add(tokens[first : first + size])
        self._waiting = [tokens[whole:].clone()]

    def result(self) -> dict[float, float]:
        """s_n by n. :attr:`num_tokens` is what they are over.

        Raises:
            ValueError: no tokens were seen, or activations that are not finite.
        """
        if not self.batches:
            if not sum(map(len, self._waiting)):
                raise ValueError("s_n is measured on activations, and there are none")
            self._add(torch.cat(self._waiting))
            self._waiting = []
        return dict(zip(self.ns, np.mean(self.batches, axis=0).tolist(), strict=True))

    def _add(self, tokens: Tensor) -> None:
        if not tokens.isfinite().all():
            raise ValueError("the activations, or the dictionary's biases, hold NaN or infinity")
        projections = np.empty(self._units.shape[1] * len(tokens), dtype=np.float32)
        for first in range(0, self._units.shape[1], _BLOCK):  # what is in float64 stays small
            part = (tokens @ self._units[:, first : first + _BLOCK]).float().cpu().numpy()
            projections[first * len(tokens) : first * len(tokens) + part.size] = part.ravel()
        # place n * B from the top, without a sort
        places = [len(projections) - 1 - int(n * len(tokens)) for n in self.ns]
        self.batches.append(np.partition(projections, places)[places].astype(np.float64))
        self.num_tokens += len(tokens)


@torch.no_grad()
def centred(dictionary: Dictionary, x: Tensor, y: Tensor | None = None) -> Tensor:
    """What decoder rows have to make up, ``[*, d_out]`` in float64: the activation as the dictionary sees it
    (normalised, where it normalises) less ``b_dec``, and less what a skip connection gives."""
    x = x.to(dictionary.b_dec)
    if isinstance(dictionary, Transcoder):
        if y is None:
            raise ValueError("a transcoder rebuilds another activation than it reads: give that one too")
        target = y.to(dictionary.b_dec)
    else:
        target = dictionary.input_normalization.normalise(x)
    if target.shape[-1] != dictionary.d_out:
        raise ValueError(
            f"this dictionary rebuilds activations of width {dictionary.d_out}, got width {target.shape[-1]}; check that "
            "model and hook point are the ones it was trained on"
        )
    return target.double() - dictionary.offset(x).double()


def default_ns(largest_l0: float, d_sae: int) -> tuple[int, ...]:
    """Three n well above an L0 and below half the features, evenly spaced between them on a logarithmic scale. Empty where
    the L0 is half the features already: no n is both."""
    most = d_sae // 2
    if not 0 < largest_l0 < most:
        return ()
    return tuple(
        sorted({min(most, round(largest_l0 * (most / largest_l0) ** share) + 1) for share in (0.25, 0.5, 0.75)})
    )


def _unit_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows ``[d_sae, d]`` of norm 1 in float64, those of norm 0 left out, and their number."""
    if rows.ndim != 2:
        raise ValueError(f"decoder rows must be a matrix [d_sae, d], got {list(rows.shape)}")
    rows = rows.detach().double()
    norms = rows.norm(dim=-1, keepdim=True)
    if not norms.isfinite().all():
        raise ValueError("decoder rows hold NaN or infinity; the weights are damaged")
    kept = norms[:, 0] > 0
    return rows[kept] / norms[kept], int((~kept).sum())
