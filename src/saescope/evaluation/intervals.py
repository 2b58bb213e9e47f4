"""How sure a number is: bootstrap intervals over documents.

Tokens of a document resemble each other, so that an interval over tokens would be far too narrow. Documents are what was
drawn at random: they are drawn again, with replacement, and the number is taken anew each time. A number enters as sums
over the tokens of each document and a function of those sums, so that a draw costs one row of a matrix product.

D  documents, S  sums of a document, R  draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NUM_DRAWS = 1000
_AT_ONCE = 1 << 24  # cells of a block of draws

Interval = tuple[float, float] | None


def bootstrap(
    sums: np.ndarray,
    number: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
    level: float = 0.95,
) -> list[Interval]:
    """Percentile intervals of numbers that are functions of sums over documents (Efron and Tibshirani 1993, chapter 13).

    Args:
        sums: one row of sums for every document, ``[D, S]``.
        number: from totals ``[R, S]`` to one number a draw, ``[R]``, or several, ``[R, N]``.

    Returns:
        N intervals (low, high). None where there are fewer than two documents, or where more than one draw in twenty has no
        value: a number that hangs on one document has no honest interval.

    Raises:
        ValueError: ``sums`` is no table.
    """
    sums = np.asarray(sums, dtype=np.float64)
    if sums.ndim != 2:
        raise ValueError(f"sums over documents must be a table [documents, sums], got shape {list(sums.shape)}")
    num_documents = len(sums)
    if num_documents < 2:
        return [None] * np.atleast_2d(_columns(number(sums.sum(0, keepdims=True)))).shape[-1]
    generator = np.random.default_rng(seed)
    found = []
    rows = max(1, _AT_ONCE // num_documents)
    for first in range(0, num_draws, rows):
        wanted = min(rows, num_draws - first)
        # how often each document is drawn: a row for every draw, filled in one order whatever the size of a block
        weights = np.stack(
            [
                np.bincount(generator.integers(num_documents, size=num_documents), minlength=num_documents)
                for _ in range(wanted)
            ]
        )
        with np.errstate(all="ignore"):
            found.append(_columns(number(weights @ sums)))
    draws = np.concatenate(found)  # [R, N]
    tail = (1 - level) / 2
    intervals: list[Interval] = []
    for column in draws.T:
        good = column[np.isfinite(column)]
        if len(good) < 0.95 * num_draws:
            intervals.append(None)
        else:
            low, high = np.quantile(good, [tail, 1 - tail])
            intervals.append((float(low), float(high)))
    return intervals


def interval(
    sums: np.ndarray, number: Callable[[np.ndarray], np.ndarray], *, seed: int = 0, num_draws: int = NUM_DRAWS
) -> dict[str, float | None]:
    """``low`` and ``high`` of one number, both None where there is no interval: keywords for :class:`Number`."""
    (found,) = bootstrap(sums, number, seed=seed, num_draws=num_draws)
    return {"low": None, "high": None} if found is None else {"low": found[0], "high": found[1]}


def sums_by_document(document: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values ``[T]`` or ``[T, S]`` over the tokens of each document, ``[D, S]``, in rising order of document."""
    _, which = np.unique(np.asarray(document), return_inverse=True)
    values = np.asarray(values, dtype=np.float64)
    columns = values[:, None] if values.ndim == 1 else values
    return np.stack([np.bincount(which, weights=column) for column in columns.T], axis=-1)


def _columns(numbers: np.ndarray) -> np.ndarray:
    numbers = np.asarray(numbers, dtype=np.float64)
    return numbers[:, None] if numbers.ndim == 1 else numbers
