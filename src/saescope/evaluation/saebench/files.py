"""Results in SAEBench's JSON, so that its plots and tables take ours beside published ones.

One file for a dictionary and an evaluation, in the envelope of SAEBench 0.6 (Karvonen et al. 2025, arXiv 2503.09532).
What saescope adds (which definitions, seeds, intervals, code version) stands inside ``eval_config`` and
``eval_result_unstructured``, so that ``eval_result_metrics`` keeps its two levels. :func:`saebench_core` computes the
core numbers by SAEBench's own definitions; those of other studies enter by name (``saebench_studies.py``).

B  windows in a batch, T  tokens in a window, V  vocabulary.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope import __version__
from saescope.activations import TokenWindows, WindowBatch
from saescope.dictionaries import Dictionary, SparseCodes
from saescope.evaluation.core.weights import require_finite
from saescope.evaluation.saebench.core import SaeBenchCoreMeter, SaeBenchLosses
from saescope.evaluation.saebench.interface import folded_weights
from saescope.evaluation.sites import Sites

if TYPE_CHECKING:
    from saescope.models import LanguageModel

EVAL_TYPE_IDS = (
    "core", "sparse_probing", "sparse_probing_sae_probes", "absorption_first_letter", "scr", "tpp", "ravel", "unlearning",
    "autointerp", "meta_structure_decoder_variance", "mdl",
)  # fmt: skip


def saebench_json(
    eval_type_id: str,
    metrics: Mapping[str, Mapping[str, float | None]],
    details: Sequence[Mapping[str, Any]] = (),
    *,
    config: Mapping[str, Any],
    release: str,
    sae_id: str = "custom_sae",
    sae_cfg: Mapping[str, Any] | None = None,
    unstructured: Mapping[str, Any] | None = None,
    compat: bool = False,
    seeds: Sequence[int] = (),
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """SAEBench's envelope around the numbers of one evaluation.

    Args:
        eval_type_id: SAEBench's name of the evaluation, one of ``EVAL_TYPE_IDS``.
        metrics: category -> key -> number, None where there is none.
        details: flat objects, one for each feature, class or letter.
        config: every setting of the evaluation.
        release, sae_id: names of the dictionary; together they name the file. SAEBench calls dictionaries that it did not
            download ``custom_sae``.
        sae_cfg: the dictionary's own settings (``as_saebench(...).cfg.to_dict()``, or its cfg.json).
        unstructured: whatever else is worth keeping.
        compat: whether the numbers follow SAEBench's definitions where those are wrong.
        intervals: by the metric's key, with ``low`` and ``high``.

    Raises:
        ValueError: an evaluation that SAEBench does not have, metrics of another depth, or a number that is not finite.
    """
    if eval_type_id not in EVAL_TYPE_IDS:
        raise ValueError(f"SAEBench has no evaluation {eval_type_id!r}; it has {', '.join(EVAL_TYPE_IDS)}")
    for category, numbers in metrics.items():
        if not isinstance(numbers, Mapping):
            raise ValueError(f"metrics have two levels, category and key; {category} is {numbers!r}")
        for key, value in numbers.items():
            if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
                raise ValueError(f"{category}.{key} is {value!r}; give a finite number, or None and say why elsewhere")
    nested = [row for row in details if any(isinstance(value, Mapping | list | tuple) for value in row.values())]
    if nested:
        raise ValueError(f"details are flat objects, and {nested[0]!r} is not")
    if not release or not sae_id:
        raise ValueError("SAEBench names results by release and id of the dictionary; give both")
    code = f"saescope {__version__}"
    ours = {"compat": compat, "random_seeds": list(seeds), "code_version": code}
    clashing = sorted(set(ours) & set(config))
    if clashing or "saescope" in (unstructured or {}):
        raise ValueError(f"saescope itself writes {', '.join([*clashing] or ['saescope'])}; leave that out")
    return {
        "eval_type_id": eval_type_id,
        "eval_config": {**config, **ours},
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": {category: dict(numbers) for category, numbers in metrics.items()},
        "eval_result_details": [dict(row) for row in details],
        "sae_bench_commit_hash": code,  # neither of the two libraries made these numbers
        "sae_lens_id": sae_id,
        "sae_lens_release_id": release,
        "sae_lens_version": code,
        "sae_cfg_dict": dict(sae_cfg or {}),
        "eval_result_unstructured": {
            **(unstructured or {}),
            "saescope": {"intervals": {key: dict(ends) for key, ends in (intervals or {}).items()}},
        },
    }


def saebench_file_name(release: str, sae_id: str = "custom_sae") -> str:
    """Where SAEBench looks for the results of a dictionary."""
    return f"{release}_{sae_id}_eval_results.json".replace("/", "_")


def write_saebench(folder: str | Path, envelope: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Write what :func:`saebench_json` gave into ``folder`` under SAEBench's file name, and return the file's path.

    SAEBench has one folder for every evaluation, since the name does not say which it is.

    Raises:
        FileExistsError: results of this dictionary are there already; SAEBench would skip it.
        OSError: the file can not be written; what was there is left as it was.
    """
    path = Path(folder) / saebench_file_name(envelope["sae_lens_release_id"], envelope["sae_lens_id"])
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists; choose another folder or allow overwriting")
    text = json.dumps(envelope, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return path


@torch.no_grad()
def saebench_core(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str,
    *,
    compat: Literal[True],
    num_tokens: int = 4_096_000,
    num_tokens_reconstruction: int = 409_600,
    batch_size_windows: int = 16,
    exclude_special_tokens_from_reconstruction: bool = True,
    dataset: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """SAEBench's core on a dictionary, by its own definitions and as it runs them; the defaults are the paper's.

    Both phases begin with the first window and go on in whole batches, so give windows of shuffled documents (SAEBench
    shuffles them). Padding, BOS and EOS tokens are left out of every number. Reconstructions leave such tokens as they
    are, but the ablation sets every position to zero.

    Args:
        compat: must be True: one of these definitions is wrong (see ``saebench_core.py``).
        num_tokens: for sparsity and variance, special tokens counted; less where the text has less.
        num_tokens_reconstruction: for the model's losses.
        dataset: name of the text, for the record.
        on_progress: called with (batches done, batches in all), over both phases.

    Returns:
        ``metrics``, ``details``, ``config``, ``unstructured`` and ``compat``: arguments of :func:`saebench_json`.

    Raises:
        ValueError: SAEBench could not run on this dictionary, it does not fit the model, or holds NaN.
    """
    meter = SaeBenchCoreMeter(dictionary.d_sae, compat=compat)
    weights = folded_weights(dictionary)
    require_finite(dictionary)
    Sites.of(dictionary, model, hook_point)  # refuses what does not fit
    model.require_causal("SAEBench's core")
    phases = [_whole_batches(windows, tokens, batch_size_windows) for tokens in (num_tokens_reconstruction, num_tokens)]
    total, done = sum(map(len, phases)), 0

    def batches(rows: Sequence[range]) -> Iterator[tuple[WindowBatch, Tensor]]:
        nonlocal done
        for chosen in rows:
            batch = windows.batch(chosen)
            yield batch, _kept(batch, model, windows)
            done += 1
            if on_progress:
                on_progress(done, total)

    for batch, kept in batches(phases[0]):
        replaced = kept if exclude_special_tokens_from_reconstruction else torch.ones_like(kept)
        meter.update_losses(_losses(dictionary, model, hook_point, batch, kept, replaced))
    for batch, kept in batches(phases[1]):
        x = model.read(batch.ids, [hook_point])[hook_point][kept].to(weights.W_dec)
        codes = dictionary.encode_sparse(x)
        folded = SparseCodes(codes.indices, codes.values * weights.norms[codes.indices], codes.d_sae)
        meter.update(x, dictionary.decode(codes, x), folded, kept.nonzero()[:, 0])
    sizes = [windows.config.context_size * sum(map(len, rows)) for rows in phases]
    found = meter.result(weights, num_tokens_reconstruction=sizes[0], num_tokens_sparsity_variance=sizes[1])
    config = {
        "model_name": model.name,
        "llm_dtype": str(model.dtype).removeprefix("torch."),
        "batch_size_prompts": batch_size_windows,
        "n_eval_reconstruction_batches": len(phases[0]),
        "n_eval_sparsity_variance_batches": len(phases[1]),
        "dataset": dataset,
        "context_size": windows.config.context_size,
        **dict.fromkeys(_COMPUTED, True),
        "exclude_special_tokens_from_reconstruction": exclude_special_tokens_from_reconstruction,
        "verbose": False,
    }
    return {
        "metrics": found.metrics,
        "details": found.details,
        "config": config,
        "unstructured": {"undefined_saved_as_minus_one": found.undefined},
        "compat": True,
    }


_COMPUTED = (
    "compute_kl", "compute_ce_loss", "compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics",
    "compute_featurewise_density_statistics", "compute_featurewise_weight_based_metrics",
)  # fmt: skip


def _whole_batches(windows: TokenWindows, num_tokens: int, batch_size_windows: int) -> list[range]:
    """Windows of each batch; one smaller batch where there are not enough for a whole one."""
    if batch_size_windows < 1:
        raise ValueError(f"batch_size_windows must be at least 1, got {batch_size_windows}")
    number = min(len(windows), num_tokens // windows.config.context_size)
    if number < 1:
        raise ValueError(
            f"{num_tokens} tokens are less than one window of {windows.config.context_size}; allow more tokens"
        )
    number = max(number - number % batch_size_windows, min(number, batch_size_windows))
    return [range(first, min(first + batch_size_windows, number)) for first in range(0, number, batch_size_windows)]


def _kept(batch: WindowBatch, model: LanguageModel, windows: TokenWindows) -> Tensor:
    """What SAEBench looks at: tokens that are neither padding nor BOS nor EOS, bool ``[B, T]``, on the model's device."""
    ignored = windows.special_ids
    if model.tokenizer is not None:
        named = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, model.tokenizer.bos_token_id)
        ignored = frozenset(token for token in named if token is not None)
    special = torch.isin(batch.ids, torch.tensor(sorted(ignored), dtype=batch.ids.dtype))
    return (batch.attention & ~special).to(model.device)


def _losses(
    dictionary: Dictionary, model: LanguageModel, hook_point: str, batch: WindowBatch, kept: Tensor, replaced: Tensor
) -> SaeBenchLosses:
    """Sums over a batch. No attention mask, as in SAEBench: what is padded on the right changes nothing before it."""

    def splice(activations: Tensor) -> Tensor:
        out = activations.clone()
        x = activations[replaced].to(dictionary.W_dec)
        out[replaced] = dictionary.decode(dictionary.encode_sparse(x), x).to(out.dtype)
        return out

    ids = batch.ids.to(model.device)
    clean = model.logits(ids)
    spliced = model.logits(ids, edits={hook_point: splice})
    ablated = model.logits(ids, edits={hook_point: torch.zeros_like})
    predicts = kept[:, :-1] & batch.attention[:, 1:].to(model.device)
    sums = SaeBenchLosses(num_tokens=int(kept.sum()), num_predictions=int(predicts.sum()))
    for row in range(len(ids)):  # one window at a time: [T, V] in float64 is enough
        logs = [F.log_softmax(logits[row].double(), dim=-1) for logits in (clean, spliced, ablated)]
        targets = ids[row, 1:, None]
        entropies = [-log[:-1].gather(-1, targets)[predicts[row]].sum() for log in logs]
        probabilities = logs[0].exp()
        divergences = [(probabilities * (logs[0] - log)).sum(-1)[kept[row]].sum() for log in logs[1:]]
        sums.ce_without_sae += float(entropies[0])
        sums.ce_with_sae += float(entropies[1])
        sums.ce_with_ablation += float(entropies[2])
        sums.kl_with_sae += float(divergences[0])
        sums.kl_with_ablation += float(divergences[1])
    return sums
