"""From text to a trained TopK dictionary with SAELens: its training runner on the same model folder and text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from hardware import versions
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig, TopKTrainingSAEConfig
from sae_lens.load_model import load_model

LAYER = 2  # whose output is read


class Task:
    """A run with a model in a folder, which SAELens wraps as ``AutoModelForCausalLM``."""

    def __init__(self, threads: int, folder: str, model: str, **settings: Any) -> None:
        torch.set_num_threads(threads)
        self.folder, self.settings = Path(folder), settings
        hook = f"transformer.h.{LAYER}"
        self.loading = {"model_class_name": "AutoModelForCausalLM", "model_name": model}
        kwargs = {"dtype": torch.float32}
        self.model = load_model(**self.loading, device="cpu", model_from_pretrained_kwargs=kwargs, hook_names=[hook])
        self.hook = hook

    def facts(self) -> dict[str, Any]:
        return {"versions": versions(("sae-lens", "transformer-lens", "torch"))}

    def run(self) -> dict[str, Any]:
        """Seconds from text to dictionary, and how good it is."""
        chosen = self.settings
        started = time.perf_counter()
        texts = datasets.Dataset.from_dict({"text": json.loads((self.folder / "text.json").read_text())})
        width = self.model.model.config.hidden_size
        sae = TopKTrainingSAEConfig(
            d_in=width, d_sae=chosen["d_sae"], k=chosen["k"], normalize_activations="expected_average_only_in"
        )
        config = LanguageModelSAERunnerConfig(
            sae=sae,
            **self.loading,
            hook_name=self.hook,
            streaming=False,
            is_dataset_tokenized=False,
            context_size=chosen["context_size"],
            # its buffer holds this many contexts, not batches
            n_batches_in_buffer=chosen["buffer_size_tokens"] // chosen["context_size"],
            store_batch_size_prompts=chosen["model_batch_size_windows"],
            training_tokens=chosen["num_tokens"],
            train_batch_size_tokens=chosen["batch_size_tokens"],
            lr=chosen["lr"],
            exclude_special_tokens=True,
            n_batches_for_norm_estimate=1,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=None,
            verbose=False,
        )
        runner = LanguageModelSAETrainingRunner(config, override_dataset=texts, override_model=self.model)
        trained = runner.run()
        seconds = time.perf_counter() - started
        x = torch.from_numpy(np.load(self.folder / "held_out.npy"))
        with torch.no_grad():
            error = (x - trained.decode(trained.encode(x))).square().sum()
        return {"seconds": seconds, "explained_variance": 1 - float(error / (x - x.mean(0)).square().sum())}
