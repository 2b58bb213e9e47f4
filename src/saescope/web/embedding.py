"""Vectors of texts for the search by meaning: a local encoder with mean pooling, or an OpenAI-compatible endpoint.

Nothing is loaded until the first text. The name in the store is the text by which an embedder was chosen: vectors of two
embedders are never compared.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Embed = Callable[[list[str]], Any]

_BATCH = 64
_MOST_TOKENS = 256  # of a text; explanations are sentences
_SECONDS = 30.0


def make_embedder(given: str) -> Embed:
    """A function from texts to an array ``[texts, width]``, float32.

    Args:
        given: the folder of an encoder in Hugging Face format, or ``URL#MODEL``: the address of an OpenAI-compatible
            endpoint, such as ``http://127.0.0.1:8000/v1#nomic-embed-text``, and its name for the model. The key of an
            endpoint is taken from ``$OPENAI_API_KEY``.

    Raises:
        ValueError: it is neither.
        FileNotFoundError: there is no such folder.
    """
    if given.startswith(("http://", "https://")):
        address, _, model = given.partition("#")
        if not model:
            raise ValueError(f"{given} does not say which model embeds; add it: --embedder {given.rstrip('#')}#MODEL")
        return _Endpoint(address, model)
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} with an encoder; an endpoint is given as URL#MODEL")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no encoder in Hugging Face format")
    return _Encoder(folder)


class _Endpoint:
    def __init__(self, address: str, model: str) -> None:
        self._address, self._model = address, model
        self._client: Any = None
        self._lock = threading.Lock()

    def __call__(self, texts: list[str]) -> Any:
        import numpy as np
        import openai

        with self._lock:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY") or "none"  # local servers ask for none, the client does
                self._client = openai.OpenAI(base_url=self._address, api_key=key, timeout=_SECONDS, max_retries=1)
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), _BATCH):
            some = texts[start : start + _BATCH]
            try:
                answer = self._client.embeddings.create(model=self._model, input=some, encoding_format="float")
            except openai.OpenAIError as error:
                raise ValueError(f"{self._address} gave no vectors: {error}") from error
            vectors += [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
        return np.asarray(vectors, dtype=np.float32)


class _Encoder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # one at a time: each uses all cores
        self._parts: tuple[Any, Any, int] | None = None

    def __call__(self, texts: list[str]) -> Any:
        import numpy as np
        import torch

        with self._lock, torch.inference_mode():
            tokenizer, model, most = self._parts = self._parts or self._load()
            vectors = []
            for start in range(0, len(texts), _BATCH):
                some = [text or " " for text in texts[start : start + _BATCH]]
                batch = tokenizer(some, padding=True, truncation=True, max_length=most, return_tensors="pt")
                hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [texts, tokens, 1]
                vectors.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().numpy())
            return np.concatenate(vectors)

    def _load(self) -> tuple[Any, Any, int]:
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(self._folder), local_files_only=True).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            lines = str(error).strip().splitlines()
            raise ValueError(
                f"the encoder in {self._folder} can not be loaded: {lines[0] if lines else error!r}"
            ) from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        places = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
        # RoBERTa and its kin count two places that hold no token
        return tokenizer, model, max(1, min(_MOST_TOKENS, places - 2))
