"""What two features, or two dictionaries, have in common and where they differ. Records in, plain values out; no store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saescope.store.listing import value_of
from saescope.store.records import EvaluationResult, FeaturePage, Histogram, PageExample, Summary
from saescope.web import columns
from saescope.web.bins import trimmed
from saescope.web.drawing import Chart
from saescope.web.numbers import decimal, percent, whole

NEIGHBOUR_KINDS = {
    "decoder": "cosine of decoder rows",
    "encoder": "cosine of encoder rows",
    "firing": "phi of firings",
}
NUM_LOGITS = 10  # of each list that are shown
_PLACES = (
    "index",
    "map_x",
    "map_y",
    "cluster",
    "first_firing",
    "last_firing",
)  # no amounts: their difference says nothing
_TICKS = 4
_LEAST_RATIO = 4.0  # of the ends of an axis from which on it is logarithmic


@dataclass(frozen=True, kw_only=True)
class NumberRow:
    """A number of both, and how much more b has; None where one has none, or it is no amount."""

    key: str
    words: str
    kind: str
    """"percent", "whole" or "decimal"."""
    a: float | None
    b: float | None
    difference: float | None

    def written(self, which: str) -> str:
        """The number of "a" or "b", or their "difference" with its sign."""
        value = getattr(self, which)
        if which != "difference" or value is None:
            return columns.written(value, self.kind)
        return _signed(value, self.kind)


def _signed(value: float, kind: str) -> str:
    if kind == "percent":
        text = (
            f"{decimal(100 * value, 3)}\N{NO-BREAK SPACE}pp"  # percentage points: "%" would read as a share of a share
        )
    else:
        text = whole(int(value)) if kind == "whole" else decimal(value, 3)
    return f"+{text}" if value > 0 else text


def feature_numbers(a: FeaturePage, b: FeaturePage) -> tuple[NumberRow, ...]:
    """All numbers that at least one of them has."""
    rows = []
    for key, column in columns.NUMBERS.items():
        ours, theirs = value_of(a.feature, key), value_of(b.feature, key)
        if key in _PLACES or (ours is None and theirs is None):
            continue
        both = ours is not None and theirs is not None
        difference = theirs - ours if both else None  # type: ignore[operator]
        rows.append(NumberRow(key=key, words=column.words, kind=column.kind, a=ours, b=theirs, difference=difference))
    return tuple(rows)


def shared_tokens(a: FeaturePage, b: FeaturePage) -> dict[str, frozenset[int | str]]:
    """Tokens among the first `NUM_LOGITS` of both, "top" and "bottom": by id within one model, else by text."""
    by = token_key(a, b)

    def tokens(page: FeaturePage, kind: str) -> set[int | str]:
        return {getattr(token, by) for token in getattr(page.detail, f"{kind}_logits")[:NUM_LOGITS]}

    return {kind: frozenset(tokens(a, kind) & tokens(b, kind)) for kind in ("top", "bottom")}


def token_key(a: FeaturePage, b: FeaturePage) -> str:
    """By which field tokens of both are told to be the same."""
    return "token_id" if a.dictionary.model == b.dictionary.model else "text"


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """That one stands in the other's list of neighbours."""

    kind: str
    value: float
    num_both: int | None
    listed_by: tuple[str, ...]
    """"a", "b" or both."""


def nearness(a: FeaturePage, b: FeaturePage) -> tuple[Nearness, ...]:
    """What the neighbour lists of two features of one dictionary say about each other."""
    if a.dictionary.name != b.dictionary.name or a.feature.index == b.feature.index:
        return ()
    found = []
    for kind in NEIGHBOUR_KINDS:
        told = {
            side: next((n for n in page.detail.neighbours.get(kind, ()) if n.feature == other.feature.index), None)
            for side, page, other in (("a", a, b), ("b", b, a))
        }
        near = told["a"] or told["b"]
        if near is not None:
            sides = tuple(side for side, neighbour in told.items() if neighbour is not None)
            found.append(Nearness(kind=kind, value=near.value, num_both=near.num_both, listed_by=sides))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SharedWindow:
    """A window that is an example of both, and in which both fire."""

    document: str
    offset: int
    a: PageExample
    b: PageExample
    num_both: int | None
    """Tokens on which both fire; None where the two were cut into different tokens."""


def shared_windows(a: FeaturePage, b: FeaturePage) -> tuple[SharedWindow, ...]:
    """Windows of the same place in the same document.

    First those in which both fire on one token, and of these those in which both are strong for what they are.
    """
    ours, theirs = _firing_windows(a), _firing_windows(b)
    found = [
        SharedWindow(
            document=document, offset=offset, a=ours[place], b=theirs[place], num_both=_both(ours[place], theirs[place])
        )
        for place in ours
        if place in theirs
        for document, offset in (place,)
    ]

    def strength(window: SharedWindow) -> float:
        shares = [
            abs(example.activation) / (page.feature.max_activation or 1.0)
            for example, page in ((window.a, a), (window.b, b))
        ]
        return min(shares)

    return tuple(sorted(found, key=lambda w: (not w.num_both, -strength(w), w.document, w.offset)))


def _firing_windows(page: FeaturePage) -> dict[tuple[str, int], PageExample]:
    found: dict[tuple[str, int], PageExample] = {}
    for example in page.all_examples:
        if any(example.activations):
            found.setdefault((example.window.document, example.window.offset), example)
    return found


def _both(a: PageExample, b: PageExample) -> int | None:
    if a.window.token_ids != b.window.token_ids:
        return None
    return sum(1 for ours, theirs in zip(a.activations, b.activations, strict=True) if ours and theirs)


def charts_on_one_axis(histograms: Sequence[Histogram]) -> tuple[Chart | None, ...]:
    """Bars of several histograms whose places can be compared; None for one in which nothing was counted.

    Values stand by their logarithm where all are positive and far enough apart, else as they are. Heights are logarithmic
    in the counts, full height being the highest count of all.
    """
    filled = [trimmed(histogram) for histogram in histograms]
    edges = [edge for histogram in filled for edge in histogram.edges]
    if not edges:
        return tuple(None for _ in filled)
    low, high = min(edges), max(edges)
    is_log = low > 0 and high / low > _LEAST_RATIO

    def place(value: float) -> float:
        if is_log:
            return 100 * math.log(value / low) / math.log(high / low)
        return 100 * (value - low) / (high - low)

    def value(share: float) -> float:
        return low * (high / low) ** share if is_log else low + share * (high - low)

    ticks = tuple((100 * at / _TICKS, value(at / _TICKS)) for at in range(_TICKS + 1))
    highest = max(count for histogram in filled for count in histogram.counts)
    height = Chart(bars=(), ticks=(), highest=0).height
    charts: list[Chart | None] = []
    for histogram in filled:
        if not histogram.counts:
            charts.append(None)
            continue
        bars = []
        for at, count in enumerate(histogram.counts):
            if count:
                left, right = place(histogram.edges[at]), place(histogram.edges[at + 1])
                tall = height * math.log1p(count) / math.log1p(highest)
                bars.append((left, height - tall, (right - left) * 0.86, tall))
        charts.append(Chart(bars=tuple(bars), ticks=ticks, highest=max(histogram.counts)))
    return tuple(charts)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """A number that was measured on both."""

    study: str
    metric: str
    variant: str
    a: EvaluationResult
    b: EvaluationResult

    @property
    def difference(self) -> float | None:
        """How much more b has."""
        if self.a.value is None or self.b.value is None:
            return None
        return self.b.value - self.a.value

    @property
    def are_apart(self) -> bool | None:
        """Whether the intervals have no value in common; None where one has no interval."""
        ends = (self.a.low, self.a.high, self.b.low, self.b.high)
        if None in ends:
            return None
        return self.a.high < self.b.low or self.b.high < self.a.low  # type: ignore[operator]

    @property
    def signed(self) -> str:
        """The difference with its sign."""
        return columns.EMPTY if self.difference is None else _signed(self.difference, "decimal")


def shared_evaluations(a: Sequence[EvaluationResult], b: Sequence[EvaluationResult]) -> tuple[EvaluationRow, ...]:
    """Numbers of the same study, metric and variant; where one was measured several times, the last one."""
    ours, theirs = ({(r.study, r.metric, r.variant): r for r in sorted(each, key=_age)} for each in (a, b))
    return tuple(
        EvaluationRow(study=key[0], metric=key[1], variant=key[2], a=ours[key], b=theirs[key])
        for key in sorted(ours)
        if key in theirs
    )


def _age(result: EvaluationResult) -> str:
    return result.created_at


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something known of both dictionaries, in words."""

    words: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        return self.a != self.b


def facts(a: Summary, b: Summary) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """How both were made and analysed, and their numbers at a glance."""

    def rows(*named: tuple[str, Any]) -> tuple[Fact, ...]:
        told = ((words, str(get(a)), str(get(b))) for words, get in named)
        return tuple(Fact(words=words, a=ours, b=theirs) for words, ours, theirs in told if ours or theirs)

    def quantile(summary: Summary, pairs: str, share: float) -> str:
        found = dict(getattr(summary, pairs)).get(share)
        if found is None:
            return columns.EMPTY
        return percent(found) if pairs == "density_quantiles" else decimal(found, 3)

    def of_all(summary: Summary, count: int) -> str:
        return f"{whole(count)} ({percent(count / summary.num_features)})" if summary.num_features else whole(count)

    made = rows(
        ("model", lambda s: s.dictionary.model),
        ("reads", lambda s: s.dictionary.hook_point),
        ("writes", lambda s: s.dictionary.hook_point_out),
        ("architecture", lambda s: s.dictionary.architecture),
        ("width of rows", lambda s: whole(s.dictionary.d_in)),
        ("features", lambda s: whole(s.dictionary.d_sae)),
        ("series", lambda s: s.dictionary.series),
        ("text", lambda s: s.analysis.dataset),
        ("tokens analysed", lambda s: whole(s.analysis.num_tokens)),
        ("tokens in a window", lambda s: whole(s.analysis.context_size)),
    )
    numbers = rows(
        ("features analysed", lambda s: whole(s.num_features)),
        ("never fire", lambda s: of_all(s, s.num_dead)),
        ("fire on more than a tenth of tokens", lambda s: of_all(s, s.num_dense)),
        ("with a label", lambda s: of_all(s, s.num_labelled)),
        ("with an explanation", lambda s: of_all(s, s.num_explained)),
        ("median density", lambda s: quantile(s, "density_quantiles", 0.5)),
        ("density, 95th percentile", lambda s: quantile(s, "density_quantiles", 0.95)),
        ("median of the strongest activations", lambda s: quantile(s, "max_quantiles", 0.5)),
    )
    return made, numbers
