"""A forward pass in training that only ever touches the features that fire.

The codes are chosen by the kernels, without a graph. A loss then sees reconstructions and activations as leaves: its
``backward`` ends there, at ``[B, d]`` and one number per firing, and the kernels carry those gradients on to encoder,
decoder, biases and thresholds. What is computed is what :class:`Codes` computes, gradients included; only the work is
another.

Which architectures have such a pass is in :data:`_ENCODERS`; classes derived from them, whose rules may be others, are
trained densely.

B  tokens, d_in  width of the input, d_out  of the reconstruction (d_in here), d_sae  features, n  entries of the codes,
L  nested prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import BatchTopK, Dictionary, JumpReLU, Matryoshka, Ordered, ReLU, TopK
from saescope.dictionaries.sparse_encoding import encode_with, most_firings
from saescope.kernels import FlatCodes, Gradients
from saescope.training.losses.base import Batch


@dataclass(frozen=True)
class Chosen:
    """Codes, and the pre-activations behind them where those decide about more than the entries' values."""

    codes: FlatCodes
    pre: Tensor | None = None  # [n]


def _encode_topk(kernels: Any, dictionary: TopK, x: Tensor, k: float | None, how: dict[str, Any]) -> Chosen:
    rows, bias = _encoder(dictionary)
    return Chosen(kernels.topk(x, rows, bias, round(k or dictionary.config.k), **how))


def _encode_batch_topk(kernels: Any, dictionary: BatchTopK, x: Tensor, k: float | None, how: dict[str, Any]) -> Chosen:
    rows, bias = _encoder(dictionary)
    return Chosen(kernels.batch_topk(x, rows, bias, dictionary.num_chosen(len(x), k), **how))


def _encode_relu(kernels: Any, dictionary: ReLU, x: Tensor, k: float | None, how: dict[str, Any]) -> Chosen | None:
    rows, bias = _encoder(dictionary)
    codes = kernels.above(x, rows, bias, torch.zeros_like(bias), most_firings(dictionary, x), **how)
    return codes and Chosen(codes)


def _encode_jumprelu(
    kernels: Any, dictionary: JumpReLU, x: Tensor, k: float | None, how: dict[str, Any]
) -> Chosen | None:
    """Entries from half a bandwidth below the threshold on: those pass nothing, but its gradient needs them."""
    rows, bias = _encoder(dictionary)
    threshold = dictionary.threshold.detach()
    codes = kernels.above(
        x, rows, bias, threshold - dictionary.config.bandwidth / 2, most_firings(dictionary, x), **how
    )
    if codes is None:
        return None
    fires = codes.values > threshold[codes.features.long()]
    return Chosen(codes.with_values(codes.values.where(fires, 0)), codes.values)


_ENCODERS: dict[type[Dictionary], Callable[[Any, Any, Tensor, float | None, dict[str, Any]], Chosen | None]] = {
    TopK: _encode_topk,
    Ordered: _encode_topk,
    BatchTopK: _encode_batch_topk,
    Matryoshka: _encode_batch_topk,
    ReLU: _encode_relu,
    JumpReLU: _encode_jumprelu,
}


def has_sparse_pass(dictionary: Dictionary) -> bool:
    """Whether an architecture's forward pass and gradients are known to the kernels."""
    return type(dictionary) in _ENCODERS


class SparsePass:
    """One forward pass. A loss reads it like :class:`Codes`; after its ``backward``, :meth:`backward` goes on.

    Attributes:
        codes: which features fire, and how strongly.
    """

    def __init__(self, kernels: Any, dictionary: Dictionary, x: Tensor, chosen: Chosen) -> None:
        """``x``: encoder input, ``[B, d_in]``."""
        self.codes = chosen.codes
        self._kernels, self._dictionary, self._x, self._pre = kernels, dictionary, x, chosen.pre
        self._values: Tensor | None = None  # leaves from here on: [n]
        self._l0: Tensor | None = None  # scalar
        self._decoded: dict[tuple[int, ...], Tensor] = {}  # by widths of prefixes: [L, B, d_out]
        self._dead: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # rows; encoder, bias, decoder of these
        self._ordered: tuple[Tensor, Tensor, Tensor] | None = None  # what is left, C(i - 1), mean error

    # What a loss sees

    @property
    def x_hat(self) -> Tensor:
        """Reconstructions, ``[B, d_out]``."""
        known = next(iter(self._decoded.values()), None)  # the last of any prefixes is the whole dictionary
        return (self._decode([self._dictionary.d_sae]) if known is None else known)[-1]

    def mean_of_sums(self, of: Callable[[Tensor], Tensor], weighed_by: Dictionary | None = None) -> Tensor:
        """As :meth:`Codes.mean_of_sums`; rows have norm 1 here, and weights by norm change nothing."""
        if self._values is None:
            self._values = self.codes.values.clone().requires_grad_()
        return of(self._values).sum() / self.codes.num_tokens

    def mean_l0(self, dictionary: JumpReLU) -> Tensor:
        """As :meth:`Codes.mean_l0`."""
        if self._l0 is None:
            self._l0 = (self.codes.values.count_nonzero() / self.codes.num_tokens).to(self._x.dtype).requires_grad_()
        return self._l0

    def dead_part(self, dictionary: Dictionary, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Codes.dead_part`, on copies of these rows alone."""
        if self._dead is None:
            encoder, bias = _encoder(dictionary)
            parts = (part[rows].requires_grad_() for part in (encoder, bias, dictionary.W_dec.detach()))
            self._dead = (rows, *parts)  # type: ignore[assignment]
        assert self._dead is not None
        known, encoder, bias, decoder = self._dead
        if not known.equal(rows):
            raise ValueError('two terms ask for different dead features; train with sparse_kernels = "never"')
        return torch.nn.functional.linear(self._x, encoder, bias), decoder

    def prefix_errors(self, dictionary: Dictionary, batch: Batch, widths: Sequence[int]) -> Tensor:
        """As :meth:`Codes.prefix_errors`."""
        return (self._decode(widths) - batch.target).square().sum(-1).mean(-1)

    def expected_prefix_error(self, batch: Batch, probabilities: Tensor) -> Tensor:
        """mean over tokens of sum_l p(l) |target - reconstruction from the first l features|^2; once in a pass."""
        if self._ordered is not None:
            raise ValueError('two Ordered errors in one loss; train with sparse_kernels = "never"')
        before = probabilities.cumsum(0) - probabilities  # C(i - 1) of feature number i, [d_sae]
        decoder = self._dictionary.W_dec.detach()
        residual = batch.target - self._dictionary.b_dec.detach()
        errors, left = self._kernels.ordered_errors(self.codes, residual, decoder, before)
        whole = (batch.target - left)[None]  # for terms that ask for x_hat later
        self._decoded.setdefault((self._dictionary.d_sae,), whole.requires_grad_())
        mean = errors.mean().requires_grad_()
        self._ordered = left, before, mean
        return mean

    def _decode(self, widths: Sequence[int]) -> Tensor:
        key = tuple(widths)
        if key not in self._decoded:
            dictionary = self._dictionary
            self._decoded[key] = self._kernels.decode(
                self.codes, dictionary.W_dec.detach(), dictionary.b_dec.detach(), list(widths)
            ).requires_grad_()
        return self._decoded[key]

    # And on from there

    @torch.no_grad()
    def backward(self, out: Gradients, *, unit_norm: bool) -> dict[str, Tensor]:
        """Carry the leaves' gradients on to the parameters; ``encoder_rows``, ``W_dec`` and ``b_enc`` go to ``out``.

        Returns:
            The gradients of all parameters by name.
        """
        dictionary = self._dictionary
        decoder = dictionary.W_dec.detach()
        direct = None if self._values is None else self._values.grad
        widths, g = self._pulls()
        d_offset = dictionary.b_dec.new_zeros(dictionary.d_out) if g is None else g.sum((0, 1))
        if self._ordered is not None:
            left, before, mean = self._ordered
            scale = 0.0 if mean.grad is None else float(mean.grad) / len(left)
            along, d_residual = self._kernels.ordered_gradients(self.codes, left, decoder, before, scale, out.decoder)
            direct = along if direct is None else along + direct
            d_offset = d_offset - d_residual.sum(0)
        elif g is None:
            g = self._x.new_zeros(1, self.codes.num_tokens, dictionary.d_out)
        kept = self._put_dead(out)
        if self._ordered is not None and g is not None:  # the decoder's gradient so far is added to, in all rows
            others = slice(None) if kept is None else ~kept
            out.encoder[others], out.bias[others] = 0, 0
            kept = torch.ones(self.codes.d_sae, dtype=torch.bool, device=decoder.device)
        d_values = self._kernels.gradients(
            self.codes, direct, g, self._x, decoder, widths, out, unit_norm=unit_norm, kept=kept
        )
        found = {"encoder_rows": out.encoder, "W_dec": out.decoder, "b_enc": out.bias}
        if isinstance(dictionary, JumpReLU):
            found["threshold"] = self._threshold_gradient(dictionary, d_values)
        if dictionary.config.apply_b_dec_to_input:
            d_offset = d_offset - out.bias @ _encoder(dictionary)[0]
        return found | {"b_dec": d_offset}

    def _pulls(self) -> tuple[list[int], Tensor | None]:
        """The widths of all prefixes that were decoded, and the gradients that came to them; None where none did."""
        pulled = {widths: leaf.grad for widths, leaf in self._decoded.items() if leaf.grad is not None}
        together = sorted(set[int]().union(*pulled))
        if not pulled:
            return [self._dictionary.d_sae], None
        if len(pulled) == 1:
            return together, next(iter(pulled.values()))
        sums = self._x.new_zeros(len(together), self.codes.num_tokens, self._dictionary.d_out)
        for widths, g in pulled.items():
            sums[[together.index(width) for width in widths]] += g
        return together, sums

    def _put_dead(self, out: Gradients) -> Tensor | None:
        """Write what came to the dead features' copies into their rows; says which rows these are."""
        if self._dead is None or self._dead[1].grad is None:
            return None
        rows, *copies = self._dead
        if self._ordered is None:
            out.decoder[rows] = 0
        for target, copy in zip((out.encoder, out.bias, out.decoder), copies, strict=True):
            own = torch.zeros_like(copy) if copy.grad is None else copy.grad
            target[rows] = target[rows] + own if target is out.decoder else own
        return torch.zeros(self.codes.d_sae, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)

    def _threshold_gradient(self, dictionary: JumpReLU, d_values: Tensor) -> Tensor:
        """The paper's estimate from the entries near a threshold (see ``dictionaries/jumprelu.py``)."""
        assert self._pre is not None
        threshold, bandwidth = dictionary.threshold.detach(), dictionary.config.bandwidth
        feature = self.codes.features.long()
        near = (self._pre - threshold[feature]).abs() < bandwidth / 2
        pull = d_values * threshold[feature]
        if self._l0 is not None and self._l0.grad is not None:
            pull = pull + self._l0.grad / self.codes.num_tokens
        return torch.zeros_like(threshold).index_add(0, feature, -pull.where(near, 0) / bandwidth)


@torch.no_grad()
def sparse_pass(
    kernels: Any, dictionary: Dictionary, x: Tensor, k: float | None, *, bfloat16: bool = False
) -> SparsePass | None:
    """Encode ``x``, ``[B, d_in]``, in training form; None where so many features fire that a dense pass is faster.

    Args:
        bfloat16: make the encoder's product in bfloat16 (on a GPU); what it selects is computed again in float32.
    """
    x = dictionary.encoder_input(x)
    settings = {"bfloat16": True} if bfloat16 else {}
    chosen = _ENCODERS[type(dictionary)](kernels, dictionary, x, k, settings)
    return None if chosen is None else SparsePass(kernels, dictionary, x, chosen)


@torch.no_grad()
def reconstruct(kernels: Any, dictionary: Dictionary, x: Tensor) -> Tensor:
    """``dictionary(x)``, the form of inference, through the kernels where there are some."""
    codes = None if kernels is None else encode_with(kernels, dictionary, x)
    if codes is None:
        return dictionary(x)
    return kernels.decode(codes, dictionary.W_dec.detach(), dictionary.b_dec.detach(), [dictionary.d_sae])[0]


def _encoder(dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    assert dictionary.encoder_rows is not None
    assert dictionary.b_enc is not None
    return dictionary.encoder_rows.detach(), dictionary.b_enc.detach()
