"""Features that fire on the same tokens, counted on a sample of the tokens.

Every pair of features that fires on a token counts once: L0 squared pairs per token, too many to count on all of a long
text and too many to keep. So a uniform sample of tokens is kept, each with the features that fire on it, and the pairs are
counted there at the end, exactly. **All numbers are those of the sample**, 131,072 tokens unless told otherwise.

Which tokens are in it depends on the seed and the tokens' numbers alone: those whose 64-bit hash of both is smallest. So the
sample of a text is the same in whatever order and in however many pieces it is read, and samples of two halves merge into
the sample of the whole.

n  tokens of an update, T  tokens of the sample, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from saescope.analysis.hashing import place_priorities, salts
from saescope.dictionaries.codes import SparseCodes
from saescope.kernels import FlatCodes

NUM_TOKENS = 1 << 17
NUM_FIRINGS = 1 << 24
MIN_FIRINGS = 5
_OF_TOKEN = 8  # what the hash is for; the samples of ``statistics.py`` have smaller numbers


@dataclass(frozen=True)
class CofiringNeighbours:
    """For every feature, those that fire together with it most, nearest first. Numbers of the sample, not of the text."""

    indices: np.ndarray  # int64, [d_sae, num]: -1 where there are no more
    values: np.ndarray  # float64, [d_sae, num]: phi or Jaccard, above 0; nan where there are no more
    num_both: np.ndarray  # int64, [d_sae, num]: tokens of the sample on which both fire
    num_tokens: int  # size of the sample


@dataclass(frozen=True)
class _Tokens:
    """Some tokens and what fires on them: token t has the next ``counts[t]`` of ``features``."""

    hashes: np.ndarray  # uint64, [T]
    places: np.ndarray  # int64, [T]
    counts: np.ndarray  # int64, [T]
    features: np.ndarray  # uint16, or int32 where that is too small

    @classmethod
    def joined(cls, parts: list[_Tokens]) -> _Tokens:
        columns = zip(*((part.hashes, part.places, part.counts, part.features) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def __getitem__(self, tokens: np.ndarray) -> _Tokens:
        """The tokens of these numbers, in this order."""
        counts = self.counts[tokens]
        starts = np.cumsum(self.counts)[tokens] - counts
        return _Tokens(self.hashes[tokens], self.places[tokens], counts, _picked(self.features, starts, counts))


class TokenSample:
    """A uniform sample of tokens and the features that fire on each, of bounded size.

    It holds the tokens of smallest hash: as many as ``num_tokens``, or fewer where they would have more than
    ``num_firings`` firings together (with an L0 above 128, by the default numbers). Beside them up to a quarter as many are
    held until they are sorted out. A firing takes 2 bytes, or 4 with more than 65,536 features: at most 40 MiB or 80 MiB by
    the default numbers, and three times that while they are sorted out.

    A token's *place* is its number among all analysed tokens, the same in whatever pieces the text is read.

    Args:
        d_sae: features of the dictionary.
        num_tokens: size of the sample.
        seed: another seed gives another sample.
        num_firings: firings kept in all; a token with more than that by itself ends the sample.
    """

    def __init__(
        self, d_sae: int, num_tokens: int = NUM_TOKENS, seed: int = 0, *, num_firings: int = NUM_FIRINGS
    ) -> None:
        for name, value in (("d_sae", d_sae), ("num_tokens", num_tokens), ("num_firings", num_firings)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"the seed must be a whole number from 0 to 2**63 - 1, got {seed}")
        self.d_sae, self.num_tokens, self.seed, self.num_firings = d_sae, num_tokens, seed, num_firings
        self.num_seen = 0
        """Tokens given so far."""
        self._salt = salts(seed, _OF_TOKEN, 1)
        self._limit = np.uint64(2**64 - 1)  # the least hash that has no place in the sample
        none = np.empty(0, dtype=np.int64)
        self._kept = _Tokens(none.astype(np.uint64), none, none, none.astype(self._feature_type))
        self._new: list[_Tokens] = []
        self._num_new = self._num_new_firings = 0

    @property
    def _feature_type(self) -> type[np.generic]:
        return np.uint16 if self.d_sae <= 1 << 16 else np.int32

    def update(self, places: np.ndarray, codes: SparseCodes | FlatCodes) -> None:
        """Take in tokens and what fires on them.

        Args:
            places: int64 ``[n]``, each token once in the life of the sample, and none in two samples that are merged.
            codes: of these tokens, in this order; entries of value 0 are no firings, negative ones are.

        Raises:
            ValueError: numbers of tokens differ, a negative place, codes of another dictionary, or, found when the sample is
                next sorted out, a token that was there before.
        """
        places = np.asarray(places, dtype=np.int64)
        num_given = codes.num_tokens if isinstance(codes, FlatCodes) else len(codes.indices)
        if places.shape != (num_given,):
            raise ValueError(f"codes of {num_given} tokens need as many places, got the shape {list(places.shape)}")
        if codes.d_sae != self.d_sae:
            raise ValueError(f"codes of {codes.d_sae} features do not fit a sample for {self.d_sae} features")
        if len(places) and places.min() < 0:
            raise ValueError(f"places are numbers of tokens, from 0; got {places.min()}")
        hashes = place_priorities(places, self._salt)  # no two places have the same
        tokens = np.flatnonzero(hashes < self._limit)
        self.num_seen += len(places)
        if not len(tokens):
            return
        counts, features = _flat_firings(codes, tokens) if isinstance(codes, FlatCodes) else _firings(codes, tokens)
        self._add(_Tokens(hashes[tokens], places[tokens], counts, features.astype(self._feature_type)))

    def merge(self, other: TokenSample) -> None:
        """Take in the sample of another part of the same text.

        Raises:
            ValueError: made with other settings, or of tokens that are already here.
        """
        for name in ("d_sae", "num_tokens", "seed", "num_firings"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"samples with {name} = {mine} and {theirs} can not be merged; use the same settings")
        self._sort_out()
        other._sort_out()
        again = np.intersect1d(self._kept.places, other._kept.places)
        if len(again):
            raise ValueError(f"token {again[0]} is in both samples: merge samples of different parts of a text")
        self._limit = min(self._limit, other._limit)
        self.num_seen += other.num_seen
        self._add(other._kept)
        self._sort_out()

    @property
    def size(self) -> int:
        """Tokens in the sample now."""
        self._sort_out()
        return len(self._kept.places)

    @property
    def places(self) -> np.ndarray:
        """The tokens in the sample, rising, int64 ``[T]``."""
        self._sort_out()
        return np.sort(self._kept.places)

    def state(self) -> dict[str, np.ndarray]:
        """All there is to it, as plain arrays: equal for samples that hold the same, however they came about."""
        self._sort_out()
        settings = [self.d_sae, self.num_tokens, self.seed, self.num_firings, self.num_seen]
        return {
            "settings": np.array(settings, dtype=np.int64),
            "limit": np.array(self._limit, dtype=np.uint64),
            "places": self._kept.places,
            "counts": self._kept.counts,
            "features": self._kept.features,
        }

    @classmethod
    def load(cls, state: Mapping[str, np.ndarray]) -> TokenSample:
        """A sample from what :meth:`state` gave.

        Raises:
            ValueError: arrays are missing or do not belong together.
        """
        missing = {"settings", "limit", "places", "counts", "features"} - set(state)
        if missing:
            raise ValueError(f"the state of a token sample lacks {', '.join(sorted(missing))}")
        d_sae, num_tokens, seed, num_firings, num_seen = (int(value) for value in state["settings"])
        sample = cls(d_sae, num_tokens, seed, num_firings=num_firings)
        places, counts, features = (np.array(state[name]) for name in ("places", "counts", "features"))
        fits = len(places) == len(counts) and counts.sum() == len(features) and (counts >= 0).all()
        if not fits or (len(features) and not 0 <= features.min() <= features.max() < d_sae):
            raise ValueError(
                f"the state of a token sample does not fit together: {len(places)} places, {len(counts)} counts of "
                f"{int(counts.sum())} firings, {len(features)} features; was the file damaged?"
            )
        places = places.astype(np.int64)
        hashes = place_priorities(places, sample._salt)
        sample._limit, sample.num_seen = np.uint64(state["limit"]), num_seen
        sample._kept = _Tokens(hashes, places, counts.astype(np.int64), features.astype(sample._feature_type))
        return sample

    def neighbours(
        self, num: int, *, measure: Literal["phi", "jaccard"] = "phi", min_firings: int = MIN_FIRINGS
    ) -> CofiringNeighbours:
        """For every feature the ``num`` others that fire together with it most **on the sample**, counted exactly there.

        The phi coefficient is the correlation of two firings as numbers 0 and 1: with n_i and n_j tokens of T on which each
        fires and n_ij on which both do, ``(T n_ij - n_i n_j) / sqrt(n_i (T - n_i) n_j (T - n_j))``. Only positive ones are
        neighbours. Jaccard is ``n_ij / (n_i + n_j - n_ij)``. A feature is never its own neighbour; equal values are in the
        order of their index.

        Features with fewer than ``min_firings`` firings in the sample have no neighbours and are nobody's: of a text of ten
        million tokens, a sample of 131,072 rarely holds five firings of a feature with a density below 3e-5.

        Raises:
            ValueError: a ``num`` below 1, or an unknown measure.
        """
        from saescope.analysis.loops import by_feature, firing_together, in_parts  # compiled code, loaded when needed

        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        if measure not in ("phi", "jaccard"):
            raise ValueError(f"features that fire together are measured by 'phi' or 'jaccard', not by {measure!r}")
        self._sort_out()
        sample = self._kept
        starts = np.concatenate([[0], np.cumsum(sample.counts)])
        bounds = np.concatenate([[0], np.cumsum(np.bincount(sample.features, minlength=self.d_sae))])
        tokens = np.empty(len(sample.features), dtype=np.int32)
        by_feature(sample.features, starts, bounds[:-1].copy(), tokens)
        found = CofiringNeighbours(
            indices=np.empty((self.d_sae, num), dtype=np.int64),
            values=np.empty((self.d_sae, num)),
            num_both=np.empty((self.d_sae, num), dtype=np.int64),
            num_tokens=len(sample.places),
        )
        fired = (sample.features, starts, tokens, bounds)
        results = (found.indices, found.values, found.num_both)
        # a feature costs the firings on its tokens, and a look at every other feature
        work = bounds * (1 + len(sample.features) / max(1, len(sample.places))) + np.arange(self.d_sae + 1) * self.d_sae
        in_parts(firing_together, self.d_sae, *fired, min_firings, measure == "phi", *results, work=work)
        return found

    def _add(self, tokens: _Tokens) -> None:
        self._new.append(tokens)
        self._num_new += len(tokens.places)
        self._num_new_firings += len(tokens.features)
        if self._num_new > self.num_tokens // 4 or self._num_new_firings > self.num_firings // 4:
            self._sort_out()

    def _sort_out(self) -> None:
        """Keep the tokens of smallest hash, as many as there is room for."""
        if not self._new:
            return
        every = _Tokens.joined([self._kept, *self._new])
        order = np.argsort(every.hashes)
        hashes = every.hashes[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(again):
            raise ValueError(f"token {every.places[order[again[0]]]} was given twice; give each token of a text once")
        # both rise, so that those within are the first ones
        within = (hashes < self._limit) & (np.cumsum(every.counts[order]) <= self.num_firings)
        size = min(self.num_tokens, int(within.sum()))
        if size < len(order):  # the first without a place: whatever comes later, there will be none for it again
            self._limit = min(self._limit, hashes[size])
        self._kept = every[order[:size]]
        self._new, self._num_new, self._num_new_firings = [], 0, 0


def _firings(codes: SparseCodes, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many features fire on each of the tokens, and which."""
    indices, values = codes.indices.detach(), codes.values.detach()
    if len(tokens) < len(indices):
        rows = torch.from_numpy(tokens).to(indices.device)
        indices, values = indices[rows], values[rows]
    fires = (values != 0).cpu().numpy()
    return fires.sum(1), indices.cpu().numpy()[fires]


def _flat_firings(codes: FlatCodes, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = codes.starts.cpu().numpy()
    counts = np.diff(starts)[tokens]
    features = _picked(codes.features.cpu().numpy(), starts[tokens], counts)
    fires = _picked((codes.values.detach() != 0).cpu().numpy(), starts[tokens], counts)
    token_of = np.repeat(np.arange(len(tokens)), counts)
    return np.bincount(token_of[fires], minlength=len(tokens)), features[fires]


def _picked(numbers: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``counts[i]`` numbers from ``starts[i]`` on, one stretch after the other."""
    from saescope.analysis.loops import copy_stretches  # compiled code is loaded when it is needed

    picked = np.empty(int(counts.sum()), dtype=numbers.dtype)
    copy_stretches(numbers, starts, counts, picked)
    return picked
