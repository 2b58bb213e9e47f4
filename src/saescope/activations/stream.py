"""Tokens to activations: an endless, seeded, resumable stream of shuffled batches.

Each pass over the text visits the windows in a new random order. A block of windows is read into the shuffle buffer and
handed out, in a random order of its tokens, in batches of exactly ``batch_size_tokens``; the rest that is no full batch
opens the next block. Blocks are equal parts of a pass, as large as ``buffer_size_tokens`` allows: every batch is a random
sample of as many tokens as the log states. The stream's position is three numbers and less than one batch of left-over
activations.

Where windows are read makes no difference to that order: ``ActivationStream`` asks a model, ``CachedStream`` (``cache.py``)
a folder, and both give the same batches.

T  tokens in a batch, N  tokens in the buffer, d  width of a hook point.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations.windows import TokenWindows, WindowBatch
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

    def __len__(self) -> int:
        return len(self.positions)

    def stretch(self, start: int, stop: int) -> ActivationBatch:
        """Some of the tokens, as views of their memory."""
        return ActivationBatch({n: v[start:stop] for n, v in self.values.items()}, self.positions[start:stop])

    def copy_(self, other: ActivationBatch) -> None:
        """Overwrite these tokens with others, cast to the dtype that is here."""
        for name, value in self.values.items():
            value.copy_(other.values[name])
        self.positions.copy_(other.positions)


class ShuffledStream(Iterator[ActivationBatch]):
    """Shuffled activations; what reads the windows is a subclass's own.

    Attributes:
        num_tokens: tokens in a pass.
        num_blocks: equal parts (but for one window) of a pass, each of which fills the buffer once.
        buffer_windows: windows in such a part; their tokens are mixed with each other.
    """

    def __init__(
        self,
        tokens_per_window: np.ndarray,
        widths: Mapping[str, int],
        *,
        batch_size_tokens: int,
        config: StreamConfig,
        seed: int,
        device: torch.device,
        buffer_device: torch.device,
        buffer_dtype: torch.dtype,
    ) -> None:
        num_windows, tokens = len(tokens_per_window), int(tokens_per_window.sum())
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
        self.config, self.seed, self.num_tokens = config, seed, tokens
        self.hook_points = list(widths)
        # blocks of one size: what a short last one would hold is hardly mixed
        self.num_blocks = math.ceil(num_windows / max(1, round(config.buffer_size_tokens * num_windows / tokens)))
        self.buffer_windows = num_windows // self.num_blocks
        self._tokens_per_window, self._widths = tokens_per_window, dict(widths)
        self._device, self._buffer_device, self._buffer_dtype = device, buffer_device, buffer_dtype
        self._epoch = self._block = self._drawn = 0
        self._buffer = self._empty(0)  # allocated once, filled again for every block
        self._carry = self._empty(0)  # left over from the block before
        self._shuffle: Tensor | None = None  # [N], the order in which the buffer is handed out; None: not filled yet

    @property
    @abstractmethod
    def windows(self) -> TokenWindows:
        """The text that the activations are of."""

    @abstractmethod
    def _read(self, rows: np.ndarray, into: ActivationBatch) -> None:
        """Fill ``into`` with the activations and positions of the windows of the given numbers, in that order."""

    def mixing(self) -> str:
        """What is mixed with what, in tokens."""
        return (
            f"each batch of {self.batch_size_tokens:,} tokens is drawn from {self.num_tokens // self.num_blocks:,} "
            f"mixed tokens ({self.buffer_windows:,} random windows of {len(self._tokens_per_window):,})"
        )

    def __next__(self) -> ActivationBatch:
        size = self.batch_size_tokens
        shuffle = self._fill() if self._shuffle is None else self._shuffle
        while (self._drawn + 1) * size > len(shuffle):
            self._carry = self._drawn_from_buffer(shuffle[self._drawn * size :])
            self._epoch, self._block = self._next_block()
            self._drawn, self._shuffle = 0, None
            shuffle = self._fill()
        batch = self._drawn_from_buffer(shuffle[self._drawn * size : (self._drawn + 1) * size])
        self._drawn += 1
        values = {name: value.to(self._device).float() for name, value in batch.values.items()}
        return ActivationBatch(values, batch.positions)

    def _next_block(self) -> tuple[int, int]:
        """Pass and block after the current ones."""
        return (self._epoch, self._block + 1) if self._block + 1 < self.num_blocks else (self._epoch + 1, 0)

    def _rows(self, epoch: int, block: int) -> np.ndarray:
        """The windows of a block, in the order in which they are read."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(len(self._tokens_per_window), generator=generator)
        return order.tensor_split(self.num_blocks)[block].numpy()

    def _fill(self) -> Tensor:
        """Read the current block behind what the last one left over; gives the order in which all that is handed out."""
        rows = self._rows(self._epoch, self._block)
        carried = len(self._carry)
        total = carried + int(self._tokens_per_window[rows].sum())
        if len(self._buffer) < total:
            self._buffer = self._empty(0)  # the old one's memory first
            self._buffer = self._empty(total + total // 50)  # blocks differ a little
        self._buffer.stretch(0, carried).copy_(self._carry)
        self._read(rows, self._buffer.stretch(carried, total))
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self._epoch, self._block))
        self._shuffle = torch.randperm(total, generator=generator)
        return self._shuffle

    def _drawn_from_buffer(self, places: Tensor) -> ActivationBatch:
        """Copies of the tokens at the given places of the buffer."""
        there = places.to(self._buffer_device)
        values = {
            name: value.index_select(0, there) for name, value in self._buffer.values.items()
        }  # faster than [...]
        return ActivationBatch(values, self._buffer.positions[places])

    def _empty(self, num_tokens: int) -> ActivationBatch:
        values = {
            name: torch.empty(num_tokens, width, dtype=self._buffer_dtype, device=self._buffer_device)
            for name, width in self._widths.items()
        }
        return ActivationBatch(values, torch.empty(num_tokens, dtype=torch.int64))

    def _order(self) -> dict[str, Any]:
        """What decides which tokens come in which order."""
        return {
            "seed": self.seed,
            "batch_size_tokens": self.batch_size_tokens,
            "num_windows": len(self._tokens_per_window),
            "num_tokens": self.num_tokens,
            "num_blocks": self.num_blocks,
            "hook_points": list(self.hook_points),
        }

    def state_dict(self) -> dict[str, Any]:
        """The position: pass, block, batches drawn from it, and what the block before left over."""
        return {
            "order": self._order(),
            "epoch": self._epoch,
            "block": self._block,
            "drawn": self._drawn,
            "carry.positions": self._carry.positions,
            **{f"carry.values.{i}": self._carry.values[name] for i, name in enumerate(self.hook_points)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that :meth:`state_dict` gave; the block is read again when the next batch is asked for.

        Raises:
            ValueError: the position is one of a stream that gives other tokens, or in another order.
        """
        before, now = state["order"], self._order()
        changed = [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(f"this is not the stream that the run was stopped in: {'; '.join(changed)}")
        self._epoch, self._block, self._drawn = state["epoch"], state["block"], state["drawn"]
        values = {
            name: state[f"carry.values.{i}"].to(self._buffer_device, self._buffer_dtype)
            for i, name in enumerate(self.hook_points)
        }
        self._carry = ActivationBatch(values, state["carry.positions"])
        self._shuffle = None

    def at(self, hook_point: str) -> View:
        """The stream of one hook point's activations alone, as ``saescope.train`` takes it."""
        return View(self, [hook_point])

    def pair(self, hook_point: str, hook_point_out: str) -> View:
        """Inputs at one hook point with what a transcoder is to rebuild from them at another."""
        return View(self, [hook_point], hook_point_out)

    def joined(self, hook_points: Sequence[str]) -> View:
        """Activations of several hook points side by side, as a crosscoder reads them."""
        return View(self, hook_points)


class ActivationStream(ShuffledStream):
    """Shuffled activations of a model on a corpus; one forward pass serves all hook points."""

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
        self.model, self._windows = model, windows
        super().__init__(
            windows.tokens_per_window(exclude_special_tokens=config.exclude_special_tokens),
            {name: model.width(name) for name in hook_points},
            batch_size_tokens=batch_size_tokens,
            config=config,
            seed=seed,
            device=model.device,
            buffer_device=model.device,
            buffer_dtype=torch.float32,
        )

    @property
    def windows(self) -> TokenWindows:
        return self._windows

    def _read(self, rows: np.ndarray, into: ActivationBatch) -> None:
        done = 0
        for first in range(0, len(rows), self.config.model_batch_size_windows):
            chunk = rows[first : first + self.config.model_batch_size_windows]
            part = read_windows(
                self.model,
                self.windows.batch(chunk),
                self.hook_points,
                exclude_special_tokens=self.config.exclude_special_tokens,
            )
            into.stretch(done, done + len(part)).copy_(part)
            done += len(part)


def read_windows(
    model: LanguageModel, batch: WindowBatch, hook_points: Sequence[str], *, exclude_special_tokens: bool
) -> ActivationBatch:
    """A model's activations of some windows' tokens, in their order and in the model's dtype; padding is left out."""
    mask = batch.keep if exclude_special_tokens else batch.attention
    padded = None if bool(batch.attention.all()) else batch.attention
    read = model.read(batch.ids, hook_points, attention_mask=padded)
    values = {name: activations[mask.to(activations.device)] for name, activations in read.items()}
    return ActivationBatch(values, batch.positions[mask])


class View(Iterator[Tensor | TrainingBatch]):
    """What one dictionary trains on, out of a stream; resumable like the stream behind it.

    Gives tensors ``[T, d]`` (hook points side by side where there are several), or a :class:`TrainingBatch` with a
    target.
    """

    def __init__(self, stream: ShuffledStream, hook_points: Sequence[str], target: str | None = None) -> None:
        if isinstance(hook_points, str) or not hook_points:
            raise ValueError(f"hook_points is a list of at least one name, not {hook_points!r}")
        for name in (*hook_points, *([target] if target else [])):
            if name not in stream.hook_points:
                raise ValueError(f"the stream reads {', '.join(stream.hook_points)}, not {name}")
        self.stream, self.hook_points, self.target = stream, list(hook_points), target

    def __next__(self) -> Tensor | TrainingBatch:
        return self.of(next(self.stream))

    def of(self, batch: ActivationBatch) -> Tensor | TrainingBatch:
        """The dictionary's part of a batch, where several dictionaries share the stream (``train_many``)."""
        values = batch.values
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

    def __init__(self, streams: Sequence[ShuffledStream]) -> None:
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


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
