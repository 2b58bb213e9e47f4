"""Concepts from sparse autoencoders, under the class and argument names of interpreto: the thin layer over dictionaries,
losses and the optimizer's step that the rest of saescope is made of. What differs is in :data:`DIFFERENCES`."""

from saescope.concepts.explainers.concept_model import ConceptModel
from saescope.concepts.explainers.differences import DIFFERENCES, Difference
from saescope.concepts.explainers.explainer import SAEExplainer
from saescope.concepts.explainers.losses import DeadNeuronsReanimationLoss, MSELoss, SAELoss, SAELossClasses
from saescope.concepts.explainers.saes import (
    BatchTopKSAE,
    BatchTopKSAEConcepts,
    JumpReLUSAE,
    JumpReLUSAEConcepts,
    MpSAE,
    MpSAEConcepts,
    TopKSAE,
    TopKSAEConcepts,
    VanillaSAE,
    VanillaSAEConcepts,
)

__all__ = [
    "DIFFERENCES",
    "BatchTopKSAE",
    "BatchTopKSAEConcepts",
    "ConceptModel",
    "DeadNeuronsReanimationLoss",
    "Difference",
    "JumpReLUSAE",
    "JumpReLUSAEConcepts",
    "MSELoss",
    "MpSAE",
    "MpSAEConcepts",
    "SAEExplainer",
    "SAELoss",
    "SAELossClasses",
    "TopKSAE",
    "TopKSAEConcepts",
    "VanillaSAE",
    "VanillaSAEConcepts",
]
