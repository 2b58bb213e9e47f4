"""The documentation runs: the README's example is executed, the page of commands is what the commands print."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def code_blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run_python(program: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_python_example_of_the_readme_runs(tmp_path):
    (example,) = code_blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    assert re.search(r"0\.\d+", run_python(example, tmp_path))


def test_an_architecture_of_ones_own_trains_through_loop_and_command(tmp_path):
    """The page's class in at most 30 lines, its script, and its commands (with fewer tokens)."""
    page = "docs/own-architecture.md"
    architecture, script = code_blocks("python", page)
    assert len([line for line in architecture.splitlines() if line.strip()]) <= 30
    (tmp_path / "winners.py").write_text(architecture)
    l0 = float(re.search(r"tensor\((.*?)\)", run_python(script, tmp_path))[1])
    assert 0 < l0 <= 8
    train, evaluate = code_blocks("sh", page)[0].strip().splitlines()
    small = (
        " -o training.num_tokens=8192 -o dictionary.d_sae=512 -o windows.max_tokens=20000"
        " -o evaluation.num_tokens=2000 -o stream.buffer_size_tokens=8192"
    )
    for command in (train + small, evaluate):
        arguments = [sys.executable, "-m", *command.split()]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    numbers = json.loads((tmp_path / "runs" / "winners" / "eval.json").read_text())
    assert 0 < numbers["l0"] <= 64


def test_the_page_of_coefficients_computes(tmp_path):
    (example,) = code_blocks("python", "docs/coming-from.md")
    assert run_python(example, tmp_path).strip() == "0.05"


@pytest.mark.slow
def test_the_page_of_caches_runs(tmp_path):
    """Its Python as it stands, its commands with less text."""
    page = "docs/caches.md"
    (example,) = code_blocks("python", page)
    assert "[256]" in run_python(example, tmp_path)
    small = " -o windows.max_tokens=20000 -o training.num_tokens=4096 -o dictionary.d_sae=256"
    small += " -o stream.buffer_size_tokens=4096"
    for command in code_blocks("sh", page)[0].strip().splitlines():
        arguments = [sys.executable, "-m", *(command + small).split()]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs" / "deeper" / "dictionary" / "cfg.json").exists()


@pytest.mark.slow
def test_the_page_of_analysis_runs(tmp_path):
    """Its commands on a small run, its settings, and its Python as it stands."""
    page = "docs/analysis.md"
    small = (
        "saescope train demo -o windows.max_tokens=20000 -o training.num_tokens=4096 -o dictionary.d_sae=256 "
        "-o stream.buffer_size_tokens=4096 -o analysis.map=pca"
    )
    (tmp_path / "notes.jsonl").write_text(
        "".join(json.dumps({"text": f"note {n}: " + "x = 1 " * 90}) + "\n" for n in range(40))
    )
    first, shards = code_blocks("sh", page)
    for command in [small, *first.strip().splitlines(), *shards.strip().splitlines()]:
        arguments = [sys.executable, "-m", *shlex.split(command, comments=True)]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, (command, ran.stderr)
    (settings,) = code_blocks("toml", page)
    (tmp_path / "analysis.toml").write_text(settings)
    from saescope.cli.analysis_file import read_analysis_file

    file = read_analysis_file(tmp_path / "analysis.toml", {})
    assert (file.analysis, file.num_tokens, file.settings["num_bands"]) == ("long", 5_000_000, 8)
    printed = run_python("\n".join(code_blocks("python", page)), tmp_path)
    assert len(printed.splitlines()) == 4


@pytest.mark.slow
def test_the_page_of_evaluation_runs(tmp_path, monkeypatch):
    """Its commands on two small runs and less text, its Python as it stands; the sweep that it names can be read."""
    page = "docs/evaluation.md"
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "kept"))
    small = (
        "-o windows.max_tokens=20000 -o training.num_tokens=4096 -o dictionary.d_sae=256 -o stream.buffer_size_tokens=4096 "
        "-o evaluation.num_tokens=3000"
    )
    first, sweep = code_blocks("sh", page)
    one, studies, both = first.strip().splitlines()
    less = " --num-sample-tokens 12000"
    studies, both = (command.partition(" #")[0] for command in (studies, both))
    trained = [f"saescope train demo {small}", f"saescope train demo {small} -o dictionary.k=32 --output runs/k32"]
    for command in [*trained, one, studies + less, both.replace("all", "core,l0") + less]:
        arguments = [sys.executable, "-m", *shlex.split(command, comments=True)]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, (command, ran.stderr)
    assert (tmp_path / "both" / "report.html").exists()
    (example,) = code_blocks("python", page)
    assert "concepts 0." in run_python(example, tmp_path)
    from saescope.cli.sweep_file import load_sweep

    name = sweep.split()[-1]
    assert len(load_sweep(name).runs(name)) == 30


def test_the_studies_of_the_page_are_those_there_are():
    from saescope.evaluation.studies import CONSISTENCY, STUDIES

    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "evaluation.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*STUDIES, CONSISTENCY}


@pytest.mark.slow
def test_the_page_of_architectures_runs(tmp_path):
    page = "docs/architectures.md"
    compare, example = code_blocks("python", page)
    train = """
import torch
config = ss.TrainingConfig(num_tokens=256, batch_size_tokens=64)
for chosen in (loss, my_loss):
    sae = ss.ReLU(ss.ReLU.Config(d_in=8, d_sae=16))
    result = ss.train(sae, iter(torch.randn(6, 64, 8)), config, loss=chosen)
    print(sorted(result.last.parts))
"""
    printed = run_python(example + train, tmp_path)
    assert "['ghost', 'l1', 'mse']" in printed
    assert "my_loss" in printed
    use = """
model = ss.LanguageModel.load("bundled")
shape = ss.WindowConfig(context_size=64, max_tokens=12_000)
windows = ss.TokenWindows.build(ss.read_documents("bundled"), model.tokenizer, shape)
norms, artefacts = compare([model, model], windows, "blocks.0.hook_resid_post", 4096)
print(list(norms.shape), float(norms.sum(-1).min()), list(artefacts.error.shape))
"""
    printed = run_python(compare + use, tmp_path)
    assert printed.startswith("[1024, 2] ")
    assert printed.endswith(" [1024]\n")
    (recipe,) = code_blocks("toml", page)
    (tmp_path / "steady.toml").write_text(recipe)
    from saescope.cli.recipe import load_recipe

    run = load_recipe(tmp_path / "steady.toml")
    assert run.loss["target_l0"] == 48


def test_the_table_of_architectures_is_whole():
    """Every architecture has its row in the README, and every row names something that is registered."""
    from saescope.dictionaries import architectures

    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    hosts = named[:9]
    wanted = {name.replace("HOST", host) for name in named for host in (hosts if "HOST" in name else [""])}
    wanted -= {"relu_transcoder", "relu_skip_transcoder"}  # plain `transcoder` and `skip_transcoder`
    assert wanted == set(architectures())


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from saescope.cli.app import app

    known = set(get_command(app).commands)
    named = set(re.findall(r"saescope ([a-z0-9-]+)", "\n".join(code_blocks("sh"))))
    assert named
    assert named <= known


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


def test_the_page_of_commands_is_up_to_date():
    spec = importlib.util.spec_from_file_location("commands", Path(__file__).with_name("commands.py"))
    commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
    assert (ROOT / "docs" / "commands.md").read_text() == commands.page(), "run `make docs`"


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"])
def test_the_house_papers_are_there(name):
    assert (ROOT / name).stat().st_size > 200


@pytest.mark.slow
def test_the_page_of_training_runs(tmp_path):
    (example,) = code_blocks("python", "docs/training.md")
    lines = run_python(example, tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["sweep/0-16", "sweep/0-32", "sweep/1-16", "sweep/1-32"]
    assert all((tmp_path / line.split()[0] / "metrics.jsonl").exists() for line in lines)
