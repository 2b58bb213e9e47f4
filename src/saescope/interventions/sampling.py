"""The next token, drawn with random numbers that belong to a place in a text and to nothing else.

A token t is drawn with probability p(t) = softmax(logits / temperature) by adding noise and taking the largest:

    argmax_t  log p(t) + g(t),    g(t) = -log(-log u(t)),    u(t) uniform on (0, 1)

(the Gumbel-max trick; Maddison, Tarlow and Minka 2014, "A* Sampling"). The noise g depends on the seed, the number of the
prompt and the step alone. So a plain and a steered model that are given the same seed use the same random numbers: where
their probabilities agree they write the same token, and with a change that does nothing they write the same text. Nor
does it matter which other prompts are in the batch.

Shapes: ``B`` texts, ``V`` token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: the logits are divided by it; 0 takes the most likely token, whatever the seed.
        top_k: only this many of the most likely tokens.
        top_p: only the most likely tokens that together have this probability; the one that crosses it is in. Counted after
            ``top_k``, as elsewhere.
        seed: of the noise.

    Raises:
        ValueError: a value that means nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is 0 (the most likely token) or more, not {self.temperature}")
        if self.top_k is not None and (isinstance(self.top_k, bool) or self.top_k != int(self.top_k) or self.top_k < 1):
            raise ValueError(f"top_k is a number of tokens, at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is a share of the probability, above 0 and at most 1, not {self.top_p}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"a seed is a whole number of at least 0, not {self.seed!r}")

    def log_weights(self, logits: Tensor) -> Tensor:
        """Logarithms of what the tokens' probabilities are proportional to, ``[B, V]``; -inf for those left out.

        Not for temperature 0, where nothing is drawn.
        """
        scores = _in_float64(logits)
        scores = (scores - scores.max(-1, keepdim=True).values) / self.temperature  # [B, V]
        if self.top_k is None and self.top_p is None:
            return scores
        order = scores.argsort(dim=-1, descending=True, stable=True)  # of equal ones, the smaller id is kept
        ranked = scores.gather(-1, order)
        if self.top_k is not None:
            ranked[:, int(self.top_k) :] = -math.inf
        if self.top_p is not None:
            shares = ranked.softmax(-1)
            before = shares.cumsum(-1) - shares  # probability of all more likely ones
            before[:, 0] = 0.0  # exactly: the most likely token is never left out
            ranked[before >= self.top_p] = -math.inf
        return torch.empty_like(scores).scatter_(-1, order, ranked)

    def choose(self, logits: Tensor, prompts: Sequence[int], step: int) -> Tensor:
        """The next token of each text, ``[B]``, on the CPU.

        Args:
            logits: ``[B, V]``, finite.
            prompts: the number of each text's prompt. step: how many tokens were drawn for it before.
        """
        if self.temperature == 0:
            return _in_float64(logits).argmax(-1)
        noise = np.stack([gumbel_noise(self.seed, prompt, step, logits.shape[-1]) for prompt in prompts])
        return (self.log_weights(logits) + torch.from_numpy(noise)).argmax(-1)


def gumbel_noise(seed: int, prompt: int, step: int, size: int) -> np.ndarray:
    """The noise at one step of one prompt, ``[V]``: one independent number for every token id."""
    return np.random.default_rng([seed, prompt, step]).gumbel(size=size)


def _in_float64(logits: Tensor) -> Tensor:
    """On the CPU, so that the same logits give the same token on every device."""
    return logits.detach().to("cpu", torch.float64)
