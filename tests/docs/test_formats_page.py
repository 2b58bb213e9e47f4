"""The page about formats: its examples run, and its table is that of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from saescope.formats.table import with_table

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def test_the_table_is_that_of_the_code():
    assert with_table(PAGE) == PAGE, "run `python -m saescope.formats.table docs/formats.md`"


@pytest.mark.slow
def test_the_examples_run(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [[sys.executable, "-m", *shlex.split(command)] for command in commands.strip().splitlines()]
    printed = []
    for arguments in ([sys.executable, "-W", "error", "-c", program], *lines):
        ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        printed.append(ran.stdout)
    gate, compared, shape, verdict = printed[0].splitlines()
    assert gate.startswith("the k largest")
    assert "the same features fire" in compared
    assert re.fullmatch(r"\[\d+, 256\]", shape)
    assert verdict.startswith("looks wrong: ")  # nobody trained it
    assert "loss recovered" in printed[2]
    assert "written: converted" in printed[3]
