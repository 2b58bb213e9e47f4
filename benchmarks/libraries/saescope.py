"""Our own step: all that ``saescope.train`` does with a batch, from checking it to constrained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libraries.step import StepTask
from saescope.dictionaries import architecture
from saescope.training import Run, TrainingConfig, loss_for

# what takes time in training alone, so that each architecture is timed at its own k and full penalty
LOSS = {
    "ordered": {"k_start_times": 1.0},
    "jumprelu": {"l0_coefficient": 1.0, "warmup_share": 0.0},
    "relu": {"l1_coefficient": 5.0, "warmup_share": 0.0},
}


class Task(StepTask):
    packages = ("saescope", "torch", "numba")
    does = (
        "check of the input, one scale for it, loss (for the TopK family with AuxK), gradients, projection of the "
        "decoder's gradient, clipping to norm 1, Adam, unit-norm decoder, count of dead features; BatchTopK and "
        "Matryoshka: running threshold; Ordered at its final k"
    )
    leaves_out = "firing frequencies, which SAELens counts in every step"

    def build(self, first: Tensor) -> None:
        case = self.case
        cls = architecture(case.architecture)
        settings: dict[str, Any] = {"d_in": case.d, "d_sae": case.d_sae}
        if case.architecture not in ("jumprelu", "relu"):
            settings["k"] = case.k
        if case.architecture == "matryoshka":
            settings["widths"] = tuple(case.widths)
        self.dictionary = cls(cls.Config(**settings))
        self.thin_out(first)
        config = TrainingConfig(
            num_tokens=(case.num_steps + 2) * case.batch,  # the end is not reached
            log_every_n_steps=case.num_steps + 2,
            batch_size_tokens=case.batch,
            lr=case.lr,
            num_warmup_steps=0,
            decay_share=0.0,
        )
        loss = loss_for(self.dictionary, LOSS.get(case.architecture, {}))
        self.run = Run(self.dictionary, config, loss=loss)
        self.run.begin(resume=False)

    @torch.no_grad()
    def thin_out(self, first: Tensor) -> None:
        """Let few features fire at the start where no k sees to it."""
        if self.case.architecture == "jumprelu":
            self.dictionary.threshold.fill_(self.threshold(self.dictionary.W_enc.T, first - first.mean(0)))
        if self.case.architecture == "relu":
            self.dictionary.b_enc.fill_(-self.threshold(self.dictionary.W_enc.T, first - first.mean(0)))

    def step(self, x: Tensor) -> None:
        self.run.take(x, {})

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, f = self.dictionary.encode_in_training(x * self.scale)
        return f, self.dictionary.decode(f) / self.scale
