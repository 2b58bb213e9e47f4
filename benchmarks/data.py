"""Activations with something in them to find: the same numbers in every process that names the same seed.

Each token is the sum of a few directions out of many, with positive strengths, plus noise; one factor brings the mean norm
to sqrt(d), where trainers that normalise would bring it. Every batch is drawn afresh from its number alone, so that
libraries in processes of their own train on the same tokens and hold one batch in memory.

B  tokens, d  width, n  directions.
"""

from __future__ import annotations

import numpy as np

HELD_OUT = 1 << 40  # batches of this number and above are for judging, not for training


class Activations:
    """Batches ``[B, d]`` of float32."""

    def __init__(self, d: int, *, seed: int = 0, num_active: int = 16, noise: float = 0.01) -> None:
        self.d, self.seed, self.num_active, self.noise = d, seed, num_active, noise
        directions = np.random.default_rng([seed, 0]).standard_normal((4 * d, d), dtype=np.float32)
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)  # [n, d]
        self.scale = 1.0
        self.scale = float(np.sqrt(d) / np.linalg.norm(self.batch(HELD_OUT - 1, 1024), axis=1).mean())

    def batch(self, number: int, num_tokens: int) -> np.ndarray:
        """The batch of a number, ``[B, d]``."""
        generator = np.random.default_rng([self.seed, 1, number])
        chosen = generator.integers(len(self.directions), size=(num_tokens, self.num_active))
        strengths = generator.standard_exponential((num_tokens, self.num_active), dtype=np.float32)
        strengths /= np.linalg.norm(
            strengths, axis=1, keepdims=True
        )  # activations of models have norms near each other
        x = generator.standard_normal((num_tokens, self.d), dtype=np.float32)
        x *= self.noise
        for i in range(self.num_active):  # one direction at a time: all at once would take num_active times the memory
            x += strengths[:, i, None] * self.directions[chosen[:, i]]
        x *= np.float32(self.scale)
        return x
