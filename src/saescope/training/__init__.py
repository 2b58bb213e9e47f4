"""Training: the loop, losses, schedules, the optimizer step, checkpoints. Needs torch and a stream of tensors, no
more."""

from saescope.training.config import TrainingConfig
from saescope.training.loop import train, train_many
from saescope.training.losses import Loss, LossTerms, loss_config_type, loss_for, register_loss
from saescope.training.records import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    StepMetrics,
    TrainingBatch,
    TrainingResult,
)
from saescope.training.run import Run

__all__ = [
    "Loss",
    "LossTerms",
    "NonFiniteActivationsError",
    "NonFiniteLossError",
    "Run",
    "StepMetrics",
    "TrainingBatch",
    "TrainingConfig",
    "TrainingResult",
    "loss_config_type",
    "loss_for",
    "register_loss",
    "train",
    "train_many",
]
