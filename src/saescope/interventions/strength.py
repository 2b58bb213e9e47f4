"""The strength that moves the model by a wanted amount: KL(steered || plain) per generated token.

A stronger change mostly moves the model further, but not always, and never smoothly: the steered text is written anew for
every strength, and where another token is drawn the KL jumps. So nothing is assumed but that some strength is too weak and
another too strong. The range is grown by doubling (or shrunk by halving) from where the search starts; then the gap
between two neighbours with the wanted KL between theirs is halved, the weakest such gap first. Where that ends at a jump,
the widest gaps are halved in the hope for another crossing. All that was tried is in the result, and where the wanted KL is
not met, why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Unpack

from saescope.interventions.changes import Change
from saescope.interventions.generation import HowToWrite, generate
from saescope.interventions.generation_scores import mean_of_tokens, score
from saescope.interventions.generation_text import Prompts

if TYPE_CHECKING:
    from saescope.models import LanguageModel


_SMALLEST_SHARE = 1e-5  # of the first strength: weaker ones are as good as none


@dataclass(frozen=True)
class Tried:
    """A strength and what it did."""

    strength: float
    kl: float
    """Nats per generated token; infinite where the strength was refused."""
    refused: str = ""
    """Why, e.g. that activations or logits are no numbers any more."""


@dataclass(frozen=True)
class FoundStrength:
    """What a search for a strength came to."""

    strength: float
    """That meets the wanted KL; if none does, the one that comes nearest from below, or has the smallest KL."""
    kl: float
    """KL(steered || plain) in nats per generated token at that strength."""
    wanted_kl: float
    tolerance: float
    """A share of the wanted KL."""
    tried: tuple[Tried, ...]
    """In the order in which they were tried."""
    met: bool
    reason: str
    """Where the wanted KL is not met, why; otherwise empty."""

    @property
    def is_monotone(self) -> bool:
        """Whether of those tried, a stronger one never had a smaller KL."""
        kls = [each.kl for each in sorted(self.tried, key=lambda each: abs(each.strength))]
        return all(weaker <= stronger for weaker, stronger in pairwise(kls))


def strength_for_kl(
    model: LanguageModel,
    prompts: Prompts,
    changes_of: Callable[[float], Sequence[Change] | Change],
    kl: float = 1.0,
    *,
    tolerance: float = 0.05,
    start: float = 1.0,
    max_strength: float = 1e4,
    max_trials: int = 40,
    **how: Unpack[HowToWrite],
) -> FoundStrength:
    """Find a strength whose texts have a wanted KL(steered || plain), in nats per generated token.

    With the same arguments, ``side_by_side`` of what was found gives that KL as its ``kl_per_token``.

    Args:
        changes_of: the changes at a strength, e.g. ``lambda strength: Add(site, 12, strength)``.
        tolerance: how far the KL may be off, as a share of the wanted one.
        start: the first strength; its sign is kept, so that a negative one searches negative strengths.
        max_strength: no strength beyond this is tried, of either sign.
        max_trials: strengths tried at most; each costs one generation and two passes over the texts.
        how: as in ``generate``.

    Raises:
        ValueError: a wanted KL, tolerance, start or bound that means nothing; whatever ``generate`` refuses at the first
            strength. Later strengths that are refused count as too strong.
    """
    _check(kl, tolerance, start, max_strength, max_trials)

    def kl_at(strength: float) -> float:
        changes = changes_of(strength)
        written = generate(model, prompts, changes=changes, **how)
        return mean_of_tokens(score(model, written.prompt_ids, written.new_ids, changes).kl)

    return _search(kl_at, kl, tolerance, start, max_strength, max_trials)


def _search(
    kl_at: Callable[[float], float], wanted: float, tolerance: float, start: float, max_strength: float, max_trials: int
) -> FoundStrength:
    tried: list[Tried] = []

    def attempt(strength: float) -> Tried:
        try:
            tried.append(Tried(strength, kl_at(strength)))
        except ValueError as error:
            if not tried:  # nothing to do with its size, as far as anybody knows
                raise
            tried.append(Tried(strength, math.inf, str(error)))
        return tried[-1]

    def met(each: Tried) -> bool:
        return abs(each.kl - wanted) <= tolerance * wanted

    def result(reason: str = "") -> FoundStrength:
        hits = [each for each in tried if met(each)]
        below = [each for each in tried if each.kl < wanted]
        if hits:
            chosen = hits[-1]
        elif below:
            chosen = max(below, key=lambda each: (each.kl, abs(each.strength)))
        else:
            chosen = min(tried, key=lambda each: each.kl)
        return FoundStrength(
            chosen.strength, chosen.kl, wanted, tolerance, tuple(tried), bool(hits), "" if hits else reason
        )

    weak = strong = attempt(start)
    while not met(tried[-1]) and strong.kl < wanted:  # too weak: grow
        if abs(strong.strength) >= max_strength or len(tried) >= max_trials:
            largest = max(tried, key=lambda each: each.kl)
            return result(
                f"a KL of {wanted:g} was not reached up to strength {strong.strength:g}: the largest is {largest.kl:.4g}, "
                f"at strength {largest.strength:g}"
            )
        weak, strong = strong, attempt(math.copysign(min(2 * abs(strong.strength), max_strength), start))
    while not met(tried[-1]) and weak.kl > wanted:  # too strong: shrink
        if len(tried) >= max_trials or abs(weak.strength) < _SMALLEST_SHARE * abs(start):
            return result(
                f"even strength {weak.strength:g} has a KL of {weak.kl:.4g}, more than the {wanted:g} wanted: the changes "
                "move the model also where their strength is nearly 0"
            )
        weak, strong = attempt(weak.strength / 2), weak
    while not met(tried[-1]):
        gap = _next_gap(tried, wanted, between=(weak, strong), smallest=tolerance / 100)
        if gap is None or len(tried) >= max_trials:
            return result(_jump(tried, wanted))
        attempt((gap[0].strength + gap[1].strength) / 2)
    return result()


def _next_gap(
    tried: Sequence[Tried], wanted: float, between: tuple[Tried, Tried], smallest: float
) -> tuple[Tried, Tried] | None:
    """Neighbours to look between next: those with the wanted KL between theirs, or else the furthest from each other.

    Args:
        between: what is weaker or stronger than these is left alone.
        smallest: gap between two strengths that are told apart, as a share of the stronger.
    """
    low, high = sorted(abs(each.strength) for each in between)
    ordered = sorted((each for each in tried if low <= abs(each.strength) <= high), key=lambda each: abs(each.strength))
    open_gaps = [
        (one, other)
        for one, other in pairwise(ordered)
        if abs(other.strength - one.strength) > smallest * abs(other.strength)
    ]
    crossing = [(one, other) for one, other in open_gaps if (one.kl < wanted) != (other.kl < wanted)]
    if crossing:
        return crossing[0]
    return max(open_gaps, key=lambda gap: abs(gap[1].strength - gap[0].strength), default=None)


def _jump(tried: Sequence[Tried], wanted: float) -> str:
    below = max((each for each in tried if each.kl < wanted), key=lambda each: each.kl)
    above = min((each for each in tried if each.kl > wanted), key=lambda each: each.kl)
    at_above = above.refused or f"{above.kl:.4g}"
    return (
        f"no strength with a KL of {wanted:g} was found: the nearest are {below.kl:.4g} at strength {below.strength:.6g} "
        f"and {at_above} at {above.strength:.6g}. It jumps where another token is written; with more prompts or new tokens "
        "the jumps are smaller"
    )


def _check(kl: float, tolerance: float, start: float, max_strength: float, max_trials: int) -> None:
    if not (kl > 0 and math.isfinite(kl)):
        raise ValueError(f"the wanted KL is above 0, in nats per generated token, not {kl}")
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance is a share of the wanted KL, above 0 and below 1, not {tolerance}")
    if not (math.isfinite(start) and start != 0):
        raise ValueError(f"the search starts from a finite strength other than 0, not {start}")
    if not abs(start) <= max_strength < math.inf:
        raise ValueError(f"max_strength is finite and at least the start's {abs(start):g}, not {max_strength}")
    if max_trials < 1:
        raise ValueError(f"max_trials is at least 1, not {max_trials}")
