"""The page of steering runs: its commands and its Python, on a small run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "steering.md"


@pytest.mark.slow
def test_the_page_of_steering_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("SAESCOPE_STORE", raising=False)
    text = PAGE.read_text()
    small = (
        "saescope train demo -o windows.max_tokens=20000 -o training.num_tokens=16384 -o dictionary.d_sae=128 "
        "-o dictionary.k=16 -o stream.buffer_size_tokens=8192 -o analysis.map=none"
    )
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for command in [small, *commands.strip().splitlines()]:
        arguments = [sys.executable, "-m", *shlex.split(command, comments=True)]
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, (command, ran.stderr)
    assert "perplexity, steered" in ran.stdout
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert re.match(r"(True|False) \d", lines[0])
    assert len([line for line in lines if line.startswith(("b'", 'b"'))]) == 8
