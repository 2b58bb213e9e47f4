"""What every feature does on a text, gathered in one pass and in memory that does not grow with the text.

A loop over windows gives each batch to `FeatureStatistics.update`; afterwards there are numbers, a histogram, bands and
examples for every feature. Everything is computed from firings alone, a few dozen per token:

    statistics = FeatureStatistics(dictionary.d_sae)
    for ids in batches:                                  # [B, T]
        x = ...                                          # [B * T, d_in]
        statistics.update(ids, dictionary.encode_sparse(x))
    statistics.numbers()["density"], statistics.examples(17)

Counts are exact, sums are float64. Samples are decided by hashes (see ``hashing.py`` and ``samples.py``), so that batches
may come in any size and order, the text may be dealt out to processes whose results are merged, and a pass that was
stopped goes on from its saved state: the result is the same.

B  windows in a batch, T  tokens in a window, n  firings in a batch, P  (feature, window) pairs in which a feature fires.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from saescope.analysis.array_file import read_arrays, write_arrays
from saescope.analysis.bins import (
    BIN,
    EDGES,
    NEXT,
    NUM_BINS,
    OVERFLOW,
    bin_of,
    histogram,
    median_bins,
)
from saescope.analysis.blocks import (
    Block,
    Firings,
    Pairs,
    TokenBlock,
    as_array,
    joined,
    read_block,
    read_firings,
    runs_of,
)
from saescope.analysis.examples import Settled
from saescope.analysis.hashing import ExcerptHashes, mix, place_priorities, places_of, salts
from saescope.analysis.samples import CONTEXT_TYPES, BottomK, Contexts, kernels, ranges
from saescope.dictionaries.codes import SparseCodes
from saescope.kernels.codes import FlatCodes
from saescope.store.records import Band, Example

__all__ = ["FeatureStatistics", "LabelSample", "StatisticsConfig", "TokenBlock"]

_VERSION = 1
_OF_WINDOW, _OF_SILENT, _OF_NEAR_MISS, _OF_FIRING = range(4)  # what a hash is for
_WINDOWS_AT_ONCE = 32
_CLEAR_ABOVE = 1_000_000  # firings and pairs that may have been added without looking which are still needed


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """How much is kept of every feature."""

    num_top: int = 20
    """Windows with the highest peaks."""
    num_bands: int = 5
    """Bands of each kind."""
    num_per_band: int = 5
    """Windows drawn for each band."""
    num_negatives: int = 5
    """Silent windows, and as many near misses."""
    num_label_firings: int = 512
    """Firings drawn for finding a label."""
    num_stretches: int = 16
    """Parts of the window in which firings are counted apart."""
    window_before: int = 16
    window_after: int = 8
    """Tokens before and after the peak that make two windows copies of each other."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_negatives": 0, "num_label_firings": 0, "window_before": 0, "window_after": 0, "seed": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least.get(field.name, 1):
                raise ValueError(f"{field.name} must be a whole number from {least.get(field.name, 1)}, got {value!r}")
        if self.seed >= 1 << 32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")


class FeatureStatistics:
    """Numbers, histograms, bands and examples of every feature of a dictionary, from a stream of its codes.

    Negative activations (of signed dictionaries) count by their size; examples keep the sign.

    Args:
        d_sae: number of features.
        nearest: for each feature the one nearest to it (by decoder cosine), ``[d_sae]``, -1 for none. Windows in which that
            one fires and the feature does not are its near misses; without it there are none.
    """

    def __init__(self, d_sae: int, config: StatisticsConfig | None = None, *, nearest: Any = None):
        if d_sae < 1 or d_sae >= 1 << 31:
            raise ValueError(f"d_sae must be from 1 to 2**31 - 1, got {d_sae}")
        self.d_sae = d_sae
        self.config = config = config or StatisticsConfig()
        self.nearest = None if nearest is None else _nearest(nearest, d_sae)
        self.context_size: int | None = None
        """Tokens per window; known from the first batch on."""
        self.num_tokens = 0
        """Tokens analysed, special ones not counted."""
        self._seen = np.empty((0, 2), dtype=np.int64)  # runs of window numbers: first, and the one behind the last

        def zeros(kind: Any = np.int64) -> np.ndarray:
            return np.zeros(d_sae, dtype=kind)

        self._count, self._num_windows, self._special, self._negative = zeros(), zeros(), zeros(), zeros()
        self._sum, self._squares = zeros(np.float64), zeros(np.float64)  # squares: of distances from the mean firing
        self._max = zeros(np.float32)
        self._first, self._last = (
            zeros() + np.iinfo(np.int64).max,
            zeros() - 1,
        )  # places: window * context_size + position
        self._positions = np.zeros((d_sae, config.num_stretches), dtype=np.int64)
        self._tokens_by_stretch = np.zeros(config.num_stretches, dtype=np.int64)

        # the histogram: a slot for each (feature, bin) that was ever occupied
        self._slot_of = np.full(d_sae * NUM_BINS, -1, dtype=np.int32)
        self._num_slots = 0
        self._slot_tokens, self._slot_windows = np.zeros((2, 0), dtype=np.int64)
        self._slot_key = np.zeros(0, dtype=np.int64)  # feature * NUM_BINS + bin

        member, silent = (
            {"window": np.uint32, "copies": np.uint32, more: np.uint32} for more in ("context", "peak")
        )  # fmt: skip
        self._top = BottomK(config.num_top, d_sae, member, ordered=True)
        self._in_bins = BottomK(config.num_per_band, 0, member)
        self._lists = {"top": self._top, "bins": self._in_bins}
        if config.num_negatives:
            # near misses are silent windows too; twice as many, so that enough are left beside them
            self._lists["silent"] = BottomK(2 * config.num_negatives, d_sae, silent)
            if self.nearest is not None:
                self._lists["near_miss"] = BottomK(config.num_negatives, d_sae, silent)
        if config.num_label_firings:
            self._lists["labels"] = BottomK(config.num_label_firings, d_sae, {"value": np.float32})
        self._contexts = Contexts()
        self._contexts_kept = 0  # firings and pairs left by the last clearing
        self._salts = [salts(config.seed, purpose, d_sae) for purpose in range(4)]
        self._settled: Settled | None = None
        self._numbers: dict[str, np.ndarray] | None = None

    # Gathering

    def update(self, tokens: Any, codes: SparseCodes | FlatCodes) -> None:
        """Take in some whole windows.

        Args:
            tokens: a `TokenBlock`; or token ids alone, ``[B, T]``: all of them counted, and the windows numbered on.
            codes: of the tokens that are counted or special, row by row. Values are taken as float32.

        Raises:
            ValueError: a window was seen before, in this object or one merged into it; a value is NaN or infinite; a token
                has a feature twice; shapes or numbers do not fit. Nothing is taken in then.
        """
        block = read_block(tokens, self.context_size, int(self._seen[-1, 1]) if len(self._seen) else 0)
        firings = read_firings(block, codes, self.d_sae)
        seen = joined(self._seen, runs_of(block.windows))

        self._settled = self._numbers = None
        self._seen, self.context_size = seen, block.ids.shape[1]
        self.num_tokens += int(block.counted.sum())
        stretch = self._stretch(np.arange(self.context_size))
        np.add.at(self._tokens_by_stretch, stretch, block.counted.sum(0))
        self._special += np.bincount(firings.special_features, minlength=self.d_sae)
        pairs = Pairs.of(firings, len(block.ids))
        hashes = ExcerptHashes.of(block.ids)
        excerpts = self._excerpts(hashes, pairs)
        if len(firings.feature):
            self._take_numbers(block, firings, pairs)
            self._take_windows(block, firings, pairs, excerpts)
            if "labels" in self._lists:
                self._take_firings(block, firings)
        if "near_miss" in self._lists:
            self._take_near_misses(block, pairs, excerpts)
        if "silent" in self._lists:
            self._take_silent(block, pairs, hashes)
        size = self._contexts.num_firings + self._contexts.num_pairs
        if size > 2 * self._contexts_kept + _CLEAR_ABOVE:
            self._clear_contexts()

    def _stretch(self, positions: np.ndarray) -> np.ndarray:
        assert self.context_size is not None
        return positions * self.config.num_stretches // self.context_size

    def _excerpts(self, hashes: ExcerptHashes, pairs: Pairs) -> np.ndarray:
        """Hashes of the tokens around each peak."""
        first = np.maximum(pairs.peak - self.config.window_before, 0)
        last = np.minimum(pairs.peak + self.config.window_after + 1, hashes.sums.shape[1] - 1)
        return hashes(pairs.row, first, last)

    def _take_numbers(self, block: Block, firings: Firings, pairs: Pairs) -> None:
        runs = firings.runs
        feature = firings.feature[runs]  # those that fire
        place = block.windows[firings.row] * block.ids.shape[1] + firings.position
        compiled = kernels()
        if compiled:
            of_firing = (firings.size, place, firings.value, firings.position, block.ids.shape[1])
            count, total, squares, highest, first, last, negative = compiled.runs(
                runs, *of_firing, feature, self._positions
            )
        else:
            count = np.diff(np.append(runs, len(firings.feature)))
            size = firings.size.astype(np.float64)
            total = np.add.reduceat(size, runs)
            away = size - np.repeat(total / count, count)
            squares = np.add.reduceat(away * away, runs)
            highest = np.maximum.reduceat(firings.size, runs)
            first, last = np.minimum.reduceat(place, runs), np.maximum.reduceat(place, runs)
            negative = np.add.reduceat((firings.value < 0).astype(np.int64), runs)
            np.add.at(self._positions, (firings.feature, self._stretch(firings.position)), 1)
        self._add_moments(feature, count, total, squares)
        self._max[feature] = np.maximum(self._max[feature], highest)
        self._first[feature] = np.minimum(self._first[feature], first)
        self._last[feature] = np.maximum(self._last[feature], last)
        self._negative[feature] += negative
        self._num_windows += np.bincount(pairs.feature, minlength=self.d_sae)

    def _add_moments(self, feature: np.ndarray, count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> None:
        """Add firings to features by their number, their sum and their squared distances from their mean (Chan 1979)."""
        old_count, old_total = self._count[feature], self._sum[feature]
        apart = total / count - old_total / np.maximum(old_count, 1)
        self._squares[feature] += squares + apart * apart * old_count * count / (old_count + count)
        self._count[feature] += count
        self._sum[feature] += total

    def _take_windows(self, block: Block, firings: Firings, pairs: Pairs, excerpts: np.ndarray) -> None:
        self._count_bins("_slot_tokens", firings.feature, firings.size)
        pair_slots = self._count_bins("_slot_windows", pairs.feature, pairs.size)

        keys = mix(excerpts ^ self._salts[_OF_WINDOW][pairs.feature])
        order = ~pairs.size.view(np.uint32)  # positive float32 numbers are in the order of their bits
        in_top = self._top.admits(pairs.feature, keys, order)
        in_bin = self._in_bins.admits(pair_slots, keys)
        taken = np.flatnonzero(in_top | in_bin)
        inside = ranges(pairs.start[taken], pairs.length[taken])
        context = self._contexts.add(
            lengths=pairs.length[taken], positions=firings.position[inside], values=firings.value[inside]
        )
        columns = {
            "window": block.windows[pairs.row[taken]],
            "copies": np.ones(len(taken), dtype=np.uint32),
            "context": np.arange(context, context + len(taken)),
            "order": order[taken],
        }
        for members, groups, admitted in ((self._top, pairs.feature, in_top), (self._in_bins, pair_slots, in_bin)):
            here = np.flatnonzero(admitted[taken])
            some = {name: columns[name][here] for name in members.types}
            members.add(groups[taken[here]], keys[taken[here]], **some)

    def _count_bins(self, counts: str, feature: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Count sizes in their features' bins; returns the slot of each."""
        compiled = kernels()
        if not compiled:
            slots = self._slots(feature * NUM_BINS + bin_of(size))
            np.add.at(getattr(self, counts), slots, 1)
            return slots
        slots = compiled.slots(feature, size, BIN, NEXT, NUM_BINS, self._slot_of, getattr(self, counts))
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            slots[missing] = self._slots(feature[missing] * NUM_BINS + bin_of(size[missing]))
            np.add.at(getattr(self, counts), slots[missing], 1)
        return slots

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """The slot of each (feature, bin); those that have none get one."""
        slots = self._slot_of[keys]
        missing = slots < 0
        if missing.any():
            new = np.unique(keys[missing])
            count = self._num_slots + len(new)
            if count > len(self._slot_key):
                room = count + count // 8
                self._in_bins.grow(room)
                for name in ("_slot_key", "_slot_tokens", "_slot_windows"):
                    longer = np.zeros(room, dtype=np.int64)
                    longer[: self._num_slots] = getattr(self, name)[: self._num_slots]
                    setattr(self, name, longer)
            self._slot_of[new] = np.arange(self._num_slots, count)
            self._slot_key[self._num_slots : count] = new
            self._num_slots = count
            slots = self._slot_of[keys]
        return slots

    def _take_firings(self, block: Block, firings: Firings) -> None:
        place = block.windows[firings.row] * block.ids.shape[1] + firings.position
        keys = place_priorities(place, self._salts[_OF_FIRING][firings.feature])
        taken = np.flatnonzero(self._lists["labels"].admits(firings.feature, keys))
        self._lists["labels"].add(firings.feature[taken], keys[taken], value=firings.value[taken])

    def _take_near_misses(self, block: Block, pairs: Pairs, excerpts: np.ndarray) -> None:
        """Offer each pair to the features whose nearest one it is of."""
        starts, followers = self._followers
        count = np.diff(starts)[pairs.feature]
        pair = np.repeat(np.arange(len(pairs.feature)), count)
        feature = followers[ranges(starts[pairs.feature], count)]
        keys = mix(excerpts[pair] ^ self._salts[_OF_NEAR_MISS][feature])
        self._take_negatives("near_miss", block, pairs, feature, pairs.row[pair], keys, pairs.peak[pair])

    @cached_property
    def _followers(self) -> tuple[np.ndarray, np.ndarray]:
        """The features whose nearest one is the f-th: ``followers[starts[f] : starts[f + 1]]``."""
        assert self.nearest is not None
        by = np.argsort(self.nearest, kind="stable")
        by = by[np.count_nonzero(self.nearest < 0) :]
        return np.searchsorted(self.nearest[by], np.arange(self.d_sae + 1)), by

    def _take_silent(self, block: Block, pairs: Pairs, hashes: ExcerptHashes) -> None:
        whole = hashes.sums[:, -1]  # the excerpt is the whole window
        silent, salt = self._lists["silent"], self._salts[_OF_SILENT]
        rows = np.flatnonzero(block.counted.any(1))
        number = np.cumsum(block.counted, axis=1)
        middle = (2 * number > number[:, -1:]).argmax(1)  # there is no peak: the middle one of the analysed tokens
        everyone = np.arange(self.d_sae)
        for first in range(0, len(rows), _WINDOWS_AT_ONCE):
            found = []
            for row in rows[first : first + _WINDOWS_AT_ONCE]:
                keys = mix(whole[row] ^ salt)
                feature = np.flatnonzero(silent.admits(everyone, keys))
                found.append((feature, np.full(len(feature), row), keys[feature]))
            feature, row, keys = (np.concatenate(columns) for columns in zip(*found, strict=True))
            self._take_negatives("silent", block, pairs, feature, row, keys, middle[row])

    def _take_negatives(
        self,
        kind: str,
        block: Block,
        pairs: Pairs,
        feature: np.ndarray,
        row: np.ndarray,
        keys: np.ndarray,
        peak: np.ndarray,
    ) -> None:
        """Those of the windows in which the feature does not fire."""
        taken = np.flatnonzero(self._lists[kind].admits(feature, keys))
        taken = taken[~pairs.hold(feature[taken], row[taken])]
        copies = np.ones(len(taken), dtype=np.uint32)
        columns = {"window": block.windows[row[taken]], "copies": copies, "peak": peak[taken]}
        self._lists[kind].add(feature[taken], keys[taken], **columns)

    def _clear_contexts(self) -> None:
        """Forget the activations of windows that have fallen out of all lists."""
        wanted = np.zeros(self._contexts.num_pairs, dtype=bool)
        for members in (self._top, self._in_bins):
            members.mark("context", wanted)
        numbers = self._contexts.keep(wanted)
        for members in (self._top, self._in_bins):
            members.renumber("context", numbers)
        self._contexts_kept = self._contexts.num_firings + self._contexts.num_pairs

    # Merging and saving

    def merge(self, other: FeatureStatistics) -> None:
        """Take in what another object gathered from other windows: as if this one had seen them all.

        Raises:
            ValueError: the two differ in settings, features or length of windows, or share a window.
        """
        mine = {**self._settings(), "context_size": self.context_size or other.context_size}
        theirs = {**other._settings(), "context_size": other.context_size or self.context_size}
        differ = sorted(name for name in mine if mine[name] != theirs[name])
        if differ:
            what = ", ".join(f"{name}: {mine[name]!r} and {theirs[name]!r}" for name in differ if name != "nearest")
            raise ValueError(f"statistics with different settings can not be merged ({what or 'nearest features'})")
        self._seen = joined(self._seen, other._seen)
        self._settled = self._numbers = None
        self.context_size = mine["context_size"]
        other._settle_lists()
        other._clear_contexts()

        self.num_tokens += other.num_tokens
        self._tokens_by_stretch += other._tokens_by_stretch
        some = np.flatnonzero(other._count)
        self._add_moments(some, other._count[some], other._sum[some], other._squares[some])
        for name in ("_num_windows", "_special", "_negative", "_positions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._max = np.maximum(self._max, other._max)
        self._first, self._last = np.minimum(self._first, other._first), np.maximum(self._last, other._last)

        slots = self._slots(other._slot_key[: other._num_slots])
        self._slot_tokens[slots] += other._slot_tokens[: other._num_slots]
        self._slot_windows[slots] += other._slot_windows[: other._num_slots]
        first_context = self._contexts.add(**other._contexts.arrays())
        for kind, members in other._lists.items():
            columns = members.members()
            group, keys = columns.pop("group"), columns.pop("key")
            if "context" in columns:
                columns["context"] = columns["context"] + np.uint32(first_context)
            self._lists[kind].add(slots[group] if kind == "bins" else group, keys, **columns)
        self._clear_contexts()

    def _settings(self) -> dict[str, Any]:
        nearest = None if self.nearest is None else sha256(self.nearest.tobytes()).hexdigest()
        return {"d_sae": self.d_sae, "context_size": self.context_size, "nearest": nearest, **asdict(self.config)}

    def _settle_lists(self) -> None:
        for members in self._lists.values():
            members.settle()

    _PLAIN = (
        "_count", "_num_windows", "_special", "_negative", "_sum", "_squares", "_max", "_first", "_last", "_positions",
        "_tokens_by_stretch", "_seen",
    )  # fmt: skip

    def state(self) -> dict[str, np.ndarray]:
        """Everything gathered, as named arrays; `from_state` makes the same object of it."""
        self._settle_lists()
        self._clear_contexts()
        settings = {
            "version": _VERSION, "d_sae": self.d_sae, "context_size": self.context_size, "num_tokens": self.num_tokens,
            "config": asdict(self.config),
        }  # fmt: skip
        arrays: dict[str, np.ndarray] = {"settings": np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)}
        if self.nearest is not None:
            arrays["nearest"] = self.nearest
        arrays |= {f"numbers/{name[1:]}": getattr(self, name) for name in self._PLAIN}
        for name in ("_slot_key", "_slot_tokens", "_slot_windows"):
            arrays[f"slots/{name[1:]}"] = getattr(self, name)[: self._num_slots]
        for kind, members in self._lists.items():
            columns = members.members()
            del columns["group"]
            arrays[f"{kind}/fill"] = members.fill[: self._num_slots] if kind == "bins" else members.fill
            arrays |= {f"{kind}/{name}": column for name, column in columns.items()}
        return arrays | {f"contexts/{name}": array for name, array in self._contexts.arrays().items()}

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray]) -> FeatureStatistics:
        """The object whose `state` this is."""
        settings = json.loads(arrays["settings"].tobytes())
        if settings["version"] != _VERSION:
            raise ValueError(
                f"the state has version {settings['version']}, this saescope reads {_VERSION}; analyse again"
            )
        self = cls(settings["d_sae"], StatisticsConfig(**settings["config"]), nearest=arrays.get("nearest"))
        self.context_size, self.num_tokens = settings["context_size"], settings["num_tokens"]
        for name in cls._PLAIN:
            setattr(self, name, arrays[f"numbers/{name[1:]}"].copy())
        slots = self._slots(arrays["slots/slot_key"])
        # numbered in the order of keys, which may be another than before
        self._slot_tokens[slots] = arrays["slots/slot_tokens"]
        self._slot_windows[slots] = arrays["slots/slot_windows"]
        for kind, members in self._lists.items():
            fill = arrays[f"{kind}/fill"]
            group = np.repeat(slots if kind == "bins" else np.arange(self.d_sae), fill)
            columns = {name: arrays[f"{kind}/{name}"] for name in members.types}
            members.add(group, arrays[f"{kind}/key"], **columns)
        self._contexts.add(**{name: arrays[f"contexts/{name}"] for name in CONTEXT_TYPES})
        self._contexts_kept = self._contexts.num_firings + self._contexts.num_pairs
        return self

    def save(self, path: str | Path) -> None:
        """Write the state to a file, whole or not at all: a pass that is killed goes on from the last one.

        The file is what numpy calls npz, without pickled objects, and holds a checksum.
        """
        write_arrays(Path(path), self.state())

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, is damaged, or was written by another version.
        """
        return cls.from_state(read_arrays(Path(path)))

    # Results

    @property
    def num_windows(self) -> int:
        """Windows taken in."""
        return int((self._seen[:, 1] - self._seen[:, 0]).sum())

    @property
    def seen_windows(self) -> list[range]:
        """Their numbers: a pass that goes on skips these."""
        return [range(first, last) for first, last in self._seen.tolist()]

    @property
    def nbytes(self) -> int:
        """Memory held by everything that was gathered."""
        own = (getattr(self, name).nbytes for name in (*self._PLAIN, "_slot_of", "_slot_key"))
        slots = self._slot_tokens.nbytes + self._slot_windows.nbytes
        lists = sum(members.nbytes for members in self._lists.values())
        return sum(own) + slots + lists + self._contexts.nbytes

    def numbers(self) -> dict[str, np.ndarray]:
        """The numbers of all features under their names in `FeatureRecord`, each ``[d_sae]``.

        first_firing and last_firing count tokens through all windows, in the order of the text (number of the window times
        tokens per window, plus position); -1 for a feature that never fires. All other numbers of such a feature are 0.
        """
        count, tokens = self._count, max(self.num_tokens, 1)
        fires = count > 0
        mean_positive = self._sum / np.maximum(count, 1)
        # squares around the mean of all tokens: those around the mean of the firings, and that mean against the zeros
        squares = self._squares + mean_positive * mean_positive * count * ((tokens - count) / tokens)
        highest = self._max.astype(np.float64)
        median = median_bins(self._final.bin_counts(0, self.d_sae))
        every = count + self._special
        return {
            "num_firings": count.copy(),
            "density": count / tokens,
            "max_activation": highest,
            "mean_activation": self._sum / tokens,
            "std_activation": np.sqrt(squares / tokens),
            "mean_positive": mean_positive,
            "median_positive": np.where(fires, np.where(median == OVERFLOW, highest, EDGES[median + 1]), 0.0),
            "num_windows": self._num_windows.copy(),
            "first_firing": np.where(fires, self._first, -1),
            "last_firing": self._last.copy(),
            "special_share": self._special / np.maximum(every, 1),
            "negative_share": self._negative / np.maximum(count, 1),
        }

    def record_numbers(self, feature: int) -> dict[str, Any]:
        """The numbers of one feature, ready for a `FeatureRecord`: plain values, None where there is no firing to name."""
        self._known(feature)
        if self._numbers is None:
            self._numbers = self.numbers()
        found = {name: array[feature].item() for name, array in self._numbers.items()}
        return found | {name: None for name in ("first_firing", "last_firing") if found[name] < 0}

    def positions(self) -> np.ndarray:
        """Firings by position in the window, in `num_stretches` parts, ``[d_sae, num_stretches]``.

        Position p of T is in part ``p * num_stretches // T``; `tokens_by_stretch` counts the analysed tokens there.
        """
        return self._positions.copy()

    def tokens_by_stretch(self) -> np.ndarray:
        """Analysed tokens by position in the window, ``[num_stretches]``."""
        return self._tokens_by_stretch.copy()

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges and counts of a feature's activations, over the bins that are occupied; both empty if it never fires."""
        self._known(feature)
        counts = self._final.bin_counts(feature, feature + 1)
        return histogram(counts.bins, counts.counts)

    def bands(self, feature: int) -> list[Band]:
        """The bands of both kinds, those of equal share first; none if the feature never fires."""
        self._known(feature)
        return self._final.bands(feature)

    def examples(self, feature: int) -> list[Example]:
        """The windows a feature is shown in: the top, then others by their peaks, near misses, silent ones.

        A window that has several roles is one example; its number of copies is the largest that it has in a role.
        """
        self._known(feature)
        return self._final.examples(feature)

    def kept_windows(self) -> list[int]:
        """The numbers of all windows that an example of any feature uses, in rising order."""
        return self._final.windows().tolist()

    def label_sample(self, feature: int) -> LabelSample:
        """A uniform sample of a feature's firings, in the order of the text."""
        self._known(feature)
        if "labels" not in self._lists:
            raise ValueError("no firings were drawn for labels: num_label_firings is 0")
        labels = self._final.lists["labels"].members(np.array([feature]))
        places = places_of(labels["key"], self._salts[_OF_FIRING][feature])
        by = np.argsort(places)
        length = self.context_size or 1
        return LabelSample(places[by] // length, places[by] % length, labels["value"][by], int(self._count[feature]))

    def _known(self, feature: int) -> None:
        if not 0 <= feature < self.d_sae:
            raise IndexError(f"features go from 0 to {self.d_sae - 1}, got {feature}")

    @property
    def _final(self) -> Settled:
        if self._settled is None:
            self._settle_lists()
            self._clear_contexts()
            slots = (self._slot_key, self._slot_tokens, self._slot_windows)
            self._settled = Settled(
                self._lists,
                self._contexts.arrays(),
                [array[: self._num_slots] for array in slots],
                self._max,
                num_bands=self.config.num_bands,
                num_per_band=self.config.num_per_band,
                num_negatives=self.config.num_negatives,
            )

        return self._settled


@dataclass(frozen=True)
class LabelSample:
    """Some of a feature's firings."""

    windows: np.ndarray  # int64
    positions: np.ndarray  # int64, in the window
    values: np.ndarray  # float32
    num_firings: int
    """Of the feature in all; the sample was drawn from these."""


def _nearest(nearest: Any, d_sae: int) -> np.ndarray:
    nearest = as_array(nearest)
    if nearest.shape != (d_sae,) or nearest.dtype.kind not in "iu":
        raise ValueError(f"nearest must hold {d_sae} whole numbers, got {nearest.dtype} {list(nearest.shape)}")
    nearest = nearest.astype(np.int64)
    wrong = np.flatnonzero((nearest < -1) | (nearest >= d_sae) | (nearest == np.arange(d_sae)))
    if len(wrong):
        raise ValueError(
            f"the feature nearest to {wrong[0]} can not be {nearest[wrong[0]]}; give another one of 0 to {d_sae - 1}, or -1"
        )
    return nearest
