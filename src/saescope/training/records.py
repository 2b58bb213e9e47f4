"""What goes into a run and what comes out of it: batches, metrics, results, and the ways it can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from saescope.dictionaries import Dictionary


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What is reported every ``log_every_n_steps`` (one line of metrics.jsonl). Shares are of d_sae features."""

    step: int  # steps done
    num_tokens: int
    loss: float
    explained_variance: float  # of this batch, with the weights after the step
    l0: float
    dead_share: float  # features without a firing in the last dead_after_tokens
    grad_norm: float
    lr: float
    tokens_per_second: float
    num_skipped_steps: int  # steps so far whose loss was not finite
    parts: dict[str, float]  # of the loss, without their weights


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The trained dictionary (on raw activations) and the state it ended in."""

    dictionary: Dictionary
    num_steps: int
    num_tokens: int
    dead_share: float  # features without a firing in the last dead_after_tokens training tokens
    seconds: float  # of this call
    last: StepMetrics | None


@dataclass(frozen=True)
class TrainingBatch:
    """What a stream may give in the place of a plain tensor."""

    x: Tensor  # [B, d_in]
    target: Tensor | None = None  # [B, d_out], what is to be rebuilt where that is not x
    context: Any = None  # for losses on the model's output


@runtime_checkable
class Resumable(Protocol):
    """What a stream of batches needs so that a run can go on exactly where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream: tensors and values that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class NonFiniteActivationsError(ValueError):
    """A batch held NaN or infinity; the state before it is in a checkpoint, from which a run goes on after the
    batch."""


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite in float32; the state before it is in a checkpoint."""


class StreamEndedError(ValueError):
    """The stream of batches has ended before the training."""
