"""dictionary-learning: its trainers' own ``update``."""

from __future__ import annotations

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from libraries.step import StepTask

TRAINERS = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer, "matryoshka": MatryoshkaBatchTopKTrainer}


class Task(StepTask):
    packages = ("dictionary-learning", "torch")
    does = (
        "loss with AuxK, gradients, projection of the decoder's gradient, clipping to norm 1, torch's default Adam, "
        "unit-norm decoder, count of dead features; BatchTopK and Matryoshka: running threshold (from the first step on, in "
        "the place of the thousandth)"
    )
    leaves_out = "scaling of the input (done once in its buffer; the data have that scale)"

    def build(self, first: Tensor) -> None:
        case = self.case
        settings = {}
        if case.architecture == "matryoshka":
            ends = [0, *case.widths]
            settings["group_fractions"] = [
                (end - start) / case.d_sae for start, end in zip(ends, case.widths, strict=False)
            ]
        if case.architecture != "topk":
            settings["threshold_start_step"] = -1
        self.trainer = TRAINERS[case.architecture](
            steps=case.num_steps, activation_dim=case.d, dict_size=case.d_sae, k=case.k, lr=case.lr, warmup_steps=0,
            layer=0, lm_name="none", device="cpu", **settings,
        )  # fmt: skip

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.num_done, x)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.trainer.ae.encode(x, use_threshold=False)
        return f, self.trainer.ae.decode(f)
