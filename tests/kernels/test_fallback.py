"""Machines that lack what the kernels need, say so once and train densely; and what compiled code is kept."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saescope import kernels
from saescope.dictionaries import architecture
from saescope.kernels import cpu, kernels_for
from saescope.training import TrainingConfig, train

LIBRARY = {"cpu": "numba", "cuda": "triton"}


@pytest.fixture
def missing_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``missing_library(kind)``: from here on the library of that device's kernels can not be imported."""

    def remove(kind: str) -> None:
        monkeypatch.setitem(sys.modules, LIBRARY[kind], None)
        for module in (kernels._MODULES[kind], "saescope.kernels.compiling"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        kernels._load.cache_clear()

    yield remove
    monkeypatch.undo()
    kernels._load.cache_clear()


def _run(kernels_wanted: str, seed: int = 0) -> torch.nn.Module:
    cls = architecture("topk")
    dictionary = cls(cls.Config(d_in=6, d_sae=64, k=3), seed=seed)
    generator = torch.Generator().manual_seed(1)
    batches = (torch.randn(16, 6, generator=generator) for _ in range(20))
    train(dictionary, batches, TrainingConfig(num_tokens=320, batch_size_tokens=16, sparse_kernels=kernels_wanted))
    return dictionary


def test_without_numba_runs_are_dense_and_say_so_once(missing_library, monkeypatch):
    monkeypatch.setattr("saescope.training.stepper.WORTH_IT", 0)
    expected = _run("never")
    missing_library("cpu")
    with pytest.warns(UserWarning, match="pip install numba") as warned:
        first = _run("auto")
    assert len(warned) == 1
    assert "training goes on with dense products" in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = _run("auto")
        assert kernels_for(torch.zeros(1)) is None
    for name, tensor in expected.state_dict().items():
        assert first.state_dict()[name].equal(tensor), name
        assert second.state_dict()[name].equal(tensor), name


def test_kernels_that_were_asked_for_and_are_missing_are_an_error(missing_library):
    missing_library("cpu")
    with (
        pytest.warns(UserWarning, match="pip install numba"),
        pytest.raises(ValueError, match=r'sparse_kernels = "always", but there are none .* on cpu in .*float32'),
    ):
        _run("always")


def test_a_machine_without_triton_says_so_once(missing_library):
    missing_library("cuda")
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"the fast kernels for cuda need triton .*: pip install triton") as warned:
        found = kernels_for(on_gpu), kernels_for(on_gpu)
    assert found == (None, None)
    assert len(warned) == 1
    assert kernels_for(torch.zeros(1)) is not None  # which does nothing to a CPU's


def test_nobody_is_warned_about_a_library_that_is_not_wanted(missing_library, monkeypatch):
    missing_library("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run("never")
        _run("auto")  # too small to be worth it
        assert kernels_for(torch.zeros(1, dtype=torch.bfloat16)) is None
        assert kernels_for(torch.zeros(1, device="meta")) is None
        kernels_for(torch.zeros(1, dtype=torch.float16))


def test_kernels_are_for_wide_floats():
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float64)
    assert kernels_for(torch.zeros(1)) is cpu
    assert kernels_for(torch.zeros(1, dtype=torch.float64)) is cpu
    assert kernels_for(torch.zeros(1, dtype=torch.bfloat16)) is None
    assert kernels_for(on_gpu) is None


def test_where_nothing_can_be_written_code_is_compiled_and_not_kept(monkeypatch):
    """Neither beside the package nor in the user's folder: Numba refuses to keep anything there."""
    from numba.core import caching

    for name in ("CompileResultCacheImpl", "CodeLibraryCacheImpl"):
        monkeypatch.setattr(getattr(caching, name), "_locator_classes", [])
    spec = importlib.util.spec_from_file_location("kernels_without_a_cache", cpu.__file__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    numbers = np.arange(64.0)
    assert fresh._any_above(numbers, numbers, 125.0)
    assert not fresh._any_above(numbers, numbers, 126.0)


def _process(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_process_without_numba_trains():
    printed = _process(
        """
        import sys
        sys.modules["numba"] = None
        import torch
        from saescope.dictionaries import architecture
        from saescope.training import TrainingConfig, train
        cls = architecture("topk")
        config = TrainingConfig(num_tokens=256 * 3, batch_size_tokens=256)
        for seed in (0, 1):
            dictionary = cls(cls.Config(d_in=64, d_sae=4096, k=8), seed=seed)
            result = train(dictionary, (torch.randn(256, 64) for _ in range(3)), config)
            print("steps:", result.num_steps)
        """
    )
    assert printed.count("steps: 3") == 2
    assert printed.count("pip install numba") == 1


@pytest.mark.slow
def test_a_second_process_finds_compiled_what_the_first_has_compiled(tmp_path):
    script = """
        import torch
        from saescope.kernels import Gradients, AdamStep, cpu
        x, rows = torch.randn(8, 4), torch.randn(70, 4)
        codes = cpu.topk(x, rows, None, 3)
        cpu.batch_topk(x, rows, None, 20), cpu.above(x, rows, None, torch.zeros(70), 9999)
        cpu.gradients(codes, None, cpu.decode(codes, rows, rows[0], [70]), x, rows, [70],
                      Gradients.like(rows, rows), unit_norm=True)
        before = torch.linspace(0, 0.9, 70).double()
        errors, left = cpu.ordered_errors(codes, x, rows, before)
        cpu.ordered_gradients(codes, left, rows, before, 1.0, rows.clone())
        cpu.adam(rows.clone(), rows, rows * 0, rows * 0, AdamStep(lr=1, beta1=0.9, beta2=0.9, eps=1, step=1))
        compiled = [f for f in vars(cpu).values() if hasattr(f, "stats")]
        assert len(compiled) > 10
        print(sum(sum(f.stats.cache_misses.values()) for f in compiled))
        print(sum(sum(f.stats.cache_hits.values()) for f in compiled))
    """

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}

    misses, hits = map(int, _process(script, NUMBA_CACHE_DIR=str(tmp_path)).split())
    kept = files()
    assert misses > 10
    assert hits == 0
    assert sum(path.suffix == ".nbc" for path in kept) >= misses
    again_misses, again_hits = map(int, _process(script, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert again_misses == 0
    assert again_hits > 10
    assert files() == kept
