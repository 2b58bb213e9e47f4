"""Training: the loop, losses, schedules, the optimizer step, checkpoints. Needs torch and a stream of tensors, no
more."""

from saescope.training.loop import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    StepMetrics,
    TrainingBatch,
    TrainingConfig,
    TrainingResult,
    train,
)
from saescope.training.losses import Loss, LossTerms, loss_config_type, loss_for, register_loss

__all__ = [
    "Loss",
    "LossTerms",
    "NonFiniteActivationsError",
    "NonFiniteLossError",
    "StepMetrics",
    "TrainingBatch",
    "TrainingConfig",
    "TrainingResult",
    "loss_config_type",
    "loss_for",
    "register_loss",
    "train",
]
