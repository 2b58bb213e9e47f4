"""The model's losses when activations are replaced: by a dictionary's answers, by zero, by a mean, by other tokens'.

Tokens that a dictionary is not meant for (special ones, padding) keep their own activations in every pass, and so do not
count differently for a dictionary than for the ablation that it is compared with.

B  windows, T  tokens in a window, V  vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.activations.windows import WindowBatch
from saescope.evaluation.sample import joined
from saescope.evaluation.sites import Sites

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True, eq=False)
class CleanPass:
    """The model on a batch as it is, and what the dictionary reads and rebuilds there."""

    model: LanguageModel
    sites: Sites
    batch: WindowBatch
    x: Tensor  # [kept tokens, d_in], float32
    y: Tensor  # [kept tokens, d_out]; x itself where the dictionary rebuilds what it reads
    log_probabilities: Tensor | None  # of predictions made at kept tokens, [predictions, V]; None: the model makes none
    predicts: Tensor  # which kept tokens have a successor to predict, bool [kept tokens]
    targets: Tensor  # [predictions]

    @classmethod
    def run(cls, model: LanguageModel, sites: Sites, batch: WindowBatch) -> CleanPass:
        seen: dict[str, Tensor] = {}

        def see(name: str) -> Callable[[Tensor], Tensor]:
            def look(value: Tensor) -> Tensor:
                seen[name] = value
                return value

            return look

        # a kept token predicts if its successor is a token of the window
        follows = F.pad(batch.attention[:, 1:], (0, 1), value=False)
        predicts = follows[batch.keep]
        targets = F.pad(batch.ids[:, 1:], (0, 1))[batch.keep][predicts]
        log_probabilities = None
        if model.is_causal:
            logits = model.logits(
                batch.ids, attention_mask=batch.attention, edits={name: see(name) for name in sites.all}
            )
            log_probabilities = _log_probabilities(logits, batch, predicts)
        else:
            seen = model.read(batch.ids, list(sites.all), attention_mask=batch.attention)
        x = joined([seen[name] for name in sites.reads], batch.keep)
        y = x if sites.writes == sites.reads else joined([seen[name] for name in sites.writes], batch.keep)
        return cls(model, sites, batch, x, y, log_probabilities, predicts, targets.to(x.device))

    def cross_entropy(self, log_probabilities: Tensor) -> Tensor:
        """Nats of every prediction, float64 ``[predictions]``."""
        return -log_probabilities.gather(-1, self.targets[:, None]).squeeze(-1).double()

    def with_replaced(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and KL from the clean predictions, where kept tokens' activations are ``values``.

        Args:
            values: one row for all kept tokens ``[d_out]``, or one for each, ``[kept tokens, d_out]``.
        """
        assert self.log_probabilities is not None
        keep = self.batch.keep.to(self.x.device)

        def put(value: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(activations: Tensor) -> Tensor:
                out = activations.clone()
                out[keep] = value.to(activations.dtype)
                return out

            return replace

        parts = values.split(self.sites.widths, dim=-1)
        edits = {name: put(part) for name, part in zip(self.sites.writes, parts, strict=True)}
        logits = self.model.logits(self.batch.ids, attention_mask=self.batch.attention, edits=edits)
        changed = _log_probabilities(logits, self.batch, self.predicts)
        clean = self.log_probabilities
        divergence = (clean.exp() * (clean - changed)).sum(-1).double()
        return self.cross_entropy(changed), divergence


def _log_probabilities(logits: Tensor, batch: WindowBatch, predicts: Tensor) -> Tensor:
    """At kept tokens that predict, in float32 or better."""
    chosen = logits[batch.keep.to(logits.device)][predicts.to(logits.device)]
    return F.log_softmax(chosen.to(torch.promote_types(chosen.dtype, torch.float32)), dim=-1)
