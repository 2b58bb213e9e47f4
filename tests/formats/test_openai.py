"""OpenAI's autoencoders: files as the library writes them, and its forward pass written out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture
from saescope.dictionaries.normalization import input_normalization
from saescope.formats.dictionaries.openai import OPENAI
from saescope.formats.source import LocalSource

N, D, K = 11, 6, 3


def a_state(
    activation: str = "TopK", *, tied: bool = False, dtype: torch.dtype = torch.float32, n: int = N
) -> dict[str, Any]:
    """A state dict with the names and layouts of the library, random throughout."""
    draw = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    state: dict[str, Any] = {
        "pre_bias": random(D),
        "latent_bias": random(n) - 0.3,
        "stats_last_nonzero": torch.arange(n),
        "latents_activation_frequency": torch.ones(n),
        "latents_mean_square": torch.zeros(n),
        "encoder.weight": random(n, D),
    }
    if tied:
        state["decoder.linear.weight"] = state["encoder.weight"]
    else:
        state["decoder.weight"] = random(n, D).T  # column-major, as published
    state["activation"] = activation
    state["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    return state


def published(state: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """The library's forward pass: codes and reconstruction."""
    normalised = state.get("activation", "ReLU") == "TopK"
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    inner = (x - mean) / (std + 1e-5) if normalised else x
    pre = (inner - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    if normalised:
        values, indices = pre.topk(state["activation_state_dict"]["k"], dim=-1)
        f = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    else:
        f = pre.relu()
    rows = state["decoder.weight"].T if "decoder.weight" in state else state["encoder.weight"]
    x_hat = f @ rows + state["pre_bias"]
    return f, x_hat * std + mean if normalised else x_hat


def some_x(dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(40, D, generator=torch.Generator().manual_seed(8), dtype=torch.float64) + 1).to(dtype)


def close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-10 if expected.dtype == torch.float64 else 1e-5
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def require_same(dictionary: Dictionary, state: dict[str, Any], x: Tensor) -> None:
    f, x_hat = published(state, x)
    found = dictionary.encode(x)
    assert torch.equal(found != 0, f != 0)
    assert (f != 0).any(-1).float().mean() > 0.5
    close(found, f)
    close(dictionary(x), x_hat)


def put(folder: Path, state: Any, name: str = "autoencoder.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return folder


def read(folder: Path, **how: Any) -> Any:
    overrides = {key: value for key, value in how.items() if key != "shapes_only"}
    return OPENAI.read(LocalSource.of(folder, overrides=overrides, shapes_only=how.get("shapes_only", False)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_it_computes_what_the_library_does(tmp_path: Path, activation: str, tied: bool, dtype: torch.dtype) -> None:
    state = a_state(activation, tied=tied, dtype=dtype)
    source = LocalSource.of(put(tmp_path, state))
    assert OPENAI.recognise(source)
    foreign = OPENAI.read(source)
    assert foreign.normalization == ("layer_norm" if activation == "TopK" else "none")
    assert any("layer norm" in sentence for sentence in foreign.said)
    require_same(foreign.build(), state, some_x(dtype))


def test_a_square_one_is_read_by_the_names_alone(tmp_path: Path) -> None:
    state = a_state(n=D)
    require_same(read(put(tmp_path, state)).build(), state, some_x())


def test_files_of_the_first_version_name_no_activation(tmp_path: Path) -> None:
    state = a_state("ReLU")
    del state["activation"], state["activation_state_dict"]
    require_same(read(put(tmp_path, state)).build(), state, some_x())


def test_headers_alone_say_the_same(tmp_path: Path) -> None:
    whole, header = (read(put(tmp_path, a_state()), shapes_only=only) for only in (False, True))
    assert (header.architecture, header.settings, header.said) == (whole.architecture, whole.settings, whole.said)
    assert all(tensor.is_meta for tensor in header.tensors.values())
    shapes = [{name: tensor.shape for name, tensor in each.tensors.items()} for each in (whole, header)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("gpt2-small/resid_post_mlp_v5_32k", "blocks.6.hook_resid_post"),
        ("gpt2-small/resid_post_attn_v5_128k", "blocks.6.hook_resid_mid"),
        ("gpt2-small/resid_delta_attn_v5_32k", "blocks.6.hook_attn_out"),
        ("gpt2-small/resid_delta_mlp", "blocks.6.hook_mlp_out"),
        ("gpt2-small/mlp_post_act_v4", "blocks.6.mlp.hook_post"),
    ],
)
def test_the_place_is_read_from_a_published_path(tmp_path: Path, place: str, hook: str) -> None:
    folder = put(tmp_path / place / "autoencoders", a_state(), "6.pt")
    for source in (folder, folder / "6.pt", folder.parent):
        found = read(source)
        assert found.metadata["hook_name"] == hook
        assert found.metadata["model_name"] == "gpt2-small"
        assert found.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
        assert any("from the name" in sentence for sentence in found.said)


def test_a_place_inside_another_name_is_no_place(tmp_path: Path) -> None:
    for place in (
        "not_resid_post_mlp/autoencoders",
        "resid_post_mlp/autoencoders/more",
        "resid_post_mlp_v9/autoencoders",
    ):
        found = read(put(tmp_path / place, a_state(), "6.pt"))
        assert "hook_name" not in found.metadata
        assert any("location=" in sentence for sentence in found.said)


def test_the_place_can_be_said(tmp_path: Path) -> None:
    folder = put(tmp_path / "resid_post_mlp" / "autoencoders", a_state(), "6.pt")
    found = read(folder, location="resid_delta_mlp", layer=2)
    assert found.metadata["hook_name"] == "blocks.2.hook_mlp_out"
    assert not any("from the name" in sentence for sentence in found.said)
    with pytest.raises(ValueError, match="resid_post_attn"):
        read(folder, location="resid")
    with pytest.raises(ValueError, match="whole number of at least 0"):
        read(folder, layer=-1)


def test_a_folder_of_layers_asks_which(tmp_path: Path) -> None:
    for layer in range(3):
        put(tmp_path, a_state(), f"{layer}.pt")
    assert OPENAI.recognise(LocalSource.of(tmp_path))
    with pytest.raises(ValueError, match=r"0\.pt, 1\.pt, 2\.pt; name one of them"):
        read(tmp_path)
    state = a_state()
    require_same(read(tmp_path / "1.pt").build(), state, some_x())


def test_k_may_be_missing_and_said(tmp_path: Path) -> None:
    state = a_state()
    del state["activation_state_dict"]["k"]
    with pytest.raises(ValueError, match=r"does not say k of its TopK; say it: k="):
        read(put(tmp_path, state))
    state["activation_state_dict"]["k"] = 2
    require_same(read(put(tmp_path, state)).build(), state, some_x())
    del state["activation_state_dict"]["k"]
    found = read(put(tmp_path, state), k=2)
    assert found.settings["k"] == 2


def changed(**changes: Any) -> dict[str, Any]:
    state = a_state()
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed(activation_state_dict={"k": K, "postact_fn": "Identity"}), "after TopK comes 'Identity'"),
        (changed(activation="Identity"), "activation 'Identity', which is not opened"),
        (changed(activation="GELU"), "activation 'GELU', which is not opened"),
        (changed(activation="ReLU"), "a ReLU has no activation_state_dict"),
        (changed(activation_state_dict={"k": K, "postact_fn": "ReLU", "scale": 2}), "scale, which is not known"),
        (changed(activation_state_dict={"k": "3k"}), "k should be a whole number"),
        (changed(activation_state_dict=[3]), "should hold names and values"),
        (changed(gain=torch.ones(N)), "gain, which this format does not have"),
        (changed(latent_bias=torch.ones(D)), r"latent_bias should have shape \[11\]"),
        (changed(decoder__weight=torch.ones(N, D)), r"decoder.weight should have shape \[6, 11\]"),
        (changed(decoder__weight=None), "neither decoder.weight nor"),
        (changed(pre_bias=None), "has no tensor 'pre_bias'"),
        (
            changed(decoder__weight=None, decoder__linear__weight=torch.ones(N, D)),
            "should be the encoder's weight again",
        ),
    ],
)
def test_what_is_another_function_is_refused(tmp_path: Path, state: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(put(tmp_path, state))


def test_more_features_per_token_than_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k must be a whole number between 1 and d_sae = 11"):
        read(put(tmp_path, changed(activation_state_dict={"k": 12, "postact_fn": "ReLU"}))).build()


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    state = a_state()
    state["encoder.weight"][3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        read(put(tmp_path, state)).build()


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "saelens").mkdir()
    (tmp_path / "saelens" / "cfg.json").write_text('{"architecture": "standard"}')
    (tmp_path / "saelens" / "sae_weights.safetensors").write_bytes(b"no tensors")
    put(tmp_path / "other", {"encoder.weight": torch.ones(2, 3)})
    put(tmp_path / "bare", [torch.ones(2)])
    put(tmp_path / "broken", {})
    (tmp_path / "broken" / "autoencoder.pt").write_bytes(b"PK\3\4 no zip")
    (tmp_path / "empty").mkdir()
    for name in ("saelens", "other", "bare", "broken", "empty"):
        assert not OPENAI.recognise(LocalSource.of(tmp_path / name))


def ours(kind: str, *, centred: bool = True, normalization: str | None = None) -> Dictionary:
    settings = {"k": K} if kind in ("topk", "abs_topk") else {}
    cls = architecture(kind)
    dictionary = cls(cls.Config(d_in=D, d_sae=N, apply_b_dec_to_input=centred, **settings), seed=3)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    dictionary.input_normalization = input_normalization(
        normalization or ("layer_norm" if kind == "topk" else "none"), D
    )
    return dictionary.eval()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_what_is_written_is_the_same_function_there(tmp_path: Path, kind: str, centred: bool) -> None:
    dictionary, x = ours(kind, centred=centred), some_x()
    assert OPENAI.write is not None
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    OPENAI.write(dictionary, tmp_path / "first", {"hook_name": "blocks.1.hook_mlp_out"})
    state = torch.load(tmp_path / "first" / "autoencoder.pt", weights_only=True)
    with torch.no_grad():
        f, x_hat = published(state, x)
        assert torch.equal(dictionary.encode(x) != 0, f != 0)
        close(dictionary.encode(x), f)
        close(dictionary(x), x_hat)
        again = read(tmp_path / "first").build()
        close(again(x), dictionary(x))
    OPENAI.write(again, tmp_path / "second", {})
    first, second = ((tmp_path / name / "autoencoder.pt").read_bytes() for name in ("first", "second"))
    assert first == second


def test_what_is_written_has_every_entry_that_the_library_asks_for(tmp_path: Path) -> None:
    assert OPENAI.write is not None
    OPENAI.write(ours("topk"), tmp_path, {})
    written = torch.load(tmp_path / "autoencoder.pt", weights_only=True)
    wanted = a_state()
    assert set(written) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            assert (written[name].shape, written[name].dtype) == (value.shape, value.dtype)
        else:
            assert written[name] == value


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (
            ours("relu", normalization="layer_norm"),
            "can not hold a relu dictionary with input normalisation 'layer_norm'",
        ),
        (ours("topk", normalization="none"), "can not hold a topk dictionary with input normalisation 'none'"),
        (ours("topk", normalization="constant_norm_rescale"), "constant_norm_rescale"),
        (ours("jumprelu"), "this is a jumprelu dictionary"),
        (ours("abs_topk"), "this is a abs_topk dictionary"),
    ],
)
def test_what_it_can_not_hold_is_refused(tmp_path: Path, dictionary: Dictionary, words: str) -> None:
    assert OPENAI.write is not None
    with pytest.raises(ValueError, match=words):
        OPENAI.write(dictionary, tmp_path, {})
    assert not list(tmp_path.iterdir())
