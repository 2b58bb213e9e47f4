"""The way from the last residual stream to a logit, as a linear map: the final norm with its scale frozen.

The final norm divides the stream h of a token by a scale that depends on h itself. Held at what it is on this prompt,
the way to a logit is linear, and a vector v that is added to the stream adds ``v . r`` to it::

    layer norm:  r = centre(gain * u / s)      s = sqrt(var(h) + eps)     centre(a) = a - mean(a)
    RMS norm:    r = gain * u / s              s = sqrt(mean(h^2) + eps)

with u the unembedding row of the token, or a difference of rows. The logit itself is ``h . r + norm_bias . u + bias``.
Where the model caps its logits (Gemma 2), it is the logit before the cap.

Shapes: ``B`` prompts, ``T`` tokens, ``P`` places (prompt, position) that the metric looks at, ``d`` width of the
stream, ``V`` vocabulary. All in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.interventions.metrics import Metric
from saescope.models import LanguageModel
from saescope.models.families import Family, family_of
from saescope.models.language_model import Unembedding

_NORM_TOLERANCE = 0.03  # bfloat16 rounds every entry by up to 0.4 %


@dataclass(frozen=True)
class Readout:
    """How the last residual stream becomes the metric, at every place that the metric looks at."""

    prompt: Tensor  # [P]
    position: Tensor  # [P], column in the batch
    reader: Tensor  # [P, d], the r above
    stream: Tensor  # [P, d], the h above
    norm_bias: Tensor  # [P], its part of the metric
    unembedding_bias: Tensor  # [P]
    value: Tensor  # [P], what the model made of the stream


class LastStream:
    """Where a model's last residual stream is read, before and after the final norm."""

    def __init__(self, model: LanguageModel) -> None:
        """Looks up norm and unembedding.

        Raises:
            ValueError: the way from the stream to the logits is not known, or is more than a norm and a matrix.
        """
        if model.module.get_output_embeddings() is None:
            raise ValueError(
                f"{model.name} has no unembedding (no language-model head), so that features have no direct effect on "
                "logits; attribute to a metric of your own with gradient_attribution"
            )
        self.unembedding: Unembedding = model.unembedding()
        family = family_of(model.module.config)
        assert family is not None  # unembedding() has found it
        assert family.final_norm is not None
        self.family: Family = family
        blocks = len(model.module.get_submodule(family.blocks))
        last = f"{family.blocks}.{blocks - 1}.output"
        has_norm = self.unembedding.norm_kind is not None
        self.before = f"{family.final_norm}.input" if has_norm else last
        self.after = f"{family.final_norm}.output" if has_norm else last
        if self.unembedding.weight.shape[1] != model.d_model:
            raise ValueError(
                f"{model.name} brings its stream of width {model.d_model} to {self.unembedding.weight.shape[1]} before the "
                "unembedding, a map that is not known here; use gradient_attribution"
            )

    def readout(self, found: Mapping[str, Tensor], metric: Metric, tokens: Tensor) -> Readout:
        """The linear map for one batch.

        Args:
            found: values ``[B, T, d]`` at ``before`` and ``after``. tokens: bool ``[B, T]``, false for padding.

        Raises:
            ValueError: the metric is no logit and no difference of logits.
        """
        known = self.unembedding
        weights = _logit_weights(metric, tokens, len(known.weight))  # [B, T, V]
        prompt, position = weights.any(-1).nonzero(as_tuple=True)
        chosen = weights[prompt, position]  # [P, V]
        tokens_used = chosen.any(0).nonzero()[:, 0]  # a few: a copy of the whole matrix in float64 would be large
        parts = chosen[:, tokens_used].double()
        rows = parts @ known.weight[tokens_used].to(parts)  # [P, d], the u above
        before = found[self.before][prompt, position].to(rows)
        after = found[self.after][prompt, position].to(rows)
        gain = torch.ones_like(rows[:1]) if known.norm_weight is None else known.norm_weight.to(rows)
        shift = torch.zeros_like(rows[:1]) if known.norm_bias is None else known.norm_bias.to(rows)
        centred = _centred(before) if known.norm_kind == "layer_norm" else before
        inverse = _inverse_scale(centred * gain, after - shift) if known.norm_kind else torch.ones_like(rows[:, :1])
        reader = gain * rows * inverse
        offset = parts.sum(1) * 0 if known.bias is None else parts @ known.bias[tokens_used].to(parts)
        return Readout(
            prompt=prompt,
            position=position,
            reader=_centred(reader) if known.norm_kind == "layer_norm" else reader,
            stream=before,
            norm_bias=(rows * shift).sum(-1),
            unembedding_bias=offset,
            value=(rows * after).sum(-1) + offset,
        )


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _inverse_scale(unscaled: Tensor, normed: Tensor) -> Tensor:
    """``1 / s`` of every row, ``[P, 1]``: by what the norm has in fact multiplied.

    Taken from the norm's own output, so that it holds whatever the norm calls its epsilon, and whatever it computes in.
    """
    square = (unscaled * unscaled).sum(-1, keepdim=True)
    inverse = (unscaled * normed).sum(-1, keepdim=True) / square.clamp_min(torch.finfo(square.dtype).tiny)
    left = (normed - inverse * unscaled).norm(dim=-1)
    if bool((left > _NORM_TOLERANCE * normed.norm(dim=-1) + 1e-12).any()):
        raise ValueError(
            "the final norm does something else than its family's norm, so that no scale can be frozen; use "
            "gradient_attribution, which asks nothing of it"
        )
    return inverse


def _logit_weights(metric: Metric, tokens: Tensor, vocab: int) -> Tensor:
    """By what the metric multiplies each logit, ``[B, T, V]``.

    Raises:
        ValueError: that depends on the logits: the metric is not linear in them.
    """

    def gradient(logits: Tensor) -> Tensor:
        with torch.enable_grad():
            logits.requires_grad_()
            value = metric(logits, tokens)
            (found,) = torch.autograd.grad(value.sum(), logits)
        return found

    shape = (*tokens.shape, vocab)
    at_zero = gradient(torch.zeros(shape, device=tokens.device))
    generator = torch.Generator().manual_seed(0)
    one_token = torch.randn(vocab, generator=generator).to(tokens.device)
    elsewhere = gradient(one_token.expand(shape).clone())
    zero = metric(torch.zeros(shape, device=tokens.device), tokens)
    if not torch.equal(at_zero, elsewhere) or bool((zero != 0).any()):
        raise ValueError(
            f"direct attribution splits a logit or a difference of logits, which are sums over features; {metric} is not "
            "linear in the logits: use gradient_attribution or integrated_attribution"
        )
    return at_zero
