"""The four numbers by which a dictionary is usually called good, whether one meets them, and what to try where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.evaluation.reporting.report import EvaluatedDictionary


@dataclass(frozen=True)
class Target:
    """A range that a number should lie in; either end may be open."""

    name: str
    title: str
    low: float | None = None
    high: float | None = None
    low_included: bool = True
    if_below: tuple[str, ...] = ()
    """What to try where the number is too low; each one a sentence that names the setting."""
    if_above: tuple[str, ...] = ()
    """What to try where it is too high."""

    def met(self, value: float) -> bool:
        above = self.low is None or value > self.low or (self.low_included and value == self.low)
        below = self.high is None or (value <= self.high if self.low is not None else value < self.high)
        return above and below

    def advice(self, value: float) -> tuple[str, ...]:
        """What to try with such a value; nothing where the target is met or the value is not defined."""
        if isnan(value) or self.met(value):
            return ()
        too_low = self.low is not None and value <= self.low
        return self.if_below if too_low else self.if_above

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"{'at least' if self.low_included else 'above'} {self.low:g}"
        return f"below {self.high:g}"


# Every setting named here exists: a test reads the sentences and looks each one up in the configs.
TARGETS = (
    Target(
        "l0",
        "L0 (features per token)",
        low=50,
        high=200,
        if_below=(
            "Let more features fire: a larger `k` in [dictionary] (TopK family), a smaller `l1_coefficient` in [loss] "
            "(relu, gated), a smaller `l0_coefficient` or a larger `target_l0` in [loss] (jumprelu).",
            "On a small model fewer than 50 may be right; `saescope advise-l0` measures it on your data.",
        ),
        if_above=(
            "Let fewer features fire: a smaller `k` in [dictionary] (TopK family), a larger `l1_coefficient` in [loss] "
            "(relu, gated), a larger `l0_coefficient` or a smaller `target_l0` in [loss] (jumprelu).",
            "With relu and gated, `p_end = 0.2` in [loss] bends the penalty towards the number of features: a lower L0 for "
            "the same reconstruction.",
        ),
    ),
    Target(
        "ce_loss_recovered",
        "CE loss recovered (zero ablation)",
        low=0.97,
        if_below=(
            "Train on more `num_tokens`, or take a larger `d_sae`; if L0 is below its target, raise that first.",
            "Last in a training, fine-tune on the model's own output (saescope.activations.end_to_end), which asks for this "
            "number and not for the squared error.",
        ),
    ),
    Target(
        "dead_share",
        "dead features (share)",
        high=0.05,
        if_above=(
            "TopK family: AuxK revives features that were silent for `dead_after_tokens`; set that well below `num_tokens`, "
            "and raise `aux_coefficient` in [loss]. Elsewhere: set `resample_every_n_steps`, or add `ghost_gradients` to "
            "the `extra_terms` of [loss].",
            "If they stay dead, halve `lr` and lengthen `num_warmup_steps`, or take a smaller `d_sae`: the data may hold "
            "no more.",
        ),
    ),
    Target(
        "explained_variance",
        "explained variance",
        low=0.90,
        low_included=False,
        if_below=(
            "Train on more `num_tokens`, or take a larger `d_sae`; more features per token (`k`, or a smaller penalty) "
            "explain more too, at the price of sparsity.",
            "Try two or three values of `lr` between 3e-4 and 3e-3, and smaller batches (`batch_size_tokens`) if the run is "
            "short: it then takes more steps.",
        ),
    ),
)


def verdicts(numbers: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Name, value, target, verdict and advice for each of the four; a number that is missing is left out.

    A number that is not defined (None, or NaN) has no verdict.
    """
    found = {target: numbers[target.name] for target in TARGETS if target.name in numbers}
    return [_row(target, float("nan") if value is None else value) for target, value in found.items()]


def target_rows(dictionary: EvaluatedDictionary) -> list[dict[str, Any]]:
    """The same for an evaluated dictionary, with intervals; all four are there, without a value if need be, and why.

    Each number is taken from the study ``core``, else from the first study that has it. Where the share of dead features
    is not known from training, the share that was silent in the evaluation stands in, which says so.
    """
    rows = []
    for target in TARGETS:
        number, note = _find(dictionary, target.name), ""
        if target.name == "dead_share" and (number is None or number.value is None):
            silent = _find(dictionary, "silent_share")
            if silent is not None and silent.value is not None:
                number, note = silent, "features silent in this evaluation; over more text fewer may be"
        if number is None or number.value is None:
            row = _row(target, float("nan")) | {"value": None}
            row["reason"] = "it was not measured" if number is None else number.reason
        else:
            row = _row(target, number.value) | {"low": number.low, "high": number.high}
        rows.append(row | ({"note": note} if note else {}))
    return rows


def _row(target: Target, value: float) -> dict[str, Any]:
    return {
        "name": target.title,
        "value": value,
        "target": str(target),
        "met": None if isnan(value) else target.met(value),
        "advice": list(target.advice(value)),
    }


def _find(dictionary: EvaluatedDictionary, name: str) -> Any:
    """The number of this name in ``core``, else in the first study with a value for it; None if no study has it."""
    found = None
    for _, number in sorted(dictionary.numbers(), key=lambda item: not item[0].startswith("core.")):
        if number.name == name and (found is None or found.value is None):
            found = number
    return found
