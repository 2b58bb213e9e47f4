"""A penalty on f^p, with p falling from 1 to 0.2, against L1 at equal L0."""

from __future__ import annotations

import math
from typing import Any

from reproductions.page import GREY, STYLES
from reproductions.sparse_data import COEFFICIENTS, learned_relu, random_scores
from reproductions.study import DATA_SEEDS, RANDOM, Bar, Column, Results, Run, Study, Values, interpolated

RELU, ANNEALED = "ReLU, L1", "ReLU, p-annealing"
SEEDS = (0, 1, 2)

RUNS = tuple(
    Run(method, data_seed, (seed,), coefficient)
    for data_seed in DATA_SEEDS
    for method in (ANNEALED, RELU)
    for coefficient in COEFFICIENTS
    for seed in SEEDS
) + tuple(Run(RANDOM, data_seed) for data_seed in DATA_SEEDS)


def run(config: Run) -> Values:
    """One dictionary, or the mean of random ones."""
    if config.method == RANDOM:
        return random_scores(config.data_seed)
    (seed,) = config.seeds
    assert config.setting is not None
    return learned_relu(config.data_seed, seed, config.setting, 0.2 if config.method == ANNEALED else None)


BARS_SET = "on 2026-11-21 from data seeds 0, 1 and 2, at the first full run (code of commit 44e66d4)"
AT_L0 = (6.0, 9.0, 12.0, 16.0, 20.0, 23.0)


def _ratios(r: Results) -> list[float]:
    """FVU with p-annealing over FVU with L1 at the same L0, rising."""
    relu, annealed = (r.curve(method, "l0", "fvu") for method in (RELU, ANNEALED))
    ratios = [interpolated(annealed, l0) / interpolated(relu, l0) for l0 in AT_L0]
    return sorted(ratio for ratio in ratios if not math.isnan(ratio))


def _nearer_to_one(r: Results) -> float:
    """By how much gamma is nearer to 1 than ReLU's, at the coefficient where that is least."""
    return min(
        abs(1 - r.mean("gamma", method=RELU, setting=c)) - abs(1 - r.mean("gamma", method=ANNEALED, setting=c))
        for c in COEFFICIENTS
    )


BARS = (
    # recommended 0.93; measured 0.765, 0.724 and 0.750
    Bar(
        "FVU over that of L1 at the same L0: third lowest of six ratios, at L0 6 to 23",
        lambda r: _ratios(r)[2],
        at_most=0.85,
    ),
    # measured 0.034, 0.033 and 0.034
    Bar("gamma nearer to 1 than with L1 at every coefficient, by at least", _nearer_to_one, at_least=0.02),
)


def draw(results: Results, figure: Any) -> None:
    """FVU and gamma over L0."""
    left, right = figure.subplots(1, 2)
    for style, method in zip(STYLES, (RELU, ANNEALED), strict=False):
        for axes, name in ((left, "fvu"), (right, "gamma")):
            points = results.curve(method, "l0", name)
            axes.plot([p[0] for p in points], [p[1] for p in points], label=method, **style)
    left.set(xlabel="L0", ylabel="FVU")
    right.axhline(1, color=GREY, linestyle="--", linewidth=1.2)
    right.set(xlabel="L0", ylabel="gamma (1: no shrinkage)")
    left.legend()


STUDY = Study(
    number=6,
    name="annealing",
    title="p-annealing against L1",
    paper="Karvonen et al. 2024, [arXiv 2408.00113](https://arxiv.org/abs/2408.00113)",
    published="None published for toy data. On language models p-annealing is about as good as Gated dictionaries.",
    setup=(
        "Data, steps and coefficients as in study 5, 3 seeds. p falls from 1 to 0.2 in 20 steps between 30 % and 90 % of "
        "the training; at each the coefficient is changed so that the penalty stays what it was."
    ),
    remarks=(
        "At equal L0 the annealed penalty reconstructs better and shrinks less. Where the penalty is strong it kills some "
        "of the 64 latents."
    ),
    runs=RUNS,
    run=run,
    columns=(
        Column("l0", "L0", 1),
        Column("fvu", "FVU", 4),
        Column("gamma", "gamma"),
        Column("truth", "cosine with the truth"),
        Column("dead", "dead latents", 1),
    ),
    bars=BARS,
    bars_set=BARS_SET,
    draw=draw,
    caption="Means over seeds and data sets at five coefficients: reconstruction and shrinkage over L0.",
    setting="coefficient",
)
