from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.store.records import Histogram, PageExample, Window
from saescope.web.drawing import chart, excerpt, position_chart, shade, visible


def _example(peak: int, activations: dict[int, float], size: int = 100) -> PageExample:
    window = Window.of_texts(
        id=0, document="d", offset=0, token_ids=range(size), token_texts=[f"{i}." for i in range(size)]
    )
    dense = tuple(activations.get(i, 0.0) for i in range(size))
    return PageExample(window=window, peak=peak, activation=dense[peak], activations=dense, top_rank=0)


def test_shade_is_logarithmic_in_the_share_of_the_strongest() -> None:
    assert shade(10.0, 10.0) == 1.0
    assert shade(5.0, 10.0) == round(0.05 + 0.95 * math.log10(5.5), 3)
    assert shade(0.0, 10.0) == 0.0
    assert shade(1.0, 0.0) == 0.0
    assert shade(11.0, 10.0) == 1.0
    assert shade(-5.0, 10.0) == shade(5.0, 10.0)


@pytest.mark.parametrize(("peak", "first", "last"), [(0, 0, 5), (1, 0, 6), (50, 47, 55), (98, 95, 99), (99, 96, 99)])
def test_an_excerpt_surrounds_the_peak(peak: int, first: int, last: int) -> None:
    part = excerpt(_example(peak, {peak: 2.0}), before=3, after=5)
    assert "".join(piece.text for piece in part.pieces) == "".join(f"{i}." for i in range(first, last + 1))
    assert [piece.text for piece in part.pieces if piece.is_peak] == [f"{peak}."]
    assert (part.more_before, part.more_after) == (first > 0, last < 99)


def test_silent_neighbours_are_one_piece() -> None:
    part = excerpt(_example(3, {3: 2.0, 4: 1.0, 6: 0.5}, size=8))
    assert [(p.text, p.activation) for p in part.pieces] == [
        ("0.1.2.", 0.0),
        ("3.", 2.0),
        ("4.", 1.0),
        ("5.", 0.0),
        ("6.", 0.5),
        ("7.", 0.0),
    ]


def test_tokens_that_share_a_character_are_one_piece_that_names_each() -> None:
    window = Window(
        id=0,
        document="d",
        offset=0,
        text="a漢b",
        token_ids=(7, 8, 9, 10),
        token_ranges=((0, 1), (1, 2), (1, 2), (2, 3)),
    )
    values = (0.0, 0.5, -2.5, 0.0)
    for peak in (1, 2):
        part = excerpt(PageExample(window=window, peak=peak, activation=values[peak], activations=values, top_rank=0))
        assert [(p.text, p.activation, p.is_peak) for p in part.pieces] == [
            ("a", 0.0, False),
            ("漢", -2.5, True),
            ("b", 0.0, False),
        ]
        assert part.pieces[1].title == "token 8: 0.5, token 9: -2.5"
    one = excerpt(_example(0, {0: 2.0, 1: 0.1}, size=2)).pieces
    assert [piece.title for piece in one] == ["2.0", "0.1"]


def test_a_near_miss_has_its_place_marked_and_a_silent_window_none() -> None:
    def drawn(kind: str) -> list[tuple[str, bool]]:
        window = Window.of_texts(id=0, document="d", offset=0, token_ids=range(3), token_texts=["a", "b", "c"])
        example = PageExample(window=window, peak=1, activation=0.0, activations=(0.0,) * 3, negative=kind)
        return [(piece.text, piece.is_peak) for piece in excerpt(example).pieces]

    assert drawn("near_miss") == [("a", False), ("b", True), ("c", False)]
    assert drawn("silent") == [("abc", False)]


def test_blanks_are_drawn_and_stay_what_they_are() -> None:
    assert visible("a  b") == 'a<i class="s">  </i>b'
    assert visible(":\n\n\t") == ':<i class="l">\n</i><i class="l">\n</i><i class="t">\t</i>'
    assert visible("\x00\x1b[1m\u2028") == '<i class="c">\\x00</i><i class="c">\\x1b</i>[1m<i class="c">\\u2028</i>'
    assert visible("<b>&") == "&lt;b&gt;&amp;"


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]) | st.sampled_from(" \n\t<>&'\""), max_size=12)
)
def test_copied_text_is_the_original_text(text: str) -> None:
    parsed = _Texts()
    parsed.feed(str(visible(text)))
    parsed.close()
    assert parsed.text == text
    assert parsed.tags <= {"i"}


def test_a_chart_has_logarithmic_bars_of_equal_width_and_names_its_edges() -> None:
    drawn = chart(Histogram(edges=(0.0, 1.0, 2.0, 4.0, 8.0), counts=(99, 0, 9, 1)))
    assert drawn is not None
    assert (drawn.ticks, drawn.highest) == (((0.0, 0.0), (25.0, 1.0), (50.0, 2.0), (75.0, 4.0), (100.0, 8.0)), 99)
    assert [bar[0] for bar in drawn.bars] == [0.0, 50.0, 75.0]  # an empty bin has no bar
    assert len({bar[2] for bar in drawn.bars}) == 1
    heights = [bar[3] for bar in drawn.bars]
    assert heights == pytest.approx([drawn.height, drawn.height / 2, drawn.height * math.log(2) / math.log(100)])
    assert all(y + height == pytest.approx(drawn.height) for _, y, _, height in drawn.bars)
    assert chart(Histogram(edges=(0.0, 1.0), counts=(0,))) is None
    assert chart(Histogram(edges=(), counts=())) is None


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=120).filter(any), num_ticks=st.integers(2, 6))
def test_every_tick_stands_at_an_edge_and_says_its_value(counts: list[int], num_ticks: int) -> None:
    """Empty bins at the ends are gone; the edges count the bins from the left."""
    edges = tuple(2.0 ** (i / 4) for i in range(len(counts) + 1))
    drawn = chart(Histogram(edges=edges, counts=tuple(counts)), num_ticks=num_ticks)
    assert drawn is not None
    first = next(i for i, count in enumerate(counts) if count)
    last = len(counts) - next(i for i, count in enumerate(reversed(counts)) if count)
    assert (drawn.ticks[0], drawn.ticks[-1]) == ((0.0, edges[first]), (pytest.approx(100.0), edges[last]))
    for place, value in drawn.ticks:
        assert edges[first + round(place * (last - first) / 100)] == value
    assert [place for place, _ in drawn.ticks] == sorted({place for place, _ in drawn.ticks})
    assert len(drawn.bars) == sum(count > 0 for count in counts)


def test_firings_by_position_are_on_a_linear_scale_in_tokens() -> None:
    drawn = position_chart((10, 5, 0, 1), 30)  # stretches of 8 tokens, the last one shorter
    assert drawn is not None
    assert [bar[3] / drawn.height for bar in drawn.bars] == pytest.approx([1.0, 0.5, 0.1])
    assert [value for _, value in drawn.ticks] == [0.0, 16.0, 30.0]
    assert position_chart((), 30) is None
    assert position_chart((0, 0), 30) is None
