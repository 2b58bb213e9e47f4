"""Archetypal dictionaries: decoder rows are held near mixtures of data points, which makes them stable across seeds.

Fel et al. 2025, "Archetypal SAE", arXiv 2502.12892, the relaxed form::

    W_dec = (mixture @ points + relaxation) * exp(log_scale)

with rows of ``mixture`` on the simplex and rows of ``relaxation`` no longer than ``delta``; both are brought back there
after every step. Encoder and activation are those of a host: ``archetypal(TopK)`` is the architecture
``topk_archetypal``, and so for every other. Points are drawn from the first activations of training, and there must be
at least as many of them as features: with fewer, mixtures would begin as copies of each other.

P  points, d  activation width, d_sae  features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.base import Dictionary, DictionaryConfig, random_rows
from saescope.dictionaries.composition import composed


@dataclass(frozen=True, kw_only=True)
class ArchetypalFields(DictionaryConfig):
    num_points: int | None = None  # data points that rows are mixed from; d_sae when left out
    delta: float = 1.0  # how far a row may be from its mixture

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_points", self.d_sae if self.num_points is None else self.num_points)
        if not isinstance(self.num_points, int) or self.num_points < self.d_sae:
            raise ValueError(
                f"num_points must be at least d_sae = {self.d_sae}, so that every row begins at a point of its own, "
                f"got {self.num_points!r}"
            )
        if not self.delta >= 0:
            raise ValueError(f"delta must not be negative, got {self.delta}")


class Archetypal(Dictionary):
    """A dictionary whose rows are near the convex hull of data points.

    Attributes:
        points: ``[P, d]``, a buffer. mixture: ``[d_sae, P]``. relaxation: ``[d_sae, d]``. log_scale: scalar.
    """

    config: Any
    unit_norm = False
    points: Tensor

    def make_decoder(self, rows: Tensor, generator: torch.Generator | None) -> None:
        extra = self.config.num_points - len(rows)
        more = random_rows(extra, rows.shape[-1], generator)
        self.register_buffer("points", torch.cat([rows, more]))
        self.mixture = nn.Parameter(torch.eye(len(rows), self.config.num_points))
        self.relaxation = nn.Parameter(torch.zeros_like(rows))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """The decoder that mixtures, relaxation and scale make up, ``[d_sae, d]``."""
        return (self.mixture @ self.points + self.relaxation) * self.log_scale.exp()

    @torch.no_grad()
    def take_points(self, sample: Tensor, generator: torch.Generator) -> None:
        """Mix from these activations, ``[N, d]``: ``num_points`` of them by lot; the encoder starts at the new rows.

        Points are taken relative to ``b_dec`` and scaled together so that their mean norm is 1.

        Raises:
            ValueError: fewer activations than points.
        """
        if len(sample) < len(self.points):
            raise ValueError(
                f"{len(self.points)} points can not be drawn from {len(sample)} activations; measure on more "
                "(num_normalization_tokens), or take a smaller num_points"
            )
        chosen = torch.randperm(len(sample), generator=generator)[: len(self.points)]
        points = sample[chosen.to(sample.device)] - self.b_dec
        self.points.copy_(points / points.norm(dim=-1).mean())
        if self.encoder_rows is not None:
            self.encoder_rows.copy_(F.normalize(self.W_dec, dim=-1))

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.mixture.clamp_(min=0)
        sums = self.mixture.sum(-1, keepdim=True)
        # a row that lost all its weight has no direction left to keep: it starts over in the middle
        self.mixture.copy_(torch.where(sums > 0, self.mixture / sums, 1 / len(self.points)))
        norms = self.relaxation.norm(dim=-1, keepdim=True)
        self.relaxation.mul_((self.config.delta / norms.clamp_min(1e-30)).clamp(max=1))

    def normalise_decoder(self) -> None:
        raise ValueError("rows of an archetypal dictionary have the norm of their points; leave unit_norm_decoder out")

    def transform_decoder(self, matrix: Tensor) -> None:
        for part in (self.points, self.relaxation):
            m = matrix.to(part.device)
            part.copy_(part.double() * m if m.ndim == 1 else part.double() @ m)


def archetypal(host: type[Dictionary]) -> type[Dictionary]:
    """The archetypal form of an architecture, registered as ``HOST_archetypal``."""
    if host.unit_norm is None:
        raise ValueError(f"{host.architecture} needs rows of norm 1, which an archetypal dictionary does not have")
    return composed(Archetypal, host, ArchetypalFields, f"{host.architecture}_archetypal")  # type: ignore[type-abstract]
