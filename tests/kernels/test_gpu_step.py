"""What of the GPU's benchmark can be checked without a GPU: arguments, arithmetic, the refusal, and that steps agree."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_step.py"


@pytest.fixture(scope="module")
def gpu_step():
    spec = importlib.util.spec_from_file_location("gpu_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_step"] = module  # dataclasses look their module up
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules["gpu_step"]


def test_the_bound_is_that_of_the_written_estimates(gpu_step):
    """d = 2304, N = 65536, k = 64, B = 8192 at 790 TFLOP/s and 4.3 TB/s: 3.13, 0.50, 1.69 and 2.25 ms."""
    shape = gpu_step.Shape.parse("2304,65536,64,8192")
    bound = gpu_step.lower_bound(shape, gpu_step.Rates(flops=790e12, bandwidth=4.3e12))
    parts = [round(1e3 * bound[name], 2) for name in ("encoder product", "pre-activations", "gathers", "optimizer")]
    assert parts == [3.13, 0.50, 1.69, 2.25]
    assert bound["T_min"] == pytest.approx(7.56e-3, abs=5e-6)
    assert gpu_step.share_of_bound(bound, 2e3 * bound["T_min"]) == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "4,8,9,2", "4,8,0,2", "4,x,2,2", "4,8,2,-1"])
def test_shapes_that_are_none_are_refused(gpu_step, text, capsys):
    with pytest.raises(SystemExit):
        gpu_step.parser().parse_args([f"--shape={text}"])
    assert "shape" in capsys.readouterr().err


def test_arguments(gpu_step, capsys):
    options = gpu_step.parser().parse_args(["--shape", "4,8,2,3", "--shape", "5,9,2,3", "--rounds", "7", "--json"])
    assert options.shape == [gpu_step.Shape(4, 8, 2, 3), gpu_step.Shape(5, 9, 2, 3)]
    assert (options.rounds, options.json, options.only) == (7, True, None)
    with pytest.raises(SystemExit):
        gpu_step.parser().parse_args(["--rounds", "6"])
    assert "at least 7" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(gpu_step, capsys):
    assert gpu_step.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "CUDA device" in shown.err


def test_losses_agree_with_dense_autograd(gpu_step):
    """Over some steps; after the first, losses depend on gradients, clipping, Adam and unit norm."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = gpu_step.Shape(5, 10, 2, 3)
    differences = gpu_step.agreement(shape, device, 2)
    assert differences["float32"] < 1e-5
    assert differences["bfloat16"] < 1e-3
    # the comparison sees a step that is another one
    assert gpu_step.LR == 1e-4
    wrong = gpu_step.Ours(shape, device, bfloat16=False)
    wrong.decoder.mul_(1.01)
    for _, stage in wrong.stages():
        stage(gpu_step.tokens(shape, device, 1)[0])
    right = gpu_step.Exact(shape, device)
    right.stages()[0][1](gpu_step.tokens(shape, device, 1)[0])
    assert abs(float(wrong.loss / right.loss) - 1) > 1e-4


def test_the_dense_step_learns(gpu_step):
    shape, device = gpu_step.Shape(6, 24, 3, 16), torch.device("cpu")
    dense = gpu_step.Dense(shape, device)
    (x,) = gpu_step.tokens(shape, device, 1)
    losses = []
    for _ in range(8):
        for _, stage in dense.stages():
            stage(x)
        losses.append(float(dense.loss))
    assert losses[-1] < losses[0]
    assert float(dense.num_firings.sum()) <= 8 * 16 * 3
    assert float(dense.since_fired.max()) <= 8


def test_the_page_names_what_was_measured(gpu_step):
    bound = gpu_step.lower_bound(gpu_step.Shape(4, 8, 2, 3), gpu_step.Rates(1e12, 1e12))
    ours = {
        "stages_ms": {"clip": 1.25, "total": 4.5}, "total_ms_min": 4.0, "total_ms_max": 5.0, "peak_bytes": 3_200_000_000,
        "share_of_T_min": 0.62, "tokens_per_s": 1_000_000.0,
    }  # fmt: skip
    report = {
        "device": "a device", "torch": "2", "triton": "3", "rates": {"flops": 7e14, "bandwidth": 3e12}, "rounds": 7,
        "agreement_shape": "1,2,3,4", "agreement_steps": 5, "agreement": {"float32": 1e-6},
        "shapes": [{"shape": "4, 8, 2, 3", "bound_s": bound, "ours": ours, "out_of_memory": ["dense"]}],
    }  # fmt: skip
    text = gpu_step.page(json.loads(json.dumps(report)))
    for part in (
        "a device",
        "700 TFLOP/s",
        "3.00 TB/s",
        "ours: clip | 1.25",
        "62% of T_min",
        "3.2 GB",
        "dense: does not fit",
    ):
        assert part in text
