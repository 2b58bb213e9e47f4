"""Transcoders: a dictionary that reads one hook point and rebuilds another, as an MLP's output from its input.

Dunefsky, Chlenski & Nanda 2024, arXiv 2406.11944; with a linear skip connection, Paulo, Shabalin & Belrose 2025,
arXiv 2501.18823::

    y_hat = f(x) @ W_dec + b_dec (+ x @ W_skip.T)

The encoder and its activation are those of a host: ``transcoder(TopK)`` is the architecture ``topk_transcoder``, with
``skip=True`` it is ``topk_skip_transcoder``; of ReLU they are ``transcoder`` and ``skip_transcoder``. ``b_dec`` belongs
to the output and is never subtracted from the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.base import Dictionary, DictionaryConfig, random_rows, times
from saescope.dictionaries.codes import SparseCodes
from saescope.dictionaries.composition import composed


@dataclass(frozen=True, kw_only=True)
class TranscoderFields(DictionaryConfig):
    d_out: int  # width of what is rebuilt
    apply_b_dec_to_input: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.d_out, int) or self.d_out < 1:
            raise ValueError(f"d_out must be a whole number of at least 1, got {self.d_out!r}")
        if self.apply_b_dec_to_input:
            raise ValueError("b_dec of a transcoder belongs to its output; apply_b_dec_to_input must be false")


class Transcoder(Dictionary):
    """A dictionary from one hook point to another.

    Attributes:
        W_skip: ``[d_out, d_in]``, in classes with a skip connection.
    """

    config: Any
    has_skip: ClassVar[bool] = False
    W_skip: nn.Parameter

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        if self.has_skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in))

    @property
    def d_out(self) -> int:
        return self.config.d_out

    def first_encoder(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """Random unit rows: the decoder's lie in another space."""
        return random_rows(self.d_sae, self.d_in, generator)

    def decode(self, f: Tensor | SparseCodes, x: Tensor | None = None) -> Tensor:
        """``f @ W_dec + b_dec``, with the skip connection from ``x`` where there is one."""
        return self.combine(f) + self.offset(x)  # the output has units of its own: nothing of the input is undone

    def written(self, rows: Tensor, x: Tensor | None = None) -> Tensor:
        return rows

    def offset(self, x: Tensor | None) -> Tensor:
        if not self.has_skip:
            return self.b_dec
        if x is None:
            raise ValueError("the skip connection needs the input again: decode(f, x), or dictionary(x) for both steps")
        return self.b_dec + F.linear(self.input_normalization.normalise(x), self.W_skip)

    @torch.no_grad()
    def fold_scale(self, scale_in: float, scale_out: float | None = None) -> None:
        super().fold_scale(scale_in, scale_out)
        if self.has_skip:
            self.W_skip.mul_(scale_in / (scale_in if scale_out is None else scale_out))

    @torch.no_grad()
    def fold_affine(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> None:
        """As for other dictionaries, on the input's side alone: the output has units of its own."""
        mean, matrix = mean.to(self.b_dec.device, torch.float64), matrix.to(self.b_dec.device, torch.float64)
        transposed = matrix if matrix.ndim == 1 else matrix.T
        self.shift_pre_activations(self.fold_matrix(transposed) @ -mean)
        if self.has_skip:
            skip = times(self.W_skip.double(), transposed)
            self.W_skip.copy_(skip)
            self.b_dec.sub_(skip @ mean)


def transcoder(host: type[Dictionary], *, skip: bool = False) -> type[Dictionary]:
    """The transcoder with the encoder of an architecture, registered as ``HOST_transcoder`` or
    ``HOST_skip_transcoder``."""
    if host.unit_norm is None:
        raise ValueError(f"the encoder of {host.architecture} is its decoder: it can not write to another hook point")
    kind = "skip_transcoder" if skip else "transcoder"
    name = kind if host.architecture == "relu" else f"{host.architecture}_{kind}"
    saelens_name = name if host.architecture in ("relu", "jumprelu") else None
    return composed(SkipTranscoder if skip else Transcoder, host, TranscoderFields, name, saelens_name=saelens_name)  # type: ignore[type-abstract]


class SkipTranscoder(Transcoder):
    """A dictionary from one hook point to another, beside a linear map."""

    has_skip = True
