"""Do several seeds find the same dictionary? PW-MCC of TopK against ReLU with L1, and what L0 has to do with it."""

from __future__ import annotations

from typing import Any

import torch

from reproductions.page import GREY, STYLES
from reproductions.study import DATA_SEEDS, RANDOM, Bar, Column, Results, Run, Study, Values
from reproductions.toy import NUM_HELD_OUT, SteeredL1, held_out_scores, toy_config, trained, truth
from saescope.activations.synthetic import (
    ExactSupports,
    SyntheticData,
    matched_cosine,
    pairwise_consistency,
    random_atoms,
    random_baseline,
    stability,
)
from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK
from saescope.dictionaries.topk import TopKConfig
from saescope.training.losses import AuxKConfig, AuxKLoss, L1Config, L1Loss, Loss

D, N, K, NUM_TOKENS = 16, 32, 3, 50_000
TOPK, PUBLISHED_RELU, EQUAL_RELU = "TopK, k = 3", "ReLU, published setting", "ReLU, at L0 = 3"
SEEDS = (0, 1, 2, 3, 4)

RUNS = tuple(
    Run(method, data_seed, SEEDS if method != RANDOM else ())
    for data_seed in DATA_SEEDS
    for method in (TOPK, PUBLISHED_RELU, EQUAL_RELU, RANDOM)
)


def run(config: Run) -> Values:
    """All seeds of a method on one data set, since pairs of them are compared."""
    data = SyntheticData(random_atoms(N, D, truth(config.data_seed)), ExactSupports(torch.ones(N), K))
    if config.method == RANDOM:
        return {
            "pw_mcc": list(random_baseline(stability, N, D, range(10), num_dictionaries=2).values),
            "gt_mcc": list(random_baseline(lambda rows: stability(rows, data.atoms), N, D).values),
        }
    x = data.held_out(NUM_HELD_OUT).x
    rows, scores = [], []
    for seed in config.seeds:
        dictionary, loss, num_steps, free = _learner(config.method, seed)
        trained(
            dictionary,
            data,
            toy_config(num_steps, 1024, 3e-3, unit_norm_decoder=not free),
            loss,
            seed=seed,
            fixed_tokens=NUM_TOKENS,
            fixed_seed=config.data_seed,
        )
        rows.append(dictionary.W_dec)
        scores.append(held_out_scores(dictionary, x))
    return {
        "pw_mcc": list(pairwise_consistency(rows).values),
        "gt_mcc": [matched_cosine(found, data.atoms).mean for found in rows],
        **{name: [score[name] for score in scores] for name in ("l0", "fvu")},
    }


def _learner(method: str, seed: int) -> tuple[Dictionary, Loss, int, bool]:
    """A new dictionary, its loss, its number of steps, and whether the norms of its rows are free."""
    if method == TOPK:
        settings = AuxKConfig(reconstruction="mse", aux_coefficient=0.0, k_start=8, k_anneal_share=0.5)
        return TopK(TopKConfig(d_in=D, d_sae=N, k=K), seed=seed), AuxKLoss(settings), 4000, False
    relu = ReLU(DictionaryConfig(d_in=D, d_sae=N), seed=seed)
    if method == PUBLISHED_RELU:
        return relu, L1Loss(L1Config(l1_coefficient=0.01, decoder_norm=False, warmup_share=0.1)), 2500, True
    return relu, SteeredL1(target_l0=K), 2500, False


BARS_SET = "on 2026-11-21 from data seeds 0, 1 and 2, at the first full run (code of commit 44e66d4)"
BARS = (
    # recommended 0.86 and 0.90; measured 0.882 to 0.925 and 0.923 to 0.951
    Bar("TopK: mean PW-MCC", lambda r: r.mean("pw_mcc", method=TOPK), at_least=0.86),
    Bar("TopK: mean cosine with the truth", lambda r: r.mean("gt_mcc", method=TOPK), at_least=0.90),
    Bar("ReLU, published setting: L0", lambda r: r.mean("l0", method=PUBLISHED_RELU), at_least=12.0),
    # 0.536 to 0.545
    Bar("ReLU, published setting: mean PW-MCC", lambda r: r.mean("pw_mcc", method=PUBLISHED_RELU), at_most=0.68),
    Bar(
        "TopK above ReLU in the published setting: PW-MCC",
        lambda r: r.mean("pw_mcc", method=TOPK) - r.mean("pw_mcc", method=PUBLISHED_RELU),
        at_least=0.2,
    ),
    Bar("ReLU at equal L0: L0", lambda r: r.mean("l0", method=EQUAL_RELU), at_least=2.7, at_most=3.3),
    # measured 0.932, 0.902 and 0.909, where pairs range from 0.845 to 0.962
    Bar("ReLU at equal L0: mean PW-MCC", lambda r: r.mean("pw_mcc", method=EQUAL_RELU), at_least=0.88),
)


def draw(results: Results, figure: Any) -> None:
    """Every pair's PW-MCC over the method's L0."""
    axes = figure.subplots()
    for style, method in zip(STYLES, (TOPK, PUBLISHED_RELU, EQUAL_RELU), strict=False):
        for data_seed in DATA_SEEDS:
            found = results.where(method=method, data_seed=data_seed)
            pairs, l0 = found.values("pw_mcc"), found.mean("l0")
            shift = {TOPK: -0.35, EQUAL_RELU: 0.35}.get(method, 0.0)
            axes.plot([l0 + shift] * len(pairs), pairs, linestyle="", alpha=0.5, markersize=5, **style,
                      label=method if data_seed == DATA_SEEDS[0] else None)  # fmt: skip
    baseline = results.mean("pw_mcc", method=RANDOM)
    axes.axhline(baseline, color=GREY, linestyle="--", linewidth=1.2, label="random dictionaries")
    axes.set(
        xlabel="L0 (latents that fire on a token; TopK and ReLU at 3 drawn apart)", ylabel="PW-MCC of a pair of seeds"
    )
    axes.set_ylim(0.4, 1.0)
    axes.set_xlim(0, 22)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 0.93))


STUDY = Study(
    number=1,
    name="consistency",
    title="Consistency of seeds: TopK against ReLU",
    paper="Song et al. 2025, [arXiv 2505.20254](https://arxiv.org/abs/2505.20254)",
    published="PW-MCC 0.951 for TopK with k = 3, 0.609 for ReLU with L1 at L0 15.7 (in the authors' notebook).",
    setup=(
        "32 random unit atoms in 16 dimensions, 3 of them at a time with magnitudes |N(0, 1)|; 50,000 tokens, 5 seeds. "
        "TopK: k from 8 to 3 over half of 4,000 steps of 1,024 tokens, rate 3e-3. ReLU: 2,500 steps; in the published "
        "setting the coefficient is 0.01 and rows have free norms; at equal L0 rows have unit norm and the coefficient is "
        "steered until 3 latents fire. PW-MCC is the mean signed cosine of an optimal one-to-one assignment, over 10 pairs."
    ),
    remarks=(
        "The published contrast is there, and it is one of L0: the ReLU dictionary of the published setting fires with "
        "about 20 latents of 32 where TopK fires with 3. With unit rows and as many firings as TopK, ReLU with L1 is as "
        "consistent as TopK, at about twice the FVU (it shrinks). Our TopK stays below 0.951 because it ends in local "
        "minima after 4,000 steps; the paper takes 30,000 full-batch steps. L0 of our ReLU is 20 after 2,500 "
        "steps, theirs 15.7 at the end of 30,000."
    ),
    runs=RUNS,
    run=run,
    columns=(
        Column("l0", "L0", 2),
        Column("fvu", "FVU", 4),
        Column("gt_mcc", "cosine with the truth"),
        Column("pw_mcc", "PW-MCC"),
    ),
    bars=BARS,
    bars_set=BARS_SET,
    draw=draw,
    caption="PW-MCC of every pair of seeds on three data sets: the gap lies between L0 3 and 20.",
)
