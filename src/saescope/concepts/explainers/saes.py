"""The five sparse autoencoders of the concept API, each a dictionary of saescope with its own loss.

================  ======================  ==============================================================
class             dictionary              what makes it sparse
================  ======================  ==============================================================
VanillaSAE        ReLU                    an L1 penalty, ``l1_coefficient``
TopKSAE           TopK                    the ``top_k`` largest codes of each row
BatchTopKSAE      BatchTopK               ``top_k`` codes per row on average; one threshold afterwards
JumpReLUSAE       JumpReLU                an L0 penalty, ``l0_coefficient`` or ``target_l0``
MpSAE             MatchingPursuit         ``k`` greedy steps
================  ======================  ==============================================================

Penalties and bandwidths are in units of activations of mean norm sqrt(d), which ``fit`` brings activations to. The names
with "Concepts" behind them are the same classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saescope.concepts.explainers.explainer import SAEExplainer
from saescope.dictionaries import BatchTopK, Dictionary, JumpReLU, MatchingPursuit, ReLU, TopK
from saescope.training.losses import loss_config_type

_MOST_ACTIVE = 32  # codes per row where nothing is said; fewer with less than 320 concepts
_L1, _L0 = 0.18, 0.02  # penalties where nothing is said, as shares of sqrt(d) and d
_FIRST_SHARE = 0.1  # of the rows that a concept fires on at first, where a penalty decides in the end


class VanillaSAEConcepts(SAEExplainer):
    """Concepts of a ReLU dictionary (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600).

    Keywords: ``l1_coefficient`` of the mean over rows of sum_i z_i |D_i|, beside the squared error summed over d;
    0.18 sqrt(d) when left out (5 at d = 768), as codes grow with sqrt(d) and the error with d. 0 makes the dense autoencoder
    that the original has.
    """

    kind = ReLU
    options = ("l1_coefficient",)

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        loss = {"l1_coefficient": _L1 * shared["d_in"] ** 0.5, **_given(options)}
        share = _FIRST_SHARE if loss["l1_coefficient"] else None
        return {"config": ReLU.Config(**shared), "loss": _checked(ReLU, loss), "first_share": share}


class TopKSAEConcepts(SAEExplainer):
    """Concepts of a TopK dictionary (Gao et al. 2024, arXiv 2406.04093).

    Keywords: ``top_k`` (or ``k``), codes per row; a tenth of the concepts and at most 32 when left out. ``aux_coefficient``
    (1/32) of the AuxK loss that revives dead concepts.
    """

    kind = TopK
    options = ("top_k", "k", "aux_coefficient")

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        k = _k(options, _few(shared["d_sae"]))
        return {"config": TopK.Config(**shared, k=k), "loss": _checked(TopK, _given(options))}


class BatchTopKSAEConcepts(SAEExplainer):
    """Concepts of a BatchTopK dictionary (Bussmann et al. 2024, arXiv 2412.06410).

    Keywords: ``top_k`` (or ``k``), codes per row on average, which need not be whole; as for TopK when left out.
    ``threshold_momentum`` of the running threshold; what counts in the end is measured after the last step.
    ``aux_coefficient`` as for TopK.
    """

    kind = BatchTopK
    options = ("top_k", "k", "threshold_momentum", "aux_coefficient")

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        momentum = options.pop("threshold_momentum", None)
        k = _k(options, _few(shared["d_sae"]))
        config = BatchTopK.Config(**shared, k=k)
        return {"config": config, "loss": _checked(BatchTopK, _given(options)), "threshold_momentum": momentum}


class JumpReLUSAEConcepts(SAEExplainer):
    """Concepts of a JumpReLU dictionary (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Keywords: ``l0_coefficient`` of the mean number of codes per row, beside the squared error summed over d; 0.02 d
        when left
    out: a code stays that explains two hundredths of a row. Or ``target_l0``, the number itself; ``l0_coefficient`` is
    then of (L0 / target - 1)^2, and d when left out. ``bandwidth`` (0.05) of the kernel that gives thresholds a gradient.
    ``initial_threshold``; when left out, thresholds are measured on the first rows, so that each concept fires on a tenth of
    them (or as often as ``target_l0`` wants).
    """

    kind = JumpReLU
    options = ("l0_coefficient", "target_l0", "bandwidth", "initial_threshold")

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        loss = _given(options)
        own = {name: loss.pop(name) for name in ("bandwidth", "initial_threshold") if name in loss}
        d, target = shared["d_in"], loss.get("target_l0")
        if target is None:
            loss = {"l0_coefficient": _L0 * d, **loss}
        else:
            loss = {"l0_coefficient": float(d), "penalty": "quadratic", **loss}
        share = _FIRST_SHARE if target is None else min(1.0, target / shared["d_sae"])
        return {
            "config": JumpReLU.Config(**shared, **own),
            "loss": _checked(JumpReLU, loss),
            "first_share": None if "initial_threshold" in own or not loss["l0_coefficient"] else share,
        }


class MpSAEConcepts(SAEExplainer):
    """Concepts of matching pursuit (Costa et al. 2025, arXiv 2506.03093): atoms of norm 1, and no encoder.

    Keywords: ``k`` (or ``top_k``), greedy steps per row (1); ``encode_activations(x, k=...)`` takes another number.
    ``dropout``, the share of atoms that a training pass does without.
    """

    kind = MatchingPursuit
    options = ("k", "top_k", "dropout")

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        dropout = options.pop("dropout", None)
        k = _k(options, 1)
        config = MatchingPursuit.Config(**shared, k=k, residual_threshold=0.0, stop_on_repeat=False)
        return {"config": config, "dropout": dropout}

    @torch.no_grad()
    def residual_energies(self, activations: Tensor, k: int | None = None) -> Tensor:
        """What each step leaves over: squared norms of the residual before the first step and after each, ``[n, k + 1]``.

        Fewer columns where all rows have stopped before, as no atom had a positive product with what was left.

        Raises:
            RuntimeError: not fitted.
        """
        self._check_fitted("residual_energies")
        dictionary = self.concept_model.dictionary
        assert isinstance(dictionary, MatchingPursuit)
        return dictionary.pursue(activations.to(dictionary.b_dec), k).residual_energies


VanillaSAE = VanillaSAEConcepts
TopKSAE = TopKSAEConcepts
BatchTopKSAE = BatchTopKSAEConcepts
JumpReLUSAE = JumpReLUSAEConcepts
MpSAE = MpSAEConcepts


def _few(nb_concepts: int) -> int:
    return min(_MOST_ACTIVE, max(nb_concepts // 10, 1))


def _k(options: dict[str, Any], otherwise: int) -> Any:
    """The number of codes per row, under either name."""
    given = {name: options.pop(name) for name in ("top_k", "k") if options.get(name) is not None}
    for name in ("top_k", "k"):
        options.pop(name, None)
    if len(set(given.values())) > 1:
        raise ValueError(f"top_k and k are one number, got {given['top_k']} and {given['k']}")
    return next(iter(given.values()), otherwise)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that are None."""
    return {name: value for name, value in options.items() if value is not None}


def _checked(kind: type[Dictionary], loss: dict[str, Any]) -> dict[str, Any]:
    """Settings of the architecture's loss; ValueError now, not when it is fitted."""
    loss_config_type(kind)(**loss)
    return loss
