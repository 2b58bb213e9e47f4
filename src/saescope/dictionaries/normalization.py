"""What a dictionary does to an activation before it encodes it, where that can not be folded into its weights.

A factor or a linear map is folded into weights and biases when a dictionary is saved, and nothing of it remains. Two
things can not be: layer norm and constant norm, which divide every token by a number of its own, and a linear map in
front of an encoder that is the decoder (matching pursuit). These are kept here, applied first and undone last.

B  tokens, d  activation width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5  # added to the standard deviation, as SAELens does


class InputNormalization(nn.Module):
    """Before the encoder and after the decoder."""

    name: str = "none"  # normalize_activations in cfg.json

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def undo(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        """Bring a reconstruction back to the units of ``x``, the input that it came from."""
        return x_hat

    def undo_direction(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """What decoder rows ``[..., d]`` are in the units of ``x``: how ``undo`` changes with its argument."""
        return rows


class NoNormalization(InputNormalization):
    """Activations as they are."""


class PerToken(InputNormalization, ABC):
    """Divides every token by a number of its own, and so needs the input again to undo it."""

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """What features write on each token is multiplied by this, ``[..., 1]``."""

    def undo(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        return self.undo_direction(x_hat, x)

    def undo_direction(self, rows: Tensor, x: Tensor | None) -> Tensor:
        if x is None:
            raise ValueError(
                "this dictionary normalises every token, and needs the input again to undo it: decode(f, x), or "
                "dictionary(x) for both steps"
            )
        return rows * self.spread(x)


class LayerNorm(PerToken):
    """Each token less its mean, divided by its standard deviation (of d - 1) plus 1e-5.

    Undone with the standard deviation alone, as in the code of Gao et al. 2024 and in SAELens, whose files this opens.
    """

    name = "layer_norm"

    def normalise(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (self.spread(x) + LAYER_NORM_EPS)

    def undo(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        undone = super().undo(x_hat, x)
        return undone if x is None else undone + x.mean(-1, keepdim=True)

    def spread(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 2:
            raise ValueError("layer norm needs activations of width 2 or more")
        return x.std(-1, keepdim=True)


class ConstantNorm(PerToken):
    """Each token brought to norm sqrt(d); SAELens' name for it."""

    name = "constant_norm_rescale"

    def normalise(self, x: Tensor) -> Tensor:
        return x / self.spread(x)

    def spread(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5


class Whitening(InputNormalization):
    """``(x - mean) @ matrix``, undone by ``x_hat @ inverse + mean``."""

    name = "saescope/whitening"
    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> None:
        """``mean [d]``, ``matrix`` and ``inverse [d, d]``."""
        super().__init__()
        for name, tensor in (("mean", mean), ("matrix", matrix), ("inverse", inverse)):
            self.register_buffer(name, tensor.clone(memory_format=torch.contiguous_format))

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.matrix

    def undo(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        return x_hat @ self.inverse + self.mean

    def undo_direction(self, rows: Tensor, x: Tensor | None) -> Tensor:
        return rows @ self.inverse


def input_normalization(name: str, d_in: int) -> InputNormalization:
    """The normalisation of this name, its tensors to be filled in; ValueError where the name is not known."""
    if name == Whitening.name:
        return Whitening(torch.zeros(d_in), torch.zeros(d_in, d_in), torch.zeros(d_in, d_in))
    kinds = {kind.name: kind for kind in (NoNormalization, LayerNorm, ConstantNorm)}
    if name not in kinds:
        raise ValueError(f"normalize_activations = {name!r} can not be opened so far; known are {', '.join(kinds)}")
    return kinds[name]()
