"""What does not depend on the dictionary: the activations' mean, and what ablations cost the model.

Measured once for a model, a hook point and a text, and used for every dictionary there. Three ablations replace the same
tokens: zero; the mean over all tokens (harder to beat); and resampling, which gives every token the activation of another
one drawn at random, so that the model sees activations of a kind that it knows.

T  tokens, d_out  width of what is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saescope.activations import TokenWindows
from saescope.activations.windows import WindowBatch
from saescope.evaluation.core.grouped import GroupedSums, Grouping
from saescope.evaluation.core.splicing import CleanPass
from saescope.evaluation.sample import joined
from saescope.evaluation.sites import Sites

if TYPE_CHECKING:
    from saescope.models import LanguageModel

ABLATIONS = ("zero", "mean", "resample")
_POOL = 4096  # tokens whose activations stand in for others'


@dataclass(frozen=True, kw_only=True, eq=False)
class Baselines:
    """Mean and ablation losses at the places that dictionaries write to."""

    windows: TokenWindows  # those that were measured on
    batch_size_windows: int
    grouping: Grouping
    num_tokens: int
    mean: Tensor  # of what is rebuilt, float64 [d_out]
    pool: Tensor  # [at most 4096, d_out], float32: kept tokens spread evenly over the text
    drawn: np.ndarray  # int32 [T]: the row of the pool that each kept token gets in resampling
    losses: GroupedSums | None  # nats by ablation; None where the model predicts no next token
    writes: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def measure(
        cls,
        model: LanguageModel,
        windows: TokenWindows,
        sites: Sites,
        *,
        num_tokens: int | None = None,
        batch_size_windows: int = 16,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Baselines:
        """Measure on at most ``num_tokens`` tokens, in windows spread evenly over the text.

        Args:
            seed: of the tokens drawn for resampling.
            on_progress: called with (batches done, batches in all), over both passes.

        Raises:
            ValueError: no tokens, or a causal model and no predictions; activations that are not numbers.
        """
        chosen = windows.evenly(num_tokens)
        grouping = Grouping.of(chosen)
        batches = list(chosen.in_order(batch_size_windows))
        total = len(batches) * (2 if model.is_causal else 1)
        kept = int(sum(int(batch.keep.sum()) for batch in batches))
        if not kept:
            raise ValueError("the text holds nothing but special tokens")
        wanted = np.unique(np.linspace(0, kept - 1, min(kept, _POOL)).round().astype(np.int64))
        pilot: Tensor | None = None
        summed, pool, before = torch.zeros(()), [], 0
        for done, batch in enumerate(batches, start=1):
            values = model.read(batch.ids, list(sites.writes), attention_mask=batch.attention)
            y = joined([values[name] for name in sites.writes], batch.keep)
            if on_progress:
                on_progress(done, total)
            if not len(y):
                continue
            if not y.isfinite().all():
                raise ValueError(
                    f"{model.name} gives activations at {', '.join(sites.writes)} that are not numbers; try another dtype"
                )
            if pilot is None:  # sums around a first guess of the mean keep the digits that a large mean would take
                pilot = y.double().mean(0)
                summed = torch.zeros_like(pilot)
            summed += (y.double() - pilot).sum(0)
            rows = wanted[(wanted >= before) & (wanted < before + len(y))] - before
            pool.append(y[torch.from_numpy(rows).to(y.device)])
            before += len(y)
        assert pilot is not None
        held = torch.cat(pool)
        found = cls(
            windows=chosen,
            batch_size_windows=batch_size_windows,
            grouping=grouping,
            num_tokens=kept,
            mean=pilot + summed / kept,
            pool=held,
            drawn=np.random.default_rng(seed).integers(len(held), size=kept).astype(np.int32),
            losses=_loss_sums(grouping) if model.is_causal else None,
            writes=sites.writes,
        )
        if found.losses is not None:
            for done, (batch, tokens) in enumerate(found.batches(), start=len(batches) + 1):
                found._add_losses(CleanPass.run(model, sites, batch), tokens)
                if on_progress:
                    on_progress(done, total)
            if not found.losses.total("predictions"):
                raise ValueError("no predictions to measure: every window holds a single token")
        return found

    def batches(self) -> list[tuple[WindowBatch, slice]]:
        """Every batch of windows, and which of all kept tokens are its own."""
        found, before = [], 0
        for batch in self.windows.in_order(self.batch_size_windows):
            after = before + int(batch.keep.sum())
            found.append((batch, slice(before, after)))
            before = after
        return found

    def replacement(self, ablation: str, tokens: slice) -> Tensor:
        """What an ablation puts in the place of these kept tokens: ``[d_out]``, or ``[tokens, d_out]``."""
        if ablation == "zero":
            return torch.zeros_like(self.mean).float()
        if ablation == "mean":
            return self.mean.float()
        return self.pool[torch.from_numpy(self.drawn[tokens].astype(np.int64)).to(self.pool.device)]

    def _add_losses(self, clean: CleanPass, tokens: slice) -> None:
        assert self.losses is not None
        assert clean.log_probabilities is not None
        groups = predictions_of(self.grouping.groups(clean.batch), clean)
        values = {"predictions": np.ones(len(clean.targets))}
        values["ce_clean"] = clean.cross_entropy(clean.log_probabilities).cpu().numpy()
        for ablation in ABLATIONS:
            ce, kl = clean.with_replaced(self.replacement(ablation, tokens))
            values[f"ce_{ablation}"], values[f"kl_{ablation}"] = ce.cpu().numpy(), kl.cpu().numpy()
        self.losses.add(groups, values)


def predictions_of(groups: dict[str, np.ndarray], clean: CleanPass) -> dict[str, np.ndarray]:
    """The groups of the kept tokens that predict."""
    predicts = clean.predicts.numpy()
    return {name: values[predicts] for name, values in groups.items()}


def _loss_sums(grouping: Grouping) -> GroupedSums:
    names = [f"{what}_{ablation}" for what in ("ce", "kl") for ablation in ABLATIONS]
    return GroupedSums(grouping.sizes, ["predictions", "ce_clean", *names])
