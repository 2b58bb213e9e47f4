"""A child's latent takes over its parent's work: absorption in BatchTopK, Matryoshka and ReLU dictionaries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reproductions.page import GREY, STYLES
from reproductions.study import DATA_SEEDS, RANDOM, Bar, Column, Results, Run, Study, Values
from reproductions.toy import NUM_HELD_OUT, SteeredL1, held_out_scores, toy_config, trained, truth
from saescope.activations.synthetic import (
    Bernoulli,
    Hierarchy,
    Ones,
    SyntheticData,
    absorption,
    child_parent_cosine,
    matched_cosine,
    orthonormal_atoms,
    random_baseline,
)
from saescope.dictionaries import BatchTopK, Dictionary, DictionaryConfig, Matryoshka, ReLU
from saescope.dictionaries.batch_topk import BatchTopKConfig
from saescope.dictionaries.matryoshka import MatryoshkaConfig
from saescope.training.losses import (
    AuxKConfig,
    AuxKLoss,
    Batch,
    Codes,
    Loss,
    MatryoshkaLoss,
    MatryoshkaLossConfig,
    SumOfTerms,
    Term,
)

NUM_PARENTS, NUM_CHILDREN, WIDTHS = 4, 3, (4, 8, 16)
D = NUM_PARENTS * (1 + NUM_CHILDREN)
BATCH_TOPK, FIXED, RANDOM_PREFIXES = "BatchTopK", "Matryoshka, fixed", "Matryoshka, random prefixes"
RELU, DETACHED = "ReLU, L1 steered to L0 0.96", "wrong on purpose: Matryoshka, detached"
SEEDS = (0, 1, 2, 3, 4)

RUNS = tuple(
    Run(method, data_seed, (seed,))
    for data_seed in DATA_SEEDS
    for method in (BATCH_TOPK, FIXED, RANDOM_PREFIXES, RELU, DETACHED)
    for seed in (SEEDS[:2] if method == DETACHED else SEEDS)
) + tuple(Run(RANDOM, data_seed) for data_seed in DATA_SEEDS)


def run(config: Run) -> Values:
    """One dictionary, or the mean of random ones."""
    generator = truth(config.data_seed)
    norms = 1 + 0.05 * torch.randn(D, generator=generator)
    forest = Hierarchy.two_levels(Bernoulli([0.15] * NUM_PARENTS), NUM_CHILDREN, 0.2)
    data = SyntheticData(orthonormal_atoms(D, D, generator, norms=norms), forest, Ones())

    def cosines(rows: Tensor) -> tuple[float, float]:
        match = matched_cosine(rows, data.atoms)
        return match.mean, child_parent_cosine(rows, data.atoms, forest.children, match)

    if config.method == RANDOM:
        return {
            "truth": random_baseline(lambda rows: cosines(rows)[0], D, D).mean,
            "parent_in_child": random_baseline(lambda rows: cosines(rows)[1], D, D, range(20)).mean,
        }
    assert data.true_l0 is not None
    (seed,) = config.seeds
    dictionary, loss = _learner(config.method, seed, data.true_l0)
    trained(
        dictionary,
        data,
        toy_config(4000, 512, 3e-3, num_threshold_tokens=NUM_HELD_OUT),
        loss,
        seed=1000 * config.data_seed + seed,
    )
    samples = data.held_out(NUM_HELD_OUT)
    match = matched_cosine(dictionary.W_dec, data.atoms)
    with torch.no_grad():
        found = absorption(dictionary.encode(samples.x), samples.codes, forest.children, match)
    truth_cosine, parent_cosine = cosines(dictionary.W_dec)
    return {
        "absorption": found.mean,
        "truth": truth_cosine,
        "parent_in_child": parent_cosine,
        **held_out_scores(dictionary, samples.x),
    }


def _learner(method: str, seed: int, l0: float) -> tuple[Dictionary, Loss]:
    if method == RELU:
        return ReLU(DictionaryConfig(d_in=D, d_sae=D), seed=seed), SteeredL1(target_l0=l0)
    if method == BATCH_TOPK:
        plain = AuxKLoss(AuxKConfig(reconstruction="mse", aux_coefficient=0.0))
        return BatchTopK(BatchTopKConfig(d_in=D, d_sae=D, k=l0), seed=seed), plain
    dictionary = Matryoshka(MatryoshkaConfig(d_in=D, d_sae=D, k=l0, widths=WIDTHS), seed=seed)
    if method == DETACHED:
        return dictionary, SumOfTerms({"nested": (DetachedPrefixes(), 1.0)})
    prefixes = "random" if method == RANDOM_PREFIXES else "fixed"
    settings = MatryoshkaLossConfig(
        reconstruction="mse", aux_coefficient=0.0, prefixes=prefixes, num_prefixes=5, prefix_seed=seed
    )
    return dictionary, MatryoshkaLoss(settings)


class DetachedPrefixes(Term):
    """A mistake: each group of features rebuilds what the ones before left over, without telling them."""

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Codes) -> Tensor:
        residual, start = batch.target - dictionary.offset(batch.x), 0
        total = residual.new_zeros(())
        for width in WIDTHS:
            residual = residual.detach() - codes.f[:, start:width] @ dictionary.W_dec[start:width]
            total = total + residual.square().sum(-1).mean() / len(WIDTHS)
            start = width
        return total


BARS_SET = "on 2026-11-21 from data seeds 0, 1 and 2, at the first full run (code of commit 44e66d4)"
BARS = (
    Bar("BatchTopK: mean absorption", lambda r: r.mean("absorption", method=BATCH_TOPK), at_least=0.35),
    # recommended: 0.20 for both kinds of prefixes, from one data seed (0.084 and 0.100). Fixed ones were measured at
    # 0.217, 0.183 and 0.215 here and at 0.07 to 0.13 on four more data seeds; an implementation apart from saescope
    # gives 0.08 to 0.18 on seven. A mean over 5 seeds has a standard error of about 0.05
    Bar("Matryoshka, fixed: mean absorption", lambda r: r.mean("absorption", method=FIXED), at_most=0.25),
    Bar("Matryoshka, random: mean absorption", lambda r: r.mean("absorption", method=RANDOM_PREFIXES), at_most=0.20),
    # measured 0.334, 0.445 and 0.283, with a standard error of about 0.08
    Bar(
        "BatchTopK above Matryoshka, fixed: mean absorption",
        lambda r: r.mean("absorption", method=BATCH_TOPK) - r.mean("absorption", method=FIXED),
        at_least=0.25,
    ),
    Bar(
        "BatchTopK: mean cosine of a child's row and its parent",
        lambda r: r.mean("parent_in_child", method=BATCH_TOPK),
        at_least=0.22,
    ),
    Bar("Matryoshka, fixed: the same cosine", lambda r: r.mean("parent_in_child", method=FIXED), at_most=0.10),
    Bar(
        "Matryoshka, random: the same cosine", lambda r: r.mean("parent_in_child", method=RANDOM_PREFIXES), at_most=0.10
    ),
    Bar("Matryoshka, fixed: mean FVU", lambda r: r.mean("fvu", method=FIXED), at_most=0.10),
    Bar("ReLU absorbs most: mean absorption", lambda r: r.mean("absorption", method=RELU), at_least=0.6),
    Bar(
        "wrong on purpose: mean FVU (its absorption alone would pass)",
        lambda r: r.mean("fvu", method=DETACHED),
        at_least=0.15,
    ),
)


def draw(results: Results, figure: Any) -> None:
    """Absorption and FVU of each dictionary."""
    left, right = figure.subplots(1, 2)
    methods = (BATCH_TOPK, FIXED, RANDOM_PREFIXES, RELU, DETACHED)
    for place, (style, method) in enumerate(zip(STYLES, methods, strict=True)):
        found = results.where(method=method)
        for axes, name in ((left, "absorption"), (right, "parent_in_child")):
            values = found.values(name)
            offsets = [place + 0.3 * ((i % 5) / 4 - 0.5) for i in range(len(values))]
            axes.plot(offsets, values, linestyle="", alpha=0.6, markersize=5, **style)
            axes.plot([place - 0.3, place + 0.3], [found.mean(name)] * 2, color=style["color"], linewidth=2)
    for axes, label in ((left, "absorption"), (right, "cosine of a child's row with its parent")):
        axes.set_xticks(range(5), ["Batch-\nTopK", "M.\nfixed", "M.\nrandom", "ReLU", "detached\n(wrong)"])
        axes.set_ylabel(label)
    right.axhline(
        results.mean("parent_in_child", method=RANDOM), color=GREY, linestyle="--", linewidth=1.2, label="random rows"
    )
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.85))


STUDY = Study(
    number=4,
    name="absorption",
    title="Absorption: Matryoshka against BatchTopK",
    paper="Bussmann et al. 2025, [arXiv 2503.17547](https://arxiv.org/abs/2503.17547)",
    published=(
        "None published as numbers for the toy tree (a figure shows it). On a language model: absorption 0.49 to 0.05."
    ),
    setup=(
        "4 parents, each on with probability 0.15; a parent that is on takes one of its 3 children (0.2 each) or none. 16 "
        "orthogonal directions with norms about 1, binary codes, 16 latents, k = true L0 = 0.96. 4,000 steps of 512 tokens, "
        "rate 3e-3, 5 seeds. Matryoshka: prefixes 4, 8, 16, or 4 drawn in each step and the whole. ReLU: L1 steered "
        "towards the same L0. Absorption: share of tokens with a parent and a child on which the parent's latent is off."
    ),
    remarks=(
        "Matryoshka absorbs much less than BatchTopK, but not nothing: what is left comes in steps of 1/12, one pair "
        "of parent and child that one latent has to itself, so that seeds differ much; random "
        "prefixes leave less than fixed ones. How much of its parent a child's row "
        "contains is the sharper sign. "
        "ReLU with L1 absorbs nearly everywhere, and not for want of reconstruction: one latent for each pair of parent "
        "and child is exact and fires less than the truth (L0 0.6), so that the steering cannot bring it to 0.96. A "
        "Matryoshka loss whose prefixes are detached from each other, a mistake that is easily made, shows no absorption "
        "either, and gives itself away by its FVU alone."
    ),
    runs=RUNS,
    run=run,
    columns=(
        Column("absorption", "absorption"),
        Column("parent_in_child", "cosine of a child's row with its parent"),
        Column("truth", "cosine with the truth"),
        Column("l0", "L0", 2),
        Column("fvu", "FVU"),
        Column("dead", "dead latents", 1),
    ),
    bars=BARS,
    bars_set=BARS_SET,
    draw=draw,
    caption="Every dictionary of three data sets, with means: absorption, and the part of its parent in a child's row.",
)
