"""From text to a trained TopK dictionary with our own stream and training."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import versions

from saescope import ActivationStream, LanguageModel, TokenWindows, TopK, TrainingConfig, read_documents, train
from saescope.activations import Document, StreamConfig, WindowConfig
from saescope.dictionaries import TopKConfig
from saescope.metrics import explained_variance
from saescope.training import Run, train_many

LAYER = 2
HOOK = f"blocks.{LAYER}.hook_resid_post"
NUM_JUDGED_WINDOWS = 128


class Task:
    """A run with the bundled model; the text comes from the folder that :meth:`write` fills."""

    def __init__(self, threads: int, folder: str, **settings: Any) -> None:
        torch.set_num_threads(threads)
        self.folder, self.settings = Path(folder), settings
        self.model = LanguageModel.load("bundled")

    def facts(self) -> dict[str, Any]:
        return {"versions": versions(("saescope", "torch"))}

    def write(self) -> dict[str, Any]:
        """Text and held-out activations for every library: documents with enough tokens for a run, and ``[T, d]``."""
        width = self.settings["context_size"]
        enough = self.settings["num_tokens"] * 5 // 4 + self.settings["buffer_size_tokens"]
        config = WindowConfig(context_size=width, max_tokens=enough)
        windows = TokenWindows.build(read_documents("bundled"), self.model.tokenizer, config)
        (self.folder / "text.json").write_text(json.dumps([document.text for document in windows.documents]))
        held_out = TokenWindows.build(read_documents("bundled", split="held_out"), self.model.tokenizer, config)
        batch = held_out.batch(np.linspace(0, len(held_out) - 1, NUM_JUDGED_WINDOWS).astype(int))
        np.save(self.folder / "held_out.npy", self.model.read(batch.ids, [HOOK])[HOOK][batch.keep].numpy())
        return {"documents": len(windows.documents), "tokens": windows.num_tokens, "model": str(self._model_folder())}

    def _model_folder(self) -> Path:
        import saescope.models.bundled as bundled

        return Path(bundled.__file__).parent / "weights"

    def stream(self) -> ActivationStream:
        """Tokenised text as shuffled activations."""
        texts = json.loads((self.folder / "text.json").read_text())
        documents = [Document(str(number), text) for number, text in enumerate(texts)]
        config = WindowConfig(context_size=self.settings["context_size"])
        windows = TokenWindows.build(documents, self.model.tokenizer, config)
        buffer = StreamConfig(
            buffer_size_tokens=self.settings["buffer_size_tokens"],
            model_batch_size_windows=self.settings["model_batch_size_windows"],
        )
        batch_size = self.settings["batch_size_tokens"]
        return ActivationStream(self.model, windows, [HOOK], batch_size_tokens=batch_size, config=buffer)

    def dictionary(self) -> TopK:
        return TopK(TopKConfig(d_in=self.model.width(HOOK), d_sae=self.settings["d_sae"], k=self.settings["k"]))

    def config(self) -> TrainingConfig:
        return TrainingConfig(
            num_tokens=self.settings["num_tokens"],
            batch_size_tokens=self.settings["batch_size_tokens"],
            lr=self.settings["lr"],
            num_warmup_steps=0,
            decay_share=0.0,
        )

    def run(self) -> dict[str, Any]:
        """Seconds from text to dictionary, and how good it is."""
        started = time.perf_counter()
        dictionary = train(self.dictionary(), self.stream().at(HOOK), self.config()).dictionary
        seconds = time.perf_counter() - started
        x = torch.from_numpy(np.load(self.folder / "held_out.npy"))
        with torch.no_grad():
            return {"seconds": seconds, "explained_variance": explained_variance(x, dictionary(x))}

    # Several dictionaries in one pass over the model

    def model_pass(self) -> dict[str, Any]:
        """Seconds of reading as many activations as a run trains on, the tokenised text included."""
        started = time.perf_counter()
        for _ in itertools.islice(self.stream().at(HOOK), self.config().num_steps):
            pass
        return {"seconds": time.perf_counter() - started}

    def steps_alone(self, count: int) -> dict[str, Any]:
        """Seconds of the steps of ``count`` dictionaries, one after the other, on activations in memory."""
        batches = list(itertools.islice(self.stream().at(HOOK), self.config().num_steps))
        started = time.perf_counter()
        for _ in range(count):
            train(self.dictionary(), iter(batches), self.config())
        return {"seconds": time.perf_counter() - started}

    def train_many(self, count: int) -> dict[str, Any]:
        """Seconds of ``count`` dictionaries trained on one stream."""
        started = time.perf_counter()
        train_many([Run(self.dictionary(), self.config()) for _ in range(count)], self.stream().at(HOOK))
        return {"seconds": time.perf_counter() - started}
