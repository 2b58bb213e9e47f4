"""Architectures of a user's own: files named with --plugin are run, and no others."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import saescope.dictionaries.base as base
import saescope.training.losses as losses
from saescope.activations import DatasetConfig, TokenWindows, WindowConfig, read_documents
from saescope.dictionaries import load_dictionary
from saescope.evaluation import evaluate

PLUGIN = '''
"""Fires above a fixed level."""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

import saescope as ss
from saescope.dictionaries import transcoder


@dataclass(frozen=True, kw_only=True)
class ShiftedConfig(ss.DictionaryConfig):
    level: float = 0.25


@ss.register("shifted")
class Shifted(ss.Dictionary):
    Config = ShiftedConfig

    def activate(self, pre):
        return F.relu(pre - self.config.level)


transcoder(Shifted)
'''


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Every test begins and ends like a process of its own, which knows nothing of plugins."""
    monkeypatch.setattr(base, "_ARCHITECTURES", dict(base._ARCHITECTURES))
    monkeypatch.setattr(losses, "_LOSSES", dict(losses._LOSSES))
    yield
    for name in [name for name in sys.modules if name.startswith("saescope_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "shifted.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="session")
def own_recipe(recipe) -> Path:
    path = recipe.with_name("shifted.toml")
    text = recipe.read_text().replace('"topk"', '"shifted"').replace("k = 4\n", "level = 0.5\n")
    path.write_text(text.replace("[evaluation]", "[loss]\nl1_coefficient = 1\n\n[evaluation]"))
    return path


@pytest.fixture(scope="session")
def trained_own(own_recipe, plugin, tmp_path_factory) -> Path:
    from saescope.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "shifted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_ARCHITECTURES", dict(base._ARCHITECTURES))
        patch.setattr(
            sys, "argv", ["saescope", "train", str(own_recipe), "--output", str(folder), "--plugin", str(plugin)]
        )
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return folder


def refused(ran, *words: str) -> None:
    """One clear line and exit code 2."""
    assert ran.code == 2
    assert ran.err.startswith("saescope: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.out + ran.err
    for word in words:
        assert word in ran.err


def test_it_trains_and_evaluates(cli, trained_own, plugin, sources, tiny, tmp_path):
    config = json.loads((trained_own / "dictionary" / "cfg.json").read_text())
    assert (config["architecture"], config["level"]) == ("saescope/shifted", 0.5)
    ran = cli("eval", trained_own, "--plugin", plugin, "--json", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    numbers = json.loads((tmp_path / "e.json").read_text())
    dictionary = load_dictionary(trained_own / "dictionary")
    assert type(dictionary).__name__ == "Shifted"
    documents = read_documents(DatasetConfig(name=str(sources / "text.jsonl"), split="held_out"))
    windows = TokenWindows.build(documents, tiny.tokenizer, WindowConfig(context_size=32))
    expected = evaluate(dictionary, tiny, windows, "blocks.1.hook_resid_post", num_tokens=400)
    assert numbers["explained_variance"] == pytest.approx(expected["explained_variance"].value, rel=1e-5)
    assert numbers["ce_loss_spliced"] == pytest.approx(expected["ce_loss_spliced"].value, rel=1e-5)


def test_it_is_analyzed(cli, trained_own, plugin, tmp_path):
    ran = cli("analyze", trained_own, "--plugin", plugin, "--store", tmp_path / "features.db")
    assert ran.code == 0, ran.err
    ran = cli("features", "small", "--store", tmp_path / "features.db")  # the store asks for no plugin
    assert ran.code == 0, ran.err


def test_it_is_resumed(cli, own_recipe, plugin, trained_own, tmp_path, stopped_train):
    options = ["--output", tmp_path / "run", "--plugin", plugin, "-o", "training.checkpoint_every_n_steps=4"]
    stopped_train(7, own_recipe, *options)
    ran = cli("train", own_recipe, *options, "--resume")
    assert ran.code == 0, ran.err
    whole, resumed = (load_dictionary(folder / "dictionary") for folder in (trained_own, tmp_path / "run"))
    for key, tensor in whole.saved_tensors().items():
        assert tensor.equal(resumed.saved_tensors()[key]), key


def test_what_is_made_of_it_is_known_too(cli, own_recipe, plugin, tmp_path):
    options = ["-o", "dictionary.architecture=shifted_transcoder", "-o", "hook_point=blocks.0.hook_mlp_in"]
    options += ["-o", "hook_point_out=blocks.0.hook_mlp_out", "--plugin", plugin]
    ran = cli("train", own_recipe, "--output", tmp_path / "run", *options)
    assert ran.code == 0, ran.err
    ran = cli("eval", tmp_path / "run", "--plugin", plugin)
    assert ran.code == 0, ran.err


def test_several_plugins(cli, own_recipe, plugin, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(PLUGIN.replace("shifted", "moved").replace("Shifted", "Moved"))
    for order in ([plugin, other], [other, plugin]):
        flags = [part for file in order for part in ("--plugin", file)]
        for name in ("shifted", "moved"):
            ran = cli("train", own_recipe, "--output", tmp_path / f"{name}-{order[0].stem}", *flags,
                      "-o", f"dictionary.architecture={name}")  # fmt: skip
            assert ran.code == 0, ran.err


def test_two_plugins_may_have_one_file_name(cli, own_recipe, plugin, tmp_path):
    other = tmp_path / plugin.name
    other.write_text(PLUGIN.replace("shifted", "moved").replace("Shifted", "Moved"))
    for name in ("shifted", "moved"):
        options = ["--plugin", plugin, "--plugin", other, "-o", f"dictionary.architecture={name}"]
        ran = cli("train", own_recipe, "--output", tmp_path / name, *options)
        assert ran.code == 0, ran.err


def test_a_plugin_is_run_once_for_a_command(cli, own_recipe, tmp_path):
    path, diary = tmp_path / "noted.py", tmp_path / "diary"
    path.write_text(PLUGIN + f"\nwith open({str(diary)!r}, 'a') as file: file.write('x')\n")
    assert cli("train", own_recipe, "--output", tmp_path / "run", "--plugin", path).code == 0
    assert diary.read_text() == "x"
    assert cli("eval", tmp_path / "run", "--plugin", path).code == 0
    assert diary.read_text() == "xx"


@pytest.mark.parametrize("command", ["eval", "analyze"])
def test_without_the_plugin_it_is_refused_and_the_way_is_told(cli, trained_own, tmp_path, command):
    ran = cli(command, trained_own, *(["--store", tmp_path / "features.db"] if command == "analyze" else []))
    refused(ran, "shifted", "--plugin")


def test_without_the_plugin_training_is_refused_and_the_way_is_told(cli, own_recipe, tmp_path):
    ran = cli("train", own_recipe, "--output", tmp_path / "run")
    refused(ran, "shifted", "--plugin")
    assert not (tmp_path / "run").exists()


def test_a_dictionary_without_its_recipe_is_refused_and_the_way_is_told(cli, trained_own, tmp_path):
    shutil.copytree(trained_own / "dictionary", tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    del config["metadata"]["saescope"]["run"]
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    refused(cli("eval", tmp_path / "d"), "saescope/shifted", "--plugin")


BROKEN = {
    "raises": ("raise RuntimeError('out of luck')", ["RuntimeError", "out of luck"]),
    "syntax": ("def shifted(:\n", ["SyntaxError"]),
    "import": ("import no_such_module_of_mine", ["no_such_module_of_mine"]),
    "taken": (PLUGIN.replace('"shifted"', '"relu"'), ["'relu'", "taken"]),
    "half": (PLUGIN + "\n1 / 0\n", ["ZeroDivisionError"]),
    "lines": ("raise ValueError('one\\ntwo\\nthree')", ["one"]),
    "exits": ("import sys; sys.exit(3)", ["SystemExit"]),
    "leaves": ("raise SystemExit", ["SystemExit"]),
    "bytes": ("\0", []),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plugin_that_fails_is_one_clear_line(cli, own_recipe, trained_own, tmp_path, case):
    text, words = BROKEN[case]
    path = tmp_path / f"{case}.py"
    path.write_text(text)
    for arguments in (["train", own_recipe, "--output", tmp_path / "run"], ["eval", trained_own]):
        refused(cli(*arguments, "--plugin", path), str(path), *words)
    assert not (tmp_path / "run").exists()
    assert not any(name.startswith("saescope_plugin_") for name in sys.modules)


def test_a_plugin_that_is_no_python_file(cli, own_recipe, tmp_path):
    (tmp_path / "notes.txt").write_text(PLUGIN)
    (tmp_path / "folder").mkdir()
    for name, words in (("none.py", "no plugin"), ("folder", "no plugin"), ("notes.txt", "not a Python file")):
        refused(cli("train", own_recipe, "--output", tmp_path / "run", "--plugin", tmp_path / name), name, words)
    assert not (tmp_path / "run").exists()


# what is run is what the command line names


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A plugin that leaves a mark, beside the recipe, in the working folder and on the path of imports."""
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "shifted.py"
    path.write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\n" + PLUGIN.replace("from __future__ import annotations", "")
    )
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(path.parent))
    return path


def test_the_trap_is_set(cli, own_recipe, trap, tmp_path):
    assert cli("train", own_recipe, "--output", tmp_path / "run", "--plugin", trap).code == 0
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["plugin", "plugins", "dictionary.plugin", "model.plugin"])
def test_a_recipe_that_names_a_plugin_is_refused_unread(cli, own_recipe, trap, tmp_path, key):
    recipe = trap.with_name("named.toml")
    section, _, leaf = key.rpartition(".")
    line = f"{leaf} = {json.dumps(str(trap))}\n"
    text = own_recipe.read_text()
    recipe.write_text(text.replace(f"[{section}]\n", f"[{section}]\n{line}") if section else line + text)
    ran = cli("train", recipe, "--output", tmp_path / "run")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    ran = cli("train", own_recipe, "--output", tmp_path / "run", "-o", f"{key}={trap}")
    assert ran.code == 2
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "form", ["shifted", "shifted.py", "{path}", "shifted:Shifted", "shifted.Shifted", "../here/shifted"]
)
def test_an_architecture_that_reads_like_a_file_is_only_a_name(cli, own_recipe, trap, tmp_path, form):
    name = form.format(path=trap)
    refused(
        cli("train", own_recipe, "--output", tmp_path / "run", "-o", f'dictionary.architecture="{name}"'),
        "unknown architecture",
    )
    assert not (tmp_path / "mark").exists()


def test_a_dictionary_that_opens_without_a_plugin_does_not_get_one_run(cli, trained, trap, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.copy(trap, tmp_path / "run" / "dictionary" / "topk.py")
    path = tmp_path / "run" / "dictionary" / "cfg.json"
    config = json.loads(path.read_text())
    for part in (config["metadata"], config["metadata"]["saescope"]):
        part["plugin"] = part["plugins"] = [str(trap)]
    path.write_text(json.dumps(config))
    ran = cli("eval", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "mark").exists()


def test_a_dictionary_that_names_a_plugin_does_not_get_it_run(cli, trained_own, trap, tmp_path):
    """In cfg.json and run.json, at every place where one might look for it, and with the file lying in the folder."""
    shutil.copytree(trained_own, tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "dictionary"):
        for name in ("plugin.py", "shifted.py", "__init__.py"):
            shutil.copy(trap, folder / name)
    path = tmp_path / "run" / "dictionary" / "cfg.json"
    original = json.loads(path.read_text())
    for place in ("architecture", "metadata", "saescope", "run", "note"):
        config = json.loads(json.dumps(original))
        saescope = config["metadata"]["saescope"]
        if place == "architecture":
            config["architecture"] = str(trap)
        elif place == "metadata":
            config["metadata"]["plugin"] = config["metadata"]["plugins"] = [str(trap)]
        elif place == "saescope":
            saescope["plugin"] = saescope["plugins"] = [str(trap)]
        elif place == "run":
            saescope["run"]["plugin"] = saescope["run"]["plugins"] = [str(trap)]
        else:
            saescope["architecture"] = str(trap)
            del saescope["run"]
        path.write_text(json.dumps(config))
        for arguments in (["eval"], ["analyze", "--store", tmp_path / "features.db"]):
            ran = cli(arguments[0], tmp_path / "run", *arguments[1:])
            assert ran.code == 2, place
            assert "Traceback" not in ran.err
            assert not (tmp_path / "mark").exists(), place
