"""Losses of JumpReLU dictionaries: penalties on the number of features that fire.

* ``step``: lambda mean L0 (Rajamanoharan et al. 2024, arXiv 2407.14435), through the paper's gradient to the
  thresholds;
* ``quadratic``: lambda (L0 / target_l0 - 1)^2 with the batch's mean L0, which holds L0 at a target;
* ``tanh``: lambda mean sum tanh(c f |W_dec|), a smooth count (Anthropic, January 2025 update).

The step is taken of pre-activations: fed with what the jump has let through, it would have no gradient from just below
the threshold. The pre-activation loss, c mean sum ReLU(threshold - pre) |W_dec| over dead features, brings dead ones
back.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saescope.dictionaries import Dictionary, JumpReLU
from saescope.training.losses.base import (
    Batch,
    Codes,
    LossConfig,
    SumOfTerms,
    Term,
    Weight,
    merged,
    reconstruction_term,
    require,
)

_PENALTIES = ("step", "quadratic", "tanh")


@dataclass(frozen=True, kw_only=True)
class JumpReLULossConfig(LossConfig):
    """Settings of the JumpReLU loss."""

    penalty: str = "step"  # "step", "quadratic" or "tanh"
    l0_coefficient: float = 1.0
    target_l0: float | None = None  # for "quadratic"
    tanh_scale: float = 4.0  # c of "tanh"
    warmup_share: float = 0.1
    pre_act_coefficient: float = 0.0  # of the pre-activation loss on dead features (3e-6 in Anthropic's recipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in _PENALTIES:
            raise ValueError(f"penalty is one of {', '.join(_PENALTIES)}, not {self.penalty!r}")
        if (self.penalty == "quadratic") != (self.target_l0 is not None):
            raise ValueError('target_l0 goes with penalty = "quadratic", and only with it')
        if self.target_l0 is not None and not self.target_l0 > 0:
            raise ValueError(f"target_l0 must be positive, got {self.target_l0}")
        if not self.l0_coefficient >= 0 or not self.pre_act_coefficient >= 0 or not self.tanh_scale > 0:
            raise ValueError("l0_coefficient and pre_act_coefficient must not be negative, tanh_scale must be positive")


class L0(Term):
    """mean over tokens of the number of firings; with a target, (mean / target - 1)^2."""

    def __init__(self, target: float | None = None) -> None:
        self.target = target

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        l0 = codes.mean_l0(_jumprelu(dictionary))
        return l0 if self.target is None else (l0 / self.target - 1).square()


class TanhL0(Term):
    """mean over tokens of sum_i tanh(scale f_i |W_dec_i|)."""

    def __init__(self, scale: float = 4.0) -> None:
        self.scale = scale

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        # without abs(): its slope at 0 would hide the features that the threshold's gradient comes from
        return codes.mean_of_sums(lambda f: (self.scale * f).tanh(), dictionary)


class DeadPreActivations(Term):
    """mean over tokens of sum over dead features of ReLU(threshold - pre) |W_dec|."""

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        rows = batch.dead.nonzero().squeeze(-1)
        below = (_jumprelu(dictionary).threshold[rows] - _pre(codes)[:, rows]).relu()
        return (below @ dictionary.decoder_norms[rows]).mean()


class JumpReLULoss(SumOfTerms):
    """Squared error plus a penalty on L0."""

    def __init__(self, config: JumpReLULossConfig) -> None:
        self.config = config
        penalty: Term = TanhL0(config.tanh_scale) if config.penalty == "tanh" else L0(config.target_l0)
        terms: dict[str, tuple[Term, Weight]] = {
            config.reconstruction: (reconstruction_term(config.reconstruction), 1.0),
            config.penalty: (penalty, config.scheduled(config.l0_coefficient)),
        }
        if config.pre_act_coefficient:
            terms["pre_act"] = (DeadPreActivations(), config.pre_act_coefficient)
        super().__init__(merged(terms, config.extras()))


def _jumprelu(dictionary: Dictionary) -> JumpReLU:
    require(isinstance(dictionary, JumpReLU), dictionary, "a loss on thresholds", ["jumprelu"])
    assert isinstance(dictionary, JumpReLU)
    return dictionary


def _pre(codes: Codes) -> Tensor:
    assert codes.pre is not None
    return codes.pre
