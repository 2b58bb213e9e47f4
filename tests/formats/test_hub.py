"""Listing, fetching and pushing against a small hub on this machine: what is asked, what is kept, what is said on errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Trouble
from safetensors.torch import load_file, save_file

from saescope.dictionaries import BatchTopK, JumpReLU, MatchingPursuit, TopK, save_dictionary
from saescope.formats.hub import Hub, HubSource, Place
from saescope.formats.hub_push import push
from saescope.formats.loading import load, read_foreign
from saescope.formats.model_card import model_card

# huggingface_hub 2.4 sends large files in a way that its own client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LARGE = bytes(range(256)) * 40


@pytest.fixture
def online(monkeypatch):
    """As if the tests were not offline, and with nobody's token; large files go over HTTP."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(online):
    with HubServer() as server:
        server.add("org/repo", {
            "README.md": b"# r", "layer_0/cfg.json": b'{"a": 0}', "layer_1/cfg.json": b'{"a": 1}',
            "layer_1/w.safetensors": LARGE, "layer_1/deep/x.json": b"{}", "layer_1/a/b/c/d.json": b"{}",
        })  # fmt: skip
        yield server


@pytest.fixture
def hub(server, tmp_path) -> Hub:
    return Hub(endpoint=server.endpoint, cache=tmp_path / "cache", waits=(0.01, 0.01))


@pytest.fixture
def private(server, hub):
    server.add("org/private", {"cfg.json": b"{}"}, private=True)
    return "hf:org/private"


@pytest.fixture
def offline(monkeypatch):
    """``offline()``: from here on."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Listing and fetching


def test_one_request_lists_and_nothing_is_fetched(server, hub):
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    assert source.names == ("cfg.json", "deep/x.json", "w.safetensors")  # as deep as on this machine
    assert (source.label, source.only) == ("org/repo/layer_1", "")
    assert server.requests == ["GET /api/models/org/repo"]


def test_only_the_file_that_is_asked_for_is_fetched(server, hub):
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    assert json.loads(source.path("cfg.json").read_text()) == {"a": 1}
    assert server.count("safetensors") == 0
    assert source.path("w.safetensors").read_bytes() == LARGE
    assert server.count("layer_0") == 0
    assert server.count("GET /large/") == 1


def test_what_was_fetched_is_not_fetched_again(server, hub):
    HubSource.of("hf:org/repo/layer_1", hub=hub).path("w.safetensors")
    again = HubSource.of("hf:org/repo/layer_1", hub=hub)
    assert again.path("w.safetensors").read_bytes() == LARGE
    assert server.count("GET /large/") == 1


def test_a_file_by_its_name_and_what_lies_beside_it(server, hub):
    source = HubSource.of("hf:org/repo/layer_1/w.safetensors", hub=hub)
    assert (source.only, source.label) == ("w.safetensors", "org/repo/layer_1")
    assert HubSource.of("hf:org/repo/layer_1/w", hub=hub).only == "w.safetensors"  # named without its ending
    assert source.has("cfg.json")


def test_the_whole_repository(server, hub):
    source = HubSource.of("hf:org/repo", hub=hub)
    assert source.label == "org/repo"
    assert "layer_1/w.safetensors" in source.names


def test_a_revision(server, hub):
    commit = server.add("org/repo", {"layer_0/cfg.json": b'{"a": 9}'}, revision="refs/pr/1")
    for revision in ("refs/pr/1", commit):
        source = HubSource.of(f"hf:org/repo/layer_0@{revision}", hub=hub)
        assert json.loads(source.path("cfg.json").read_text()) == {"a": 9}
    assert json.loads(HubSource.of("hf:org/repo/layer_0", hub=hub).path("cfg.json").read_text()) == {"a": 0}


def test_all_files_are_of_one_commit(server, hub):
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    server.add("org/repo", {"layer_1/cfg.json": b'{"a": "later"}'})
    assert json.loads(source.path("cfg.json").read_text()) == {"a": 1}


def test_a_broken_connection_is_taken_up_where_it_broke(server, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.troubles.append(Trouble("GET /large/", cut_after=4000))
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    assert source.path("w.safetensors").read_bytes() == LARGE
    assert server.ranges == ["bytes=4000-"]


@pytest.mark.parametrize("words", ["GET /api/models", "HEAD /org/repo", "GET /org/repo/resolve", "GET /large/"])
@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_server_in_trouble_is_asked_again(server, hub, monkeypatch, words, status):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.troubles.append(Trouble(words, status=status))
    file = "w.safetensors" if "large" in words else "cfg.json"
    assert HubSource.of("hf:org/repo/layer_1", hub=hub).path(file).is_file()


def test_a_server_that_stays_in_trouble_is_named(server, hub):
    server.troubles.append(Trouble("GET /api/models", status=503, times=99))
    with pytest.raises(ConnectionError, match="error 503, again and again"):
        HubSource.of("hf:org/repo", hub=hub)
    assert server.count("/api/models") == 3


def test_the_token_is_not_sent_to_the_host_of_large_files(server, hub):
    source = HubSource.of("hf:org/repo/layer_1", hub=replace(hub, token="secret"))
    source.path("w.safetensors")
    assert server.leaked == []


# Tokens and what is not there


def test_a_private_repository_opens_with_its_token(private, hub):
    assert HubSource.of(private, hub=replace(hub, token="secret")).path("cfg.json").is_file()


def test_the_token_of_the_environment(private, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert HubSource.of(private, hub=hub).path("cfg.json").is_file()


def test_the_endpoint_of_the_environment(server, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    assert HubSource.of("hf:org/repo/layer_0", hub=replace(hub, endpoint=None)).path("cfg.json").is_file()


def test_a_private_repository_without_a_token(private, hub):
    with pytest.raises(
        FileNotFoundError, match=r"no repository org/private, or it is private: no token was sent \(HF_TOKEN"
    ):
        HubSource.of(private, hub=hub)


def test_no_such_repository(server, hub):
    with pytest.raises(FileNotFoundError, match="the token that was sent does not open it"):
        HubSource.of("hf:org/none", hub=replace(hub, token="secret"))


def test_a_wrong_token(private, hub):
    with pytest.raises(PermissionError, match="token is not valid"):
        HubSource.of(private, hub=replace(hub, token="wrong"))


def test_a_gated_repository(server, hub):
    server.add("org/gated", {"cfg.json": b"{}"}, gated=True)
    with pytest.raises(PermissionError, match="accept its conditions"):
        HubSource.of("hf:org/gated", hub=hub).path("cfg.json")


def test_no_such_revision(server, hub):
    with pytest.raises(FileNotFoundError, match="no revision dev"):
        HubSource.of("hf:org/repo@dev", hub=hub)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("layer_2", "org/repo at main has layer_0, layer_1"),
        ("other", "org/repo at main has layer_0, layer_1"),
        ("layer_1/dep", "org/repo/layer_1 at main has deep"),
        ("layer_1/deep/none", "org/repo/layer_1/deep at main has x.json"),
    ],
)
def test_no_such_folder_shows_those_that_are_there(server, hub, path, words):
    with pytest.raises(FileNotFoundError, match=f"is not there; {words}$"):
        HubSource.of(f"hf:org/repo/{path}", hub=hub)


def test_no_such_file(server, hub):
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    with pytest.raises(FileNotFoundError, match=r"has no file ae\.pt"):
        source.path("ae.pt")
    with pytest.raises(ValueError, match="leads out"):
        source.path("../layer_0/cfg.json")


def test_names_that_lead_out_are_refused(server, hub):
    server.add("org/bad", {"../../evil.json": b"{}"})
    with pytest.raises(ValueError, match="leads out"):
        HubSource.of("hf:org/bad", hub=hub)


def test_nobody_there_is_said_at_once(online, tmp_path):
    hub = Hub(endpoint="http://127.0.0.1:9", cache=tmp_path)
    _ = hub.api  # the import is not measured
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9 can not be reached for org/repo"):
        HubSource.of("hf:org/repo", hub=hub)
    assert time.monotonic() - start < 3


def test_something_that_is_no_hub(server, hub):
    server.repositories["org/repo"].revisions["main"] = "x"
    server.repositories["org/repo"].commits["x"] = {}
    with pytest.raises(OSError, match="error 404"):
        HubSource.of("hf:org/repo", hub=replace(hub, endpoint=f"{server.endpoint}/other"))


def test_what_could_not_be_fetched_is_remembered(server, hub):
    """Formats that look for their own files pass over errors; the reason is not lost."""
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    server.repositories["org/repo"].gated = True
    with pytest.raises(PermissionError):
        source.path("cfg.json")
    assert [type(error) for error in source.failures] == [PermissionError]


# Offline


def test_offline_what_was_fetched_is_there(server, hub, offline):
    HubSource.of("hf:org/repo/layer_1", hub=hub).path("cfg.json")
    before = len(server.requests)
    offline()
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    assert source.names == ("cfg.json",)
    assert json.loads(source.path("cfg.json").read_text()) == {"a": 1}
    assert len(server.requests) == before


def test_offline_nothing_else_is(server, hub, offline):
    HubSource.of("hf:org/repo/layer_1", hub=hub).path("cfg.json")
    offline()
    with pytest.raises(FileNotFoundError, match=r"layer_0 was not fetched before \(HF_HUB_OFFLINE is set\)"):
        HubSource.of("hf:org/repo/layer_0", hub=hub)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set, and nothing of org/none at main"):
        HubSource.of("hf:org/none", hub=hub)
    with pytest.raises(FileNotFoundError, match="nothing of org/repo at dev"):
        HubSource.of("hf:org/repo@dev", hub=hub)


def test_going_offline_between_listing_and_fetching(server, hub, offline):
    source = HubSource.of("hf:org/repo/layer_1", hub=hub)
    offline()
    with pytest.raises(
        FileNotFoundError, match=r"HF_HUB_OFFLINE is set, and hf:org/repo/layer_1/cfg\.json was not fetched"
    ):
        source.path("cfg.json")


def test_without_a_network_the_way_to_what_was_fetched_is_said(server, hub):
    HubSource.of("hf:org/repo/layer_1", hub=hub).path("cfg.json")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE=1 opens that"):
        HubSource.of("hf:org/repo/layer_1", hub=replace(hub, endpoint="http://127.0.0.1:9"))


# Opening and pushing dictionaries


def small(cls=TopK, seed: int = 0, **settings):
    """A dictionary with nothing at its initial value."""
    config = cls.Config(d_in=5, d_sae=12, **settings)
    dictionary = cls(config, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return dictionary


METADATA = {
    "model_name": "org/model",
    "hook_name": "blocks.1.hook_resid_post",
    "context_size": 128,
    "prepend_bos": False,
}
NUMBERS = {"explained_variance": 0.91234, "l0": 3.0, "num_tokens": 12345, "mse": None, "strange": 5,
           "context": {"held_out": {"name": "stdlib"}}}  # fmt: skip
X = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def writer(hub) -> Hub:
    return replace(hub, token="secret")


def test_what_is_pushed_opens_again(server, writer):
    dictionary = small(k=3)
    address = push(dictionary, "hf:org/new/a", metadata=METADATA, evaluation=NUMBERS, hub=writer)
    assert address.startswith(f"{server.endpoint}/org/new/commit/")
    assert set(server.files("org/new")) == {
        ".gitattributes", "README.md", "a/README.md", "a/cfg.json", "a/sae_weights.safetensors",
    }  # fmt: skip
    source = HubSource.of("hf:org/new/a", hub=writer)
    again = load(source)
    torch.testing.assert_close(again(X), dictionary(X), rtol=0, atol=0)
    assert again.metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert server.leaked == []


def test_everything_is_written_before_anything_is_asked(server, writer, monkeypatch):
    """A dictionary that can not be written leaves the hub as it was."""
    from saescope.dictionaries import saving

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(saving, "write_tensors", full)
    with pytest.raises(OSError, match="no space left"):
        push(small(k=3), "hf:org/new", hub=writer)
    assert server.requests == []


def test_a_push_is_one_commit(server, writer):
    push(small(k=3), "hf:org/new", metadata=METADATA, hub=writer)
    assert server.count("/commit/") == 1
    assert len(server.repositories["org/new"].commits) == 2  # the first is of the repository itself
    kinds = [request for request in server.requests if request.startswith(("POST", "PUT"))]
    assert kinds.index(next(k for k in kinds if "/large/" in k)) < kinds.index("POST /api/models/org/new/commit/main")


def test_an_upload_that_fails_commits_nothing(server, writer, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.troubles.append(Trouble("PUT /large/", status=403, times=99))
    with pytest.raises(OSError, match=r"error 403|refuses"):
        push(small(k=3), "hf:org/new", hub=writer)
    assert set(server.files("org/new")) == {".gitattributes"}


def test_private_repositories(server, writer, hub):
    push(small(k=3), "hf:org/mine", private=True, hub=writer)
    assert server.repositories["org/mine"].private
    push(small(k=3), "hf:org/mine/b", private=True, hub=writer)
    push(small(k=3), "hf:org/open", hub=writer)
    assert not server.repositories["org/open"].private
    with pytest.raises(ValueError, match="is there and public"):
        push(small(k=3), "hf:org/open/c", private=True, hub=writer)
    assert "c/cfg.json" not in server.files("org/open")
    with pytest.raises(FileNotFoundError, match="private"):
        HubSource.of("hf:org/mine", hub=hub)


def test_without_a_token_nothing_is_pushed(server, hub):
    with pytest.raises(PermissionError, match="token"):
        push(small(k=3), "hf:org/new", hub=hub)
    assert "org/new" not in server.repositories


def test_a_dictionary_is_not_replaced_unless_asked(server, writer):
    push(small(k=3), "hf:org/new/a", hub=writer)
    with pytest.raises(FileExistsError, match="--overwrite"):
        push(small(k=2), "hf:org/new/a", hub=writer)
    push(small(k=2), "hf:org/new/a", overwrite=True, hub=writer)
    assert json.loads(server.files("org/new")["a/cfg.json"])["k"] == 2
    assert server.files("org/new")["README.md"] != b""


def test_a_card_at_the_top_is_left_as_it_is(server, writer):
    push(small(k=3), "hf:org/repo/mine", hub=writer)
    assert server.files("org/repo")["README.md"] == b"# r"
    assert b"org/repo/mine" in server.files("org/repo")["mine/README.md"]


def test_offline_nothing_is_pushed(server, writer, offline):
    offline()
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push(small(k=3), "hf:org/new", hub=writer)
    assert server.requests == []


def test_the_card(server, writer):
    push(small(k=3), "hf:org/new/a", metadata=METADATA, evaluation=NUMBERS, hub=writer)
    card = server.files("org/new")["a/README.md"].decode()
    import yaml

    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "saelens"
    assert front["base_model"] == "org/model"
    for words in ("A topk sparse autoencoder with 12 features for blocks.1.hook\\_resid\\_post".replace("\\_", "_"),
                  'saescope.load("hf:org/new/a")', 'SAE.from_pretrained("org/new", "a")', "k = 3", "| 0.9123 |",
                  "| 12,345 |", "held-out text of stdlib", "| contexts begin with the special token | False |"):  # fmt: skip
        assert words in card
    assert "strange" not in card
    assert "mean squared error" not in card  # it has no value


def test_the_card_of_what_sae_lens_does_not_have(server, writer):
    push(small(MatchingPursuit, k=3) if "k" in MatchingPursuit.Config.__dataclass_fields__ else small(MatchingPursuit),
         "hf:org/new", hub=writer)  # fmt: skip
    config = json.loads(server.files("org/new")["cfg.json"])
    card = server.files("org/new")["README.md"].decode()
    assert ("SAELens has no architecture" in card) == config["architecture"].startswith("saescope/")
    assert ("load_from_disk(snapshot_download" in card) != config["architecture"].startswith("saescope/")


def test_text_from_files_is_no_markup_in_a_card():
    evil = {"model_name": "a|b\n# big <script>", "hook_name": "[x](y)"}
    card = model_card(small(JumpReLU), Place("org/repo"), metadata=evil, saelens_opens_it=False)
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert "\n# big" not in card
    assert "base_model" not in card
    assert 'library_name: "saescope"' in card


def test_a_batch_topk_is_pushed_as_the_jumprelu_that_it_is(server, writer, tmp_path):
    dictionary = small(BatchTopK, k=3)
    push(dictionary, "hf:org/new", metadata=METADATA, hub=writer)
    save_dictionary(dictionary, tmp_path / "here", metadata=METADATA)
    local = json.loads((tmp_path / "here" / "cfg.json").read_text())
    assert json.loads(server.files("org/new")["cfg.json"]) == local
    assert local["architecture"] == "jumprelu"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf:org/new/a", "hf:org/new"])
def test_the_cards_lines_open_it_in_sae_lens(server, writer, peer_python, tmp_path, target):
    dictionary = small(JumpReLU)
    with torch.no_grad():
        dictionary.threshold.abs_()
    push(dictionary, target, metadata=METADATA, hub=writer)
    card = server.files("org/new")["README.md"].decode()
    ours, theirs = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert f'saescope.load("{target}")' in ours
    save_file({"x": X}, tmp_path / "x.safetensors")
    program = (
        f"{theirs}\nfrom safetensors.torch import load_file, save_file\nx = load_file('x.safetensors')['x']\n"
        "sae = sae[0] if isinstance(sae, tuple) else sae\n"
        "save_file({'f': sae.encode(x).detach(), 'x_hat': sae(x).detach()}, 'found.safetensors')\n"
        "from importlib.metadata import version; print('sae-lens', version('sae-lens'))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment = {**kept, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(
        [str(peer_python), "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    print(ran.stdout.strip().splitlines()[-1])
    found = load_file(tmp_path / "found.safetensors")
    torch.testing.assert_close(found["f"], dictionary.encode(X), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["x_hat"], dictionary(X), rtol=1e-5, atol=1e-6)


def test_headers_alone_give_the_settings(server, writer):
    push(small(k=3), "hf:org/new/a", hub=writer)
    found = read_foreign(HubSource.of("hf:org/new/a", hub=writer, shapes_only=True))
    assert (found.d_in, found.d_sae, found.settings["k"]) == (5, 12, 3)


def test_the_cache_is_the_one_that_all_tools_share(server, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants, try_to_load_from_cache

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "shared"))
    shared = replace(hub, cache=None)
    path = HubSource.of("hf:org/repo/layer_1", hub=shared).path("cfg.json")
    assert try_to_load_from_cache("org/repo", "layer_1/cfg.json", cache_dir=tmp_path / "shared") == str(path)
    assert Path(constants.HF_HUB_CACHE) in path.parents
