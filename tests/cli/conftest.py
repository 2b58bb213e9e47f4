"""A run of the command line in this process, and a small recipe on a saved model and a local text file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPE = """
name = "small"
hook_point = "blocks.1.hook_resid_post"

[model]
name = "{model}"

[dataset]
name = "{dataset}"

[windows]
context_size = 32

[stream]
buffer_size_tokens = 512

[dictionary]
architecture = "topk"
d_sae = 64
k = 4

[training]
num_tokens = 1280
batch_size_tokens = 128
num_warmup_steps = 2
dead_after_tokens = 1000
log_every_n_steps = 2

[evaluation]
num_tokens = 400

[analysis]
num_tokens = 1000
"""


@dataclass(frozen=True)
class Ran:
    """What a command left on the screen."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs ``saescope ARGUMENTS`` in this process."""
    from saescope.__main__ import main

    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["saescope", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        shown = capsys.readouterr()
        return Ran(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def sources(tiny, documents, tmp_path_factory):
    """A folder with ``model`` (a saved Hugging Face model) and ``text.jsonl``."""
    folder = tmp_path_factory.mktemp("sources")
    tiny.module.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    with open(folder / "text.jsonl", "w") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text}) + "\n")
    return folder


@pytest.fixture(scope="session")
def recipe(sources):
    """A small recipe on those sources."""
    path = sources / "small.toml"
    path.write_text(RECIPE.format(model=sources / "model", dataset=sources / "text.jsonl"))
    return path


@pytest.fixture(scope="session")
def trained(recipe, tmp_path_factory) -> Path:
    """The folder of a finished run of that recipe."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["saescope", "train", str(recipe), "--output", str(folder)])
    from saescope.__main__ import main

    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    patch.undo()
    return folder


@pytest.fixture
def stopped_train(cli, monkeypatch):
    """Runs ``saescope train ARGUMENTS`` until the optimizer is to make a certain step, the first being 1: there it fails."""
    import saescope.training.stepper as loop

    def run(at_step, *arguments):
        made, original = 0, loop.UnitNormAdam.step

        def step(self, *settings):
            nonlocal made
            made += 1
            if made == at_step:
                raise OSError("the power went off")
            return original(self, *settings)

        with monkeypatch.context() as patch:
            patch.setattr(loop.UnitNormAdam, "step", step)
            ran = cli("train", *arguments)
        assert (ran.code, made) == (2, at_step), ran.err

    return run
