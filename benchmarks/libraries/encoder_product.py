"""The floor: the encoder's matrix product alone, into memory that is there already."""

from __future__ import annotations

import torch
from torch import Tensor

from libraries.step import StepTask


class Task(StepTask):
    packages = ("torch",)
    does = "x @ W_enc, [B, d] by [d, N], into a tensor allocated once"
    leaves_out = "everything else"

    def build(self, first: Tensor) -> None:
        case = self.case
        self.rows = torch.nn.functional.normalize(torch.randn(case.d_sae, case.d), dim=-1)  # [N, d]
        self.out = torch.empty(case.batch, case.d_sae)

    @torch.no_grad()
    def step(self, x: Tensor) -> None:
        torch.mm(x, self.rows.T, out=self.out)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a matrix product learns nothing")
