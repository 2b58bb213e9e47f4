"""SAELens' side of the journey in docs/from-saelens.md: it trains a dictionary, and opens what came back.

python saelens_training.py train ACTIVATIONS FOLDER    train on a file of activations, save to the folder
python saelens_training.py open FOLDER ACTIVATIONS     open the folder, print L0 and explained variance
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file
from torch import Tensor

BATCH, STEPS = 512, 200


def train(activations: Path, folder: Path) -> None:
    x = load_file(activations)["x"]
    torch.manual_seed(0)
    config = BatchTopKTrainingSAEConfig(
        d_in=x.shape[1], d_sae=512, k=16, normalize_activations="expected_average_only_in", dtype="float32"
    )
    config.metadata.model_name, config.metadata.hook_name = "bundled", "blocks.1.hook_resid_post"
    config.metadata.context_size, config.metadata.prepend_bos = 64, False
    sae = BatchTopKTrainingSAE(config)

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield x[torch.randint(len(x), (BATCH,), generator=generator)]

    settings = SAETrainerConfig(
        total_training_samples=BATCH * STEPS, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-4,
        n_batches_for_norm_estimate=8, n_checkpoints=0, feature_sampling_window=1000,
    )  # fmt: skip
    trainer: Any = SAETrainer(settings, sae, batches())
    trainer.fit().save_inference_model(folder)


def open_again(folder: Path, activations: Path) -> None:
    sae, x = SAE.load_from_disk(folder), load_file(activations)["x"]
    with torch.no_grad():
        f = sae.encode(x)
        error = (x - sae.decode(f)).square().sum()
    l0, explained = (f != 0).sum(-1).float().mean(), 1 - error / (x - x.mean(0)).square().sum()
    print(f"L0 {l0:.3f}, explained variance {explained:.5f}")


if __name__ == "__main__":
    {"train": train, "open": open_again}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
