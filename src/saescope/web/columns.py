"""Numbers of features in words: what each is called, how it is written, and which of them a list shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saescope.store import FeatureRecord
from saescope.store.filters import SCORE
from saescope.store.listing import value_of
from saescope.web.numbers import decimal, percent, whole

EMPTY = "\N{EN DASH}"
_LEAST_DENSITY = -6.0  # log10 at which the bar of the density is empty


@dataclass(frozen=True)
class Column:
    """A number of a feature: its key in the store, its name, and its kind: "percent", "whole" or "decimal"."""

    key: str
    words: str
    kind: str = "decimal"


NUMBERS = {
    column.key: column
    for column in (
        Column("index", "Index", "whole"),
        Column("density", "Density", "percent"),
        Column("max_activation", "Max"),
        Column("mean_positive", "Mean of firings"),
        Column("logit_kurtosis", "Logit kurtosis"),
        Column("precision", "Precision", "percent"),
        Column("lift", "Lift"),
        Column("recall", "Recall", "percent"),
        Column("num_firings", "Firings", "whole"),
        Column("median_positive", "Median of firings"),
        Column("mean_activation", "Mean over all tokens"),
        Column("std_activation", "Std over all tokens"),
        Column("num_windows", "Windows it fires in", "whole"),
        Column("first_firing", "First firing", "whole"),
        Column("last_firing", "Last firing", "whole"),
        Column("special_share", "On special tokens", "percent"),
        Column("negative_share", "Negative", "percent"),
        Column("decoder_norm", "Decoder norm"),
        Column("encoder_norm", "Encoder norm"),
        Column("encoder_bias", "Encoder bias"),
        Column("encoder_decoder_cosine", "Encoder · decoder"),
        Column("logit_mean", "Mean logit effect"),
        Column("logit_std", "Std of logit effects"),
        Column("logit_skew", "Logit skew"),
        Column("map_x", "Map, x"),
        Column("map_y", "Map, y"),
        Column("cluster", "Cluster", "whole"),
    )
}
"""All that a list can be sorted by."""

BOUNDED = {**NUMBERS, SCORE: Column(SCORE, "Explanation score")}
"""All that can have bounds."""

SHOWN = tuple(
    NUMBERS[key] for key in ("density", "max_activation", "mean_positive", "logit_kurtosis", "precision", "lift")
)
"""Columns of numbers that a list always has."""

USUAL = ("density", "max_activation", "logit_kurtosis", "precision", "lift", SCORE)
"""Keys whose bounds a list always offers."""

NEARNESS = Column("similarity", "Nearness")
"""How near an explanation is to the search, where the list is sorted by that."""


def cell(record: FeatureRecord, column: Column) -> str:
    """A number as it stands in a column."""
    return written(value_of(record, column.key), column.kind)


def written(value: float | None, kind: str) -> str:
    """A number of a kind; a dash where there is none."""
    if value is None:
        return EMPTY
    if kind == "percent":
        return percent(value)
    return whole(int(value)) if kind == "whole" else decimal(value, 3, trim=False)


def density_bar(density: float) -> float:
    """How much of its place the bar of a density fills, in percent: by its logarithm, from one in a million to all."""
    if density <= 0:
        return 0.0
    return round(100 * min(1.0, max(0.0, 1 - math.log10(density) / _LEAST_DENSITY)), 1)
