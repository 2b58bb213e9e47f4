"""What the store holds, as plain values: no database, no tensors, nothing that JSON could not say.

A *dictionary* is looked at by *analyses*, one per text; an analysis has *features*; a feature has *examples*; an example
points into a *window* of text, which several features share. A window carries its decoded text, so that a page can be
drawn from these records alone. What people and language models add (explanations, tags, notes, bookmarks) belongs to
the feature of the dictionary and outlives any one analysis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

BAND_KINDS = ("quantile", "width")  # of equal share of the firings, of equal width


@dataclass(frozen=True, kw_only=True)
class DictionaryRecord:
    """One dictionary: where it reads and how large it is."""

    name: str
    model: str
    hook_point: str
    """Where it reads; the sources of a crosscoder with commas between."""
    hook_point_out: str = ""
    """Where a transcoder writes."""
    architecture: str
    d_in: int
    d_sae: int
    series: str = ""
    """The project that it belongs to."""
    details: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class AnalysisRecord:
    """One look at a dictionary: on which text, how much of it, with which settings."""

    name: str = "default"
    dataset: str
    context_size: int
    """Tokens per window."""
    num_tokens: int
    """Tokens analysed, special tokens excluded."""
    num_windows: int = 0
    created_at: str = ""
    """ISO 8601 in UTC; the store fills it in."""
    details: dict[str, Any] = field(default_factory=dict)
    """Settings and anything else worth keeping, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class TokenLogit:
    """A token of the vocabulary, and how far the feature pushes its logit."""

    token_id: int
    text: str
    logit: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of a feature's positive activations: `counts[i]` of them lie in `[edges[i], edges[i + 1])`."""

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.counts and len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"a histogram of {len(self.counts)} counts needs {len(self.counts) + 1} edges, got {len(self.edges)}"
            )


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of activation values. A window belongs to the band that holds its peak."""

    kind: str
    """One of `BAND_KINDS`."""
    number: int
    """From 0, the weakest."""
    low: float
    high: float
    """Values in `[low, high)`; the last band ends beyond the maximum."""
    num_windows: int | None
    """Windows whose peak lies in the band; None where it is not known, as with feature sets made by others."""
    num_tokens: int | None
    """Firings whose value lies in the band."""
    share: float | None
    """That number as a share of all firings; the shares of one kind add up to 1."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another feature of the dictionary, and how near it is."""

    feature: int
    value: float
    """Cosine of rows, or phi of firings."""
    num_both: int | None = None
    """Tokens on which both fire, where firings were counted."""


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
    recall: float | None = None
    """Share of the held-out tokens that the label covers on which the feature fires."""
    num_firings: int
    """Held-out firings the numbers were measured on."""


@dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """One feature in numbers: a row of the table that people sort and filter. None is what was not measured."""

    index: int
    num_firings: int
    density: float
    """Share of the analysed tokens on which it fires."""
    max_activation: float
    mean_activation: float | None = None
    """Mean over all analysed tokens, zeros included."""
    std_activation: float | None = None
    """Standard deviation over all analysed tokens, zeros included."""
    mean_positive: float | None = None
    """Mean over its firings; 0 if it never fires."""
    median_positive: float | None = None
    """Median of its firings, snapped upwards to an edge of the histogram; 0 if it never fires."""
    num_windows: int = 0
    """Windows in which it fires."""
    first_firing: int | None = None
    last_firing: int | None = None
    """The first and the last token on which it fires: number of the window times tokens per window, plus position."""
    special_share: float | None = None
    """Share of its firings, special tokens included, that fall on special tokens."""
    negative_share: float | None = None
    """Share of its firings that are negative, in signed dictionaries; the other numbers are then of sizes."""
    decoder_norm: float | None = None
    encoder_norm: float | None = None
    encoder_bias: float | None = None
    encoder_decoder_cosine: float | None = None
    logit_mean: float | None = None
    logit_std: float | None = None
    logit_skew: float | None = None
    logit_kurtosis: float | None = None
    """Moments of its direct effects over the vocabulary; the kurtosis of a normal distribution is 3."""
    map_x: float | None = None
    map_y: float | None = None
    cluster: int | None = None
    """Its place on the map of decoder rows."""
    label: Label | None = None

    def __post_init__(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"feature {self.index}: {name} is {value}, expected a finite number (0 if it never fires)"
                )

    @property
    def is_dead(self) -> bool:
        """It never fired."""
        return self.num_firings == 0

    @property
    def is_dense(self) -> bool:
        """It fires on more than one token in ten."""
        return self.density > DENSE


DENSE = 0.1
NUMBERS = tuple(f.name for f in fields(FeatureRecord) if f.name not in ("index", "label"))
LABEL_NUMBERS = ("precision", "recall", "lift")


@dataclass(frozen=True, kw_only=True)
class FeatureDetail:
    """What a feature's own page shows beside its numbers."""

    histogram: Histogram = field(default_factory=Histogram)
    bands: tuple[Band, ...] = ()
    positions: tuple[int, ...] = ()
    """Firings by position in the window, in stretches of equal length (how long is a setting of the analysis)."""
    top_logits: tuple[TokenLogit, ...] = ()
    bottom_logits: tuple[TokenLogit, ...] = ()
    logit_histogram: Histogram = field(default_factory=Histogram)
    neighbours: dict[str, tuple[Neighbour, ...]] = field(default_factory=dict)
    """By kind: "decoder", "encoder", "firing"."""
    sources: tuple[float, ...] = ()
    """Norm of the decoder row in each source of a crosscoder."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A feature as an analysis writes it."""

    record: FeatureRecord
    detail: FeatureDetail = field(default_factory=FeatureDetail)


@dataclass(frozen=True)
class Span:
    """A piece of text and the tokens it belongs to: one, or those that share a character."""

    text: str
    tokens: range


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of a document, as the model saw it."""

    id: int
    """Unique within one analysis."""
    document: str
    offset: int
    """Place of the first token in its document."""
    text: str
    token_ids: tuple[int, ...]
    token_ranges: tuple[tuple[int, int], ...]
    """Characters of `text` that each token has a part in; tokens that share a character have it in both ranges."""

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.token_ranges):
            raise ValueError(
                f"window {self.id} has {len(self.token_ids)} token ids but {len(self.token_ranges)} character ranges"
            )
        if not self._lies_in_order():
            self._say_what_is_wrong()

    def _lies_in_order(self) -> bool:
        """Whether each token begins where the one before ended, as nearly always: told without looking at each."""
        if not self.token_ranges:
            return not self.text
        starts, ends = zip(*self.token_ranges, strict=True)
        return starts == (0, *ends[:-1]) and ends[-1] == len(self.text) and sorted(ends) == list(ends) and ends[0] >= 0

    def _say_what_is_wrong(self) -> None:
        """Raises `ValueError` at the first token that is not where it may be; tokens may share characters."""
        before, length = 0, len(self.text)
        for place, (start, end) in enumerate(self.token_ranges):
            if not 0 <= start <= end <= length or start > before or end < before:
                raise ValueError(
                    f"window {self.id}: token {place} has the characters {start} to {end} of {length}, after "
                    f"one that ends at {before}; ranges lie in order and leave nothing out"
                )
            before = end
        if before != length:
            raise ValueError(f"window {self.id}: its tokens end at character {before} of {length}")

    @classmethod
    def of_texts(cls, *, id: int, document: str, offset: int, token_ids: Any, token_texts: Any) -> Window:
        """A window whose tokens share no character, from one text per token."""
        ends, ranges = 0, []
        for text in token_texts:
            ranges.append((ends, ends + len(text)))
            ends += len(text)
        return cls(
            id=id,
            document=document,
            offset=offset,
            text="".join(token_texts),
            token_ids=tuple(token_ids),
            token_ranges=tuple(ranges),
        )

    @property
    def token_texts(self) -> tuple[str, ...]:
        """The text of each token by itself: all characters that it has a part in."""
        return tuple(self.text[start:end] for start, end in self.token_ranges)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The text in pieces that do not overlap, in order: what a page draws as one."""
        spans, first, covered = [], 0, 0
        for place, (start, end) in enumerate(self.token_ranges):
            # a token that takes nothing of its own, or begins inside the one before, belongs to that piece
            if place > first and start >= covered and end > start:
                spans.append((first, place))
                first = place
            covered = max(covered, end)
        if self.token_ids:
            spans.append((first, len(self.token_ids)))
        return tuple(
            Span(self.text[self.token_ranges[first][0] : self.token_ranges[last - 1][1]], range(first, last))
            for first, last in spans
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A feature in one window: its activations there (those other than 0), and why the window was kept.

    One window can have several roles: among the strongest, drawn for a quantile band, drawn for a band of equal width.
    A *near miss* is a window in which the feature is silent and its nearest neighbour fires (at `peak`); a *silent* one
    was drawn from all windows in which it does not fire.
    """

    feature: int
    window_id: int
    peak: int
    """Position in the window."""
    activation: float
    """At the peak; 0 in windows in which it is silent."""
    positions: tuple[int, ...]
    values: tuple[float, ...]
    num_copies: int = 1
    """Windows of the same role with the same words around the peak; one of them was kept."""
    top_rank: int | None = None
    quantile_band: int | None = None
    width_band: int | None = None
    negative: Literal["near_miss", "silent"] | None = None

    def __post_init__(self) -> None:
        what = f"the example of feature {self.feature} in window {self.window_id}"
        if len(self.positions) != len(self.values):
            raise ValueError(f"{what} has {len(self.positions)} positions but {len(self.values)} values")
        if self.negative is not None:
            if self.positions or self.activation:
                raise ValueError(f"{what} is a {self.negative}, so it has no activations; got {list(self.values)}")
        elif self.peak not in self.positions:
            raise ValueError(
                f"{what}: the peak, position {self.peak}, has no activation; there are values at {list(self.positions)}"
            )
        if (self.top_rank, self.quantile_band, self.width_band, self.negative) == (None, None, None, None):
            raise ValueError(f"{what} has no role: give it a rank, a band or what it is a negative of")


@dataclass(frozen=True, kw_only=True)
class PageExample:
    """An example ready to be shown: the window, and one activation per token of it (zero where silent)."""

    window: Window
    peak: int
    activation: float
    activations: tuple[float, ...]
    num_copies: int = 1
    top_rank: int | None = None
    quantile_band: int | None = None
    width_band: int | None = None
    negative: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a person or a language model says that a feature means, and how well that did in a test."""

    text: str
    method: str = "human"
    author: str = ""
    """A person, or the model that wrote it."""
    score: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    id: int | None = None
    """Given by the store."""
    created_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What somebody wrote down about a feature."""

    text: str
    author: str = ""
    id: int | None = None
    created_at: str = ""


@dataclass(frozen=True, kw_only=True)
class FeaturePage:
    """Everything one feature page shows; the HTML page, its JSON twin and the terminal view are drawings of this."""

    dictionary: DictionaryRecord
    analysis: AnalysisRecord
    feature: FeatureRecord
    detail: FeatureDetail
    all_examples: tuple[PageExample, ...]
    """In the order of the store: the strongest first."""
    explanations: tuple[Explanation, ...] = ()
    tags: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    is_bookmarked: bool = False
    previous: int | None = None
    following: int | None = None
    """The analysed features before and after it, by index."""

    @property
    def examples(self) -> tuple[PageExample, ...]:
        """The windows in which it peaks highest, strongest first."""
        top = [example for example in self.all_examples if example.top_rank is not None]
        return tuple(sorted(top, key=lambda example: example.top_rank or 0))

    def in_band(self, kind: str, number: int) -> tuple[PageExample, ...]:
        """The sample of one band, strongest first."""
        if kind not in BAND_KINDS:
            raise ValueError(f"bands are of the kinds {' and '.join(BAND_KINDS)}, not {kind!r}")
        drawn = [example for example in self.all_examples if getattr(example, f"{kind}_band") == number]
        return tuple(sorted(drawn, key=lambda example: (-abs(example.activation), example.window.id)))

    def negatives(self, kind: str) -> tuple[PageExample, ...]:
        """Windows in which it is silent: a "near_miss" or a "silent" one."""
        return tuple(example for example in self.all_examples if example.negative == kind)


@dataclass(frozen=True, kw_only=True)
class FeatureMarks:
    """What people and language models added to a feature, as short as a row of a list has room for."""

    tags: tuple[str, ...] = ()
    is_bookmarked: bool = False
    explanation: Explanation | None = None
    """The one with the best score; where none has a score, the last."""


@dataclass(frozen=True, kw_only=True)
class FeatureList:
    """One page of a sorted list, and where the next one begins."""

    features: tuple[FeatureRecord, ...]
    next: str | None = None
    """Give it as `after`; None at the end."""
    total: int | None = None
    """Features of the whole list, where that was asked for."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One number of an evaluation."""

    study: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """Ends of its interval."""
    variant: str = ""
    code_version: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    created_at: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """How a dictionary came about."""

    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    created_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An analysis at a glance. Dead, dense, labelled and explained features are counted among those analysed."""

    dictionary: DictionaryRecord
    analysis: AnalysisRecord
    num_features: int
    num_dead: int
    num_dense: int
    num_labelled: int
    num_explained: int
    density_quantiles: tuple[tuple[float, float], ...]
    """Pairs (share, value) over the features that fire; between two of them the quantile is interpolated."""
    max_quantiles: tuple[tuple[float, float], ...]
    """The same of the highest activation."""
    log_density: Histogram
    """Features that fire by log10 of their density, four bins to a decade."""
    evaluations: tuple[EvaluationResult, ...] = ()
    runs: tuple[TrainingRun, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnalysisInfo:
    """An analysis and how much of it the store holds."""

    analysis: AnalysisRecord
    num_features: int
    num_windows: int
    num_examples: int


@dataclass(frozen=True, kw_only=True)
class DictionaryInfo:
    """A dictionary with its analyses, in the order in which they were written, and how much was added to it."""

    dictionary: DictionaryRecord
    analyses: tuple[AnalysisInfo, ...]
    num_explanations: int
    num_tags: int
    num_bookmarks: int
    num_notes: int
    num_evaluations: int
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store is and what it holds."""

    place: str
    """The file, or the address of the server without its password."""
    database: str
    """"SQLite 3.45.1" or the like."""
    num_bytes: int
    dictionaries: tuple[DictionaryInfo, ...]
