"""A window cut into what is drawn as one: a token, or tokens that share a character, with the strongest of their values.

Terminal and HTML draw the same pieces. Nothing here needs more than the records.
"""

from __future__ import annotations

from dataclasses import dataclass

from saescope.store.records import PageExample, Span


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of text that belongs to one token or to several that share a character."""

    text: str
    tokens: range
    """Positions in the window."""
    activation: float
    """The one furthest from 0 among those of its tokens; negative in signed dictionaries only."""
    is_peak: bool
    """It holds the token at the peak."""


def pieces(example: PageExample) -> tuple[Piece, ...]:
    """The whole window of an example in pieces, in order; together they are its text."""
    return tuple(_piece(example, span) for span in example.window.spans)


def _piece(example: PageExample, span: Span) -> Piece:
    first = span.tokens.start
    return Piece(
        text=span.text,
        tokens=span.tokens,
        activation=(
            example.activations[first]
            if len(span.tokens) == 1
            else max((example.activations[position] for position in span.tokens), key=abs)
        ),
        is_peak=example.peak in span.tokens,
    )


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The peak of an example and what stands around it."""

    before: tuple[Piece, ...]
    peak: Piece
    after: tuple[Piece, ...]
    more_before: bool
    """The window goes on to the left of what is kept."""
    more_after: bool


def surroundings(example: PageExample, before: int | None, after: int | None) -> Surroundings:
    """So many tokens on either side of the peak, None being all; a piece of which one token is wanted is kept whole."""
    start = 0 if before is None else example.peak - before
    end = len(example.activations) if after is None else example.peak + after + 1
    every = example.window.spans
    wanted = [span for span in every if span.tokens.start < end and span.tokens.stop > start]
    kept = [_piece(example, span) for span in wanted]
    at = next(place for place, piece in enumerate(kept) if piece.is_peak)
    return Surroundings(
        before=tuple(kept[:at]),
        peak=kept[at],
        after=tuple(kept[at + 1 :]),
        more_before=wanted[0] is not every[0],
        more_after=wanted[-1] is not every[-1],
    )
