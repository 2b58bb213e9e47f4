"""The page about the web app: its commands run, its options and limits are those there are, its pictures are there."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pages.md").read_text()


def test_the_limits_are_those_of_the_server():
    from saescope.web.guard import Limits
    from saescope.web.network import Networks

    limits = Limits()
    assert f"{limits.body_bytes // 1024} KiB (413)" in PAGE
    assert f"{limits.prompt_characters:,} characters (413)" in PAGE
    assert f"tokens that steering writes | {limits.new_tokens} (422)" in PAGE
    assert f"wait for the model | {Networks.__init__.__kwdefaults__['max_waiting']} (503" in PAGE


def test_its_pictures_are_there():
    named = re.findall(r"\]\((images/[^)]+)\)", PAGE)
    assert named
    for name in named:
        assert (ROOT / "docs" / name).is_file()
    for page in ("home", "features", "feature", "try", "steer", "map", "compare", "training", "runs"):
        for kind in ("desktop-light", "desktop-dark", "phone-light", "phone-dark"):
            assert (ROOT / "docs" / "images" / f"{page}-{kind}.png").is_file()


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    small = (
        " -o windows.max_tokens=20000 -o training.num_tokens=4096 -o dictionary.d_sae=128 -o dictionary.k=16 "
        "-o stream.buffer_size_tokens=4096 -o evaluation.num_tokens=3000 -o analysis.map=pca"
    )
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        command = line.partition("#")[0].strip()
        arguments = shlex.split(command + small if command == "saescope demo" else command)
        program = [sys.executable, "-m", *arguments]
        if arguments[1] != "serve":
            ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert ran.returncode == 0, (command, ran.stderr)
            continue
        store = [] if "--store" in arguments else ["--store", "runs/demo/features.db"]
        with subprocess.Popen(
            [*program, *store, "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert re.match(r"http://127\.0\.0\.1:\d+/", server.stdout.readline()), command
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
    assert (tmp_path / "demo-pages" / "index.html").exists()
    assert (tmp_path / "demo.html").exists()
