"""One step of Adam on a dictionary whose decoder rows have unit norm.

The order is fixed: the gradient's component along each decoder row is projected out (it could only change the norm),
the norm of what is left is clipped, Adam moves the weights, and rows are brought back to unit norm. ``fused=True``
computes the same numbers as torch's default Adam, five times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary


class UnitNormAdam:
    """Adam for one dictionary, which keeps decoder rows at unit norm unless ``unit_norm`` is off."""

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        max_grad_norm: float | None,
        unit_norm: bool,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        """``lr_factors``: multiples of the learning rate for parameters by name, e.g. ``{"threshold": 10.0}``."""
        self.dictionary = dictionary
        self.peak_lr = lr
        self.max_grad_norm = max_grad_norm
        self.unit_norm = unit_norm
        self.parameters = dict(dictionary.named_parameters())
        self.lr_factors = dict(lr_factors or {})
        unknown = sorted(set(self.lr_factors) - set(self.parameters))
        if unknown:
            raise ValueError(f"lr_factors names {', '.join(unknown)}; the parameters are {', '.join(self.parameters)}")
        groups = [{"params": [p], "factor": self.lr_factors.get(name, 1.0)} for name, p in self.parameters.items()]
        if not self.lr_factors:
            groups = [{"params": list(self.parameters.values()), "factor": 1.0}]
        self.adam = torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self.adam.zero_grad()  # what an earlier backward left is no part of this run

    @torch.no_grad()
    def prepare(self, num_frozen: int = 0) -> Tensor:
        """Project and clip the gradients that backward left; returns their norm before clipping (a scalar tensor).

        Args:
            num_frozen: features, from the first, that are to stand still in this step.
        """
        if self.unit_norm:
            self.dictionary.project_decoder_gradient()
        if num_frozen:
            for parameter in self._per_feature():
                if parameter.grad is not None:
                    parameter.grad[:num_frozen] = 0
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm or float("inf"))

    @torch.no_grad()
    def step(self, lr_factor: float, num_frozen: int = 0) -> None:
        """Move the weights by the prepared gradients, and bring them back to where they have a meaning."""
        # Adam moves on by momentum where a gradient is 0: frozen features are put back
        kept = [(p, p[:num_frozen].clone()) for p in self._per_feature()] if num_frozen else []
        for group in self.adam.param_groups:
            group["lr"] = self.peak_lr * lr_factor * group["factor"]
        self.adam.step()
        self.dictionary.constrain()
        if self.unit_norm:
            self.dictionary.normalise_decoder()
        for parameter, rows in kept:
            parameter[:num_frozen] = rows
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Zero gradients in place: fresh buffers would be paid for page by page in every step."""
        self.adam.zero_grad(set_to_none=False)

    def forget(self, rows: Tensor) -> None:
        """Clear Adam's memory of features."""
        for parameter in self._per_feature():
            for value in self.adam.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[rows] = 0

    def _per_feature(self) -> list[Tensor]:
        """Parameters whose first axis counts features."""
        others = ("b_dec", "W_skip")
        return [p for name, p in self.parameters.items() if name not in others and p.ndim]

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts by parameter name."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            keys = [key for key in state if key.rpartition(".")[0] == name]
            self.adam.state[parameter] = {
                key.rpartition(".")[2]: state[key].to(parameter.device, copy=True) for key in keys
            }
