"""A dictionary of any architecture with everything random: no bias and no threshold is 0, rows are of unequal norms."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from saescope.dictionaries import Dictionary, architecture

D_IN, D_OUT, D_SAE = 6, 5, 10
_SIZES = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "k": 3, "residual_threshold": 0.8, "widths": (3, 6, D_SAE)}
_SIZES |= {"source_widths": (2, 4)}


@torch.no_grad()
def random_dictionary(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Dictionary:
    """Settings are fields of the config; sizes are 6, 5 and 10 where nothing else is said."""
    cls = architecture(name)
    known = {field.name for field in fields(cls.Config)}
    assert set(settings) <= known
    chosen = {key: value for key, value in (_SIZES | settings).items() if key in known}
    dictionary = cls(cls.Config(**chosen)).double()
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in [*dictionary.named_parameters(), *dictionary.named_buffers()]:
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if key == "threshold":
            tensor.copy_(0.1 + 0.6 * drawn.abs())
        elif key == "threshold_steps":
            tensor.fill_(1)
        elif key == "mixture":
            tensor.copy_(drawn.abs() / drawn.abs().sum(-1, keepdim=True))
        elif key == "W_dec" and cls.unit_norm is None:
            tensor.copy_(drawn / drawn.norm(dim=-1, keepdim=True))
        elif key == "W_dec":
            tensor.copy_(drawn * torch.linspace(0.3, 2, len(drawn), dtype=torch.float64)[:, None])
        elif key in ("b_enc", "b_gate", "b_mag", "r_mag", "log_scale", "relaxation"):
            tensor.copy_(0.4 * drawn)
        elif key != "residual_threshold":
            tensor.copy_(drawn)
    return dictionary.to(dtype).eval().requires_grad_(False)


def random_tokens(number: int = 30, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Activations ``[number, 6]``."""
    drawn = torch.randn(number, D_IN, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    return (2 * drawn).to(dtype)
