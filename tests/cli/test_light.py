"""Help costs nothing: no command imports the heavy libraries before it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "fastapi", "sqlalchemy", "numpy", "datasets", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["show", "--help"],
        ["train", "--help"],
        ["cache", "--help"],
        ["eval", "--help"],
        ["sweep", "--help"],
        ["advise-l0", "--help"],
        ["match", "--help"],
        ["show", "feature", "--help"],
        ["features", "--help"],
        ["find", "--help"],
        ["steer", "--help"],
        ["attribute", "--help"],
        ["serve", "--help"],
        ["info", "--help"],
        ["convert", "--help"],
        ["list", "pretrained", "--help"],
        ["push", "--help"],
        ["store", "import", "--help"],
        ["export", "neuronpedia", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from saescope.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True)


def test_python_dash_m_shows_the_same_help():
    shown = subprocess.run([sys.executable, "-m", "saescope", "--help"], check=True, capture_output=True, text=True)
    assert "Sparse autoencoders" in shown.stdout


def test_a_mistake_on_the_command_line_shows_no_traceback():
    ran = subprocess.run([sys.executable, "-m", "saescope", "train", "nothing.toml"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("saescope: no recipe nothing.toml")
    assert "Traceback" not in ran.stderr
