"""What a study of a concept starts from: a probe on the activations themselves, and the tokens that it is fitted on.

Where a probe on the activations cannot tell a concept, the model may not represent it, and nothing that a dictionary does or
fails to do about it means much. So the probe comes first, and its F1 is reported beside every score.

T  tokens, n  some of them, d  width of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saescope.evaluation.probes import Probe, fit_probe


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """Activations centred and divided by one number, so that no probe depends on the unit of the activations."""

    center: np.ndarray  # float64, [d]
    scale: float  # root mean square of centred activations, over all their dimensions

    @classmethod
    def of(cls, y: np.ndarray) -> Units:
        """The units of some activations ``[n, d]``.

        Raises:
            ValueError: all activations are the same.
        """
        center = y.mean(0)
        scale = float(np.sqrt(np.mean((y - center) ** 2)))
        if not scale > 1e-12 * float(np.abs(center).max(initial=0)):
            raise ValueError("all activations of the sample are the same, so that nothing can be told from them")
        return cls(center=center, scale=scale)

    def __call__(self, y: np.ndarray) -> np.ndarray:
        return (y - self.center) / self.scale


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """A probe of one concept on activations; one number scales all dimensions, so that its weights are a direction there."""

    probe: Probe
    units: Units

    @classmethod
    def fit(cls, y: np.ndarray, truth: np.ndarray, units: Units, *, c: float) -> GroundTruth:
        """From activations ``[n, d]`` and bool ``[n]``, both classes weighed alike."""
        return cls(probe=fit_probe(units(y), truth, c=c, balanced=True), units=units)

    @property
    def direction(self) -> np.ndarray:
        """Unit vector p, float64 ``[d]``."""
        return self.probe.weights / max(float(np.linalg.norm(self.probe.weights)), 1e-300)

    def predict(self, y: np.ndarray) -> np.ndarray:
        """bool ``[n]``."""
        return self.probe.predict(self.units(y))


def training_tokens(truth: np.ndarray, among: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """At most ``most`` places of tokens to fit a probe on, in rising order: rare concepts keep all their tokens.

    Args:
        truth: whether each token is of the concept, bool ``[T]``.
        among: which tokens may be taken, bool ``[T]``.
    """
    yes, no = np.flatnonzero(among & truth), np.flatnonzero(among & ~truth)
    num_yes = min(len(yes), max(most // 2, most - len(no)))
    num_no = min(len(no), most - num_yes)
    # positives first, then negatives: the classes are weighed alike in fits, so that their shares play no part
    taken = [
        generator.choice(places, count, replace=False) if count < len(places) else places
        for places, count in ((yes, num_yes), (no, num_no))
    ]
    return np.sort(np.concatenate(taken))


def too_few(truth: np.ndarray, parts: dict[str, np.ndarray], least: int, what: str) -> str:
    """Why a concept cannot be studied: fewer than ``least`` tokens with or without it in one of the parts; "" if it can."""
    for name, among in parts.items():
        for answer, words in ((truth, what), (~truth, f"without {what}")):
            count = int(np.count_nonzero(among & answer))
            if count < least:
                return f"{count} {name} tokens {words}, at least {least} are needed"
    return ""
