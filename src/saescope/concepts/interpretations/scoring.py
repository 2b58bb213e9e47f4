"""Whether a label fits: can a reader who knows only the label tell where the concept is active?

Detection (Paulo et al. 2024, "Automatically Interpreting Millions of Features", arXiv 2410.13928): examples with and without
the concept are shown in one list, and the judge names those that the label fits. With P examples where the concept is active
and N where it is not,

    balanced accuracy = (named of P / P + not named of N / N) / 2

which is 0.5 for a judge that guesses, whatever it guesses.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """How well a label was recognised on held-out examples."""

    num_active: int
    """Examples where the concept is active."""
    num_silent: int
    """Examples where it is not."""
    num_found: int
    """Active ones that the judge named."""
    num_mistaken: int
    """Silent ones that it named too."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the shares judged rightly among active and among silent examples; 0.5 is chance."""
        return (self.num_found / self.num_active + 1 - self.num_mistaken / self.num_silent) / 2


def scored(active: Collection[bool], named: Collection[int]) -> LabelScore:
    """The score of the examples' truth and the places that were named."""
    num_active = sum(active)
    num_found = sum(is_active and place in named for place, is_active in enumerate(active))
    return LabelScore(
        num_active=num_active,
        num_silent=len(active) - num_active,
        num_found=num_found,
        num_mistaken=len(named) - num_found,
    )
