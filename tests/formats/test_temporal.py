"""Temporal dictionaries as their authors published them, written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import saescope
from saescope.dictionaries import Temporal, TemporalConfig
from saescope.dictionaries.temporal import ConstantScalar
from saescope.formats.loading import convert, format_of, read_foreign

D, N = 6, 12


def put(folder: Path, *, tied: bool = True, **sae: object) -> tuple[Temporal, Path]:
    """Files, and the dictionary that they hold."""
    settings = {
        "n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 3, "sae_diff_type": "topk", "kval_topk": 3,
        "tied_weights": tied,
    }  # fmt: skip
    config = {
        "llm": {"name": "m", "dimin": D}, "data": {"dtype": "float32"},
        "sae": {**settings, "exp_factor": N / D, "scaling_factor": 0.25, **sae}, "seed": 3,
    }  # fmt: skip
    dictionary = Temporal(TemporalConfig(d_in=D, d_sae=N, activation_normalization_factor=0.25, **settings))
    dictionary.input_normalization = ConstantScalar()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in dictionary.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    named = {"W_dec": "D", "b_dec": "b", "W_enc": "E"}
    tensors = {named.get(name, name): t.contiguous() for name, t in dictionary.saved_tensors().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conf.yaml").write_text(yaml.safe_dump(config))
    save_file(tensors, folder / "latest_ckpt.safetensors")
    return dictionary.eval().requires_grad_(False), folder


@pytest.mark.parametrize("tied", [True, False])
def test_published_files_are_opened(tmp_path: Path, tied: bool) -> None:
    dictionary, folder = put(tmp_path / "gemma" / "layer_12" / "temporal", tied=tied)
    assert format_of(folder).name == "temporal"
    opened = saescope.load(folder)
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(opened(x), dictionary(x))
    assert torch.equal(opened.encode(x) > 0, dictionary.encode(x) > 0)
    assert opened.metadata["hook_name"] == "blocks.12.hook_resid_post"
    names = read_foreign(folder, shapes_only=True)
    assert names.settings["kval_topk"] == 3
    assert any("from the name" in said for said in names.said)
    assert any("whole sequences" in said for said in names.said)


@pytest.mark.parametrize("to", ["saelens", "saescope"])
def test_written_in_another_form(tmp_path: Path, to: str) -> None:
    dictionary, folder = put(tmp_path / "here")
    convert(folder, tmp_path / "there", to=to)
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(saescope.load(tmp_path / "there")(x), dictionary(x))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    _, folder = put(tmp_path, n_attn_layers=2)
    with pytest.raises(ValueError, match=r"attn_layers\.1"):
        saescope.load(folder)
    _, folder = put(tmp_path, exp_factor=3)
    with pytest.raises(ValueError, match=r"should have shape \[18, 6\]"):
        saescope.load(folder)
    (folder / "latest_ckpt.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        saescope.load(folder)
