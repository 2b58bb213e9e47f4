"""Can a study be trusted? It should rank a dictionary that knows the truth above one that knows nothing.

Every study is run on the oracle and on the random dictionary of a few synthetic worlds (``world.py``). A number that says
which way is good must be better for the oracle; one that is not is called unreliable wherever it is printed (arXiv
2605.18229 found published metrics that rank a perfect dictionary below trained ones). A second question is whether a number
comes out the same with another seed: :func:`reseed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.results import Better, StudyResult
from saescope.evaluation.world import World, world

__all__ = [
    "Control",
    "Reseeded",
    "Verdict",
    "World",
    "coefficient_of_variation",
    "controls",
    "marks",
    "reseed",
    "verdict",
    "world",
]

Verdict = Literal["told apart", "not told apart", "upside down"]
TOLERANCE = 1e-6  # of the larger of two values: below it they are the same


@dataclass(frozen=True, kw_only=True)
class Control:
    """One number of a study on the two dictionaries, means over worlds."""

    study: str
    number: str
    better: Better
    oracle: float | None
    random: float | None
    verdict: Verdict
    reason: str = ""
    """Why there is no value, or no verdict."""


def controls(
    study: Callable[[Dictionary, World], StudyResult],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    make: Callable[[int], World] = world,
) -> list[Control]:
    """Run a study on the oracle and on the random dictionary of a world for each seed.

    Only numbers that have a direction are judged. "told apart": the oracle is better in every world. "upside down": the
    random dictionary is better on the mean. "not told apart": anything else, such as a tie, or no value for either.

    Args:
        study: for example ``lambda dictionary, w: tpp(dictionary, w.sample, w.concepts)``. A ValueError is a study that
            failed, and stands in the reason.
        make: from a seed to a world.
    """
    if not seeds:
        raise ValueError("controls need at least one seed")
    pairs = []
    for seed in seeds:
        place = make(seed)
        pairs.append((_result(study, place.oracle, place), _result(study, place.random, place)))
    names: dict[str, Better] = {}
    for result in (result for pair in pairs for result in pair):
        names |= {number.name: number.better for number in result.numbers if number.better}
    title = next((result.study for pair in pairs for result in pair if result.study), "")
    failures = list(dict.fromkeys(result.failure for pair in pairs for result in pair if result.failure))
    if not names:
        reason = failures[0] if failures else "no number of the study says which way is good"
        return [
            Control(
                study=title, number="", better="", oracle=None, random=None, verdict="not told apart", reason=reason
            )
        ]
    found = []
    for name, better in names.items():
        values = [[_value(result, name) for result in pair] for pair in pairs]
        known = [(oracle, random) for oracle, random in values if oracle is not None and random is not None]
        if len(known) < len(pairs):
            reasons = [_reason(result, name) for pair in pairs for result in pair]
            found.append(
                Control(
                    study=title,
                    number=name,
                    better=better,
                    verdict="not told apart",
                    oracle=_mean(oracle for oracle, _ in values),
                    random=_mean(random for _, random in values),
                    reason=next(filter(None, reasons), "no value"),
                )
            )
            continue
        oracle, random = (float(np.mean(side)) for side in zip(*known, strict=True))
        found.append(
            Control(
                study=title, number=name, better=better, oracle=oracle, random=random, verdict=verdict(known, better)
            )
        )
    return found


def verdict(pairs: Sequence[tuple[float, float]], better: Better) -> Verdict:
    """What (oracle, random) values of several worlds say of a number."""
    gains = [_gain(oracle, random, better) for oracle, random in pairs]
    if all(gain > 0 for gain in gains):
        return "told apart"
    oracle, random = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    return "upside down" if _gain(oracle, random, better) < 0 else "not told apart"


def marks(found: Iterable[Control]) -> dict[str, str]:
    """What to print beside the numbers that are not to be trusted, by ``study.number``; the others are not in it."""
    words = {}
    for control in found:
        if control.verdict == "told apart":
            continue
        if control.verdict == "upside down":
            why = f"ranks a random dictionary ({control.random:.3g}) above the truth ({control.oracle:.3g})"
        elif control.reason:
            why = f"could not be compared on known truth: {control.reason}"
        else:
            why = f"does not tell a random dictionary ({control.random:.3g}) from the truth ({control.oracle:.3g})"
        words[f"{control.study}.{control.number}"] = f"unreliable: {why}"
    return words


@dataclass(frozen=True, kw_only=True)
class Reseeded:
    """A number over several seeds."""

    values: tuple[float | None, ...]  # one for each seed
    mean: float | None
    sd: float | None  # of n - 1; None for fewer than two values
    cv: float | None  # sd over |mean|


def reseed(study: Callable[[int], StudyResult], seeds: Sequence[int] = (0, 1, 2)) -> Mapping[str, Reseeded]:
    """Run a study once for each seed; how far each of its numbers scatters, over the seeds that have a value."""
    if not seeds:
        raise ValueError("reseed needs at least one seed")
    results = [study(seed) for seed in seeds]
    names = dict.fromkeys(number.name for result in results for number in result.numbers)
    found = {}
    for name in names:
        values = tuple(_value(result, name) for result in results)
        known = [value for value in values if value is not None]
        found[name] = Reseeded(
            values=values,
            mean=_mean(known),
            sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
            cv=coefficient_of_variation(known),
        )
    return found


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Standard deviation (of n - 1) over |mean|; None for fewer than two values, or a mean of 0."""
    if len(values) < 2:
        return None
    mean = abs(float(np.mean(values)))
    return float(np.std(values, ddof=1)) / mean if mean else None


def _result(study: Callable[[Dictionary, World], StudyResult], dictionary: Dictionary, place: World) -> StudyResult:
    try:
        return study(dictionary, place)
    except ValueError as error:
        return StudyResult.failed("", error)


def _gain(oracle: float, random: float, better: Better) -> float:
    """How far the oracle is ahead; 0 for a tie."""
    gain = oracle - random if better == "higher" else random - oracle
    return gain if abs(gain) > TOLERANCE * max(abs(oracle), abs(random)) else 0.0


def _value(result: StudyResult, name: str) -> float | None:
    return next((number.value for number in result.numbers if number.name == name), None)


def _reason(result: StudyResult, name: str) -> str:
    return result.failure or next((number.reason for number in result.numbers if number.name == name), "")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
