"""Large dictionaries: what opening a million latents costs in memory, each way in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

D_IN, D_SAE = 128, 1 << 20
SIZE = 4 * (2 * D_IN * D_SAE + D_SAE + D_IN)  # bytes in float32

MEASURED = """
import json, resource, sys, time
from saescope.formats.loading import load, read_foreign
import torch

def megabytes(name, file="/proc/self/status"):
    with open(file) as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))

torch.zeros(4, 4) @ torch.zeros(4, 4)
folder, way = sys.argv[1:]
before, private = megabytes("VmRSS"), megabytes("Private_Dirty", "/proc/self/smaps_rollup")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
started = time.perf_counter()
if way == "shapes":
    found = read_foreign(folder, shapes_only=True)
elif way == "mmap":
    found = load(folder, mmap=True)
else:
    found = load(folder)
seconds = time.perf_counter() - started
print(json.dumps({
    "seconds": seconds, "growth": megabytes("VmRSS") - before, "peak": megabytes("VmHWM") - before,
    "private": megabytes("Private_Dirty", "/proc/self/smaps_rollup") - private,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A million features of width 128 in float32, 1.08 GB, in the layout of SAELens."""
    place = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.empty(D_IN, D_SAE).uniform_(generator=generator),
        "W_dec": torch.empty(D_SAE, D_IN).uniform_(generator=generator),
        "b_enc": torch.zeros(D_SAE),
        "b_dec": torch.zeros(D_IN),
    }
    save_file(tensors, place / "sae_weights.safetensors")
    config = {
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"},
    }  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(config))
    yield place
    (place / "sae_weights.safetensors").unlink()


def measured(folder, way: str) -> dict[str, float]:
    ran = subprocess.run([sys.executable, "-c", MEASURED, folder, way], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    print(way, ran.stdout)
    return json.loads(ran.stdout)


def test_headers_cost_next_to_nothing(folder):
    assert measured(folder, "shapes")["peak"] < 50


def test_a_mapped_dictionary_has_hardly_any_memory_of_its_own(folder):
    assert measured(folder, "mmap")["private"] < 100


def test_opening_takes_the_memory_of_the_dictionary_once(folder):
    found = measured(folder, "load")
    size = SIZE / (1 << 20)
    assert size < found["growth"] < 1.1 * size
    assert found["peak"] < 1.15 * size
