"""The temporal dictionary: what earlier tokens predict of an activation, and sparse features of what is new in it.

Lubana et al. 2025, "Priors in Time: Missing Inductive Biases for Language Model Interpretability", arXiv 2511.01836. Layer
by layer of attention, with lambda = 1 / (4 d_in) and r = x - b_dec to begin with::

    z = relu(lambda r W_enc)                          codes as they are
    p = relu(attention(queries of z, keys and values of z of the tokens before))
    a = <p W_dec, r> / (|p W_dec| + 1e-6)^2
    predicted += a p        r -= a p W_dec

and then::

    f = topk(relu(lambda r W_enc))                    novel codes: the features
    x_hat = (f + predicted) W_dec + b_dec

So ``encode`` gives the novel codes, and ``decode`` needs x again for the predicted ones. It reads whole sequences,
``[batch, tokens, d_in]`` from a text's first token on, and nothing else: a token by itself has no past. Such dictionaries
are opened, written, and called on sequences; they are not trained here, and what reads tokens one by one refuses them.

B  sequences, T  tokens, H  heads, d_key  width of all keys (d_sae / bottleneck_factor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.base import Dictionary, DictionaryConfig, register
from saescope.dictionaries.codes import SparseCodes
from saescope.dictionaries.normalization import InputNormalization

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class TemporalConfig(DictionaryConfig):
    n_heads: int = 8
    n_attn_layers: int = 1
    bottleneck_factor: int = 64  # how much narrower all keys are than codes
    sae_diff_type: Literal["relu", "topk"] = "topk"
    kval_topk: int | None = None  # novel codes per token; None: all that are positive
    tied_weights: bool = True
    activation_normalization_factor: float = 1.0  # on activations, before everything

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_heads", "n_attn_layers", "bottleneck_factor"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        if self.d_sae % (self.n_heads * self.bottleneck_factor):
            raise ValueError(
                f"d_sae = {self.d_sae} must be a multiple of n_heads x bottleneck_factor = "
                f"{self.n_heads * self.bottleneck_factor}"
            )
        if self.sae_diff_type not in ("relu", "topk"):
            raise ValueError(f"sae_diff_type must be relu or topk, got {self.sae_diff_type!r}")
        k = self.kval_topk
        if k is not None and not (isinstance(k, int) and 1 <= k <= self.d_sae):
            raise ValueError(f"kval_topk must be a whole number from 1 to d_sae = {self.d_sae}, got {k!r}")
        factor = self.activation_normalization_factor
        if not (isinstance(factor, int | float) and 0 < factor < float("inf")):
            raise ValueError(f"activation_normalization_factor must be a positive number, got {factor!r}")


class ConstantScalar(InputNormalization):
    """SAELens' name for the factor that is in the config here, and which the dictionary itself applies."""

    name = "constant_scalar_rescale"


class CodeAttention(nn.Module):
    """Attention of codes to those of the tokens before."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        d_sae, d_key = config.d_sae, config.d_sae // config.bottleneck_factor
        self.n_heads = config.n_heads
        self.k_ctx = nn.Linear(d_sae, d_key)
        self.q_target = nn.Linear(d_sae, d_key)
        self.v_ctx = nn.Linear(d_sae, d_sae)
        self.c_proj = nn.Linear(d_sae, d_sae)

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        """``before``: codes moved on by one token, ``now``: codes as they are; both ``[B, T, d_sae]``."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, H, T, width of a head]
            for part in (self.q_target(now), self.k_ctx(before), self.v_ctx(before))
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(seen.transpose(1, 2).flatten(2))


@register("temporal", saelens_name="temporal", trained=False)
class Temporal(Dictionary):
    """A temporal dictionary."""

    Config = TemporalConfig
    config: TemporalConfig
    unit_norm: ClassVar[bool | None] = False
    reads_sequences = True

    def __init__(self, config: TemporalConfig, *, seed: int | None = 0) -> None:
        super().__init__(config, seed=seed)
        if config.tied_weights:
            self.encoder_rows = None
        self.b_enc = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            self.attn_layers = nn.ModuleList(CodeAttention(config) for _ in range(config.n_attn_layers))

    def normalise_by(self, name: str) -> None:
        if name == ConstantScalar.name:
            self.input_normalization = ConstantScalar()
        else:
            super().normalise_by(name)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is new on each token and what was to be expected.

        Args:
            x: whole sequences, ``[B, T, d_in]``.

        Returns:
            pre-activations of the novel codes, and predicted codes; both ``[B, T, d_sae]``.

        Raises:
            ValueError: something else than sequences, or of another width.
        """
        if x.dim() != 3:
            raise ValueError(
                "a temporal dictionary reads whole sequences [batch, tokens, d_in], as it predicts each token from those "
                f"before it; got {list(x.shape)}. Studies of shuffled tokens can not be made of it"
            )
        rest = self.encoder_input(x * self.config.activation_normalization_factor)
        scale = 1 / (4 * self.d_in)
        predicted = rest.new_zeros(*x.shape[:2], self.d_sae)
        for attention in self.attn_layers:
            now = F.relu(scale * rest @ self.W_enc)
            seen = F.relu(attention(F.pad(now, (0, 0, 1, -1)), now))
            written = seen @ self.W_dec
            share = (written * rest).sum(-1, keepdim=True) / (written.norm(dim=-1, keepdim=True) + _EPS).square()
            predicted = predicted + share * seen
            rest = rest - share * written
        return scale * rest @ self.W_enc, predicted

    def pre_activations(self, x: Tensor) -> Tensor:
        """Of the novel codes, ``[B, T, d_sae]``."""
        return self.split(x)[0]

    def predicted(self, x: Tensor) -> Tensor:
        """The codes that earlier tokens predict, ``[B, T, d_sae]``; they can be negative."""
        return self.split(x)[1]

    def activate(self, pre: Tensor) -> Tensor:
        f = F.relu(pre)
        k = self.config.kval_topk
        if self.config.sae_diff_type == "relu" or k is None:
            return f
        values, places = f.topk(k, dim=-1)
        return torch.zeros_like(f).scatter(-1, places, values)

    def decode(self, f: Tensor | SparseCodes, x: Tensor | None = None) -> Tensor:
        """``(f + predicted(x)) @ W_dec + b_dec``, in the units of x."""
        return self._rebuilt(self.combine(f) + self.offset(x), x)

    def offset(self, x: Tensor | None) -> Tensor:
        if x is None:
            raise ValueError(
                "the predicted codes need the sequences again: decode(f, x), or dictionary(x) for both steps"
            )
        return self.predicted(x) @ self.W_dec + self._bias

    def forward(self, x: Tensor) -> Tensor:
        pre, predicted = self.split(x)
        return self._rebuilt((self.activate(pre) + predicted) @ self.W_dec + self._bias, x)

    def written(self, rows: Tensor, x: Tensor | None = None) -> Tensor:
        return super().written(rows, x) / self.config.activation_normalization_factor

    @property
    def _bias(self) -> Tensor:
        """SAELens adds none where weights are tied and none was taken off."""
        added = self.config.apply_b_dec_to_input or not self.config.tied_weights
        return self.b_dec if added else torch.zeros_like(self.b_dec)

    def _rebuilt(self, y: Tensor, x: Tensor | None) -> Tensor:
        return self.input_normalization.undo(y / self.config.activation_normalization_factor, x)

    def fold_scale(self, scale_in: float, scale_out: float | None = None) -> None:
        raise ValueError(_NOT_FOLDED)

    def fold_matrix(self, transposed: Tensor) -> Tensor:
        raise ValueError(_NOT_FOLDED)


_NOT_FOLDED = "nothing can be folded into a temporal dictionary: its attention has a scale of its own"
