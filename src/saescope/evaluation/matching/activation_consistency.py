"""Do dictionaries fire alike? The one-to-one assignment of features by Pearson's correlation of their codes.

Rows may differ where firings agree, and dictionaries of different hook points have no cosine at all. The correlations are
those over all tokens of one sample, zeros included, from sparse codes: sums of products are sparse matrix products, a
block of features at a time, in float64.

T  tokens, N  features of one dictionary, M  of another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from scipy import sparse

from saescope.evaluation.matching.consistency import ConsistencyConfig, mean_interval, over
from saescope.evaluation.matching.nearest import BLOCK_BYTES, Neighbours
from saescope.evaluation.matching.one_to_one import OneToOne, assign, hungarian
from saescope.evaluation.results import Number, StudyResult

_CONSTANT = 1e-12  # a variance below this share of the mean square is rounding


class Correlations:
    """Correlations of the features of two dictionaries on the same tokens; a constant feature has 0 with everything."""

    def __init__(self, codes: sparse.csr_array, other_codes: sparse.csr_array) -> None:
        """Args: codes of the same tokens, ``[T, N]`` and ``[T, M]``, such as those of ``encode_sample``.

        Raises:
            ValueError: other numbers of tokens, or none.
        """
        if codes.shape[0] != other_codes.shape[0] or not codes.shape[0]:
            raise ValueError(
                f"the codes must be of the same tokens, got {codes.shape[0]:,} and {other_codes.shape[0]:,} of them"
            )
        self.num_tokens = codes.shape[0]
        self.shape = codes.shape[1], other_codes.shape[1]
        self._codes, self._mean, self._spread = _moments(codes)
        self._others, self._other_mean, self._other_spread = _moments(other_codes)

    def matrix(self, left: np.ndarray | None = None, right: np.ndarray | None = None) -> np.ndarray:
        """float64 ``[N, M]``, of some features or of all."""
        left = np.arange(self.shape[0]) if left is None else left
        right = np.arange(self.shape[1]) if right is None else right
        products = (self._codes[:, left].T @ self._others[:, right]).toarray() / self.num_tokens
        products -= np.outer(self._mean[left], self._other_mean[right])
        spreads = np.outer(self._spread[left], self._other_spread[right])
        found = np.divide(products, spreads, out=np.zeros_like(products), where=spreads > 0)
        return found.clip(-1, 1)

    def nearest(
        self, left: np.ndarray | None, right: np.ndarray | None, num: int, *, block_bytes: int = BLOCK_BYTES
    ) -> Neighbours:
        """For each feature of the first dictionary the ``num`` of the other of highest correlation."""
        left = np.arange(self.shape[0]) if left is None else left
        num_others = self.shape[1] if right is None else len(right)
        num = min(num, num_others)
        size = max(1, block_bytes // (16 * num_others))  # two float64 blocks
        parts = []
        for first in range(0, len(left), size):
            block = torch.from_numpy(self.matrix(left[first : first + size], right))
            parts.append(block.topk(num))
        values, places = (torch.cat([part[i] for part in parts]).numpy() for i in (0, 1))
        order = np.lexsort((places, -values))
        return Neighbours(np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1))

    def one_to_one(self, config: ConsistencyConfig) -> OneToOne:
        """The assignment of largest mean correlation; exact up to ``config.exact_limit`` features."""
        if self.shape[0] > self.shape[1]:
            turned = Correlations.__new__(Correlations)
            turned.num_tokens, turned.shape = self.num_tokens, self.shape[::-1]
            turned._codes, turned._mean, turned._spread = self._others, self._other_mean, self._other_spread
            turned._others, turned._other_mean, turned._other_spread = self._codes, self._mean, self._spread
            return turned.one_to_one(config).turned()
        return assign(
            *self.shape,
            lambda left, right: hungarian(self.matrix(left, right)),
            self.nearest,
            exact_limit=config.exact_limit,
            num_neighbours=config.num_neighbours,
        )


def activation_consistency(
    codes: Sequence[sparse.csr_array],
    *,
    names: Sequence[str] | None = None,
    config: ConsistencyConfig | None = None,
) -> StudyResult:
    """Compare every pair of dictionaries by their codes on one sample; features that never vary there are left out.

    The baseline is the same number with the tokens of the second dictionary in another order.

    Args:
        codes: of each dictionary, ``[T, N]``, on the same tokens.

    Raises:
        ValueError: fewer than two, or codes of other tokens.
    """
    started = time.perf_counter()
    config = config or ConsistencyConfig()
    if len(codes) < 2:
        raise ValueError(f"consistency needs the codes of at least two dictionaries, got {len(codes)}")
    names = list(names) if names is not None else [str(i) for i in range(len(codes))]
    if len(names) != len(codes):
        raise ValueError(f"there are {len(codes)} dictionaries and {len(names)} names")
    if len({c.shape[0] for c in codes}) > 1:
        shown = ", ".join(f"{c.shape[0]:,}" for c in codes)
        raise ValueError(f"the codes must be of the same tokens, got {shown} of them")
    varying = [_varying(c) for c in codes]
    both = ("activation_mcc", "activation_mcc_random")
    table = [
        {"name": name, "d_sae": c.shape[1], "num_varying": v.shape[1], "l0": c.count_nonzero() / c.shape[0]}
        for name, c, v in zip(names, codes, varying, strict=True)
    ]
    if not all(v.shape[1] for v in varying):
        why = "a dictionary has no feature that varies on the sample"
        numbers = tuple(Number(name=name, value=None, reason=why) for name in both)
        return StudyResult(study="activation_consistency", numbers=numbers, tables={"dictionaries": table})
    generator = np.random.default_rng(config.seed)
    mixed = [generator.permutation(codes[0].shape[0]) for _ in range(config.num_random)]
    values, pairs, draws, notes = [], [], [], []
    for a, b in combinations(range(len(codes)), 2):
        match = Correlations(varying[a], varying[b]).one_to_one(config)
        values.append(match.values)
        draws.append([Correlations(varying[a], varying[b][order]).one_to_one(config).mean for order in mixed])
        row = {"a": names[a], "b": names[b], "activation_mcc": match.mean, "activation_mcc_at_most": match.upper}
        pairs.append({**row, "num_matched": len(match.rows), "activation_mcc_random": float(np.mean(draws[-1]))})
        if not match.is_exact:
            notes.append(f"{names[a]} and {names[b]}: the best mean is at most {match.upper - match.mean:.2g} higher")
    of_draw = np.mean(draws, axis=0)
    what = "one-to-one by Pearson's correlation of codes over tokens, of features that vary"
    numbers = (
        Number(
            name=both[0],
            value=float(np.mean([v.mean() for v in values])),
            better="higher",
            variant=f"{what}; mean over {len(values)} pair{'s' * (len(values) > 1)}, of the smaller size; {over(values)}",
            **mean_interval(values, seed=config.seed),
        ),
        Number(
            name=both[1],
            value=float(of_draw.mean()),
            low=float(of_draw.min()),
            high=float(of_draw.max()),
            variant=f"tokens of one dictionary mixed; low and high are the ends of {len(of_draw)} draws",
        ),
    )
    return StudyResult(
        study="activation_consistency",
        numbers=numbers,
        tables={"dictionaries": table, "pairs": pairs},
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _moments(codes: sparse.csr_array) -> tuple[sparse.csc_array, np.ndarray, np.ndarray]:
    """Codes by feature in float64, their means, and their standard deviations (0 where that is rounding)."""
    wide = sparse.csc_array(codes, dtype=np.float64)
    mean = np.asarray(wide.mean(0)).ravel()
    square = np.asarray(wide.multiply(wide).mean(0)).ravel()
    variance = square - mean**2
    return wide, mean, np.sqrt(np.where(variance > _CONSTANT * square, variance, 0))


def _varying(codes: sparse.csr_array) -> sparse.csr_array:
    return codes[:, np.flatnonzero(_moments(codes)[2])]
