"""A dump with planted activations, written by an independent writer: what is read equals what was planted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_saes_dump import CONTEXT, D_SAE, NUM_TOKENS, Planted, analysis, place_of, sampling, small_dump, top_rows

from saescope.formats import FeatureSet, read_lm_saes
from saescope.store import Store

ROWS = 12


def row_of(document: str, num_shards: int = 1) -> int:
    """The row of the data set behind a window's document."""
    _, *shard, row = document.split(":")
    number = int(shard[0].split("/")[0]) if shard else 0
    return next(r for r in range(ROWS) if place_of(r, ROWS, num_shards) == (number, int(row)))


@pytest.fixture(params=[1, 5])
def num_shards(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def planted(num_shards: int) -> Planted:
    return small_dump(num_shards=num_shards)


@pytest.fixture
def found(planted: Planted, tmp_path: Path) -> FeatureSet:
    return read_lm_saes(planted.writer.write(tmp_path / "dump"))


def test_counts_and_maxima_are_those_planted(found: FeatureSet, planted: Planted) -> None:
    features = [feature.record for feature in found.features]
    assert [record.index for record in features] == list(range(D_SAE))
    assert [record.num_firings for record in features] == planted.act_times
    assert [record.density for record in features] == [times / NUM_TOKENS for times in planted.act_times]
    assert [record.max_activation for record in features] == planted.maxima
    assert [record.is_dead for record in features] == [index == 2 for index in range(D_SAE)]
    assert {record.mean_activation for record in features} == {None}  # a dump does not know it
    assert found.analysis.num_tokens == NUM_TOKENS


def test_examples_hold_the_planted_activations(found: FeatureSet, planted: Planted, num_shards: int) -> None:
    windows = {window.id: window for window in found.windows}
    examples = list(found.examples)
    assert len({(example.feature, example.window_id) for example in examples}) == len(examples)
    for example in examples:
        acts = planted.acts[example.feature][row_of(windows[example.window_id].document, num_shards)]
        assert example.positions == tuple(np.flatnonzero(acts))
        assert example.values == tuple(acts[acts > 0].tolist())
        if example.negative is None:
            assert example.activation == acts.max()
            assert example.peak == acts.argmax()
        else:
            assert not acts.any()


def test_the_strongest_come_in_order_of_their_peaks(found: FeatureSet, planted: Planted, num_shards: int) -> None:
    windows = {window.id: window for window in found.windows}
    for feature in range(D_SAE):
        top = sorted(
            (example for example in found.examples if example.feature == feature and example.top_rank is not None),
            key=lambda example: example.top_rank or 0,
        )
        peaks = planted.acts[feature].max(axis=1)
        expected = [row for row in top_rows(planted, feature) if peaks[row] > 0]
        assert [example.top_rank for example in top] == list(range(len(expected)))
        assert [row_of(windows[example.window_id].document, num_shards) for example in top] == expected


def test_other_samples_lie_in_the_band_of_their_peak(found: FeatureSet, planted: Planted) -> None:
    features = {feature.record.index: feature for feature in found.features}
    drawn = [example for example in found.examples if example.width_band is not None]
    assert drawn
    for example in drawn:
        bands = features[example.feature].detail.bands
        assert [band.number for band in bands] == [0, 1, 2, 3, 4]
        band = bands[example.width_band or 0]
        assert band.low <= example.activation < band.high
        assert (band.num_windows, band.num_tokens, band.share) == (None, None, None)
        assert bands[0].low == 0
        assert [low.high for low in bands[:-1]] == [high.low for high in bands[1:]]
        assert bands[-1].high > planted.maxima[example.feature]
        # equal width, but for the last one's last step
        assert bands[2].low == planted.maxima[example.feature] * 2 / 5


def test_non_activating_samples_that_activate_are_no_silent_ones(found: FeatureSet, planted: Planted) -> None:
    silent = [example for example in found.examples if example.negative is not None]
    assert silent
    assert {example.negative for example in silent} == {"silent"}
    # one in every feature that has weak rows was called so
    num_weak = sum(
        bool(
            ((peaks := planted.acts[feature].max(axis=1)) > 0).any()
            and ((peaks > 0) & (peaks <= peaks.max() / 2)).any()
        )
        for feature in range(D_SAE)
    )
    assert num_weak > 0
    assert found.analysis.details["num_firing_in_non_activating"] == num_weak
    assert any(f"{num_weak} samples called non_activating do activate" in remark for remark in found.remarks)


def test_logits_interpretation_metrics_and_bookmarks(found: FeatureSet) -> None:
    details = [feature.detail for feature in found.features]
    assert [(entry.text, entry.logit) for entry in details[0].top_logits] == [
        (" up0", 3.0),
        (" up1", 2.0),
        (" up2", 1.0),
    ]
    assert [(entry.text, entry.logit) for entry in details[1].bottom_logits] == [
        (" down0", -3.0), (" down1", -2.0), (" down2", -1.0),
    ]  # fmt: skip
    assert details[2].top_logits == ()
    ((index, said),) = found.explanations
    assert (index, said.text, said.method) == (1, "stories of cats", "simple")
    assert said.details == {"passed": True, "steps": [1, None]}
    only, score = found.evaluations
    assert (only.metric, only.value, only.details["by_feature"]) == ("only", 7.0, {"1": 7.0})
    assert (score.metric, score.value, score.details["by_feature"]) == ("score", 0.375, {"0": 0.25, "1": 0.5})
    assert list(found.tags) == [(1, "cats"), (1, "check")]
    assert [(index, note.text, note.created_at) for index, note in found.notes] == [
        (1, "look again", "2025-06-07T08:09:10+00:00")
    ]
    assert list(found.bookmarks) == [1]


def test_the_dictionary_is_described(found: FeatureSet) -> None:
    dictionary = found.dictionary
    assert (dictionary.name, dictionary.series, dictionary.model) == ("tiny-sae", "tries", "gpt-tiny")
    assert (dictionary.d_in, dictionary.d_sae, dictionary.architecture) == (3, 6, "topk")
    assert (dictionary.hook_point, dictionary.hook_point_out) == ("blocks.1.hook_resid_post", "")
    assert dictionary.details["cfg"]["act_fn"] == "topk"
    assert (found.analysis.name, found.analysis.dataset) == ("default", "stories")
    assert found.analysis.details["samplings"]["top_activations"] == 4 * D_SAE


def test_without_text_every_token_says_so(found: FeatureSet, planted: Planted) -> None:
    last: dict[int, int] = {}
    for example in found.examples:
        last[example.window_id] = max(last.get(example.window_id, 0), *example.positions, 0)
    for window in found.windows:
        assert set(window.text) == {"□"}
        assert set(window.token_ids) == {-1}
        assert len(window.token_ids) == last[window.id] + 1
    count = len(list(found.examples))
    assert found.analysis.details["num_examples_without_text"] == count
    assert found.analysis.details["num_windows_without_text"] == len(last)
    assert found.remarks[0].startswith(f"{count} of {count} examples have no text")


def test_a_store_takes_it(found: FeatureSet, planted: Planted, tmp_path: Path) -> None:
    with Store.open(tmp_path / "features.db") as store:
        replace(found, evaluations=(replace(found.evaluations[0], value=1.0),)).write_to(store)
        found.write_to(store, overwrite=True)  # adds nothing twice, and keeps no old number
        page = store.page("tiny-sae", 1)
        assert page.feature.num_firings == planted.act_times[1]
        assert page.examples[0].activation == planted.maxima[1]
        assert (page.tags, page.is_bookmarked, [note.text for note in page.notes]) == (
            ("cats", "check"), True, ["look again"],
        )  # fmt: skip
        assert [said.text for said in page.explanations] == ["stories of cats"]
        assert [(result.metric, result.value) for result in store.evaluations("tiny-sae")] == [
            ("only", 7.0),
            ("score", 0.375),
        ]
        assert store.dictionary("tiny-sae").series == "tries"


# --- what a dump can be like ---


def test_packed_dumps_and_the_folder_of_the_database_itself(
    planted: Planted, found: FeatureSet, tmp_path: Path
) -> None:
    again = read_lm_saes(planted.writer.write(tmp_path / "packed", packed=True) / "mechinterp")
    assert list(again.features) == list(found.features)
    assert list(again.examples) == list(found.examples)
    assert list(again.examples) == list(found.examples)  # as often as one likes


def test_chunks_may_come_in_any_order(tmp_path: Path) -> None:
    planted = small_dump()
    chunks = planted.writer.collections["fs.chunks"]
    assert max(chunk["n"] for chunk in chunks) > 2
    straight = read_lm_saes(planted.writer.write(tmp_path / "a"))
    np.random.default_rng(1).shuffle(chunks)  # type: ignore[arg-type]
    shuffled = read_lm_saes(planted.writer.write(tmp_path / "b"))
    assert list(shuffled.examples) == list(straight.examples)


def test_of_several_runs_under_one_name_the_last_counts(tmp_path: Path) -> None:
    planted = small_dump()
    entry = planted.writer.collections["features"][0]
    entry["analyses"] = [analysis(planted, 1), analysis(planted, 0)]
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"))
    first = next(iter(found.features)).record
    assert (first.num_firings, first.max_activation) == (planted.act_times[0], planted.maxima[0])
    assert any("1 features have the analysis 'default' several times" in remark for remark in found.remarks)


def test_old_dumps_lack_shards_and_counts(tmp_path: Path) -> None:
    planted = small_dump()
    for entry in planted.writer.collections["features"]:
        (found,) = entry["analyses"]
        del found["n_analyzed_tokens"]
        for sample in found["samplings"]:
            sample |= {"shard_idx": None, "n_shards": None}
    dump = planted.writer.write(tmp_path / "dump")
    with pytest.raises(ValueError, match="give num_tokens"):
        read_lm_saes(dump)
    found = read_lm_saes(dump, num_tokens=1000)
    assert next(iter(found.features)).record.density == planted.act_times[0] / 1000
    assert {window.document.count(":") for window in found.windows} == {1}


def test_numbers_given_as_lists_instead_of_files(tmp_path: Path) -> None:
    planted = small_dump()
    (first,) = planted.writer.collections["features"][4]["analyses"]
    first["samplings"] = [
        sampling(planted, "top_activations", 4, [3], context_idx=[3], feature_acts_indices=[[0.0], [5.0]],
                 feature_acts_values=[1.5])
    ]  # fmt: skip
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"))
    (only,) = [example for example in found.examples if example.feature == 4]
    assert (only.positions, only.values, only.top_rank) == ((5,), (1.5,), 0)


def test_indices_may_lie_in_any_order_and_values_may_be_zero(tmp_path: Path) -> None:
    planted = small_dump()
    (first,) = planted.writer.collections["features"][4]["analyses"]
    indices = np.asfortranarray([[1, 0, 1, 0], [4, 8, 2, 0]], dtype=np.float32)  # written column by column
    assert not indices.flags.c_contiguous
    first["samplings"] = [
        sampling(planted, "top_activations", 4, [3, 5], feature_acts_indices=planted.writer.array(indices),
                 feature_acts_values=planted.writer.array(np.float32([1.5, 0.5, 1.0, 0.0])))
    ]  # fmt: skip
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"))
    windows = {window.id: window.document for window in found.windows}
    told = {windows[e.window_id]: (e.positions, e.values, e.peak) for e in found.examples if e.feature == 4}
    assert told == {"stories:3": ((8,), (0.5,), 8), "stories:5": ((2, 4), (1.0, 1.5), 4)}


def test_crosscoders_have_a_norm_per_source(tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.collections["saes"][0]["cfg"] = {
        "sae_type": "crosscoder", "act_fn": "relu", "d_model": 3, "d_sae": 6, "hook_points": ["a", "b"],
    }  # fmt: skip
    for index, entry in enumerate(planted.writer.collections["features"]):
        entry["analyses"][0]["decoder_norms"] = [0.5, 1.5] if index else [0.25]
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"), name="mine")
    assert (found.dictionary.name, found.dictionary.hook_point) == ("mine", "a,b")
    assert found.dictionary.architecture == "relu crosscoder"
    features = list(found.features)
    assert (features[0].record.decoder_norm, features[0].detail.sources) == (0.25, ())
    assert (features[1].record.decoder_norm, features[1].detail.sources) == (None, (0.5, 1.5))


def test_features_without_the_analysis_are_left_out_and_said(tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.collections["features"][3]["analyses"] = []
    planted.writer.collections["bookmarks"][0]["feature_index"] = 3
    planted.writer.add("circuits", raw_graph_id="x")
    found = read_lm_saes(planted.writer.write(tmp_path / "dump"))
    assert [feature.record.index for feature in found.features] == [0, 1, 2, 4, 5]
    assert any("1 of 6 features have no analysis 'default'" in remark for remark in found.remarks)
    assert any("circuits are pickles" in remark for remark in found.remarks)
    assert any("1 bookmarks of features without the analysis were left out" in remark for remark in found.remarks)
    assert (found.tags, found.notes, found.bookmarks) == ((), (), ())


# --- choosing ---


def test_of_several_saes_one_is_chosen(tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.add(
        "saes", name="tiny-sae", series="others", path="", cfg={"d_model": 3, "d_sae": 6}, model_name="m"
    )
    dump = planted.writer.write(tmp_path / "dump")
    with pytest.raises(ValueError, match="choose one by name and series: 'tiny-sae' of the series 'tries', 'tiny-sae'"):
        read_lm_saes(dump, sae="tiny-sae")
    with pytest.raises(ValueError, match="has no SAE with the name 'x' and the series 'tries'; it has 'tiny-sae'"):
        read_lm_saes(dump, sae="x", series="tries")
    with pytest.raises(ValueError, match="has no analysis of the SAE 'tiny-sae'"):
        read_lm_saes(dump, series="others")
    assert read_lm_saes(dump, series="tries").dictionary.series == "tries"


def test_of_several_analyses_one_is_chosen(tmp_path: Path) -> None:
    planted = small_dump()
    planted.writer.collections["features"][0]["analyses"].append(analysis(planted, 0, "second", act_times=1))
    dump = planted.writer.write(tmp_path / "dump")
    with pytest.raises(ValueError, match="has 2 analyses; choose one of default, second"):
        read_lm_saes(dump)
    with pytest.raises(ValueError, match="has no analysis 'third'; it has default, second"):
        read_lm_saes(dump, analysis="third")
    (only,) = read_lm_saes(dump, analysis="second").features
    assert only.record.num_firings == 1


def test_a_place_that_holds_no_dump(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_lm_saes(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"features\.bson is neither in it nor in a folder below"):
        read_lm_saes(tmp_path)
    (tmp_path / "archive").write_bytes(b"")
    with pytest.raises(ValueError, match="an archive is unpacked with"):
        read_lm_saes(tmp_path / "archive")
    dump = small_dump().writer.write(tmp_path / "dump")
    small_dump().writer.write(tmp_path / "dump", database="second")
    with pytest.raises(ValueError, match="holds 2 databases; name the folder of one: mechinterp, second"):
        read_lm_saes(dump)


def test_without_pymongo_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "bson" or name.startswith("bson.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bson", None)
    with pytest.raises(ImportError, match=r"pip install 'saescope\[lm-saes\]'"):
        read_lm_saes(tmp_path)


def test_the_records_hold_json_values(found: FeatureSet) -> None:
    import dataclasses
    import json

    records: list[Any] = [found.dictionary, found.analysis, *found.features, *found.evaluations]
    for record in [*records, *(said for _, said in found.explanations)]:
        json.dumps(dataclasses.asdict(record), allow_nan=False)
    assert replace(found.analysis, context_size=CONTEXT) == found.analysis
