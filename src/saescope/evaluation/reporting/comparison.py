"""Which architecture is best at what, and which differences are no more than the luck of a seed.

Dictionaries of the same architecture, sparsity and size that differ in their seed are one group. The standard deviation
within groups, pooled over all groups with two seeds or more, says how much a number moves by luck alone. The two best
architectures at one sparsity, or on the mean over the sparsities that all have, are told apart only where their means
differ by more than two standard errors of a difference made of that spread. A mean that rests on one seed never wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from saescope.evaluation.reporting.report import EvaluationReport

NUM_STANDARD_ERRORS = 2.0

RULE = (
    "A difference between two architectures counts only where it exceeds two standard errors. These come from the spread "
    "between seeds: the standard deviation within groups of one architecture and sparsity, pooled over all groups with two "
    "seeds or more. A smaller difference is within seed noise. Nothing wins on a single seed."
)
"""How winners are found, in words."""

Verdict = Literal["winner", "noise", "one seed", "alone", "no direction", "unreliable"]
"""The leader is better beyond noise; it is not; it rests on one seed; there is nothing to compare with at this sparsity;
neither way is good; or the number is not to be ranked by."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One architecture at one sparsity, over its seeds."""

    architecture: str
    setting: str
    mean: float
    num_seeds: int
    low: float
    high: float
    """The lowest and the highest seed."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The two best architectures at one sparsity, or on the mean over several."""

    settings: tuple[str, ...]
    verdict: Verdict
    leader: str = ""
    runner_up: str = ""
    means: Mapping[str, float]
    """By architecture, over ``settings``."""
    difference: float | None = None
    """Of leader and runner-up, never negative."""
    standard_error: float | None = None
    close: tuple[str, ...] = ()
    """Who can not be told from the leader."""


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """One number over all dictionaries."""

    key: str
    better: str
    unreliable: str
    groups: tuple[Group, ...]
    seed_spread: float | None
    """Pooled standard deviation between seeds; None where no group has two seeds."""
    num_spread_groups: int
    overall: Contest
    """On the mean over the sparsities that all compared architectures have."""
    by_setting: tuple[Contest, ...]
    missing: Mapping[str, str]
    """Why there is no value, by the name of the dictionary."""

    @property
    def study(self) -> str:
        return self.key.partition(".")[0]


def compare(report: EvaluationReport) -> tuple[MetricComparison, ...]:
    """Compare the architectures of a report in every number that it has, in the report's order."""
    return tuple(compare_in(report, key) for key in report.metrics())


def compare_in(report: EvaluationReport, key: str) -> MetricComparison:
    """Compare the architectures of a report in the number ``study.number``."""
    values: dict[tuple[str, str], dict[int | None, list[float]]] = {}  # by architecture and setting; by seed
    missing = {}
    for dictionary in report.dictionaries:
        number = dictionary.number(key)
        if number.value is None:
            missing[dictionary.name] = number.reason
            continue
        group = values.setdefault((dictionary.architecture, report.setting_of(dictionary)), {})
        group.setdefault(dictionary.seed, []).append(number.value)
    # several dictionaries of one seed, or of unknown seeds, are no repeats: their mean is one value
    repeats = {at: [sum(same) / len(same) for same in seeds.values()] for at, seeds in values.items()}
    spread, num_spread_groups = _pooled(repeats.values())
    order = report.settings()
    groups = tuple(
        Group(
            architecture=architecture, setting=setting, mean=sum(found) / len(found), num_seeds=len(found),
            low=min(found), high=max(found),
        )
        for (architecture, setting), found in sorted(repeats.items(), key=lambda item: order.index(item[0][1]))
    )  # fmt: skip
    better, unreliable = report.better(key), report.why_unreliable(key)
    contests = [_contest(groups, (setting,), spread, better, unreliable) for setting in order]
    return MetricComparison(
        key=key,
        better=better,
        unreliable=unreliable,
        groups=groups,
        seed_spread=spread,
        num_spread_groups=num_spread_groups,
        overall=_contest(groups, _shared(groups, order), spread, better, unreliable),
        by_setting=tuple(contest for contest in contests if contest.means),
        missing=missing,
    )


def as_rows(comparisons: Iterable[MetricComparison]) -> list[dict[str, Any]]:
    """Comparisons as plain values, for JSON and for pages."""
    return [
        {
            "study": found.study,
            **{name: value for name, value in vars(found).items() if name not in ("groups", "overall", "by_setting")},
            "groups": [vars(group) for group in found.groups],
            "overall": vars(found.overall),
            "by_setting": [vars(contest) for contest in found.by_setting],
        }
        for found in comparisons
    ]


def _pooled(groups: Iterable[list[float]]) -> tuple[float | None, int]:
    """The pooled standard deviation over groups of two or more, and how many there are."""
    squares, freedom, count = 0.0, 0, 0
    for found in groups:
        if len(found) >= 2:
            mean = sum(found) / len(found)
            squares += sum((value - mean) ** 2 for value in found)
            freedom += len(found) - 1
            count += 1
    return (sqrt(squares / freedom) if freedom else None), count


def _shared(groups: tuple[Group, ...], order: list[str]) -> tuple[str, ...]:
    """The settings at which all architectures have a value, leaving out those that share none with any other."""
    settings: dict[str, set[str]] = {}
    for group in groups:
        settings.setdefault(group.architecture, set()).add(group.setting)
    comparable = [
        own
        for architecture, own in settings.items()
        if any(own & others for other, others in settings.items() if other != architecture)
    ]
    shared = set.intersection(*comparable) if comparable else set()
    return tuple(setting for setting in order if setting in shared)


def _contest(
    groups: tuple[Group, ...], settings: tuple[str, ...], spread: float | None, better: str, unreliable: str
) -> Contest:
    """Who is best on the mean over these settings, of the architectures that have all of them."""
    of: dict[str, list[Group]] = {}
    for group in groups:
        if group.setting in settings:
            of.setdefault(group.architecture, []).append(group)
    of = {architecture: found for architecture, found in of.items() if len(found) == len(settings)}
    means = {architecture: sum(g.mean for g in found) / len(found) for architecture, found in of.items()}
    if not better or unreliable or len(means) < 2:
        verdict: Verdict = "no direction" if not better else "unreliable" if unreliable else "alone"
        return Contest(settings=settings, verdict=verdict, means=means)
    ranked = sorted(means, key=lambda architecture: means[architecture], reverse=better == "higher")
    leader, runner_up = ranked[:2]
    # variance of an architecture's mean, in units of the squared spread
    factors = {a: sum(1 / g.num_seeds for g in found) / len(found) ** 2 for a, found in of.items()}
    errors = {
        other: None if spread is None else spread * sqrt(factors[leader] + factors[other]) for other in ranked[1:]
    }
    close = tuple(o for o, error in errors.items() if error is not None and _within(means[leader], means[o], error))
    verdict = "one seed" if min(g.num_seeds for g in of[leader]) < 2 else "noise" if runner_up in close else "winner"
    return Contest(
        settings=settings,
        verdict=verdict,
        leader=leader,
        runner_up=runner_up,
        means={architecture: means[architecture] for architecture in ranked},
        difference=abs(means[leader] - means[runner_up]),
        standard_error=errors[runner_up],
        close=close,
    )


def _within(a: float, b: float, standard_error: float) -> bool:
    rounding = 1e-12 * max(abs(a), abs(b))
    return abs(a - b) <= NUM_STANDARD_ERRORS * standard_error + rounding
