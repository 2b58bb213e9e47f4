"""Which features fire on a token: independent of each other, or exactly m at a time.

A rule of firing draws a boolean matrix, tokens by features; how strongly a feature fires is drawn elsewhere. Rules in which
features depend on each other are in :mod:`~saescope.activations.synthetic.dependence`.

B  tokens, n  features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Firing(ABC):
    """A rule that says which features fire.

    Attributes:
        num_features: n.
        probabilities: share of tokens on which each feature fires, ``[n]``, float64; None where no closed form is known.
        true_l0: mean number of features that fire on a token; None where no closed form is known.
    """

    num_features: int
    probabilities: Tensor | None
    true_l0: float | None

    @abstractmethod
    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        """Draw ``num_tokens`` independent tokens: ``[B, n]``, bool."""


class Bernoulli(Firing):
    """Each feature fires independently of all others.

    Args:
        probabilities: of each feature, ``[n]``, from 0 to 1.
    """

    def __init__(self, probabilities: Tensor | Sequence[float]) -> None:
        self.probabilities = checked_probabilities(probabilities)
        self.num_features = len(self.probabilities)
        self.true_l0 = float(self.probabilities.sum())
        self._below = self.probabilities.float()

    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num_tokens, self.num_features, generator=generator) < self._below


class ExactSupports(Firing):
    """Exactly ``num_active`` features fire, drawn one after the other without replacement.

    Each draw takes one of the features left with probability proportional to its weight. That is a race: with a clock
    E_i / w_i per feature, E_i standard exponential, the m clocks that ring first are such a draw (the same as the m largest
    of log w_i plus Gumbel noise), all tokens at once.

    Args:
        weights: of each feature, ``[n]``, at least 0; their sum does not matter. 0: the feature never fires.
        num_active: m, at most the number of features with a weight above 0.
    """

    def __init__(self, weights: Tensor | Sequence[float], num_active: int) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64).detach().clone()
        if weights.ndim != 1 or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise ValueError(f"weights must be a list of finite numbers of at least 0, got {weights.tolist()}")
        eligible = int((weights > 0).sum())
        if not 1 <= num_active <= eligible:
            raise ValueError(
                f"num_active = {num_active} must be from 1 to {eligible}, the number of features that have a weight"
            )
        self.num_features, self.num_active = len(weights), num_active
        self.true_l0 = float(num_active)
        even = bool((weights == weights[0]).all())
        self.probabilities = torch.full_like(weights, num_active / len(weights)) if even else None
        self._slowness = (weights.max() / weights).float()  # inf for a weight of 0

    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        # -E_i / w_i; -log of a uniform number is E, at a fraction of the time of exponential_
        clocks = torch.rand(num_tokens, self.num_features, generator=generator)
        clocks.clamp_min_(1e-30).log_().mul_(self._slowness)
        first = clocks.topk(self.num_active, dim=-1, sorted=False).indices
        return torch.zeros(num_tokens, self.num_features, dtype=torch.bool).scatter_(-1, first, True)


def constant_probabilities(num_features: int, probability: float) -> Tensor:
    """The same probability for every feature, ``[num_features]``."""
    return checked_probabilities(torch.full((num_features,), probability, dtype=torch.float64))


def linear_probabilities(num_features: int, first: float, last: float) -> Tensor:
    """Probabilities in equal steps from the first feature's to the last one's, ``[num_features]``."""
    return checked_probabilities(torch.linspace(first, last, num_features, dtype=torch.float64))


def zipf_probabilities(num_features: int, exponent: float, mean_l0: float) -> Tensor:
    """Probabilities proportional to j^-exponent (j = 1 first), whose sum is ``mean_l0``, ``[num_features]``.

    Raises:
        ValueError: the first feature would have to fire with a probability above 1.
    """
    weights = zipf_weights(num_features, exponent)
    probabilities = weights * (mean_l0 / weights.sum())
    if not mean_l0 >= 0 or probabilities.max() > 1:
        raise ValueError(
            f"{num_features} features with Zipf exponent {exponent} cannot have a mean L0 of {mean_l0}: the most frequent "
            f"would fire with probability {float(probabilities.max()):.3f}; a mean L0 from 0 to "
            f"{float(weights.sum() / weights.max()):.3f} is possible"
        )
    return probabilities


def zipf_weights(num_features: int, exponent: float) -> Tensor:
    """j^-exponent for j = 1 to ``num_features``: weights for :class:`ExactSupports`."""
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    return torch.arange(1, num_features + 1, dtype=torch.float64) ** -exponent


def checked_probabilities(values: Tensor | Sequence[float]) -> Tensor:
    """A list of probabilities as a tensor ``[n]``, float64.

    Raises:
        ValueError: it is no list, it is empty, or a number in it is no probability.
    """
    probabilities = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if probabilities.ndim != 1 or not len(probabilities):
        raise ValueError(
            f"expected one probability per feature, [n], got a tensor of shape {list(probabilities.shape)}"
        )
    wrong = ~((probabilities >= 0) & (probabilities <= 1))
    if wrong.any():
        raise ValueError(f"probabilities must be from 0 to 1, got {probabilities[wrong].tolist()}")
    return probabilities
