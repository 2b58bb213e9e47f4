"""One pass over a corpus that keeps every firing of every feature.

Firings are few (L0 per token), so they are kept whole: 10 bytes each, or 0.5 GB for 800,000 tokens at L0 = 64. Everything
that is said of a feature afterwards (density, histogram, examples, label) is exact, because it is computed from all its
firings. Nothing of size ``[tokens, d_sae]`` is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saescope.activations import TokenWindows
from saescope.dictionaries import Dictionary

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class FiringTable:
    """All firings on the analysed tokens, grouped by feature and in the order of the text.

    A token's *place* is its number among the analysed tokens (special ones and padding are not analysed).
    """

    positions: np.ndarray  # int64, [num_tokens]: where each analysed token stands in the corpus's flat array
    window: np.ndarray  # int32, [num_tokens]: the window that each analysed token belongs to
    bounds: np.ndarray  # int64, [d_sae + 1]: feature i has the firings bounds[i] to bounds[i + 1]
    places: np.ndarray  # int32, [num_firings]
    values: np.ndarray  # float32, [num_firings]

    @property
    def num_tokens(self) -> int:
        return len(self.positions)

    @property
    def d_sae(self) -> int:
        return len(self.bounds) - 1

    @property
    def counts(self) -> np.ndarray:
        """Firings of each feature, ``[d_sae]``."""
        return np.diff(self.bounds)

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and values of one feature's firings."""
        here = slice(self.bounds[feature], self.bounds[feature + 1])
        return self.places[here], self.values[here]


@torch.no_grad()
def collect_firings(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str,
    *,
    batch_size_windows: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> FiringTable:
    """Run the dictionary over all tokens of ``windows``, in order.

    Args:
        on_progress: called with the number of tokens done.
    """
    index_type = np.uint16 if dictionary.d_sae <= 1 << 16 else np.int32
    positions, window, features, places, values = [], [], [], [], []
    done = first_window = 0
    for batch in windows.in_order(batch_size_windows):
        x = model.read(batch.ids, [hook_point], attention_mask=batch.attention)[hook_point][batch.keep].float()
        firings = dictionary.encode_sparse(x).firings()
        positions.append(batch.positions[batch.keep].numpy())
        window.append(first_window + batch.keep.nonzero()[:, 0].numpy().astype(np.int32))
        features.append(firings.feature.cpu().numpy().astype(index_type))
        places.append((firings.token.cpu().numpy() + done).astype(np.int32))
        values.append(firings.value.cpu().numpy().astype(np.float32))
        done += len(x)
        first_window += len(batch.ids)
        if on_progress:
            on_progress(done)
    if not done:
        raise ValueError("no tokens to analyse: every token of the text is a special one")
    feature = np.concatenate(features)
    order = np.argsort(feature, kind="stable")
    counts = np.bincount(feature, minlength=dictionary.d_sae)
    return FiringTable(
        positions=np.concatenate(positions),
        window=np.concatenate(window),
        bounds=np.concatenate([[0], np.cumsum(counts)]),
        places=np.concatenate(places)[order],
        values=np.concatenate(values)[order],
    )


@dataclass(frozen=True)
class Peak:
    """The strongest firing of a feature in one window."""

    window: int
    place: int
    value: float


def top_windows(table: FiringTable, feature: int, num_windows: int) -> list[Peak]:
    """The windows in which a feature peaks highest, strongest first; ties in the order of the text."""
    places, values = table.of(feature)
    if not len(places):
        return []
    windows = table.window[places]
    order = np.lexsort((places, -values))
    _, first = np.unique(windows[order], return_index=True)  # the strongest firing of each window
    best = order[np.sort(first)][:num_windows]
    return [Peak(int(windows[i]), int(places[i]), float(values[i])) for i in best]
