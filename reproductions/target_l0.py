"""JumpReLU with a quadratic penalty on L0 / target - 1: is the target hit?"""

from __future__ import annotations

from typing import Any

from reproductions.page import STYLES
from reproductions.sparse_data import D, N, learned, random_scores
from reproductions.study import DATA_SEEDS, RANDOM, Bar, Column, Results, Run, Study, Values
from saescope.dictionaries import JumpReLU
from saescope.dictionaries.jumprelu import JumpReLUConfig
from saescope.training.losses import JumpReLULoss, JumpReLULossConfig

TUNED, WEAK = "threshold lr x 10, coefficient 20", "threshold lr x 1, coefficient 1"
TARGETS = (2.0, 3.2, 5.0)
SEEDS = (0, 1)

RUNS = tuple(
    Run(method, data_seed, (seed,), target)
    for data_seed in DATA_SEEDS
    for method in (TUNED, WEAK)
    for target in TARGETS
    for seed in SEEDS
) + tuple(Run(RANDOM, data_seed) for data_seed in DATA_SEEDS)


def run(config: Run) -> Values:
    """One dictionary, or the mean of random ones."""
    if config.method == RANDOM:
        return random_scores(config.data_seed)
    (seed,) = config.seeds
    assert config.setting is not None
    factor, coefficient = (10.0, 20.0) if config.method == TUNED else (1.0, 1.0)
    dictionary = JumpReLU(JumpReLUConfig(d_in=D, d_sae=N, initial_threshold=0.1, bandwidth=0.1), seed=seed)
    penalty = JumpReLULossConfig(penalty="quadratic", target_l0=config.setting, l0_coefficient=coefficient)
    values = learned(dictionary, JumpReLULoss(penalty), config.data_seed, seed, 2500, lr_factors={"threshold": factor})
    miss = abs(float(str(values["l0"])) / config.setting - 1)
    return {**values, "miss": miss, "threshold": float(dictionary.threshold.detach().mean())}


BARS_SET = "on 2026-11-21 from data seeds 0, 1 and 2, at the first full run (code of commit 44e66d4)"
BARS = (
    # measured 0.021, 0.028 and 0.033; 0.010, 0.013 and 0.021; 0.007, 0.008 and 0.012
    Bar("largest miss of a dictionary on held-out tokens, target 2", lambda r: _worst(r, 2.0), at_most=0.05),
    Bar("the same, target 3.2", lambda r: _worst(r, 3.2), at_most=0.05),
    Bar("the same, target 5", lambda r: _worst(r, 5.0), at_most=0.05),
)


def _worst(r: Results, target: float) -> float:
    return max(r.values("miss", method=TUNED, setting=target))


def draw(results: Results, figure: Any) -> None:
    """L0 over its target."""
    axes = figure.subplots()
    axes.axhspan(-5, 5, color="#e5e7eb", label="within 5 %")
    for place, (style, method) in enumerate(zip(STYLES, (TUNED, WEAK), strict=False)):
        for target in TARGETS:
            values = results.values("l0", method=method, setting=target)
            offsets = [target + 0.12 * (place - 0.5)] * len(values)
            errors = [100 * (value / target - 1) for value in values]
            axes.plot(offsets, errors, linestyle="", alpha=0.7, label=method if target == TARGETS[0] else None, **style)
    axes.set(xlabel="target L0", ylabel="L0 above target, %", xlim=(1.5, 5.5))
    axes.legend()


STUDY = Study(
    number=7,
    name="target_l0",
    title="JumpReLU: a target L0 is hit",
    paper=(
        "Rajamanoharan et al. 2024, [arXiv 2407.14435](https://arxiv.org/abs/2407.14435), where a target for L0 is proposed"
    ),
    published="None published.",
    setup=(
        "Data as in study 5; squared error plus c (L0 / target - 1)^2, thresholds from 0.1, bandwidth 0.1, 2,500 steps of "
        "512 tokens, rate 1e-3 (thresholds: 1e-2), c = 20, 2 seeds. L0 on held-out tokens."
    ),
    remarks=(
        "Two things decide whether a target is hit. The penalty must be strong beside the reconstruction error: where both "
        "settle, the relative miss is about the error's slope over c. And thresholds must be able to arrive: they start at "
        "0.1 and end near 0.3 to 0.7. Tried at target 2 on data 0, one seed, 2,500 steps: thresholds at the weights' own "
        "rate and c = 20 miss by 19 %, at three times the rate by 3 %, at ten times by 2 %, and with c = 100 by 0.2 %; "
        "c = 1 at the weights' rate misses by 31 %. A kernel three times as wide changes nothing. Hitting the target "
        "and being good are two claims: the settings that hit the target reconstruct worse than those that miss it, "
        "which spend more latents."
    ),
    runs=RUNS,
    run=run,
    columns=(
        Column("l0", "L0", 2),
        Column("miss", "mean miss, share of target"),
        Column("fvu", "FVU"),
        Column("truth", "cosine with the truth"),
        Column("threshold", "mean threshold", 2),
        Column("dead", "dead latents", 1),
    ),
    bars=BARS,
    bars_set=BARS_SET,
    draw=draw,
    caption="Every dictionary of three data sets: how far L0 ends from its target.",
    setting="target",
)
