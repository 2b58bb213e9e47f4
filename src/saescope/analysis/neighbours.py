"""What a dictionary's weights say without any text: which features lie near each other, and the sizes of their rows.

Neighbours are the rows of highest cosine. All pairs are looked at, a chunk of rows against all others at a time, so that
nothing of size ``[N, N]`` is held. Chunks are searched in float32 for a few more than are asked for, and these are computed
again in float64: cosines are exact to its rounding, and so is their order.

N  rows (features), d  width, S  sources of a crosscoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saescope.dictionaries import Crosscoder, Dictionary

_CHUNK_BYTES = 1 << 26  # of cosines held at a time
_SPARE = 16  # neighbours beyond those asked for that are computed again in float64


@dataclass(frozen=True)
class NearestRows:
    """For every row, the others of highest cosine, nearest first."""

    indices: np.ndarray  # int64, [N, num]: -1 where there are no more
    cosines: np.ndarray  # float64, [N, num]: nan where there are no more


@torch.no_grad()
def nearest_rows(rows: Tensor, num: int, *, chunk_rows: int | None = None) -> NearestRows:
    """For each row of ``[N, d]`` the ``num`` other rows of highest cosine; equal ones in the order of their index.

    A row of zeros has no direction: it has no neighbours and is nobody's. Negative cosines count as well, as the lowest.
    Products are made where the rows are; memory beside the rows and their copy of norm 1 is 64 MiB.

    Among more than ``num + 16`` rows that float32 can not tell apart (many copies of one row), those taken are not always
    the first.

    Args:
        rows: decoder rows, or encoder rows.
        num: neighbours per row.
        chunk_rows: rows done together; by default as many as the memory above allows.

    Raises:
        ValueError: rows with NaN or infinity, not a matrix, or a ``num`` below 1.
    """
    from saescope.analysis.loops import cosines_of_pairs, in_parts, largest_of_rows  # compiled code, loaded when needed

    rows, norms = _checked(rows)
    if num < 1 or (chunk_rows is not None and chunk_rows < 1):
        raise ValueError(f"num and chunk_rows must be at least 1, got {num} and {chunk_rows}")
    num_rows = len(rows)
    unit = (rows / norms.to(rows.dtype).where(norms > 0, 1)[:, None]).float()
    is_zero = norms == 0
    chunk_rows = chunk_rows or max(1, min(num_rows, _CHUNK_BYTES // max(1, 4 * num_rows)))
    wide, lengths = rows.cpu().numpy(), norms.cpu().numpy()

    indices = np.full((num_rows, num), -1, dtype=np.int64)
    cosines = np.full((num_rows, num), np.nan)
    product = unit.new_empty(min(chunk_rows, num_rows), num_rows)
    for begin in range(0, num_rows, chunk_rows):
        chunk = unit[begin : begin + chunk_rows]
        near = torch.mm(chunk, unit.T, out=product[: len(chunk)])  # [rows, N]
        near[:, is_zero] = -torch.inf
        near[is_zero[begin : begin + chunk_rows]] = -torch.inf
        near.diagonal(begin).fill_(-torch.inf)
        n = len(chunk)
        found = np.empty((n, num + _SPARE), dtype=np.int64)
        exact = np.empty((n, num + _SPARE))
        in_parts(largest_of_rows, n, near.cpu().numpy(), np.empty(found.shape, dtype=np.float32), found)
        in_parts(cosines_of_pairs, n, wide, lengths, begin, found, exact)
        order = np.lexsort((found, -exact))[:, :num]  # of equal cosines the lower index first; what is missing last
        found, exact = np.take_along_axis(found, order, 1), np.take_along_axis(exact, order, 1)
        indices[begin : begin + n] = found
        cosines[begin : begin + n] = np.where(found < 0, np.nan, exact)
    return NearestRows(indices, cosines)


@dataclass(frozen=True)
class RowNumbers:
    """What the weights say of each feature by itself, in float64."""

    decoder_norm: np.ndarray  # [d_sae]; of a crosscoder the sum over its sources, as everywhere in this package
    encoder_norm: np.ndarray  # [d_sae]
    encoder_bias: np.ndarray | None  # [d_sae]; None where the encoder has none
    encoder_decoder_cosine: np.ndarray | None  # [d_sae], nan for rows of zeros; None where the widths differ
    source_norms: np.ndarray | None  # [d_sae, S]: the decoder's norm in each source; None but for crosscoders


@torch.no_grad()
def row_numbers(dictionary: Dictionary) -> RowNumbers:
    """Norms, biases and encoder-decoder cosines of all features.

    The encoder of a crosscoder is taken as one row over all sources, and so is its decoder for the cosine. A dictionary
    whose encoder is its decoder has a cosine of 1.

    Raises:
        ValueError: a matrix holds NaN or infinity.
    """
    decoder, decoder_norm = _checked(dictionary.W_dec)
    encoder, encoder_norm = _checked(dictionary.W_enc.T)
    sources = None
    if isinstance(dictionary, Crosscoder):
        sources = torch.stack([_norms(part) for part in dictionary.of_sources(decoder)], dim=-1)
    cosine = None
    if decoder.shape == encoder.shape:
        parts = zip(decoder.split(4096), encoder.split(4096), strict=True)  # not both matrices in float64 at once
        along = torch.cat([(d.double() * e.double()).sum(-1) for d, e in parts])
        both = decoder_norm * encoder_norm
        cosine = (along / both.where(both > 0, torch.nan)).clamp(-1, 1)
    bias = dictionary.b_enc
    return RowNumbers(
        decoder_norm=_array(decoder_norm if sources is None else sources.sum(-1)),
        encoder_norm=_array(encoder_norm),
        encoder_bias=None if bias is None else _array(bias),
        encoder_decoder_cosine=None if cosine is None else _array(cosine),
        source_norms=None if sources is None else _array(sources),
    )


def _checked(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in float32 or float64, one after the other in memory, and their norms in float64."""
    if rows.ndim != 2:
        raise ValueError(f"expected a matrix of rows [N, d], got the shape {list(rows.shape)}")
    rows = rows.detach()
    rows = (rows if rows.dtype == torch.float64 else rows.float()).contiguous()
    norms = _norms(rows)
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"row {int(bad[0])} holds NaN or infinity, so it has no direction; check the dictionary")
    return rows, norms


def _norms(rows: Tensor) -> Tensor:
    return (
        torch.cat([part.double().norm(dim=-1) for part in rows.split(4096)])
        if len(rows)
        else rows.new_empty(0).double()
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
