"""dictionary-learning itself makes files that are opened here, and opens files that were written here.

It runs in an environment of its own; what it does there is in ``peers/dictionary_learning_peer.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peer_runs import assert_computes, assert_same, run_peer
from safetensors.torch import load_file, save_file
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture
from saescope.formats.dictionaries.dictionary_learning import DICTIONARY_LEARNING
from saescope.formats.source import LocalSource

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers" / "dictionary_learning_peer.py"
D, F, K, TOKENS = 6, 16, 3, 40
CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip
TRAINERS = (
    "StandardTrainer", "AprilUpdate", "PAnneal", "GatedSAETrainer", "JumpReluTrainer", "TopKTrainer",
    "BatchTopKTrainer", "MatryoshkaTrainer",
)  # fmt: skip
CASES = [*CLASSES, *(f"{name}-interrupted" for name in CLASSES), "AutoEncoder-normalised"]
CASES += [f"trained-{name}" for name in TRAINERS]


@pytest.fixture(scope="module")
def theirs(peer_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    run_peer(peer_python, SCRIPT, "make", folder)
    return folder


def assert_opened(place: Path, expected: dict[str, Tensor], **overrides: Any) -> None:
    source = LocalSource.of(place, overrides=overrides)
    assert DICTIONARY_LEARNING.recognise(source)
    assert_computes(DICTIONARY_LEARNING.read(source), expected)


@pytest.mark.parametrize("case", CASES)
def test_their_files_compute_here_what_they_computed_there(theirs: Path, case: str) -> None:
    assert sorted(path.name for path in theirs.iterdir()) == sorted(CASES)
    how = {"normalise_decoder": True} if case == "AutoEncoder-normalised" else {}
    assert_opened(theirs / case / "files", load_file(theirs / case / "expected.safetensors"), **how)
    checkpoint = theirs / case / "files" / "checkpoints" / "ae_6.pt"
    if case.startswith("trained"):
        assert_opened(checkpoint, load_file(theirs / case / "expected-checkpoint.safetensors"))


def dictionaries() -> dict[str, Dictionary]:
    """Every architecture that is written, in both precisions, centred and not, with random rows and rows of norm 1."""
    made: dict[str, Dictionary] = {}
    for name in ("relu", "gated", "jumprelu", "topk", "batch_topk", "matryoshka"):
        for centred in (True, False):
            for dtype in (torch.float32, torch.float64):
                for unit in (False, True) if name == "relu" else (False,):
                    cls, settings = architecture(name), {"k": K} if name in ("topk", "batch_topk", "matryoshka") else {}
                    dictionary = cls(cls.Config(d_in=D, d_sae=F, apply_b_dec_to_input=centred, **settings))
                    rng = torch.Generator().manual_seed(len(made))
                    with torch.no_grad():
                        for key, tensor in [*dictionary.named_parameters(), *dictionary.named_buffers()]:
                            if key == "threshold":  # single precision is all that their scalar has
                                tensor.copy_(torch.rand(tensor.shape, generator=rng))
                            elif tensor.is_floating_point():
                                tensor.copy_(torch.randn(tensor.shape, generator=rng))
                    dictionary = dictionary.to(dtype)
                    if unit:
                        dictionary.normalise_decoder()
                    words = (name, "centred" if centred else "uncentred", "unit" if unit else "free")
                    made["-".join([*words, str(dtype).removeprefix("torch.")])] = dictionary.eval()
    return made


def test_files_written_here_compute_there_what_they_compute_here(peer_python: Path, tmp_path: Path) -> None:
    ours, inputs = dictionaries(), {}
    for number, (case, dictionary) in enumerate(ours.items()):
        (tmp_path / case / "files").mkdir(parents=True)
        DICTIONARY_LEARNING.write(dictionary, tmp_path / case / "files", {"model_name": "toy/model"})  # type: ignore[misc]
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
