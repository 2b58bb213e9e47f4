"""Texts, each by itself, read through a dictionary: which features fire on which token of which text.

Every text is cut into windows of its own, so that no text is read with another before it. Longer ones than a window are
read window by window, without overlap; nothing is left out.

N  kept tokens of a batch (neither padding nor special), d_out  width that is rebuilt, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from saescope.activations import Document, TokenWindows, WindowConfig
from saescope.interventions.reading import Reading, read_features
from saescope.interventions.site import Site

_CONTEXT_SIZE = 128  # where the dictionary's file says nothing
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ReadTokens:
    """What a dictionary makes of the kept tokens of some windows."""

    ids: np.ndarray  # int64, [N]
    text: np.ndarray  # int64, [N]: number of the text
    place: np.ndarray  # int64, [N]: which token of its text
    codes: sparse.csr_array  # float64, [N, d_sae]
    reading: Reading


def windows_of(
    site: Site, texts: Sequence[str], *, context_size: int | None = None, last_only: bool = False
) -> TokenWindows:
    """Windows of texts, opened as the dictionary was trained (its ``prepend_bos``; yes where nothing is said).

    Args:
        context_size: tokens in a window; None for the dictionary's own, or as many as the model takes.
        last_only: of each text the window that ends with it, as long as can be.

    Raises:
        ValueError: no texts, one without a token, a model without a tokenizer, or windows that the model can not read.
    """
    model, metadata = site.model, site.dictionary.metadata
    if isinstance(texts, str):
        raise ValueError("texts is a list of texts; for one, give [text]")
    if not texts:
        raise ValueError("there are no texts to read")
    if model.tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer; texts can not be read without one")
    said = metadata.get("context_size")
    size = context_size or min(
        said if isinstance(said, int) and said > 2 else _CONTEXT_SIZE, model.context_size or 1 << 30
    )
    if model.context_size is not None and size > model.context_size:
        raise ValueError(f"windows of {size} tokens do not fit {model.name}, which reads at most {model.context_size}")
    tokenizer = model.tokenizer
    opens = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) != (None, None, None)
    config = WindowConfig(
        context_size=size, packing="separate", prepend_bos=opens and bool(metadata.get("prepend_bos", True))
    )
    documents = [Document(f"text {number}", text) for number, text in enumerate(texts)]
    try:
        windows = TokenWindows.build(documents, tokenizer, config)
    except ValueError as error:
        if any(text.strip() for text in texts):
            raise
        raise ValueError("all texts are empty") from error
    known = {document.name for document in windows.documents}
    empty = [number for number, document in enumerate(documents) if document.name not in known]
    if empty:
        raise ValueError(f"text {empty[0]} of {len(texts)} (counted from 0) has no token; leave it out")
    if not last_only:
        return windows
    first, last = windows.document_starts[:-1], windows.document_starts[1:]
    starts = np.maximum(first, last - (size - config.prepend_bos))
    return replace(windows, starts=starts, lengths=(last - starts).astype(np.int32))


def read_tokens(
    site: Site, windows: TokenWindows, *, batch_size_windows: int = 16, on_progress: Progress | None = None
) -> Iterator[ReadTokens]:
    """The windows in order, some at a time.

    Raises:
        ValueError: the dictionary gives NaN.
    """
    done = 0
    for batch in windows.in_order(batch_size_windows):
        longest = int(batch.attention.sum(-1).max())  # padding stands on the right; texts are often far shorter
        ids, attention = batch.ids[:, :longest], batch.attention[:, :longest]
        (reading,) = read_features([site], ids, attention_mask=attention)
        kept = reading.tokens.cpu().numpy()
        positions = batch.positions[:, :longest].numpy()[kept]
        text = np.searchsorted(windows.document_starts, positions, side="right") - 1
        firings = reading.codes.firings()
        value = firings.value.double().cpu().numpy()
        if np.isnan(value).any():
            raise ValueError(
                "the dictionary gives NaN for feature activations; its weights, or the activations, hold NaN"
            )
        codes = sparse.csr_array(
            (value, (firings.token.cpu().numpy(), firings.feature.cpu().numpy())),
            shape=(len(positions), site.dictionary.d_sae),
        )
        yield ReadTokens(ids.numpy()[kept], text, positions - windows.document_starts[text], codes, reading)
        done += len(ids)
        if on_progress:
            on_progress(done, len(windows))
