"""The page about attribution: its commands and its Python run as they stand, on a small dictionary."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "attribution.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_methods_and_defaults_are_those_of_the_command():
    import inspect

    from saescope.cli.attribute import Method, attribute
    from saescope.interventions.attribution import integrated_attribution
    from saescope.interventions.attribution.agreement import NUM_DRAWS

    named = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    assert named == [method.value for method in Method]
    assert "`gradient` (the default)" in PAGE
    assert inspect.signature(attribute).parameters["method"].default is Method.gradient
    path = inspect.signature(integrated_attribution).parameters
    assert (path["num_steps"].default, path["tolerance"].default, path["together"].default) == (16, 0.01, False)
    assert NUM_DRAWS == 1000


def test_the_options_of_its_commands_are_there():
    import typer
    from typer.main import get_command

    from saescope.cli.attribute import attribute

    app = typer.Typer()
    app.command()(attribute)
    known = {option for parameter in get_command(app).params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named
    assert named <= known


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    small = (
        "saescope train demo -o windows.max_tokens=20000 -o training.num_tokens=8192 -o dictionary.d_sae=256 "
        "-o dictionary.k=16 -o stream.buffer_size_tokens=8192"
    )
    (commands,) = blocks("sh")
    less = commands.strip().replace("--num-prompts 20", "--num-prompts 3 --prompt-tokens 12")
    for command in [small, *less.splitlines()]:
        arguments = [sys.executable, "-m", *shlex.split(command)]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, (command, ran.stderr)
    assert (tmp_path / "why.png").exists()
    assert "rank correlation with exact ablation" in ran.stdout
    (example,) = blocks("python")
    program = example.replace("runs/demo", str(tmp_path / "runs" / "demo"))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    summed, gap, without = ran.stdout.splitlines()
    assert abs(float(summed.split(": ")[1])) <= 1e-4
    assert float(gap.split()[-2]) <= 0.01
    assert gap.endswith("True")
    before, after = map(float, re.findall(r"-?\d+\.\d+", without))
    assert after < before
