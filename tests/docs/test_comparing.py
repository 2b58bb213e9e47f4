"""The page about comparing dictionaries: its example runs, and its words and numbers are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()


def test_the_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    numbers, counts = ran.stdout.splitlines()
    value, random = map(float, re.findall(r"\d\.\d\d", numbers))
    assert random + 0.1 < value < 1
    shared, new = map(int, counts.split())
    assert shared == 60
    assert 0 < new <= 68


def test_the_words_and_numbers_are_those_of_the_code():
    from saescope.evaluation.matching.one_to_one import EXACT_LIMIT, NUM_NEIGHBOURS
    from saescope.evaluation.matching.relations import KINDS, RelationConfig

    named = re.findall(r"^\| (\w+) \|", PAGE.split("## What the words mean")[1], re.MULTILINE)
    assert tuple(named) == KINDS
    assert f"Above {EXACT_LIMIT:,} features" in PAGE
    assert f"{NUM_NEIGHBOURS} nearest" in PAGE
    assert f"a cosine of {RelationConfig().shared_cosine} or more" in PAGE


def test_its_commands_have_those_options():
    from typer.main import get_command

    from saescope.cli.app import app

    commands = get_command(app).commands
    lines = re.findall(r"^saescope (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        name, *arguments = line.split()
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known
