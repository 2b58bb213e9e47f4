"""How much an analysis looks at, and how much it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saescope.analysis.statistics import StatisticsConfig

MapMethod = Literal["auto", "umap", "pca", "none"]
_MOST_LABEL_FIRINGS = 1 << 23  # of all features together, 12 bytes each


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """How much to look at, and how much to keep."""

    num_tokens: int | None = None  # tokens to analyse, spread evenly over the text; None: all
    num_held_out_tokens: int | None = None  # held-out tokens on which labels are measured; None: all
    num_examples: int = 20  # windows of highest peak kept per feature
    num_bands: int = 5  # of each kind: of equal share of the firings, and of equal width
    num_per_band: int = 5  # windows drawn from each band
    num_negatives: int = 5  # windows in which the feature is silent: near misses, and any
    window_before: int = 16  # tokens before a peak, and after it, that make two windows copies of each other
    window_after: int = 8
    num_logits: int = 20  # tokens kept in each direction
    num_neighbours: int = 10  # of each kind: decoder cosine, encoder cosine, firing together
    num_cofiring_tokens: int = 131_072  # tokens drawn, on which it is counted what fires together
    num_label_firings: int | None = (
        None  # firings drawn per feature for its label; None: 512, in small dictionaries more
    )
    map: MapMethod = "auto"  # how the map of decoder rows is made
    seed: int = 0
    batch_size_windows: int = 32

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_logits", "num_neighbours", "num_cofiring_tokens", "batch_size_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.map not in get_args(MapMethod):
            raise ValueError(f"map must be one of {', '.join(get_args(MapMethod))}, got {self.map!r}")
        self.statistics(1)  # its own checks

    def statistics(self, d_sae: int) -> StatisticsConfig:
        """What is kept of every feature of a dictionary of so many."""
        firings = self.num_label_firings
        if firings is None:
            # 512 firings name a feature about as well as all of them (see labels.py); where memory allows, more is better
            firings = min(4096, max(512, _MOST_LABEL_FIRINGS // d_sae))
        return StatisticsConfig(
            num_top=self.num_examples,
            num_bands=self.num_bands,
            num_per_band=self.num_per_band,
            num_negatives=self.num_negatives,
            num_label_firings=firings,
            window_before=self.window_before,
            window_after=self.window_after,
            seed=self.seed,
        )
