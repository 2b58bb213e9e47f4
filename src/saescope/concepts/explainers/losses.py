"""Criteria: what ``fit`` minimises where the architecture's own loss is not wanted.

A criterion is called with ``(x, x_hat, pre_codes, codes, dictionary)`` and gives a scalar; one that has a parameter ``dead``
is given the concepts that have been silent for long, too. Everything is in units of the activations that ``fit`` was given.

Sparsity belongs to the architecture. The criteria here say how reconstructions are judged, so ReLU and JumpReLU
concepts keep their penalty beside them, in the proportion that it has in their own loss; a criterion of a user's own is
all there is.

    MSE                       mean over rows and dimensions of (x - x_hat)^2
    DeadNeuronsReanimation    MSE - coefficient * mean over rows and dead concepts of pre_codes

n  rows, d  activation width, c  concepts.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries import Dictionary, JumpReLU, ReLU
from saescope.training.losses import Batch, Codes, Loss, SumOfTerms, Term, loss_for
from saescope.training.losses.base import Weight

_ARGUMENTS = "(x, x_hat, pre_codes, codes, dictionary)"


class SAELoss(ABC):
    """A criterion.

    Attributes:
        with_penalty: whether the architecture's sparsity penalty is added; not, unless a class says so.
    """

    with_penalty: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor | None, codes: Tensor, dictionary: Tensor) -> Tensor:
        """A scalar, of ``x`` and ``x_hat`` ``[n, d]``, ``pre_codes`` and ``codes`` ``[n, c]``, ``dictionary``
        ``[c, d]``."""


class MSELoss(SAELoss):
    """Mean squared error over rows and dimensions."""

    with_penalty = True

    def __call__(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor | None, codes: Tensor, dictionary: Tensor) -> Tensor:
        return F.mse_loss(x_hat, x)


class DeadNeuronsReanimationLoss(SAELoss):
    """Mean squared error, and a push on what dead concepts would answer.

    The push is the mean over dead concepts: that on each of them does not fade with the number of living ones. Matching
    pursuit has no pre-codes; there the rows of dead concepts are turned towards what the others left over.
    """

    with_penalty = True

    def __init__(self, coefficient: float = 1e-3) -> None:
        if not coefficient >= 0:
            raise ValueError(f"coefficient must not be negative, got {coefficient}")
        self.coefficient = coefficient

    def __call__(
        self,
        x: Tensor,
        x_hat: Tensor,
        pre_codes: Tensor | None,
        codes: Tensor,
        dictionary: Tensor,
        dead: Tensor | None = None,
    ) -> Tensor:
        """``dead``: bool, ``[c]``; the concepts without a code in ``codes`` when left out."""
        dead = ~(codes != 0).any(0) if dead is None else dead
        error = F.mse_loss(x_hat, x)
        if not dead.any():
            return error
        left = (x - x_hat).detach()
        answers = left @ dictionary[dead].T if pre_codes is None else pre_codes[:, dead]  # [n, number of dead]
        return error - self.coefficient * answers.mean()


class SAELossClasses(Enum):
    """The criteria by name; calling a member makes an instance."""

    MSE = MSELoss
    DeadNeuronsReanimation = DeadNeuronsReanimationLoss

    def __call__(self, *args: Any, **kwargs: Any) -> SAELoss:
        return self.value(*args, **kwargs)


Criterion = Callable[..., Tensor]


def criterion_from(given: Any) -> Criterion | None:
    """A callable of a class, an instance, a member of :class:`SAELossClasses` or a function; None stays None.

    Raises:
        ValueError: something that can not be called with the five arguments.
    """
    if given is None:
        return None
    if isinstance(given, SAELossClasses | type):
        name = given.name if isinstance(given, SAELossClasses) else given.__name__
        try:
            given = given()
        except TypeError as error:
            raise ValueError(
                f"criterion {name} can not be made without arguments ({error}); give an instance of it"
            ) from error
    if not callable(given):
        raise ValueError(f"criterion is a class, an instance or a function called with {_ARGUMENTS}, not {given!r}")
    try:
        more = {"dead": None} if _takes_dead(given) else {}
        inspect.signature(_function(given)).bind(*[None] * 5, **more)
    except TypeError as error:
        raise ValueError(f"criterion is called with {_ARGUMENTS}; {_name(given)} is not: {error}") from error
    except ValueError:  # a builtin that does not say what it takes
        pass
    return given


def _function(criterion: Criterion) -> Callable[..., Any]:
    return criterion.forward if isinstance(criterion, nn.Module) else criterion


def _name(criterion: Criterion) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)


def _takes_dead(criterion: Criterion) -> bool:
    try:
        return "dead" in inspect.signature(_function(criterion)).parameters
    except ValueError:
        return False


class CriterionTerm(Term):
    """A criterion as a term of a loss, in units of the activations before normalisation."""

    def __init__(self, criterion: Criterion, scale: float) -> None:
        """``scale``: what activations are multiplied by in training."""
        self.criterion, self.scale, self.takes_dead = criterion, scale, _takes_dead(criterion)

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        s = self.scale
        more = {"dead": batch.dead} if self.takes_dead else {}
        pre = None if codes.pre is None else codes.pre / s
        value = self.criterion(batch.x / s, codes.x_hat / s, pre, codes.f / s, dictionary.W_dec, **more)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"criterion {_name(self.criterion)} should give a scalar tensor, but gave {got}")
        return value.reshape(())


_PENALTIES = ("l1", "lp", "step", "quadratic", "tanh")  # terms of the losses of ReLU and JumpReLU dictionaries


def loss_with(criterion: Criterion | None, dictionary: Dictionary, settings: dict[str, Any], scale: float) -> Loss:
    """What is minimised: the architecture's own loss, or the criterion, with or without a penalty.

    The own losses have the squared error summed over d in normalised units; MSE is its mean in raw ones. So a penalty beside
    MSE is divided by ``d scale^2``, and both have their minimum at the same weights.
    """
    own = loss_for(dictionary, settings)
    if criterion is None:
        return own
    terms: dict[str, tuple[Term, Weight]] = {"criterion": (CriterionTerm(criterion, scale), 1.0)}
    if getattr(criterion, "with_penalty", False) and isinstance(dictionary, ReLU | JumpReLU):
        assert isinstance(own, SumOfTerms)
        part = 1 / (dictionary.d_in * scale**2)
        terms |= {name: (t, _times(part, w)) for name, (t, w) in own.terms.items() if name in _PENALTIES}
    return SumOfTerms(terms)


def _times(part: float, weight: Weight) -> Weight:
    if callable(weight):
        return lambda batch: part * weight(batch)
    return part * weight


def total_of(value: Tensor) -> Tensor:
    """A loss in float32 at least, so that sums over an epoch keep its digits."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
