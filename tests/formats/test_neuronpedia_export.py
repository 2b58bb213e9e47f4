"""What is written: every line by the tables' schema, the numbers by the store, the folder whole or not at all."""

from __future__ import annotations

import gzip
import json
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import neuronpedia_schema as schema
import numpy as np
import pytest
from planted_features import EMOJI, NUM_TOKENS

from saescope.formats import export_neuronpedia, neuronpedia_url
from saescope.formats.neuronpedia import export as exporting
from saescope.formats.neuronpedia.layout import Place, stable_id
from saescope.formats.neuronpedia.lines import activation_lines, dump_line

pytestmark = pytest.mark.usefixtures("fast_files")


def lines(path: Path) -> list[Any]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def written(folder: Path) -> dict[str, list[Any]]:
    """All lines of a source by table, batches in order."""
    source = folder / "v1" / "gpt2-small" / "6-res-mine"
    found: dict[str, list[Any]] = {}
    for kind in ("features", "activations", "explanations"):
        batches = sorted((source / kind).iterdir(), key=lambda path: int(re.findall(r"\d+", path.name)[0]))
        found[kind] = [line for path in batches for line in lines(path)]
    for path in [*source.glob("*.jsonl"), *(folder / "v1" / "config").glob("*.jsonl")]:
        found[path.stem] = lines(path)
    return found


@pytest.fixture
def exported(filled: Any, tmp_path: Path) -> dict[str, list[Any]]:
    done = export_neuronpedia(filled, tmp_path / "out", model_id="gpt2-small", layer=6, source_set="res-mine")
    assert done.folder == tmp_path / "out"
    assert done.source_id == "6-res-mine"
    assert done.url == "https://www.neuronpedia.org/gpt2-small/6-res-mine"
    found = written(tmp_path / "out")
    assert [done.num_features, done.num_activations, done.num_explanations] == [
        len(found[kind]) for kind in ("features", "activations", "explanations")
    ]
    return found


def test_every_line_fits_its_table(exported: dict[str, list[Any]]) -> None:
    assert exported.keys() - schema.TABLES.keys() == {"explanation_score_model", "explanation_score_type", "eval_type"}
    for kind, table in schema.TABLES.items():
        assert exported[kind], kind
        for line in exported[kind]:
            assert schema.problems(line, table) == []


def test_the_schema_sees_what_is_wrong() -> None:
    line = {"name": "x", "displayName": "x", "description": "", "featured": False, "url": None, "creatorName": "x",
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z"}  # fmt: skip
    table = schema.TABLES["explanation_model_type"]
    assert schema.problems(line, table) == []
    assert schema.problems(line | {"featured": 1}, table)
    assert schema.problems(line | {"createdAt": "2026-01-01"}, table)
    assert schema.problems(line | {"more": 1}, table)
    assert schema.problems({key: value for key, value in line.items() if key != "url"}, table)


def test_features_carry_the_numbers_of_the_store(exported: dict[str, list[Any]], planted: SimpleNamespace) -> None:
    assert [line["index"] for line in exported["features"]] == [str(index) for index in range(7)]
    for line, feature in zip(exported["features"], planted.features, strict=True):
        record, detail = feature.record, feature.detail
        assert line["frac_nonzero"] == record.density == record.num_firings / NUM_TOKENS
        assert line["maxActApprox"] == record.max_activation
        assert (line["umap_x"], line["umap_y"], line["umap_cluster"]) == (record.map_x, record.map_y, record.cluster)
        if record.is_dead:
            assert line["freq_hist_data_bar_heights"] == line["pos_str"] == []
            assert line["umap_log_feature_sparsity"] is None
            assert line["vectorDefaultSteerStrength"] > 0
            continue
        assert line["umap_log_feature_sparsity"] == pytest.approx(np.log10(record.density))
        assert line["freq_hist_data_bar_heights"] == list(detail.histogram.counts)
        assert line["freq_hist_data_bar_values"] == [3.0, 9.0, 15.0]  # centres of 0, 6, 12, 18
        assert line["logits_hist_data_bar_values"] == [-3.0, 1.0, 5.0]
        assert line["pos_str"] == [f" t{i}" for i in range(10)]
        assert line["pos_values"] == [5 - i / 3 for i in range(10)]
        assert line["neg_values"] == [-5 + i / 3 for i in range(10)]
        assert line["topkCosSimIndices"] == [record.index, (record.index + 1) % 7, 3]
        assert line["topkCosSimValues"] == [1.0, 0.75, -0.1]
        assert (line["hasVector"], line["vector"]) == (False, [])


def test_examples_stand_once_in_their_group(exported: dict[str, list[Any]], planted: SimpleNamespace) -> None:
    identities = [line["id"] for line in exported["activations"]]
    assert len(set(identities)) == len(identities) == 6 * 4  # the silent ones and the dead feature have none
    for line in exported["activations"]:
        index, top = int(line["index"]), 8.0 + int(line["index"])
        assert len(line["tokens"]) == len(line["values"]) == 6
        assert line["maxValue"] == max(line["values"]) == line["values"][line["maxValueTokenIndex"]] > 0
        assert line["minValue"] == min(line["values"])
        assert line["creatorId"] == "clkht01d40000jv08hvalcvly"
        if line["binMin"] == -1:
            assert (line["binMax"], line["binContains"]) == (top, -1)
            assert line["maxValue"] in (top, top - 1)
        else:
            assert line["binMin"] <= line["maxValue"] < line["binMax"]
            band = next(
                b for b in planted.features[index].detail.bands if b.kind == "width" and b.low == line["binMin"]
            )
            assert line["binContains"] == band.share
    groups = [[line["binMin"] == -1 for line in exported["activations"] if line["index"] == "4"]]
    assert groups == [[True, True, False, False]]


def test_bands_of_equal_share_if_asked(filled: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_neuronpedia(filled, out, model_id="gpt2-small", source_id="6-res-mine", bands="quantile", indices=[2])
    found = written(out)
    assert [line["index"] for line in found["features"]] == ["2"]
    # one example was drawn for such a band alone; the strongest ones stay where they are
    assert [line["maxValue"] for line in found["activations"]] == [10.0, 9.0, 0.25]
    assert found["activations"][-1]["binMin"] == pytest.approx(10 / 3)


def test_windows_without_a_positive_value_are_not_shown(filled: Any) -> None:
    page = filled.page("small", 2)
    negative = replace(page.examples[0], activation=-2.0, activations=(0.0, -2.0, 0.0, 0.0, 0.0, 0.0), peak=1)
    mixed = replace(page.examples[1], activation=-2.0, activations=(0.0, -2.0, 0.0, 0.5, 0.0, 0.0), peak=1)
    page = replace(page, all_examples=(negative, mixed))
    (line,) = activation_lines(page, Place("m", "1-s", "s"), "me", "now", "width")
    assert (line["maxValue"], line["maxValueTokenIndex"], line["minValue"]) == (0.5, 3, -2.0)


def test_characters_are_whole_and_unfit_ones_replaced(exported: dict[str, list[Any]]) -> None:
    tokens = next(line["tokens"] for line in exported["activations"] if line["dataIndex"] == "chat.txt:7")
    assert tokens == ["x ", "\N{SMILING FACE WITH OPEN MOUTH}", "", "é", " \\u0000\n", "end"]
    assert "".join(tokens) == EMOJI.text.replace("\x00", " ")


def test_no_line_holds_what_the_importer_blanks() -> None:
    for text in ("a\x00b", "\\u0000", "\\\x00", "\\\\u0000", "\\\\\\u0000", "\ud83d alone"):
        data = dump_line({"tokens": [text]})
        assert b"\\u0000" not in data.replace(b"\\u005cu0000", b"")
        assert json.loads(data)["tokens"] == [text.replace("\x00", " ").replace("\ud83d", "\ufffd")]


def test_explanations_and_labels_name_kinds_that_are_there(exported: dict[str, list[Any]]) -> None:
    said = [(line["index"], line["description"], line["typeName"], line["explanationModelName"])
            for line in exported["explanations"]]  # fmt: skip
    assert said == [
        ("0", "greets", None, None),
        ("0", "says hello", "one-shot", "a-model"),
        ("1", "words like f1", "saescope-tokens", None),
        ("2", "numbers", "one-shot", "b-model"),
        ("5", "words like f5", "saescope-tokens", None),
    ]
    assert {line["name"] for line in exported["explanation_type"]} == {"one-shot", "saescope-tokens"}
    assert {line["name"] for line in exported["explanation_model_type"]} == {"a-model", "b-model"}


def test_the_whole_is_described(exported: dict[str, list[Any]]) -> None:
    (source,) = exported["source"]
    assert (source["id"], source["setName"]) == ("6-res-mine", "res-mine")
    assert (source["num_prompts"], source["num_tokens_in_prompt"], source["dataset"]) == (5002, 6, "stdlib")
    assert json.loads(source["saelensConfig"])["d_sae"] == 7
    assert source["hasUmap"] is source["hasUmapClusters"] is True
    assert source["createdAt"] == "2026-03-04T05:06:07.000Z"
    assert exported["sourceset"][0]["releaseName"] == exported["release"][0]["name"] == "res-mine"


@pytest.mark.parametrize("make", [lambda rows: rows, lambda rows: lambda index: rows[index]])
def test_decoder_rows_are_added(make: Any, filled: Any, tmp_path: Path) -> None:
    rows = np.arange(28, dtype=np.float32).reshape(7, 4) / 3
    export_neuronpedia(filled, tmp_path / "out", model_id="gpt2-small", source_id="6-res-mine", vectors=make(rows))
    for index, line in enumerate(written(tmp_path / "out")["features"]):
        assert line["hasVector"]
        assert line["vector"] == [float(value) for value in rows[index]]


def test_batches_hold_whole_features(filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, done = tmp_path / "out", []
    export_neuronpedia(filled, out, model_id="gpt2-small", source_id="6-res-mine", batch_size=2, progress=done.append)
    source = out / "v1" / "gpt2-small" / "6-res-mine"
    assert done == [1, 2, 3, 4, 5, 6, 7]
    features = [[line["index"] for line in lines(source / "features" / f"batch-{n}.jsonl.gz")] for n in range(4)]
    assert features == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]]
    activations = [{line["index"] for line in lines(source / "activations" / f"batch-{n}.jsonl.gz")} for n in range(4)]
    assert activations == [{"0", "1"}, {"2"}, {"4", "5"}, {"6"}]
    # a file without lines would have no first line to take the columns from
    assert {path.name for path in (source / "explanations").iterdir()} == {f"batch-{n}.jsonl.gz" for n in range(3)}

    monkeypatch.setattr(exporting, "_BATCH_BYTES", 1)
    export_neuronpedia(filled, tmp_path / "small", model_id="gpt2-small", source_id="6-res-mine")
    assert len(list((tmp_path / "small" / "v1" / "gpt2-small" / "6-res-mine" / "features").iterdir())) == 7


def test_one_page_is_in_memory_at_a_time(filled: Any, tmp_path: Path) -> None:
    handed_out: list[weakref.ref[Any]] = []

    class Watched:
        dictionary, analysis = filled.dictionary, filled.analysis

        def pages(self, *arguments: Any, **settings: Any) -> Iterator[Any]:
            for page in filled.pages(*arguments, **settings):
                handed_out.append(weakref.ref(page))
                yield page

    def check(done: int) -> None:
        most.append(sum(page() is not None for page in handed_out))

    most: list[int] = []
    store: Any = Watched()
    export_neuronpedia(store, tmp_path / "out", model_id="gpt2-small", source_id="6-res-mine", progress=check)
    assert len(most) == 7
    assert max(most) <= 2  # the one at hand, and the one before until the next is there


def test_the_same_store_gives_the_same_bytes(filled: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_neuronpedia(filled, tmp_path / name, model_id="gpt2-small", source_id="6-res-mine")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_folder_is_there_whole_or_not_at_all(filled: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(done: int) -> None:
        assert (tmp_path / "out.partial").exists()
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_neuronpedia(filled, out, model_id="gpt2-small", source_id="6-res-mine", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []
    (tmp_path / "out.partial" / "left").mkdir(parents=True)  # as a kill leaves it
    export_neuronpedia(filled, out, model_id="gpt2-small", source_id="6-res-mine")
    assert [path.name for path in out.iterdir()] == ["v1"]
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(FileExistsError, match="a folder of its own"):
        export_neuronpedia(filled, out, model_id="gpt2-small", source_id="6-res-mine")


def test_all_files_are_on_the_disk_before_the_name_is(
    filled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.readlink(f"/proc/self/fd/{handle}")))
    rename = Path.rename

    def checked(path: Path, target: Path) -> Path:
        assert {str(found) for found in (path, *path.rglob("*"))} <= synced
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", checked)
    export_neuronpedia(filled, tmp_path / "out", model_id="gpt2-small", source_id="6-res-mine")
    assert str(tmp_path) in synced


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"model_id": "no spaces"}, "no model id"),
        ({"source_id": "res-mine"}, "no source id"),
        ({"source_id": "6-res_mine/../.."}, "no source id"),
        ({"source_id": None}, "say where the dictionary belongs"),
        ({"layer": 6}, "not both"),
        ({"batch_size": 0}, "at least one feature"),
        ({"created_at": "yesterday"}, "no moment"),
        ({"name": "nobody"}, "nobody"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_written(
    names: dict[str, Any], message: str, filled: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_neuronpedia(filled, tmp_path / "out", **{"model_id": "gpt2-small", "source_id": "6-res-mine"} | names)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_addresses_and_identities() -> None:
    assert neuronpedia_url("gemma-2-2b", "20-res-16k__l0-71", 3) == (
        "https://www.neuronpedia.org/gemma-2-2b/20-res-16k__l0-71/3"
    )
    assert neuronpedia_url("a/b", "1-c") == "https://www.neuronpedia.org/a%2Fb/1-c"
    ids = {stable_id("x", str(number)) for number in range(1000)}
    assert len(ids) == 1000
    assert all(schema.CUID.fullmatch(identity) for identity in ids)
    assert stable_id("ab", "c") != stable_id("a", "bc")
