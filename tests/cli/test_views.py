"""What the terminal shows, read back as plain text or as styled segments."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from saescope.cli.views import (
    dictionary_view,
    evaluation_view,
    feature_view,
    features_view,
    page_view,
    store_view,
    visible,
)
from saescope.cli.views.words import (
    MEDIUM,
    MEDIUM_NEGATIVE,
    STRONG,
    STRONG_NEGATIVE,
    WEAK,
    WEAK_NEGATIVE,
    sparkline,
)
from saescope.store.records import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    EvaluationResult,
    Explanation,
    FeatureDetail,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
    PageExample,
    StoreInfo,
    Summary,
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
        "mean_positive": 2.5,
        "label": Label(text="the token [bold]", kind="tokens", precision=0.974, recall=0.8, lift=61.3, num_firings=412),
    }
    return FeatureRecord(index=index, **values | changes)


def _detail(**changes: Any) -> FeatureDetail:
    values: dict[str, Any] = {
        "histogram": Histogram(edges=(0.0, 3.0, 6.0, 9.0), counts=(255, 0, 1)),
        "top_logits": (TokenLogit(token_id=1, text=" self", logit=1.5), TokenLogit(token_id=2, text="\n", logit=1.0)),
        "bottom_logits": (TokenLogit(token_id=3, text="[red]", logit=-0.5),),
    }
    return FeatureDetail(**values | changes)


def _example(
    texts: list[str],
    peak: int,
    activations: dict[int, float] | None = None,
    ranges: list[tuple[int, int]] | None = None,
    **roles: Any,
) -> PageExample:
    """Fires at the peak with 9 and where told; `ranges` for tokens that share characters of the joined texts."""
    values = {peak: 9.0} | (activations or {})
    if ranges is None:
        window = Window.of_texts(id=0, document="d", offset=0, token_ids=range(len(texts)), token_texts=texts)
    else:
        ids, text = tuple(range(len(ranges))), "".join(texts)
        window = Window(id=0, document="d", offset=0, text=text, token_ids=ids, token_ranges=tuple(ranges))
    size = len(window.token_ids)
    return PageExample(
        window=window,
        peak=peak,
        activation=values[peak],
        activations=tuple(values.get(i, 0.0) for i in range(size)),
        **({"top_rank": 0} | roles),
    )


def _page(
    *examples: PageExample, feature: dict | None = None, detail: dict | None = None, **changes: Any
) -> FeaturePage:
    dictionary = DictionaryRecord(
        name="tiny", model="m", hook_point="early, late", architecture="topk", d_in=4, d_sae=16
    )
    analysis = AnalysisRecord(dataset="d", context_size=64, num_tokens=100)
    return FeaturePage(
        dictionary=dictionary,
        analysis=analysis,
        feature=_feature(**feature or {}),
        detail=_detail(**detail or {}),
        all_examples=examples,
        **changes,
    )


def _context_line(example: PageExample, width: int = 60, **options: Any) -> str:
    return _plain(feature_view(_page(example), **options), width)[-1]


def test_the_header_says_what_the_feature_is() -> None:
    lines = _plain(feature_view(_page()))
    assert lines[0].rstrip() == "feature 7 of tiny"
    assert lines[1].rstrip() == "the token [bold]"
    assert lines[2].rstrip() == "precision 97.4\u00a0%, recall 80\u00a0%, lift 61.3×, on 412 held-out firings"
    assert lines[3].rstrip() == "density 1.23\u00a0% (4,321 firings)   max 9   mean 2.5"
    assert lines[5].rstrip() == "activations 0 █ ▁ 9 log counts, highest 255"
    text = "\n".join(lines)
    assert "·self 1.50" in text
    assert "↵ 1.00" in text
    assert "[red] −0.500" in text
    assert "no example was kept" in text


def test_a_dead_feature_without_a_label() -> None:
    dead = _page(
        feature={"num_firings": 0, "density": 0.0, "max_activation": 0.0, "mean_positive": 0.0, "label": None},
        detail={"histogram": Histogram(edges=(0.0, 1.0), counts=(0,)), "top_logits": ()},
    )
    for view in (feature_view(dead), page_view(dead)):
        lines = [line.rstrip() for line in _plain(view)]
        assert lines[1] == "unlabelled"
        assert "it never fired" in lines
        assert not any("log counts" in line for line in lines)


def test_what_was_not_measured_is_a_dash_or_left_out() -> None:
    lines = _plain(page_view(_page(feature={"mean_positive": None, "logit_skew": 0.0, "cluster": 0})))
    assert "mean –   median –" in lines[3]
    assert any("cluster 0" in line for line in lines)  # zero is a number
    assert any("skew of logit effects 0" in line for line in lines)
    assert not any("decoder norm" in line or "special" in line for line in lines)


def test_a_long_histogram_is_merged_into_the_line() -> None:
    histogram = Histogram(edges=tuple(float(i) for i in range(121)), counts=(1,) * 119 + (9,))
    line = _plain(feature_view(_page(detail={"histogram": histogram})), 80)[5]
    assert line.startswith("activations 0 " + "▅" * 29 + "█ 120 ")  # 8 log(1 + 4) / log(1 + 12) = 5, of 4 bins each
    assert "highest 12" in line


def test_a_sparkline_counts_everything() -> None:
    assert sparkline([1, 0, 255], 8, logarithmic=True) == ("▁ █", 255)
    assert sparkline([16, 8, 1, 0], 8, logarithmic=False) == ("█▄▁ ", 16)
    assert sparkline([1, 1, 3, 0, 2], 3, logarithmic=False) == ("▅█▅", 3)
    assert sparkline([], 3, logarithmic=True) == ("", 0)


def test_empty_bins_at_the_ends_are_not_drawn_and_the_ends_are_those_of_what_is() -> None:
    histogram = Histogram(edges=(0.5, 1.0, 2.0, 4.0, 8.0), counts=(0, 0, 3, 0))
    assert _plain(feature_view(_page(detail={"histogram": histogram})))[5].rstrip() == (
        "activations 2 █ 4 log counts, highest 3"
    )


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
    lines = _plain(feature_view(_page(_example(texts, peak, num_copies=3))), width)
    fires = next(i for i, line in enumerate(lines) if line.startswith("where it fires"))
    assert len(lines) == fires + 2
    assert cell_len(lines[-1]) <= width
    assert "«" in lines[-1]
    assert "»" in lines[-1]


def test_tokens_that_share_a_character_are_one_piece_with_the_strongest_of_their_values() -> None:
    # "é" spans tokens 1 and 2, "漢" tokens 4 to 6; the last of them is the peak
    shared = _example(["caf", "é", " x", "漢", "!"], 6, {1: 2.0, 2: 4.0, 4: 1.0, 7: 0.5},
                      ranges=[(0, 3), (3, 4), (3, 4), (4, 6), (6, 7), (6, 7), (6, 7), (7, 8)])  # fmt: skip
    assert _context_line(shared)[10:].rstrip() == "café x«漢»!"
    styles = _segments(feature_view(_page(shared)))
    assert styles["é"] == MEDIUM
    assert STRONG in styles["漢"]
    assert styles["!"] == WEAK
    # the window is counted in tokens; a piece of which one token is wanted is kept whole
    assert _context_line(shared, window_before=1, window_after=0)[10:].rstrip() == "…«漢»…"
    assert _context_line(shared, window_before=4, window_after=1)[10:].rstrip() == "…é x«漢»!"


def test_a_shared_piece_takes_the_value_furthest_from_zero() -> None:
    shared = _example(["a", "漢"], 0, {1: 3.5, 2: -8.0}, ranges=[(0, 1), (1, 2), (1, 2)])
    assert _segments(feature_view(_page(shared)))["漢"] == STRONG_NEGATIVE


def test_negative_activations_have_a_colour_of_their_own_and_a_minus_sign() -> None:
    example = _example(["none", "weak", "half", "more", "peak", "pos"], 4, {1: -0.1, 2: -4.5, 3: -6.1, 4: -8.0, 5: 7.0})
    styles = _segments(page_view(_page(example, feature={"negative_share": 0.25})))
    assert (styles["weak"], styles["half"], styles["more"]) == (WEAK_NEGATIVE, MEDIUM_NEGATIVE, STRONG_NEGATIVE)
    assert STRONG_NEGATIVE in styles["peak"]
    assert styles["pos"] == STRONG
    assert _context_line(example).startswith("   −8.00  noneweakhalfmore«peak»pos")
    assert any("negative 25\u00a0%" in line for line in _plain(page_view(_page(feature={"negative_share": 0.25}))))


def test_copies_are_counted_at_the_end_of_the_line() -> None:
    texts = [f" t{i}" for i in range(200)]
    line = _context_line(_example(texts, 100, num_copies=1234), 60)
    assert line.rstrip().endswith("…  1,234 copies")
    assert cell_len(line.rstrip()) <= 60
    assert "« t100»" in line
    assert "copies" not in _context_line(_example(texts, 100), 60)
    assert _context_line(_example(texts, 100, num_copies=2), 60).rstrip().endswith("  2 copies")


def _banded_page(**changes: Any) -> FeaturePage:
    """Four strengths of one firing; a near miss and a silent window; everything else that a page can have."""
    values = {
        "bands": tuple(
            Band(kind=kind, number=n, low=low, high=high, num_windows=10 + n, num_tokens=100 * (n + 1), share=share)
            for kind, n, low, high, share in [
                ("quantile", 0, 0.5, 2.0, 0.625),
                ("quantile", 1, 2.0, 9.5, 0.375),
                ("width", 0, 0.5, 5.0, 0.875),
                ("width", 1, 5.0, 9.5, 0.125),
            ]
        ),
        "positions": (5, 0, 40, 10),
        "logit_histogram": Histogram(edges=(-2.0, -1.0, 0.0, 1.0), counts=(1, 50, 2)),
        "neighbours": {
            "decoder": (Neighbour(feature=3, value=0.75), Neighbour(feature=12, value=-0.25)),
            "firing": (Neighbour(feature=5, value=0.5, num_both=1234),),
        },
        "sources": (0.75, 0.25),
    }
    numbers = {
        "mean_activation": 0.03, "std_activation": 0.4, "median_positive": 2.25, "num_windows": 777, "first_firing": 41,
        "last_firing": 99_123, "special_share": 0.125, "decoder_norm": 1.5, "encoder_norm": 2.5, "encoder_bias": -0.125,
        "encoder_decoder_cosine": 0.875, "logit_mean": 0.001, "logit_std": 0.2, "logit_skew": 1.25, "logit_kurtosis": 9.5,
        "map_x": 1.5, "map_y": -2.5, "cluster": 4,
    }  # fmt: skip
    examples = [
        _example(["the", "top"], 1, {1: 9.0}, top_rank=0, quantile_band=1, width_band=1),
        _example(["second", "top"], 0, {0: 8.5}, top_rank=1),
        _example(["quantile", "one"], 0, {0: 3.0}, top_rank=None, quantile_band=1, width_band=0),
        _example(["another", "one"], 0, {0: 2.5}, top_rank=None, quantile_band=1),
        _example(["quantile", "zero"], 1, {1: 0.75}, top_rank=None, quantile_band=0, width_band=0),
        _example(["a", "miss"], 1, {1: 0.0}, top_rank=None, negative="near_miss"),
        _example(["quite", "silent"], 1, {1: 0.0}, top_rank=None, negative="silent"),
    ]
    options: dict[str, Any] = {
        "explanations": (Explanation(text="fires on [x]", method="detection", author="a model", score=0.8125),),
        "tags": ("syntax", "[red]"),
        "notes": (Note(text="see 12", author="Ann", created_at="2026-02-03T04:05:06"),),
        "is_bookmarked": True,
    }
    return _page(*examples, feature=numbers, detail=values, **(options | changes))


def test_the_page_has_all_there_is() -> None:
    lines = [
        line.rstrip() for line in _plain(page_view(_banded_page(), labels={12: "the label"}, link="http://h/tiny/f/7"))
    ]
    text = "\n".join(lines)
    assert lines[0] == "feature 7 of tiny  ★ bookmarked"
    assert "fires on [x]  explained by detection, a model, score 0.812" in lines
    assert "tags syntax, [red]" in lines
    for number in (
        "density 1.23\u00a0% (4,321 firings)", "max 9", "mean 2.5", "median 2.25", "windows it fires in 777",
        "first firing, token 41", "last firing, token 99,123", "cluster 4", "on special tokens 12.5\u00a0%",
        "mean over all tokens 0.03", "std over all tokens 0.4", "decoder norm 1.5", "encoder norm 2.5",
        "encoder bias −0.125", "cosine of encoder and decoder 0.875", "mean logit effect 0.001",
        "std of logit effects 0.2", "skew of logit effects 1.25", "kurtosis of logit effects 9.5",
        "decoder norm in early 0.75", "decoder norm in late 0.25", "place on the map 1.5, −2.5",
    ):  # fmt: skip
        assert number in text, number
    words = [" ".join(line.split()) for line in lines]
    assert "activations 0 █ ▁ 9 log counts, highest 255" in words
    assert "logit effects −2 ▁█▂ 1 log counts, highest 50" in words
    assert "place in window 0 ▁ █▂ 63 highest 40" in words
    assert _from(words, "nearest by decoder row (cosine)") == ["3 0.750", "12 −0.250 the label"]
    assert _from(words, "fires with (phi") == ["5 0.500 1,234"]
    assert lines[-4:] == ["notes", "see 12  Ann 2026-02-03", "", "page: http://h/tiny/f/7"]


def _from(lines: list[str], start: str) -> list[str]:
    """The lines behind the one that begins so, up to the next empty one."""
    first = next(place for place, line in enumerate(lines) if line.startswith(start)) + 1
    return [line.strip() for line in lines[first : first + lines[first:].index("")]]


def test_bands_with_their_reach_and_share_the_strongest_first() -> None:
    lines = [line.rstrip() for line in _plain(page_view(_banded_page()))]
    assert _from(lines, "where it fires most") == ["9.00  the«top»", "8.50  «second»top"]
    assert _from(lines, "at every strength: drawn from bands of equal share") == [
        "quantile 1  2 and above   37.5\u00a0% of firings (200), peak of 11 windows",
        "9.00  the«top»",
        "3.00  «quantile»one",
        "quantile 0  0.5 to 2   62.5\u00a0% of firings (100), peak of 10 windows",
        "0.750  quantile«zero»",
    ]
    assert _from(lines, "near misses") == ["0.00  a«miss»"]
    assert _from(lines, "silent") == ["0.00  quitesilent"]  # no token of it is special


def test_which_bands_is_a_choice() -> None:
    def band_lines(**options: Any) -> list[str]:
        return [line.rstrip() for line in _plain(page_view(_banded_page(), **options))]

    by_width = _from(band_lines(band_kind="width"), "at every strength: drawn from bands of equal width")
    assert by_width[0] == "width 1  5 and above   12.5\u00a0% of firings (200), peak of 11 windows"
    assert not any(line.startswith("at every") for line in band_lines(band_kind=None))
    alone = band_lines(band_kind="quantile", band_number=1, max_examples=3)
    assert _from(alone, "quantile 1  2 and above") == ["9.00  the«top»", "3.00  «quantile»one", "2.50  «another»one"]
    assert not any(line.startswith(("where it fires", "near misses", "silent", "quantile 0")) for line in alone)
    with pytest.raises(ValueError, match="feature 7 has the bands quantile:0, quantile:1, so there is no quantile:2"):
        page_view(_banded_page(), band_number=2)
    with pytest.raises(ValueError, match="feature 7 has no bands of the kind width, so there is no width:0"):
        page_view(_page(), band_kind="width", band_number=0)


def test_no_examples_means_none() -> None:
    lines = _plain(page_view(_banded_page(), max_examples=0, max_band_examples=0))
    assert not any("«" in line for line in lines)


def test_a_band_of_unknown_size() -> None:
    band = Band(kind="width", number=0, low=0.0, high=2.0, num_windows=None, num_tokens=None, share=None)
    lines = _plain(page_view(_page(detail={"bands": (band,)}), band_kind="width"))
    assert "width 0  0 and above" in [line.rstrip() for line in lines]


def test_a_long_label_leaves_the_numbers_of_neighbours_whole() -> None:
    lines = _plain(page_view(_banded_page(), labels={3: "a very long label " * 9, 5: "another " * 30}), 80)
    (first,) = [line for line in lines if "a very long label" in line]
    assert first.split()[:2] == ["3", "0.750"]
    assert "…" in first
    (second,) = [line for line in lines if "another" in line]
    assert second.split()[:3] == ["5", "0.500", "1,234"]


@pytest.mark.parametrize("width", [40, 80])
def test_the_page_fits_into_narrow_terminals(width: int) -> None:
    labels = {3: "a very long label " * 9}
    long = Explanation(text="word " * 60)
    for line in _plain(page_view(_banded_page(explanations=(long,)), labels=labels), width):
        assert cell_len(line) <= width


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


@pytest.mark.parametrize(
    ("name", "title", "shown"),
    [
        ("logit_kurtosis", "logit kurtosis", "3.456"),
        ("num_windows", "windows", "1,234"),
        ("special_share", "special share", "12.5\u00a0%"),
        ("mean_activation", "mean", "0.25"),
        ("recall", "recall", "80\u00a0%"),
    ],
)
def test_the_column_that_is_sorted_by_is_always_there(name: str, title: str, shown: str) -> None:
    record = _feature(3, logit_kurtosis=3.456, num_windows=1234, special_share=0.125, mean_activation=0.25)
    bare = FeatureRecord(index=4, num_firings=0, density=0.0, max_activation=0.0)
    lines = _plain(features_view([record, bare], shown=[name, "density", name]), 80)
    assert lines[1].count(f" {title} ") == 1
    assert lines[1].count("density") == 1
    assert shown in lines[3]
    assert all(cell_len(line) <= 80 for line in lines)


def _summary(**changes: Any) -> Summary:
    page = _page()
    values: dict[str, Any] = {
        "dictionary": page.dictionary, "analysis": page.analysis, "num_features": 1000, "num_dead": 10, "num_dense": 20,
        "num_labelled": 300, "num_explained": 40, "density_quantiles": ((0.0, 0.001), (0.5, 0.02), (1.0, 0.5)),
        "max_quantiles": ((0.0, 1.5), (0.5, 20.0), (1.0, 1234.0)),
        "log_density": Histogram(edges=(-3.0, -2.75, -2.5), counts=(980, 10)),
        "evaluations": (
            EvaluationResult(study="reconstruction", metric="explained_variance", value=0.5, low=0.25, high=0.75),
            EvaluationResult(study="reconstruction", metric="loss_recovered", value=None),
            EvaluationResult(study="probing", metric="[accuracy]", value=0.9, variant="k=1"),
        ),
    }  # fmt: skip
    return Summary(**values | changes)


def test_a_dictionary_at_a_glance() -> None:
    lines = [" ".join(line.split()) for line in _plain(dictionary_view(_summary()), 80)]
    for line in (
        "hook point early, late",
        "analysed 1,000",
        "dead 10 (1 %)",
        "dense 20 (2 %), on more than a tenth of the tokens",
        "labelled 300 (30 %)",
        "explained 40 (4 %)",
        "density 0.001 █▁ 0.0032 log scale, highest 980",
        "least median most",
        "density 0.1 % 2 % 50 %",
        "max 1.5 20 1,234",
        "reconstruction explained variance 0.5 0.25 to 0.75",
        "loss recovered –",
        "probing [accuracy], k=1 0.9",
    ):
        assert line in lines, line


def test_a_dictionary_of_which_nothing_was_analysed() -> None:
    nothing = {"num_dead": 0, "num_dense": 0, "num_labelled": 0, "num_explained": 0, "evaluations": ()}
    empty = _summary(num_features=0, density_quantiles=(), max_quantiles=(), log_density=Histogram(), **nothing)
    lines = [" ".join(line.split()) for line in _plain(dictionary_view(empty), 80)]
    assert "dead 0" in lines
    assert not any("log scale" in line or "most" in line for line in lines)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (10**12, "1,000 GB")],
)
def test_the_size_of_a_store(count: int, words: str) -> None:
    info = StoreInfo(place="here [red]", database="SQLite", num_bytes=count, dictionaries=())
    lines = [" ".join(line.split()) for line in _plain(store_view(info))]
    assert lines[0] == "store here [red]"
    assert f"size {words}" in lines


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
