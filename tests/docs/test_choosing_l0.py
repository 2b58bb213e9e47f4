"""The page on choosing L0 runs: its Python as it stands, its command with fewer tokens."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "choosing-l0.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def ran(arguments: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_of_the_page_finds_the_true_l0(tmp_path):
    (example,) = blocks("python")
    *sentences, warning = ran(["-W", "error", "-c", example], tmp_path).splitlines()
    low, high = map(float, re.fullmatch(r"Recommended L0: (\S+) to (\S+)\.", sentences[-1]).groups())
    assert low < 4.8 < high < 8
    assert "whether they are trained to the end is not known" in sentences[-2]
    assert "looks too high" in warning


@pytest.mark.slow
def test_the_command_of_the_page_runs(tmp_path):
    (command,) = blocks("sh")
    small = (
        " -o windows.max_tokens=20000 -o training.num_tokens=8192 -o dictionary.d_sae=640 -o evaluation.num_tokens=2000"
        " -o stream.buffer_size_tokens=4096 --seeds 1"
    )
    said = ran(["-m", *shlex.split(command + small)], tmp_path)
    # 8 steps are no training: whatever is said, no L0 may be recommended
    assert "No L0 is recommended" in said
    assert {path.name for path in (tmp_path / "runs" / "demo-l0").iterdir()} >= {"l0.png", "l0.json", "sweep.json"}
