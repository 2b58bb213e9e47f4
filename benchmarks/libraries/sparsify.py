"""sparsify: its ``SparseCoder`` with Adam, in the order of operations of its ``Trainer``, which itself needs a model."""

from __future__ import annotations

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from libraries.step import StepTask

AUXK = 1 / 32
DEAD_AFTER_TOKENS = 10_000_000


class Task(StepTask):
    packages = ("eai-sparsify", "torch")
    does = (
        "unit-norm decoder, loss with AuxK (off by its default), gradients, projection of the decoder's gradient, torch's "
        "default Adam, count of dead features"
    )
    leaves_out = (
        "clipping, scaling of the input; also its trainer's copy of the model's output and its setting of float32 products "
        "to 'high' precision"
    )

    def build(self, first: Tensor) -> None:
        case = self.case
        if case.architecture != "topk":
            raise ValueError(f"sparsify trains TopK dictionaries, not {case.architecture}")
        self.coder = SparseCoder(case.d, SparseCoderConfig(num_latents=case.d_sae, k=case.k), dtype=torch.float32)
        self.adam = torch.optim.Adam(self.coder.parameters(), lr=case.lr)
        self.schedule = get_linear_schedule_with_warmup(self.adam, 0, 1_000_000 * case.num_steps)  # as good as constant
        self.since_fired = torch.zeros(case.d_sae, dtype=torch.long)
        self.coder.b_dec.data = first.mean(0)

    def step(self, x: Tensor) -> None:
        coder = self.coder
        coder.set_decoder_norm_to_unit_norm()
        dead = self.since_fired > DEAD_AFTER_TOKENS
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = coder(x=x, y=x, dead_mask=dead, total_variance=total_variance)
        fired = torch.zeros_like(dead)
        fired[out.latent_indices.flatten()] = True
        self.logged = float(out.fvu.detach()), float(out.auxk_loss.detach())
        (out.fvu + AUXK * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad()
        self.schedule.step()
        self.since_fired += len(x)
        self.since_fired[fired] = 0

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, pre = self.coder.encode(x)
        return torch.zeros_like(pre).scatter(-1, indices, values), self.coder.decode(values, indices)
