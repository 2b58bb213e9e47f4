"""The bundled model's card: what it was trained on and how well it predicts, measured on the stored weights.

``python -m saescope.models.bundled.card FOLDER`` measures a freshly trained model and writes ``card.json`` and ``README.md``
into its folder; ``saescope model`` measures again on the running interpreter's standard library and says whether that is
the text of the card.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from saescope.models.bundled.corpus import SPLITS, Split, fingerprint, source_files
from saescope.models.bundled.train import token_stream
from saescope.models.language_model import LanguageModel

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well the model predicts one half of the text, in windows that open with the end-of-text token."""

    num_files: int
    files_sha256: str  # of the list of module names and content hashes
    num_predictions: int
    loss: float  # nats per token
    bits_per_byte: float
    accuracy: float  # share of tokens that were the most probable one


@torch.no_grad()
def measure(
    folder: Path, split: Split, *, max_windows: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Predict every token of one half of the standard library's source (or of evenly spread windows).

    Windows do not overlap; each token is predicted from those before it in its window. End-of-text tokens are not counted
    as predictions.

    Raises:
        SourcesMissingError: this Python comes without its source files.
    """
    files = source_files(split)
    loaded = LanguageModel.load(folder)
    model, tokenizer = loaded.module, loaded.tokenizer
    if tokenizer is None:
        raise ValueError(f"{folder} holds a model without its tokenizer")
    stream = token_stream(tokenizer, files)
    bytes_of = torch.tensor([len(piece) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    width = model.config.n_positions - 1
    windows = stream[: len(stream) // width * width].view(-1, width)
    if max_windows is not None and max_windows < len(windows):
        windows = windows[torch.linspace(0, len(windows) - 1, max_windows).round().long()]
    ids = F.pad(windows, (1, 0), value=tokenizer.bos_token_id)
    nats = hits = predictions = num_bytes = 0.0
    for done, batch in enumerate(ids.split(16), start=1):
        targets = batch[:, 1:].flatten()
        logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)  # [B * (T - 1), vocab]
        counted = targets != tokenizer.bos_token_id
        losses = F.cross_entropy(logits, targets, reduction="none")
        nats += float(losses[counted].double().sum())
        hits += float((logits.argmax(-1) == targets)[counted].sum())
        predictions += float(counted.sum())
        num_bytes += float(bytes_of[targets][counted].sum())
        if on_progress:
            on_progress(min(done * 16, len(ids)), len(ids))
    return Measured(
        num_files=len(files),
        files_sha256=fingerprint(files),
        num_predictions=int(predictions),
        loss=nats / predictions,
        bits_per_byte=nats / math.log(2) / num_bytes,
        accuracy=hits / predictions,
    )


def read_card(folder: Path = WEIGHTS) -> dict[str, Any]:
    """The card of a bundled model's folder."""
    return json.loads((folder / "card.json").read_text())


def write_card(folder: Path) -> None:
    """Measure the model in ``folder`` on both halves; write ``card.json`` and ``README.md`` there."""
    halves = {split: measure(folder, split, max_windows=None if split == "held_out" else 1200) for split in SPLITS}
    model = LanguageModel.load(folder).module
    card: dict[str, Any] = {
        "python": platform.python_version(),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "training": json.loads((folder / "training.json").read_text()),
        **{split: asdict(half) for split, half in halves.items()},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_readme(card))


def _readme(card: dict[str, Any]) -> str:
    train, held_out, training = card["train"], card["held_out"], card["training"]
    tokens = training["num_steps"] * training["batch_size_windows"] * training["context_size"]
    rows = "\n".join(
        f"| {name} | {half['num_files']} | {half['num_predictions']:,} | {half['loss']:.3f} | {half['bits_per_byte']:.3f} "
        f"| {half['accuracy']:.1%} | `{half['files_sha256']}` |"
        for name, half in (("train", train), ("held out", held_out))
    )
    return f"""# The bundled model

A GPT-2-architecture language model of {card["num_parameters"] / 1e6:.1f} million parameters
({training["num_layers"]} layers of width {training["d_model"]}, context {training["context_size"]}, byte-level BPE of
{training["vocab_size"]} tokens), trained by `python -m saescope.models.bundled.train` on the source files of Python
{card["python"]}'s standard library (tests, `idlelib` and generated files left out). One module in ten, by a hash of its
dotted name, is held out.

Trained for {training["num_steps"]:,} steps of {training["batch_size_windows"] * training["context_size"]:,} tokens
({tokens / 1e6:.1f} million tokens in all); stored in bfloat16. Measured on the stored weights, in float32, in
windows that do not overlap (training half: a sample of evenly spread windows):

| half | files | predictions | loss, nats per token | bits per byte | next-token accuracy | SHA-256 of the file list |
|---|---|---|---|---|---|---|
{rows}

`saescope model` measures it again. On another Python the text differs, and so do the numbers. The model knows nothing but
Python source: it is here so that every command of saescope has something real to work on, offline.
"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m saescope.models.bundled.card FOLDER")
    write_card(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
