"""Training: the loop, losses, schedules, the optimizer step, checkpoints. Needs torch and a stream of tensors, no more."""

from saescope.training.loop import NonFiniteActivationsError, StepMetrics, TrainingConfig, TrainingResult, train
from saescope.training.losses import AuxKConfig, L1Config, Loss, LossTerms, loss_config_type, loss_for

__all__ = [
    "AuxKConfig",
    "L1Config",
    "Loss",
    "LossTerms",
    "NonFiniteActivationsError",
    "StepMetrics",
    "TrainingConfig",
    "TrainingResult",
    "loss_config_type",
    "loss_for",
    "train",
]
