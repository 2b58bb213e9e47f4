"""How good a dictionary is: reconstruction, sparsity, and what the model loses when it reads reconstructions.

One mask rules everything: the tokens that are neither special nor padding. Only there are activations measured,
replaced by reconstructions, or ablated, and only there are losses counted; special tokens keep their own activations in
every pass. So a dictionary that answers zero recovers exactly nothing against zero ablation, and a perfect one recovers
everything.

B  windows, T  tokens in a window, V  vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.activations import TokenWindows, WindowBatch
from saescope.dictionaries import Crosscoder, Dictionary, Transcoder
from saescope.metrics import FiringMeter, Reconstruction, ReconstructionMeter, Sparsity, loss_recovered

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ModelLoss:
    """What splicing the dictionary into the model costs, in nats per token; ablations replace the same tokens."""

    num_predictions: int
    ce_loss_clean: float
    ce_loss_spliced: float
    ce_loss_zero_ablation: float
    ce_loss_mean_ablation: float
    kl_spliced: float  # KL of the spliced from the clean predictions
    kl_zero_ablation: float
    kl_mean_ablation: float

    @property
    def ce_loss_recovered(self) -> float:
        """Against zero ablation, the field's usual baseline."""
        return loss_recovered(self.ce_loss_clean, self.ce_loss_spliced, self.ce_loss_zero_ablation)

    @property
    def ce_loss_recovered_mean(self) -> float:
        """Against mean ablation, a harder baseline."""
        return loss_recovered(self.ce_loss_clean, self.ce_loss_spliced, self.ce_loss_mean_ablation)

    @property
    def kl_recovered(self) -> float:
        return loss_recovered(0.0, self.kl_spliced, self.kl_zero_ablation)

    @property
    def kl_recovered_mean(self) -> float:
        return loss_recovered(0.0, self.kl_spliced, self.kl_mean_ablation)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All numbers of one dictionary on one text."""

    reconstruction: Reconstruction
    sparsity: Sparsity
    model_loss: ModelLoss | None  # None for models that do not predict the next token
    density: Tensor  # share of tokens on which each feature fires, [d_sae]

    def numbers(self) -> dict[str, float]:
        """Every number under the name that ``eval.json`` has it."""
        found = {
            "num_tokens": self.reconstruction.num_tokens,
            "explained_variance": self.reconstruction.explained_variance,
            "explained_variance_legacy": self.reconstruction.explained_variance_legacy,
            "cosine": self.reconstruction.cosine,
            "mse": self.reconstruction.mse,
            "l2_ratio": self.reconstruction.l2_ratio,
            "l0": self.sparsity.l0,
            "silent_share": self.sparsity.dead_share,  # no firing on these tokens
            "dense_share": self.sparsity.dense_share,
        }
        if self.model_loss is not None:
            found |= vars(self.model_loss)
            for name in ("ce_loss_recovered", "ce_loss_recovered_mean", "kl_recovered", "kl_recovered_mean"):
                try:
                    found[name] = getattr(self.model_loss, name)
                except ValueError:  # the ablation does no harm: no such number
                    found[name] = float("nan")
        return found


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str | Sequence[str],
    *,
    hook_point_out: str | None = None,
    num_tokens: int | None = None,
    batch_size_windows: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a dictionary on at most ``num_tokens`` tokens, in windows spread evenly over the text.

    Args:
        hook_point: where the dictionary reads; of a crosscoder, the list of its sources.
        hook_point_out: where a transcoder writes. Its reconstruction is compared with the activations there, and
        spliced in there.
        on_progress: called with (batches done, batches in all), over both passes.

    Raises:
        ValueError: width or hook point do not fit, or there are no tokens.
    """
    sites = _Sites.of(dictionary, model, hook_point, hook_point_out)
    reconstruction, firing = ReconstructionMeter(), FiringMeter(dictionary.d_sae)
    batches = list(windows.evenly(num_tokens).in_order(batch_size_windows))
    total = 2 * len(batches) if model.is_causal else len(batches)
    for done, batch in enumerate(batches, start=1):
        read = model.read(batch.ids, [*sites.reads, *sites.writes], attention_mask=batch.attention)
        x = _joined([read[name] for name in sites.reads], batch.keep)
        y = x if sites.writes == sites.reads else _joined([read[name] for name in sites.writes], batch.keep)
        codes = dictionary.encode_sparse(x)
        reconstruction.update(y, dictionary.decode(codes, x))
        firing.update(codes.firings().feature, len(x))
        if on_progress:
            on_progress(done, total)
    loss = None
    if model.is_causal:
        mean = reconstruction.mean.float()
        totals = torch.zeros(8, dtype=torch.float64)
        for done, batch in enumerate(batches, start=len(batches) + 1):
            totals += _losses(dictionary, model, sites, batch, mean)
            if on_progress:
                on_progress(done, total)
        loss = _model_loss(totals)
    return Evaluation(
        reconstruction=reconstruction.result(), sparsity=firing.result(), model_loss=loss, density=firing.density
    )


@dataclass(frozen=True)
class _Sites:
    """Where a dictionary reads and where it writes: the same place, but for transcoders; several for crosscoders."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    widths: tuple[int, ...]  # of the places written to

    @classmethod
    def of(
        cls, dictionary: Dictionary, model: LanguageModel, hook_point: str | Sequence[str], hook_point_out: str | None
    ) -> _Sites:
        reads = (hook_point,) if isinstance(hook_point, str) else tuple(hook_point)
        if isinstance(dictionary, Transcoder) and hook_point_out is None:
            raise ValueError("a transcoder rebuilds another hook point than it reads; name it as hook_point_out")
        if hook_point_out is not None and dictionary.config.apply_b_dec_to_input:
            raise ValueError(
                f"a {dictionary.architecture} dictionary rebuilds what it reads; hook_point_out is for transcoders"
            )
        writes = reads if hook_point_out is None else (hook_point_out,)
        for names, what, wanted in ((reads, "d_in", dictionary.d_in), (writes, "d_out", dictionary.d_out)):
            width = sum(model.width(name) for name in names)
            if width != wanted:
                raise ValueError(
                    f"the dictionary has {what} = {wanted}, but {', '.join(names)} of {model.name} has width {width}; "
                    "name the hook point that it was trained on"
                )
        if isinstance(dictionary, Crosscoder):
            widths = [model.width(name) for name in reads]
            if widths != list(dictionary.config.source_widths):
                raise ValueError(
                    f"the crosscoder reads sources of widths {list(dictionary.config.source_widths)}, but "
                    f"{', '.join(reads)} of {model.name} have {widths}; name its hook points in their order"
                )
        return cls(reads, writes, tuple(model.width(name) for name in writes))


def _joined(activations: Sequence[Tensor], keep: Tensor) -> Tensor:
    """Activations of the kept tokens, hook points side by side: ``[tokens, d]``, float32."""
    return torch.cat([a[keep.to(a.device)].float() for a in activations], dim=-1)


def _losses(dictionary: Dictionary, model: LanguageModel, sites: _Sites, batch: WindowBatch, mean: Tensor) -> Tensor:
    """Sums over a batch: [CE clean, spliced, zero, mean, KL spliced, zero, mean, predictions]."""
    mask = batch.keep[:, :-1] & batch.attention[:, 1:]  # [B, T-1]: a kept token that has a successor
    targets = batch.ids[:, 1:][mask].to(mean.device)
    keep, mask = batch.keep.to(mean.device), mask.to(mean.device)
    seen: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            seen[name] = x
            return x

        return edit

    def replace_by(values: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """Edits that put ``values``, one row or one per kept token, at the places written to."""

        def edit(value: Tensor) -> Callable[[Tensor], Tensor]:
            def replace(x: Tensor) -> Tensor:
                out = x.clone()
                out[keep] = value.to(x.dtype)
                return out

            return replace

        parts = values.split(sites.widths, dim=-1)
        return {name: edit(part) for name, part in zip(sites.writes, parts, strict=True)}

    def log_probabilities(edits: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
        logits = model.logits(batch.ids, attention_mask=batch.attention, edits=edits)
        return F.log_softmax(logits[:, :-1][mask].float(), dim=-1)  # [predictions, V]

    clean = log_probabilities({name: see(name) for name in sites.reads})
    x = _joined([seen[name] for name in sites.reads], keep)
    found = [_cross_entropy(clean, targets)]
    divergences = []
    for values in (dictionary.decode(dictionary.encode_sparse(x), x), torch.zeros_like(mean), mean):
        changed = log_probabilities(replace_by(values))
        found.append(_cross_entropy(changed, targets))
        divergences.append(float((clean.exp() * (clean - changed)).sum(-1).double().sum()))
    return torch.tensor([*found, *divergences, len(targets)], dtype=torch.float64)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> float:
    return -float(log_probabilities.gather(-1, targets[:, None]).double().sum())


def _model_loss(totals: Tensor) -> ModelLoss:
    if not totals[-1]:
        raise ValueError("no predictions to measure: every window holds a single token")
    clean, spliced, zero, mean, kl_spliced, kl_zero, kl_mean = (totals[:-1] / totals[-1]).tolist()
    return ModelLoss(
        num_predictions=int(totals[-1]),
        ce_loss_clean=clean,
        ce_loss_spliced=spliced,
        ce_loss_zero_ablation=zero,
        ce_loss_mean_ablation=mean,
        kl_spliced=kl_spliced,
        kl_zero_ablation=kl_zero,
        kl_mean_ablation=kl_mean,
    )
