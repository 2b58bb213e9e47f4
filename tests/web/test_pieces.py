"""Pieces of a window against its text and its tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saescope.store.records import PageExample, Window
from saescope.web.pieces import pieces, surroundings


@st.composite
def examples(draw: st.DrawFn) -> PageExample:
    """Tokens that take characters of their own, share the last character of the one before, or take nothing."""
    text, ranges, end = "", [], 0
    for kind in draw(st.lists(st.sampled_from(["own", "share", "nothing"]), min_size=1, max_size=12)):
        start = end
        if kind == "own":
            new = draw(st.text("ab漢", min_size=1, max_size=3))
            text, end = text + new, end + len(new)
        elif kind == "share" and end:
            start -= 1
        ranges.append((start, end))
    size = len(ranges)
    window = Window(id=0, document="d", offset=0, text=text, token_ids=tuple(range(size)), token_ranges=tuple(ranges))
    values = draw(st.lists(st.sampled_from([0.0, 0.5, -2.0, 3.0]), min_size=size, max_size=size))
    peak = draw(st.integers(0, size - 1))
    return PageExample(window=window, peak=peak, activation=values[peak], activations=tuple(values), top_rank=0)


@given(examples())
def test_pieces_are_the_whole_text_and_every_token_once(example: PageExample) -> None:
    found = pieces(example)
    assert "".join(piece.text for piece in found) == example.window.text
    assert [token for piece in found for token in piece.tokens] == list(range(len(example.activations)))
    assert sum(piece.is_peak for piece in found) == 1
    for piece in found:
        values = [example.activations[token] for token in piece.tokens]
        assert piece.activation in values
        assert abs(piece.activation) == max(map(abs, values))


@given(examples(), st.none() | st.integers(0, 6), st.none() | st.integers(0, 6))
def test_surroundings_hold_every_token_that_was_asked_for(
    example: PageExample, before: int | None, after: int | None
) -> None:
    around = surroundings(example, before, after)
    kept = (*around.before, around.peak, *around.after)
    tokens = [token for piece in kept for token in piece.tokens]
    size = len(example.activations)
    first = 0 if before is None else max(0, example.peak - before)
    last = size - 1 if after is None else min(size - 1, example.peak + after)
    assert tokens == list(range(tokens[0], tokens[-1] + 1))
    assert tokens[0] <= first
    assert tokens[-1] >= last
    assert first in kept[0].tokens  # and no piece more
    assert last in kept[-1].tokens
    assert around.peak.is_peak
    assert (around.more_before, around.more_after) == (tokens[0] > 0, tokens[-1] < size - 1)
