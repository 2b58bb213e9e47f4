"""What is read: a store's own export comes back as it was; sets that others published are read by the same layout."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saescope.formats import FeatureSet, export_neuronpedia, read_neuronpedia
from saescope.formats.neuronpedia.lines import bar_centres, edges_from_centres
from saescope.store import Store
from saescope.store.records import Histogram, Window

pytestmark = pytest.mark.usefixtures("fast_files")

Batches = dict[str, list[list[dict[str, Any]]]]


# --- there and back ---


@pytest.fixture
def read_back(filled: Any, tmp_path: Path) -> FeatureSet:
    export_neuronpedia(filled, tmp_path / "out", model_id="gpt2-small", source_id="6-res-mine", batch_size=3)
    return read_neuronpedia(tmp_path / "out", analysis="again")


def test_features_come_back_unrounded(read_back: FeatureSet, planted: SimpleNamespace) -> None:
    assert read_back.remarks == ()
    found = list(read_back.features)
    assert [feature.record.index for feature in found] == list(range(7))
    for ours, theirs in zip(planted.features, found, strict=True):
        for name in ("num_firings", "density", "max_activation", "map_x", "map_y", "cluster", "label"):
            assert getattr(theirs.record, name) == getattr(ours.record, name), name
        # what the layout has no field for is unknown, not invented
        for name in ("mean_activation", "std_activation", "mean_positive", "median_positive"):
            assert getattr(theirs.record, name) is None
        assert theirs.detail.histogram == ours.detail.histogram  # even bars: halving finds their edges again
        assert theirs.detail.logit_histogram == ours.detail.logit_histogram
        for side in ("top_logits", "bottom_logits"):
            pairs = [(entry.text, entry.logit) for entry in getattr(ours.detail, side)[:10]]
            assert [(entry.text, entry.logit) for entry in getattr(theirs.detail, side)] == pairs
            assert {entry.token_id for entry in getattr(theirs.detail, side)} <= {-1}
        assert [(n.feature, n.value) for n in theirs.detail.neighbours.get("decoder", ())] == [
            (n.feature, n.value) for n in ours.detail.neighbours.get("decoder", ())
        ]


def test_the_dictionary_and_its_analysis_come_back(read_back: FeatureSet, planted: SimpleNamespace) -> None:
    assert replace(read_back.dictionary, details={}) == planted.dictionary
    ours = {"name": "again", "details": {}, "created_at": "2026-03-04T05:06:07.000Z"}
    assert replace(read_back.analysis, **ours) == replace(planted.analysis, **ours)
    assert read_back.analysis.created_at == "2026-03-04T05:06:07.000Z"


def test_examples_come_back_with_their_text(read_back: FeatureSet, planted: SimpleNamespace) -> None:
    windows = {window.id: window for window in read_back.windows}
    texts = {window.id: window.text.replace("\x00", " ") for window in planted.windows}
    assert sorted(window.text for window in windows.values()) == sorted(texts.values())  # shared, none twice
    assert {id for window in windows.values() for id in window.token_ids} == {-1}
    places = {(window.document, window.offset) for window in planted.windows}
    assert {(window.document, window.offset) for window in windows.values()} == places

    def described(example: Any, text: str) -> tuple[Any, ...]:
        return example.feature, text, example.peak, example.activation, example.positions, example.values

    kept = [example for example in planted.examples if example.negative is None]
    ours = {described(example, texts[example.window_id]) for example in kept}
    found = list(read_back.examples)
    assert {described(example, windows[example.window_id].text) for example in found} == ours
    assert len(found) == len(ours)
    by_place = {(example.feature, windows[example.window_id].text): example for example in found}
    for example in kept:
        back = by_place[example.feature, texts[example.window_id]]
        assert back.top_rank == example.top_rank
        assert back.width_band == (None if example.top_rank is not None else back.width_band)
        if back.width_band is not None:
            band = next(f for f in read_back.features if f.record.index == back.feature).detail.bands[back.width_band]
            ours_band = next(
                b for b in planted.features[back.feature].detail.bands if b.kind == "width" and b.low == band.low
            )
            assert (band.low, band.high, band.share, band.num_tokens, band.num_windows) == (
                ours_band.low, ours_band.high, ours_band.share, ours_band.num_tokens, None,
            )  # fmt: skip
            assert ours_band.number == example.width_band


def test_explanations_come_back(read_back: FeatureSet, planted: SimpleNamespace) -> None:
    assert [(index, replace(found, created_at="")) for index, found in read_back.explanations] == planted.explanations


def test_a_store_takes_it_and_shows_the_same_pages(read_back: FeatureSet, filled: Any, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db") as other:
        read_back.write_to(other)
        read_back.write_to(other, overwrite=True)  # a second time changes nothing
        for index in range(7):
            ours, theirs = filled.page("small", index), other.page("small", index)
            assert [(e.window.text.replace("\x00", " "), e.activations) for e in ours.examples] == [
                (e.window.text, e.activations) for e in theirs.examples
            ]
            assert theirs.feature.density == ours.feature.density
            assert theirs.feature.label == ours.feature.label
            said = [(e.text, e.method, e.author, e.score, e.details) for e in ours.explanations]
            assert [(e.text, e.method, e.author, e.score, e.details) for e in theirs.explanations] == said
        again = export_neuronpedia(other, tmp_path / "again", model_id="gpt2-small", source_id="6-res-mine")
        assert (again.num_features, again.num_activations, again.num_explanations) == (7, 24, 5)


# --- sets of others ---

SOURCE = {
    "id": "3-att",
    "modelId": "m",
    "setName": "att",
    "num_prompts": 100,
    "num_tokens_in_prompt": 8,
    "dataset": "d",
}


def feature(index: int, **changes: Any) -> dict[str, Any]:
    return {"modelId": "m", "layer": "3-att", "index": str(index), "maxActApprox": 4.0, "frac_nonzero": 0.05,
            "hookName": "blocks.3.attn.hook_z", "freq_hist_data_bar_heights": [30.0, 10.0],
            "freq_hist_data_bar_values": [1.0, 3.0], **changes}  # fmt: skip


def activation(index: int, tokens: str, values: list[float], **changes: Any) -> dict[str, Any]:
    return {"index": str(index), "tokens": list(tokens), "values": values, "binMin": -1, "binMax": 4.0,
            "binContains": -1, "dataIndex": None, "dataSource": None, **changes}  # fmt: skip


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set as others would: little in it, several batches."""

    def write(source: dict[str, Any] | None = None, **batches: list[list[dict[str, Any]]]) -> Path:
        folder = tmp_path / "m" / "3-att"
        folder.mkdir(parents=True)
        for kind, found in batches.items():
            (folder / kind / "sub").mkdir(parents=True)
            for number, entries in enumerate(found):
                text = "\n".join(json.dumps(entry) for entry in entries)
                (folder / kind / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        (folder / "source.jsonl").write_text(json.dumps(source or SOURCE))
        return tmp_path

    return write


def test_a_published_set_is_read(publish: Callable[..., Path]) -> None:
    batches = [[feature(index)] for index in range(11)]  # batch-10 comes after batch-9
    batches[4] = [feature(4, vector=[3.0, 4.0], topkCosSimIndices=[4, 2], topkCosSimValues=[1, 0.5]) | {"index": 4}]
    batches[7] = [
        feature(7, frac_nonzero=0, maxActApprox=0, freq_hist_data_bar_heights=[], freq_hist_data_bar_values=[])
    ]
    lines = [
        activation(1, "abc", [0, 2.0, 0]),
        activation(0, "abc", [0, 0, 1.5]),
        activation(1, "abd", [0, 3.0, 1.0]),
        activation(1, "xyz", [0, 0, 0]),  # hidden on the site
        activation(1, "efg", [0.5, 0, 0], binMin=0.0, binMax=1.0, binContains=0.75),
        activation(1, "hij", [1.5, 0, 0], binMin=1.0, binMax=2.0, binContains=0.25),
        # drawn for the bin by its second token
        activation(1, "klm", [3.5, 0.25, 0], binMin=0.0, binMax=1.0, binContains=0.75, qualifyingTokenIndex=1),
        activation(1, "abd", [0, 3.0, 1.0], binMin=2.0, binMax=4.0, binContains=0.5),  # the same example again
        activation(1, "abc", [0, 2.0, 0], dataIndex="17"),  # the same text elsewhere
    ]
    found = read_neuronpedia(publish(features=batches, activations=[lines[:4], lines[4:]]))
    assert found.remarks == ("1 examples without a positive activation were left out",)
    assert (found.dictionary.name, found.dictionary.model) == ("m/3-att", "m")
    assert (found.dictionary.d_in, found.dictionary.d_sae, found.dictionary.architecture) == (2, 11, "unknown")
    assert found.dictionary.hook_point == "blocks.3.attn.hook_z"
    assert (found.analysis.num_tokens, found.analysis.context_size, found.analysis.num_windows) == (800, 8, 100)

    features = list(found.features)
    assert [entry.record.index for entry in features] == list(range(11))
    assert features[0].record.num_firings == 40
    assert features[0].detail.histogram == Histogram(edges=(0.0, 2.0, 4.0), counts=(30, 10))
    assert features[4].record.decoder_norm == 5.0
    assert [(n.feature, n.value) for n in features[4].detail.neighbours["decoder"]] == [(2, 0.5)]
    assert features[7].record.is_dead
    assert [(b.low, b.high, b.share, b.num_tokens) for b in features[1].detail.bands] == [
        (0.0, 1.0, 0.75, 30), (1.0, 2.0, 0.25, 10), (2.0, 4.0, 0.5, 20),
    ]  # fmt: skip

    windows = {window.id: window for window in found.windows}
    assert sorted(window.text for window in windows.values()) == ["abc", "abc", "abd", "efg", "hij", "klm"]
    assert len(list(found.windows)) == len(windows)
    told = [
        (windows[e.window_id].text, windows[e.window_id].document, e.peak, e.activation, e.top_rank, e.width_band)
        for e in found.examples
        if e.feature == 1
    ]
    assert told == [
        ("abc", "", 1, 2.0, 1, None),
        ("abd", "", 1, 3.0, 0, 2),
        ("efg", "", 0, 0.5, None, 0),
        ("hij", "", 0, 1.5, None, 1),
        ("klm", "", 1, 0.25, None, 0),
        ("abc", "17", 1, 2.0, 2, None),
    ]


def test_what_the_files_do_not_say_can_be_given(publish: Callable[..., Path]) -> None:
    folder = publish(features=[[feature(0)]])
    bare = read_neuronpedia(folder)
    assert bare.dictionary.d_in == 0
    assert "give d_in" in bare.remarks[0]
    told = read_neuronpedia(folder, name="mine", d_in=12, d_sae=64, architecture="topk")
    assert (told.dictionary.name, told.dictionary.d_in, told.dictionary.d_sae) == ("mine", 12, 64)
    assert told.dictionary.architecture == "topk"
    assert told.remarks == ()
    with pytest.raises(ValueError, match="d_sae is 1"):
        read_neuronpedia(publish_more(folder), d_sae=1)


def publish_more(folder: Path) -> Path:
    path = folder / "m" / "3-att" / "features" / "batch-1.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(feature(1)).encode()))
    return folder


def test_firings_are_counted_from_the_density_where_there_is_no_histogram(publish: Callable[..., Path]) -> None:
    lines = [feature(0, freq_hist_data_bar_heights=None, freq_hist_data_bar_values=None),
             feature(1, freq_hist_data_bar_heights=[], freq_hist_data_bar_values=[], frac_nonzero=1e-9)]  # fmt: skip
    counted = [entry.record.num_firings for entry in read_neuronpedia(publish(features=[lines])).features]
    assert counted == [40, 1]  # 0.05 of 800; one that fires at all is not dead


def test_fillers_are_no_logits(publish: Callable[..., Path]) -> None:
    line = feature(0, pos_str=["a", "b"], pos_values=[2.5, -10000], neg_str=["", "c"], neg_values=[-10000.0, -1])
    (found,) = read_neuronpedia(publish(features=[[line]])).features
    assert [(entry.text, entry.logit) for entry in found.detail.top_logits] == [("a", 2.5)]
    assert [(entry.text, entry.logit) for entry in found.detail.bottom_logits] == [("c", -1)]


def test_explanations_of_others(publish: Callable[..., Path]) -> None:
    lines = [
        {"index": "0", "description": "dogs", "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o",
         "notes": "looks fine", "createdAt": "2024-01-01"},
        {"index": "0", "description": "by a person", "typeName": None, "explanationModelName": None, "notes": None},
    ]  # fmt: skip
    found = read_neuronpedia(publish(features=[[feature(0)]], explanations=[lines])).explanations
    told = [(index, e.text, e.method, e.author, e.details) for index, e in found]
    assert told == [
        (0, "dogs", "oai_token-act-pair", "gpt-4o", {"notes": "looks fine"}),
        (0, "by a person", "human", "", {}),
    ]


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("features", {"index": "one"}, "index is 'one'"),
        ("features", {"index": -1}, "index is -1"),
        ("features", feature(0, frac_nonzero=2), "share from 0 to 1"),
        ("features", feature(0, frac_nonzero="a"), "frac_nonzero holds 'a', expected a finite number"),
        ("features", feature(0, maxActApprox=math.nan), "expected a finite number"),
        ("features", feature(0, freq_hist_data_bar_values=[1.0]), "2 heights but 1 centres"),
        ("features", feature(0, freq_hist_data_bar_heights=[0.5, 1]), "no counts"),
        ("features", feature(0, pos_str=["a"], pos_values=[]), "1 tokens but pos_values 0"),
        ("features", feature(0, pos_str=[1], pos_values=[1]), "expected a list of texts"),
        ("features", feature(0, vector={}), "vector is {}, expected a list of numbers"),
        ("features", feature(9), "feature 9 was there before"),
        ("features", [1], "expected an object"),
        ("activations", activation(9, "ab", [1.0]), "2 tokens but 1 values"),
        ("activations", activation(9, "ab", [1.0, math.inf]), "expected a finite number"),
        ("activations", activation(9, "ab", [1.0, True]), "expected a finite number"),
        ("activations", activation(9, "ab", [1.0, 0.0]) | {"tokens": "ab"}, "expected a list of texts"),
        ("explanations", {"index": "9"}, "description is None"),
        (
            "explanations",
            {"index": "9", "description": "x", "notes": '{"saescope": {"label": 3}}'},
            "label in its notes",
        ),
    ],
)
def test_broken_lines_are_named_by_file_and_number(
    kind: str, line: Any, message: str, publish: Callable[..., Path]
) -> None:
    good: dict[str, Any] = {
        "features": feature(9),
        "activations": activation(9, "ab", [1.0, 0.0]),
        "explanations": {"index": "9", "description": "x"},
    }
    batches = {name: [[entry]] for name, entry in good.items()}
    batches[kind] = [[good[kind]], [line]]
    with pytest.raises(ValueError, match=r"batch-1\.jsonl\.gz, line 1: ") as told:
        read_neuronpedia(publish(**batches))
    assert message in str(told.value)


def test_damaged_files_are_named(publish: Callable[..., Path]) -> None:
    folder = publish(features=[[feature(0), feature(1)]], activations=[[activation(0, "ab", [1.0, 0.0])]])
    path = folder / "m" / "3-att" / "activations" / "batch-0.jsonl.gz"
    whole = path.read_bytes()
    for data, message in [
        (whole[:-9], "after line [01]: the file is damaged or cut off"),
        (whole[:12] + b"\xff\xff\xff" + whole[15:], "the file is damaged or cut off"),
        (b"no gzip", "the file is damaged or cut off"),
        (gzip.compress(b'{"index"'), "line 1: no JSON"),
        (gzip.compress(b'\n\n{"index": "\xff"}'), "line 3: no JSON"),
        (gzip.compress(b"[" * 100_000), "line 1: no JSON"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as told:
            read_neuronpedia(folder)
        assert str(path) in str(told.value)
    path.write_bytes(gzip.compress(json.dumps(activation(5, "ab", [1.0, 0.0])).encode()))
    with pytest.raises(ValueError, match="1 examples of features that are not in it"):
        read_neuronpedia(folder)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**18, 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
WHOLE_LINES = {
    "features": feature(0, pos_str=["a"], pos_values=[1.0], umap_cluster=1, topkCosSimIndices=[1], topkCosSimValues=[0.1]),
    "activations": activation(0, "ab", [1.0, 0.0], binMin=0.5, binContains=0.1, qualifyingTokenIndex=0),
    "explanations": {"index": "0", "description": "x", "typeName": "t", "explanationModelName": "m",
                     "notes": '{"saescope": {"score": 1, "details": {}}}', "createdAt": "now"},
    "source": SOURCE | {"saelensConfig": "{}", "notes": '{"saescope": {}}', "createdAt": "now"},
}  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(sorted(WHOLE_LINES)))
    key = data.draw(st.sampled_from(sorted(WHOLE_LINES[kind])))
    value = data.draw(ANYTHING)
    if kind == "source" and key in ("notes", "saelensConfig"):
        inner = {"num_tokens": value, "band_kind": value, "d_sae": value, "metadata": value, "dictionary": value}
        value = data.draw(st.sampled_from([value, json.dumps(inner), json.dumps({"saescope": inner})]))
    folder = tmp_path / "source"
    for name, line in WHOLE_LINES.items():
        text = json.dumps(line | {key: value} if name == kind else line)
        path = folder / "source.jsonl" if name == "source" else folder / name / "batch-0.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with contextlib.suppress(ValueError, FileNotFoundError):
        found = read_neuronpedia(folder)
        for _ in (*found.features, *found.windows, *found.examples, *found.explanations):
            pass


def test_a_line_without_end_is_not_read_into_memory(
    publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saescope.formats.neuronpedia import checked_lines

    monkeypatch.setattr(checked_lines, "MAX_LINE_BYTES", 400)
    folder = publish(features=[[feature(0, vectorLabel="x" * 400)]])
    with pytest.raises(ValueError, match=r"batch-0\.jsonl\.gz, line 1: it is longer than 400 bytes"):
        read_neuronpedia(folder)


def test_a_folder_without_one_source_is_refused(publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_neuronpedia(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"a source\.jsonl was looked for"):
        read_neuronpedia(tmp_path)
    folder = publish()
    with pytest.raises(FileNotFoundError, match="holds no features"):
        read_neuronpedia(folder)
    (tmp_path / "m" / "4-att").mkdir()
    (tmp_path / "m" / "4-att" / "source.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds 2 sources; name the folder of one of them: m/3-att, m/4-att"):
        read_neuronpedia(folder)


# --- bars ---


@given(st.lists(st.integers(1, 50), min_size=2, max_size=20))
def test_even_bars_come_back_exactly(counts: list[int]) -> None:
    histogram = Histogram(edges=tuple(range(len(counts) + 1)), counts=tuple(counts))
    assert edges_from_centres(bar_centres(histogram), histogram.edges[-1]) == histogram.edges


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=12, unique=True))
def test_edges_of_any_bars_hold_their_centres_and_the_maximum(centres: list[float]) -> None:
    centres = sorted(centres)
    maximum = centres[-1] * 3
    edges = edges_from_centres(centres, maximum)
    assert len(edges) == len(centres) + 1
    assert edges[0] >= 0
    assert edges[-1] >= maximum
    for low, centre, high in zip(edges, centres, edges[1:], strict=False):
        assert low <= centre <= high


def test_no_bars_have_no_edges() -> None:
    assert edges_from_centres([]) == ()


def test_shared_text_is_one_window(read_back: FeatureSet) -> None:
    windows: list[Window] = list(read_back.windows)
    assert len(windows) == 6
    assert len(list(read_back.examples)) == 24
