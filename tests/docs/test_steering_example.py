"""The pages on finding: their commands and Python run, and the steering example reaches what it promises."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def ran(arguments: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(output: str) -> dict[str, float]:
    """What the example prints of its result."""
    rise = re.search(r"steered (\d\.\d+): ([+-]\d\.\d+)", output)
    kl = re.search(r"KL\(steered \|\| plain\) (\d+\.\d+) nats per token", output)
    moves = [float(move) for move in re.findall(r"^random feature +\d+: ([+-]\d\.\d+)", output, re.MULTILINE)]
    mean = re.search(r"random features on average: ([+-]\d\.\d+)", output)
    return {"rise": float(rise[2]), "kl": float(kl[1]), "num_random": len(moves), "random": float(mean[1])}


def assert_promised(found: dict[str, float]) -> None:
    assert found["rise"] >= 0.3
    assert found["kl"] <= 1.0
    assert found["num_random"] >= 8
    assert abs(found["random"]) < 0.05


@pytest.mark.slow
def test_the_example_finds_a_feature_and_steers_with_it(tmp_path):
    """As it stands: trained, found and steered; and the output on the page says the same."""
    (train,), (program,), (shown,) = (blocks("steering-example.md", language) for language in ("sh", "python", "text"))
    ran(["-m", *shlex.split(train, comments=True)], tmp_path)
    assert_promised(numbers(ran(["-c", program], tmp_path)))
    assert_promised(numbers(shown))


@pytest.mark.slow
def test_the_page_of_finding_runs(tmp_path):
    small = (
        "saescope train demo -o windows.max_tokens=20000 -o training.num_tokens=16384 -o dictionary.d_sae=128 "
        "-o dictionary.k=16 -o stream.buffer_size_tokens=8192"
    )
    ran(["-m", *shlex.split(small)], tmp_path)
    (program,) = blocks("finding.md", "python")
    lines = ran(["-W", "error", "-c", program], tmp_path).splitlines()
    assert len(lines) == 5
    assert "they are one" in lines[-1]


def test_the_shown_output_keeps_the_promise():
    assert_promised(numbers(blocks("steering-example.md", "text")[0]))
