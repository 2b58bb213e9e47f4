"""What a reference means: five kinds in their order, clashes, and references that mean nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hub_server import HubServer

from saescope.formats import reference, registry
from saescope.formats.hub import Hub, HubSource, Place
from saescope.formats.reference import meaning, published_source, resolve
from saescope.formats.registry import Published
from saescope.formats.source import LocalSource

PAGE, ID = "gpt2-small/8-res-jb", "gpt2-small-res-jb/blocks.8.hook_resid_pre"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dictionary_at(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "cfg.json").write_text("{}")
    return path


@pytest.fixture
def online(monkeypatch):
    """As if the tests were not offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_folder_a_file_and_a_run(here):
    folder = dictionary_at(here / "mine")
    source = resolve("mine", overrides={"k": 3}, lenient=True, shapes_only=True)
    assert isinstance(source, LocalSource)
    assert (source.folder.resolve(), source.only) == (folder, "")
    assert (source.overrides, source.lenient, source.shapes_only) == ({"k": 3}, True, True)
    assert resolve("mine/cfg.json").only == "cfg.json"
    dictionary_at(here / "runs" / "demo" / "dictionary")
    assert resolve("runs/demo").folder.name == "dictionary"
    assert resolve(Path("mine")).folder == Path("mine")


def test_a_name_in_the_store_comes_first(here):
    folder = dictionary_at(here / "elsewhere" / "x")
    found = meaning("tiny", store_paths=lambda: {"tiny": folder})
    assert found.target == folder
    assert resolve("tiny", store_paths=lambda: {"tiny": str(folder)}).folder == folder


def test_a_name_and_a_path_to_the_same_place_are_no_clash(here):
    folder = dictionary_at(here / "tiny" / "dictionary")
    assert meaning("tiny", store_paths=lambda: {"tiny": folder}).target == folder


def test_a_name_and_another_folder_clash(here):
    dictionary_at(here / "tiny")
    other = dictionary_at(here / "other")
    with pytest.raises(ValueError, match="2 things") as caught:
        resolve("tiny", store_paths=lambda: {"tiny": other})
    assert str(other) in str(caught.value)
    assert "./tiny" in str(caught.value)
    assert resolve("./tiny", store_paths=lambda: {"tiny": other}).folder == Path("tiny")


def test_published_dictionaries_by_id_and_by_page(here):
    by_id, by_page = meaning(ID), meaning(PAGE)
    assert isinstance(by_id.target, Published)
    assert by_id.target == by_page.target == registry.find(ID)


def test_a_folder_named_as_a_page_is_a_clash(here):
    folder = dictionary_at(here / PAGE)
    with pytest.raises(ValueError, match="2 things") as caught:
        resolve(PAGE)
    assert f"./{PAGE}" in str(caught.value)
    assert "Neuronpedia" in str(caught.value)
    place = registry.find(ID).place
    assert place in str(caught.value)
    assert meaning(f"./{PAGE}").target.resolve() == folder
    assert meaning(place).target == Place.parse(place)


def test_a_folder_named_as_a_release_is_a_clash(here):
    dictionary_at(here / ID)
    with pytest.raises(ValueError, match="2 things"):
        meaning(ID)


@pytest.mark.parametrize(
    "ref", ["./gpt2-small/8-res-jb", "../gpt2-small/8-res-jb", "/gpt2-small/8-res-jb", "~/none-such"]
)
def test_what_looks_like_a_path_is_nothing_else(here, ref):
    with pytest.raises(FileNotFoundError, match="there is no"):
        meaning(ref, store_paths=lambda: {ref: "elsewhere"})
    with pytest.raises(FileNotFoundError, match="there is no"):
        meaning(Path(PAGE))


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    dictionary_at(here / "mine")
    assert resolve("~/mine").folder == here / "mine"


@pytest.mark.parametrize(
    ("ref", "place"),
    [
        ("hf:org/repo", Place("org/repo")),
        ("hf:org/repo/", Place("org/repo")),
        ("hf:org/re.po-1/a/b.c", Place("org/re.po-1", "a/b.c")),
        ("hf:org/repo@v1", Place("org/repo", "", "v1")),
        ("hf:org/repo/a@refs/pr/1", Place("org/repo", "a", "refs/pr/1")),
    ],
)
def test_places_on_the_hub(ref, place):
    assert meaning(ref).target == place
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize(
    "ref", ["hf:", "hf:org", "hf:org/", "hf:/repo", "hf:org/repo@", "hf:org//a", "hf:org/repo/../x", "hf:o rg/repo",
            "hf:../repo", "hf:org/..", "hf:org/repo/a//b"]
)  # fmt: skip
def test_places_that_are_none(ref):
    with pytest.raises(ValueError, match=r"names no place|leads out"):
        meaning(ref)


def test_nothing_says_what_was_tried_and_what_is_near(here):
    dictionary_at(here / "mine")
    with pytest.raises(FileNotFoundError) as caught:
        meaning("minne", store_paths=lambda: {"minnie": "x"})
    for words in ("no dictionary in the store", "no folder or file", "registry", "Neuronpedia", "minnie", "mine"):
        assert words in str(caught.value)
    assert "hf:" not in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        meaning("minne", store_paths=None)
    assert "store" not in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "near"),
    [
        ("gpt2-small-res-jb/blocks.8.hook_resid_prre", ID),
        ("gpt2-small-res-jp/blocks.8.hook_resid_pre", ID),
        ("gpt2-small/8-res-jbb", PAGE),
        ("org/repo", "hf:org/repo"),
        ("./minne", "mine"),
    ],
)
def test_the_nearest_names(here, ref, near):
    dictionary_at(here / "mine")
    with pytest.raises(FileNotFoundError, match=near):
        meaning(ref)


def test_a_release_alone_asks_for_an_id(here):
    with pytest.raises(FileNotFoundError, match=r"13 dictionaries; name one, such as gpt2-small-res-jb/blocks.0"):
        meaning("gpt2-small-res-jb")


def test_nothing_is_asked_of_the_network_to_know_what_is_meant(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert meaning(ID).alone.startswith("hf:")


# With a hub


@pytest.fixture
def small_registry(monkeypatch):
    """A registry with one release whose files are on the small hub."""
    line = {
        "release": "rel", "repo": "org/repo", "model": "gpt2-small", "overrides": {"dataset_path": "text"},
        "groups": [{"id": "blocks.{0}.hook_mlp_out", "path": "a/{0}", "neuronpedia": "gpt2-small/{0}-x", "l0": "7",
                    "norm_scaling_factor": "0.5", "columns": ["3 4"]}],
    }  # fmt: skip
    monkeypatch.setattr(registry, "_lines", lambda: {"rel": line})
    registry._expanded.cache_clear()
    yield
    registry._expanded.cache_clear()


@pytest.mark.parametrize("ref", ["rel/blocks.3.hook_mlp_out", "gpt2-small/3-x", "hf:org/repo/a/3"])
def test_what_the_registry_knows_goes_to_the_reader(here, online, small_registry, tmp_path, ref):
    with HubServer() as server:
        server.add("org/repo", {"a/3/cfg.json": b"{}", "a/4/cfg.json": b"{}"})
        source = resolve(ref, hub=Hub(endpoint=server.endpoint, cache=tmp_path / "cache"), overrides={"k": 1})
    assert isinstance(source, HubSource)
    assert (source.label, source.names) == ("org/repo/a/3", ("cfg.json",))
    assert dict(source.overrides) == {"k": 1}  # the user's alone
    assert source.override("norm_scaling_factor") == 0.5
    assert (source.override("k"), source.override("none", 3)) == (1, 3)
    assert source.completed({})["neuronpedia_id"] == "gpt2-small/3-x"
    assert source.completed({})["hook_name"] == "blocks.3.hook_mlp_out"


def test_what_the_user_says_goes_before_the_registry(here, online, small_registry, tmp_path):
    with HubServer() as server:
        server.add("org/repo", {"a/3/cfg.json": b"{}"})
        hub = Hub(endpoint=server.endpoint, cache=tmp_path / "cache")
        source = resolve("gpt2-small/3-x", hub=hub, overrides={"norm_scaling_factor": 2.0})
        assert source.override("norm_scaling_factor") == 2.0
        server.add("org/repo", {"a/3/cfg.json": b"{}"}, revision="dev")
        assert resolve("hf:org/repo/a/3@dev", hub=hub).override("norm_scaling_factor") is None  # other files, perhaps


def test_releases_and_ids_for_those_who_come_from_sae_lens(here, online, small_registry, tmp_path):
    dictionary_at(here / "rel" / "blocks.3.hook_mlp_out")  # no clash: a release and an id are said
    with HubServer() as server:
        server.add("org/repo", {"a/3/cfg.json": b"{}"})
        server.add("org/other", {"x/cfg.json": b"{}"})
        hub = Hub(endpoint=server.endpoint, cache=tmp_path / "cache")
        assert published_source("rel", "blocks.3.hook_mlp_out", hub=hub).label == "org/repo/a/3"
        assert published_source("org/other", "x", hub=hub).label == "org/other/x"
        for release, id in (("rel", "blocks.9.hook_mlp_out"), ("nothing", "x")):
            with pytest.raises(FileNotFoundError, match="no published dictionary"):
                published_source(release, id, hub=hub)


def test_the_alias_opens_it_like_load(monkeypatch):
    from saescope.formats import loading
    from saescope.formats.sae_alias import SAE

    monkeypatch.setattr(reference, "published_source", lambda *a, **k: (a, k))
    monkeypatch.setattr(loading, "load", lambda source, **k: (source, k))
    found, how = SAE.from_pretrained("rel", "x", device="cuda", dtype="bfloat16", lenient=True, k=3)
    assert found == (("rel", "x"), {"lenient": True, "overrides": {"k": 3}})
    assert how == {"device": "cuda", "dtype": "bfloat16"}
    with pytest.raises(TypeError, match="from_pretrained"):
        SAE()


def stored(source: str, path: str = "features.db") -> None:
    """A store here that knows where a dictionary called tiny is."""
    from saescope.store import AnalysisRecord, DictionaryRecord, Store

    record = DictionaryRecord(
        name="tiny", model="m", hook_point="h", architecture="topk", d_in=8, d_sae=16, details={"source": source}
    )
    with Store.open(path) as store:
        store.write(record, AnalysisRecord(dataset="d", context_size=2, num_tokens=3), [], [], [])


def test_the_store_of_this_folder_or_of_the_environment_is_asked(here, monkeypatch):
    folder = dictionary_at(here / "far" / "dictionary")
    with pytest.raises(FileNotFoundError):
        meaning("tiny")
    stored(str(folder.parent))
    assert meaning("tiny").target == folder  # the folder of a run is its dictionary
    assert resolve("tiny").folder == folder
    (here / "features.db").rename(here / "other.db")
    with pytest.raises(FileNotFoundError, match="no dictionary in the store"):
        meaning("tiny")
    monkeypatch.setenv("SAESCOPE_STORE", str(here / "other.db"))
    assert meaning("tiny").target == folder
    with pytest.raises(FileNotFoundError):
        meaning("tiny", store_paths=None)


def test_a_stored_dictionary_that_was_published(here):
    published = meaning("gpt2-small-res-jb/blocks.8.hook_resid_pre", store_paths=None)
    stored("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert meaning("tiny").target == published.target
    assert meaning("tiny").alone == published.alone


def test_a_stored_dictionary_that_is_gone(here):
    stored(str(here / "gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        resolve("tiny")


def test_a_store_that_can_not_be_read_keeps_nobody_from_a_path(here, monkeypatch):
    dictionary_at(here / "mine")
    (here / "features.db").write_text("no database")
    assert resolve("mine").folder.name == "mine"
    monkeypatch.setenv("SAESCOPE_STORE", "mongodb://nobody")
    assert resolve("mine").folder.name == "mine"
