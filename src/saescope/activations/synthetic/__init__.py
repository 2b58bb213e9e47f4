"""Synthetic activations: tokens made of known features, and scores of a dictionary against them.

What a dictionary finds in a model's activations cannot be compared with the truth, since nobody knows it. Here it is drawn:
atoms (directions), a rule of firing, magnitudes. :class:`SyntheticStream` gives the tokens alone, as any other stream for
training; :meth:`SyntheticData.held_out` gives tokens with their true codes, for the scores.
"""

from saescope.activations.synthetic.atoms import (
    Coherence,
    coherence,
    near_orthogonal_atoms,
    orthonormal_atoms,
    random_atoms,
)
from saescope.activations.synthetic.data import (
    Samples,
    SyntheticData,
    SyntheticStream,
)
from saescope.activations.synthetic.dependence import (
    GaussianCopula,
    Hierarchy,
    random_correlation,
    repair_correlation,
)
from saescope.activations.synthetic.firing import (
    Bernoulli,
    ExactSupports,
    Firing,
    constant_probabilities,
    linear_probabilities,
    zipf_probabilities,
    zipf_weights,
)
from saescope.activations.synthetic.magnitudes import FoldedNormal, Magnitudes, Ones, RectifiedNormal
from saescope.activations.synthetic.matching import (
    Matching,
    Spread,
    Uniqueness,
    child_parent_cosine,
    matched_cosine,
    mean_row_max,
    order,
    pairwise_consistency,
    random_baseline,
    stability,
    uniqueness,
)
from saescope.activations.synthetic.scores import (
    Absorption,
    FiringAgreement,
    absorption,
    firing_agreement,
    fvu,
    mean_l0,
    shrinkage,
)

__all__ = [
    "Absorption",
    "Bernoulli",
    "Coherence",
    "ExactSupports",
    "Firing",
    "FiringAgreement",
    "FoldedNormal",
    "GaussianCopula",
    "Hierarchy",
    "Magnitudes",
    "Matching",
    "Ones",
    "RectifiedNormal",
    "Samples",
    "Spread",
    "SyntheticData",
    "SyntheticStream",
    "Uniqueness",
    "absorption",
    "child_parent_cosine",
    "coherence",
    "constant_probabilities",
    "firing_agreement",
    "fvu",
    "linear_probabilities",
    "matched_cosine",
    "mean_l0",
    "mean_row_max",
    "near_orthogonal_atoms",
    "order",
    "orthonormal_atoms",
    "pairwise_consistency",
    "random_atoms",
    "random_baseline",
    "random_correlation",
    "repair_correlation",
    "shrinkage",
    "stability",
    "uniqueness",
    "zipf_probabilities",
    "zipf_weights",
]
