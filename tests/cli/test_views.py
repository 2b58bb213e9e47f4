"""What the terminal shows, read back as plain text or as styled segments."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from saescope.cli.views import MEDIUM, STRONG, WEAK, evaluation_view, feature_view, features_view, visible
from saescope.store import (
    DictionaryRecord,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Label,
    PageExample,
    TokenLogit,
    Window,
)


def _plain(renderable: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(renderable)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def _segments(renderable: RenderableType, width: int = 100) -> dict[str, str]:
    """Text to style of everything drawn in a style."""
    console = Console(width=width, force_terminal=True, color_system="truecolor")
    return {segment.text: str(segment.style) for segment in console.render(renderable) if segment.style}


def _feature(index: int = 7, **changes: Any) -> FeatureRecord:
    values: dict[str, Any] = {
        "num_firings": 4321,
        "density": 0.0123,
        "max_activation": 9.0,
        "mean_activation": 2.5,
        "histogram": Histogram(edges=(0.0, 3.0, 6.0, 9.0), counts=(255, 0, 1)),
        "top_logits": (TokenLogit(token_id=1, text=" self", logit=1.5), TokenLogit(token_id=2, text="\n", logit=1.0)),
        "bottom_logits": (TokenLogit(token_id=3, text="[red]", logit=-0.5),),
        "label": Label(text="the token [bold]", kind="tokens", precision=0.974, lift=61.3, num_firings=412),
    }
    return FeatureRecord(index=index, **values | changes)


def _example(texts: list[str], peak: int, activations: dict[int, float] | None = None) -> PageExample:
    values = {peak: 9.0} | (activations or {})
    return PageExample(
        window=Window(id=0, document="d", offset=0, token_ids=tuple(range(len(texts))), token_texts=tuple(texts)),
        peak=peak,
        activation=values[peak],
        activations=tuple(values.get(i, 0.0) for i in range(len(texts))),
    )


def _page(*examples: PageExample, **changes: Any) -> FeaturePage:
    dictionary = DictionaryRecord(
        name="tiny",
        model="m",
        hook_point="h",
        architecture="topk",
        dataset="d",
        d_in=4,
        d_sae=16,
        context_size=8,
        num_tokens=100,
    )
    return FeaturePage(dictionary=dictionary, feature=_feature(**changes), examples=examples)


def _context_line(example: PageExample, width: int = 60, **options: Any) -> str:
    return _plain(feature_view(_page(example), **options), width)[-1]


def test_the_header_says_what_the_feature_is() -> None:
    lines = _plain(feature_view(_page()))
    assert lines[0].rstrip() == "feature 7 of tiny"
    assert lines[1].rstrip() == "the token [bold]"
    assert lines[2].rstrip() == "precision 97.4\u00a0%, lift 61.3×, on 412 held-out firings"
    assert lines[3].rstrip() == "density 1.23\u00a0% (4,321 firings)   max 9   mean 2.5"
    assert "0 █ ▁ 9   log counts, highest 255" in lines[5]
    text = "\n".join(lines)
    assert "·self 1.50" in text
    assert "↵ 1.00" in text
    assert "[red] −0.500" in text
    assert "no example was kept" in text


def test_a_dead_feature_without_a_label() -> None:
    dead = _page(
        num_firings=0, density=0.0, max_activation=0.0, mean_activation=0.0, label=None, top_logits=(),
        histogram=Histogram(edges=(0.0, 1.0), counts=(0,)),
    )  # fmt: skip
    lines = [line.rstrip() for line in _plain(feature_view(dead))]
    assert lines[1] == "unlabelled"
    assert "it never fired" in lines
    assert not any("log counts" in line for line in lines)


def test_a_long_histogram_is_merged_into_the_line() -> None:
    histogram = Histogram(edges=tuple(float(i) for i in range(121)), counts=(1,) * 120)
    line = _plain(feature_view(_page(histogram=histogram)), 80)[5]
    assert line.startswith("0 " + "█" * 40 + " 120 ")
    assert "highest 3" in line


def test_a_context_is_one_line_with_the_peak_marked_and_its_value_in_front() -> None:
    line = _context_line(_example(["def", " f", "(self", "):", "\n", "    "], peak=2))
    assert line.rstrip() == "    9.00  def f«(self»):↵"
    assert line.endswith("↵    ".ljust(len(line) - line.index("↵")))


def test_what_is_cut_away_leaves_the_rest_unstyled() -> None:
    example = _example([f" t{i}" for i in range(50)], 25)
    assert " t24« t25» t26" in _context_line(example)
    styles = _segments(feature_view(_page(example)), 60)
    assert styles["…"] == "dim"
    assert not any("t24" in text or "t26" in text for text in styles)


def test_three_strengths_of_colour_relative_to_the_strongest_firing() -> None:
    example = _example(["none", "weak", "just", "half", "more", "peak"], 5, {1: 0.1, 2: 3.0, 3: 4.5, 4: 6.1, 5: 8.0})
    styles = _segments(feature_view(_page(example)))
    assert "none" not in styles
    assert styles["weak"] == styles["just"] == WEAK
    assert styles["half"] == MEDIUM
    assert styles["more"] == STRONG
    assert "bold" in styles["peak"]
    assert "underline" in styles["peak"]
    assert STRONG in styles["peak"]


@pytest.mark.parametrize("peak", [0, 1, 2, 100, 197, 198, 199])
@pytest.mark.parametrize("width", [24, 40, 120])
def test_the_peak_is_always_in_sight(peak: int, width: int) -> None:
    texts = [f" t{i}" for i in range(200)]
    line = _context_line(_example(texts, peak), width)
    assert f"« t{peak}»" in line
    assert cell_len(line) <= width
    context = line[10:]
    assert context.rstrip().startswith("…") == (peak > 3 or not context.startswith((" t0", "« t0»")))
    if peak == 0:
        assert context.startswith("« t0» t1 t2")
    if peak == 199:
        assert context.rstrip().endswith("« t199»")
        assert " t198«" in context


def test_the_line_is_filled_when_one_side_is_short() -> None:
    texts = [f" t{i}" for i in range(200)]
    for peak in (0, 1, 100, 198, 199):
        assert cell_len(_context_line(_example(texts, peak), 60).rstrip()) >= 58


def test_a_window_in_tokens() -> None:
    line = _context_line(_example(list("abcdefgh"), peak=4), window_before=2, window_after=1)
    assert line[10:].rstrip() == "…cd«e»f…"
    whole = _context_line(_example(list("abcdefgh"), peak=0), window_before=2, window_after=20)
    assert whole[10:].rstrip() == "«a»bcdefgh"


def test_not_more_examples_than_asked() -> None:
    examples = [_example(["a", "b"], 1)] * 5
    assert sum("«b»" in line for line in _plain(feature_view(_page(*examples), max_examples=3))) == 3


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text(st.characters() | st.sampled_from("[]漢字👍\n\x1b/"), max_size=8), min_size=1, max_size=30),
    where=st.floats(0, 0.999),
    width=st.integers(20, 90),
)
def test_any_text_stays_on_its_line(texts: list[str], where: float, width: int) -> None:
    peak = int(where * len(texts))
    texts[peak] += "x"
    lines = _plain(feature_view(_page(_example(texts, peak))), width)
    fires = next(i for i, line in enumerate(lines) if line.startswith("where it fires"))
    assert len(lines) == fires + 2
    assert cell_len(lines[-1]) <= width
    assert "«" in lines[-1]
    assert "»" in lines[-1]


def test_what_could_move_the_cursor_is_shown_as_a_code() -> None:
    assert visible("a\x1b[31m\r\n\tb\u202e\x00") == "a\\x1b[31m↵⇥b\\u202e\\x00"
    assert visible(" a b", spaces=True) == "·a·b"
    assert visible("\U000e0001\ud800") == "\\U000e0001\\ud800"


def test_the_table_of_features() -> None:
    records = [
        _feature(12),
        _feature(345, label=None),
        _feature(6, label=Label(text="long " * 60, kind="syntax", precision=None, lift=None, num_firings=3)),
    ]
    lines = _plain(features_view(records), 80)
    assert lines[1].split() == ["feature", "density", "max", "label", "precision", "lift"]
    assert lines[3].split() == ["12", "1.23", "%", "9", "the", "token", "[bold]", "97.4", "%", "61.3×"]
    assert lines[4].split() == ["345", "1.23", "%", "9", "unlabelled"]
    assert "long long" in lines[5]
    assert "…" in lines[5]
    assert len([line for line in lines if line.strip()]) == 5  # one line each
    assert all(cell_len(line) <= 80 for line in lines)


def test_the_table_of_an_evaluation() -> None:
    rows = [
        {"name": "explained [i]variance", "value": 0.91234, "target": "at least 0.9", "met": True},
        {"name": "loss recovered", "value": 0.5, "target": 0.95, "met": False},
        {"name": "minutes", "value": 7},
    ]
    lines = [" ".join(line.split()) for line in _plain(evaluation_view(rows)) if line.strip()]
    assert lines[2:] == [
        "explained [i]variance 0.9123 at least 0.9 met",
        "loss recovered 0.5 0.95 not met",
        "minutes 7 – –",
    ]
