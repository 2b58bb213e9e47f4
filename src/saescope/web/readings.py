"""A text cut into the pieces that a page draws, each with the strongest features of its tokens.

Tokens are those that an analysis would see: the same tokenizer without its own additions, behind the opening token where
the analysis had one. That token is read and not shown, so that the pieces together are the text that was typed.

N  tokens that were read, P  pieces.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope.store.records import Span, Window
from saescope.web.live import Piece, Reading

if TYPE_CHECKING:
    from saescope.dictionaries import SparseCodes
    from saescope.models import LanguageModel

_MOST_OF_TEXT = 100  # features that are named of a whole text, and as many that are ranked apart


def token_ids(model: LanguageModel, text: str, *, opens: bool) -> tuple[list[int], int]:
    """The ids of a text, and how many at their beginning are not of the text (0 or 1).

    Args:
        opens: whether the model reads an opening token first. A text that begins with it has it already.

    Raises:
        ValueError: no tokenizer, no token, more than the model reads, or characters that are none.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer, so that it reads no text; save one beside it")
    check_text(text)
    ids = [int(token) for token in tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]]
    if not ids:
        raise ValueError("there is nothing to read: the text has no token")
    candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    opening = next((int(token) for token in candidates if token is not None), None)
    added = int(opens and opening is not None and ids[0] != opening)
    if model.context_size is not None and added + len(ids) > model.context_size:
        room = model.context_size - added
        raise ValueError(f"the text has {len(ids):,} tokens, and {model.name} reads at most {room:,}; give it less")
    return [opening] * added + ids if opening is not None else ids, added


def check_text(text: str) -> None:
    """Refuses half characters, which no tokenizer takes.

    Raises:
        ValueError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the text is half of a pair and stands for nothing") from None


def spans_of(model: LanguageModel, text: str, ids: Sequence[int]) -> tuple[Span, ...]:
    """The pieces of a text with the numbers of their tokens; together they are the text.

    Args:
        ids: of the text alone.
    """
    from saescope.models.token_text import TokenReader

    shown, ranges = TokenReader(model.tokenizer).read(ids)
    if shown != text:  # the tokenizer changes what it reads: it folds case or blanks, or composes characters
        shown, ranges = _ranges_in(model, text, len(ids)) or (shown, ranges)
    window = Window(id=0, document="", offset=0, text=shown, token_ids=tuple(ids), token_ranges=tuple(ranges))
    return window.spans


def _ranges_in(model: LanguageModel, text: str, num_tokens: int) -> tuple[str, list[tuple[int, int]]] | None:
    """Where each token stands in the text, by the tokenizer's account; what lies between two belongs to the later."""
    tokenizer: Any = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer([text], add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ranges, covered = list[tuple[int, int]](), 0
    for start, end in encoded["offset_mapping"][0]:
        before = ranges[-1][0] if ranges else 0
        start, end = max(before, min(start, covered)), max(covered, end)
        ranges.append((start, end))
        covered = end
    if len(ranges) != num_tokens:
        return None
    ranges[-1] = (ranges[-1][0], len(text))
    return text, ranges


def reading_of(
    spans: Sequence[Span],
    ids: Sequence[int],
    is_read: Sequence[bool],
    codes: SparseCodes,
    *,
    feature: int | None,
    num_per_token: int,
    apart: Collection[int],
) -> Reading:
    """What a page shows of a text.

    Args:
        ids: of the text; `is_read` says which of them have a row in `codes` (special tokens have none).
        codes: ``[N, d_sae]``.
        feature: the one that is asked for, instead of the strongest.
        num_per_token, apart: as in ``Live.read_text``.
    """
    piece_of = np.empty(len(ids), dtype=np.int64)
    for number, span in enumerate(spans):
        piece_of[span.tokens.start : span.tokens.stop] = number
    places = np.flatnonzero(is_read)  # [N]
    firings = codes.firings()
    tokens = places[firings.token.cpu().numpy()]
    features, values = firings.feature.cpu().numpy(), firings.value.double().cpu().numpy()
    if feature is not None:
        chosen = features == feature
        tokens, features, values = tokens[chosen], features[chosen], values[chosen]

    by_piece = dict[int, list[tuple[int, float, int]]]()
    for piece, entries in groupby(_strongest(piece_of[tokens], features, values), key=lambda entry: entry[0]):
        by_piece[piece] = [entry[1:] for entry in entries]
    of_text = [entry[1:] for entry in _strongest(np.zeros_like(tokens), features, values)]
    special = ~np.asarray(is_read)
    return Reading(
        pieces=tuple(
            Piece(
                text=span.text,
                token_ids=tuple(ids[span.tokens.start : span.tokens.stop]),
                features=()
                if feature is not None
                else tuple(
                    (index, value) for index, value, _ in _first(by_piece.get(number, []), num_per_token, apart)
                ),
                activation=by_piece[number][0][1] if feature is not None and number in by_piece else 0.0,
                is_special=bool(special[span.tokens.start : span.tokens.stop].all()),
            )
            for number, span in enumerate(spans)
        ),
        features=() if feature is not None else tuple(_first(of_text, _MOST_OF_TEXT, apart)),
        num_tokens=len(ids),
    )


def _strongest(groups: np.ndarray, features: np.ndarray, values: np.ndarray) -> list[tuple[int, int, float, int]]:
    """Of each group its features with the value furthest from 0 and the number of firings, the strongest first."""
    if not len(groups):
        return []
    order = np.lexsort((-np.abs(values), features, groups))
    groups, features, values = groups[order], features[order], values[order]
    is_first = np.ones(len(groups), dtype=bool)
    is_first[1:] = (groups[1:] != groups[:-1]) | (features[1:] != features[:-1])
    firsts = np.flatnonzero(is_first)
    counts = np.diff(np.append(firsts, len(groups)))
    groups, features, values = groups[firsts], features[firsts], values[firsts]
    order = np.lexsort((features, -np.abs(values), groups))
    columns = (groups[order].tolist(), features[order].tolist(), values[order].tolist(), counts[order].tolist())
    return list(zip(*columns, strict=True))


def _first(entries: list[tuple[int, float, int]], number: int, apart: Collection[int]) -> list[tuple[int, float, int]]:
    """The first so many that stand apart, and as many others, in their order."""
    room = {True: number, False: number}
    kept = []
    for entry in entries:
        is_apart = entry[0] in apart
        if room[is_apart]:
            room[is_apart] -= 1
            kept.append(entry)
    return kept
