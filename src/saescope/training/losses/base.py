"""What a loss is: a sum of terms, each an object with a weight, on one forward pass.

The loop gives a loss the dictionary and a :class:`Batch`; the loss gives back the total, its parts by name, and the
activations that it saw. Terms share one forward pass (:class:`Codes`). The squared error is summed over the
activation's width and averaged over tokens (``mse``), or that as a share of the batch's variance (``nmse``); both are
reported by every loss.

B  tokens, d_in  width of the input, d_out  width of the target, d_sae  features. Activations arrive scaled, as a rule
so that their mean norm is sqrt(width).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import Dictionary, JumpReLU
from saescope.kernels import FlatCodes
from saescope.training.schedules import Shape, check_shape, factor


@dataclass(frozen=True)
class Batch:
    """What a loss is computed on, at which moment of the training."""

    x: Tensor  # [B, d_in]
    target: Tensor  # [B, d_out]: x itself, but for transcoders
    dead: Tensor  # bool, [d_sae]: features that have not fired for ``dead_after_tokens``
    step: int = 0  # from 0
    num_steps: int = 1
    context: Any = None  # what the stream gave beside the activations, for losses on the model's output
    to_raw: Callable[[Tensor], Tensor] = lambda x_hat: x_hat  # reconstructions in units of raw activations

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1)."""
        return self.step / self.num_steps


@dataclass(frozen=True)
class Codes:
    """One forward pass in training form. Terms that ask by methods alone run on sparse passes as well (see
    ``sparse_step.py``)."""

    pre: Tensor | None  # [B, d_sae]; None where an architecture has no pre-activations
    f: Tensor  # [B, d_sae]
    x_hat: Tensor  # [B, d_out]

    def mean_of_sums(self, of: Callable[[Tensor], Tensor], weighed_by: Dictionary | None = None) -> Tensor:
        """mean over tokens of sum_i of(f_i), or of(f_i |W_dec_i|), for a function that is 0 at 0."""
        return of(self.f if weighed_by is None else self.f * weighed_by.decoder_norms).sum(-1).mean()

    def mean_l0(self, dictionary: JumpReLU) -> Tensor:
        """mean over tokens of the number of firings, with a gradient to the thresholds."""
        assert self.pre is not None
        return dictionary.firing(self.pre).sum(-1).mean()

    def dead_part(self, dictionary: Dictionary, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations of some features, ``[B, n]``, and their decoder rows, ``[n, d_out]``."""
        assert self.pre is not None
        return self.pre[:, rows], dictionary.W_dec[rows]

    def prefix_errors(self, dictionary: Dictionary, batch: Batch, widths: Sequence[int]) -> Tensor:
        """Squared error (summed over width, mean over tokens) of the first ``widths[l]`` features, ``[L]``."""
        residual, errors, start = batch.target - dictionary.offset(batch.x), [], 0
        for width in widths:  # at the cost of one decoding
            residual = residual - self.f[:, start:width] @ dictionary.W_dec[start:width]
            errors.append(residual.square().sum(-1).mean())
            start = width
        return torch.stack(errors)


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch: ``total`` (with graph), its parts by name, and the activations it was computed from."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)  # detached scalars, without weights
    f: Tensor | FlatCodes | None = None  # [B, d_sae], detached


class Loss(ABC):
    """Anything that can be minimised. A loss with a memory writes it into ``state_dict`` (values that JSON can
    hold)."""

    @abstractmethod
    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        """The loss on a batch; changes nothing."""

    def after_step(self, batch: Batch) -> None:  # noqa: B027
        """Called once after every optimizer step, not after one that was skipped."""

    def frozen_share(self, progress: float) -> float:
        """Share of the features, from the first, that stand still when ``progress`` of the training is done."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go to a state that :meth:`state_dict` gave."""


class Term(ABC):
    """One part of a loss."""

    @property
    def runs_sparse(self) -> bool:
        """Whether the term asks nothing of a forward pass but ``x_hat`` and methods of :class:`Codes`."""
        return False

    @abstractmethod
    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        """A scalar."""


Weight = float | Callable[[Batch], float]


class SumOfTerms(Loss):
    """A weighted sum of terms on one forward pass.

    Example: ``SumOfTerms({"mse": (SquaredError(), 1.0), "l1": (L1(), 5.0)})``. A weight may be a function of the batch.
    """

    def __init__(self, terms: Mapping[str, tuple[Term, Weight]], k: Callable[[Dictionary, Batch], float] | None = None):
        """``k``: how many features may fire on a token at a moment, where that changes over the training."""
        if not terms:
            raise ValueError("a loss needs at least one term")
        self.terms, self.k = dict(terms), k

    def __call__(self, dictionary: Dictionary, batch: Batch) -> LossTerms:
        pre, f = dictionary.encode_in_training(batch.x, self.k_at(dictionary, batch))
        return self.of_pass(dictionary, batch, Codes(pre, f, dictionary.decode(f, batch.x)), f.detach())

    def k_at(self, dictionary: Dictionary, batch: Batch) -> float | None:
        """Features per token at a moment, where they are not what the dictionary says."""
        return self.k(dictionary, batch) if self.k else None

    def of_pass(self, dictionary: Dictionary, batch: Batch, codes: Any, f: Tensor | FlatCodes) -> LossTerms:
        """The loss on a forward pass that has been made: :class:`Codes`, or a sparse one if :attr:`runs_sparse`."""
        total: Tensor | None = None
        parts = {}
        for name, (term, weight) in self.terms.items():
            weight = weight(batch) if callable(weight) else weight
            with torch.set_grad_enabled(bool(weight) and torch.is_grad_enabled()):
                value = term(dictionary, batch, codes)
            parts[name] = value.detach()
            if weight:
                total = weight * value if total is None else total + weight * value
        if "mse" not in parts:
            with torch.no_grad():
                parts["mse"] = squared_error(codes.x_hat.detach(), batch.target)
        return LossTerms(batch.x.new_zeros(()) if total is None else total, parts, f)

    @property
    def runs_sparse(self) -> bool:
        """Whether every term runs on a sparse forward pass."""
        return all(term.runs_sparse for term, _ in self.terms.values())

    def after_step(self, batch: Batch) -> None:
        for term, _ in self.terms.values():
            if isinstance(term, Remembering):
                term.after_step(batch)

    def state_dict(self) -> dict[str, Any]:
        return {name: term.state_dict() for name, (term, _) in self.terms.items() if isinstance(term, Remembering)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, (term, _) in self.terms.items():
            if isinstance(term, Remembering):
                term.load_state_dict(state[name])


class Remembering(Term):
    """A term with a memory."""

    @abstractmethod
    def after_step(self, batch: Batch) -> None:
        """Called once after every optimizer step."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What every architecture's loss can be told. ``schedule`` and ``warmup_share`` are of the sparsity coefficient."""

    reconstruction: str = (
        "mse"  # "mse": squared error summed over width, mean over tokens; "nmse": as share of variance
    )
    warmup_share: float = 0.0  # the coefficient rises linearly over this share of the training
    schedule: Shape = "constant"
    num_cycles: int = 1
    extra_terms: dict[str, float] = field(default_factory=dict)  # further terms by name, with their weights

    def __post_init__(self) -> None:
        if self.reconstruction not in ("mse", "nmse"):
            raise ValueError(f"reconstruction is 'mse' or 'nmse', not {self.reconstruction!r}")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share must lie in [0, 1], got {self.warmup_share}")
        check_shape(self.schedule, self.num_cycles, 0.0)

    def scheduled(self, coefficient: float) -> Callable[[Batch], float]:
        """The sparsity coefficient over the training: 0 in the first step of a warm-up, full after it."""

        def weight(batch: Batch) -> float:
            num_warmup = round(self.warmup_share * batch.num_steps)
            if batch.step < num_warmup:
                return coefficient * batch.step / num_warmup
            shape = factor(batch.step, batch.num_steps, shape=self.schedule, num_cycles=self.num_cycles)
            return coefficient * shape

        return weight

    def extras(self) -> dict[str, tuple[Term, Weight]]:
        """The further terms, by name."""
        from saescope.training.losses.auxiliary import named_term  # terms are built on this module

        return {name: (named_term(name), weight) for name, weight in self.extra_terms.items()}


def squared_error(x_hat: Tensor, target: Tensor) -> Tensor:
    """Squared error, summed over the width and averaged over tokens."""
    return F.mse_loss(x_hat, target, reduction="sum") / len(target)  # one pass, and no copy of the difference


def share_of_variance(x_hat: Tensor, target: Tensor) -> Tensor:
    """Squared error as a share of the target's variance around the batch's mean."""
    spread = F.mse_loss(target, target.mean(0).expand_as(target), reduction="sum")
    return F.mse_loss(x_hat, target, reduction="sum") / spread.clamp_min(1e-12)


class SquaredError(Term):
    """mean over tokens of |x_hat - target|^2."""

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        return squared_error(codes.x_hat, batch.target)


class NormalisedSquaredError(Term):
    """The squared error as a share of the batch's variance (Gao et al. 2024)."""

    runs_sparse = True

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        return share_of_variance(codes.x_hat, batch.target)


def merged(*parts: Mapping[str, tuple[Term, Weight]]) -> dict[str, tuple[Term, Weight]]:
    """Terms in one dictionary; ValueError for two of one name."""
    terms: dict[str, tuple[Term, Weight]] = {}
    for part in parts:
        twice = sorted(terms.keys() & part.keys())
        if twice:
            raise ValueError(f"the loss has {', '.join(twice)} already; it can not be an extra term")
        terms |= part
    return terms


def reconstruction_term(name: str) -> Term:
    return SquaredError() if name == "mse" else NormalisedSquaredError()


def require(condition: bool, dictionary: Dictionary, what: str, kinds: Sequence[str]) -> None:
    """Refuse a loss for an architecture that lacks what it needs."""
    if not condition:
        raise ValueError(
            f"{what} can not train a {dictionary.architecture} dictionary; it is made for {', '.join(kinds)}"
        )
