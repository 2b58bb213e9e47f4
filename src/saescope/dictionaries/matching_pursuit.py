"""The matching pursuit dictionary (MP-SAE): features are picked one after another, each for what the others left over.

Costa et al. 2025, arXiv 2506.03093. There is no encoder: with r = x - b_dec and unit rows d_i, each step takes the row
of largest signed product, and its product::

    i = argmax <r, d_i>        v = ReLU(<r, d_i>)        f_i += v        r -= v d_i

so that x - x_hat is the last residual, and |x - b_dec|^2 = sum of v^2 + |r|^2: every step's energy is known, coarse
before fine. A token stops when a step adds no new feature, or when its residual is shorter than ``residual_threshold``;
the number of steps can be changed at inference. Gradients flow through values and residuals, not through the choice.
Rows must have unit norm: the residual grows where they are longer than sqrt(2), and the energies are wrong at any other
length.

B  tokens, k  steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitConfig(DictionaryConfig):
    k: int | None = None  # most steps on a token; d_in when left out
    residual_threshold: float = 1e-2  # a token whose residual is shorter stops
    stop_on_repeat: bool = True  # a token whose last step added no new feature stops

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", self.d_in if self.k is None else self.k)
        if not isinstance(self.k, int) or self.k < 1 or not self.residual_threshold >= 0:
            raise ValueError(
                "k must be a whole number of at least 1 and residual_threshold must not be negative, "
                f"got {self.k!r} and {self.residual_threshold}"
            )


@dataclass(frozen=True)
class Pursuit:
    """Every step of a pursuit, until all tokens have stopped; steps after a token has stopped have value 0."""

    indices: Tensor  # [B, steps], at most k; the feature of each step; the same one may come again
    values: Tensor  # [B, steps], what the step added to it; its square is the step's energy
    residual: Tensor  # [B, d_in], what is left
    residual_energies: Tensor  # [B, steps + 1], squared norm of the residual before the first step and after each


@register("matching_pursuit", saelens_name="matching_pursuit")
class MatchingPursuit(Dictionary):
    """A matching pursuit dictionary; the encoder is the decoder."""

    Config = MatchingPursuitConfig
    config: MatchingPursuitConfig
    saelens_keys: ClassVar[Mapping[str, str]] = {"k": "max_iterations", "stop_on_repeat": "stop_on_duplicate_support"}
    positively_homogeneous = True
    in_activation_units = ("residual_threshold",)
    unit_norm = None
    residual_threshold: Tensor

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        self.encoder_rows = self.b_enc = None
        # a buffer, for it is in units of activations and is folded with the scale; the file has it in cfg.json
        self.register_buffer("residual_threshold", torch.tensor(self.config.residual_threshold))

    def activate(self, pre: Tensor) -> Tensor:
        raise ValueError("matching pursuit has no pre-activations: each step depends on the one before; use encode(x)")

    def pursue(self, x: Tensor, k: int | None = None) -> Pursuit:
        """All steps on ``x``, ``[B, d_in]``; ``k`` steps instead of the config's."""
        num_steps = self.config.k if k is None else k
        if num_steps is None or num_steps < 1:
            raise ValueError(f"a pursuit takes at least one step, got k = {k}")
        residual = self.encoder_input(x)
        stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        taken = torch.zeros(len(x), self.d_sae, dtype=torch.bool, device=x.device)
        chosen: list[Tensor] = []
        values: list[Tensor] = []
        energies = [residual.detach().square().sum(-1)]
        for _ in range(num_steps):
            with torch.no_grad():
                index = (residual @ self.W_dec.T).argmax(-1)
            row = self.W_dec[index]
            value = (residual * row).sum(-1).relu().masked_fill(stopped, 0)
            residual = residual - value[:, None] * row
            chosen.append(index)
            values.append(value)
            energies.append(residual.detach().square().sum(-1))
            stopped = stopped | (energies[-1].sqrt() < self.residual_threshold) | (value.detach() == 0)
            if self.config.stop_on_repeat:
                stopped = stopped | taken.gather(-1, index[:, None]).squeeze(-1)
                taken.scatter_(-1, index[:, None], True)
            if stopped.all():
                break
        return Pursuit(torch.stack(chosen, -1), torch.stack(values, -1), residual, torch.stack(energies, -1))

    def encode(self, x: Tensor, k: int | None = None) -> Tensor:
        """Feature activations; ``k`` steps instead of the config's."""
        pursuit = self.pursue(x.reshape(-1, x.shape[-1]), k)
        f = pursuit.values.new_zeros(len(pursuit.values), self.d_sae)
        return f.scatter_add(-1, pursuit.indices, pursuit.values).view(*x.shape[:-1], self.d_sae)

    def encode_in_training(self, x: Tensor, k: float | None = None) -> tuple[Tensor | None, Tensor]:
        return None, self.encode(x, None if k is None else round(k))

    def offset(self, x: Tensor | None) -> Tensor:
        """``b_dec``, where it was taken off the input."""
        return self.b_dec if self.config.apply_b_dec_to_input else torch.zeros_like(self.b_dec)

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        del tensors["residual_threshold"]
        return tensors

    def take_tensors(self, tensors: dict[str, Tensor], *, copy: bool = True) -> None:
        super().take_tensors(tensors, copy=copy)
        self.residual_threshold = self.W_dec.new_tensor(self.config.residual_threshold)

    def settings(self) -> dict[str, Any]:
        threshold = self.residual_threshold.cpu()
        shortest = str(threshold.float().numpy() if threshold.dtype != torch.float64 else threshold.numpy())
        return {**super().settings(), "residual_threshold": float(shortest)}
