"""``saescope push``: a run's dictionary on a small hub, with its numbers on the card."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from saescope.dictionaries import load_dictionary

# huggingface_hub 2.4 sends large files in a way that its own client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def _server_module():
    """The small hub lies beside the tests of formats."""
    path = Path(__file__).parents[1] / "formats" / "hub_server.py"
    spec = importlib.util.spec_from_file_location("hub_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with _server_module().HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_a_run_is_pushed_with_its_numbers(cli, trained, server, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "eval.json").write_text(json.dumps({"explained_variance": 0.8125, "l0": 4.0}))
    ran = cli("push", run, "hf:org/new/mine", "--private")
    assert ran.code == 0, ran.err
    assert "hf:org/new/mine" in ran.out
    assert "eval.json" in ran.out
    assert server.repositories["org/new"].private
    card = server.files("org/new")["mine/README.md"].decode()
    assert "| explained variance | 0.8125 |" in card
    assert "blocks.1.hook_resid_post" in card

    from saescope.formats.hub import HubSource
    from saescope.formats.loading import load

    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    again = load(HubSource.of("hf:org/new/mine"))
    torch.testing.assert_close(again(x), load_dictionary(run / "dictionary")(x), rtol=0, atol=0)


def test_numbers_of_another_file_and_none(cli, trained, server, tmp_path):
    (tmp_path / "other.json").write_text('{"l0": 7}')
    dictionary = shutil.copytree(trained / "dictionary", tmp_path / "alone")
    ran = cli("push", dictionary, "hf:org/a", "--eval", tmp_path / "other.json")
    assert ran.code == 0, ran.err
    assert "(L0) | 7 |" in server.files("org/a")["README.md"].decode()
    ran = cli("push", dictionary, "hf:org/b")
    assert "saescope eval makes them" in ran.out
    assert "## Measured" not in server.files("org/b")["README.md"].decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "org"], "hf:org/repo"),
        (["./nothing", "hf:org/new"], "there is no ./nothing"),
        (["RUN", "hf:org/new", "--eval", "nothing.json"], "nothing.json"),
    ],
)
def test_mistakes_ask_nothing_of_the_hub(cli, trained, server, arguments, words):
    ran = cli("push", *(trained if each == "RUN" else each for each in arguments))
    assert ran.code == 2
    assert words in ran.err
    assert server.requests == []


def test_what_lies_there_is_not_replaced_unless_asked(cli, trained, server):
    assert cli("push", trained, "hf:org/new").code == 0
    ran = cli("push", trained, "hf:org/new")
    assert (ran.code, "--overwrite" in ran.err) == (2, True)
    assert cli("push", trained, "hf:org/new", "--overwrite").code == 0
