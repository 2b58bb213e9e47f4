"""Losses that a caller brings: on the model's own output, or any function at all.

End-to-end training (Braun et al. 2024, arXiv 2405.12241) asks what the reconstruction does to the model's predictions.
The model is not known here: :class:`OutputTerm` takes a callable that runs it (``saescope.activations.end_to_end``
builds one for language models), and the stream gives beside each batch the ``context`` that the callable needs, such as
the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.training.losses.base import Batch, Codes, SumOfTerms, Term


class OutputTerm(Term):
    """What the model's output loses when it goes on from the reconstruction: ``function(x_hat, context)``, a scalar.

    The reconstruction is given in units of raw activations, whatever normalisation the dictionary trains in.
    """

    runs_sparse = True

    def __init__(self, function: Callable[[Tensor, Any], Tensor]) -> None:
        self.function = function

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        if batch.context is None:
            raise ValueError(
                "a loss on the model's output needs a stream that gives the context of each batch: "
                "TrainingBatch(x, context=...)"
            )
        return self.function(batch.to_raw(codes.x_hat), batch.context)


class FunctionTerm(Term):
    """A function ``(x, x_hat, pre, f, dictionary)`` that gives a scalar, as criteria of overcomplete and interpreto are
    written."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor | None, Tensor, Dictionary], Tensor]) -> None:
        self.function = function

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        value = self.function(batch.target, codes.x_hat, codes.pre, codes.f, dictionary)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"a loss function gives a scalar tensor, not {_described(value)}")
        return value.reshape(())


class FunctionLoss(SumOfTerms):
    """A user's function as the whole loss."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor | None, Tensor, Dictionary], Tensor]) -> None:
        super().__init__({getattr(function, "__name__", "loss"): (FunctionTerm(function), 1.0)})


def _described(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
