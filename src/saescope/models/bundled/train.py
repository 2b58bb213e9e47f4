"""Train the bundled language model: ``python -m saescope.models.bundled.train``.

A four-layer GPT-2 of width 256 learns the train half of the standard library's source (``corpus.py``): about 2.9 million
tokens, seen some ten times with dropout. Matrices inside the blocks are moved by Muon, everything else by AdamW; both
learning rates rise linearly and fall linearly to zero. Every window opens with the end-of-text token, so that the first
position, which a small model uses as a resting place for attention, is always a special token.

The run is a function of its settings alone: step ``i`` draws its windows and its dropout masks from ``(seed, i)``, so a
run that was killed goes on from its last checkpoint as if nothing had happened (same bits in float32; in bfloat16 as far
as the processor's kernels repeat themselves). Needs no network; one to two hours on two cores.

T  tokens in a window, B  windows in a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from saescope.models.bundled.corpus import SourceFile, source_files
from saescope.models.bundled.tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of the bundled model's training run."""

    vocab_size: int = 4096
    context_size: int = 256
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1
    num_steps: int = 4000  # x 8192 tokens = 33 M tokens, 11 passes over 2.9 M
    batch_size_windows: int = 32  # x 256 = 8192 tokens
    matrix_lr: float = 5e-3  # Muon, scaled so that an update has AdamW's size
    other_lr: float = 3e-3  # AdamW: embeddings, biases, norms
    weight_decay: float = 0.1
    num_warmup_steps: int = 200
    max_grad_norm: float = 1.0
    seed: int = 0
    bfloat16: bool = True  # autocast of the matrix products; float32 where the processor has no bf16 units


def build_model(config: TrainingConfig) -> GPT2LMHeadModel:
    torch.manual_seed(config.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_size,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,  # attention dropout would forbid the fused kernel
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def token_stream(tokenizer: PreTrainedTokenizerBase, files: list[SourceFile]) -> torch.Tensor:
    """All files as one row of token ids, each opened by the end-of-text token."""
    encoded = tokenizer([file.text for file in files], verbose=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in (tokenizer.bos_token_id, *ids)])


def training_batch(stream: torch.Tensor, step: int, config: TrainingConfig) -> torch.Tensor:
    """The windows of one step, ``[B, T]``: each pass over the text cuts it at another offset and in another order."""
    width = config.context_size - 1  # the first position holds the end-of-text token
    num_windows = (stream.numel() - width) // width
    per_epoch = num_windows // config.batch_size_windows
    if not per_epoch:
        raise ValueError(
            f"the text's {len(stream)} tokens are less than one batch of {config.batch_size_windows} windows"
        )
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    offset = int(torch.randint(width, (), generator=generator))
    order = torch.randperm(num_windows, generator=generator)
    chosen = order[index * config.batch_size_windows : (index + 1) * config.batch_size_windows]
    windows = stream[offset + chosen[:, None] * width + torch.arange(width)]
    return F.pad(windows, (1, 0), value=int(stream[0]))


def build_optimizers(model: GPT2LMHeadModel, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    embeddings = [p for p in model.parameters() if p.ndim == 2 and id(p) not in inside]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        torch.optim.Muon(
            matrices, lr=config.matrix_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": embeddings, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.other_lr,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def lr_factor(step: int, config: TrainingConfig) -> float:
    rise = (step + 1) / max(1, config.num_warmup_steps)
    fall = (config.num_steps - step) / max(1, config.num_steps - config.num_warmup_steps)
    return min(1.0, rise, fall)


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(ids, use_cache=False).logits  # [B, T, vocab]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, stream: torch.Tensor, config: TrainingConfig, max_windows: int) -> float:
    """Mean loss in nats per token on evenly spread held-out windows; a glimpse during training."""
    width = config.context_size - 1
    windows = stream[: stream.numel() // width * width].view(-1, width)
    windows = windows[:: max(1, len(windows) // max_windows)]
    ids = F.pad(windows, (1, 0), value=int(stream[0]))
    was_training = model.training
    model.eval()
    losses = [loss_of(model, batch, config.bfloat16) * len(batch) for batch in ids.split(config.batch_size_windows)]
    model.train(was_training)
    return float(torch.stack(losses).sum() / len(ids))


def save_checkpoint(path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Weights, optimizer states and the step in one safetensors file, written beside and renamed."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    beside = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in tensors.items()}, beside, metadata={"step": str(step)})
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def load_checkpoint(path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]) -> int:
    """Put a checkpoint back into model and optimizers; the number of steps done."""
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                index, key = name.split(".")[2:]
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step


def train(
    folder: Path, config: TrainingConfig, every_n_steps: int = 100, stop_after: int | None = None
) -> Iterator[dict[str, float]]:
    """Train into ``folder``, going on from its checkpoint if there is one; yields a line of the log now and then.

    ``stop_after`` ends this call (not the schedule) after so many steps, checkpoint written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train_files = source_files("train")
    tokenizer = train_tokenizer((file.text for file in train_files), config.vocab_size, config.context_size)
    stream = token_stream(tokenizer, train_files)
    held_out = token_stream(tokenizer, source_files("held_out"))

    model = build_model(config).train()
    optimizers = build_optimizers(model, config)
    checkpoint = folder / "checkpoint.safetensors"
    first = load_checkpoint(checkpoint, model, optimizers) if checkpoint.exists() else 0
    last = config.num_steps if stop_after is None else min(config.num_steps, first + stop_after)
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started = time.perf_counter()

    for step in range(first, last):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        factor = lr_factor(step, config)
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        loss = loss_of(model, training_batch(stream, step, config), config.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {step}; lower the learning rates")
        if (step + 1) % every_n_steps == 0 or step + 1 == last:
            save_checkpoint(checkpoint, model, optimizers, step + 1)
            tokens = (step + 1 - first) * config.batch_size_windows * config.context_size
            yield {
                "step": step + 1,
                "loss": value,
                "held_out_loss": held_out_loss(model, held_out, config, max_windows=256),
                "tokens_per_second": tokens / (time.perf_counter() - started),
            }

    if last == config.num_steps:
        export(model, tokenizer, config, folder)


def export(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, folder: Path) -> None:
    """Write the finished model in Hugging Face format, weights in bfloat16."""
    model.to(torch.bfloat16).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # the class name that every version of transformers since 4 knows
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "training.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def main() -> None:
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(description="Train the bundled language model.")
    parser.add_argument("folder", type=Path, help="where checkpoints and the finished model go")
    for name, value in asdict(defaults).items():
        kind = (lambda text: text.lower() in ("1", "true", "yes")) if isinstance(value, bool) else type(value)
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=value)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    for line in train(folder, TrainingConfig(**arguments)):
        print(json.dumps({key: round(value, 4) for key, value in line.items()}), flush=True)


if __name__ == "__main__":
    main()
