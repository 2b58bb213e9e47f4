"""SAELens: its ``SAETrainer.step``, which is the whole step of its own training loop."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from libraries.step import StepTask

CLASSES: dict[str, tuple[Any, Any]] = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
}


class Task(StepTask):
    packages = ("sae-lens", "torch")
    does = (
        "one scale for the input (expected_average_only_in), loss (for the TopK family with AuxK), gradients, clipping to "
        "norm 1, torch's default Adam, firing frequencies and dead features; TopK family: selection weighted by decoder "
        "norms; BatchTopK and Matryoshka: running threshold; JumpReLU: threshold held at or above 0"
    )
    leaves_out = "projection of the decoder's gradient, unit-norm decoder (norms are free, 1 at the start here)"
    options: ClassVar[dict[str, Any]] = {}  # of the TopK family, other than SAELens's defaults

    def build(self, first: Tensor) -> None:
        case = self.case
        cls, config = CLASSES[case.architecture]
        settings: dict[str, Any] = {"decoder_init_norm": 1.0, "normalize_activations": "expected_average_only_in"}
        if case.architecture in ("topk", "batch_topk", "matryoshka"):
            settings |= {"k": case.k, **self.options}
        if case.architecture == "matryoshka":
            settings["matryoshka_widths"] = case.widths
        if case.architecture == "jumprelu":
            settings["l0_coefficient"] = 1.0
        if case.architecture == "relu":
            settings["l1_coefficient"] = 5.0
        self.sae = cls(config(d_in=case.d, d_sae=case.d_sae, **settings))
        with torch.no_grad():  # let few features fire at the start where no k sees to it
            if case.architecture == "jumprelu":
                self.sae.threshold.fill_(self.threshold(self.sae.W_enc.T, first))
            if case.architecture == "relu":
                self.sae.b_enc.fill_(-self.threshold(self.sae.W_enc.T, first))
        trainer = SAETrainerConfig(
            total_training_samples=case.num_steps * case.batch,
            train_batch_size_samples=case.batch,
            lr=case.lr,
            lr_end=case.lr,
        )
        self.trainer = SAETrainer(cfg=trainer, sae=self.sae, data_provider=iter([first]))
        self.trainer.activation_scaler.estimate_scaling_factor(case.d, iter([first]), 1)

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.sae.encode(self.trainer.activation_scaler(x))
        f = f.to_dense() if f.is_sparse else f
        return f, self.trainer.activation_scaler.unscale(self.sae.decode(f))
