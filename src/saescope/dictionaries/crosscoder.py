"""Crosscoders: one dictionary for several layers, or several models, read at the same tokens.

Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing". Every source s has its own encoder
and decoder, the features are shared::

    f = act(sum_s x_s @ W_enc_s + b_enc)        x_hat_s = f @ W_dec_s + b_dec_s

Here the sources lie side by side in one activation, ``x = [x_1, x_2, ...]``, so that it is a dictionary like any other,
but for the norm of a feature's decoder: the sum of its norms per source. The L1 penalty weighs by it, and rows are held
to norm 1 in that sense where the architecture selects by size. A feature's **relative norm** per source tells whether
it is shared or belongs to one source alone.

The L1 penalty makes such features out of shared ones ("complete shrinkage": the smaller decoder is driven to zero
though the source would use it) and out of latents whose twin serves the other source ("latent decoupling"); Minder et
al. 2025, arXiv 2504.02922. :func:`latent_scaling` is their check: the factor by which a latent, as it is in one source,
best explains the other source's reconstruction error and reconstruction. BatchTopK crosscoders show far less of either.

B  tokens, S  sources, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries.base import Dictionary, DictionaryConfig
from saescope.dictionaries.composition import composed


@dataclass(frozen=True, kw_only=True)
class CrosscoderFields(DictionaryConfig):
    source_widths: tuple[int, ...]  # width of each source; together d_in

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source_widths", tuple(self.source_widths))
        whole = all(isinstance(width, int) and width > 0 for width in self.source_widths)
        if not whole or sum(self.source_widths) != self.d_in:
            raise ValueError(
                f"source_widths must be positive and add up to d_in = {self.d_in}, in whole numbers, "
                f"got {list(self.source_widths)}"
            )


class Crosscoder(Dictionary):
    """One dictionary for several sources."""

    config: Any

    def of_sources(self, joined: Tensor) -> tuple[Tensor, ...]:
        """The parts ``[..., d_s]`` of a tensor ``[..., d_in]``: an activation, a reconstruction, decoder rows."""
        return joined.split(self.config.source_widths, dim=-1)

    @property
    def source_norms(self) -> Tensor:
        """Norm of each feature's decoder in each source, ``[d_sae, S]``."""
        return torch.stack([rows.norm(dim=-1) for rows in self.of_sources(self.W_dec)], dim=-1)

    @property
    def decoder_norms(self) -> Tensor:
        """Sum of the norms per source, ``[d_sae]``."""
        return self.source_norms.sum(-1)

    @property
    def relative_norms(self) -> Tensor:
        """Share of each source in a feature's decoder norms, ``[d_sae, S]``; rows add up to 1 (or are 0)."""
        norms = self.source_norms.detach()
        return norms / norms.sum(-1, keepdim=True).clamp_min(1e-30)

    def project_decoder_gradient(self) -> None:
        """Take from the decoder's gradient the part that changes the sum of norms."""
        grad = self.W_dec.grad
        if grad is not None:
            rows = self.of_sources(self.W_dec.detach())
            normals = torch.cat([F.normalize(part, dim=-1) for part in rows], dim=-1)
            squares = normals.square().sum(-1, keepdim=True).clamp_min(1e-12)  # number of sources with a decoder
            grad -= (grad * normals).sum(-1, keepdim=True) / squares * normals


def crosscoder(host: type[Dictionary]) -> type[Dictionary]:
    """The crosscoder with the encoder of an architecture, registered as ``HOST_crosscoder``."""
    if host.unit_norm is None:
        raise ValueError(f"the encoder of {host.architecture} is its decoder, which a crosscoder's is not")
    return composed(Crosscoder, host, CrosscoderFields, f"{host.architecture}_crosscoder")  # type: ignore[type-abstract]


@dataclass(frozen=True)
class LatentScaling:
    """How well a latent serves a source, as if it were this source's own; both ``[d_sae]``, nan where it never fires.

    About 1: the source uses the latent in full. A latent that its norms call another source's own is an artefact of the
    penalty where ``error`` is well above 0 (its part of this source was shrunk away and is missed) or
    ``reconstruction`` is (other latents of the crosscoder carry it there).
    """

    error: Tensor  # least-squares factor of f_i d_i on the source's error, this source's own part of i put back
    reconstruction: Tensor  # the same on the source's reconstruction, without the latent's own part


@torch.no_grad()
def latent_scaling(dictionary: Dictionary, batches: Iterable[Tensor], source: int, *, like: int) -> LatentScaling:
    """Factors beta_i that fit ``f_i d_i`` to a source, where d_i is latent i's decoder in the source ``like``.

    Minder et al. 2025, arXiv 2504.02922: least squares over tokens, one latent at a time, on the error and on the
    reconstruction of ``source``. The sources must have the same width (one layer of two models).

    Args:
        batches: joined activations, ``[B, d_in]``.

    Raises:
        ValueError: not a crosscoder, or sources of different widths.
    """
    if not isinstance(dictionary, Crosscoder):
        raise ValueError(f"latent scaling is for crosscoders, not for a {dictionary.architecture} dictionary")
    widths = dictionary.config.source_widths
    if widths[source] != widths[like]:
        raise ValueError(f"sources {source} and {like} have different widths, {widths[source]} and {widths[like]}")
    rows = dictionary.of_sources(dictionary.W_dec.double())
    own, direction = rows[source], rows[like]  # [d_sae, d_s]
    squares = torch.zeros(dictionary.d_sae, dtype=torch.float64)  # sum of f_i^2
    on_error, on_reconstruction = torch.zeros_like(squares), torch.zeros_like(squares)
    for x in batches:
        f = dictionary.encode(x)
        # in the units that the decoder writes in, which are not the input's where that is normalised
        without_bias = dictionary.combine(f).double()
        f = f.double()
        wanted = dictionary.input_normalization.normalise(x).double() - dictionary.b_dec
        error = dictionary.of_sources(wanted - without_bias)[source]
        built = dictionary.of_sources(without_bias)[source]
        squares += f.square().sum(0).cpu()
        on_error += ((f.T @ error) * direction).sum(-1).cpu()
        on_reconstruction += ((f.T @ built) * direction).sum(-1).cpu()
    energy = direction.square().sum(-1).cpu()
    along = (own * direction).sum(-1).cpu()
    # the latent's own part f_i own_i is added to the error and taken from the reconstruction
    scale = (squares * energy).where(squares * energy > 0, torch.nan)
    return LatentScaling(
        error=(on_error + squares * along) / scale,
        reconstruction=(on_reconstruction - squares * along) / scale,
    )
