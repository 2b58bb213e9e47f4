"""Numbers that look drawn by chance and are the same everywhere: what decides who is in a sample.

A sample is the members of smallest priority, and a priority is a hash of the seed, the feature and the member. So it
depends neither on the order in which members come nor on how they are dealt out to processes. The mixing function is the
finalizer of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"; constants of David
Stafford's variant 13). It is a bijection, which `unmix` inverts.

All numbers are uint64 and wrap around. B  windows, T  tokens in a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BASE = 0xD1342543DE82EF95  # of the polynomial over a window's tokens; odd, so that it has an inverse
_WRAP = 1 << 64


def mix(numbers: np.ndarray) -> np.ndarray:
    """Every bit of the result hangs on every bit of the number; a new array."""
    mixed = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(_FIRST)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def unmix(mixed: np.ndarray) -> np.ndarray:
    """The numbers that `mix` was given."""
    numbers = mixed ^ (mixed >> np.uint64(31)) ^ (mixed >> np.uint64(62))
    numbers *= np.uint64(pow(_SECOND, -1, _WRAP))
    numbers ^= (numbers >> np.uint64(27)) ^ (numbers >> np.uint64(54))
    numbers *= np.uint64(pow(_FIRST, -1, _WRAP))
    numbers ^= (numbers >> np.uint64(30)) ^ (numbers >> np.uint64(60))
    return numbers


def salts(seed: int, purpose: int, count: int) -> np.ndarray:
    """One number for each of ``count`` features, different for every seed and purpose, ``[count]``."""
    start = np.uint64((seed * 16 + purpose + 1) * _GOLDEN % _WRAP)
    return mix(mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)) ^ start)


def place_priorities(places: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Priorities of places in the text; the place can be had back."""
    return mix(places.astype(np.uint64) * np.uint64(_GOLDEN) + salt)


def places_of(priorities: np.ndarray, salt: np.ndarray | np.uint64) -> np.ndarray:
    """The places that these priorities belong to; int64."""
    return ((unmix(priorities) - salt) * np.uint64(pow(_GOLDEN, -1, _WRAP))).astype(np.int64)


@dataclass(frozen=True)
class ExcerptHashes:
    """Hashes of any stretch of some windows, each from two sums over the tokens before its ends.

    A stretch is a polynomial with mixed token ids as coefficients. Its value at a fixed odd base is a difference of two
    running sums, divided by the power at which the stretch begins: equal stretches have equal hashes wherever they stand.
    """

    sums: np.ndarray  # [B, T + 1]
    inverse_powers: np.ndarray  # [T + 1]

    @classmethod
    def of(cls, ids: np.ndarray) -> ExcerptHashes:
        """Of windows of token ids, ``[B, T]``."""
        length = ids.shape[1]
        terms = mix((ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)) * _powers(_BASE, length)
        sums = np.zeros((len(ids), length + 1), dtype=np.uint64)
        np.cumsum(terms, axis=1, out=sums[:, 1:])
        return cls(sums, _powers(pow(_BASE, -1, _WRAP), length + 1))

    def __call__(self, windows: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Hashes of the tokens ``first : last`` of windows (rows of the ids)."""
        return (self.sums[windows, last] - self.sums[windows, first]) * self.inverse_powers[first]


def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)
