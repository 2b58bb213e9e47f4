"""One pass over a text: what is counted and kept of every feature, in memory that does not grow with the text.

A pass can stop at any moment and go on: everything that it knows is written to one file, together with the number of the
next window, so that no window is counted twice. Two passes over different windows can be merged; the result is that of one
pass over all of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saescope.analysis.array_file import read_arrays, write_arrays
from saescope.analysis.cofiring import TokenSample
from saescope.analysis.config import AnalysisConfig
from saescope.analysis.neighbours import nearest_rows
from saescope.analysis.reading import Text
from saescope.analysis.statistics import FeatureStatistics
from saescope.dictionaries import Dictionary
from saescope.dictionaries.codes import SparseCodes


@dataclass
class Collected:
    """What passes over windows of one text have found so far."""

    statistics: FeatureStatistics
    sample: TokenSample
    settings: dict[str, Any]  # what it was made with; only equals can be merged
    of: tuple[int, int]  # windows that are to be read

    @property
    def done(self) -> list[range]:
        """Numbers of the windows that were read."""
        return self.statistics.seen_windows

    def require(self, dictionary: Dictionary, text: Text, config: AnalysisConfig) -> None:
        """ValueError unless it was made of this dictionary with these settings, from every window of ``text``."""
        self._require_equal(_settings(dictionary, text, config), "asked for")
        if self.done != [range(len(text))]:
            read = ", ".join(f"{part.start} to {part.stop - 1}" for part in self.done)
            raise ValueError(
                f"the text has {len(text)} windows, and {read or 'none'} were read; merge all shards first"
            )

    def _require_equal(self, settings: dict[str, Any], whose: str) -> None:
        differ = sorted(key for key in self.settings.keys() | settings if self.settings.get(key) != settings.get(key))
        if differ:
            shown = "; ".join(f"{key}: {self.settings.get(key)!r}, {whose} {settings.get(key)!r}" for key in differ)
            raise ValueError(f"statistics that were made otherwise do not fit ({shown})")

    def merge(self, other: Collected) -> None:
        """Add the windows of another pass.

        Raises:
            ValueError: made with other settings, or of windows that are here already.
        """
        self._require_equal(other.settings, "the other's")
        self.statistics.merge(other.statistics)
        self.sample.merge(other.sample)
        self.of = (min(self.of[0], other.of[0]), max(self.of[1], other.of[1]))

    def save(self, path: Path) -> None:
        """Write everything to one file, in one step: after a crash there is the old file or the new one."""
        arrays = {f"statistics.{name}": array for name, array in self.statistics.state().items()}
        arrays |= {f"sample.{name}": array for name, array in self.sample.state().items()}
        about = {"settings": self.settings, "of": self.of}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Collected:
        """
        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of :meth:`save`, or damaged.
        """
        arrays = read_arrays(path)
        try:
            about = json.loads(arrays.pop("about").tobytes())
            parts: dict[str, dict[str, np.ndarray]] = {"statistics": {}, "sample": {}}
            for name, array in arrays.items():
                part, _, key = name.partition(".")
                parts[part][key] = array
            return cls(
                FeatureStatistics.from_state(parts["statistics"]),
                TokenSample.load(parts["sample"]),
                about["settings"],
                (about["of"][0], about["of"][1]),
            )
        except KeyError as error:
            raise ValueError(f"{path} does not hold the statistics of an analysis: {error} is missing") from error


@torch.no_grad()
def collect(
    dictionary: Dictionary,
    text: Text,
    config: AnalysisConfig | None = None,
    *,
    windows: tuple[int, int] | None = None,
    checkpoint: Path | None = None,
    seconds_between_checkpoints: float = 60.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Run a dictionary over windows of a text, in order.

    Args:
        windows: a shard: the first window, and the one after the last. Left out: all of them.
        checkpoint: a file to which the state is written now and then, and from which a pass that was killed goes on. It
            stays; remove it when the result is safe.
        on_progress: called with (tokens done, tokens in all).

    Raises:
        ValueError: a checkpoint of another pass, or no tokens.
    """
    config, of = config or AnalysisConfig(), windows or (0, len(text))
    settings = _settings(dictionary, text, config)
    collected = None
    if checkpoint is not None and checkpoint.exists():
        collected = Collected.load(checkpoint)
        if collected.settings != settings or collected.of != of:
            raise ValueError(
                f"{checkpoint} is of an analysis with other settings; remove it to start anew, or analyze as it was begun"
            )
    if collected is None:
        # windows in which the nearest feature fires and the feature does not are its near misses
        nearest = nearest_rows(dictionary.W_dec, 1).indices[:, 0]
        statistics = FeatureStatistics(dictionary.d_sae, config.statistics(dictionary.d_sae), nearest=nearest)
        sample = TokenSample(dictionary.d_sae, num_tokens=config.num_cofiring_tokens, seed=config.seed)
        collected = Collected(statistics, sample, settings, of)
    start = collected.done[-1].stop if collected.done else of[0]
    counts = np.concatenate([[0], np.cumsum(text.windows.tokens_per_window())])
    in_all = int(counts[of[1]] - counts[of[0]])
    if not in_all:
        raise ValueError("no tokens to analyse: every token of the text is a special one")
    saved_at = time.monotonic()
    for block in text.blocks(start, of[1]):
        codes = dictionary.encode_sparse(block.x)
        collected.statistics.update(block.tokens, codes)
        counted = torch.from_numpy(block.tokens.counted[block.read])
        ordinary = SparseCodes(codes.indices[counted], codes.values[counted], codes.d_sae)
        collected.sample.update(block.places[counted.numpy()], ordinary)
        last = int(block.tokens.windows[-1]) + 1
        if checkpoint is not None and time.monotonic() - saved_at > seconds_between_checkpoints:
            collected.save(checkpoint)
            saved_at = time.monotonic()
        if on_progress:
            on_progress(int(counts[last] - counts[of[0]]), in_all)
    if checkpoint is not None and start < of[1]:
        collected.save(checkpoint)
    return collected


def _settings(dictionary: Dictionary, text: Text, config: AnalysisConfig) -> dict[str, Any]:
    """Everything that the result of a pass depends on."""
    return {
        "dictionary": checksum(dictionary),
        "text": fingerprint(text),
        "num_cofiring_tokens": config.num_cofiring_tokens,
        **asdict(config.statistics(dictionary.d_sae)),
    }


def fingerprint(text: Text) -> str:
    """A checksum of the tokens that are read, and of how they are cut into windows."""
    seen = hashlib.sha256()
    windows = text.windows
    for array in (windows.tokens, windows.starts, windows.lengths):
        seen.update(np.ascontiguousarray(array).data)
    seen.update(f"{windows.config} {text.reads_special_tokens} {sorted(windows.special_ids)}".encode())
    return seen.hexdigest()


def checksum(dictionary: Dictionary) -> str:
    """Of a dictionary's function: its architecture, settings and weights."""
    seen = hashlib.sha256(f"{dictionary.architecture} {dictionary.settings()}".encode())
    for name, tensor in sorted(dictionary.saved_tensors().items()):
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().data)
    return seen.hexdigest()
