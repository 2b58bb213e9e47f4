"""Features of two dictionaries matched by their decoder rows, as JSON values. Needs torch: import it only on use.

The numbers are those of ``saescope match A B --num-tokens 0``; this module only sorts them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saescope.dictionaries import Dictionary
from saescope.evaluation.matching.relations import relations


def match_dictionaries(a: Dictionary, b: Dictionary) -> dict[str, Any]:
    """What ``a`` and ``b`` share and what is only in one, from their weights alone.

    Returns:
        - ``bar``: the cosine from which on two features count as the same, and ``part_bar``, that of parts
        - ``pairs``: ``[a, b, cosine]`` of features that are each other's nearest, above the bar; the best first
        - ``only_in_a``, ``only_in_b``: ``[feature, nearest, cosine]`` of features to which nothing in the other is near
          and that are no part of one and have no parts there; the least alike first
        - ``counts``: ``num_a`` and ``num_b`` features, ``pairs``, ``only_in_a``, ``only_in_b``, and of B ``split``,
          ``near`` and ``dead`` as `relations` tells them

    Raises:
        ValueError: decoder rows of different widths, weights that are not finite, a dictionary all of whose rows are zero.
    """
    found, back = relations(a, b), relations(b, a)
    kinds = found.counts()
    shared = np.flatnonzero(found.kinds == "shared")
    new = np.flatnonzero(found.kinds == "new")
    with np.errstate(invalid="ignore"):  # dead features have no cosine
        gone = np.flatnonzero(back.cosines < found.bar)
    gone = gone[~np.isin(gone, [split.feature for split in found.splits])]
    pairs = sorted(
        ([int(found.nearest[place]), int(place), float(found.cosines[place])] for place in shared),
        key=lambda pair: (-pair[2], pair[0]),
    )
    return {
        "bar": found.bar,
        "part_bar": found.part_bar,
        "pairs": pairs,
        "only_in_a": _least_first(gone, back.nearest, back.cosines),
        "only_in_b": _least_first(new, found.nearest, found.cosines),
        "counts": {
            "num_a": a.d_sae,
            "num_b": b.d_sae,
            "pairs": len(pairs),
            "only_in_a": len(gone),
            "only_in_b": len(new),
            **{kind: kinds[kind] for kind in ("split", "near", "dead")},
        },
    }


def _least_first(features: np.ndarray, nearest: np.ndarray, cosines: np.ndarray) -> list[list[Any]]:
    rows = ([int(place), int(nearest[place]), float(cosines[place])] for place in features)
    return sorted(rows, key=lambda row: (row[2], row[0]))
