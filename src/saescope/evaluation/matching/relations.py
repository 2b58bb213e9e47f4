"""What became of a dictionary's features in another: which are shared, split, absorbed or new.

Each feature of B, compared with A, is one of these; the first that holds:

- *dead*: it never fires (with codes) or its decoder row is zero.
- *shared*: it and an A feature are each other's nearest, with a cosine above the bar.
- *split*: it is a part of an A feature that is shared with none. Parts have it as their nearest; with codes, they fire
  mostly where it fires, cover its firings together, and none of them does alone. From weights alone, two are enough.
- *absorbed*: an A feature a is shared with a feature m of B; this one fires within a's firings, its decoder row has a's
  direction in it, and where it fires m stays silent, much more than m does elsewhere among a's firings (Chanin et al. 2024,
  arXiv 2409.14507). It has taken over a part of what m stands for. Needs codes. Features that are shared or split may
  absorb too; ``absorptions`` lists all.
- *near*: its nearest in A is above the bar, but has another feature of B that is nearer: a second copy.
- *new*: nothing in A is above the bar.

Nearest is by signed cosine of decoder rows, among features that are not dead. The bar is the config's, or what the largest
of as many random directions reaches, where that is higher.

A, B  dictionaries, N  features of B, T  tokens; a feature of A is a, of B is b.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.evaluation.matching.firings import FiringSets
from saescope.evaluation.matching.nearest import checked_rows, neighbours_above, top_neighbours
from saescope.evaluation.results import Number, StudyResult

KINDS = ("shared", "split", "absorbed", "near", "new", "dead")


@dataclass(frozen=True, kw_only=True)
class RelationConfig:
    """Where the lines are drawn. Shares are of tokens."""

    shared_cosine: float = 0.7
    """Least cosine of features that are the same; never below what random directions reach."""
    part_cosine: float = 0.3
    """Least cosine of a part, or of an absorbing feature, with the feature of A; never below what random ones reach."""
    quantile: float = 0.999
    """Quantile of the largest cosine of a random direction with all of A that both lie above."""
    min_firings: int = 10
    """Tokens below which nothing is said about firings."""
    min_inside: float = 0.8
    """Least share of a part's, or an absorbing feature's, firings on which the feature of A fires."""
    min_cover: float = 0.8
    """Least share of the A feature's firings on which some part fires; and each part alone stays below it."""
    min_part: float = 0.05
    """Least share of the A feature's firings that a part has."""
    min_silent: float = 0.5
    """Least share of tokens of both b and a on which a's match is silent, for b to have absorbed."""
    min_excess: float = 0.2
    """How much more that is than among a's firings where no such feature fires."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "min_firings" and value < 1:
                raise ValueError(f"min_firings must be at least 1, got {value}")
            if name != "min_firings" and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Split:
    """A feature of A whose firings several features of B share out."""

    feature: int
    """Of A."""
    parts: tuple[int, ...]
    """Of B, rising."""
    cover: float | None = None
    """Share of its firings on which some part fires; None without codes."""
    largest: float | None = None
    """The same for the part that has most."""


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """A feature of B that fires in the place of another one."""

    feature: int
    """Of B: the one that absorbs."""
    of: int
    """The feature of A whose firings it takes over..."""
    match: int
    """... from the feature of B that the A feature is shared with."""
    cosine: float
    """Of the absorbing decoder row with that of A."""
    num_tokens: int
    """On which both it and the feature of A fire."""
    silent: float
    """Share of them on which the match is silent."""
    silent_elsewhere: float | None
    """The same among the A feature's firings on which no candidate for absorption fires; None where there are none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relations:
    """What each feature of B is to A."""

    kinds: np.ndarray  # str, [N]: one of KINDS
    nearest: np.ndarray  # int64, [N]: the nearest feature of A that is not dead; -1 for dead features
    cosines: np.ndarray  # float64, [N]: of the two; nan for dead features
    splits: tuple[Split, ...]
    absorptions: tuple[Absorption, ...]
    num_gone: int  # features of A, neither dead nor split, that have nothing above the bar in B
    bar: float
    part_bar: float
    overlap: float | None  # mean over shared features of the firings of both over those of either; None without codes
    with_codes: bool
    config: RelationConfig
    seconds: float = 0.0

    def counts(self) -> dict[str, int]:
        """Features of B by kind."""
        return {kind: int((self.kinds == kind).sum()) for kind in KINDS}

    def features(self) -> Iterator[dict[str, Any]]:
        """A row for every feature of B."""
        for b, (kind, a, cosine) in enumerate(zip(self.kinds, self.nearest, self.cosines, strict=True)):
            known = {"nearest": None, "cosine": None} if a < 0 else {"nearest": int(a), "cosine": float(cosine)}
            yield {"feature": b, "kind": str(kind), **known}

    def study(self) -> StudyResult:
        """The counts, and tables of what was found, as other studies give them."""
        counts = self.counts()
        alive = len(self.kinds) - counts["dead"]
        what = f"features of B by their relation to A, bar {self.bar:.3f}" + (
            "" if self.with_codes else ", from weights alone"
        )
        numbers = [Number(name=f"num_{kind}", value=float(number), variant=what) for kind, number in counts.items()]
        if not self.with_codes:
            place = KINDS.index("absorbed")
            numbers[place] = Number(name="num_absorbed", value=None, reason="absorption shows in firings: give codes")
        numbers.append(
            Number(
                name="num_gone",
                value=float(self.num_gone),
                variant="features of A, not split, that nothing in B is near",
            )
        )
        why = "no codes were given" if not self.with_codes else "no feature is shared"
        numbers.append(
            Number.of(
                "shared_firing_overlap",
                self.overlap,
                reason=why,
                better="higher",
                variant="tokens on which both fire over those on which either does, mean over shared features",
            )
        )
        absorbing = len({found.feature for found in self.absorptions})
        notes = []
        if absorbing > counts["absorbed"]:
            notes.append(f"{absorbing - counts['absorbed']} features that are split or shared absorb as well")
        if not self.with_codes:
            notes.append("from weights alone: splits are by cosine, and absorption can not be seen")
        return StudyResult(
            study="relations",
            numbers=tuple(numbers),
            tables={
                "kinds": [
                    {"kind": kind, "num_features": n, "share_of_alive": n / alive if alive and kind != "dead" else None}
                    | ({} if alive and kind != "dead" else {"reason": "dead features have no share"})
                    for kind, n in counts.items()
                ],
                "splits": [asdict(split) for split in self.splits],
                "absorptions": [asdict(found) for found in self.absorptions],
            },
            notes=tuple(notes),
            seconds=self.seconds,
        )


def random_bar(num_directions: int, d: int, quantile: float = 0.999) -> float:
    """The quantile of the largest cosine of one random direction with ``num_directions`` others in ``d`` dimensions.

    (1 + cos) / 2 of two random directions has a Beta((d - 1) / 2, (d - 1) / 2) distribution, and a largest of n lies below
    what each of them does.
    """
    from scipy.stats import beta

    if d < 2 or quantile >= 1:
        return 1.0
    above = -np.expm1(np.log(quantile) / num_directions) if quantile > 0 else 1.0  # by one of them
    return float(2 * beta.isf(above, (d - 1) / 2, (d - 1) / 2) - 1)


@torch.no_grad()
def relations(
    a: Dictionary,
    b: Dictionary,
    *,
    codes: tuple[sparse.csr_array, sparse.csr_array] | None = None,
    config: RelationConfig | None = None,
) -> Relations:
    """What each feature of ``b`` is, compared with ``a``; see the top of this module for the words.

    Args:
        codes: of ``a`` and of ``b`` on the same tokens, ``[T, d_sae]`` each, as ``encode_sample`` gives them. Without them
            nothing is said about firings: splits are by cosine, and there are no absorptions.

    Raises:
        ValueError: decoders of different widths or with weights that are not finite, codes that do not fit, a dictionary
            without any feature that is not dead.
    """
    started = time.perf_counter()
    config = config or RelationConfig()
    rows = [checked_rows(d.W_dec, f"the decoder of {name}") for d, name in ((a, "A"), (b, "B"))]
    if rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(f"decoder rows of A have width {rows[0].shape[1]}, those of B {rows[1].shape[1]}")
    firings = None if codes is None else (FiringSets(codes[0]), FiringSets(codes[1]))
    if firings:
        _check_codes(firings, a, b)
    alive = [_alive(rows[side], firings[side] if firings else None, "AB"[side]) for side in (0, 1)]
    living = [rows[side][alive[side]] for side in (0, 1)]
    floor = random_bar(len(alive[0]), rows[0].shape[1], config.quantile)
    bar, part_bar = max(config.shared_cosine, floor), max(config.part_cosine, floor)

    to_a, to_b = top_neighbours(living[1], living[0], 1), top_neighbours(living[0], living[1], 1)
    nearest, cosines = np.full(b.d_sae, -1, dtype=np.int64), np.full(b.d_sae, np.nan)
    nearest[alive[1]], cosines[alive[1]] = alive[0][to_a.indices[:, 0]], to_a.cosines[:, 0]
    back = np.full(a.d_sae, -1, dtype=np.int64)
    back[alive[0]] = alive[1][to_b.indices[:, 0]]
    # features of A with their partners in B
    shared = {int(nearest[i]): int(i) for i in alive[1] if cosines[i] >= bar and back[nearest[i]] == i}

    parts = defaultdict(list)
    for i in alive[1][to_a.cosines[:, 0] >= part_bar]:
        parts[int(nearest[i])].append(int(i))
    several = [(x, p) for x, p in sorted(parts.items()) if x not in shared and len(p) > 1]
    splits = [split for split in (_split(x, p, firings, config) for x, p in several) if split]
    absorptions: list[Absorption] = []
    if firings:
        near = neighbours_above(living[1], living[0], part_bar)
        absorptions = _absorptions(alive[1][near.rows], alive[0][near.others], near.cosines, shared, *firings, config)

    kinds = np.full(b.d_sae, "dead", dtype=f"<U{max(map(len, KINDS))}")
    kinds[alive[1]] = np.where(to_a.cosines[:, 0] >= bar, "near", "new")
    # what comes later overrules
    for kind, members in (
        ("absorbed", [found.feature for found in absorptions]),
        ("split", [part for split in splits for part in split.parts]),
        ("shared", list(shared.values())),
    ):
        kinds[np.array(members, dtype=np.int64)] = kind
    overlap = None
    if firings and shared:
        overlap = float(np.mean([firings[0].overlap(x, firings[1].of(m)) for x, m in shared.items()]))
    return Relations(
        kinds=kinds,
        nearest=nearest,
        cosines=cosines,
        splits=tuple(splits),
        absorptions=tuple(absorptions),
        num_gone=len(set(alive[0][to_b.cosines[:, 0] < bar].tolist()) - {split.feature for split in splits}),
        bar=bar,
        part_bar=part_bar,
        overlap=overlap,
        with_codes=firings is not None,
        config=config,
        seconds=time.perf_counter() - started,
    )


def _split(
    feature: int,
    parts: list[int],
    firings: tuple[FiringSets, FiringSets] | None,
    config: RelationConfig,
) -> Split | None:
    """A feature of A with several features of B that have it as their nearest: do they share it out?"""
    if firings is None:
        return Split(feature=feature, parts=tuple(parts))
    whole, of_parts = firings
    number = whole.count(feature)
    if number < config.min_firings:
        return None
    inside = whole.marked(feature)
    covered = np.zeros_like(inside)
    kept, largest = [], 0.0
    for part in parts:
        tokens = of_parts.of(part)
        within = tokens[inside[tokens]]
        if len(tokens) < config.min_firings or len(within) < config.min_inside * len(tokens):
            continue
        if len(within) >= config.min_part * number:
            kept.append(part)
            largest = max(largest, len(within) / number)
            covered[within] = True
    cover = int(covered.sum()) / number
    if len(kept) < 2 or cover < config.min_cover or largest >= config.min_cover:
        return None
    return Split(feature=feature, parts=tuple(kept), cover=cover, largest=largest)


def _absorptions(
    features: np.ndarray,
    of: np.ndarray,
    cosines: np.ndarray,
    shared: dict[int, int],
    whole: FiringSets,
    ours: FiringSets,
    config: RelationConfig,
) -> list[Absorption]:
    """Among pairs of b and a whose rows are alike, those in which b fires in the place of a's match."""
    candidates = defaultdict(list)
    for b, a, cosine in zip(features.tolist(), of.tolist(), cosines.tolist(), strict=True):
        if a in shared and shared[a] != b and config.min_firings <= ours.count(b) < whole.count(a):
            candidates[a].append((b, cosine))
    found = []
    for a, those in sorted(candidates.items()):
        inside, silent_at = whole.marked(a), ~ours.marked(shared[a])
        within = {b: ours.of(b)[inside[ours.of(b)]] for b, _ in those}
        those = [(b, c) for b, c in those if len(within[b]) >= config.min_inside * ours.count(b)]
        elsewhere = inside.copy()
        for b, _ in those:
            elsewhere[within[b]] = False
        usual = float(silent_at[elsewhere].mean()) if elsewhere.any() else None
        for b, cosine in those:
            number = len(within[b])
            silent = float(silent_at[within[b]].mean()) if number >= config.min_firings else 0.0
            if number >= config.min_firings and silent >= max(config.min_silent, (usual or 0.0) + config.min_excess):
                found.append(
                    Absorption(
                        feature=b,
                        of=a,
                        match=shared[a],
                        cosine=cosine,
                        num_tokens=number,
                        silent=silent,
                        silent_elsewhere=usual,
                    )
                )
    return sorted(found, key=lambda absorption: (absorption.feature, absorption.of))


def _alive(rows: Tensor, firings: FiringSets | None, name: str) -> np.ndarray:
    """Numbers of the features that are not dead."""
    alive = rows.cpu().numpy().any(-1)
    if firings is not None:
        alive &= firings.counts > 0
    if not alive.any():
        raise ValueError(f"all features of {name} are dead" + (" on this sample" if firings is not None else ""))
    return np.flatnonzero(alive)


def _check_codes(firings: tuple[FiringSets, FiringSets], a: Dictionary, b: Dictionary) -> None:
    for one, dictionary, name in zip(firings, (a, b), "AB", strict=True):
        if len(one.counts) != dictionary.d_sae:
            raise ValueError(f"{name} has {dictionary.d_sae} features, and its codes {len(one.counts)}")
    if firings[0].num_tokens != firings[1].num_tokens:
        raise ValueError(
            f"codes must be of the same tokens, got {firings[0].num_tokens:,} and {firings[1].num_tokens:,} of them"
        )
