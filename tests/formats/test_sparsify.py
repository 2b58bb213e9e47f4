"""sparsify's files: what is read computes what they say, and what is written is read back as the same function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture
from saescope.formats.dictionaries.sparsify import SPARSIFY
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D, D_SAE, K, TOKENS = 5, 12, 4, 30
KEPT = Path(__file__).parent / "files" / "sparsify"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


# An independent writer, and the forward pass in a few lines


def write_files(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (D_SAE, D), "encoder.bias": (D_SAE,), "W_dec": (D_SAE, D), "b_dec": (D,)}
    if config.get("skip_connection"):
        shapes["W_skip"] = (D, D)
    tensors = {name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    written = {"d_in": D, "num_latents": D_SAE, "k": K, "normalize_decoder": True, **config}
    (folder / "cfg.json").write_text(json.dumps({key: v for key, v in written.items() if v is not None}))
    return tensors


def forward(t: dict[str, Tensor], x: Tensor, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Feature by feature, as sparsify's code says it."""
    t = {name: tensor.to(x.dtype) for name, tensor in t.items()}
    centred = x if config.get("transcode") else x - t["b_dec"]
    pre = (centred @ t["encoder.weight"].T + t["encoder.bias"]).clamp(min=0)
    k = config.get("k", K)
    f = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        if config.get("activation", "topk") == "groupmax":
            size = len(values) // k
            winners = [group * size + int(values[group * size : (group + 1) * size].argmax()) for group in range(k)]
        else:
            winners = values.argsort(descending=True)[:k].tolist()
        f[row, winners] = values[winners]
    x_hat = f @ t["W_dec"] + t["b_dec"]
    return f, x_hat + x @ t["W_skip"].T if "W_skip" in t else x_hat


def some_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64).to(dtype)


def read(folder: Path, **how: Any) -> Foreign:
    return SPARSIFY.read(LocalSource.of(folder, **how))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE[found.dtype] * expected.abs().max()


def assert_computes(dictionary: Dictionary, x: Tensor, f: Tensor, x_hat: Tensor) -> None:
    with torch.no_grad():
        codes, rebuilt = dictionary.encode(x), dictionary(x)
    assert ((codes != 0) == (f != 0)).all()
    assert_same(codes, f)
    assert_same(rebuilt, x_hat)


# Reading

KINDS = [
    ({}, "topk"),
    ({"activation": "groupmax"}, "group_max"),
    ({"transcode": True}, "topk_transcoder"),
    ({"transcode": True, "activation": "groupmax"}, "group_max_transcoder"),
    ({"transcode": True, "skip_connection": True}, "topk_skip_transcoder"),
    ({"transcode": True, "skip_connection": True, "activation": "groupmax"}, "group_max_skip_transcoder"),
    ({"skip_connection": True}, "topk_skip_transcoder"),
    ({"skip_connection": True, "activation": "groupmax"}, "group_max_skip_transcoder"),
    ({"normalize_decoder": False, "multi_topk": True, "signed": False}, "topk"),
    ({"k": 11}, "topk"),  # more than are positive
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("config", "name"), KINDS)
def test_what_is_read_computes_what_the_file_says(
    tmp_path: Path, config: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    tensors = write_files(tmp_path, dtype, **config)
    foreign = read(tmp_path)
    assert foreign.architecture == name
    x = some_input(dtype)
    assert_computes(foreign.build(), x, *forward(tensors, x, config))
    assert foreign.build().W_dec.dtype == dtype


def test_folded_centring_loses_nothing_in_double_precision(tmp_path: Path) -> None:
    config = {"skip_connection": True}
    tensors = write_files(tmp_path, torch.float32, **config)
    x = some_input(torch.float64)
    assert_computes(read(tmp_path).build(dtype=torch.float64), x, *forward(tensors, x, config))
    assert read(tmp_path).build().b_enc.dtype == torch.float32


def test_a_square_encoder_is_not_mistaken_for_its_transpose(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(shape, generator=rng)
        for name, shape in {"encoder.weight": (D, D), "encoder.bias": (D,), "W_dec": (D, D), "b_dec": (D,)}.items()
    }
    save_file(tensors, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": D, "k": 2}))
    x = some_input()
    assert_computes(read(tmp_path).build(), x, *forward(tensors, x, {"k": 2}))


@pytest.mark.parametrize("num_latents", [0, None])
def test_without_a_number_of_latents_the_expansion_factor_counts(tmp_path: Path, num_latents: int | None) -> None:
    tensors = write_files(tmp_path)
    more = {name: torch.cat([tensors[name]] * 2)[: 3 * D] for name in ("encoder.weight", "encoder.bias", "W_dec")}
    save_file(tensors | more, tmp_path / "sae.safetensors")
    config = {"d_in": D, "num_latents": num_latents, "expansion_factor": 3, "k": K}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert read(tmp_path).d_sae == 3 * D


def test_left_out_settings_are_those_of_sparsify(tmp_path: Path) -> None:
    d_sae = 32 * D
    tensors = {"encoder.weight": torch.ones(d_sae, D), "encoder.bias": torch.ones(d_sae)}
    save_file(tensors | {"W_dec": torch.ones(d_sae, D), "b_dec": torch.ones(D)}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D}))
    foreign = read(tmp_path)
    assert (foreign.d_sae, foreign.settings) == (d_sae, {"k": 32, "apply_b_dec_to_input": True})


def test_decisions_are_said(tmp_path: Path) -> None:
    write_files(tmp_path, skip_connection=True)
    said = " ".join(read(tmp_path).said)
    assert "4 strongest" in said
    assert "folded into the encoder's bias" in said
    write_files(tmp_path, transcode=True, activation="groupmax")
    said = " ".join(read(tmp_path).said)
    assert "not subtracted" in said
    assert "4 groups of 3" in said


# The hook point, from the folder's name


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("layers.5", {"hf_hook_name": "layers.5", "hook_name": "blocks.5.hook_resid_post"}),
        ("h.11", {"hf_hook_name": "h.11", "hook_name": "blocks.11.hook_resid_post"}),
        ("layers.5.mlp", {"hf_hook_name": "layers.5.mlp"}),
        ("encoder.layer.2", {"hf_hook_name": "encoder.layer.2", "hook_name": "blocks.2.hook_resid_post"}),
        ("h.3.attn/seed1", {"hf_hook_name": "h.3.attn"}),
        ("embed_tokens", {"hf_hook_name": "embed_tokens"}),
        ("my_layers.5", {}),
        ("layers.5 old", {}),
        ("layers.five", {}),
        ("layers.5/mine", {}),
    ],
)
def test_the_hook_point_is_the_folders_name(tmp_path: Path, name: str, metadata: dict[str, str]) -> None:
    write_files(tmp_path / "run" / name)
    foreign = read(tmp_path / "run" / name)
    assert foreign.metadata == metadata
    assert any(("from the name" if metadata else "not known") in sentence for sentence in foreign.said)


def test_a_transcoder_goes_from_a_modules_input_to_its_output(tmp_path: Path) -> None:
    write_files(tmp_path / "layers.5.mlp", transcode=True)
    expected = {"hf_hook_name": "layers.5.mlp.input", "hf_hook_name_out": "layers.5.mlp"}
    assert read(tmp_path / "layers.5.mlp").metadata == expected
    write_files(tmp_path / "layers.5", transcode=True)
    found = read(tmp_path / "layers.5").metadata
    assert (found["hook_name"], found["hook_name_out"]) == ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post")


# Recognising


def test_it_is_recognised_by_its_two_files(tmp_path: Path) -> None:
    write_files(tmp_path)
    for name in ("state.pt", "optimizer_0.pt", "lr_scheduler_0.pt", "rank_0_state.pt", "config.json"):
        (tmp_path / name).write_bytes(b"beside")
    assert SPARSIFY.recognise(LocalSource.of(tmp_path))
    assert SPARSIFY.recognise(LocalSource.of(tmp_path / "sae.safetensors"))
    assert not SPARSIFY.recognise(LocalSource.of(tmp_path / "state.pt"))
    assert read(tmp_path).architecture == "topk"
    (tmp_path / "cfg.json").unlink()
    assert not SPARSIFY.recognise(LocalSource.of(tmp_path))


def test_a_folder_of_saelens_is_not_taken_for_it(tmp_path: Path) -> None:
    from saescope.dictionaries import save_dictionary

    save_dictionary(architecture("relu")(architecture("relu").Config(d_in=D, d_sae=D_SAE)), tmp_path / "own")
    assert not SPARSIFY.recognise(LocalSource.of(tmp_path / "own"))


@pytest.mark.parametrize(("config", "name"), KINDS[:8])
def test_headers_alone_say_the_same(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    write_files(tmp_path, **config)
    whole, headers = read(tmp_path), read(tmp_path, shapes_only=True)
    assert (headers.architecture, headers.settings, headers.said) == (name, whole.settings, whole.said)
    assert all(tensor.is_meta for tensor in headers.tensors.values())
    shapes = [{key: tensor.shape for key, tensor in each.tensors.items()} for each in (whole, headers)]
    assert shapes[0] == shapes[1]


# Refusing


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"signed": True}, "signed"),
        ({"activation": "jumprelu"}, "activation 'jumprelu'"),
        ({"activation": "groupmax", "k": 5}, "groups"),
        ({"num_latents": D_SAE + 1}, r"encoder.weight should have shape \[13, 5\]"),
        ({"num_latents": 0, "expansion_factor": 0}, "at least 1"),
        ({"k": 0}, "k should be at least 1"),
        ({"k": 2.5}, "k should be int"),
        ({"d_in": None}, "no d_in"),
        ({"d_in": -5}, "d_in should be at least 1"),
        ({"tp_output": True}, "tp_output, which is not known"),
        ({"skip_connection": "yes"}, "skip_connection should be bool"),
    ],
)
def test_what_does_not_hold_is_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    write_files(tmp_path)
    known = {"d_in": D, "num_latents": D_SAE, "k": K} | config
    (tmp_path / "cfg.json").write_text(json.dumps({key: v for key, v in known.items() if v is not None}))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_an_unknown_key_is_let_be_when_the_user_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, tp_output=True)
    assert read(tmp_path, lenient=True).architecture == "topk"


@pytest.mark.parametrize("config", [{"transcode": True}, {}])
def test_a_skip_connection_that_the_config_does_not_know_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    tensors = write_files(tmp_path, **config)
    save_file(tensors | {"W_skip": torch.ones(D, D)}, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="W_skip, which this format does not have"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"])
def test_a_missing_or_misshapen_tensor_is_refused(tmp_path: Path, name: str) -> None:
    tensors = write_files(tmp_path, skip_connection=True)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match=f"no tensor '{name}'"):
        read(tmp_path)
    save_file(tensors | {name: torch.ones(3, 2)}, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match=f"{name} should have shape"):
        read(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = write_files(tmp_path)
    tensors["W_dec"][3, 1] = float("nan")
    save_file(tensors, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="W_dec holds NaN"):
        read(tmp_path).build()


# Writing


def made(name: str, *, seed: int = 0, d_out: int = D, **settings: Any) -> Dictionary:
    cls = architecture(name)
    more = {"d_out": d_out} if "transcoder" in name else {}
    dictionary = cls(cls.Config(d_in=D, d_sae=D_SAE, k=K, **more, **settings))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return dictionary.eval()


WRITTEN = [f"{host}{kind}" for host in ("topk", "group_max") for kind in ("", "_transcoder", "_skip_transcoder")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_computes_the_same_there_and_here(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    dictionary, x = made(name).to(dtype), some_input(dtype)
    SPARSIFY.write(dictionary, tmp_path, {})  # type: ignore[misc]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae.safetensors"]
    config = json.loads((tmp_path / "cfg.json").read_text())
    with torch.no_grad():
        f, x_hat = dictionary.encode(x), dictionary(x)
    for found, expected in zip(forward(load_file(tmp_path / "sae.safetensors"), x, config), (f, x_hat), strict=True):
        assert_same(found, expected)
    again = read(tmp_path)
    assert again.architecture == name
    assert_computes(again.build(), x, f, x_hat)


@pytest.mark.parametrize("name", ["topk", "group_max"])
def test_a_dictionary_that_does_not_centre_is_written_with_another_bias(tmp_path: Path, name: str) -> None:
    dictionary, x = made(name, apply_b_dec_to_input=False), some_input()
    SPARSIFY.write(dictionary, tmp_path, {})  # type: ignore[misc]
    assert json.loads((tmp_path / "cfg.json").read_text())["transcode"] is False
    with torch.no_grad():
        assert_computes(read(tmp_path).build(), x, dictionary.encode(x), dictionary(x))


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    SPARSIFY.write(made(name), tmp_path / "first", {})  # type: ignore[misc]
    SPARSIFY.write(read(tmp_path / "first").build(), tmp_path / "second", {})  # type: ignore[misc]
    for file in ("cfg.json", "sae.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_config_says_whether_rows_have_norm_1(tmp_path: Path) -> None:
    dictionary = made("topk")
    for unit in (False, True):
        if unit:
            dictionary.normalise_decoder()
        SPARSIFY.write(dictionary, tmp_path, {})  # type: ignore[misc]
        config = json.loads((tmp_path / "cfg.json").read_text())
        assert config["normalize_decoder"] is unit
        assert (config["num_latents"], config["k"], config["d_in"]) == (D_SAE, K, D)


@pytest.mark.parametrize("name", ["relu", "abs_topk", "matching_pursuit", "jumprelu_transcoder"])
def test_other_architectures_are_not_written(tmp_path: Path, name: str) -> None:
    cls = architecture(name)
    settings = {"k": K} if name in ("abs_topk", "matching_pursuit") else {}
    more = {"d_out": D} if "transcoder" in name else {}
    with pytest.raises(ValueError, match=f"no {name} dictionaries"):
        SPARSIFY.write(cls(cls.Config(d_in=D, d_sae=D_SAE, **settings, **more)), tmp_path, {})  # type: ignore[misc]
    assert not list(tmp_path.iterdir())


def test_what_it_can_not_hold_is_not_written(tmp_path: Path) -> None:
    from saescope.dictionaries.normalization import input_normalization

    with pytest.raises(ValueError, match="d_in = 5 and d_out = 7"):
        SPARSIFY.write(made("topk_transcoder", d_out=7), tmp_path, {})  # type: ignore[misc]
    normalised = made("topk")
    normalised.input_normalization = input_normalization("layer_norm", D)
    with pytest.raises(ValueError, match="layer_norm"):
        SPARSIFY.write(normalised, tmp_path, {})  # type: ignore[misc]
    cls = architecture("group_max")
    with pytest.raises(ValueError, match="does not divide"):
        SPARSIFY.write(cls(cls.Config(d_in=D, d_sae=D_SAE, k=5)), tmp_path, {})  # type: ignore[misc]
    assert not list(tmp_path.iterdir())


# Files that sparsify itself made


@pytest.mark.parametrize("case", sorted(path.name for path in KEPT.iterdir()))
def test_files_of_sparsify_compute_what_sparsify_computed(case: str) -> None:
    (folder,) = (KEPT / case / "files").iterdir()
    expected = load_file(KEPT / case / "expected.safetensors")
    assert SPARSIFY.recognise(LocalSource.of(folder))
    foreign = read(folder)
    assert_computes(foreign.build(), expected["x"], expected["f"], expected["x_hat"])
    double = foreign.build(dtype=torch.float64)
    assert_computes(double, expected["x"].double(), expected["f64"], expected["x_hat64"])
    assert foreign.metadata["hf_hook_name"].removesuffix(".input") == folder.name
