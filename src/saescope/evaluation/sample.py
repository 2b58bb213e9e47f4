"""The tokens that studies look at: activations read once, and codes that take as much room as there are firings.

A sample is read from the model once and serves every dictionary at its hook point. Each token knows its document, so that
documents, not tokens, are split and drawn. Codes of a dictionary on a sample are one sparse matrix; a dense
``[T, d_sae]`` is never made.

T  tokens, d_in  width of the activations, d_sae  features, L  labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from saescope.activations import TokenWindows
from saescope.dictionaries import Dictionary

if TYPE_CHECKING:
    from saescope.models import LanguageModel

BATCH_SIZE_TOKENS = 2048
MOST_FIRINGS = 1 << 28  # of codes held at once, 2 GB


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSample:
    """Activations of tokens, in the order of the text; neither special tokens nor padding."""

    x: Tensor  # what the dictionary reads, [T, d_in], float32
    y: Tensor  # what it rebuilds: x itself, but for transcoders; [T, d_out]
    ids: np.ndarray  # token ids, int64, [T]
    document: np.ndarray  # number of each token's document, int64, [T]
    place: np.ndarray  # place in its window, int64, [T]
    position: np.ndarray  # place in the whole text, int64, [T]; rising

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a sample needs one entry of everything for each token, got {lengths}")
        if not len(self.x):
            raise ValueError("the sample holds no tokens")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_documents(self) -> int:
        return len(np.unique(self.document))

    def select(self, tokens: np.ndarray) -> TokenSample:
        """The tokens at these places (numbers, or one bool per token)."""
        places = np.flatnonzero(tokens) if tokens.dtype == bool else tokens
        rows = torch.from_numpy(places)
        x = self.x[rows]
        return TokenSample(
            x=x,
            y=x if self.y is self.x else self.y[rows],
            **{name: getattr(self, name)[places] for name in ("ids", "document", "place", "position")},
        )

    def batches(self, batch_size_tokens: int = BATCH_SIZE_TOKENS) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which tokens, x, y), in order."""
        for first in range(0, len(self), batch_size_tokens):
            part = slice(first, min(first + batch_size_tokens, len(self)))
            yield part, self.x[part], self.y[part]

    def parts(self, shares: Sequence[float], *, seed: int = 0) -> list[np.ndarray]:
        """Documents dealt out at random: one bool ``[T]`` for each share, by number of documents; shares sum to 1.

        No document is in two parts, so that what is chosen on one is not seen on the other.

        Raises:
            ValueError: fewer documents than parts.
        """
        documents = np.unique(self.document)
        if len(documents) < len(shares):
            raise ValueError(f"{len(documents)} documents can not be dealt out to {len(shares)} parts; read more text")
        mixed = np.random.default_rng(seed).permutation(documents)
        ends = np.round(np.cumsum(shares) / sum(shares) * len(mixed)).astype(int)
        ends = np.maximum(ends, np.arange(1, len(shares) + 1))  # each part has one at least
        ends = np.minimum(ends, len(mixed) - np.arange(len(shares))[::-1])
        return [np.isin(self.document, mixed[first:end]) for first, end in zip([0, *ends[:-1]], ends, strict=True)]

    @cached_property
    def digest(self) -> str:
        """A hash of all that is in it."""
        found = hashlib.sha256()
        for name in ("x", *([] if self.y is self.x else ["y"])):
            found.update(getattr(self, name).contiguous().numpy().tobytes())
        for name in ("ids", "document", "place", "position"):
            found.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return found.hexdigest()

    @classmethod
    def of_activations(cls, x: Tensor, y: Tensor | None = None, *, document: np.ndarray | None = None) -> TokenSample:
        """A sample of bare activations (images, synthetic data): each its own document, unless ``document`` is given."""
        count = np.arange(len(x), dtype=np.int64)
        x = x.float()
        return cls(
            x=x,
            y=x if y is None else y.float(),
            ids=np.zeros_like(count),
            document=count if document is None else np.asarray(document, dtype=np.int64),
            place=np.zeros_like(count),
            position=count,
        )


@torch.no_grad()
def read_sample(
    model: LanguageModel,
    windows: TokenWindows,
    reads: Sequence[str],
    writes: Sequence[str] = (),
    *,
    num_tokens: int | None = None,
    batch_size_windows: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenSample:
    """Run the model on at most ``num_tokens`` tokens, in windows spread evenly over the text.

    Args:
        reads: hook points that the dictionary reads, side by side where there are several.
        writes: those that it rebuilds, where they are others.
        on_progress: called with (batches done, batches in all).
    """
    chosen = windows.evenly(num_tokens)
    total = -(-len(chosen) // batch_size_windows)
    found: dict[str, list[Tensor]] = {"x": [], "y": []}
    plain: dict[str, list[np.ndarray]] = {"ids": [], "place": [], "position": []}
    for done, batch in enumerate(chosen.in_order(batch_size_windows), start=1):
        values = model.read(batch.ids, [*reads, *writes], attention_mask=batch.attention)
        found["x"].append(joined([values[name] for name in reads], batch.keep).cpu())
        if writes:
            found["y"].append(joined([values[name] for name in writes], batch.keep).cpu())
        places = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        for name, tensor in (("ids", batch.ids), ("place", places), ("position", batch.positions)):
            plain[name].append(tensor[batch.keep].numpy())
        if on_progress:
            on_progress(done, total)
    x = torch.cat(found["x"])
    arrays = {name: np.concatenate(pieces) for name, pieces in plain.items()}
    document = np.searchsorted(windows.document_starts, arrays["position"], side="right") - 1
    return TokenSample(x=x, y=torch.cat(found["y"]) if writes else x, document=document.astype(np.int64), **arrays)


def joined(activations: Sequence[Tensor], keep: Tensor) -> Tensor:
    """Activations of the kept tokens, hook points side by side: ``[tokens, d]``, float32."""
    return torch.cat([a[keep.to(a.device)].float() for a in activations], dim=-1)


@torch.no_grad()
def encode_sample(dictionary: Dictionary, x: Tensor, *, batch_size_tokens: int = BATCH_SIZE_TOKENS) -> sparse.csr_array:
    """Feature activations of ``x``, ``[T, d_sae]``, as one sparse float32 matrix with sorted columns.

    Raises:
        ValueError: activations of another width, or so many firings that they would fill the memory; a feature activation
            that is not a number.
    """
    counts, features, values, total = [np.zeros(1, dtype=np.int64)], [], [], 0
    for first in range(0, len(x), batch_size_tokens):
        part = x[first : first + batch_size_tokens]
        firings = dictionary.encode_sparse(part.to(dictionary.W_dec)).firings()
        if firings.value.isnan().any():
            raise ValueError(
                "the dictionary gives NaN for feature activations; its weights, or the activations, hold NaN"
            )
        counts.append(np.bincount(firings.token.cpu().numpy(), minlength=len(part)))
        features.append(firings.feature.int().cpu().numpy())
        values.append(firings.value.float().cpu().numpy())
        total += len(features[-1])
        if total > MOST_FIRINGS:
            raise ValueError(
                f"more than {MOST_FIRINGS:,} firings on the first {first + len(part):,} tokens (L0 of "
                f"{total / (first + len(part)):,.0f}): take fewer tokens"
            )
    codes = sparse.csr_array(
        (np.concatenate(values), np.concatenate(features), np.cumsum(np.concatenate(counts))),
        shape=(len(x), dictionary.d_sae),
    )
    codes.sort_indices()
    return codes


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLabels:
    """True concepts of the tokens of a sample, yes or no."""

    names: tuple[str, ...]
    values: np.ndarray  # bool, [T, L]

    def __post_init__(self) -> None:
        if self.values.dtype != bool or self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(
                f"labels must be bool [tokens, {len(self.names)}], one column a name, got {self.values.dtype} "
                f"{list(self.values.shape)}"
            )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"two labels are named {', '.join(twice)}")

    def check(self, sample: TokenSample) -> None:
        """ValueError where labels and tokens do not go together."""
        if len(self.values) != len(sample):
            raise ValueError(
                f"there are labels for {len(self.values):,} tokens, but the sample has {len(sample):,}; build both from the "
                "same windows"
            )

    def column(self, name: str) -> np.ndarray:
        """bool ``[T]``."""
        if name not in self.names:
            raise ValueError(f"no label is named {name!r}; there are {', '.join(self.names)}")
        return self.values[:, self.names.index(name)]

    def select(self, tokens: np.ndarray) -> TokenLabels:
        """The labels of the tokens at these places."""
        return replace(self, values=self.values[tokens])
