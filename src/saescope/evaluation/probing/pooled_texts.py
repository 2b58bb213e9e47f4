"""One vector for each text: its feature activations, and the model's own, as a mean over tokens or of the last token.

Texts are read a few at a time, so that activations of single tokens are never all held. Which tokens count is a mask:
neither padding nor special tokens. A token whose activations happen to be zero is a token like any other.

n  texts, T  tokens of the longest text of a batch, t  tokens that count, d_in  width, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch
from scipy import sparse

from saescope.dictionaries import Dictionary
from saescope.evaluation.sample import MOST_FIRINGS, encode_sample, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saescope.models import LanguageModel

Pooling: TypeAlias = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts:
    """What a dictionary and a model make of texts."""

    codes: sparse.csr_array  # float32, [n, d_sae]
    x: np.ndarray  # float32, [n, d_in]


@torch.no_grad()
def pool_texts(
    dictionary: Dictionary,
    model: LanguageModel,
    texts: Sequence[str],
    reads: Sequence[str],
    *,
    pooling: Pooling = "mean",
    context_size: int = 128,
    prepend_bos: bool = True,
    batch_size_texts: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> PooledTexts:
    """Read texts through the model, encode each token that counts, and pool the codes.

    Args:
        reads: hook points that the dictionary reads.
        pooling: "mean": over the first ``context_size`` tokens. "last": the last token, after as many before it as fit.
        context_size: tokens of a text at most, the opening one included.
        prepend_bos: each text opens with the beginning-of-sequence token, if the tokenizer has one.
        on_progress: called with (texts done, texts in all).

    Raises:
        ValueError: no texts, a text without a token that counts, or a model without a tokenizer.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be {' or '.join(map(repr, get_args(Pooling)))}, got {pooling!r}")
    if not texts:
        raise ValueError("there are no texts to read")
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer; texts cannot be read without one")
    codes, x, held = [], [], 0
    for first in range(0, len(texts), batch_size_texts):
        part = list(texts[first : first + batch_size_texts])
        ids, attention, keep = _padded(part, model.tokenizer, pooling, context_size, prepend_bos)
        empty = np.flatnonzero(~keep.any(-1))
        if len(empty):
            raise ValueError(f"text {first + empty[0]} has no token that is not special; leave it out")
        values = model.read(torch.from_numpy(ids), reads, attention_mask=torch.from_numpy(attention))
        rows = joined([values[name] for name in reads], torch.from_numpy(keep)).cpu()  # [t, d_in]
        mixing = _mixing(keep)
        codes.append((mixing @ encode_sample(dictionary, rows)).astype(np.float32))
        x.append((mixing @ rows.numpy()).astype(np.float32))
        held += codes[-1].nnz
        if held > MOST_FIRINGS:
            raise ValueError(
                f"the codes of the first {first + len(part):,} texts have more than {MOST_FIRINGS:,} entries; "
                "take fewer texts"
            )
        if on_progress:
            on_progress(first + len(part), len(texts))
    return PooledTexts(codes=sparse.csr_array(sparse.vstack(codes)), x=np.concatenate(x))


def _padded(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, pooling: Pooling, context_size: int, prepend_bos: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids (int64), attention and the tokens that are pooled (both bool), ``[n, T]``, padded on the right."""
    candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    opening = [token for token in candidates if token is not None][: int(prepend_bos)]
    width = context_size - len(opening)
    if width < 1:
        raise ValueError(f"context_size must be at least {1 + len(opening)}, got {context_size}")
    pieces = []
    for found in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        pieces.append(opening + list(found[:width] if pooling == "mean" else found[-width:]))
    longest = max(1, *map(len, pieces))
    lengths = np.asarray([len(piece) for piece in pieces])
    attention = np.arange(longest) < lengths[:, None]
    ids = np.zeros(attention.shape, dtype=np.int64)
    ids[attention] = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    keep = attention & ~np.isin(ids, list(tokenizer.all_special_ids))
    if pooling == "last":
        keep &= np.cumsum(keep[:, ::-1], axis=-1)[:, ::-1] == 1
    return ids, attention, keep


def _mixing(keep: np.ndarray) -> sparse.csr_array:
    """From kept tokens to the means of texts: ``[n, t]``, float64."""
    counts = keep.sum(-1)
    weights = np.repeat(1 / counts, counts)
    return sparse.csr_array(
        (weights, np.arange(len(weights)), np.concatenate([[0], np.cumsum(counts)])), shape=(len(keep), len(weights))
    )
