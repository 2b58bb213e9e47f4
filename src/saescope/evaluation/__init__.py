"""Evaluation: numbers with a verdict."""

from saescope.evaluation.reconstruction import Evaluation, ModelLoss, evaluate
from saescope.evaluation.targets import TARGETS, Target, verdicts

__all__ = ["TARGETS", "Evaluation", "ModelLoss", "Target", "evaluate", "verdicts"]
