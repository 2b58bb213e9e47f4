"""Training on what the model makes of a reconstruction: the stream and the losses for it.

Braun et al. 2024, "Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning", arXiv
2405.12241. The reconstruction takes the place of the activation at the hook point, the model goes on from there, and
its predictions are compared with those it makes by itself (KL divergence) or with the text (cross-entropy). That needs
whole windows instead of shuffled tokens, and gradients through the model, whose own weights stay as they are::

    stream = EndToEndStream(model, windows, hook_point, batch_size_windows=8)
    loss = SumOfTerms({"kl": (OutputTerm(output_divergence(model, hook_point)), 1.0), "l1": (L1(), 0.1)})
    config = TrainingConfig(num_tokens=..., batch_size_tokens=stream.batch_size_tokens)
    train(dictionary, stream, config, loss=loss)

Every token of a window is rebuilt but special ones, which keep their own activations. Only windows with the largest
number of other tokens are used, so that batches have one size; windows that hold the end of a document are left out
where a special token marks it.

W  windows in a batch, T  tokens in a window, V  vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.activations.stream import mixed_seed
from saescope.activations.windows import TokenWindows
from saescope.training import TrainingBatch

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True)
class OutputContext:
    """What a loss on the model's output needs to know of a batch."""

    ids: Tensor  # [W, T]
    keep: Tensor  # bool, [W, T]: tokens whose activations are in the batch, in the order of the text
    attention: Tensor | None = None  # bool, [W, T]: not padding; None: nothing is


class EndToEndStream(Iterator[TrainingBatch]):
    """Whole windows with their token ids, in a new random order in every pass; resumable.

    Attributes:
        batch_size_tokens: tokens in each batch, those of ``batch_size_windows`` windows without special ones.
    """

    def __init__(
        self,
        model: LanguageModel,
        windows: TokenWindows,
        hook_point: str,
        *,
        batch_size_windows: int = 8,
        seed: int = 0,
    ) -> None:
        model.hook_point(hook_point)
        model.require_causal("training on the model's output")
        self.model, self.windows, self.hook_point, self.seed = model, windows, hook_point, seed
        self.batch_size_windows = batch_size_windows
        counts = torch.cat([batch.keep.sum(-1) for batch in windows.in_order(256)])
        self._size = int(counts.max()) if len(counts) else 0
        self._whole = (counts == self._size).nonzero().squeeze(-1)
        if batch_size_windows < 1 or len(self._whole) < batch_size_windows:
            raise ValueError(
                f"batch_size_windows = {batch_size_windows} must be between 1 and the {len(self._whole)} whole windows"
            )
        self.batch_size_tokens = self._size * batch_size_windows
        self._drawn = 0

    def __next__(self) -> TrainingBatch:
        per_pass = len(self._whole) // self.batch_size_windows
        epoch, place = divmod(self._drawn, per_pass)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = self._whole[torch.randperm(len(self._whole), generator=generator)]
        rows = order[place * self.batch_size_windows : (place + 1) * self.batch_size_windows]
        batch = self.windows.batch(rows.numpy())
        x = self.model.read(batch.ids, [self.hook_point], attention_mask=batch.attention)[self.hook_point]
        keep = batch.keep.to(x.device)
        self._drawn += 1
        return TrainingBatch(x[keep].float(), context=OutputContext(batch.ids, keep, batch.attention.to(x.device)))

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]


def output_divergence(model: LanguageModel, hook_point: str) -> Callable[[Tensor, OutputContext], Tensor]:
    """KL divergence of the predictions from a reconstruction from the model's own, in nats per token; for
    ``OutputTerm``."""

    def loss(x_hat: Tensor, context: OutputContext) -> Tensor:
        with torch.no_grad():
            clean = F.log_softmax(model.logits(context.ids, attention_mask=context.attention).float(), dim=-1)
        changed = F.log_softmax(_spliced(model, hook_point, x_hat, context).float(), dim=-1)
        return (clean.exp() * (clean - changed)).sum(-1)[context.keep].mean()

    return loss


def output_cross_entropy(model: LanguageModel, hook_point: str) -> Callable[[Tensor, OutputContext], Tensor]:
    """Cross-entropy of the text under the predictions from a reconstruction, in nats per token; for ``OutputTerm``."""

    def loss(x_hat: Tensor, context: OutputContext) -> Tensor:
        logits = _spliced(model, hook_point, x_hat, context)[:, :-1]
        counted = context.keep[:, :-1]  # predictions from rebuilt tokens
        if context.attention is not None:
            counted = counted & context.attention[:, 1:]  # of text
        return F.cross_entropy(logits[counted].float(), context.ids[:, 1:].to(logits.device)[counted])

    return loss


def _spliced(model: LanguageModel, hook_point: str, x_hat: Tensor, context: OutputContext) -> Tensor:
    """Logits ``[W, T, V]`` when the model goes on from a reconstruction."""
    model.module.requires_grad_(False)  # gradients are for the dictionary alone
    wanted = [int(context.keep.sum()), model.width(hook_point)]
    if list(x_hat.shape) != wanted:
        raise ValueError(
            f"a reconstruction of {wanted} (tokens, width of {hook_point}) is needed here, got {list(x_hat.shape)}; "
            "do stream and loss have the same hook point?"
        )

    def splice(x: Tensor) -> Tensor:
        return x.masked_scatter(context.keep[..., None], x_hat.to(x.dtype))

    return model.logits(context.ids, attention_mask=context.attention, edits={hook_point: splice})
