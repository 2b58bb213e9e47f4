"""Dictionaries published as one file: files and forward passes by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.formats.dictionaries.single_files import CONNOR_ROB, DEEPSEEK_R1, GOODFIRE
from saescope.formats.format import Format
from saescope.formats.source import LocalSource

N, D = 11, 6
LAYERS = {"deepseek_r1": ("encoder", "decoder"), "goodfire": ("encoder_linear", "decoder_linear")}
FORMATS = {each.name: each for each in (DEEPSEEK_R1, GOODFIRE, CONNOR_ROB)}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear_state(name: str, *, n: int = N, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    encoder, decoder = LAYERS[name]
    return {
        f"{encoder}.weight": random(n, D, seed=1, dtype=dtype),
        f"{encoder}.bias": random(n, seed=2, dtype=dtype),
        f"{decoder}.weight": random(D, n, seed=3, dtype=dtype),
        f"{decoder}.bias": random(D, seed=4, dtype=dtype),
    }


def linear_forward(name: str, state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Two linear layers with a ReLU between them."""
    encoder, decoder = LAYERS[name]
    f = (x @ state[f"{encoder}.weight"].T + state[f"{encoder}.bias"]).relu()
    return f, f @ state[f"{decoder}.weight"].T + state[f"{decoder}.bias"]


def connor_rob_state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "W_enc": random(D, N, seed=1, dtype=dtype),
        "W_dec": random(N, D, seed=2, dtype=dtype),
        "b_enc": random(N, seed=3, dtype=dtype),
        "b_dec": random(D, seed=4, dtype=dtype),
    }


def connor_rob_config(**more: Any) -> dict[str, Any]:
    """With the keys of the published ones."""
    trained: dict[str, Any] = {
        "seed": 49, "batch_size": 4096, "buffer_mult": 384, "lr": 0.0012, "num_tokens": 2000000000, "l1_coeff": 1.8,
        "beta1": 0.9, "beta2": 0.99, "dict_mult": 32, "seq_len": 128, "enc_dtype": "fp32", "model_name": "gpt2-small",
        "site": "z", "layer": 3, "device": "cuda", "reinit": "reinit", "head": "cat", "concat_heads": True,
        "resample_scheme": "anthropic", "anthropic_neuron_resample_scale": 0.2, "dead_direction_cutoff": 1e-06,
        "re_init_every": 25000, "anthropic_resample_last": 12500, "resample_factor": 0.01, "num_resamples": 4,
        "wandb_project_name": "gpt2", "wandb_entity": "someone", "save_state_dict_every": 50000, "b_dec_init": "zeros",
        "sched_type": "cosine_warmup", "sched_epochs": 1000, "sched_lr_factor": 0.1, "sched_warmup_epochs": 1000,
        "sched_finish": True, "anthropic_resample_batches": 100, "eval_every": 1000, "model_batch_size": 512,
        "buffer_size": 1572864, "buffer_batches": 12288, "act_name": "blocks.3.attn.hook_z", "act_size": D,
        "dict_size": N, "name": "gpt2-small_3_24576_z",
    }  # fmt: skip
    return {key: value for key, value in (trained | more).items() if value is not None}


def put_connor_rob(folder: Path, name: str = "gpt2_L3", *, state: Any = None, **more: Any) -> Path:
    put(folder, connor_rob_state() if state is None else state, f"{name}.pt")
    (folder / f"{name}_cfg.json").write_text(json.dumps(connor_rob_config(**more)))
    return folder


def some_x(dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * random(40, D, seed=9, dtype=dtype) + 1


def close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-10 if expected.dtype == torch.float64 else 1e-5
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def require_same(dictionary: Dictionary, f: Tensor, x_hat: Tensor, x: Tensor) -> None:
    found = dictionary.encode(x)
    assert torch.equal(found != 0, f != 0)
    close(found, f)
    close(dictionary(x), x_hat)


def put(folder: Path, state: Any, name: str = "sae.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return folder


def read(format: Format, folder: Path, *, shapes_only: bool = False, lenient: bool = False, **overrides: Any) -> Any:
    source = LocalSource.of(folder, overrides=overrides, shapes_only=shapes_only, lenient=lenient)
    return format.read(source)


def recognised(folder: Path) -> list[str]:
    return [name for name, each in FORMATS.items() if each.recognise(LocalSource.of(folder))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [N, D])  # as many features as numbers: shapes can not tell a transpose
@pytest.mark.parametrize("name", LAYERS)
def test_two_linear_layers(tmp_path: Path, name: str, n: int, dtype: torch.dtype) -> None:
    state, x = linear_state(name, n=n, dtype=dtype), some_x(dtype)
    folder = put(tmp_path, state, "sae.pth")
    assert recognised(folder) == [name]
    require_same(read(FORMATS[name], folder).build(), *linear_forward(name, state, x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_connor_rob_is_centred(tmp_path: Path, dtype: torch.dtype) -> None:
    state, x = connor_rob_state(dtype), some_x(dtype)
    folder = put_connor_rob(tmp_path, state=state)
    assert recognised(folder) == ["connor_rob"]
    found = read(CONNOR_ROB, folder)
    assert found.metadata["hook_name"] == "blocks.3.attn.hook_z"
    assert found.metadata["model_name"] == "gpt2-small"
    assert found.metadata["context_size"] == 128
    assert "hook_head_index" not in found.metadata
    f = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    require_same(found.build(), f, f @ state["W_dec"] + state["b_dec"], x)


def test_connor_rob_of_one_head_says_which(tmp_path: Path) -> None:
    found = read(CONNOR_ROB, put_connor_rob(tmp_path, concat_heads=False, head=5))
    assert found.metadata["hook_head_index"] == 5
    assert "blocks.3.attn.hook_z of head 5 alone" in found.said


def test_connor_rob_beside_others_asks_which(tmp_path: Path) -> None:
    put_connor_rob(tmp_path, "L3")
    put_connor_rob(tmp_path, "L4", act_name="blocks.4.attn.hook_z")
    with pytest.raises(ValueError, match=r"L3\.pt, L4\.pt; name one of them"):
        read(CONNOR_ROB, tmp_path)
    assert recognised(tmp_path / "L4.pt") == ["connor_rob"]
    assert read(CONNOR_ROB, tmp_path / "L4.pt").metadata["hook_name"] == "blocks.4.attn.hook_z"


@pytest.mark.parametrize("name", LAYERS)
def test_headers_alone_say_the_same(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path, linear_state(name))
    whole, header = (read(FORMATS[name], folder, shapes_only=only) for only in (False, True))
    assert (header.settings, header.said) == (whole.settings, whole.said)
    assert {key: value.shape for key, value in header.tensors.items()} == {
        key: value.shape for key, value in whole.tensors.items()
    }
    assert all(tensor.is_meta for tensor in header.tensors.values())


@pytest.mark.parametrize(
    ("name", "file", "model", "layer"),
    [
        ("deepseek_r1", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 19),
        ("goodfire", "Llama-3.3-70B-Instruct-SAE-l50.pt", "meta-llama/Llama-3.3-70B-Instruct", 50),
        ("goodfire", "Llama-3.1-8B-Instruct-SAE-l19.pth", "meta-llama/Llama-3.1-8B-Instruct", 19),
        ("goodfire", "mine-l7.pt", None, 7),
        ("deepseek_r1", "model2.pt", None, None),
        ("deepseek_r1", "l19-model.pt", None, None),
        ("deepseek_r1", "total19.pt", None, None),
    ],
)
def test_the_layer_is_read_from_the_end_of_the_file_name(
    tmp_path: Path, name: str, file: str, model: str | None, layer: int | None
) -> None:
    found = read(FORMATS[name], put(tmp_path / "x-SAE-l3", linear_state(name), file))
    assert found.metadata.get("model_name") == model
    if layer is None:
        assert "hook_name" not in found.metadata
        assert any("layer=" in sentence for sentence in found.said)
    else:
        assert found.metadata["hook_name"] == f"blocks.{layer}.hook_resid_post"
        assert found.metadata["hf_hook_name"] == f"model.layers.{layer}.output"
        assert f"layer {layer} from the name" in found.said


def test_the_layer_can_be_said(tmp_path: Path) -> None:
    found = read(GOODFIRE, put(tmp_path, linear_state("goodfire"), "mine-l7.pt"), layer=0)
    assert found.metadata["hook_name"] == "blocks.0.hook_resid_post"
    assert "layer 0 from what was said" in found.said
    with pytest.raises(ValueError, match="layer should be a whole number of at least 0"):
        read(GOODFIRE, tmp_path, layer="first")


def test_files_of_dictionary_learning_are_left_to_its_reader(tmp_path: Path) -> None:
    for name in ("ae.pt", "ae_5000.pt"):
        assert recognised(put(tmp_path / name, linear_state("deepseek_r1"), name)) == []
    assert recognised(put(tmp_path / "other", linear_state("deepseek_r1"), "aemilia.pt")) == ["deepseek_r1"]


def test_a_folder_of_another_format_is_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, linear_state("deepseek_r1"))
    asked: list[str] = []
    whole = LocalSource.path
    monkeypatch.setattr(LocalSource, "path", lambda self, name: asked.append(name) or whole(self, name))
    assert recognised(folder) == ["deepseek_r1"]
    assert asked
    for name in ("cfg.json", "hyperparams.json", "params.npz"):
        asked.clear()
        (folder / name).write_text("{}")
        assert recognised(folder) == []
        assert not asked
        (folder / name).unlink()
    (folder / "cfg.json").write_text("{}")
    assert recognised(folder / "sae.pt") == ["deepseek_r1"]  # a file that was named


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    more = linear_state("deepseek_r1") | {"log_jumprelu_threshold": torch.ones(N)}
    put(tmp_path / "more", more)
    put(tmp_path / "several", linear_state("deepseek_r1"), "a.pt")
    put(tmp_path / "several", linear_state("deepseek_r1"), "b.pt")
    put(tmp_path / "no config", connor_rob_state())
    put(tmp_path / "another config", connor_rob_state(), "x.pt")
    (tmp_path / "another config" / "x_cfg.json").write_text('{"d_in": 3}')
    put(tmp_path / "damaged config", connor_rob_state(), "x.pt")
    (tmp_path / "damaged config" / "x_cfg.json").write_text("{")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sae.pt").write_bytes(b"nothing")
    for folder in ("scope", "saelens"):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
    (tmp_path / "scope" / "hyperparams.json").write_text("{}")
    save_file(linear_state("deepseek_r1"), tmp_path / "scope" / "checkpoints" / "final.safetensors")
    (tmp_path / "saelens" / "cfg.json").write_text('{"architecture": "standard"}')
    save_file(connor_rob_state(), tmp_path / "saelens" / "sae_weights.safetensors")
    (tmp_path / "conf only").mkdir()
    (tmp_path / "conf only" / "conf.yaml").write_text("a: 1")
    for folder in sorted(tmp_path.iterdir()):
        assert recognised(folder) == [], folder.name


@pytest.mark.parametrize("name", LAYERS)
def test_damaged_linear_layers_are_refused(tmp_path: Path, name: str) -> None:
    encoder, decoder = LAYERS[name]
    state = linear_state(name)
    cases = {
        rf"no tensor '{decoder}.bias'": {key: value for key, value in state.items() if key != f"{decoder}.bias"},
        r"decoder.*weight should have shape \[6, 11\]": state | {f"{decoder}.weight": torch.ones(N, D)},
        r"bias should have shape \[11\]": state | {f"{encoder}.bias": torch.ones(D)},
        "threshold, which this format does not have": state | {"threshold": torch.ones(N)},
        "should be a tensor of floating numbers": state | {f"{encoder}.bias": torch.ones(N, dtype=torch.int64)},
    }
    for words, case in cases.items():
        with pytest.raises(ValueError, match=words):
            read(FORMATS[name], put(tmp_path, case))
    with pytest.raises(ValueError, match="NaN"):
        read(FORMATS[name], put(tmp_path, state | {f"{encoder}.bias": torch.full((N,), float("nan"))})).build()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"act_size": 7}, r"W_enc should have shape \[7, 11\]"),
        ({"dict_size": "11"}, "dict_size should be int"),
        ({"activation": "gelu"}, "activation, which is not known here"),
        ({"concat_heads": "yes"}, "concat_heads should be bool"),
    ],
)
def test_a_connor_rob_config_that_says_something_else_is_refused(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read(CONNOR_ROB, put_connor_rob(tmp_path, **more))


def test_unknown_keys_can_be_let_be_and_tensors_can_not(tmp_path: Path) -> None:
    folder = put_connor_rob(tmp_path, note="mine")
    assert read(CONNOR_ROB, folder, lenient=True).architecture == "relu"
    put_connor_rob(tmp_path, state=connor_rob_state() | {"scale": torch.ones(1)})
    with pytest.raises(ValueError, match="scale, which this format does not have"):
        read(CONNOR_ROB, folder, lenient=True)
