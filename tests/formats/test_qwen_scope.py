"""Qwen-Scope's layer files: both matrices transposed, k from the config or the name, one layer at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import save_dictionary
from saescope.formats.dictionaries.qwen_scope import QWEN_SCOPE
from saescope.formats.foreign import Foreign
from saescope.formats.source import LocalSource

D_IN, D_SAE, K = 6, 20, 4
PLACE = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"


def parameters(seed: int = 0, dtype: Any = torch.float32) -> dict[str, Tensor]:
    """Random, as in the files: a row of the encoder is a feature, and so is a column of the decoder."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": dtype}
    return {
        "W_enc": torch.randn(D_SAE, D_IN, **draw),
        "W_dec": torch.randn(D_IN, D_SAE, **draw) * 3,
        "b_enc": torch.randn(D_SAE, **draw) - 1.5,  # so that some tokens have fewer than k positive ones
        "b_dec": torch.randn(D_IN, **draw),
    }


def written(folder: Path, params: dict[str, Any], layer: int = 3, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(params, folder / f"layer{layer}.sae.pt")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings(**more: Any) -> dict[str, Any]:
    """The keys of a published config."""
    return {
        "model_type": "topk_sae", "base_model": "Qwen/Qwen3-1.7B-Base", "d_model": D_IN, "d_sae": D_SAE, "k": K,
        "num_layers": 28, "hook_point": "resid_post", "dtype": "float32", **more,
    }  # fmt: skip


def published(params: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each token, then a relu; the input as it is."""
    pre = x @ params["W_enc"].T + params["b_enc"]
    kept = torch.zeros_like(pre)
    for row, values in zip(kept, pre, strict=True):
        for index in values.argsort(descending=True)[:k]:
            row[index] = max(float(values[index]), 0.0)
    return kept, kept @ params["W_dec"].T + params["b_dec"]


def read(place: Path, *, shapes_only: bool = False, lenient: bool = False, **overrides: Any) -> Foreign:
    return QWEN_SCOPE.read(LocalSource.of(place, overrides=overrides, shapes_only=shapes_only, lenient=lenient))


def assert_same(foreign: Foreign, params: dict[str, Tensor], k: int) -> None:
    dtype = params["W_enc"].dtype
    x = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(7), dtype=dtype)
    f, x_hat = published(params, x, k)
    dictionary = foreign.build()
    found, rebuilt = dictionary.encode(x).detach(), dictionary(x).detach()
    near = 1e-10 if dtype == torch.float64 else 1e-5
    assert ((found > 0) == (f > 0)).all()
    assert (f > 0).sum(-1).max() == k
    assert (f > 0).sum(-1).min() < k
    torch.testing.assert_close(found, f, atol=near * float(f.max()), rtol=0)
    torch.testing.assert_close(rebuilt, x_hat, atol=near * float(x_hat.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_computes_what_the_release_computes(tmp_path: Path, dtype: Any) -> None:
    params = parameters(dtype=dtype)
    foreign = read(written(tmp_path / PLACE, params))
    assert (foreign.architecture, foreign.settings) == ("topk", {"k": K, "apply_b_dec_to_input": False})
    assert (foreign.d_in, foreign.d_sae, foreign.dtype) == (D_IN, D_SAE, dtype)
    assert_same(foreign, params, K)


@pytest.mark.parametrize(
    "place", [PLACE, f"models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}/snapshots/0a1b", f"{PLACE}@main"]
)
def test_k_and_the_model_stand_in_the_name(tmp_path: Path, place: str) -> None:
    foreign = read(written(tmp_path / place, parameters()))
    assert foreign.settings["k"] == K
    assert f"k = {K} from the name" in foreign.said
    assert foreign.metadata == {
        "model_name": "Qwen/Qwen3-1.7B-Base", "hook_name": "blocks.3.hook_resid_post",
        "hf_hook_name": "model.layers.3.output",
    }  # fmt: skip


def test_the_user_says_k_and_the_model(tmp_path: Path) -> None:
    folder = written(tmp_path / PLACE, parameters())
    assert read(folder, k=7, model_name="mine").settings["k"] == 7
    assert "k = 7 as you say" in read(folder, k="7").said
    assert read(folder, model_name="mine").metadata["model_name"] == "mine"
    for wrong in ("many", 0, 1.5, True, -1):
        with pytest.raises(ValueError, match="k should be a whole number"):
            read(folder, k=wrong)


def test_k_that_stands_nowhere_is_asked_for(tmp_path: Path) -> None:
    folder = written(tmp_path / PLACE / "mine", parameters())
    with pytest.raises(ValueError, match=r"does not say how many features may fire.*say it: k=50"):
        read(folder)
    foreign = read(folder, k=K)
    assert "model_name" not in foreign.metadata
    assert_same(foreign, parameters(), K)
    with pytest.raises(ValueError, match="how many features may fire"):
        read(written(tmp_path / f"my-{PLACE.removeprefix('Qwen/')}", parameters()))


def test_the_config_says_it_first(tmp_path: Path) -> None:
    foreign = read(written(tmp_path / "any", parameters(), config=settings(k=5)))
    assert foreign.settings["k"] == 5
    assert foreign.metadata["model_name"] == "Qwen/Qwen3-1.7B-Base"
    assert "k = 5 from config.json" in foreign.said
    assert_same(foreign, parameters(), 5)
    both = written(tmp_path / PLACE, parameters(), config=settings(k=5))
    with pytest.raises(ValueError, match=r"named for k = 4, but its config.json says 5; say which: k=4 or k=5"):
        read(both)
    assert read(both, k=5).settings["k"] == 5
    assert read(written(tmp_path / PLACE, parameters(), config=settings())).settings["k"] == K


def test_a_config_of_something_else_is_refused(tmp_path: Path) -> None:
    for change, words in (
        ({"model_type": "relu_sae"}, "model_type is 'relu_sae'"),
        ({"hook_point": "mlp_out"}, "hook_point is 'mlp_out'"),
        ({"d_sae": 21}, "d_sae = 21, but the layer's file has 20"),
        ({"d_model": 7}, "d_model = 7, but the layer's file has 6"),
        ({"scaling": 2}, "has scaling, which is not known"),
    ):
        folder = written(tmp_path / next(iter(change)), parameters(), config=settings(**change))
        with pytest.raises(ValueError, match=words):
            read(folder)
    assert read(tmp_path / "scaling", lenient=True).settings["k"] == K


def test_a_contradiction_between_name_and_file_is_said(tmp_path: Path) -> None:
    said = " ".join(read(written(tmp_path / PLACE, parameters())).said)
    assert "the name says 32,768 features, but the file has 20" in said
    assert "Qwen3-1.7B-Base, whose stream is 2048 wide, but the file reads 6" in said
    unknown = written(tmp_path / f"SAE-Res-Qwen9-W1K-L0_{K}", parameters())
    assert "stream is" not in " ".join(read(unknown).said)


def test_of_several_layers_one_has_to_be_named(tmp_path: Path) -> None:
    folder = tmp_path / PLACE
    for layer in (2, 10):
        written(folder, parameters(layer), layer)
    with pytest.raises(ValueError, match=r"it has layer2\.sae\.pt, layer10\.sae\.pt; name one of them"):
        read(folder)
    foreign = read(folder / "layer10.sae.pt")
    assert foreign.metadata["hook_name"] == "blocks.10.hook_resid_post"
    assert_same(foreign, parameters(10), K)


def test_what_a_file_should_not_have_is_refused(tmp_path: Path) -> None:
    params = parameters()
    with pytest.raises(ValueError, match="holds threshold"):
        read(written(tmp_path / "a" / PLACE, {**params, "threshold": torch.ones(D_SAE)}))
    with pytest.raises(ValueError, match=r"W_dec should have shape \[6, 20\]"):
        read(written(tmp_path / "b" / PLACE, {**params, "W_dec": params["W_dec"].T}))
    with pytest.raises(ValueError, match=r"b_enc should have shape \[6\]"):  # both lie as in SAELens
        read(written(tmp_path / "c" / PLACE, {**params, "W_enc": params["W_enc"].T, "W_dec": params["W_dec"].T}))
    for name in params:
        left = {key: value for key, value in params.items() if key != name}
        with pytest.raises(ValueError, match=f"no tensor '{name}'"):
            read(written(tmp_path / f"no_{name}" / PLACE, left))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could run code"):
        read(written(tmp_path / PLACE, {**parameters(), "b_dec": _Payload(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_matrices_are_not_copied_and_headers_give_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path / PLACE, parameters())
    full, headers = read(folder), read(folder, shapes_only=True)
    assert full.tensors["W_enc"].stride() == (1, D_IN)
    assert full.tensors["W_dec"].stride() == (1, D_SAE)
    assert all(tensor.is_meta for tensor in headers.tensors.values())
    assert (headers.settings, headers.metadata, headers.said) == (full.settings, full.metadata, full.said)
    assert {k: t.shape for k, t in headers.tensors.items()} == {k: t.shape for k, t in full.tensors.items()}


def test_it_is_recognised_by_its_files(tmp_path: Path) -> None:
    folder = written(tmp_path / PLACE, parameters())
    assert QWEN_SCOPE.recognise(LocalSource.of(folder))
    assert QWEN_SCOPE.recognise(LocalSource.of(folder / "layer3.sae.pt"))
    save_dictionary(read(folder).build(), tmp_path / "saelens")
    assert not QWEN_SCOPE.recognise(LocalSource.of(tmp_path / "saelens"))
    torch.save({}, tmp_path / "layer.sae.pt")
    assert not QWEN_SCOPE.recognise(LocalSource.of(tmp_path / "layer.sae.pt"))
