"""Does a dictionary stand in an order, most frequent feature first? Ordered against TopK and Matryoshka losses."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from reproductions.page import GREY, STYLES
from reproductions.study import DATA_SEEDS, RANDOM, Bar, Column, Results, Run, Study, Values
from reproductions.toy import NUM_HELD_OUT, held_out_scores, toy_config, trained, truth
from saescope.activations.synthetic import (
    ExactSupports,
    SyntheticData,
    order,
    random_atoms,
    random_baseline,
    stability,
    zipf_weights,
)
from saescope.dictionaries import Ordered, TopK
from saescope.dictionaries.topk import TopKConfig
from saescope.training.losses import (
    AuxKConfig,
    AuxKLoss,
    Loss,
    MatryoshkaLoss,
    MatryoshkaLossConfig,
    OrderedConfig,
    OrderedLoss,
)

D, N, M, NUM_TOKENS, EXPONENT = 80, 100, 5, 100_000, 1.2
ORDERED, FIXED, RANDOM_PREFIXES, PLAIN = "Ordered", "Matryoshka, fixed", "Matryoshka, random prefixes", "TopK"
SEEDS = (0, 1, 2)
NUM_STEPS = 3000

RUNS = tuple(
    Run(method, data_seed, SEEDS if method != RANDOM else ())
    for data_seed in DATA_SEEDS
    for method in (ORDERED, FIXED, RANDOM_PREFIXES, PLAIN, RANDOM)
)


def run(config: Run) -> Values:
    """All seeds of a method on one data set."""
    data = SyntheticData(random_atoms(N, D, truth(config.data_seed)), ExactSupports(zipf_weights(N, EXPONENT), M))
    if config.method == RANDOM:
        return {
            "order": list(random_baseline(lambda rows: order(rows, data.atoms), N, D).values),
            "truth": list(random_baseline(lambda rows: stability(rows, data.atoms), N, D).values),
            "between": list(random_baseline(stability, N, D, num_dictionaries=2).values),
        }
    x = data.held_out(NUM_HELD_OUT).x
    rows, scores = [], []
    for seed in config.seeds:
        cls = Ordered if config.method == ORDERED else TopK
        dictionary = cls(TopKConfig(d_in=D, d_sae=N, k=M), seed=seed)
        trained(
            dictionary,
            data,
            toy_config(NUM_STEPS, 512, 1e-3),
            _loss(config.method, seed),
            seed=seed,
            fixed_tokens=NUM_TOKENS,
            fixed_seed=config.data_seed,
        )
        rows.append(dictionary.W_dec)
        scores.append(held_out_scores(dictionary, x))
    return {
        "order": [order(found, data.atoms) for found in rows],
        "truth": [stability(found, data.atoms) for found in rows],
        "between": [stability(a, b) for a, b in combinations(rows, 2)],
        "fvu": [score["fvu"] for score in scores],
    }


def _loss(method: str, seed: int) -> Loss:
    """k falls from all features to m in the same way for all: Matryoshka and Ordered prefixes are of TopK codes."""
    shared: dict[str, Any] = {"reconstruction": "mse", "aux_coefficient": 0.0, "k_start": N, "k_anneal_share": 0.3}
    if method == ORDERED:
        return OrderedLoss(OrderedConfig(exponent=EXPONENT, **shared))
    if method == FIXED:
        return MatryoshkaLoss(MatryoshkaLossConfig(widths=(6, 12, 25, 50, 100), **shared))
    if method == RANDOM_PREFIXES:
        return MatryoshkaLoss(MatryoshkaLossConfig(prefixes="random", num_prefixes=5, prefix_seed=seed, **shared))
    return AuxKLoss(AuxKConfig(**shared))


BARS_SET = "on 2026-11-21 from data seeds 0, 1 and 2, at the first full run (code of commit 44e66d4)"
BARS = (
    Bar("Ordered: mean Ord", lambda r: r.mean("order", method=ORDERED), at_least=0.75),
    Bar("Ordered: lowest Ord of a seed", lambda r: min(r.values("order", method=ORDERED)), at_least=0.65),
    Bar("TopK: size of mean Ord", lambda r: abs(r.mean("order", method=PLAIN)), at_most=0.2),
    Bar(
        "Ordered above TopK: mean Ord",
        lambda r: r.mean("order", method=ORDERED) - r.mean("order", method=PLAIN),
        at_least=0.6,
    ),
    Bar(
        "lowest mean cosine with the truth of a method",
        lambda r: min(r.mean("truth", method=m) for m in (ORDERED, FIXED, RANDOM_PREFIXES, PLAIN)),
        at_least=0.7,
    ),
    Bar("Ordered: mean FVU", lambda r: r.mean("fvu", method=ORDERED), at_most=0.09),
)


def draw(results: Results, figure: Any) -> None:
    """Order and cosine with the truth of each dictionary."""
    axes = figure.subplots()
    for style, method in zip(STYLES, (ORDERED, FIXED, RANDOM_PREFIXES, PLAIN), strict=False):
        found = results.where(method=method)
        axes.plot(found.values("truth"), found.values("order"), linestyle="", alpha=0.75, label=method, **style)
    found = results.where(method=RANDOM)
    axes.plot(found.values("truth"), found.values("order"), linestyle="", marker="x", color=GREY, label=RANDOM)
    axes.set(
        xlabel="mean cosine with the truth",
        ylabel="Ord: rank correlation with the truth",
        xlim=(0.2, 1.0),
        ylim=(-0.3, 1.0),
    )
    axes.legend(loc="upper left")


STUDY = Study(
    number=2,
    name="ordering",
    title="Order of features: Ordered dictionaries",
    paper="Wang et al. 2025, [arXiv 2512.02194](https://arxiv.org/abs/2512.02194)",
    published=(
        "Ord 0.734 for Ordered, 0.119 and 0.054 for Matryoshka with fixed and random prefixes, 0.016 for TopK; cosine "
        "with the truth 0.814, 0.502, 0.480 and 0.479."
    ),
    setup=(
        "100 random unit atoms in 80 dimensions, 5 at a time, drawn without replacement with weights j^-1.2, magnitudes "
        "|N(0, 1)|; 100,000 tokens. All four have TopK codes, k falling from 100 to 5 over the first 30 % of 3,000 steps "
        "of 512 tokens, rate 1e-3, 3 seeds. Ordered: all prefixes with p(l) proportional to l^-1.2. Matryoshka: prefixes "
        "6, 12, 25, 50, 100, or 4 drawn in each step and the whole. Ord is Spearman's correlation of the atoms' order with "
        "that of the rows assigned to them."
    ),
    remarks=(
        "That Ordered dictionaries stand in the truth's order and TopK dictionaries do not is reproduced. That Matryoshka "
        "losses give no order is not: here they reach 0.70 to 0.77, 0.04 to 0.14 less than Ordered. Nested losses order a "
        "dictionary by frequency. The paper's baselines are much less trained than ours (cosine with the truth 0.48 for "
        "TopK, here above 0.8). Nor has Ordered the highest cosine with the truth here: it has the "
        "lowest of the four and the highest FVU. "
        "How far Ordered lies above Matryoshka is reported, and no bar rests on it."
    ),
    runs=RUNS,
    run=run,
    columns=(
        Column("order", "Ord"),
        Column("truth", "cosine with the truth"),
        Column("between", "cosine between seeds"),
        Column("fvu", "FVU"),
    ),
    bars=BARS,
    bars_set=BARS_SET,
    draw=draw,
    caption="Every dictionary of three data sets: all four are near the truth, and all but TopK are in its order.",
)
