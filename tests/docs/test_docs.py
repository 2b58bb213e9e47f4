"""The documentation runs: the README's example is executed, the page of commands is what the commands print."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_python_example_of_the_readme_runs(tmp_path):
    (example,) = code_blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"0\.\d+", ran.stdout)


def test_every_command_of_the_readme_exists():
    from typer.main import get_command

    from saescope.cli.app import app

    known = set(get_command(app).commands)
    named = set(re.findall(r"saescope ([a-z]+)", "\n".join(code_blocks("sh"))))
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
