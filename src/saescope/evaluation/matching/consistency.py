"""Do dictionaries of several seeds find the same features? Matched cosines, beside what random directions give.

PW-MCC (Song et al. 2025, arXiv 2505.20254) is the mean signed cosine of the best one-to-one assignment of two
dictionaries' rows, mean over pairs of dictionaries. It is not the mean of each row's largest cosine, which is higher and
goes by the same name elsewhere; that one is here as ``mean_max_cosine``. Sizes that differ divide by the smaller.

In few dimensions random directions match each other well, so that each number has its random twin. Rare features are the
unstable ones, and dead ones say how far the initialisations agree: hence the numbers over features that are alive and
over bands of density. In nested dictionaries (Matryoshka, Ordered) each prefix has its own stability, and ``order`` is
Spearman's correlation of the matched features' places (Wang et al. 2025, arXiv 2512.02194).

N  features of a dictionary, d  width, K  matched pairs of features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations.synthetic.matching import random_baseline
from saescope.dictionaries import Dictionary, Matryoshka, Ordered
from saescope.evaluation.intervals import interval
from saescope.evaluation.matching.nearest import checked_rows, top_neighbours
from saescope.evaluation.matching.one_to_one import EXACT_LIMIT, NUM_NEIGHBOURS, OneToOne, one_to_one
from saescope.evaluation.results import Number, StudyResult

_LEAST_PAIRS = 3  # for an interval over them
_L0_APART = 1.1  # ratio of L0s from which on they are part of the difference
_SMALLEST_PREFIX_SHARE = 7  # of an Ordered dictionary the prefixes are d_sae, d_sae / 2, ..., d_sae / 2**7


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """How dictionaries are compared."""

    seed: int = 0
    """Decides the random directions and the draws of intervals."""
    num_random: int = 3
    """Draws of the random baseline."""
    exact_limit: int = EXACT_LIMIT
    """Up to so many features the assignment sees all pairs; beyond it, it comes with a bound."""
    num_neighbours: int = NUM_NEIGHBOURS
    """Candidates of each feature beyond that."""
    encoder: bool = True
    """Whether encoders are matched too."""
    prefixes: tuple[int, ...] = ()
    """Numbers of features of the prefixes to compare; none: those of the dictionaries, where they are nested."""
    density_edges: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Where one band of densities ends and the next begins."""

    def __post_init__(self) -> None:
        if self.num_random < 1:
            raise ValueError(f"num_random must be at least 1, got {self.num_random}: numbers need their baseline")
        if list(self.density_edges) != sorted({e for e in self.density_edges if 0 < e <= 1}):
            raise ValueError(f"density_edges must rise within 0 and 1, got {list(self.density_edges)}")


@torch.no_grad()
def consistency(
    dictionaries: Sequence[Dictionary],
    *,
    alive: Sequence[np.ndarray] | None = None,
    densities: Sequence[np.ndarray] | None = None,
    l0: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    config: ConsistencyConfig | None = None,
) -> StudyResult:
    """Compare every pair of dictionaries of one hook point, such as those of several seeds.

    Args:
        alive: which features of each dictionary fire at all, bool ``[N]``; by default those whose density is not 0.
        densities: share of tokens on which each feature fires, ``[N]`` for each dictionary.
        l0: mean number of features that fire on a token, for each dictionary, printed beside.
        names: of the dictionaries, for the tables.

    Raises:
        ValueError: fewer than two dictionaries, widths that differ, weights that are not finite, lists that do not fit.
    """
    started = time.perf_counter()
    config = config or ConsistencyConfig()
    names = _checked(dictionaries, alive, densities, l0, names)
    if alive is None and densities is not None:
        alive = [np.asarray(density) > 0 for density in densities]
    work = _Comparison(
        config, {"decoder": [checked_rows(d.W_dec, f"the decoder of {n}") for d, n in _with(dictionaries, names)]}
    )
    if config.encoder:
        work.rows["encoder"] = [checked_rows(d.W_enc.T, f"the encoder of {n}") for d, n in _with(dictionaries, names)]
    pairs = list(combinations(range(len(dictionaries)), 2))

    matches = [work.match("decoder", a, b) for a, b in pairs]
    maxima = [work.maxima(a, b) for a, b in pairs]
    numbers = [
        work.number("pw_mcc", [m.values for m in matches], "signed cosine of decoder rows, one-to-one"),
        work.random("pw_mcc_random", _sizes(work.rows["decoder"], pairs), work.d("decoder")),
        work.number(
            "mean_max_cosine",
            [np.concatenate(both) for both in maxima],
            "NOT one-to-one: each decoder row's largest signed cosine, both ways; called PW-MCC in some papers",
        ),
        work.random("mean_max_cosine_random", _sizes(work.rows["decoder"], pairs), work.d("decoder"), one_way=True),
    ]
    encoders: list[OneToOne] = []
    if config.encoder:
        encoders = [work.match("encoder", a, b) for a, b in pairs]
        numbers += [
            work.number("pw_mcc_encoder", [m.values for m in encoders], "signed cosine of encoder rows, one-to-one"),
            work.random("pw_mcc_encoder_random", _sizes(work.rows["encoder"], pairs), work.d("encoder")),
        ]
    numbers += work.alive(pairs, alive)
    prefixes, order = work.prefixes(dictionaries, pairs, matches)
    numbers.append(order)
    table = [
        {
            "a": names[a],
            "b": names[b],
            "pw_mcc": match.mean,
            "pw_mcc_at_most": match.upper,
            "num_matched": len(match.rows),
            "pw_mcc_encoder": encoders[place].mean if encoders else None,
            "mean_max_a_in_b": float(maxima[place][0].mean()),
            "mean_max_b_in_a": float(maxima[place][1].mean()),
        }
        for place, ((a, b), match) in enumerate(zip(pairs, matches, strict=True))
    ]
    tables: dict[str, list[dict[str, Any]]] = {
        "dictionaries": _table_of_dictionaries(dictionaries, names, alive, l0),
        "pairs": table,
    }
    if densities is not None:
        tables["densities"] = work.bands(pairs, matches, maxima, densities)
    curves: dict[str, dict[str, list[float | None]]] = {}
    if prefixes:
        tables["prefixes"] = prefixes
        curves["prefixes"] = {key: [row[key] for row in prefixes] for key in prefixes[0] if key != "reason"}
    return StudyResult(
        study="consistency",
        numbers=tuple(numbers),
        tables=tables,
        curves=curves,
        notes=tuple(_notes([*matches, *encoders], l0)),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Comparison:
    """Rows of all dictionaries, and what is made of them by the config."""

    config: ConsistencyConfig
    rows: dict[str, list[Tensor]]
    drawn: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict)  # random baselines, by shape

    def d(self, kind: str) -> int:
        return self.rows[kind][0].shape[1]

    def one_to_one(self, a: Tensor, b: Tensor) -> OneToOne:
        return one_to_one(a, b, exact_limit=self.config.exact_limit, num_neighbours=self.config.num_neighbours)

    def match(self, kind: str, a: int, b: int) -> OneToOne:
        return self.one_to_one(self.rows[kind][a], self.rows[kind][b])

    def maxima(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Each row's largest cosine with the other dictionary, of both."""
        one, two = self.rows["decoder"][a], self.rows["decoder"][b]
        return top_neighbours(one, two, 1).cosines[:, 0], top_neighbours(two, one, 1).cosines[:, 0]

    def number(self, name: str, values: Sequence[np.ndarray], variant: str) -> Number:
        """Mean over pairs of the mean over features, with an interval over whichever there are enough of."""
        means = [float(v.mean()) for v in values]
        sizes = f"mean over {len(values)} pair{'s' * (len(values) > 1)} of dictionaries, of the smaller size"
        ends = mean_interval(values, seed=self.config.seed)
        return Number(
            name=name,
            value=float(np.mean(means)),
            better="higher",
            variant=f"{variant}; {sizes}; {over(values)}",
            **ends,
        )

    def draws(self, sizes: tuple[int, int], d: int, *, one_way: bool = False) -> np.ndarray:
        """The number of random directions, one for each draw."""
        key = (*sizes, d, one_way)
        if key not in self.drawn:
            first = sizes[0]

            def score(rows: Tensor) -> float:
                a, b = rows[:first], rows[first:]
                if not one_way:
                    return self.one_to_one(a, b).mean
                both = (top_neighbours(a, b, 1), top_neighbours(b, a, 1))
                return float(np.concatenate([near.cosines[:, 0] for near in both]).mean())

            seeds = range(self.config.seed, self.config.seed + self.config.num_random)
            self.drawn[key] = np.array(random_baseline(score, sum(sizes), d, seeds).values)
        return self.drawn[key]

    def random(self, name: str, sizes: Sequence[tuple[int, int]], d: int, *, one_way: bool = False) -> Number:
        """The random twin of a number: mean over the same pairs of sizes, with the smallest and the largest draw."""
        draws = np.mean([self.draws(size, d, one_way=one_way) for size in sizes], axis=0)
        variant = f"random directions of the same sizes; low and high are the ends of {len(draws)} draws"
        return Number(
            name=name, value=float(draws.mean()), low=float(draws.min()), high=float(draws.max()), variant=variant
        )

    def alive(self, pairs: Sequence[tuple[int, int]], alive: Sequence[np.ndarray] | None) -> list[Number]:
        """PW-MCC of the features that fire, and its twin at their mean number."""
        both = ("pw_mcc_alive", "pw_mcc_alive_random")
        if alive is None:
            why = "which features are alive was not given"
            return [Number(name=name, value=None, reason=why) for name in both]
        rows = [rows[torch.from_numpy(np.flatnonzero(on))] for rows, on in _with(self.rows["decoder"], alive)]
        if not all(map(len, rows)):
            why = "a dictionary has no feature that is alive"
            return [Number(name=name, value=None, reason=why) for name in both]
        matches = [self.one_to_one(rows[a], rows[b]) for a, b in pairs]
        sizes = np.round(np.mean(_sizes(rows, pairs), axis=0)).astype(int).tolist()
        return [
            self.number(both[0], [m.values for m in matches], "as pw_mcc, over features that are alive alone"),
            self.random(both[1], [(sizes[0], sizes[1])], self.d("decoder")),
        ]

    def prefixes(
        self, dictionaries: Sequence[Dictionary], pairs: Sequence[tuple[int, int]], matches: Sequence[OneToOne]
    ) -> tuple[list[dict[str, Any]], Number]:
        """Stability and order of each prefix, and the order of the whole."""
        least = min(d.d_sae for d in dictionaries)
        widths = sorted(set(self.config.prefixes) or set.intersection(*(_widths(d) for d in dictionaries)))
        if self.config.prefixes and not 1 <= widths[0] <= widths[-1] <= least:
            raise ValueError(f"prefixes must hold 1 to {least} features, all in each dictionary, got {widths}")
        if not widths:
            why = "the dictionaries are not nested in the same prefixes: their features stand in no order"
            return [], Number(name="order", value=None, reason=why)
        table = []
        for width in widths:
            found = [self._prefix(a, b, width, match) for (a, b), match in zip(pairs, matches, strict=True)]
            values, twin = [m.values for m in found], self.draws((width, width), self.d("decoder"))
            table.append(
                {
                    "width": width,
                    "stability": float(np.mean([m.mean for m in found])),
                    **mean_interval(values, seed=self.config.seed),
                    "stability_random": float(twin.mean()),
                    "order": float(np.mean([spearman(m) for m in found])) if width > 1 else None,
                    **({} if width > 1 else {"reason": "one feature has no order"}),
                }
            )
        if len(matches[0].rows) < 2:
            return table, Number(name="order", value=None, reason="one feature has no order")
        orders = [np.array([spearman(m)]) for m in matches]
        ends = mean_interval(orders, seed=self.config.seed) if len(orders) >= _LEAST_PAIRS else {}
        what = "Spearman's correlation of matched features' places; 1: the same order, 0: none"
        return table, Number(
            name="order",
            value=float(np.mean(orders)),
            better="higher",
            variant=f"{what}; mean over {len(orders)} pair{'s' * (len(orders) > 1)}"
            + (f"; {over(orders)}" if ends else ""),
            **ends,
        )

    def _prefix(self, a: int, b: int, width: int, whole: OneToOne) -> OneToOne:
        one, two = self.rows["decoder"][a], self.rows["decoder"][b]
        return whole if width == len(one) == len(two) else self.one_to_one(one[:width], two[:width])

    def bands(
        self,
        pairs: Sequence[tuple[int, int]],
        matches: Sequence[OneToOne],
        maxima: Sequence[tuple[np.ndarray, np.ndarray]],
        densities: Sequence[np.ndarray],
    ) -> list[dict[str, Any]]:
        """Matched and largest cosines by density; each pair of features counts for the densities of both."""
        density, matched, largest = [], [], []
        for (a, b), match, both in zip(pairs, matches, maxima, strict=True):
            for side, places, most in ((a, match.rows, both[0]), (b, match.others, both[1])):
                density.append(np.asarray(densities[side], dtype=np.float64)[places])
                matched.append(match.values)
                largest.append(most[places])
        all_of = [np.concatenate(parts) for parts in (density, matched, largest)]
        edges = [0.0, *self.config.density_edges]
        bands = [("never", 0.0, 0.0, all_of[0] == 0)]
        for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
            inside = (all_of[0] >= low) & (all_of[0] > 0) & ((all_of[0] < high) | (high == 1.0))
            bands.append((f"from {low:g} to {high:g}", low, high, inside))
        table = []
        for name, low, high, inside in bands:
            row: dict[str, Any] = {"band": name, "from": low, "to": high, "num_features": int(inside.sum())}
            if inside.any():
                ends = mean_interval([all_of[1][inside]], seed=self.config.seed)
                row |= {"pw_mcc": float(all_of[1][inside].mean()), **ends}
                row["mean_max_cosine"] = float(all_of[2][inside].mean())
            else:
                row |= {"pw_mcc": None, "mean_max_cosine": None, "reason": "no matched feature fires so often"}
            table.append(row)
        return table


def mean_interval(values: Sequence[np.ndarray], *, seed: int) -> dict[str, Any]:
    """``low`` and ``high`` of a mean: over pairs of dictionaries where there are at least 3, else over their features."""
    points = np.array([v.mean() for v in values]) if len(values) >= _LEAST_PAIRS else np.concatenate(values)
    sums = np.stack([points, np.ones_like(points)], axis=-1)
    return interval(sums, lambda total: total[:, 0] / total[:, 1], seed=seed)


def over(values: Sequence[np.ndarray]) -> str:
    """What :func:`mean_interval` is over, in words."""
    if len(values) >= _LEAST_PAIRS:
        return f"interval over the {len(values)} pairs, which share dictionaries"
    return "interval over features, not over seeds: it says nothing of other seeds"


def spearman(match: OneToOne) -> float:
    """Correlation of the ranks of matched features, as :func:`saescope.activations.synthetic.order` gives it."""
    ranks = match.others.argsort().argsort()
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def _widths(dictionary: Dictionary) -> set[int]:
    """Prefixes that a dictionary was trained to be good in."""
    if isinstance(dictionary, Matryoshka):
        return set(dictionary.config.widths)
    if isinstance(dictionary, Ordered):
        return {dictionary.d_sae >> shift for shift in range(_SMALLEST_PREFIX_SHARE + 1)} - {0}
    return set()


def _sizes(rows: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Smaller and larger number of rows of each pair."""
    return [tuple(sorted((len(rows[a]), len(rows[b])))) for a, b in pairs]  # type: ignore[misc]


def _with(one: Sequence[Any], other: Sequence[Any]) -> zip[tuple[Any, Any]]:
    return zip(one, other, strict=True)


def _table_of_dictionaries(
    dictionaries: Sequence[Dictionary],
    names: Sequence[str],
    alive: Sequence[np.ndarray] | None,
    l0: Sequence[float] | None,
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "architecture": d.architecture,
            "d_sae": d.d_sae,
            "num_alive": int(np.count_nonzero(alive[i])) if alive is not None else None,
            "l0": float(l0[i]) if l0 is not None else None,
        }
        for i, (d, name) in enumerate(_with(dictionaries, names))
    ]


def _notes(matches: Sequence[OneToOne], l0: Sequence[float] | None) -> list[str]:
    notes = []
    loose = [m for m in matches if not m.is_exact]
    if loose:
        most = max(m.upper - m.mean for m in loose)
        notes.append(
            f"{len(loose)} of {len(matches)} matchings are of candidates, not of all pairs: the best mean cosine is at most "
            f"{most:.2g} higher than the one given"
        )
    if l0 is not None and max(l0) > _L0_APART * min(l0):
        notes.append(
            f"L0 runs from {min(l0):.3g} to {max(l0):.3g}: part of a difference in consistency may be one of sparsity"
        )
    return notes


def _checked(
    dictionaries: Sequence[Dictionary],
    alive: Sequence[np.ndarray] | None,
    densities: Sequence[np.ndarray] | None,
    l0: Sequence[float] | None,
    names: Sequence[str] | None,
) -> list[str]:
    """Names of the dictionaries; ValueError where anything does not fit."""
    if len(dictionaries) < 2:
        raise ValueError(f"consistency needs at least two dictionaries to compare, got {len(dictionaries)}")
    found = list(names) if names is not None else [str(i) for i in range(len(dictionaries))]
    if len(set(found)) < len(found):
        raise ValueError(f"two dictionaries have one name: {', '.join(found)}")
    for what, given in (("alive", alive), ("densities", densities), ("l0", l0), ("names", found)):
        if given is not None and len(given) != len(dictionaries):
            raise ValueError(f"{what} must be given for each of {len(dictionaries)} dictionaries, got {len(given)}")
    for what, columns in (("alive", alive), ("densities", densities)):
        for d, name, column in zip(dictionaries, found, columns or [], strict=columns is not None):
            if np.shape(column) != (d.d_sae,):
                raise ValueError(
                    f"{what} of {name} must have one entry for each of {d.d_sae} features, got shape "
                    f"{list(np.shape(column))}"
                )
    widths = {(d.d_in, d.d_out) for d in dictionaries}
    if len(widths) > 1:
        shown = ", ".join(f"{name}: {d.d_in} to {d.d_out}" for d, name in _with(dictionaries, found))
        raise ValueError(f"dictionaries of different widths can not be compared ({shown})")
    return found
