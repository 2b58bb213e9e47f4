"""How strongly features fire: never below 0, independent over tokens and features.

B  tokens, n  features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# what a firing feature's strength is at least: a draw that is 0 by rounding would be no firing
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Magnitudes(ABC):
    """How strongly a feature fires, where it fires; independent over tokens and features."""

    scale: float | Tensor | Sequence[float] = 1.0  # factor, above 0: one for all features or one for each

    def __post_init__(self) -> None:
        scale = torch.as_tensor(self.scale, dtype=torch.float32)
        if scale.ndim > 1 or not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(f"scale must be a positive number or one for each feature, got {self.scale}")
        object.__setattr__(self, "scale", scale)

    @property
    def positive_share(self) -> float:
        """Share of firings whose magnitude is above 0; the others are none."""
        return 1.0

    @abstractmethod
    def draw(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        """Magnitudes before the scale, ``[B, n]``."""

    def sample(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        """Magnitudes, ``[B, n]``, whether the feature fires or not."""
        return self.draw(num_tokens, num_features, generator) * torch.as_tensor(self.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ones(Magnitudes):
    """Binary codes (before the scale): a feature is there or not."""

    def draw(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        return torch.ones(num_tokens, num_features)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Normal(Magnitudes):
    mean: float
    sd: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sd > 0:
            raise ValueError(f"sd must be above 0, got {self.sd}; Ones has magnitudes without a spread")

    def normal(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        """N(mean, sd) before it is made positive, ``[B, n]``."""
        return torch.randn(num_tokens, num_features, generator=generator).mul_(self.sd).add_(self.mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedNormal(_Normal):
    """|N(mean, sd)|; |N(0, 1)| unless said otherwise."""

    mean: float = 0.0
    sd: float = 1.0

    def draw(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        return self.normal(num_tokens, num_features, generator).abs_().clamp_min_(_LEAST)


@dataclass(frozen=True, kw_only=True, eq=False)
class RectifiedNormal(_Normal):
    """ReLU(N(mean, sd)); a draw below 0 is no firing, which is rare for an sd well below the mean."""

    mean: float = 1.0
    sd: float = 0.15

    @property
    def positive_share(self) -> float:
        return float(torch.special.ndtr(torch.tensor(self.mean / self.sd, dtype=torch.float64)))

    def draw(self, num_tokens: int, num_features: int, generator: torch.Generator) -> Tensor:
        return self.normal(num_tokens, num_features, generator).relu_()
