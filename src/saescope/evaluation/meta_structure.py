"""Meta-structure: are a dictionary's features made of fewer others? A small dictionary is trained on its decoder rows.

Leask et al. 2025, arXiv 2502.04878 (meta-SAEs), in the form of SAEBench 0.6. The rows of the decoder, at norm 1, are the
data; a BatchTopK dictionary with a quarter as many features and 4 of them per row rebuilds them. What it explains of their
variance is what the rows share: features that are units of their own are explained badly. It is trained as every
dictionary here, on rows scaled by one factor to a mean norm of sqrt(d).

The share depends on the number of rows and on their width, and is far from 0 for directions that have nothing in common.
So the same is done with random directions, and stands beside it.

F  rows, d  their width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saescope.dictionaries import BatchTopK, Dictionary
from saescope.dictionaries.batch_topk import BatchTopKConfig
from saescope.evaluation.intervals import interval
from saescope.evaluation.removal.removal import seed_of
from saescope.evaluation.results import Number, StudyResult
from saescope.training import TrainingConfig, train


@dataclass(frozen=True, kw_only=True)
class MetaStructureConfig:
    """How to train the small dictionary."""

    k: float = 4
    """Features of it that a row may use, on average."""
    width_share: float = 0.25
    """Its number of features, as a share of the number of rows."""
    num_steps: int = 500
    """Steps of training; 1500 as published. Shares are lower after fewer, of random directions as well."""
    batch_size_rows: int = 256
    """Rows of a step, drawn with replacement; 1024 as published."""
    lr: float = 5e-4
    """Of Adam, constant."""
    random_rows: bool = True
    """Whether to do the same with as many random directions."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.k > 0 or not self.width_share > 0 or self.num_steps < 1 or self.batch_size_rows < 1:
            raise ValueError(
                "k, width_share, num_steps and batch_size_rows must be positive, got "
                f"{self.k}, {self.width_share}, {self.num_steps} and {self.batch_size_rows}"
            )
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


def meta_structure(
    dictionary: Dictionary,
    *,
    config: MetaStructureConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StudyResult:
    """Train a small dictionary on the decoder's rows and measure what it explains of them.

    Rows are brought to norm 1 first; rows of zeros write nothing and are left out, with a note.

    Args:
        on_progress: called with (steps done, steps in all).

    Returns:
        ``decoder_fraction_variance_explained`` (1 - sum |w - w_hat|^2 / sum |w - mean|^2), ``final_reconstruction_mse``
        (per element), ``meta_l0``; ``random_rows_fraction_variance_explained`` and the difference
        ``fraction_variance_explained_above_random``. Intervals are over rows.

    Raises:
        ValueError: weights that are not numbers.
    """
    start = time.perf_counter()
    config = config or MetaStructureConfig()
    weights = dictionary.W_dec.detach().double().cpu()
    if not bool(weights.isfinite().all()):
        raise ValueError("the decoder holds numbers that are not finite; the dictionary may have diverged")
    norms = weights.norm(dim=-1, keepdim=True)
    written = norms[:, 0] > 0
    rows = (weights / norms.clamp_min(1e-300))[written].float()
    notes = ["how much is explained depends on the number of rows and their width; compare with random rows"]
    if len(rows) < len(weights):
        notes.append(f"{len(weights) - len(rows)} rows of zeros were left out")
    names = ("decoder_fraction_variance_explained", "final_reconstruction_mse", "meta_l0", *_AGAINST_RANDOM)
    # norms of equal rows differ in the last bits, and rounding is no variance
    if len(rows) < 2 or float(rows.double().var(0, correction=0).sum()) < 1e-10:
        reason = f"{len(rows)} decoder rows that are not 0 have no variance to explain"
        return StudyResult(
            study="meta_structure",
            numbers=tuple(Number(name=name, value=None, reason=reason) for name in names),
            notes=tuple(notes),
            seconds=time.perf_counter() - start,
        )
    total = config.num_steps * (1 + config.random_rows)

    def step(before: int) -> Callable[[int, int], None] | None:
        return (lambda done, _: on_progress(before + done, total)) if on_progress else None

    found = _explained(rows, config, seed_of(config.seed, 0), step(0))
    over: dict[str, Any] = {
        "better": "lower",
        "variant": "rows at norm 1; interval over rows, the small dictionary as it is",
    }
    share = _share(found.sums.sum(0, keepdims=True))[0]
    ends = interval(found.sums, _share, seed=config.seed)
    numbers = [
        Number.of(names[0], float(share), **over, low=ends["low"], high=ends["high"]),
        Number(name=names[1], value=float(found.sums[:, 0].sum() / rows.numel()), variant="per element"),
        Number(name=names[2], value=found.l0),
    ]
    if config.random_rows:
        by_chance = _by_chance(tuple(rows.shape), config)
        if on_progress:
            on_progress(total, total)
        ends = interval(found.sums, lambda totals: _share(totals) - by_chance, seed=config.seed)
        numbers += [
            Number(name=_AGAINST_RANDOM[0], value=by_chance, variant="as many random directions"),
            Number.of(_AGAINST_RANDOM[1], float(share) - by_chance, **over, low=ends["low"], high=ends["high"]),
        ]
    return StudyResult(
        study="meta_structure",
        numbers=tuple(numbers),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


_AGAINST_RANDOM = ("random_rows_fraction_variance_explained", "fraction_variance_explained_above_random")


@dataclass(frozen=True, eq=False)
class _Explained:
    sums: np.ndarray  # of each row: squared error, squared norm, 1 and the row itself, [F, 3 + d]
    l0: float


def _share(totals: np.ndarray) -> np.ndarray:
    """Totals ``[R, 3 + d]`` to the share of variance explained, ``[R]``."""
    error, energy, count = totals[:, 0], totals[:, 1], totals[:, 2]
    return 1 - error / (energy - np.square(totals[:, 3:]).sum(-1) / count)


def _explained(
    rows: Tensor, config: MetaStructureConfig, seed: int, on_step: Callable[[int, int], None] | None
) -> _Explained:
    """Train the small dictionary on rows, and rebuild each of them."""
    width = max(math.ceil(config.width_share * len(rows)), math.ceil(config.k))
    small = BatchTopK(BatchTopKConfig(d_in=rows.shape[1], d_sae=width, k=config.k), seed=seed)
    train(
        small,
        _drawn(rows, config.batch_size_rows, seed),
        TrainingConfig(
            num_tokens=config.num_steps * config.batch_size_rows,
            batch_size_tokens=config.batch_size_rows,
            lr=config.lr,
            num_warmup_steps=0,
            decay_share=0.0,
            num_threshold_tokens=0,
        ),
        on_step=on_step,
        source="the decoder's rows",
    )
    with torch.no_grad():
        small.fit_threshold([rows])  # on all rows at once: k for each on average, whatever was drawn last
        f = small.encode(rows)
        errors = (rows - small.decode(f)).double().square().sum(-1)
    w = rows.double()
    sums = torch.cat([errors[:, None], w.square().sum(-1)[:, None], torch.ones(len(w), 1, dtype=w.dtype), w], dim=-1)
    return _Explained(sums.numpy(), float((f != 0).double().sum(-1).mean()))


@cache
def _by_chance(shape: tuple[int, ...], config: MetaStructureConfig) -> float:
    """The share explained of as many random directions: the same for all dictionaries of one shape."""
    generator = torch.Generator().manual_seed(seed_of(config.seed, 1))
    directions = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    found = _explained(directions, config, seed_of(config.seed, 0), None)
    return float(_share(found.sums.sum(0, keepdims=True))[0])


def _drawn(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield rows[torch.randint(len(rows), (size,), generator=generator)]
