"""What is done to activations before a dictionary trains on them, and how it goes into the weights afterwards.

* ``scale``: one factor that brings the mean norm to sqrt(width), so that learning rates and penalties mean the same for
  every model; ``unit_scale`` brings it to 1. A transcoder's target has a factor of its own, and so has every source of
  a crosscoder.
* ``layer_norm``: each token by its own mean and spread (Gao et al. 2024).
* ``whitening``: ``(x - mean) @ E diag(lambda + eps)^-1/2`` with the covariance's eigenvectors E (arXiv 2511.13981). eps
  is 1e-3 of the mean eigenvalue, so that the result does not depend on the activations' unit.
* ``none``.

Statistics are measured once, before the first step. While a dictionary trains it lives in the normalised space;
whenever it is saved or given back it is folded to raw activations: exactly into the weights, or, where that is
impossible (layer norm; whitening before an encoder that is the decoder), kept as the dictionary's input normalisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Crosscoder, Dictionary
from saescope.dictionaries.normalization import ConstantNorm, LayerNorm, NoNormalization, Whitening

NORMALIZATIONS = ("scale", "unit_scale", "layer_norm", "whitening", "none")
_WHITENING_EPS = 1e-3


class Normalizer(ABC):
    """A measured normalisation."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Raw to normalised inputs, ``[B, d_in]``."""

    def apply_to_target(self, y: Tensor) -> Tensor:
        """Raw to normalised targets of a transcoder, ``[B, d_out]``."""
        return self.scale_out * y

    def undo(self, x_hat: Tensor, x: Tensor, *, crossing: bool) -> Tensor:
        """Normalised reconstructions to raw ones; ``x`` are the raw inputs, ``crossing`` says that it is a transcoder."""
        return x_hat / self.scale_out if crossing else self.undo_own(x_hat, x)

    @abstractmethod
    def undo_own(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The same for a dictionary that rebuilds its own input."""

    scale_out: float = 1.0

    @abstractmethod
    def fold_into(self, dictionary: Dictionary) -> None:
        """Make a dictionary on normalised activations one on raw activations."""

    @abstractmethod
    def unfold_from(self, dictionary: Dictionary) -> None:
        """The way back."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors, and values that JSON can hold."""


class Scale(Normalizer):
    """One factor; for crosscoders one per source."""

    def __init__(self, scale_in: float, scale_out: float, per_dimension: Tensor | None = None) -> None:
        """``per_dimension``: factors ``[d_in]`` of a crosscoder's sources, in the place of ``scale_in``."""
        self.scale_in, self.scale_out, self.per_dimension = scale_in, scale_out, per_dimension

    def apply(self, x: Tensor) -> Tensor:
        return x * (self.scale_in if self.per_dimension is None else self.per_dimension.to(x))

    def undo_own(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return x_hat / (self.scale_in if self.per_dimension is None else self.per_dimension.to(x_hat))

    def fold_into(self, dictionary: Dictionary) -> None:
        if self.per_dimension is None:
            dictionary.fold_scale(self.scale_in, self.scale_out)
        else:
            dictionary.fold_affine(torch.zeros_like(self.per_dimension), self.per_dimension, 1 / self.per_dimension)

    def unfold_from(self, dictionary: Dictionary) -> None:
        if self.per_dimension is None:
            dictionary.fold_scale(1 / self.scale_in, 1 / self.scale_out)
        else:
            dictionary.fold_affine(torch.zeros_like(self.per_dimension), 1 / self.per_dimension, self.per_dimension)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"kind": "scale", "scale_in": self.scale_in, "scale_out": self.scale_out}
        return state if self.per_dimension is None else state | {"per_dimension": self.per_dimension}


class PerTokenLayerNorm(Normalizer):
    """Layer norm of inputs; a transcoder's target is scaled."""

    def __init__(self, scale_out: float) -> None:
        self.scale_out = scale_out

    def apply(self, x: Tensor) -> Tensor:
        return LayerNorm().normalise(x)

    def undo_own(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return LayerNorm().undo(x_hat, x)

    def fold_into(self, dictionary: Dictionary) -> None:
        dictionary.input_normalization = LayerNorm()
        if self.scale_out != 1:
            dictionary.fold_scale(1.0, self.scale_out)

    def unfold_from(self, dictionary: Dictionary) -> None:
        dictionary.input_normalization = NoNormalization()
        if self.scale_out != 1:
            dictionary.fold_scale(1.0, 1 / self.scale_out)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "layer_norm", "scale_out": self.scale_out}


class Whiten(Normalizer):
    """Whitening of inputs; a transcoder's target is scaled."""

    def __init__(self, mean: Tensor, matrix: Tensor, inverse: Tensor, scale_out: float) -> None:
        self.mean, self.matrix, self.inverse, self.scale_out = mean, matrix, inverse, scale_out

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x)) @ self.matrix.to(x)

    def undo_own(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return x_hat @ self.inverse.to(x_hat) + self.mean.to(x_hat)

    def fold_into(self, dictionary: Dictionary) -> None:
        if dictionary.encoder_rows is None:
            own = (t.to(dictionary.b_dec) for t in (self.mean, self.matrix, self.inverse))
            dictionary.input_normalization = Whitening(*own)
        else:
            dictionary.fold_affine(self.mean, self.matrix, self.inverse)
            if self.scale_out != 1:
                dictionary.fold_scale(1.0, self.scale_out)

    def unfold_from(self, dictionary: Dictionary) -> None:
        if dictionary.encoder_rows is None:
            dictionary.input_normalization = NoNormalization()
        else:
            if self.scale_out != 1:
                dictionary.fold_scale(1.0, 1 / self.scale_out)
            dictionary.fold_affine(-self.mean @ self.matrix, self.inverse, self.matrix)

    def state_dict(self) -> dict[str, Any]:
        tensors = {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}
        return {"kind": "whitening", "scale_out": self.scale_out, **tensors}


def measure(name: str, x: Tensor, target: Tensor | None, dictionary: Dictionary) -> Normalizer:
    """Measure a normalisation on raw activations, ``[N, d_in]`` and, for a transcoder, ``[N, d_out]``.

    Raises:
        ValueError: activations without a finite, positive norm, or too few of them for a covariance.
    """
    wanted = 1.0 if name == "unit_scale" else None
    scale_out = 1.0 if target is None or name == "none" else _factor(target, wanted)
    if name == "none":
        return Scale(1.0, 1.0)
    if name == "layer_norm":
        return PerTokenLayerNorm(scale_out)
    if name == "whitening":
        return Whiten(*_whitening(x), scale_out)
    if isinstance(dictionary, Crosscoder):
        parts = [torch.full((p.shape[-1],), _factor(p, wanted), dtype=torch.float64) for p in dictionary.of_sources(x)]
        return Scale(1.0, 1.0, torch.cat(parts))
    scale_in = _factor(x, wanted)
    return Scale(scale_in, scale_in if target is None else scale_out)


def measure_again(name: str, x: Tensor, target: Tensor | None, dictionary: Dictionary) -> Normalizer:
    """Measure for a dictionary that is trained further: what it keeps as its input normalisation, it keeps.

    Raises:
        ValueError: the dictionary keeps a normalisation and ``name`` is another one, or the other way round.
    """
    kept = dictionary.input_normalization
    if isinstance(kept, ConstantNorm):
        raise ValueError("this dictionary brings every token to one norm, with which saescope does not train")
    keeps = {LayerNorm: "layer_norm", Whitening: "whitening"}.get(type(kept), "")
    if keeps and name != keeps:
        raise ValueError(
            f'this dictionary keeps {keeps} of its inputs: train it further with normalization = "{keeps}"'
        )
    if not keeps and (name == "layer_norm" or (name == "whitening" and dictionary.encoder_rows is None)):
        raise ValueError(
            f"this dictionary was trained without {name}, and would compute something else with it; choose another "
            "normalization"
        )
    if isinstance(kept, Whitening):
        return Whiten(kept.mean.double().cpu(), kept.matrix.double().cpu(), kept.inverse.double().cpu(), 1.0)
    return measure(name, x, target, dictionary)


def normalizer_from(state: dict[str, Any]) -> Normalizer:
    """What :meth:`Normalizer.state_dict` described."""
    settings = {key: value for key, value in state.items() if key != "kind"}
    kinds: dict[str, type[Normalizer]] = {"scale": Scale, "layer_norm": PerTokenLayerNorm, "whitening": Whiten}
    return kinds[state["kind"]](**settings)


def _factor(x: Tensor, wanted: float | None) -> float:
    """The factor that brings the mean norm to ``wanted``, or to the square root of the width."""
    norm = float(x.norm(dim=-1).double().mean())
    if not 0 < norm < float("inf"):
        raise ValueError("the activations have no finite, positive norm; is this the right hook point?")
    return (x.shape[-1] ** 0.5 if wanted is None else wanted) / norm


def _whitening(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if len(x) <= x.shape[-1]:
        raise ValueError(
            f"whitening of width {x.shape[-1]} needs more than {len(x)} activations; raise num_normalization_tokens"
        )
    x = x.double()
    mean = x.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    spread = (eigenvalues.clamp_min(0) + _WHITENING_EPS * eigenvalues.mean().clamp_min(1e-300)).sqrt()
    return mean.cpu(), (vectors / spread).cpu(), (spread[:, None] * vectors.T).cpu()
