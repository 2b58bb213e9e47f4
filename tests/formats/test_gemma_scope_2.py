"""Gemma Scope 2: the release's own classes, with and without a config, and one layer of several as a transcoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saescope.dictionaries import save_dictionary
from saescope.formats.dictionaries.gemma_scope_2 import GEMMA_SCOPE_2
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D_IN, D_OUT, D_SAE = 6, 6, 10
MODEL = "google/gemma-3-4b-pt"
RES = "google/gemma-scope-2-4b-pt/resid_post_all/layer_17_width_16k_l0_big"
AFFINE = "google/gemma-scope-2-1b-it/transcoder/layer_5_width_65k_l0_medium_affine_seed_3"
CLT = "google/gemma-scope-2-270m-pt/clt/width_262k_l0_big"


def config(site: str = "resid_post", layer: int = 17, **more: Any) -> dict[str, Any]:
    """The keys of the published files."""
    before, after = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
    first, last = {
        "resid_post": ("output", "output"),
        "mlp_out": (after, after),
        "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input"),
        "transcoder": (before, after),
    }[site]
    return {
        "hf_hook_point_in": f"model.layers.{layer}.{first}",
        "hf_hook_point_out": f"model.layers.{layer}.{last}",
        "width": D_SAE,
        "model_name": MODEL,
        "architecture": "jump_relu",
        "l0": 150,
        "affine_connection": False,
        "type": "transcoder" if site == "transcoder" else "sae",
        **more,
    }


def parameters(
    *, affine: bool = False, targets: int | None = None, seed: int = 0, d_out: int = D_OUT, dtype: Any = torch.float32
) -> dict[str, Tensor]:
    """Random: rows of any length, biases, some thresholds below 0; the decoder with a target axis for ``targets``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    found = {
        "w_enc": draw(D_IN, D_SAE),
        "w_dec": draw(D_SAE, d_out) * 3 if targets is None else draw(D_SAE, targets, d_out) * 3,
        "b_enc": draw(D_SAE),
        "b_dec": draw(d_out),
        "threshold": 0.3 + 0.5 * draw(D_SAE),
    }
    if affine:
        found["affine_skip_connection"] = draw(D_IN, d_out)
    return found


def written(
    folder: Path, params: dict[str, Tensor], settings: dict[str, Any] | None = None, name: str = "params.safetensors"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in params.items()}, folder / name)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def published(params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The release's class for one layer."""
    pre = x @ params["w_enc"] + params["b_enc"]
    f = (pre > params["threshold"]) * torch.relu(pre)
    y = f @ params["w_dec"] + params["b_dec"]
    return f, y + x @ params["affine_skip_connection"] if "affine_skip_connection" in params else y


def published_across(layers: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """The release's class for all layers, ``x [B, L, d]`` to ``[B, L, d]``: decoders from every layer to every layer."""
    f = torch.stack([published({**p, "w_dec": p["w_dec"][:, 0]}, x[:, i])[0] for i, p in enumerate(layers)], 1)
    decoders = torch.stack([p["w_dec"] for p in layers])  # [layer_in, d_sae, layer_out, d]
    y = torch.einsum("bif,ifod->bod", f, decoders) + torch.stack([p["b_dec"] for p in layers])
    if "affine_skip_connection" in layers[0]:
        y += torch.einsum("bid,ide->bie", x, torch.stack([p["affine_skip_connection"] for p in layers]))
    return y


def read(place: Path, *, shapes_only: bool = False, lenient: bool = False, **overrides: Any) -> Foreign:
    return GEMMA_SCOPE_2.read(LocalSource.of(place, overrides=overrides, shapes_only=shapes_only, lenient=lenient))


def tokens(*shape: int, dtype: Any = torch.float32) -> Tensor:
    return torch.randn((40, *shape), generator=torch.Generator().manual_seed(7), dtype=dtype)


def near(found: Tensor, expected: Tensor) -> None:
    of_largest = 1e-10 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.detach(), expected, atol=of_largest * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("site", "affine"), [("resid_post", False), ("transcoder", False), ("transcoder", True)])
def test_it_computes_what_the_release_computes(tmp_path: Path, site: str, affine: bool, dtype: Any) -> None:
    params = parameters(affine=affine, dtype=dtype)
    foreign = read(written(tmp_path / "d", params, config(site, affine_connection=affine)))
    expected = {"resid_post": "jumprelu", "transcoder": "jumprelu_transcoder"}[site]
    assert foreign.architecture == (expected.replace("_trans", "_skip_trans") if affine else expected)
    x = tokens(D_IN, dtype=dtype)
    f, y = published(params, x)
    dictionary = foreign.build()
    assert (params["threshold"] < 0).any()
    assert ((dictionary.encode(x) > 0) == (f > 0)).all()
    near(dictionary.encode(x), f)
    near(dictionary(x), y)


def test_a_transcoder_may_have_another_width_out(tmp_path: Path) -> None:
    params = parameters(affine=True, d_out=4)
    dictionary = read(written(tmp_path / "d", params, config("transcoder", affine_connection=True))).build()
    assert tuple(dictionary.W_skip.shape) == (4, D_IN)
    x = tokens(D_IN)
    near(dictionary(x), published(params, x)[1])


@pytest.mark.parametrize(
    ("site", "hook"),
    [("resid_post", "hook_resid_post"), ("mlp_out", "hook_mlp_out"), ("attn_out", "attn.hook_z")],
)
def test_hook_points_are_those_of_the_config(tmp_path: Path, site: str, hook: str) -> None:
    settings = config(site, layer=3)
    found = read(written(tmp_path / RES, parameters(), settings)).metadata  # the folder says another layer and site
    assert found["hf_hook_name"] == settings["hf_hook_point_in"]
    assert found["hook_name"] == f"blocks.3.{hook}"
    assert "hook_name_out" not in found
    assert (found["model_name"], found["l0"]) == (MODEL, 150.0)


def test_what_has_no_name_in_transformer_lens_keeps_its_own(tmp_path: Path) -> None:
    found = read(written(tmp_path / "d", parameters(), config("transcoder", layer=3))).metadata
    assert found["hf_hook_name"] == found["hook_name"] == "model.layers.3.pre_feedforward_layernorm.output"
    assert found["hf_hook_name_out"] == "model.layers.3.post_feedforward_layernorm.output"
    assert found["hook_name_out"] == "blocks.3.hook_mlp_out"


@pytest.mark.parametrize(
    ("written_as", "model"),
    [
        ("gemma-v3-12b-it", "google/gemma-3-12b-it"),
        ("google/gemma-3-270m-pt", "google/gemma-3-270m"),
        ("google/gemma-3-270m-it", "google/gemma-3-270m-it"),
        ("gemma-3-1b-pt", "google/gemma-3-1b-pt"),
    ],
)
def test_models_are_named_as_on_the_hub(tmp_path: Path, written_as: str, model: str) -> None:
    folder = written(tmp_path / "d", parameters(), config(model_name=written_as))
    assert read(folder).metadata["model_name"] == model
    assert read(folder, model_name="mine").metadata["model_name"] == "mine"


@pytest.mark.parametrize(
    ("place", "affine", "architecture", "hooks"),
    [
        (RES, False, "jumprelu", ("model.layers.17.output", None)),
        (
            RES.replace("resid_post_all", "mlp_out"),
            False,
            "jumprelu",
            ("model.layers.17.post_feedforward_layernorm.output", None),
        ),
        (RES.replace("resid_post", "attn_out"), False, "jumprelu", ("model.layers.17.self_attn.o_proj.input", None)),
        (
            AFFINE,
            True,
            "jumprelu_skip_transcoder",
            ("model.layers.5.pre_feedforward_layernorm.output", "model.layers.5.post_feedforward_layernorm.output"),
        ),
    ],
)  # fmt: skip
def test_without_a_config_the_place_says_it(
    tmp_path: Path, place: str, affine: bool, architecture: str, hooks: tuple[str, str | None]
) -> None:
    params = parameters(affine=affine)
    foreign = read(written(tmp_path / place, params))
    assert foreign.architecture == architecture
    assert (foreign.metadata["hf_hook_name"], foreign.metadata.get("hf_hook_name_out")) == hooks
    assert foreign.metadata["model_name"] in (MODEL, "google/gemma-3-1b-it")
    assert any("from the name" in said and "no config.json" in said for said in foreign.said)
    near(foreign.build()(tokens(D_IN)), published(params, tokens(D_IN))[1])


def test_without_config_and_place_the_user_says_it(tmp_path: Path) -> None:
    folder = written(tmp_path / "resid_post", parameters())
    foreign = read(folder, kind="transcoder", model_name="m", hook_name="a", hook_name_out="b")
    assert foreign.architecture == "jumprelu_transcoder"
    assert foreign.metadata == {
        "context_size": 1024,
        "prepend_bos": True,
        "model_name": "m",
        "hook_name": "a",
        "hook_name_out": "b",
    }
    assert read(folder).architecture == "jumprelu"
    assert any("nothing in the folder's name" in said for said in read(folder).said)
    assert read(written(tmp_path / "skip", parameters(affine=True))).architecture == "jumprelu_skip_transcoder"
    assert read(written(tmp_path / "other", parameters(d_out=4))).architecture == "jumprelu_transcoder"
    with pytest.raises(ValueError, match="kind should be one of"):
        read(folder, kind="lorsa")


def test_a_width_that_the_file_does_not_have_is_said(tmp_path: Path) -> None:
    said = " ".join(read(written(tmp_path / RES, parameters(), config(width=99))).said)
    assert "config.json says 99 features, but the file has 10" in said
    assert "the name says 16,384 features, but the file has 10" in said


# One layer of several


@pytest.mark.parametrize("affine", [False, True])
def test_the_layers_of_a_cross_layer_transcoder_add_up_to_the_whole(tmp_path: Path, affine: bool) -> None:
    num_layers = 4
    layers = [parameters(affine=affine, targets=num_layers, seed=i, dtype=torch.float64) for i in range(num_layers)]
    settings = {
        **config("transcoder", affine_connection=affine, type="clt", model_name="tiny", width=40),
        "hf_hook_point_in": "model.layers.{all}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.{all}.post_feedforward_layernorm.output",
    }
    for i, params in enumerate(layers):
        written(tmp_path, params, settings, f"params_layer_{i}.safetensors")
    x = tokens(num_layers, D_IN, dtype=torch.float64)
    whole = torch.zeros(40, num_layers, D_OUT, dtype=torch.float64)
    for i, params in enumerate(layers):
        foreign = read(tmp_path / f"params_layer_{i}.safetensors")
        assert foreign.architecture == ("jumprelu_skip_transcoder" if affine else "jumprelu_transcoder")
        assert foreign.d_out == num_layers * D_OUT
        assert foreign.metadata["target_layers"] == [0, 1, 2, 3]
        assert foreign.metadata["hf_hook_name"] == f"model.layers.{i}.pre_feedforward_layernorm.output"
        assert foreign.metadata["hook_name_out"] == ", ".join(f"blocks.{n}.hook_mlp_out" for n in range(4))
        assert any("side by side" in said for said in foreign.said)
        dictionary = foreign.build()
        f, _ = published({**params, "w_dec": params["w_dec"][:, 0]}, x[:, i])
        near(dictionary.encode(x[:, i]), f)
        whole += dictionary(x[:, i]).detach().unflatten(-1, (num_layers, D_OUT))
    near(whole, published_across(layers, x))
    with pytest.raises(ValueError, match=r"params_layer_0.safetensors, params_layer_1.safetensors.*name one of them"):
        read(tmp_path)


def test_targets_from_the_files_own_layer_on(tmp_path: Path) -> None:
    """Another way to store them: the first target is the layer itself."""
    params = parameters(targets=3)
    folder = written(tmp_path / "d", params, name="params_layer_2.safetensors")
    foreign = read(folder / "params_layer_2.safetensors", kind="clt", num_layers=5)
    assert foreign.metadata["target_layers"] == [2, 3, 4]
    assert foreign.tensors["b_dec"].tolist() == [*params["b_dec"].tolist(), *[0.0] * 12]
    with pytest.raises(ValueError, match=r"num_layers=26"):
        read(folder, kind="clt")
    with pytest.raises(ValueError, match="a model of 9 layers would have 9, or 7"):
        read(folder, kind="clt", num_layers=9)
    with pytest.raises(ValueError, match="kind=clt or kind=crosscoder"):
        read(folder)
    with pytest.raises(ValueError, match="said to be a transcoder, but w_dec has shape"):
        read(folder, kind="transcoder")


def test_the_model_says_how_many_layers_there_are(tmp_path: Path) -> None:
    all_layers = read(written(tmp_path / CLT, parameters(targets=18), name="params_layer_7.safetensors"))
    assert all_layers.metadata["target_layers"] == list(range(18))
    assert all_layers.metadata["model_name"] == "google/gemma-3-270m"
    assert all_layers.metadata["hook_name"] == "model.layers.7.pre_feedforward_layernorm.output"
    assert all_layers.tensors["b_dec"].nonzero().flatten().tolist() == list(range(7 * D_OUT, 8 * D_OUT))
    later = read(written(tmp_path / "b" / CLT, parameters(targets=11), name="params_layer_7.safetensors"))
    assert later.metadata["target_layers"] == list(range(7, 18))
    first = read(written(tmp_path / "c", parameters(targets=2), name="params_layer_0.safetensors"), kind="clt")
    assert first.metadata["target_layers"] == [0, 1]


def test_a_crosscoders_layers_add_up_to_the_whole(tmp_path: Path) -> None:
    settings = {
        **config(type="crosscoder", width=20),
        "hf_hook_point_in": "model.layers.{5,9}.output",
        "hf_hook_point_out": "model.layers.{5,9}.output",
    }
    layers = [parameters(targets=2, seed=i, dtype=torch.float64) for i in range(2)]
    for i, params in enumerate(layers):
        written(tmp_path, params, settings, f"params_layer_{i}.safetensors")
    x = tokens(2, D_IN, dtype=torch.float64)
    whole = torch.zeros(40, 2, D_OUT, dtype=torch.float64)
    for i, layer in enumerate((5, 9)):
        foreign = read(tmp_path / f"params_layer_{i}.safetensors")
        assert foreign.metadata["hook_name"] == f"blocks.{layer}.hook_resid_post"
        assert foreign.metadata["hook_name_out"] == "blocks.5.hook_resid_post, blocks.9.hook_resid_post"
        whole += foreign.build()(x[:, i]).detach().unflatten(-1, (2, D_OUT))
    near(whole, published_across(layers, x))
    for hook in ("hf_hook_point_in", "hf_hook_point_out"):
        settings[hook] = "model.layers.{5,9,12}.output"
    written(tmp_path, layers[0], settings, "params_layer_0.safetensors")
    with pytest.raises(ValueError, match="w_dec has 2 targets, but the layers are 5, 9, 12"):
        read(tmp_path / "params_layer_0.safetensors")


def test_the_decoder_of_a_layer_is_not_copied(tmp_path: Path) -> None:
    folder = written(tmp_path / CLT, parameters(targets=18), name="params_layer_7.safetensors")
    source = LocalSource.of(folder)
    held = source.tensors("params_layer_7.safetensors")
    foreign = GEMMA_SCOPE_2.read(source)
    assert foreign.tensors["W_dec"].untyped_storage().nbytes() == held["w_dec"].untyped_storage().nbytes()
    assert foreign.tensors["W_dec"]._base is not None


# What is refused


def test_what_a_file_should_not_have_is_refused(tmp_path: Path) -> None:
    params = parameters()
    with pytest.raises(ValueError, match="architecture 'topk'; known is jump_relu"):
        read(written(tmp_path / "a", params, config(architecture="topk")))
    with pytest.raises(ValueError, match="has sparsity_target, which is not known"):
        read(written(tmp_path / "b", params, config(sparsity_target=3)))
    read(tmp_path / "b", lenient=True)
    with pytest.raises(ValueError, match="holds more"):
        read(written(tmp_path / "c", {**params, "more": torch.ones(2)}, config()))
    with pytest.raises(ValueError, match=r"b_enc should have shape \[10\]"):
        read(written(tmp_path / "d", {**params, "b_enc": torch.ones(3)}, config()))
    with pytest.raises(ValueError, match="no affine_skip_connection, though config"):
        read(written(tmp_path / "e", params, config("transcoder", affine_connection=True)))
    with pytest.raises(ValueError, match="type 'lorsa'; known are"):
        read(written(tmp_path / "f", params, config(type="lorsa")))
    with pytest.raises(ValueError, match="autoencoder with an affine connection"):
        read(written(tmp_path / "g", parameters(affine=True), config()))
    with pytest.raises(ValueError, match="writes 4, which no autoencoder does"):
        read(written(tmp_path / "h", parameters(d_out=4), config()))
    for name in params:
        left = {key: value for key, value in params.items() if key != name}
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            read(written(tmp_path / f"no_{name}", left, config()))
    said = read(written(tmp_path / "i", parameters(affine=True), config("transcoder"))).said
    assert any("it is used" in each for each in said)


def test_headers_alone_give_the_same_settings(tmp_path: Path) -> None:
    written(tmp_path / "a", parameters(affine=True), config("transcoder", affine_connection=True))
    written(tmp_path / CLT, parameters(targets=18, affine=True), name="params_layer_7.safetensors")
    for folder in (tmp_path / "a", tmp_path / CLT):
        full, headers = read(folder), read(folder, shapes_only=True)
        assert all(tensor.is_meta for tensor in headers.tensors.values())
        assert (headers.architecture, headers.settings, headers.said) == (full.architecture, full.settings, full.said)
        assert headers.metadata == full.metadata
        assert {k: t.shape for k, t in headers.tensors.items()} == {k: t.shape for k, t in full.tensors.items()}


def test_it_is_recognised_by_config_or_header(tmp_path: Path) -> None:
    def recognised(place: Path) -> bool:
        return GEMMA_SCOPE_2.recognise(LocalSource.of(place))

    params = parameters()
    assert recognised(written(tmp_path / "a", params, config()))
    assert recognised(tmp_path / "a" / "params.safetensors")
    assert recognised(written(tmp_path / "b", params))
    assert recognised(written(tmp_path / "c", params, name="params_layer_0.safetensors"))
    assert not recognised(written(tmp_path / "d", {"W_enc": params["w_enc"]}))
    assert not recognised(written(tmp_path / "e", params, {"sae_type": "sae"}))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "params.safetensors").write_bytes(b"damaged")
    assert not recognised(tmp_path / "f")
    save_dictionary(read(tmp_path / "a").build(), tmp_path / "saelens")
    assert not recognised(tmp_path / "saelens")
    assert not recognised(tmp_path / "saelens" / "sae_weights.safetensors")
