"""Tokens to activations: an endless, seeded, resumable stream of shuffled batches.

Each pass over the text visits the windows in a new random order. A block of windows goes through the model and fills
the shuffle buffer; the buffer is permuted once and handed out in batches of exactly ``batch_size_tokens``; the rest
that is no full batch opens the next block. Blocks are equal parts of a pass, as large as ``buffer_size_tokens`` allows:
every batch is a random sample of as many tokens as the log states. The stream's position is three numbers and less than
one batch of left-over activations.

T  tokens in a batch, d  width of a hook point.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations.windows import TokenWindows
from saescope.training import TrainingBatch

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How activations are read and mixed."""

    buffer_size_tokens: int = 131_072  # tokens that are mixed with each other
    model_batch_size_windows: int = 32  # windows in one forward pass of the model
    exclude_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.model_batch_size_windows < 1:
            raise ValueError(f"model_batch_size_windows must be at least 1, got {self.model_batch_size_windows}")


@dataclass(frozen=True)
class ActivationBatch:
    """Activations of T tokens at one or more hook points."""

    values: dict[str, Tensor]  # [T, d] each
    positions: Tensor  # [T], int64: each token's place in the corpus; -1 for a window's opening token


class ActivationStream(Iterator[ActivationBatch]):
    """Shuffled activations of a model on a corpus; one forward pass serves all hook points.

    Attributes:
        num_blocks: equal parts (but for one window) of a pass, each of which fills the buffer once.
        buffer_windows: windows in such a part; their tokens are mixed with each other.
    """

    def __init__(
        self,
        model: LanguageModel,
        windows: TokenWindows,
        hook_points: Sequence[str],
        *,
        batch_size_tokens: int = 4096,
        config: StreamConfig | None = None,
        seed: int = 0,
    ) -> None:
        config = config or StreamConfig()
        if isinstance(hook_points, str) or not hook_points:
            raise ValueError(f"hook_points is a list of at least one name, not {hook_points!r}")
        for name in hook_points:
            model.hook_point(name)  # an unknown name is refused now, not after the first block
        tokens = windows.num_tokens if config.exclude_special_tokens else windows.num_attended
        if batch_size_tokens < 1 or config.buffer_size_tokens < batch_size_tokens:
            raise ValueError(
                f"batch_size_tokens = {batch_size_tokens} must be at least 1 and at most "
                f"buffer_size_tokens = {config.buffer_size_tokens}; a smaller buffer would mix nothing"
            )
        if tokens < batch_size_tokens:
            raise ValueError(
                f"the data set is too small: {tokens} tokens, less than one batch of {batch_size_tokens}; "
                "give more text or a smaller batch_size_tokens"
            )
        self.batch_size_tokens = batch_size_tokens
        self.model, self.windows, self.config, self.seed = model, windows, config, seed
        self.hook_points = list(dict.fromkeys(hook_points))
        # blocks of one size: what a short last one would hold is hardly mixed
        self.num_blocks = math.ceil(len(windows) / max(1, round(config.buffer_size_tokens * len(windows) / tokens)))
        self.buffer_windows = len(windows) // self.num_blocks
        self._buffer_tokens = tokens // self.num_blocks
        self._epoch = self._block = self._drawn = 0
        self._carry = self._empty()  # left over from the block before
        self._buffer: ActivationBatch | None = None

    def mixing(self) -> str:
        """What is mixed with what, in tokens."""
        return (
            f"each batch of {self.batch_size_tokens:,} tokens is drawn from {self._buffer_tokens:,} mixed tokens "
            f"({self.buffer_windows:,} random windows of {len(self.windows):,})"
        )

    def __next__(self) -> ActivationBatch:
        size = self.batch_size_tokens
        if self._buffer is None:
            self._buffer = self._fill()
        while (self._drawn + 1) * size > len(self._buffer.positions):
            self._carry = _slice(self._buffer, self._drawn * size, None)
            self._advance()
            self._buffer = self._fill()
        batch = _slice(self._buffer, self._drawn * size, (self._drawn + 1) * size)
        self._drawn += 1
        return batch

    def _advance(self) -> None:
        self._drawn = 0
        self._block += 1
        if self._block == self.num_blocks:
            self._epoch, self._block = self._epoch + 1, 0

    def _fill(self) -> ActivationBatch:
        """The current block, read, joined to what the last one left over, and permuted."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self._epoch))
        order = torch.randperm(len(self.windows), generator=generator)
        rows = order.tensor_split(self.num_blocks)[self._block]
        parts = [self._carry]
        for chunk in rows.split(self.config.model_batch_size_windows):
            batch = self.windows.batch(chunk.numpy())
            mask = batch.keep if self.config.exclude_special_tokens else batch.attention
            padded = None if bool(batch.attention.all()) else batch.attention
            read = self.model.read(batch.ids, self.hook_points, attention_mask=padded)
            values = {name: activations[mask.to(activations.device)].float() for name, activations in read.items()}
            parts.append(ActivationBatch(values, batch.positions[mask]))
        positions = torch.cat([part.positions for part in parts])
        shuffle = torch.randperm(
            len(positions), generator=torch.Generator().manual_seed(mixed_seed(self.seed, self._epoch, self._block))
        )
        return ActivationBatch(
            {name: torch.cat([part.values[name] for part in parts])[shuffle] for name in self.hook_points},
            positions[shuffle],
        )

    def _empty(self) -> ActivationBatch:
        widths = {name: self.model.width(name) for name in self.hook_points}
        return ActivationBatch(
            {name: torch.zeros(0, width, device=self.model.device) for name, width in widths.items()},
            torch.zeros(0, dtype=torch.int64),
        )

    def state_dict(self) -> dict[str, Any]:
        """The position: pass, block, batches drawn from it, and what the block before left over."""
        return {
            "epoch": self._epoch,
            "block": self._block,
            "drawn": self._drawn,
            "carry.positions": self._carry.positions,
            **{f"carry.values.{i}": self._carry.values[name] for i, name in enumerate(self.hook_points)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that :meth:`state_dict` gave; the block is read again when the next batch is asked for."""
        self._epoch, self._block, self._drawn = state["epoch"], state["block"], state["drawn"]
        values = {name: state[f"carry.values.{i}"].to(self.model.device) for i, name in enumerate(self.hook_points)}
        self._carry = ActivationBatch(values, state["carry.positions"])
        self._buffer = None

    def at(self, hook_point: str) -> View:
        """The stream of one hook point's activations alone, as ``saescope.train`` takes it."""
        return View(self, [hook_point])

    def pair(self, hook_point: str, hook_point_out: str) -> View:
        """Inputs at one hook point with what a transcoder is to rebuild from them at another."""
        return View(self, [hook_point], hook_point_out)

    def joined(self, hook_points: Sequence[str]) -> View:
        """Activations of several hook points side by side, as a crosscoder reads them."""
        return View(self, hook_points)


class View(Iterator[Tensor | TrainingBatch]):
    """What one dictionary trains on, out of a stream; resumable like the stream behind it.

    Gives tensors ``[T, d]`` (hook points side by side where there are several), or a :class:`TrainingBatch` with a
    target.
    """

    def __init__(self, stream: ActivationStream, hook_points: Sequence[str], target: str | None = None) -> None:
        if isinstance(hook_points, str) or not hook_points:
            raise ValueError(f"hook_points is a list of at least one name, not {hook_points!r}")
        for name in (*hook_points, *([target] if target else [])):
            if name not in stream.hook_points:
                raise ValueError(f"the stream reads {', '.join(stream.hook_points)}, not {name}")
        self.stream, self.hook_points, self.target = stream, list(hook_points), target

    def __next__(self) -> Tensor | TrainingBatch:
        values = next(self.stream).values
        x = torch.cat([values[name] for name in self.hook_points], dim=-1)
        return x if self.target is None else TrainingBatch(x, values[self.target])

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


class SideBySide(Iterator[Tensor]):
    """Activations of the same tokens from several streams side by side: one crosscoder for several models.

    The streams must visit the same windows in the same order (same text, tokenizer, seed, batch and buffer size); every
    batch is checked to be of the same tokens.
    """

    def __init__(self, streams: Sequence[ActivationStream]) -> None:
        self.streams = list(streams)
        if not self.streams:
            raise ValueError("nothing to put side by side: give at least one stream")
        tokens = [np.asarray(stream.windows.tokens) for stream in self.streams]
        if any(not np.array_equal(other, tokens[0]) for other in tokens[1:]):
            raise ValueError("the streams do not give the same tokens; they need the same windows, of one tokenizer")

    def __next__(self) -> Tensor:
        batches = [next(stream) for stream in self.streams]
        first = batches[0].positions
        if any(not batch.positions.equal(first) for batch in batches):
            raise ValueError(
                "the streams do not give the same tokens; they need the same windows, seed, batch size and buffer size"
            )
        device = next(iter(batches[0].values.values())).device
        return torch.cat([values.to(device) for batch in batches for values in batch.values.values()], dim=-1)

    def state_dict(self) -> dict[str, Any]:
        return {f"{i}.{key}": v for i, stream in enumerate(self.streams) for key, v in stream.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, stream in enumerate(self.streams):
            own = f"{i}."
            stream.load_state_dict({key.removeprefix(own): v for key, v in state.items() if key.startswith(own)})


def _slice(batch: ActivationBatch, start: int, stop: int | None) -> ActivationBatch:
    return ActivationBatch(
        {n: v[start:stop].clone() for n, v in batch.values.items()}, batch.positions[start:stop].clone()
    )


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
