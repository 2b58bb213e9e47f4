"""The samples of a feature in a dump, checked: which rows were kept, where the feature fires in them and how strongly.

A sampling keeps its samples together: one matrix of indices, `[2, num_firings]` (sample, token), written as float32; one
vector of values; one number per sample that says which row of a data set it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saescope.formats.lm_saes.bson_files import Document
from saescope.formats.lm_saes.gridfs import GridFS
from saescope.formats.lm_saes.texts import SamplePoint

MAX_CONTEXT = 1 << 20  # tokens; more is a damaged number
_WHOLE_FLOATS = 1 << 24  # up to here float32 holds every whole number


@dataclass(frozen=True)
class Sample:
    """A row that a sampling kept. `positions` rise; `values` are never 0."""

    sampling: str
    point: SamplePoint
    positions: tuple[int, ...]
    values: tuple[float, ...]


def read_samples(analysis: Document, gridfs: GridFS, what: str) -> Iterator[Sample]:
    """The samples of one analysis of a feature, sampling by sampling. `what` names the analysis in messages."""
    samplings = analysis.get("samplings") or []
    if not isinstance(samplings, list):
        raise ValueError(f"{what}: samplings is {type(samplings).__name__}, expected a list")
    for sampling in samplings:
        if not isinstance(sampling, dict) or not isinstance(sampling.get("name"), str):
            raise ValueError(f"{what} has a sampling without a name")
        yield from _read_sampling(sampling, gridfs, f"{what}, sampling {sampling['name']!r}")


def _read_sampling(sampling: Document, gridfs: GridFS, what: str) -> Iterator[Sample]:
    if "feature_acts_indices" not in sampling:
        raise ValueError(
            f"{what} has no feature_acts_indices; dumps of early versions, with dense activations, cannot be read"
        )
    rows = _whole_numbers(gridfs.array(sampling.get("context_idx"), f"{what}, context_idx"), f"{what}, context_idx")
    num_samples = len(rows)
    shards = _per_sample(sampling, "shard_idx", 0, num_samples, gridfs, what)
    num_shards = _per_sample(sampling, "n_shards", 1, num_samples, gridfs, what)
    datasets = _names(sampling.get("dataset_name"), num_samples, f"{what}, dataset_name")

    where = f"{what}, feature_acts_indices"
    indices = gridfs.array(sampling["feature_acts_indices"], where)
    if indices.size == 0:
        indices = indices.reshape(2, 0)
    if indices.ndim != 2 or indices.shape[0] != 2:
        raise ValueError(f"{where} has the shape {list(indices.shape)}, expected [2, firings]: sample and token")
    sample, token = _whole_numbers(indices[0], where), _whole_numbers(indices[1], where)
    values = gridfs.array(sampling.get("feature_acts_values"), f"{what}, feature_acts_values")
    if values.shape != sample.shape:
        raise ValueError(f"{what} has {len(sample)} indices but values of shape {list(values.shape)}")
    if values.size and not np.isfinite(values).all():
        raise ValueError(f"{what}, feature_acts_values holds numbers that are not finite")
    if sample.size and sample.max() >= num_samples:
        raise ValueError(f"{where} speaks of sample {sample.max()}, but there are {num_samples}")
    if token.size and token.max() >= MAX_CONTEXT:
        raise ValueError(f"{where} speaks of token {token.max():,}, more than any context holds")

    fires = values != 0
    sample, token, values = sample[fires], token[fires], values[fires]
    order = np.lexsort((token, sample))
    sample, token, values = sample[order], token[order], values[order]
    if np.any((sample[1:] == sample[:-1]) & (token[1:] == token[:-1])):
        raise ValueError(f"{where} names a token of a sample twice")
    bounds = np.searchsorted(sample, np.arange(num_samples + 1))
    for number in range(num_samples):
        begin, end = bounds[number], bounds[number + 1]
        yield Sample(
            sampling=sampling["name"],
            point=SamplePoint(datasets[number], int(shards[number]), int(num_shards[number]), int(rows[number])),
            positions=tuple(token[begin:end].tolist()),
            values=tuple(values[begin:end].tolist()),
        )


def _per_sample(sampling: Document, key: str, missing: int, num_samples: int, gridfs: GridFS, what: str) -> np.ndarray:
    if sampling.get(key) is None:
        return np.full(num_samples, missing)
    found = _whole_numbers(gridfs.array(sampling[key], f"{what}, {key}"), f"{what}, {key}")
    if len(found) != num_samples:
        raise ValueError(f"{what} has {num_samples} samples but {len(found)} numbers in {key}")
    return found


def _whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as integers from 0; refused if one is not whole, or too large for float32 to tell it from the next."""
    if values.ndim != 1:
        raise ValueError(f"{what} has the shape {list(values.shape)}, expected one number after the other")
    if values.dtype.kind == "f" and values.size:
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise ValueError(f"{what} holds numbers that are not whole")
        if np.abs(values).max() > _WHOLE_FLOATS:
            raise ValueError(f"{what} holds a number beyond {_WHOLE_FLOATS:,}, where float32 has no longer all of them")
    if values.size and (values.min() < 0 or values.max() >= 1 << 62):
        raise ValueError(f"{what} holds a number out of range: {values.min()} to {values.max()}")
    return values.astype(np.int64)


def _names(value: Any, num_samples: int, what: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{what} is not a list of names")
    if len(value) != num_samples:
        raise ValueError(f"{what} has {len(value)} names for {num_samples} samples")
    return value


def checked_number(value: Any, what: str, *, is_count: bool = False) -> float:
    """A finite number, with `is_count` a whole one from 0; `ValueError` in words otherwise."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
    if not is_number or (is_count and (value < 0 or value != int(value))):
        raise ValueError(f"{what} is {value!r}, expected a {'count' if is_count else 'finite number'}")
    return float(value) if not is_count else int(value)
