"""The numbers of SAEBench 0.6's core evaluation by its own definitions, so that a dictionary can stand in its tables.

Not the numbers to judge a dictionary by: those are in saescope's own core study. Karvonen et al. 2025, arXiv
2503.09532; what the released code computes differs from the names in places, and this module follows the code:

- ``explained_variance`` is 1 - E|r|^2 / (E|x|^2 - m^2), where the scalar m is the mean of x^2 over tokens and
  dimensions. The denominator is no variance: the number is too high for small activations and above 1 for large ones.
- ``explained_variance_legacy`` is a mean over tokens of ratios, around the mean of each batch.
- ``mse`` is the squared error of a token divided by the number of tokens in its batch.
- ``relative_reconstruction_bias`` is a mean over batches of quotients.
- ``l0`` counts activations other than 0, densities count those above 0.

Most of them hang on how tokens were batched. What has no value is saved as -1, as SAEBench does with NaN; each such -1
is listed. SAEBench computes in the model's dtype; here sums are float64, so that the two agree to the rounding of theirs.

N  kept tokens of a batch, d_in  activation width, d_sae  features. r = x - x_hat, f  activations on decoder rows of norm 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.dictionaries import SparseCodes
from saescope.evaluation.core.weights import max_cosine
from saescope.evaluation.saebench.interface import FoldedWeights

_DECIMALS = 10  # of every number of a feature
_SHORT = 1e-4  # norms below count as 1 where they divide
UNDEFINED = -1.0


@dataclass(frozen=True, kw_only=True)
class SaeBenchCore:
    """What SAEBench's core saves of a dictionary."""

    metrics: dict[str, dict[str, float]]  # category -> key -> number
    details: list[dict[str, Any]]  # one flat object for every feature
    undefined: dict[str, str]  # which -1 stand for no number, and what stood there


@dataclass
class SaeBenchLosses:
    """Sums over tokens in nats: KL from the clean predictions at every kept token, cross-entropy at those with a
    successor."""

    num_tokens: int = 0
    num_predictions: int = 0
    kl_with_sae: float = 0.0
    kl_with_ablation: float = 0.0
    ce_without_sae: float = 0.0
    ce_with_sae: float = 0.0
    ce_with_ablation: float = 0.0


@dataclass
class _Sums:
    """Sums over all tokens, and over batches."""

    num_tokens: int = 0
    num_batches: int = 0
    of_tokens: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    of_batches: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class SaeBenchCoreMeter:
    """SAEBench's core, batch by batch; batches must be those that it would see, 16 windows as a rule."""

    def __init__(self, d_sae: int, *, compat: bool = False) -> None:
        """``compat=True`` says that these definitions are wanted, the wrong ones among them."""
        if compat is not True:
            raise ValueError(
                "these are SAEBench 0.6's own definitions, and its explained variance is not one; ask for them with "
                "compat=True, or use the core study for the right numbers"
            )
        self._sums = _Sums()
        self._losses = SaeBenchLosses()
        self._fires = torch.zeros(d_sae, dtype=torch.int64)
        self._prompts = torch.zeros(d_sae, dtype=torch.int64)  # with at least one fire

    @torch.no_grad()
    def update(self, x: Tensor, x_hat: Tensor, codes: SparseCodes, prompt: Tensor) -> None:
        """Add the kept tokens of a batch of prompts.

        Args:
            x, x_hat: activations and reconstructions, ``[N, d_in]``.
            codes: features of the same tokens, in units of decoder rows of norm 1.
            prompt: which prompt of the batch each token is in, integers ``[N]``.
        """
        if x.shape != x_hat.shape or x.ndim != 2 or not len(x) == len(codes.values) == len(prompt):
            raise ValueError(
                "expected x and x_hat of one shape [N, d_in], codes and prompts of as many tokens, got "
                f"{list(x.shape)}, {list(x_hat.shape)}, {len(codes.values)} and {len(prompt)}"
            )
        if codes.d_sae != len(self._fires):
            raise ValueError(f"the meter counts {len(self._fires)} features, the codes have {codes.d_sae}")
        x, x_hat, f = x.double(), x_hat.double(), codes.values.double()
        error = (x - x_hat).square().sum(-1)  # [N]
        square, square_hat, product = x.square().sum(-1), x_hat.square().sum(-1), (x * x_hat).sum(-1)
        norm, norm_hat = square.sqrt(), square_hat.sqrt()
        spread = (x - x.mean(0)).square().sum(-1)
        self._sums.num_tokens += len(x)
        self._sums.num_batches += 1
        for name, values in (
            ("l2_norm_in", norm),
            ("l2_norm_out", norm_hat),
            ("l2_ratio", norm_hat / norm.where(norm >= _SHORT, 1)),
            ("explained_variance_legacy", 1 - error / spread),
            ("mse", error / len(x) if len(x) else error),
            ("cossim", product / (norm * norm_hat)),
            ("l0", (f != 0).sum(-1)),
            ("l1", f.sum(-1)),
        ):
            self._sums.of_tokens[name] += float(values.sum())
        for name, value in (
            ("error", error.mean()),
            ("square", square.mean()),
            ("mean_of_squares", x.square().mean()),
            ("bias", square_hat.mean() / product.mean()),
        ):
            self._sums.of_batches[name] += float(value)
        firings = codes.firings()
        positive = firings.value > 0
        feature, token = firings.feature[positive].cpu(), firings.token[positive].cpu()
        d_sae = len(self._fires)
        self._fires += torch.bincount(feature, minlength=d_sae)
        met = torch.unique(prompt.cpu().long()[token] * d_sae + feature)
        self._prompts += torch.bincount(met % d_sae, minlength=d_sae)

    def update_losses(self, losses: SaeBenchLosses) -> None:
        """Add the losses of a batch of prompts."""
        for name, value in vars(losses).items():
            setattr(self._losses, name, getattr(self._losses, name) + value)

    def result(
        self, weights: FoldedWeights, *, num_tokens_reconstruction: int, num_tokens_sparsity_variance: int
    ) -> SaeBenchCore:
        """All that SAEBench saves.

        Args:
            num_tokens_reconstruction, num_tokens_sparsity_variance: tokens of all windows in either phase, special ones
                counted, which is what SAEBench reports.

        Raises:
            ValueError: a phase saw no batch.
        """
        if not self._sums.num_batches or not self._losses.num_predictions:
            raise ValueError(
                "SAEBench's core has two phases; give the meter activations and losses of a batch at least"
            )
        columns = self._per_feature(weights)
        metrics: dict[str, dict[str, float]] = {
            **self._model_metrics(),
            **self._token_metrics(),
            "misc_metrics": _misc(columns),
            "token_stats": {
                "total_tokens_eval_reconstruction": num_tokens_reconstruction,
                "total_tokens_eval_sparsity_variance": num_tokens_sparsity_variance,
            },
        }
        undefined = {
            f"{category}.{key}": str(value)
            for category, numbers in metrics.items()
            for key, value in numbers.items()
            if not math.isfinite(value)
        }
        for key, column in columns.items():
            bad = int((~column.isfinite()).sum())
            if bad:
                undefined[f"details.{key}"] = f"{bad} of {len(column)} features"
        rows = {key: [round(_saved(v), _DECIMALS) for v in column.tolist()] for key, column in columns.items()}
        return SaeBenchCore(
            metrics={c: {key: _saved(value) for key, value in n.items()} for c, n in metrics.items()},
            details=[{"index": i} | {key: row[i] for key, row in rows.items()} for i in range(len(self._fires))],
            undefined=undefined,
        )

    def _model_metrics(self) -> dict[str, dict[str, float]]:
        sums = self._losses
        kl_sae, kl_ablation = sums.kl_with_sae / sums.num_tokens, sums.kl_with_ablation / sums.num_tokens
        clean, spliced, ablated = (
            total / sums.num_predictions for total in (sums.ce_without_sae, sums.ce_with_sae, sums.ce_with_ablation)
        )
        return {
            "model_behavior_preservation": {
                "kl_div_score": _quotient(kl_ablation - kl_sae, kl_ablation),
                "kl_div_with_ablation": kl_ablation,
                "kl_div_with_sae": kl_sae,
            },
            "model_performance_preservation": {
                "ce_loss_score": _quotient(ablated - spliced, ablated - clean),
                "ce_loss_with_ablation": ablated,
                "ce_loss_with_sae": spliced,
                "ce_loss_without_sae": clean,
            },
        }

    def _token_metrics(self) -> dict[str, dict[str, float]]:
        mean = {name: _quotient(total, self._sums.num_tokens) for name, total in self._sums.of_tokens.items()}
        batch = {name: total / self._sums.num_batches for name, total in self._sums.of_batches.items()}
        m = batch["mean_of_squares"]  # where the mean activation, a vector, would have to stand
        return {
            "reconstruction_quality": {
                "explained_variance": 1 - _quotient(batch["error"], batch["square"] - m**2),
                **{key: mean[key] for key in ("explained_variance_legacy", "mse", "cossim")},
            },
            "shrinkage": {
                **{key: mean[key] for key in ("l2_norm_in", "l2_norm_out", "l2_ratio")},
                "relative_reconstruction_bias": batch["bias"],
            },
            "sparsity": {key: mean[key] for key in ("l0", "l1")},
        }

    def _per_feature(self, weights: FoldedWeights) -> dict[str, Tensor]:
        """Columns of float64 ``[d_sae]``, NaN where there is no number."""
        encoder, decoder = weights.W_enc.T.double().cpu(), weights.W_dec.double().cpu()  # one row for every feature
        norms = encoder.norm(dim=-1)
        return {
            "feature_density": self._fires.double() / self._sums.num_tokens,
            "consistent_activation_heuristic": self._fires.double() / self._prompts,
            "encoder_bias": weights.encoder_bias.double().cpu(),
            "encoder_norm": norms,
            # a row of zeros has no direction
            "encoder_decoder_cosine_sim": F.cosine_similarity(encoder, decoder).where(
                (norms > 0) & (decoder.norm(dim=-1) > 0), torch.nan
            ),
            "max_decoder_cosine_sim": max_cosine(weights.W_dec),
            "max_encoder_cosine_sim": max_cosine(weights.W_enc.T),
        }


def _misc(columns: dict[str, Tensor]) -> dict[str, float]:
    density = columns["feature_density"]
    total = float(density.sum())
    found = {
        f"average_max_{side}_cosine_sim": float(columns[f"max_{side}_cosine_sim"].mean())
        for side in ("encoder", "decoder")
    }
    found["frac_alive"] = float((density > 0).double().mean())
    for percent in (1, 10):
        dense = density > percent / 100
        found[f"freq_over_{percent}_percent"] = float(dense.double().mean())
        found[f"normalized_freq_over_{percent}_percent"] = float(density[dense].sum()) / total if total > 0 else 0.0
    return found


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _saved(value: float) -> float:
    return value if math.isfinite(value) else UNDEFINED
