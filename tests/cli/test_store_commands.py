"""The commands that look after a store: what is in it, merge, import, export, delete."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from saescope.store import Store


@pytest.fixture
def own(looked_at, tmp_path) -> Path:
    """A copy of the store that may be changed."""
    return Path(shutil.copy(looked_at, tmp_path / "own.db"))


def contents(path) -> dict[str, list[str]]:
    """Names of dictionaries, each with those of its analyses."""
    with Store.open(path, must_exist=True) as store:
        return {record.name: [one.name for one in store.analyses(record.name)] for record in store.dictionaries()}


def pages(path, name) -> list:
    """All pages of a dictionary without what differs from store to store: its name, and ids of remarks."""
    from saescope.web.page_json import page_as_json

    with Store.open(path, must_exist=True) as store:
        found = [
            page_as_json(page)
            for analysis in store.analyses(name)
            for page in store.pages(name, analysis=analysis.name)
        ]
    for page in found:
        del page["dictionary"]["name"], page["analysis"]["created_at"]
        for remark in page["explanations"] + page["notes"]:
            del remark["id"]
    return found


def refused(ran, *words: str) -> None:
    assert ran.code == 2
    assert ran.err.startswith("saescope: ")
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err


def test_info_and_its_json(cli, looked_at):
    ran = cli("store", "info", "--store", looked_at)
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    for line in (
        f"store {looked_at}",
        "dictionary analysis features windows examples tokens",
        "tiny early 2 0 0 6,400",
        "default 8 6 6 6,400",
        "other default 1 0 0 6,400",
        "tiny: 1 explanation, 2 tags, 1 bookmark, 1 note, 1 evaluation result",
    ):
        assert line in lines, (line, lines)
    assert any(line.startswith("database SQLite 3") for line in lines)
    document = json.loads(cli("store", "info", "--store", looked_at, "--json").out)
    assert document["num_bytes"] == looked_at.stat().st_size
    assert [held["dictionary"]["name"] for held in document["dictionaries"]] == ["other", "tiny"]
    assert document["dictionaries"][1]["num_tags"] == 2


def test_info_of_an_empty_store_says_what_fills_it(cli, tmp_path):
    Store.open(tmp_path / "empty.db").close()
    ran = cli("store", "info", "--store", tmp_path / "empty.db")
    assert ran.code == 0
    assert "saescope analyze" in ran.out


def test_export_and_import_under_another_name(cli, looked_at, tmp_path):
    file, target = tmp_path / "tiny.db", tmp_path / "new.db"
    ran = cli("store", "export", "tiny", file, "--store", looked_at)
    assert ran.code == 0, ran.err
    assert contents(file) == {"tiny": ["default"]}  # the newest
    ran = cli("store", "import", file, "--store", target, "--name", "copy")
    assert ran.code == 0, ran.err
    assert "copy" in ran.out
    assert contents(target) == {"copy": ["default"]}
    assert pages(target, "copy") == [page for page in pages(looked_at, "tiny") if page["analysis"]["name"] == "default"]

    refused(cli("store", "export", "tiny", file, "--store", looked_at), "already")
    refused(cli("store", "import", file, "--store", target, "--name", "copy"), "already holds", "overwrite")
    assert cli("store", "import", file, "--store", target, "--name", "copy", "--overwrite").code == 0
    assert contents(target) == {"copy": ["default"]}
    assert cli("store", "export", "tiny", tmp_path / "early.db", "--store", looked_at, "--analysis", "early").code == 0
    assert cli("store", "import", tmp_path / "early.db", "--store", target).code == 0
    assert contents(target) == {"copy": ["default"], "tiny": ["early"]}


def test_merge(cli, looked_at, tmp_path):
    one, other, target = tmp_path / "one.db", tmp_path / "other.db", tmp_path / "all.db"
    cli("store", "export", "tiny", one, "--store", looked_at, "--analysis", "early")
    cli("store", "export", "other", other, "--store", looked_at)
    ran = cli("store", "merge", one, other, "--store", target)
    assert ran.code == 0, ran.err
    assert ran.out == f"from {one}: tiny\nfrom {other}: other\n"
    assert cli("store", "merge", looked_at, "--store", tmp_path / "second.db").code == 0
    assert contents(target) == {"tiny": ["early"], "other": ["default"]}
    assert contents(tmp_path / "second.db") == contents(looked_at)
    assert pages(tmp_path / "second.db", "tiny") == pages(looked_at, "tiny")
    refused(cli("store", "merge", looked_at, "--store", target), "already holds")
    assert contents(target) == {"tiny": ["early"], "other": ["default"]}
    assert cli("store", "merge", looked_at, "--store", target, "--overwrite").code == 0
    assert contents(target) == contents(looked_at)


def test_a_store_that_is_not_there_stops_a_merge_before_it_begins(cli, looked_at, tmp_path):
    refused(cli("store", "merge", looked_at, tmp_path / "none.db", "--store", tmp_path / "all.db"), "none.db")
    assert not (tmp_path / "all.db").exists()
    (tmp_path / "text.db").write_text("hello " * 1000)
    refused(cli("store", "import", tmp_path / "text.db", "--store", tmp_path / "all.db"), "text.db")
    assert not (tmp_path / "all.db").exists()


def test_delete_asks_first(cli, own, monkeypatch):
    before = contents(own)
    refused(cli("store", "delete", "tiny", "--store", own), "tiny", "early, default", "--yes")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    ran = cli("store", "delete", "tiny", "--store", own)
    assert (ran.code, contents(own)) == (1, before)
    assert "nothing was deleted" in ran.out
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    ran = cli("store", "delete", "tiny", "--store", own)
    assert ran.code == 0, ran.err
    assert contents(own) == {"other": ["default"]}


def test_delete_one_analysis(cli, own):
    ran = cli("store", "delete", "tiny", "--analysis", "early", "--store", own, "--yes")
    assert ran.code == 0, ran.err
    assert "deleted the analysis early of tiny" in ran.out
    assert contents(own)["tiny"] == ["default"]
    # the last one takes the dictionary with it, and the question says so
    refused(cli("store", "delete", "tiny", "--analysis", "default", "--store", own), "tiny with its analyses (default)")
    assert cli("store", "delete", "tiny", "--analysis", "default", "--store", own, "-y").code == 0
    assert contents(own) == {"other": ["default"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["delete", "tny", "--yes"], ["'tny'", "'tiny'"]),
        (["delete", "tiny", "--analysis", "late", "--yes"], ["late", "early"]),
        (["export", "tny", "x.db"], ["'tny'", "'tiny'"]),
        (["export", "tiny", "no_such_folder/x.db"], ["no folder no_such_folder"]),
        (["import", "none.db"], ["none.db"]),
        (["import", "none", "--from", "lm-saes"], ["none", "lm-saes"]),
        (["import", "none", "--from", "neuronpedia"], ["none", "neuronpedia"]),
        (["import", "none.db", "--sae", "a", "--context-size", "8"], ["--sae and --context-size", "--from lm-saes"]),
        (["merge", "none.db"], ["none.db"]),
    ],
)
def test_mistakes_are_one_clear_line(cli, own, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = contents(own)
    refused(cli("store", *arguments, "--store", own), *words)
    assert contents(own) == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("own.db")] == []


@pytest.mark.parametrize("command", [["info"], ["export", "tiny", "x.db"], ["delete", "tiny", "--yes"]])
def test_a_store_that_is_not_there_is_not_made(cli, tmp_path, command):
    refused(cli("store", *command, "--store", tmp_path / "none.db"), "none.db")
    assert list(tmp_path.iterdir()) == []


# other tools' formats


def test_to_neuronpedia_and_back(cli, looked_at, tmp_path):
    folder = tmp_path / "bulk"
    options = ["--model-id", "gpt-tiny", "--layer", 1, "--set", "res-mine", "--bands", "quantile", "--creator", "Ann"]
    ran = cli("export", "neuronpedia", "tiny", folder, "--store", looked_at, *options)
    assert ran.code == 0, ran.err
    assert "8 features, 4 examples" in ran.out
    assert "https://www.neuronpedia.org/gpt-tiny/1-res-mine" in ran.out
    ran = cli("store", "import", folder, "--from", "neuronpedia", "--store", tmp_path / "back.db", "--name", "back")
    assert ran.code == 0, ran.err
    assert "next: saescope features back" in ran.out
    with Store.open(looked_at) as before, Store.open(tmp_path / "back.db") as after:
        for one, other in zip(before.pages("tiny"), after.pages("back"), strict=True):
            assert (one.feature.index, one.feature.density) == (other.feature.index, other.feature.density)
            assert one.feature.max_activation == other.feature.max_activation
            for here, there in zip(one.examples, other.examples, strict=True):
                assert (here.window.text, here.activation) == (there.window.text, there.activation)
        assert [said.text for _, said in after.explanations("back", 3)][-1:] == ["names of receivers"]


def test_decoder_rows_go_to_neuronpedia_where_the_weights_are(cli, trained, tmp_path):
    """Of a run's folder; one of another size is refused."""
    import gzip

    from saescope.dictionaries import load_dictionary
    from saescope.store.records import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord

    described = {"model": "m", "hook_point": "h", "architecture": "topk", "d_in": 16}
    feature = Feature(record=FeatureRecord(index=5, num_firings=0, density=0.0, max_activation=0.0, mean_activation=0.0,
                                           std_activation=0.0, mean_positive=0.0, median_positive=0.0))  # fmt: skip
    with Store.open(tmp_path / "some.db") as store:
        analysis = AnalysisRecord(dataset="d", context_size=8, num_tokens=100)
        store.write(DictionaryRecord(name="right", d_sae=64, **described), analysis, [feature], [], [])
        store.write(DictionaryRecord(name="wrong", d_sae=65, **described), analysis, [feature], [], [])
    options = ["--store", tmp_path / "some.db", "--model-id", "m", "--source-id", "1-mine", "--weights", trained]
    ran = cli("export", "neuronpedia", "right", tmp_path / "out", *options)
    assert ran.code == 0, ran.err
    (file,) = (tmp_path / "out").rglob("features/*.gz")
    vector = json.loads(gzip.decompress(file.read_bytes()))["vector"]
    assert vector == load_dictionary(trained / "dictionary").W_dec[5].tolist()
    ran = cli("export", "neuronpedia", "wrong", tmp_path / "other", *options)
    refused(ran, "[64, 16]", "65")
    assert not (tmp_path / "other").exists()


def test_mistakes_of_an_export_are_one_clear_line(cli, looked_at, tmp_path):
    options = ["--store", looked_at, "--model-id", "gpt-tiny"]
    refused(cli("export", "neuronpedia", "tiny", tmp_path / "out", *options), "layer")
    refused(cli("export", "neuronpedia", "tny", tmp_path / "out", *options, "--source-id", "1-x"), "'tny'")
    refused(cli("export", "neuronpedia", "tiny", tmp_path, *options, "--source-id", "1-x"), "exists")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def dump(tmp_path) -> Path:
    """What mongodump writes of one dictionary with one feature, which fires in the second row of its data set."""
    import bson
    import numpy as np

    files, chunks = [], []

    def stored(values, dtype):
        data = io.BytesIO()
        np.save(data, np.array(values, dtype=dtype))
        identity = bson.ObjectId()
        files.append({"_id": identity, "length": len(data.getvalue()), "chunkSize": 261_120})
        chunks.append({"_id": bson.ObjectId(), "files_id": identity, "n": 0, "data": data.getvalue()})
        return identity

    sampling = {
        "name": "top_activations",
        "feature_acts_indices": stored([[0, 0], [1, 3]], np.float32),
        "feature_acts_values": stored([0.5, 2.5], np.float32),
        "context_idx": stored([1], np.int64),
        "shard_idx": stored([0], np.int64),
        "n_shards": stored([1], np.int64),
        "dataset_name": ["stories"],
        "model_name": ["gpt-tiny"],
    }
    analysis = {
        "name": "main",
        "act_times": 2,
        "max_feature_acts": 2.5,
        "n_analyzed_tokens": 100,
        "samplings": [sampling],
    }
    named = {"sae_name": "sae-1", "sae_series": "mine"}
    config = {"sae_type": "sae", "act_fn": "topk", "hook_point_in": "h.1", "hook_point_out": "h.1", "d_model": 16,
              "expansion_factor": 4}  # fmt: skip
    collections = {
        "saes": [{"name": "sae-1", "series": "mine", "path": "x", "cfg": config, "model_name": "gpt-tiny"}],
        "analyses": [{"name": "main", **named}],
        "features": [{**named, "index": 7, "analyses": [analysis]}],
        "fs.files": files,
        "fs.chunks": chunks,
    }
    folder = tmp_path / "dump" / "mechinterp"
    folder.mkdir(parents=True)
    for name, documents in collections.items():
        (folder / f"{name}.bson").write_bytes(b"".join(map(bson.encode, documents)))
    return tmp_path / "dump"


ROWS = [{"text": "def alpha(x)"}, {"text": "return beta + gamma"}]


def _write_rows(kind: str, folder: Path) -> str:
    from datasets import Dataset, DatasetDict

    if kind == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return str(folder / "rows.jsonl")
    saved = Dataset.from_list(ROWS)
    if kind == "saved splits":
        saved = DatasetDict({"train": saved})
    saved.save_to_disk(str(folder / "rows"))
    return str(folder / "rows")


@pytest.mark.parametrize("kind", ["jsonl", "saved", "saved splits"])
@pytest.mark.parametrize("named", [False, True])
def test_from_lm_saes_with_its_text(cli, dump, sources, tokenizer, tmp_path, kind, named):
    target = tmp_path / "got.db"
    place = ("stories=" if named else "") + _write_rows(kind, tmp_path)
    ran = cli("store", "import", dump, "--from", "lm-saes", "--store", target, "--name", "theirs", "--no-bos",
              "--dataset", place, "--tokenizer", sources / "model", "--context-size", 6)  # fmt: skip
    assert ran.code == 0, ran.err
    with Store.open(target) as store:
        page = store.page("theirs", 7)
    (example,) = page.examples
    assert example.window.token_ids == tuple(tokenizer(ROWS[1]["text"])["input_ids"][:6])
    assert example.window.text == tokenizer.decode(example.window.token_ids)
    assert (example.peak, example.activation, example.activations[1]) == (3, 2.5, 0.5)
    assert (page.feature.num_firings, page.feature.density, page.dictionary.d_sae) == (2, 0.02, 64)
    assert "2.50" in cli("show", "feature", "theirs", 7, "--store", target).out


def test_from_lm_saes_without_its_text_says_so(cli, dump, tmp_path):
    ran = cli("store", "import", dump, "--from", "lm-saes", "--store", tmp_path / "got.db")
    assert ran.code == 0, ran.err
    assert "text" in ran.out
    assert contents(tmp_path / "got.db") == {"sae-1": ["main"]}
    ran = cli("store", "import", dump, "--from", "lm-saes", "--store", tmp_path / "got.db")
    refused(ran, "overwrite")
    ran = cli("store", "import", dump, "--from", "lm-saes", "--store", tmp_path / "got.db", "--overwrite")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sae", "sae-2"], ["sae-2", "sae-1"]),
        (["--dataset", "{rows}"], ["--tokenizer and --context-size"]),
        (["--dataset", "{rows}", "--tokenizer", "{model}", "--context-size", "6", "--column", "txt"], ["txt", "text"]),
        (["--dataset", "./none.jsonl", "--tokenizer", "{model}", "--context-size", "6"], ["none.jsonl"]),
        (["--dataset", "{rows}", "--tokenizer", "./none", "--context-size", "6"], ["none"]),
        (
            ["--dataset", "{rows}", "--dataset", "{rows}", "--tokenizer", "{model}", "--context-size", "6"],
            ["NAME=DATA"],
        ),
    ],
)
def test_mistakes_of_an_import_are_one_clear_line(cli, dump, sources, tmp_path, options, words):
    rows = _write_rows("jsonl", tmp_path)
    options = [option.format(rows=rows, model=sources / "model") for option in options]
    refused(cli("store", "import", dump, "--from", "lm-saes", "--store", tmp_path / "got.db", *options), *words)
    if (tmp_path / "got.db").exists():
        assert contents(tmp_path / "got.db") == {}


def test_without_pymongo_it_says_what_to_install(cli, dump, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bson", None)
    refused(cli("store", "import", dump, "--from", "lm-saes", "--store", tmp_path / "got.db"), "saescope[lm-saes]")
