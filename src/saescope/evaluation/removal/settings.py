"""What studies that remove features have in common: how many, from what, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from saescope.evaluation.removal.removal import Unit


@dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """How features are removed and probes asked."""

    num_features: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """How many features are taken away."""
    unit: Unit = "tokens"
    """What a probe tells apart: tokens, or documents by the mean over their tokens, as published."""
    num_seeds: int = 3
    """Times that documents are split and training units are drawn anew."""
    train_share: float = 0.7
    """Share of documents for probes and effects; accuracies are of the rest."""
    num_train: int = 4000
    """Most units that a probe is fitted on, as many from each class (or quadrant) as there are enough of."""
    least: int = 20
    """Units that each class (or quadrant) needs on either side of every split."""
    c: float = 1.0
    """Inverse strength of the probes' L2 penalty, on activations with a mean square of 1 per dimension."""
    seed: int = 0

    def __post_init__(self) -> None:
        rising = sorted(set(self.num_features))
        if not rising or list(self.num_features) != rising or rising[0] < 1:
            raise ValueError(f"num_features must be rising numbers of at least 1, got {list(self.num_features)}")
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit is tokens or documents, not {self.unit!r}")
        if self.num_seeds < 1 or not 0 < self.train_share < 1:
            raise ValueError(
                f"num_seeds must be at least 1 and train_share between 0 and 1, got {self.num_seeds} and {self.train_share}"
            )
        if self.num_train < 4 or self.least < 1 or not self.c > 0:
            raise ValueError(
                f"num_train must be at least 4, least at least 1 and c positive, got {self.num_train}, {self.least} "
                f"and {self.c}"
            )
