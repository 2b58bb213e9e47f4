"""Gemma Scope's npz files: the release's forward pass, what the place's name says, transcoders, the embedding's scale."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saescope.dictionaries import Dictionary, save_dictionary
from saescope.formats.dictionaries.gemma_scope import GEMMA_SCOPE
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D_IN, D_SAE = 6, 10
RES = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
EMBEDDING = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_21"
TRANSCODER = "google/gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_87"


def arrays(d_out: int = D_IN, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters: rows of any length, biases, some thresholds below 0."""
    draw = np.random.default_rng(seed)
    return {
        "W_enc": draw.normal(size=(D_IN, D_SAE)).astype(dtype),
        "W_dec": (draw.normal(size=(D_SAE, d_out)) * 3).astype(dtype),
        "b_enc": draw.normal(size=D_SAE).astype(dtype),
        "b_dec": draw.normal(size=d_out).astype(dtype),
        "threshold": draw.normal(0.3, 0.5, size=D_SAE).astype(dtype),
    }


def written(folder: Path, params: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **params)
    return folder


def published(params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The release's forward pass: a mask times a relu; the input as it is."""
    pre = x @ params["W_enc"] + params["b_enc"]
    f = (pre > params["threshold"]) * np.maximum(pre, 0)
    return f, f @ params["W_dec"] + params["b_dec"]


def read(folder: Path, *, shapes_only: bool = False, **overrides: Any) -> Foreign:
    return GEMMA_SCOPE.read(LocalSource.of(folder, overrides=overrides, shapes_only=shapes_only))


def assert_same(dictionary: Dictionary, params: dict[str, np.ndarray], x: np.ndarray, scale: float = 1) -> None:
    f, x_hat = published(params, x)
    inputs = torch.from_numpy(x * x.dtype.type(scale))
    found, rebuilt = dictionary.encode(inputs).detach().numpy(), dictionary(inputs).detach().numpy() / scale
    near = 1e-10 if x.dtype == np.float64 else 1e-5
    assert (found > 0).tolist() == (f > 0).tolist()
    assert 0 < (f > 0).mean() < 1
    np.testing.assert_allclose(found, f, atol=near * np.abs(f).max(), rtol=0)
    np.testing.assert_allclose(rebuilt, x_hat, atol=near * np.abs(x_hat).max(), rtol=0)


def tokens(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(40, D_IN)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("letters", [str, str.lower])
def test_it_computes_what_the_release_computes(tmp_path: Path, dtype: Any, letters: Any) -> None:
    params = arrays(dtype=dtype)
    folder = written(tmp_path / RES, {letters(name): value for name, value in params.items()})
    foreign = read(folder)
    assert (foreign.architecture, foreign.settings) == ("jumprelu", {"apply_b_dec_to_input": False})
    assert (params["threshold"] < 0).any()
    assert_same(foreign.build(), params, tokens(dtype))


def test_a_transcoder_is_told_by_its_repository_or_by_the_user(tmp_path: Path) -> None:
    params = arrays(seed=1)
    named = read(written(tmp_path / TRANSCODER, params))
    assert named.architecture == "jumprelu_transcoder"
    assert named.settings == {"d_out": D_IN}
    assert named.metadata["hook_name"] == "blocks.5.ln2.hook_normalized"
    assert named.metadata["hook_name_out"] == "blocks.5.hook_mlp_out"
    assert named.metadata["hf_hook_name_out"] == "model.layers.5.post_feedforward_layernorm.output"
    assert "hf_hook_name" not in named.metadata
    assert any("before the norm's gain" in said for said in named.said)
    assert_same(named.build(), params, tokens())
    bare = written(tmp_path / "bare", params)
    assert any("kind=transcoder" in said for said in read(bare).said)
    assert read(bare).architecture == "jumprelu"
    assert read(bare, kind="transcoder").architecture == "jumprelu_transcoder"
    assert read(written(tmp_path / RES, params), kind="transcoder").architecture == "jumprelu_transcoder"
    with pytest.raises(ValueError, match="kind should be one of sae, transcoder"):
        read(bare, kind="crosscoder")


def test_another_width_out_is_a_transcoder_and_no_autoencoder(tmp_path: Path) -> None:
    params = arrays(d_out=4)
    bare = written(tmp_path / "bare", params)
    assert read(bare).architecture == "jumprelu_transcoder"
    assert_same(read(bare).build(), params, tokens())
    with pytest.raises(ValueError, match="writes 4, which no autoencoder does"):
        read(bare, kind="sae")
    with pytest.raises(ValueError, match="kind=transcoder"):
        read(written(tmp_path / RES, params))


@pytest.mark.parametrize(
    ("place", "model", "hook", "module"),
    [
        (RES, "google/gemma-2-2b", "blocks.12.hook_resid_post", "model.layers.12.output"),
        (
            "google/gemma-scope-9b-it-res/layer_20/width_131k/average_l0_24",
            "google/gemma-2-9b-it",
            "blocks.20.hook_resid_post",
            "model.layers.20.output",
        ),
        (
            "models--google--gemma-scope-9b-pt-mlp/snapshots/0a1b2c/layer_3/width_16k/average_l0_9",
            "google/gemma-2-9b",
            "blocks.3.hook_mlp_out",
            "model.layers.3.post_feedforward_layernorm.output",
        ),
        (
            "google/gemma-scope-27b-pt-att@main/layer_0/width_16k/average_l0_9",
            "google/gemma-2-27b",
            "blocks.0.attn.hook_z",
            "model.layers.0.self_attn.o_proj.input",
        ),
    ],
)
def test_the_place_says_model_and_hook_point(tmp_path: Path, place: str, model: str, hook: str, module: str) -> None:
    foreign = read(written(tmp_path / place, arrays()))
    found = foreign.metadata
    assert (found["model_name"], found["hook_name"], found["hf_hook_name"]) == (model, hook, module)
    assert (found["context_size"], found["prepend_bos"]) == (1024, True)
    assert found["l0"] == float(place.rpartition("_")[2])
    assert any("from the name" in said for said in foreign.said)


def test_only_the_end_of_the_place_counts(tmp_path: Path) -> None:
    bare = read(written(tmp_path / "gemma-scope-2b-pt-att" / "mine", arrays()))
    assert bare.metadata == {}
    assert any("does not say what this is" in said for said in bare.said)
    outer = tmp_path / "gemma-scope-9b-pt-mlp/layer_1/width_4k/average_l0_1"
    assert read(written(outer / RES, arrays())).metadata["hook_name"] == "blocks.12.hook_resid_post"
    short = read(written(tmp_path / "layer_7/width_16k/average_l0_30", arrays()))
    assert short.metadata == {"l0": 30.0}
    not_quite = read(written(tmp_path / "my-gemma-scope-2b-pt-res/layer_7/width_16k/average_l0_30", arrays()))
    assert not_quite.metadata == {"l0": 30.0}


def test_the_user_names_model_and_hook_point(tmp_path: Path) -> None:
    folder = written(tmp_path / "bare", arrays())
    found = read(folder, model_name="google/gemma-2-2b", hook_name="blocks.3.hook_resid_post").metadata
    assert found == {"model_name": "google/gemma-2-2b", "hook_name": "blocks.3.hook_resid_post"}


@pytest.mark.parametrize(
    ("width", "d_sae"),
    [
        ("4k", 4096), ("16k", 16384), ("32k", 32768), ("65k", 65536), ("131k", 131072), ("262k", 262144),
        ("524k", 524288), ("1m", 1048576),
    ],
)  # fmt: skip
def test_the_width_in_the_name_is_a_power_of_two(tmp_path: Path, width: str, d_sae: int) -> None:
    one = {"b_dec": np.zeros(1, np.float16), **{name: np.zeros(d_sae, np.float16) for name in ("b_enc", "threshold")}}
    params = {"W_enc": np.zeros((1, d_sae), np.float16), "W_dec": np.zeros((d_sae, 1), np.float16), **one}
    foreign = read(written(tmp_path / f"layer_1/width_{width}/average_l0_5", params), shapes_only=True)
    assert foreign.d_sae == d_sae
    assert not any("check that it is" in said for said in foreign.said)


def test_a_contradiction_between_name_and_file_is_said(tmp_path: Path) -> None:
    said = " ".join(read(written(tmp_path / RES, arrays())).said)
    assert "the name says width 16k, which should be 16,384, but the file has 10 features" in said
    assert "res of Gemma 2 2b, which is 2304 wide, but the file reads 6" in said
    attention = "gemma-scope-9b-pt-att/layer_1/width_16k/average_l0_5"
    assert "which is 4096 wide" in " ".join(read(written(tmp_path / attention, arrays())).said)


def test_an_embedding_dictionary_is_as_stored_unless_scaled(tmp_path: Path) -> None:
    params = arrays(dtype=np.float64)
    folder = written(tmp_path / EMBEDDING, params)
    x = tokens(np.float64)
    plain = read(folder)
    assert_same(plain.build(), params, x)
    assert any("embedding_scale=sqrt_d" in said for said in plain.said)
    assert "hook_name" not in plain.metadata
    assert plain.metadata["scaled_embeddings"] is False
    scaled = read(folder, embedding_scale="sqrt_d")
    assert_same(scaled.build(), params, x, scale=D_IN**0.5)  # b_dec too, or the reconstruction would be another
    assert scaled.metadata["hook_name"] == "blocks.0.hook_resid_pre"
    assert scaled.metadata["hf_hook_name"] == "model.layers.0.input"
    assert_same(read(folder, embedding_scale=3).build(), params, x, scale=3)
    for wrong in ("twice", 0, float("inf")):
        with pytest.raises(ValueError, match="sqrt_d or a positive number"):
            read(folder, embedding_scale=wrong)
    with pytest.raises(ValueError, match="for dictionaries of the embedding"):
        read(written(tmp_path / RES, params), embedding_scale="sqrt_d")
    assert_same(read(written(tmp_path / "bare", params), embedding_scale=2).build(), params, x, scale=2)


def test_what_stands_in_the_file_alone_decides_the_function(tmp_path: Path) -> None:
    params = arrays()
    read(written(tmp_path / "ones", {**params, "scaling_factor": np.ones(D_SAE, np.float32)}))
    with pytest.raises(ValueError, match="scaling_factor is not 1"):
        read(written(tmp_path / "scaled", {**params, "scaling_factor": np.full(D_SAE, 2, np.float32)}))
    with pytest.raises(ValueError, match="holds extra"):
        read(written(tmp_path / "more", {**params, "extra": np.ones(3, np.float32)}))
    with pytest.raises(ValueError, match="differ in case alone"):
        read(written(tmp_path / "twice", {**params, "w_enc": params["W_enc"]}))
    with pytest.raises(ValueError, match=r"W_dec should have shape \[10, any\]"):
        read(written(tmp_path / "turned", {**params, "W_dec": params["W_dec"].T}))
    for name in params:
        left = {key: value for key, value in params.items() if key != name}
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            read(written(tmp_path / f"without_{name}", left))


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    assert pickle.dumps(Payload())
    params = {**arrays(), "b_dec": np.array([Payload()] * D_IN, dtype=object)}
    with pytest.raises(ValueError, match="holds object"):
        read(written(tmp_path / "bad", params))
    assert not (tmp_path / "ran").exists()


def test_headers_alone_give_the_same_settings(tmp_path: Path) -> None:
    for place in (RES, EMBEDDING, TRANSCODER):
        folder = written(tmp_path / place, arrays())
        full, headers = read(folder), read(folder, shapes_only=True)
        assert all(tensor.is_meta for tensor in headers.tensors.values())
        assert (headers.architecture, headers.settings, headers.metadata) == (
            full.architecture,
            full.settings,
            full.metadata,
        )
        assert headers.said == full.said
        assert {k: t.shape for k, t in headers.tensors.items()} == {k: t.shape for k, t in full.tensors.items()}
    scaled = read(tmp_path / EMBEDDING, shapes_only=True, embedding_scale="sqrt_d")
    assert scaled.tensors["b_dec"].is_meta


def test_it_is_recognised_by_its_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "bare", arrays())
    assert GEMMA_SCOPE.recognise(LocalSource.of(folder))
    assert GEMMA_SCOPE.recognise(LocalSource.of(folder / "params.npz"))
    (folder / "else.npz").write_bytes(b"")
    assert not GEMMA_SCOPE.recognise(LocalSource.of(folder / "else.npz"))
    save_dictionary(read(folder).build(), tmp_path / "saelens")
    assert not GEMMA_SCOPE.recognise(LocalSource.of(tmp_path / "saelens"))


def test_a_file_that_was_named_otherwise_is_read_where_it_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "bare", arrays())
    (folder / "params.npz").rename(folder / "mine.npz")
    assert read(folder / "mine.npz").d_sae == D_SAE
    with pytest.raises(ValueError, match=r"should hold one params\.npz"):
        read(folder)
