"""What tests beside other libraries share: a script runs in their environment, and its numbers are compared with ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saescope.formats.foreign import Foreign


def run_peer(python: Path, script: Path, command: str, folder: Path) -> str:
    """What the script prints, the library's version first."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    ran = subprocess.run(
        [python, script, command, folder], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    print(ran.stdout)
    return ran.stdout


def assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assert_computes(foreign: Foreign, expected: Mapping[str, Tensor]) -> None:
    """In both precisions: ``f`` and ``x_hat`` of ``x`` in float32, ``f64`` and ``x_hat64`` where they are there."""
    compared = 0
    for suffix, dtype, tolerance in (("", torch.float32, 1e-5), ("64", torch.float64, 1e-10)):
        if f"f{suffix}" not in expected:
            continue
        dictionary, x = foreign.build(dtype=dtype), expected["x"].to(dtype)
        with torch.no_grad():
            f, x_hat = dictionary.encode(x), dictionary(x)
        assert ((f != 0) == (expected[f"f{suffix}"] != 0)).all()
        assert_same(f, expected[f"f{suffix}"], tolerance)
        assert_same(x_hat, expected[f"x_hat{suffix}"], tolerance)
        compared += 1
    assert compared
