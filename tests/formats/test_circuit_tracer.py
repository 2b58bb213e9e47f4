"""circuit-tracer's sets and cross-layer transcoders: the library's forward passes, its layouts, and its traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from saescope.dictionaries import save_dictionary
from saescope.formats.dictionaries.circuit_tracer import CIRCUIT_TRACER
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D, D_SAE, K = 6, 12, 3


def config(**more: Any) -> dict[str, Any]:
    return {
        "model_kind": "transcoder_set", "model_name": "Qwen/Qwen3-0.6B", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out", **more,
    }  # fmt: skip


def parameters(
    *, threshold: bool = False, skip: bool = False, seed: int = 0, d_sae: int = D_SAE, dtype: Any = torch.float32
) -> dict[str, Tensor]:
    """As the library saves them: a row of either matrix is a feature."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    found = {"W_enc": draw(d_sae, D), "W_dec": draw(d_sae, D) * 3, "b_enc": draw(d_sae), "b_dec": draw(D)}
    if threshold:
        found["activation_function.threshold"] = draw(d_sae).abs()
    if skip:
        found["W_skip"] = draw(D, D)
    return found


def written(folder: Path, params: dict[str, Tensor], settings: dict[str, Any] | None = None, layer: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in params.items()}, folder / f"layer_{layer}.safetensors")
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def library(params: dict[str, Tensor], x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """The library's transcoder of one layer; its TopK and its JumpReLU have no relu."""
    pre = x @ params["W_enc"].T + params["b_enc"]
    if "activation_function.threshold" in params:
        f = pre * (pre > params["activation_function.threshold"])
    elif k is not None:
        f = pre * torch.zeros_like(pre).scatter(-1, pre.topk(k, dim=-1).indices, 1)
    else:
        f = torch.relu(pre)
    y = f @ params["W_dec"] + params["b_dec"]
    return f, y + x @ params["W_skip"].T if "W_skip" in params else y


def read(place: Path, *, shapes_only: bool = False, lenient: bool = False, **overrides: Any) -> Foreign:
    return CIRCUIT_TRACER.read(LocalSource.of(place, overrides=overrides, shapes_only=shapes_only, lenient=lenient))


def tokens(*shape: int, dtype: Any = torch.float32) -> Tensor:
    return torch.randn((40, *shape), generator=torch.Generator().manual_seed(7), dtype=dtype)


def near(found: Tensor, expected: Tensor) -> None:
    of_largest = 1e-10 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.detach(), expected, atol=of_largest * float(expected.abs().max()), rtol=0)


def assert_same(foreign: Foreign, params: dict[str, Tensor], k: int | None = None) -> None:
    x = tokens(D, dtype=params["W_enc"].dtype)
    f, y = library(params, x, k)
    dictionary = foreign.build()
    assert ((dictionary.encode(x) > 0) == (f > 0)).all()
    near(dictionary.encode(x), f)
    near(dictionary(x), y)


# Sets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_it_computes_what_the_library_computes(tmp_path: Path, threshold: bool, skip: bool, dtype: Any) -> None:
    params = parameters(threshold=threshold, skip=skip, dtype=dtype)
    foreign = read(written(tmp_path, params, config()))
    base = "jumprelu_" if threshold else ""
    assert foreign.architecture == f"{base}{'skip_' if skip else ''}transcoder"
    assert foreign.settings == {"d_out": D}
    assert_same(foreign, params)


@pytest.mark.parametrize("skip", [False, True])
def test_topk_is_the_same_wherever_k_are_positive(tmp_path: Path, skip: bool) -> None:
    params = parameters(skip=skip)
    params["b_enc"] += 3
    foreign = read(written(tmp_path, params, config(activation="topk", k=K)))
    assert foreign.architecture == ("topk_skip_transcoder" if skip else "topk_transcoder")
    assert foreign.settings == {"d_out": D, "k": K}
    assert_same(foreign, params, K)
    assert any(f"k = {K} from config.yaml" in said and "negative ones" in said for said in foreign.said)
    params["b_enc"] -= 6
    f, _ = library(params, tokens(D), K)
    assert (f < 0).any()
    near(read(written(tmp_path, params, config(activation="topk", k=K))).build().encode(tokens(D)), f.clamp(min=0))


def test_where_k_comes_from(tmp_path: Path) -> None:
    missing = written(tmp_path / "a", parameters(), config(activation="topk"))
    with pytest.raises(ValueError, match=r"k is nowhere; say it: k=128"):
        read(missing)
    assert read(missing, k="5").settings["k"] == 5
    assert read(written(tmp_path / "b", parameters(), config(activation="topk", k=4)), k=5).settings["k"] == 5
    stored = written(tmp_path / "c", {**parameters(), "k": torch.tensor(4)}, config())
    assert (read(stored).architecture, read(stored).settings["k"]) == ("topk_transcoder", 4)
    assert read(stored, shapes_only=True).settings["k"] is None
    with pytest.raises(ValueError, match="relu, but the file has a k"):
        read(stored, activation="relu")
    unused = read(written(tmp_path / "d", parameters(), config(activation="relu", k=4)))
    assert unused.architecture == "transcoder"
    assert any("plays no part" in said for said in unused.said)


def test_the_activation_is_that_of_config_and_file(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a", parameters(), config(activation="relu"))).architecture == "transcoder"
    unnamed = read(written(tmp_path / "b", parameters(), config()))
    assert any("ReLU, as circuit-tracer takes it" in said for said in unnamed.said)
    jump = parameters(threshold=True)
    with pytest.raises(ValueError, match="said to be relu, but the file has a threshold"):
        read(written(tmp_path / "c", jump, config(activation="relu")))
    assert read(tmp_path / "c", activation="jumprelu").architecture == "jumprelu_transcoder"
    with pytest.raises(ValueError, match="said to be jump_relu, but the file has no threshold"):
        read(written(tmp_path / "d", parameters(), config(activation="jump_relu")))
    with pytest.raises(ValueError, match="the activation is 'gelu'; known are"):
        read(written(tmp_path / "e", parameters(), config(activation="gelu")))
    jump["activation_function.threshold"][0] = -0.1
    with pytest.raises(ValueError, match="thresholds below 0"):
        read(written(tmp_path / "f", jump, config()))


def test_the_files_of_2025_hold_the_decoder_transposed(tmp_path: Path) -> None:
    params = parameters(skip=True)
    foreign = read(written(tmp_path / "a", {**params, "W_dec": params["W_dec"].T}, config()))
    assert_same(foreign, params)
    square = parameters(d_sae=D)
    folder = written(tmp_path / "b", square, config())
    with pytest.raises(ValueError, match="say decoder=rows or decoder=columns"):
        read(folder)
    assert_same(read(folder, decoder="rows"), square)
    assert_same(read(folder, decoder="columns"), {**square, "W_dec": square["W_dec"].T})
    with pytest.raises(ValueError, match="decoder should be rows or columns"):
        read(folder, decoder="across")
    with pytest.raises(ValueError, match=r"W_dec should have shape \[6, 12\]"):
        read(written(tmp_path / "c", params, config()), decoder="columns")


@pytest.mark.parametrize(
    ("model", "hooks", "modules"),
    [
        ("Qwen/Qwen3-4B", ("mlp.hook_in", "mlp.hook_out"), ("post_attention_layernorm.output", "mlp.output")),
        ("meta-llama/Llama-3.2-1B", ("hook_resid_mid", "mlp.hook_out"), (None, "mlp.output")),
        ("google/gemma-3-1b-it", ("mlp.hook_in", "hook_mlp_out"), ("pre_feedforward_layernorm.output", None)),
        ("other/model", ("mlp.hook_in", "mlp.hook_out"), (None, None)),
    ],
)
def test_hook_points(
    tmp_path: Path, model: str, hooks: tuple[str, str], modules: tuple[str | None, str | None]
) -> None:
    settings = config(model_name=model, feature_input_hook=hooks[0], feature_output_hook=hooks[1])
    found = read(written(tmp_path, parameters(), settings)).metadata
    assert (found["hook_name"], found["hook_name_out"]) == tuple(f"blocks.3.{hook}" for hook in hooks)
    expected = tuple(None if module is None else f"model.layers.3.{module}" for module in modules)
    assert (found.get("hf_hook_name"), found.get("hf_hook_name_out")) == expected
    assert found["model_name"] == model
    assert "target_layers" not in found
    named = read(tmp_path, model_name="m", hook_name="a", hook_name_out="b").metadata
    assert named == {"model_name": "m", "hook_name": "a", "hook_name_out": "b"}


def test_hook_points_before_the_gain_and_with_the_layer_in_them(tmp_path: Path) -> None:
    inside = read(written(tmp_path / "a", parameters(), config(feature_input_hook="ln2.hook_normalized")))
    assert any("before the norm's gain" in said for said in inside.said)
    whole = read(written(tmp_path / "b", parameters(), config(feature_input_hook="blocks.{layer}.hook_resid_pre")))
    assert whole.metadata["hook_name"] == "blocks.3.hook_resid_pre"


def test_of_several_layers_one_has_to_be_named(tmp_path: Path) -> None:
    for layer in (0, 1, 10):
        written(tmp_path, parameters(seed=layer), config(), layer)
    with pytest.raises(ValueError, match=r"layer_0.safetensors, layer_1.safetensors, layer_10.safetensors; name one"):
        read(tmp_path)
    for foreign in (read(tmp_path / "layer_10.safetensors"), read(tmp_path, layer=10), read(tmp_path, layer="10")):
        assert foreign.metadata["hook_name"] == "blocks.10.mlp.hook_in"
        assert_same(foreign, parameters(seed=10))
    with pytest.raises(ValueError, match="one transcoder of layer 7"):
        read(tmp_path, layer=7)
    with pytest.raises(ValueError, match="layer should be a whole number"):
        read(tmp_path, layer="seven")


def test_lists_of_files_are_followed_inside_the_folder_alone(tmp_path: Path) -> None:
    outside = written(tmp_path / "outside", parameters(seed=1))
    folder = written(tmp_path / "set", parameters(), layer=0)
    (folder / "layer_0.safetensors").rename(folder / "mine.safetensors")
    inside = config(transcoders=["hf://org/repo/layer_0.safetensors?revision=abc", "mine.safetensors"])
    (folder / "config.yaml").write_text(yaml.safe_dump(inside))
    assert CIRCUIT_TRACER.recognise(LocalSource.of(folder))
    assert read(folder).metadata["hook_name"] == "blocks.1.mlp.hook_in"
    assert_same(read(folder / "mine.safetensors"), parameters())
    of_2025 = {**inside, "transcoders": [{"id": "a", "layer": 8, "filepath": "mine.safetensors"}]}
    del of_2025["model_kind"]
    (folder / "config.yaml").write_text(yaml.safe_dump(of_2025))
    assert read(folder).metadata["hook_name"] == "blocks.8.mlp.hook_in"
    for path in ("hf://org/repo/x.safetensors", "../outside/layer_3.safetensors", str(outside / "layer_3.safetensors")):
        (folder / "config.yaml").write_text(yaml.safe_dump(config(transcoders=[path])))
        assert CIRCUIT_TRACER.recognise(LocalSource.of(folder))
        with pytest.raises(ValueError, match="lie elsewhere, which are not followed"):
            read(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(transcoders=[3])))
    with pytest.raises(ValueError, match="lists 3, which names no file"):
        read(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config()))
    with pytest.raises(ValueError, match="does not say which layer it is"):
        read(folder / "mine.safetensors")


def test_training_configs_beside_are_not_looked_at(tmp_path: Path) -> None:
    folder = written(tmp_path / "models--mwhanna--qwen3-14b-transcoders-lowl0/snapshots/0a1b", parameters())
    for name in ("wandb-config.yaml", "wanb-config.yaml"):
        (folder / name).write_text("d_model: {value: 99}\nunknown: true\n")
        assert CIRCUIT_TRACER.recognise(LocalSource.of(folder))
        foreign = read(folder)
        (folder / name).unlink()
        assert foreign.metadata["model_name"] == "Qwen/Qwen3-14B"
        assert foreign.metadata["hf_hook_name"] == "model.layers.3.post_attention_layernorm.output"
        assert any("no config.yaml; the model is from the name" in said for said in foreign.said)
    assert_same(foreign, parameters())
    assert read(written(tmp_path / "bare", parameters())).metadata == {}


def test_what_a_file_should_not_have_is_refused(tmp_path: Path) -> None:
    params = parameters()
    with pytest.raises(ValueError, match="holds log_thresholds"):
        read(written(tmp_path / "a", {**params, "log_thresholds": torch.ones(D_SAE)}, config()))
    with pytest.raises(ValueError, match="has norm, which is not known"):
        read(written(tmp_path / "b", params, config(norm="rms")))
    read(tmp_path / "b", lenient=True)
    with pytest.raises(ValueError, match="model_kind is 'sae_set'"):
        read(written(tmp_path / "c", params, config(model_kind="sae_set")))
    with pytest.raises(ValueError, match=r"W_skip should have shape \[6, 6\]"):
        read(written(tmp_path / "d", {**params, "W_skip": torch.ones(D, 2)}, config()))
    with pytest.raises(ValueError, match=r"W_enc should have shape \[12, any\]"):
        read(written(tmp_path / "e", {**params, "W_enc": params["W_enc"].T}, config()))
    for name in params:
        left = {key: value for key, value in params.items() if key != name}
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            read(written(tmp_path / f"no_{name}", left, config()))


# Cross-layer transcoders


def across(num_layers: int, *, threshold: bool, skip: bool, dtype: Any = torch.float32) -> list[dict[str, Tensor]]:
    """A library's cross-layer transcoder, a dict for each layer; decoders ``[d_sae, L - i, d_model]``."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    layers = []
    for i in range(num_layers):
        found = {
            "W_enc": draw(D_SAE, D),
            "W_dec": draw(D_SAE, num_layers - i, D),
            "b_enc": draw(D_SAE),
            "b_dec": draw(D),
        }
        if threshold:
            found["threshold"] = draw(D_SAE).abs()
        if skip:
            found["W_skip"] = draw(D, D)
        layers.append(found)
    return layers


def written_across(folder: Path, layers: list[dict[str, Tensor]], settings: dict[str, Any] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, params in enumerate(layers):
        encoder = {f"{name}_{i}": value for name, value in params.items() if name != "W_dec"}
        save_file(encoder, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": params["W_dec"]}, folder / f"W_dec_{i}.safetensors")
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def library_across(layers: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """``x [B, L, d]`` to ``[B, L, d]``; the skip connection is not transposed here."""
    y = torch.stack([params["b_dec"] for params in layers]).expand_as(x).clone()
    for i, params in enumerate(layers):
        pre = x[:, i] @ params["W_enc"].T + params["b_enc"]
        f = pre * (pre > params["threshold"]) if "threshold" in params else torch.relu(pre)
        for target in range(i, len(layers)):
            y[:, target] += f @ params["W_dec"][:, target - i]
        if "W_skip" in params:
            y[:, i] += x[:, i] @ params["W_skip"]
    return y


CLT = config(
    model_kind="cross_layer_transcoder", feature_input_hook="hook_resid_mid", feature_output_hook="hook_mlp_out"
)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_the_layers_of_a_cross_layer_transcoder_add_up_to_the_whole(
    tmp_path: Path, threshold: bool, skip: bool
) -> None:
    num_layers = 4
    layers = across(num_layers, threshold=threshold, skip=skip, dtype=torch.float64)
    folder = written_across(tmp_path, layers, CLT)
    x = tokens(num_layers, D, dtype=torch.float64)
    whole = torch.zeros(40, num_layers, D, dtype=torch.float64)
    for i in range(num_layers):
        foreign = read(folder, layer=i)
        named = read(folder / f"W_enc_{i}.safetensors"), read(folder / f"W_dec_{i}.safetensors")
        assert all(each.metadata == foreign.metadata for each in named)
        assert foreign.architecture == f"{'jumprelu_' if threshold else ''}{'skip_' if skip else ''}transcoder"
        assert foreign.settings == {"d_out": (num_layers - i) * D}
        assert foreign.metadata["target_layers"] == list(range(i, num_layers))
        assert foreign.metadata["hook_name"] == f"blocks.{i}.hook_resid_mid"
        assert foreign.metadata["hook_name_out"].split(", ")[0] == f"blocks.{i}.hook_mlp_out"
        assert len(foreign.metadata["hook_name_out"].split(", ")) == num_layers - i
        assert any("side by side" in said for said in foreign.said)
        y = foreign.build()(x[:, i]).detach()
        whole[:, i:] += y.unflatten(-1, (num_layers - i, D))
    near(whole, library_across(layers, x))


def test_of_several_layers_across_one_has_to_be_named(tmp_path: Path) -> None:
    folder = written_across(tmp_path, across(3, threshold=False, skip=False), CLT)
    with pytest.raises(ValueError, match=r"layers 0, 1, 2, which are opened one at a time: name W_enc_0.safetensors"):
        read(folder)
    (folder / "W_dec_1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no W_dec_1"):
        read(folder, layer=1)
    with pytest.raises(FileNotFoundError, match="no W_enc_9"):
        read(folder, layer=9)


def test_targets_that_do_not_fit_the_layers_are_refused(tmp_path: Path) -> None:
    layers = across(3, threshold=False, skip=False)
    layers[0]["W_dec"] = layers[0]["W_dec"][:, :2].contiguous()
    layers[1]["W_dec"] = torch.ones(D_SAE, 4, D)
    folder = written_across(tmp_path / "a", layers, CLT)
    with pytest.raises(
        ValueError, match=r"W_dec_0\.safetensors has 2 targets, but from layer 0 to the last, 2, there are 3"
    ):
        read(folder, layer=0)
    with pytest.raises(
        ValueError, match=r"W_dec_1\.safetensors has 4 targets, but from layer 1 to the last, 2, there are 2"
    ):
        read(folder, layer=1)
    for name in ("W_enc_0", "W_dec_0", "W_enc_2", "W_dec_2"):
        (folder / f"{name}.safetensors").unlink()
    assert read(folder).metadata["target_layers"] == [1, 2, 3, 4]  # nothing beside says otherwise
    layers[1]["W_dec"] = torch.ones(D_SAE, D)
    with pytest.raises(ValueError, match=r"W_dec_1 should have shape \[12, any, 6\]"):
        read(written_across(tmp_path / "b", layers, CLT), layer=1)


def test_what_a_cross_layer_transcoder_should_not_have_is_refused(tmp_path: Path) -> None:
    layers = across(2, threshold=True, skip=False)
    with pytest.raises(ValueError, match="says that it is a set of transcoders"):
        read(written_across(tmp_path / "a", layers, config()), layer=0)
    plain = across(2, threshold=False, skip=False)
    with pytest.raises(ValueError, match="no cross-layer transcoders with TopK"):
        read(written_across(tmp_path / "b", plain, {**CLT, "activation": "topk", "k": 3}), layer=0)
    folder = written_across(tmp_path / "d", plain, CLT)
    save_file({"W_dec_0": plain[0]["W_dec"], "W_dec_9": torch.ones(2)}, folder / "W_dec_0.safetensors")
    with pytest.raises(ValueError, match="holds W_dec_9"):
        read(folder, layer=0)
    layers[0]["extra"] = torch.ones(2)
    with pytest.raises(ValueError, match="holds extra_0"):
        read(written_across(tmp_path / "c", layers, CLT), layer=0)


# All of them


def test_headers_alone_give_the_same_settings(tmp_path: Path) -> None:
    one = written(tmp_path / "a", parameters(threshold=True, skip=True), config())
    several = written_across(tmp_path / "b", across(3, threshold=True, skip=True), CLT)
    for folder in (one, several / "W_enc_1.safetensors"):
        full, headers = read(folder), read(folder, shapes_only=True)
        assert all(tensor.is_meta for tensor in headers.tensors.values())
        assert (headers.architecture, headers.settings, headers.said) == (full.architecture, full.settings, full.said)
        assert headers.metadata == full.metadata
        assert {k: t.shape for k, t in headers.tensors.items()} == {k: t.shape for k, t in full.tensors.items()}


def test_matrices_are_not_copied(tmp_path: Path) -> None:
    one = read(written(tmp_path / "a", parameters(), config()))
    assert one.tensors["W_enc"].stride() == (1, D)
    several = read(written_across(tmp_path / "b", across(3, threshold=False, skip=False), CLT), layer=1)
    assert several.tensors["W_dec"]._base is not None


def test_it_is_recognised_by_files_and_config(tmp_path: Path) -> None:
    def recognised(place: Path) -> bool:
        return CIRCUIT_TRACER.recognise(LocalSource.of(place))

    assert recognised(written(tmp_path / "a", parameters(), config()))
    assert recognised(tmp_path / "a" / "layer_3.safetensors")
    assert recognised(written(tmp_path / "b", parameters()))
    assert recognised(written_across(tmp_path / "c", across(2, threshold=False, skip=False), None))
    assert not recognised(written(tmp_path / "d", {"w_enc": torch.ones(2, 2)}))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "layer_0.safetensors").write_bytes(b"damaged")
    assert not recognised(tmp_path / "e")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.yaml").write_text("anything: [1")
    assert not recognised(tmp_path / "f")
    save_dictionary(read(tmp_path / "a").build(), tmp_path / "saelens")
    assert not recognised(tmp_path / "saelens")
    assert not recognised(tmp_path / "saelens" / "sae_weights.safetensors")
