"""Dictionaries made, saved and run by overcomplete and by interpreto's copy of it, opened here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saescope.formats.dictionaries.overcomplete import OVERCOMPLETE
from saescope.formats.source import LocalSource

pytestmark = pytest.mark.slow

PEER = Path(__file__).parent / "peers" / "overcomplete_peer.py"
NOT_INSTALLED = 3
NUM_CASES = 64  # of both precisions
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=["overcomplete", "interpreto"])
def made(request: Any, peer_python: Path, missing: Any, tmp_path_factory: Any) -> Path:
    """What the library wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [str(peer_python), str(PEER), "make", str(folder), request.param]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if ran.returncode == NOT_INSTALLED:
        missing(request.param, f"{ran.stdout.strip()}: make peers")
    assert ran.returncode == 0, ran.stderr[-3000:]
    print(ran.stdout.strip())
    return folder


def test_it_computes_what_the_library_does(made: Path) -> None:
    cases = sorted((made / "opened").iterdir())
    assert len(cases) == NUM_CASES
    worst: dict[torch.dtype, float] = {}
    for case in cases:
        source = LocalSource.of(case / "files", overrides=json.loads((case / "said.json").read_text()))
        assert OVERCOMPLETE.recognise(source), case.name
        dictionary = OVERCOMPLETE.read(source).build()
        expected = load_file(case / "expected.safetensors")
        x, f = expected["x"], expected["f"]
        assert 0 < (f != 0).float().mean() < 1, case.name
        with torch.no_grad():
            found = {"f": dictionary.encode(x), "x_hat": dictionary(x)}
        assert torch.equal(found["f"] != 0, f != 0), case.name
        for name, value in found.items():
            assert value.dtype == x.dtype
            error = float((value - expected[name]).abs().max() / expected[name].abs().max())
            assert error <= BOUNDS[x.dtype], (case.name, name, error)
            worst[x.dtype] = max(worst.get(x.dtype, 0), error)
    print({str(dtype): f"{error:.1e} of the largest entry" for dtype, error in worst.items()})


def test_what_it_can_not_open_is_refused(made: Path) -> None:
    words = {
        "mlp": "more than one linear layer",
        "mlp3": "more than one linear layer",
        "quantised": "QSAE of overcomplete, which is not opened",
        "orthogonal": "OMPSAE of overcomplete, which is not opened",
        "long": "rows longer than 1",
    }
    for case in sorted((made / "refused").iterdir()):
        source = LocalSource.of(case / "files", overrides=json.loads((case / "said.json").read_text()))
        assert OVERCOMPLETE.recognise(source), case.name
        with pytest.raises(ValueError, match=words.pop(case.name.split("-", 1)[1])):
            OVERCOMPLETE.read(source)
    assert not words
