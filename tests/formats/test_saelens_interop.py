"""Against SAELens itself: what it saves is opened here, what is written here it opens; codes and outputs are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peer_runs import run_peer
from random_dictionaries import random_dictionary, random_tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

from saescope.dictionaries import Dictionary, architectures, save_dictionary
from saescope.dictionaries.normalization import ConstantNorm, LayerNorm
from saescope.formats.dictionaries.saelens import SAELENS
from saescope.formats.source import LocalSource

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "peers" / "saelens.py"
KNOWN = [
    "relu", "topk", "ordered", "abs_topk", "jumprelu", "gated", "batch_topk", "matryoshka", "matching_pursuit", "transcoder",
    "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
]  # fmt: skip
BY_ANOTHER_FORM = [
    *(f"{host}_archetypal" for host in KNOWN[:8]),
    *(f"{host}_{kind}" for host in ("gated", "batch_topk", "matryoshka") for kind in ("transcoder", "skip_transcoder")),
]  # fmt: skip


def assert_same(found: Tensor, expected: Tensor, *, support: bool = False) -> None:
    bound = {torch.float64: 1e-10, torch.float32: 1e-5}[expected.dtype]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    if support:
        assert ((found != 0) == (expected != 0)).all()


@pytest.fixture(scope="module")
def made(peer_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saelens")
    run_peer(peer_python, SCRIPT, "make", folder)
    return folder


def test_what_saelens_saves_is_opened_here(made: Path) -> None:
    cases = sorted(made.iterdir())
    assert len(cases) == 262
    for case in cases:
        expected = load_file(case / "expected.safetensors")
        overrides = json.loads((case / "case.json").read_text())["overrides"]
        source = LocalSource.of(case / "files", overrides=overrides)
        assert SAELENS.recognise(source), case.name
        foreign = SAELENS.read(source)
        dictionary = foreign.build()
        try:
            assert dictionary.W_dec.dtype == expected["x"].dtype
            assert_same(dictionary.encode(expected["x"]), expected["f"], support=True)
            assert_same(dictionary(expected["x"]), expected["x_hat"])
            assert 0 < (expected["f"] != 0).float().mean() < 1
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error
        names = SAELENS.read(LocalSource.of(case / "files", overrides=overrides, shapes_only=True))
        assert (names.architecture, names.normalization) == (foreign.architecture, foreign.normalization)
        if not case.name.startswith("run-"):
            assert dictionary.metadata["model_name"] in ("tiny", "gpt2-small"), case.name


def test_opened_here_and_written_again_it_is_the_same_in_saelens(made: Path, peer_python: Path, tmp_path: Path) -> None:
    """The way there and back: SAELens, here, SAELens."""
    chosen = [case for case in sorted(made.iterdir()) if "whitening" not in case.name or "float64" in case.name]
    for case in chosen:
        overrides = json.loads((case / "case.json").read_text())["overrides"]
        dictionary = SAELENS.read(LocalSource.of(case / "files", overrides=overrides)).build()
        assert SAELENS.write is not None
        SAELENS.write(dictionary, tmp_path / case.name / "files", dictionary.metadata)
        save_file(load_file(case / "expected.safetensors"), tmp_path / case.name / "expected.safetensors")
    check_found(peer_python, tmp_path, len(chosen))


def random_of(name: str, dtype: torch.dtype, norm: str, *, centred: bool) -> Dictionary:
    dictionary = random_dictionary(name, dtype=dtype, apply_b_dec_to_input=centred and "transcoder" not in name)
    if norm != "none":
        dictionary.input_normalization = LayerNorm() if norm == "layer_norm" else ConstantNorm()
    return dictionary


@pytest.mark.parametrize("writer", ["saelens", "saescope"])
def test_what_is_written_here_is_opened_by_saelens(peer_python: Path, tmp_path: Path, writer: str) -> None:
    written = 0
    for name in KNOWN if writer == "saescope" else KNOWN + BY_ANOTHER_FORM:
        for dtype in (torch.float32, torch.float64):
            for norm in ("none", "layer_norm", "constant_norm_rescale"):
                for centred in (True, False):
                    if (centred and "transcoder" in name) or (norm != "none" and "skip" in name):
                        continue
                    dictionary = random_of(name, dtype, norm, centred=centred)
                    case = tmp_path / f"{name}-{str(dtype)[6:]}-{norm}-{'centred' if centred else 'raw'}"
                    case.mkdir()
                    if writer == "saescope":
                        save_dictionary(dictionary, case / "files")
                    else:
                        assert SAELENS.write is not None
                        SAELENS.write(dictionary, case / "files", {"model_name": "tiny", "saescope": {"version": "1"}})
                    x = random_tokens(seed=written, dtype=dtype)
                    with torch.no_grad():
                        save_file(
                            {"x": x, "f": dictionary.encode(x), "x_hat": dictionary(x)}, case / "expected.safetensors"
                        )
                    written += 1
    check_found(peer_python, tmp_path, written)


def test_saelens_refuses_what_only_saescope_computes(peer_python: Path, tmp_path: Path) -> None:
    others = sorted(set(architectures()) - set(KNOWN))
    for name in others:
        save_dictionary(random_dictionary(name), tmp_path / name / "files")
        save_file({"x": torch.zeros(1, 6)}, tmp_path / name / "expected.safetensors")
    run_peer(peer_python, SCRIPT, "check", tmp_path)
    for name in others:
        assert f"saescope/{name}" in json.loads((tmp_path / name / "found.json").read_text())["error"]


def check_found(python: Path, folder: Path, number: int) -> None:
    run_peer(python, SCRIPT, "check", folder)
    cases = sorted(folder.iterdir())
    assert len(cases) == number
    for case in cases:
        about = json.loads((case / "found.json").read_text())
        assert "error" not in about, f"{case.name}: {about['error']}"
        expected, found = load_file(case / "expected.safetensors"), load_file(case / "found.safetensors")
        try:
            assert_same(found["f"], expected["f"], support=True)
            assert_same(found["x_hat"], expected["x_hat"])
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error
