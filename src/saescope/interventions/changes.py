"""What can be done to features while a model runs.

A dictionary writes an activation as ``x = sum_i f_i d_i + b + error``. Every change below moves x and nothing else, so that
the error, which the dictionary does not explain, **stays as it is**. Only ``Splice(site, error_term=False)`` leaves it
out: then the model goes on from what the dictionary has understood. That is the default in all of saescope, and this
is the one place where it is said.

===================  ====================================================================
``Add``              ``x + a d_i``: steering
``Clamp``            ``x + (a - f_i) d_i``: the feature is brought to a
``Scale``            ``x + (s - 1) f_i d_i``
``Ablate``           ``x - f_i d_i``: as if the feature had not fired
``ProjectOut``       ``x - (x . u) u`` with ``u = d_i / |d_i|``: nothing along its direction is left, its own or others'
``Splice``           ``decode(f)`` in the place of x, with or without the error
===================  ====================================================================

Strengths a count in maximum activations of the feature (``Site.max_activation``) unless ``unit="activation"``. Several
changes of one dictionary see the same f, that of the activation as it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Literal

from torch import Tensor

from saescope.interventions.positions import Positions, rules
from saescope.interventions.site import Site, Unit


@dataclass(frozen=True, eq=False, kw_only=True)
class _Placed:
    """Where in the text."""

    positions: Positions = "all"
    special_tokens: bool = False  # whether special tokens are changed too


@dataclass(frozen=True, eq=False)
class Change(_Placed):
    """A change at a dictionary's place."""

    site: Site

    def __post_init__(self) -> None:
        rules(self.positions)


@dataclass(frozen=True, eq=False)
class FeatureChange(Change):
    """A change of one feature."""

    feature: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.site.check_feature(self.feature)

    def __str__(self) -> str:
        return f"{type(self).__name__} of feature {self.feature} at {self.site}"


@dataclass(frozen=True, eq=False)
class _Strong(FeatureChange):
    strength: float
    unit: Unit = "max_activation"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("a strength", self.strength, self)
        if not math.isfinite(self.amount):  # fails now if the maximum is not known
            raise ValueError(f"{self} is no finite activation; choose a smaller strength")

    @cached_property
    def amount(self) -> float:
        """The strength as an activation."""
        return self.site.amount(self.feature, self.strength, self.unit)

    def __str__(self) -> str:
        unit = "" if self.unit == "activation" else " maximum activations"
        return f"{super().__str__()} with strength {self.strength:g}{unit}"


@dataclass(frozen=True, eq=False)
class Add(_Strong):
    """Steer: add ``strength`` times the feature's maximum activation along what it writes."""


@dataclass(frozen=True, eq=False)
class Clamp(_Strong):
    """Bring the feature's activation to ``strength``, wherever it was."""


@dataclass(frozen=True, eq=False)
class Scale(FeatureChange):
    """Multiply the feature's activation by ``factor``; where it does not fire nothing happens."""

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("a factor", self.factor, self)


@dataclass(frozen=True, eq=False)
class Ablate(Change):
    """Set the activations of features to 0, all at once.

    Attributes:
        features: their numbers, or one.
    """

    features: int | Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        for feature in self.each:
            self.site.check_feature(feature)
        if len(set(self.each)) < len(self.each):
            raise ValueError("a feature is named twice among those to be ablated")

    @cached_property
    def each(self) -> tuple[int, ...]:
        return tuple(self.features) if isinstance(self.features, Iterable) else (self.features,)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.each[:5])) + (", ..." if len(self.each) > 5 else "")
        return f"Ablate of features {shown} at {self.site}"


@dataclass(frozen=True, eq=False)
class ProjectOut(FeatureChange):
    """Take away what the activation has along the feature's direction, whoever wrote it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Splice(Change):
    """Let the model go on from the dictionary's reconstruction.

    Attributes:
        error_term: add what the dictionary does not explain, so that by itself nothing changes (the default);
            ``"frozen"``: as a constant, through which no gradient flows.
        codes: what becomes of the feature activations ``[B, T, d_sae]`` before they are decoded, e.g. to take gradients
            there; same shape. Called once in a pass, with a copy of its own. Other changes of the same dictionary come
            after, and go by the activations as they were encoded.
    """

    error_term: bool | Literal["frozen"] = True
    codes: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.error_term, bool) and self.error_term != "frozen":
            raise ValueError(f'error_term is True, False or "frozen", not {self.error_term!r}')

    def __str__(self) -> str:
        return f"Splice at {self.site}"


def _require_number(what: str, value: float, change: FeatureChange) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what} is a finite number, not {value!r}, for feature {change.feature} at {change.site}")
