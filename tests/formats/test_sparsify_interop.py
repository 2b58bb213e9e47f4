"""eai-sparsify itself makes files that are opened here, and opens files that were written here.

It runs in an environment of its own; what it does there is in ``peers/sparsify_peer.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peer_runs import assert_computes, assert_same, run_peer
from safetensors.torch import load_file, save_file

from saescope.dictionaries import Dictionary, architecture
from saescope.formats.dictionaries.sparsify import SPARSIFY
from saescope.formats.source import LocalSource

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers" / "sparsify_peer.py"
D, F, K, TOKENS = 6, 16, 4, 40
CASES = [
    *(f"{rule}-{kind}" for rule in ("topk", "groupmax")
      for kind in ("sae", "transcoder", "skip-transcoder", "skip-sae", "expansion")),
    "topk-multi-topk",
    "topk-few-positive",
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs(peer_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    run_peer(peer_python, SCRIPT, "make", folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_their_files_compute_here_what_they_computed_there(theirs: Path, case: str) -> None:
    assert sorted(path.name for path in theirs.iterdir()) == sorted(CASES)
    (folder,) = (theirs / case / "files").iterdir()
    expected = load_file(theirs / case / "expected.safetensors")
    assert SPARSIFY.recognise(LocalSource.of(folder))
    assert "f64" in expected
    assert_computes(SPARSIFY.read(LocalSource.of(folder)), expected)


def dictionaries() -> dict[str, Dictionary]:
    """Every architecture that is written, in both precisions; autoencoders centred and not."""
    made: dict[str, Dictionary] = {}
    for host in ("topk", "group_max"):
        for kind in ("", "_transcoder", "_skip_transcoder"):
            for centred in (False,) if kind else (True, False):
                for dtype in (torch.float32, torch.float64):
                    cls, more = architecture(host + kind), {"d_out": D} if kind else {}
                    settings = cls.Config(d_in=D, d_sae=F, k=K, apply_b_dec_to_input=centred, **more)
                    dictionary = cls(settings).to(dtype)
                    rng = torch.Generator().manual_seed(len(made))
                    with torch.no_grad():
                        for parameter in dictionary.parameters():
                            parameter.copy_(torch.randn(parameter.shape, generator=rng))
                    words = (host + kind, "centred" if centred else "uncentred", str(dtype).removeprefix("torch."))
                    made["-".join(words)] = dictionary.eval()
    return made


def test_files_written_here_compute_there_what_they_compute_here(peer_python: Path, tmp_path: Path) -> None:
    ours, inputs = dictionaries(), {}
    for number, (case, dictionary) in enumerate(ours.items()):
        (tmp_path / case / "files").mkdir(parents=True)
        SPARSIFY.write(dictionary, tmp_path / case / "files", {})  # type: ignore[misc]
        rng = torch.Generator().manual_seed(1000 + number)
        inputs[case] = torch.randn(TOKENS, D, generator=rng).to(dictionary.W_dec.dtype)
        save_file({"x": inputs[case]}, tmp_path / case / "x.safetensors")
    run_peer(peer_python, SCRIPT, "check", tmp_path)
    for case, dictionary in ours.items():
        found = load_file(tmp_path / case / "found.safetensors")
        with torch.no_grad():
            f, x_hat = dictionary.encode(inputs[case]), dictionary(inputs[case])
        tolerance = 1e-5 if f.dtype == torch.float32 else 1e-10
        assert ((found["f"] != 0) == (f != 0)).all(), case
        assert_same(found["f"], f, tolerance)
        assert_same(found["x_hat"], x_hat, tolerance)
