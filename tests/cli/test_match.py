"""``saescope match``: two runs of one recipe, on the screen, as JSON and in a store."""

from __future__ import annotations

import json

import pytest
import torch

from saescope.dictionaries import load_dictionary, read_metadata, save_dictionary
from saescope.store import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label, Store


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """A copy of the trained dictionary in another order, the last eight features of which are strange to it."""
    path = tmp_path_factory.mktemp("other") / "second"
    dictionary, metadata = load_dictionary(trained / "dictionary"), read_metadata(trained / "dictionary")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (dictionary.W_dec, dictionary.encoder_rows, dictionary.b_enc):
            tensor.copy_(tensor[order].clone())
        dictionary.W_dec[56:] *= -1
    save_dictionary(
        dictionary, path, metadata={k: v for k, v in metadata.items() if k != "saescope"}, saescope=metadata["saescope"]
    )
    return path, order


def test_a_table_and_a_file(cli, trained, other, tmp_path):
    path, order = other
    ran = cli("match", trained, path, "--num-tokens", 900, "--json", tmp_path / "deep" / "match.json")
    assert ran.code == 0, ran.err
    for words in ("matched cosine, one-to-one", "matched correlation", "shared", "new", "most alike", "random"):
        assert words in ran.out
    document = json.loads((tmp_path / "deep" / "match.json").read_text())
    assert [document["dictionaries"][x]["d_sae"] for x in "AB"] == [64, 64]
    assert document["dictionaries"]["A"]["l0"] == pytest.approx(4, abs=0.5)
    assert 0 < document["num_tokens"] <= 900
    counts = {row["kind"]: row["num_features"] for row in document["studies"]["relations"]["tables"]["kinds"]}
    assert sum(counts.values()) == 64
    assert counts["shared"] + counts["dead"] >= 50
    for row in document["features"][:56]:
        if row["kind"] == "shared":
            assert row["nearest"] == order[row["feature"]]
            assert row["cosine"] == pytest.approx(1)
    assert all(row["kind"] != "shared" or row["cosine"] < 1 for row in document["features"][56:])
    correlation = document["studies"]["activation_consistency"]["numbers"]["activation_mcc"]["value"]
    assert correlation == pytest.approx(1, abs=1e-5)  # signs of decoder rows play no part
    assert [row["cosine"] for row in document["most_alike"]] == sorted(
        (r["cosine"] for r in document["most_alike"]), reverse=True
    )
    assert not list((tmp_path / "deep").glob("*.partial"))


def test_weights_alone_need_no_model(cli, trained, other):
    ran = cli("match", trained, other[0], "--num-tokens", 0, "--model", "no/such-model")
    assert ran.code == 0, ran.err
    assert "matched cosine, one-to-one" in ran.out
    assert "correlation" not in ran.out
    assert "weights alone" in ran.out


def test_the_store_is_told(cli, trained, other, tmp_path):
    store = tmp_path / "features.db"
    record = DictionaryRecord(name="second", model="m", hook_point="h", architecture="topk", d_in=16, d_sae=64)
    label = Label(text="a label", kind="tokens", precision=1.0, lift=2.0, num_firings=3)
    features = [
        Feature(record=FeatureRecord(index=i, num_firings=3, density=0.1, max_activation=1.0, label=label))
        for i in range(64)
    ]
    with Store.open(store) as opened:
        opened.write(record, AnalysisRecord(dataset="d", context_size=8, num_tokens=9), features, [], [])
    arguments = (
        "match",
        trained,
        other[0],
        "--num-tokens",
        900,
        "--store",
        store,
        "--name",
        "second",
        "--against",
        "first",
    )
    for _ in range(2):
        ran = cli(*arguments)
        assert ran.code == 0, ran.err
    assert "a label" in ran.out
    assert "saescope features second --tag 'new against first'" in ran.out
    with Store.open(store) as opened:
        tags = opened.tags("second")
        numbers = {e.metric: e for e in opened.evaluations("second") if e.study == "relations"}
        assert tags["shared with first"] == numbers["num_shared"].value
        assert tags.get("new against first", 0) == numbers["num_new"].value
        assert numbers["num_new"].variant == "against first"
        shared = opened.features("second", tag="shared with first", limit=1).features[0].index
        assert any(note.text.startswith("against first: shared with") for note in opened.page("second", shared).notes)


def test_what_cannot_be_compared_is_said_first(cli, trained, other, tmp_path):
    ran = cli("match", trained, trained)
    assert ran.code == 2
    assert "--against" in ran.err
    ran = cli("match", trained, tmp_path / "nowhere")
    assert ran.code == 2
    assert "nowhere" in ran.err
    ran = cli("match", trained, other[0], "--store", tmp_path / "none.db", "--against", "a")
    assert ran.code == 2
    assert "there is no store" in ran.err
    dictionary, metadata = load_dictionary(trained / "dictionary"), read_metadata(trained / "dictionary")
    metadata["saescope"]["run"]["model"]["name"] = "another"
    saescope = metadata.pop("saescope")
    save_dictionary(dictionary, tmp_path / "strange", metadata=metadata, saescope=saescope)
    ran = cli("match", trained, tmp_path / "strange")
    assert ran.code == 2
    assert "--num-tokens 0" in ran.err
