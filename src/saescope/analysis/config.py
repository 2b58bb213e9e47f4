"""How much an analysis looks at, and how much it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from saescope.analysis.statistics import StatisticsConfig


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
    num_label_firings: int = 512  # firings drawn per feature, from which its label is found
    map: str = "auto"  # how the map of decoder rows is made: "auto", "umap", "pca" or "none"
    seed: int = 0
    batch_size_windows: int = 32

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_logits", "num_neighbours", "num_cofiring_tokens", "batch_size_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.map not in ("auto", "umap", "pca", "none"):
            raise ValueError(f'map must be "auto", "umap", "pca" or "none", got {self.map!r}')
        self.statistics  # noqa: B018  its own checks

    @property
    def statistics(self) -> StatisticsConfig:
        return StatisticsConfig(
            num_top=self.num_examples,
            num_bands=self.num_bands,
            num_per_band=self.num_per_band,
            num_negatives=self.num_negatives,
            num_label_firings=self.num_label_firings,
            window_before=self.window_before,
            window_after=self.window_after,
            seed=self.seed,
        )
