"""The rows that concepts write: how they are normalised, scaled and begun (``dictionary_params``).

With ``l2``, the default, rows are brought back to norm 1 after every step, as everywhere in saescope: the same dictionaries
can come out as from a division that is part of the function. With ``identity`` they are free. The others are part of the
function here too, and so is the one learned factor that ``use_multiplier`` adds::

    D = normalise(weights) * exp(log_scale)

    l1       w_i / |w_i|_1
    max_l2   w_i / max_j |w_j|_2        max_l1   w_i / max_j |w_j|_1

The names are those of overcomplete 0.3.0 (github.com/KempnerInstitute/overcomplete), from which interpreto has them.

c  concepts, d  activation width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saescope.dictionaries import Dictionary

_LEAST = 1e-12  # a row of norm 0 stays 0

NORMALIZATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda w: w / w.norm(dim=-1, keepdim=True).clamp_min(_LEAST),
    "l1": lambda w: w / w.abs().sum(-1, keepdim=True).clamp_min(_LEAST),
    "max_l2": lambda w: w / w.norm(dim=-1).amax().clamp_min(_LEAST),
    "max_l1": lambda w: w / w.abs().sum(-1).amax().clamp_min(_LEAST),
    "identity": lambda w: w,
}
_KEYS = ("normalization", "initializer", "use_multiplier")

Initializer = Callable[[Tensor], Any] | Tensor


@dataclass(frozen=True)
class AtomSettings:
    """What ``dictionary_params`` says."""

    normalization: str | Callable[[Tensor], Tensor] = "l2"
    initializer: Initializer | None = None  # fills a [c, d] tensor in place or returns one; or is one
    use_multiplier: bool = False

    def __post_init__(self) -> None:
        if not callable(self.normalization) and self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"dictionary_params: normalization is one of {', '.join(NORMALIZATIONS)}, or a function of the rows "
                f"[c, d]; got {self.normalization!r}"
            )
        if self.initializer is not None and not callable(self.initializer) and not isinstance(self.initializer, Tensor):
            raise ValueError(
                "dictionary_params: initializer is a tensor [c, d], or a function that fills one in place "
                f"(such as torch.nn.init.xavier_uniform_) or returns one; got {self.initializer!r}"
            )
        if not isinstance(self.use_multiplier, bool):
            raise ValueError(f"dictionary_params: use_multiplier is True or False, got {self.use_multiplier!r}")

    @property
    def unit_rows(self) -> bool:
        """Whether rows have norm 1 and nothing else is to be learned of their length."""
        return self.normalization == "l2" and not self.use_multiplier

    @property
    def is_plain(self) -> bool:
        """Whether the rows are a parameter themselves."""
        return self.unit_rows or (self.normalization == "identity" and not self.use_multiplier)

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        return NORMALIZATIONS[self.normalization] if isinstance(self.normalization, str) else self.normalization

    @property
    def name(self) -> str:
        """For files; a function has no name there."""
        return self.normalization if isinstance(self.normalization, str) else "a function"


def atom_settings(params: Mapping[str, Any] | None) -> AtomSettings:
    """Read ``dictionary_params``.

    Raises:
        ValueError: a key or a value that is not known.
    """
    unknown = sorted(set(params or {}) - set(_KEYS))
    if unknown:
        raise ValueError(f"dictionary_params understands {', '.join(_KEYS)}; not {', '.join(map(repr, unknown))}")
    return AtomSettings(**(params or {}))


class Normalised(Dictionary):
    """A dictionary whose rows are a function of other weights (to be put before an architecture as a base class).

    Attributes:
        weights: ``[c, d]``. log_scale: a scalar, or None without a multiplier.
    """

    unit_norm = False
    normalise: Callable[[Tensor], Tensor]

    def make_decoder(self, rows: Tensor, generator: torch.Generator | None) -> None:
        self.weights = nn.Parameter(rows)
        self.register_parameter("log_scale", None)

    def take_atoms(self, settings: AtomSettings) -> None:
        """Normalise as these settings say."""
        self.normalise = settings.normalise
        if settings.use_multiplier:
            self.log_scale = nn.Parameter(self.weights.new_zeros(()))

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """The rows in effect, ``[c, d]``."""
        rows = self.normalise(self.weights)
        return rows if self.log_scale is None else rows * self.log_scale.exp()

    def normalise_decoder(self) -> None:
        """Nothing: rows are normalised whenever they are used."""


@torch.no_grad()
def begin_atoms(dictionary: Dictionary, settings: AtomSettings) -> None:
    """Fill the rows as the initializer says, and begin the encoder at them.

    Raises:
        ValueError: a shape other than ``[c, d]``, or rows that are not finite.
    """
    weights = dictionary.weights if isinstance(dictionary, Normalised) else dictionary.W_dec
    if settings.initializer is not None:
        given = settings.initializer
        filled = weights.detach().clone()
        made = given if isinstance(given, Tensor) else given(filled)
        made = made if isinstance(made, Tensor) else filled
        if made.shape != weights.shape or not torch.isfinite(made).all():
            raise ValueError(
                f"dictionary_params: the initializer should give finite rows of shape {list(weights.shape)}, "
                f"but gave shape {list(made.shape)}"
            )
        weights.copy_(made.detach().to(weights))
    if settings.unit_rows:
        dictionary.normalise_decoder()
    rows = dictionary.W_dec
    if rows.shape != weights.shape or not torch.isfinite(rows).all():
        raise ValueError(f"dictionary_params: the normalization should give finite rows {list(weights.shape)}")
    if dictionary.encoder_rows is not None:
        dictionary.encoder_rows.copy_(rows)
