"""What the store holds, as plain values: no database, no tensors, nothing that JSON could not say.

A *dictionary* has *features*; a feature has *examples*; an example points into a *window* of text, which several
features share. A window carries its token texts, so that a page can be drawn from these records alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DictionaryRecord:
    """One analysed dictionary: where it reads, how large it is, what it was analysed on."""

    name: str
    model: str
    hook_point: str
    architecture: str
    dataset: str
    d_in: int
    d_sae: int
    context_size: int
    """Tokens per window."""
    num_tokens: int
    """Tokens analysed, special tokens excluded."""
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class TokenLogit:
    """A token of the vocabulary, and how far the feature pushes its logit."""

    token_id: int
    text: str
    logit: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of a feature's positive activations: `counts[i]` of them lie between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.counts and len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"a histogram of {len(self.counts)} counts needs {len(self.counts) + 1} edges, got {len(self.edges)}"
            )


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a feature seems to mean, and how well that held on text it was not chosen on."""

    text: str
    kind: str
    """The family of hypotheses the label comes from: "tokens", "syntax", ..."""
    precision: float | None
    """Share of held-out firings that the label covers."""
    lift: float | None
    """That share, divided by the share of all held-out tokens that the label covers."""
    num_firings: int
    """Held-out firings the two were measured on."""


@dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """One feature: how often and how strongly it fires, which tokens it promotes, what it was named."""

    index: int
    num_firings: int
    density: float
    """Share of the analysed tokens on which it fires."""
    max_activation: float
    mean_activation: float
    """Mean over its firings, zeros excluded."""
    histogram: Histogram
    top_logits: tuple[TokenLogit, ...]
    bottom_logits: tuple[TokenLogit, ...]
    label: Label | None = None

    def __post_init__(self) -> None:
        for name in ("density", "max_activation", "mean_activation"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(
                    f"feature {self.index}: {name} is {value}, expected a finite number (0 if it never fires)"
                )


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of a document, as the model saw it."""

    id: int
    """Unique within the analysis of one dictionary."""
    document: str
    offset: int
    """Place of the first token in its document."""
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.token_texts):
            raise ValueError(
                f"window {self.id} has {len(self.token_ids)} token ids but {len(self.token_texts)} token texts"
            )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A feature at work in a window: its nonzero activations there, and the position chosen as the peak."""

    feature: int
    rank: int
    window_id: int
    peak: int
    """Position in the window."""
    activation: float
    """At the peak."""
    positions: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.values):
            raise ValueError(
                f"example {self.rank} of feature {self.feature} has {len(self.positions)} positions "
                f"but {len(self.values)} values"
            )
        if self.peak not in self.positions:
            raise ValueError(
                f"example {self.rank} of feature {self.feature}: the peak, position {self.peak}, has no activation; "
                f"there are values at {list(self.positions)}"
            )


@dataclass(frozen=True, kw_only=True)
class PageExample:
    """An example ready to be shown: the window, and one activation per token of it (zero where silent)."""

    window: Window
    peak: int
    activation: float
    activations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class FeaturePage:
    """Everything one feature page shows; the HTML page, its JSON twin and the terminal view are drawings of this."""

    dictionary: DictionaryRecord
    feature: FeatureRecord
    examples: tuple[PageExample, ...]
